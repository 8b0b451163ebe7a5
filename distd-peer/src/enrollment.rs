//! Getting a certificate and keeping it fresh, through whichever parent answers.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::unix_now;
use crate::net::{EnrollError, Outbound, exchange_enroll};
use crate::trust::enroll::{EnrollMessage, EnrollReply, Refusal};
use crate::trust::identity::{IdentityError, NodeIdentity, Role};
use crate::trust::tls::{Credentials, TrustAnchor};
use crate::trust::token::JoinToken;

/// How often a running node looks whether its certificate wants renewing.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollmentError {
    /// No parent could be asked.
    #[error(transparent)]
    Exchange(#[from] EnrollError),
    /// The origin said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The reply does not fit, or could not be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The parent answered another question.
    #[error("the parent answered something else: use the same version of distd on both sides")]
    OtherReply,
    /// No parent given.
    #[error("no parent to enrol with: name one with --parent HOST:PORT")]
    NoParent,
}

async fn ask(
    parents: &[String],
    anchor: &TrustAnchor,
    outbound: &Arc<Outbound>,
    message: &EnrollMessage,
) -> Result<EnrollReply, EnrollmentError> {
    let mut last = EnrollmentError::NoParent;
    for parent in parents {
        match exchange_enroll(parent, anchor, outbound, message).await {
            Ok(reply) => return Ok(reply),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Turns a join token into a certificate.
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
    let message = EnrollMessage::Enroll(identity.enroll_request(token, role, label)?);
    match ask(parents, &anchor, outbound, &message).await? {
        EnrollReply::Enrolled(response) => Ok(identity.install_enrolled(token, &response)?),
        EnrollReply::Refused(refusal) => Err(refusal.into()),
        EnrollReply::Renewed(_) => Err(EnrollmentError::OtherReply),
    }
}

/// Gets the next certificate.
///
/// # Errors
/// [`EnrollmentError`].
pub async fn renew(
    identity: &mut NodeIdentity,
    parents: &[String],
    outbound: &Arc<Outbound>,
) -> Result<(), EnrollmentError> {
    let ca = identity.ca_der().ok_or(IdentityError::NotEnrolled)?.clone();
    let message = EnrollMessage::Renew(identity.renew_request()?);
    match ask(parents, &TrustAnchor::Ca(ca), outbound, &message).await? {
        EnrollReply::Renewed(response) => Ok(identity.install_renewed(&response)?),
        EnrollReply::Refused(refusal) => Err(refusal.into()),
        EnrollReply::Enrolled(_) => Err(EnrollmentError::OtherReply),
    }
}

/// Renews whenever it is time, for as long as the node runs; new handshakes present the new certificate.
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
            tracing::warn!(error = &error as &dyn std::error::Error, "certificate not renewed yet");
            continue;
        }
        let (Some(cert), Some(ca)) = (identity.cert_der(), identity.ca_der()) else { continue };
        if let Err(error) = credentials.replace(&identity.private_key(), cert, ca) {
            tracing::error!(error = &error as &dyn std::error::Error, "new certificate cannot be used");
        }
    }
}
