//! Exit codes (docs/cli.md, "Exit codes") and the errors that carry them.

use std::fmt;

use distd_core::error::causes;
use distd_core::names::{NameError, WantedError};
use distd_peer::driver::FetchError;
use distd_peer::enrollment::EnrollmentError;
use distd_peer::net::EnrollError;
use distd_peer::trust::enroll::RefusalCode;
use distd_peer::trust::files::FileError;
use distd_peer::trust::identity::IdentityError;
use distd_peer::trust::token::TokenError;
use distd_peer::trust::tuf::TufError;
use rustix::io::Errno;
use rustls::{AlertDescription, CertificateError};

/// Reason why the program ended, for scripts. A number never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Any failure that no other code covers.
    Other = 1,
    /// The command line or a name in it is wrong; `clap` ends with the same number.
    Usage = 2,
    /// No such product, version, channel, token, node, or file kept by distd.
    NotFound = 3,
    /// A token, certificate or right is missing or was refused, or signed metadata does not verify.
    Refused = 4,
    /// The version exists with other bytes, or another push of it came first.
    Conflict = 5,
    /// The server or parent cannot be reached or does not answer.
    Network = 6,
    /// A local disk or file failed.
    Local = 7,
    /// Bytes do not match their hash or manifest.
    Integrity = 8,
    /// The input cannot be used: it is empty, changing or too large.
    Unusable = 9,
}

/// Text of `--help` about exit codes.
pub const HELP: &str = "\
Exit codes: 0 done, 1 other error, 2 wrong command line, 3 not found, 4 refused (token, certificate, rights), \
5 conflict (version taken), 6 network, 7 local disk or file, 8 integrity, 9 unusable input";

impl Code {
    /// Returns the code's name in `--json` errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::Network => "network",
            Self::Local => "local",
            Self::Integrity => "integrity",
            Self::Unusable => "unusable_input",
        }
    }
}

/// An error with its exit code and, where known, the next step for the user.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    next: Option<String>,
    error: anyhow::Error,
}

impl Failure {
    /// Wraps `error`; the program ends with `code`.
    pub fn new(code: Code, error: anyhow::Error) -> Self {
        // If the wrapped error already has advice, keep it.
        let next = advice(&error);
        Self { code, next, error }
    }

    /// Wraps `error` as a refusal, or as [`Code::Local`] if the disk that holds keys and trusted
    /// metadata failed.
    pub fn refused(error: anyhow::Error) -> Self {
        let code = if local_advice(&error).is_some() { Code::Local } else { Code::Refused };
        Self::new(code, error)
    }

    /// Sets the next step for the user.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.chain().nth(1)
    }
}

/// Returns the first cause of type `T`. A [`Failure`] displays as the first of its errors, which
/// the chain of sources skips, so the search enters every `Failure`.
pub fn cause_of<T: std::error::Error + Send + Sync + 'static>(error: &anyhow::Error) -> Option<&T> {
    error.chain().find_map(|cause| match cause.downcast_ref::<Failure>() {
        Some(failure) => cause_of(&failure.error),
        None => cause.downcast_ref(),
    })
}

/// Returns the next step that the error itself suggests; `None` if it suggests nothing.
pub fn advice(error: &anyhow::Error) -> Option<String> {
    let own = || error.chain().find_map(|cause| cause.downcast_ref::<Failure>()?.next.clone());
    if error.chain().any(is_clock_error) {
        Some(clock_advice())
    } else if error.chain().any(is_shut_out) {
        Some("ask the realm's operator whether this device was revoked (distd node ls) or lacks a grant (distd grant ls)".to_owned())
    } else {
        own()
    }
}

/// Returns the next step for the user. For a local file or disk the system's error number provides
/// a suggestion when [`advice`] has none, so that a failed command always names a way on.
pub fn next(error: &anyhow::Error) -> Option<String> {
    let local = || (code_of(error) == Code::Local).then(|| local_advice(error)).flatten();
    advice(error).or_else(local)
}

fn local_advice(error: &anyhow::Error) -> Option<String> {
    let first = match Errno::from_raw_os_error(error.chain().find_map(error_number)?) {
        Errno::NOSPC | Errno::DQUOT => "free some space there",
        Errno::PERM | Errno::ACCESS => {
            "check the permissions there, and whether a security policy forbids it"
        }
        Errno::ROFS => "make the file system writable",
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN => "end other programs or raise the limit",
        Errno::IO | Errno::UCLEAN | Errno::NXIO | Errno::NODEV | Errno::STALE | Errno::REMOTEIO => {
            "check the medium (the kernel's log names its errors)"
        }
        // The path is probably wrong, and the message already names it; or the error is not about a
        // disk at all.
        _ => return None,
    };
    Some(format!("{first}, then run the same command again"))
}

/// Returns the system's error number of `cause` or of one of its causes.
fn error_number(cause: &(dyn std::error::Error + 'static)) -> Option<i32> {
    causes(cause).find_map(|error| match error.downcast_ref::<Failure>() {
        // A `Failure` displays as the first of its errors, which the chain of sources skips.
        Some(failure) => failure.error.chain().find_map(error_number),
        None => error.downcast_ref::<std::io::Error>()?.raw_os_error(),
    })
}

/// Returns whether a parent closed a connection or stream because this node is not authorised, or a
/// fetch ended because of that.
pub fn is_shut_out(cause: &(dyn std::error::Error + 'static)) -> bool {
    distd_peer::net::is_shut_out(cause)
        || causes(cause).any(|error| {
            matches!(error.downcast_ref(), Some(FetchError::Unavailable { is_shut_out: true, .. }))
        })
}

fn clock_advice() -> String {
    let now = crate::text::time(i64::try_from(distd_peer::clock::unix_now()).unwrap_or(i64::MAX));
    format!("check this machine's clock: it says {now}; set it right, then try again")
}

/// Returns whether a certificate was refused because of its dates alone. Certificates are valid for
/// a day and are renewed in time, so the likely reason is a wrong clock on one side.
fn is_clock_error(cause: &(dyn std::error::Error + 'static)) -> bool {
    causes(cause).any(|error| {
        let of_tls = error.downcast_ref::<rustls::Error>().is_some_and(|error| match error {
            rustls::Error::InvalidCertificate(why) => matches!(
                why,
                CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. }
            ),
            rustls::Error::AlertReceived(alert) => *alert == AlertDescription::CertificateExpired,
            _ => false,
        });
        // quinn keeps only the text of the error from rustls.
        let of_quic = error.downcast_ref::<quinn::ConnectionError>().is_some_and(|error| {
            matches!(error, quinn::ConnectionError::TransportError(error)
                if error.reason.contains("not valid yet") || error.reason.contains("certificate expired"))
        });
        of_tls || of_quic
    })
}

/// Returns the exit code of an error: its own, else that of the first cause of a known kind.
pub fn code_of(error: &anyhow::Error) -> Code {
    error.chain().find_map(code_of_cause).unwrap_or(Code::Other)
}

fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Code> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.code);
    }
    if let Some(error) = cause.downcast_ref::<TufError>() {
        return Some(code_of_tuf(error));
    }
    if let Some(error) = cause.downcast_ref::<EnrollmentError>() {
        return Some(code_of_enrollment(error));
    }
    if let Some(error) = cause.downcast_ref::<IdentityError>() {
        return Some(code_of_identity(error));
    }
    if cause.is::<TokenError>() {
        return Some(Code::Refused);
    }
    if cause.is::<NameError>() || cause.is::<WantedError>() {
        return Some(Code::Usage);
    }
    if cause.is::<FileError>() || cause.is::<std::io::Error>() {
        return Some(Code::Local);
    }
    None
}

/// Returns the exit code of an error about signed metadata.
pub fn code_of_tuf(error: &TufError) -> Code {
    match error {
        TufError::UnknownTarget(_) => Code::NotFound,
        TufError::Expired { .. }
        | TufError::RolledBack { .. }
        | TufError::BadSignature { .. }
        | TufError::ClockBehind { .. } => Code::Refused,
        TufError::Mismatch(_) | TufError::Malformed(_) | TufError::BadTarget { .. } | TufError::Answer(_) => {
            Code::Integrity
        }
        TufError::Source(cause) if is_shut_out(&**cause) => Code::Refused,
        TufError::Missing { .. } | TufError::Source(_) => Code::Network,
        TufError::File(_) | TufError::Store(_) => Code::Local,
    }
}

/// Returns the exit code of a failed enrolment.
pub fn code_of_enrollment(error: &EnrollmentError) -> Code {
    match error {
        EnrollmentError::Exchange(error) => code_of_enroll_exchange(error),
        EnrollmentError::Identity(error) => code_of_identity(error),
        EnrollmentError::NoParent => Code::Usage,
    }
}

fn code_of_identity(error: &IdentityError) -> Code {
    match error {
        IdentityError::File(_) => Code::Local,
        IdentityError::Refused(refusal) if refusal.code == RefusalCode::Internal => Code::Other,
        _ => Code::Refused,
    }
}

fn code_of_enroll_exchange(error: &EnrollError) -> Code {
    match error {
        // A wrong clock is set right sooner or later, mostly by NTP, so scripts may try again.
        EnrollError::Connect(_, cause) if is_clock_error(&**cause) => Code::Network,
        EnrollError::Connect(_, cause) if is_certificate_error(&**cause) => Code::Refused,
        _ => Code::Network,
    }
}

/// Returns whether a connection failed because of a certificate: the server answers, but belongs to
/// another realm.
pub fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|error| {
        let tls = error.downcast_ref::<rustls::Error>();
        if let Some(rustls::Error::InvalidCertificate(_)) = tls {
            return true;
        }
        if let Some(rustls::Error::AlertReceived(alert)) = tls
            && (42..=49).contains(&u8::from(*alert))
        {
            return true;
        }
        // TLS alerts 42 to 49 are about certificates (RFC 8446 §6.2). QUIC carries them as 0x100 +
        // alert.
        matches!(error.downcast_ref(), Some(quinn::ConnectionError::TransportError(error))
            if (0x100 + 42..=0x100 + 49).contains(&u64::from(error.code)))
    })
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_failure_keeps_its_code_and_advice_under_any_context() {
        let failure = Failure::new(Code::Conflict, anyhow!("taken")).next("choose another");
        let error = Err::<(), _>(failure).context("outer").context("outermost").expect_err("an error");
        assert_eq!(code_of(&error), Code::Conflict);
        assert_eq!(advice(&error).as_deref(), Some("choose another"));
        assert_eq!(format!("{error:#}"), "outermost: outer: taken");
        let io = Failure::new(Code::Local, std::io::Error::from(std::io::ErrorKind::StorageFull).into());
        let io = Err::<(), _>(io).context("outer").expect_err("an error");
        assert!(cause_of::<std::io::Error>(&io).is_some() && cause_of::<std::io::Error>(&error).is_none());
        let wrapped = anyhow::Error::from(Failure::new(Code::Network, error));
        assert_eq!(code_of(&wrapped), Code::Network, "the outermost decides");
        assert_eq!(advice(&wrapped).as_deref(), Some("choose another"));
    }

    #[test]
    fn causes_of_a_known_kind_decide_when_nothing_else_does() {
        let io = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(code_of(&anyhow::Error::new(io).context("could not write")), Code::Local);
        let token = "x".parse::<distd_peer::trust::token::ApiToken>().expect_err("no token");
        assert_eq!(code_of(&token.into()), Code::Refused);
        assert_eq!(code_of(&anyhow!("whatever")), Code::Other);
        assert_eq!(code_of_tuf(&TufError::UnknownTarget("x".into())), Code::NotFound);
        assert_eq!(code_of_tuf(&TufError::Expired { which: "timestamp".into() }), Code::Refused);
    }

    #[test]
    fn a_disk_error_gets_advice_unless_it_has_its_own() {
        let of = |errno: Errno| anyhow::Error::new(std::io::Error::from(errno)).context("could not write");
        assert!(next(&of(Errno::NOSPC)).is_some_and(|next| next.contains("space")));
        assert!(next(&of(Errno::IO)).is_some_and(|next| next.contains("medium")));
        assert!(next(&of(Errno::PERM)).is_some_and(|next| next.contains("permissions")));
        assert_eq!(next(&of(Errno::NOENT)), None, "the path is in the message");
        let nested = std::io::Error::other(std::io::Error::from(Errno::IO));
        assert!(next(&nested.into()).is_some(), "below another error");
        let bare = Failure::new(Code::Local, std::io::Error::from(Errno::IO).into());
        assert!(next(&bare.into()).is_some(), "an error that a failure stands for");
        assert_eq!(code_of(&Failure::refused(of(Errno::IO)).into()), Code::Local);
        assert_eq!(code_of(&Failure::refused(anyhow!("no certificate")).into()), Code::Refused);
        let own = Failure::new(Code::Local, of(Errno::IO)).next("buy another");
        assert_eq!(next(&own.into()).as_deref(), Some("buy another"));
        assert_eq!(next(&anyhow!("whatever")), None);
    }

    #[test]
    fn a_certificate_error_is_found_below_io_errors() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let io = std::io::Error::other(std::io::Error::other(tls));
        assert!(is_certificate_error(&io));
        assert!(!is_certificate_error(&std::io::Error::other("refused")));
    }

    #[test]
    fn the_help_names_every_code() {
        use Code::{Conflict, Integrity, Local, Network, NotFound, Other, Refused, Unusable, Usage};
        for code in [Other, Usage, NotFound, Refused, Conflict, Network, Local, Integrity, Unusable] {
            assert!(HELP.contains(&format!("{} ", code as u8)), "{}", code.name());
        }
    }
}
