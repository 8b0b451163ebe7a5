//! The asking side of one enrolment exchange.

use std::time::Duration;

use bytes::Bytes;
use distd_core::proto::Frame;
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::EnrollBody;
use distd_core::proto::stream::StreamKind;
use std::sync::Arc;

use super::dialer::{DialError, Dialer};
use super::endpoint::BindError;
use super::outbound::Outbound;
use super::{FrameReader, FrameWriter, Meter, WireError};
use crate::trust::tls::TrustAnchor;

/// Time that a parent may take to answer. A relay may have to ask its own parent.
const ANSWER: Duration = Duration::from_secs(20);

/// Reason why an enrolment got no answer.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// A socket could not be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A node answered, but not as a parent of the realm that the token names.
    #[error(
        "could not connect to {0}: check the address, that it runs, and that the join token is of its realm"
    )]
    Connect(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The parent could not be reached.
    #[error(transparent)]
    Dial(DialError),
    /// The exchange broke off.
    #[error("the enrolment exchange with {0} broke off: try again")]
    Wire(String, #[source] WireError),
}

impl From<DialError> for EnrollError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Connect(address, cause) => Self::Connect(address, cause),
            other => Self::Dial(other),
        }
    }
}

/// Sends one encoded request to the parent at `address` (`HOST:PORT`), over the transport and proxy
/// that `outbound` gives, and returns the bytes of the reply. A relay forwards both unchanged; a
/// node checks the reply's seal.
///
/// # Errors
/// [`EnrollError`].
pub async fn exchange_enroll(
    address: &str,
    anchor: &TrustAnchor,
    outbound: &Arc<Outbound>,
    request: &[u8],
) -> Result<Bytes, EnrollError> {
    let body = Bytes::copy_from_slice(request);
    let connection = Dialer::enrolling(anchor, outbound.clone())?.dial(address).await?;
    let exchange = async {
        let (_, send, recv) = connection.open().await?;
        let mut writer = FrameWriter::new(send);
        writer.stream_kind(StreamKind::Enroll).await?;
        writer.send(&Frame::Enroll(EnrollBody(body))).await?;
        writer.finish();
        let mut reader = FrameReader::new(recv, Arc::new(Meter::default()), ANSWER);
        match reader.next().await? {
            Some(Frame::Enrolled(EnrollBody(reply))) => Ok(reply),
            _ => Err(WireError::Truncated),
        }
    };
    let reply = exchange.await.map_err(|e| EnrollError::Wire(address.to_owned(), e));
    connection.close(CloseCode::Done);
    reply
}
