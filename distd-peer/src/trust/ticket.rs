//! The key of a share, and the check of the tickets that it signed (docs/tickets.md).

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use distd_core::ticket::{ShareKey, SignedTicket, Ticket, TicketTextError, ticket_message};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// Reason why a text is not accepted as a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketRefused {
    /// The text is no ticket, or was mistyped.
    #[error(transparent)]
    Text(#[from] TicketTextError),
    /// The ticket was changed, or made without the key that it names.
    #[error("the ticket is forged: its signature is not of the key that it names")]
    Forged,
}

/// Private key of one share. It signs the share's tickets, and the certificates of those that fetch
/// with them.
pub struct ShareSigner {
    pub(super) key: KeyPair,
    public: ShareKey,
}

impl ShareSigner {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn generate() -> Result<Self, rcgen::Error> {
        Self::of(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
    }

    /// Takes the key from PKCS#8 PEM.
    ///
    /// # Errors
    /// When the text is no such key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, rcgen::Error> {
        Self::of(super::identity::key_from_pem(pem)?)
    }

    fn of(key: KeyPair) -> Result<Self, rcgen::Error> {
        let public = compressed(key.der_bytes()).ok_or(rcgen::Error::UnsupportedSignatureAlgorithm)?;
        Ok(Self { key, public })
    }

    /// Returns the key as PKCS#8 PEM, which is secret.
    pub fn to_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Public half of the key.
    pub fn public(&self) -> ShareKey {
        self.public
    }

    /// Signs a ticket.
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign(&self, ticket: Ticket) -> Result<SignedTicket, rcgen::Error> {
        let body = ticket.encode();
        let signature = self.sign_message(&ticket_message(&body))?.into();
        Ok(SignedTicket { ticket, body, signature })
    }

    pub(super) fn sign_message(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign(message)
    }
}

/// Returns the compressed form of an uncompressed point of P-256 (SEC 1, section 2.3.3).
fn compressed(point: &[u8]) -> Option<ShareKey> {
    let (&4, rest) = point.split_first()? else { return None };
    let (x, y) = rest.split_at_checked(32).filter(|(_, y)| y.len() == 32)?;
    let mut out = [2 + (y[31] & 1); 33];
    out[1..].copy_from_slice(x);
    Some(ShareKey(out))
}

/// Returns the key in a certificate, if a share can have it.
pub(crate) fn share_key_of(cert_der: &[u8]) -> Option<ShareKey> {
    let (_, cert) = X509Certificate::from_der(cert_der).ok()?;
    compressed(&cert.public_key().subject_public_key.data)
}

/// Checks the signature of a ticket.
///
/// # Errors
/// [`TicketRefused::Forged`].
pub fn verify(signed: &SignedTicket) -> Result<(), TicketRefused> {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &signed.ticket.key.0)
        .verify(&ticket_message(&signed.body), &signed.signature)
        .map_err(|_| TicketRefused::Forged)
}

/// Reads a ticket as somebody pasted it, and checks its signature.
///
/// # Errors
/// [`TicketRefused`].
pub fn open(text: &str) -> Result<SignedTicket, TicketRefused> {
    let signed = SignedTicket::from_text(text)?;
    verify(&signed)?;
    Ok(signed)
}

#[cfg(test)]
mod tests {
    use distd_core::ManifestId;
    use distd_core::ticket::{Audience, SharedKind, SharedName, TicketId};

    use super::*;

    fn ticket(signer: &ShareSigner) -> Ticket {
        Ticket {
            key: signer.public(),
            id: TicketId([1; 8]),
            manifest: ManifestId([2; 32]),
            kind: SharedKind::File,
            bytes: 5,
            not_after: 6,
            audience: Audience::Anyone,
            once: false,
            name: SharedName::new("a").expect("a name"),
            addresses: vec!["127.0.0.1:1".into()],
        }
    }

    #[test]
    fn a_ticket_verifies_and_any_change_of_it_is_a_forgery() {
        let signer = ShareSigner::generate().expect("a key");
        let again = ShareSigner::from_pem(signer.to_pem().as_bytes()).expect("the key");
        assert_eq!(again.public(), signer.public());
        let signed = again.sign(ticket(&signer)).expect("sign");
        assert_eq!(open(&signed.to_text()), Ok(signed.clone()));
        let changes: [&dyn Fn(&mut Ticket); 5] = [
            &|t| t.not_after += 1,
            &|t| t.manifest.0[0] ^= 1,
            &|t| t.addresses = vec!["127.0.0.1:2".into()],
            &|t| t.name = SharedName::new("b").expect("a name"),
            &|t| t.key = ShareSigner::generate().expect("a key").public(),
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let mut forged = signed.clone();
            change(&mut forged.ticket);
            forged.body = forged.ticket.encode();
            assert_eq!(open(&forged.to_text()), Err(TicketRefused::Forged), "change {n}");
        }
        let mut unsigned = signed;
        unsigned.signature = bytes::Bytes::from_static(&[0x30, 6, 2, 1, 1, 2, 1, 1]);
        assert_eq!(open(&unsigned.to_text()), Err(TicketRefused::Forged));
    }
}
