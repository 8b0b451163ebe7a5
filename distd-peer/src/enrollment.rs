//! Enrolment: getting a certificate and renewing it, through the first parent that answers.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::unix_now;
use crate::net::{DialError, EnrollError, Outbound, exchange_enroll};
use crate::trust::enroll::EnrollMessage;
use crate::trust::identity::{IdentityError, NodeIdentity};
use crate::trust::tls::{Credentials, TrustAnchor};
use crate::trust::token::JoinToken;
use distd_core::error::Chain;
use distd_core::role::Role;

/// Interval at which a running node checks whether its certificate needs renewal.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Reason why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollmentError {
    /// No parent could be reached.
    #[error(transparent)]
    Exchange(#[from] EnrollError),
    /// The reply is a refusal, does not match the request, or could not be stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No parent was given.
    #[error("no parent to enrol with: name one with --parent HOST:PORT")]
    NoParent,
}

impl EnrollmentError {
    /// Whether no parent was reached, which may pass by itself.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Exchange(
                EnrollError::Wire(..)
                    | EnrollError::Dial(
                        DialError::Resolve(..) | DialError::Silent { .. } | DialError::Tcp(..)
                    )
            )
        )
    }
}

/// Asks one parent after another until `take` accepts a reply. A reply that the realm has not
/// sealed counts as no reply: another parent may pass on the real one. A refusal comes from the
/// origin and is final.
async fn ask(
    parents: &[String],
    anchor: &TrustAnchor,
    outbound: &Arc<Outbound>,
    request: &[u8],
    mut take: impl FnMut(&[u8]) -> Result<(), IdentityError>,
) -> Result<(), EnrollmentError> {
    let mut last = EnrollmentError::NoParent;
    for parent in parents {
        match exchange_enroll(parent, anchor, outbound, request).await {
            Ok(reply) => match take(&reply) {
                Ok(()) => return Ok(()),
                Err(error @ IdentityError::Seal(_)) => {
                    tracing::warn!(parent, error = %Chain(&error), "enrolment reply refused; trying the next parent, if any");
                    last = error.into();
                }
                Err(error) => return Err(error.into()),
            },
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Obtains a certificate with a join token.
///
/// # Errors
/// [`EnrollmentError`].
pub async fn enroll(
    identity: &mut NodeIdentity,
    token: &JoinToken,
    role: Role,
    label: &str,
    parents: &[String],
    outbound: &Arc<Outbound>,
) -> Result<(), EnrollmentError> {
    let anchor = TrustAnchor::Fingerprint(*token.ca_fingerprint());
    let request = EnrollMessage::Enroll(identity.enroll_request(token, role, label)?).encode();
    let take = |reply: &[u8]| identity.install_enrolled(token, role, &request, reply);
    ask(parents, &anchor, outbound, &request, take).await
}

/// Obtains the next certificate.
///
/// # Errors
/// [`EnrollmentError`].
pub async fn renew(
    identity: &mut NodeIdentity,
    parents: &[String],
    outbound: &Arc<Outbound>,
) -> Result<(), EnrollmentError> {
    let ca = identity.ca_der().ok_or(IdentityError::NotEnrolled)?.clone();
    let request = EnrollMessage::Renew(identity.renew_request()?).encode();
    let take = |reply: &[u8]| identity.install_renewed(&request, reply);
    ask(parents, &TrustAnchor::Ca(ca), outbound, &request, take).await
}

/// Renews the certificate whenever it is due, for as long as the node runs. New handshakes present
/// the new certificate.
pub async fn renew_regularly(
    mut identity: NodeIdentity,
    credentials: Arc<Credentials>,
    parents: Vec<String>,
    outbound: Arc<Outbound>,
) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !identity.needs_renewal(unix_now()) {
            continue;
        }
        if let Err(error) = renew(&mut identity, &parents, &outbound).await {
            tracing::warn!(
                error = %Chain(&error),
                "certificate could not be renewed; trying again in a minute"
            );
            continue;
        }
        let (Some(cert), Some(ca)) = (identity.cert_der(), identity.ca_der()) else { continue };
        if let Err(error) = credentials.replace(&identity.private_key(), cert, ca) {
            tracing::error!(error = %Chain(&error), "new certificate cannot be used");
        }
    }
}
