//! One enrolment exchange over QUIC.

use std::time::Duration;

use bytes::Bytes;
use distd_core::proto::Frame;
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::EnrollBody;
use distd_core::proto::stream::StreamKind;
use std::sync::Arc;

use super::endpoint::{BindError, client_endpoint, resolve};
use super::{FrameReader, FrameWriter, Meter, WireError, close_code};
use crate::trust::enroll::{BodyError, EnrollMessage, EnrollReply};
use crate::trust::identity::PARENT_NAME;
use crate::trust::tls::{TrustAnchor, quic_enroll_client};

/// How long a parent may take to answer: it may have to ask its own.
const ANSWER: Duration = Duration::from_secs(20);

/// Why an enrolment got no answer.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The name has no address.
    #[error("could not resolve {0}")]
    Resolve(String, #[source] std::io::Error),
    /// No socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The parent could not be dialled, or its certificate is not of the realm the token names.
    #[error(
        "could not connect to {0}: check the address, that it runs, and that the join token is of its realm"
    )]
    Connect(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The exchange broke off.
    #[error("the enrolment exchange with {0} broke off: try again")]
    Wire(String, #[source] WireError),
    /// The answer is unreadable.
    #[error("the answer is unreadable")]
    Body(#[from] BodyError),
}

/// Sends one message to the parent at `address` (`HOST:PORT`) and returns its reply.
///
/// # Errors
/// [`EnrollError`].
pub async fn exchange_enroll(
    address: &str,
    anchor: &TrustAnchor,
    message: &EnrollMessage,
) -> Result<EnrollReply, EnrollError> {
    let reply = exchange_raw(address, anchor, Bytes::from(message.encode())).await?;
    Ok(EnrollReply::decode(&reply)?)
}

/// The same with the bodies as they are: what a relay forwards.
pub(crate) async fn exchange_raw(
    address: &str,
    anchor: &TrustAnchor,
    body: Bytes,
) -> Result<Bytes, EnrollError> {
    let remote = resolve(address).await.map_err(|e| EnrollError::Resolve(address.to_owned(), e))?;
    let endpoint = client_endpoint(remote.is_ipv6(), quic_enroll_client(anchor))?;
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| EnrollError::Connect(address.to_owned(), e);
    let connecting = endpoint.connect(remote, PARENT_NAME).map_err(|e| failed(e.into()))?;
    let connection = tokio::time::timeout(ANSWER, connecting)
        .await
        .map_err(|e| failed(e.into()))?
        .map_err(|e| failed(e.into()))?;
    let exchange = async {
        let (send, recv) = connection.open_bi().await.map_err(WireError::Connection)?;
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
    connection.close(close_code(CloseCode::Done), b"");
    reply
}
