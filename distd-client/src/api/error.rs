//! Errors of API requests, with the exit code and the advice that belong to each.

use reqwest::StatusCode;

use super::ServerUrl;
use crate::failure::{Code, Failure, is_certificate_error};
use distd_core::api::{ErrorBody, ErrorDetail, code};

/// Longest quote from an answer that is not the API's own, in characters.
const QUOTE_MAX: usize = 200;

/// Reasons why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The HTTP client could not be built.
    #[error("could not prepare the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The server's certificate does not belong to the realm that the token names.
    #[error("{server} did not show a certificate of the token's realm")]
    Certificate {
        /// URL of the server.
        server: String,
        /// Error of TLS.
        #[source]
        cause: reqwest::Error,
    },
    /// No connection could be established.
    #[error("could not connect to {server}")]
    Connect {
        /// URL of the server.
        server: String,
        /// Error of the HTTP client.
        #[source]
        cause: reqwest::Error,
    },
    /// The connection broke off or stayed silent.
    #[error("the connection to {server} broke off")]
    Broken {
        /// URL of the server.
        server: String,
        /// Error of the HTTP client.
        #[source]
        cause: reqwest::Error,
    },
    /// The server answered with an error status.
    #[error("{message}")]
    Answered {
        /// HTTP status.
        status: StatusCode,
        /// Error code of the API; empty when the answer is not the API's.
        code: String,
        /// Description of the error: the API's message, or a quote of the answer.
        message: String,
        /// Advice of the server; `None` when it gave none.
        next: Option<String>,
    },
    /// The answer is longer than the client reads.
    #[error("the server's answer is too long")]
    TooLong,
    /// A successful answer does not parse as the expected JSON.
    #[error("the server's answer is unreadable; use the same version of distd on both sides")]
    Unreadable(#[source] serde_json::Error),
    /// A binary answer has an unexpected length.
    #[error(
        "the server's answer has {got} bytes instead of {expected}; use the same version of distd on both sides"
    )]
    Length {
        /// Bytes expected.
        expected: usize,
        /// Bytes received.
        got: usize,
    },
}

impl ApiError {
    pub(super) fn transport(server: &ServerUrl, cause: reqwest::Error) -> Self {
        // The message already names the URL, so drop it from the cause.
        let (server, cause) = (server.to_string(), cause.without_url());
        if is_certificate_error(&cause) {
            Self::Certificate { server, cause }
        } else if cause.is_connect() {
            Self::Connect { server, cause }
        } else {
            Self::Broken { server, cause }
        }
    }

    pub(super) fn answered(status: StatusCode, body: &[u8]) -> Self {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(ErrorBody { error: ErrorDetail { code, message, next } }) => {
                Self::Answered { status, code, message, next: (!next.is_empty()).then_some(next) }
            }
            Err(_) => {
                // The answer did not come from the API: a proxy answered, or the server is not
                // distd.
                let text: String = String::from_utf8_lossy(&body[..body.len().min(4 * QUOTE_MAX)])
                    .chars()
                    .map(|c| if c.is_control() { ' ' } else { c })
                    .take(QUOTE_MAX)
                    .collect();
                let text = text.trim();
                let colon = if text.is_empty() { "" } else { ": " };
                let message = format!("the server answered {status}{colon}{text}");
                Self::Answered { status, code: String::new(), message, next: None }
            }
        }
    }

    /// Returns whether the server knows the token but the token lacks the right.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Answered { status, .. } if *status == StatusCode::FORBIDDEN)
    }

    /// Returns whether the requested object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Answered { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    /// Returns the failure of a command that names a node.
    pub fn about_a_node(self) -> Failure {
        match self.is_not_found() {
            true => Failure::from(self).next("list the nodes: distd node ls"),
            false => Failure::from(self),
        }
    }

    /// Returns the API's error code; empty when the answer is not the API's.
    pub fn code(&self) -> &str {
        match self {
            Self::Answered { code, .. } => code,
            _ => "",
        }
    }

    /// Returns whether the upload is unknown, already finished or short of a chunk. The caller then
    /// begins a new upload; the origin still finds the chunks that were sent before.
    pub fn is_upload_gone(&self) -> bool {
        matches!(self, Self::Answered { code, .. } if code == code::UNKNOWN_UPLOAD || code == code::CONFLICT)
    }

    /// Returns whether the same request may succeed a moment later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Broken { .. } => true,
            Self::Answered { status, .. } => matches!(status.as_u16(), 408 | 429 | 502..=504),
            _ => false,
        }
    }

    fn exit_code(&self) -> Code {
        match self {
            Self::Client(_) | Self::TooLong | Self::Unreadable(_) | Self::Length { .. } => Code::Other,
            Self::Certificate { .. } => Code::Refused,
            Self::Connect { .. } | Self::Broken { .. } => Code::Network,
            Self::Answered { status, .. } => match status.as_u16() {
                400 => Code::Usage,
                401 | 403 => Code::Refused,
                404 => Code::NotFound,
                408 | 429 | 502..=504 => Code::Network,
                409 => Code::Conflict,
                413 => Code::Unusable,
                422 => Code::Integrity,
                _ => Code::Other,
            },
        }
    }

    fn advice(&self) -> Option<String> {
        let text = match self {
            Self::Certificate { .. } => {
                "check the URL; if the origin was set up again, use a token of the new one; otherwise somebody may intercept the connection"
            }
            Self::Connect { .. } => "check the URL, that the origin runs, and the network",
            Self::Broken { .. } => {
                "check the network, then run the same command again: a push continues where it stopped"
            }
            Self::Answered { code, next, .. } => match (code.as_str(), next) {
                // The API's advice names HTTP requests; a user of the command line needs a command.
                (code::UNKNOWN_PRODUCT, _) => "check the name; the first push of a product creates it",
                (code::UNKNOWN_VERSION, _) => "see what there is: distd release ls PRODUCT",
                (code::UNKNOWN_CHANNEL, _) => "make it: distd channel set PRODUCT:CHANNEL VERSION",
                (code::UNAUTHORISED, _) => {
                    "use a token that is valid: --token-file FILE, $DISTD_TOKEN or distd login"
                }
                (code::FORBIDDEN, _) => {
                    "use a token with this right; an admin makes one: distd token create --scope SCOPE"
                }
                (code::FORBIDDEN_PRODUCT, _) => {
                    "use a token for this product; an admin makes one: distd token create --scope SCOPE --product PRODUCT"
                }
                (code::QUOTA, _) => {
                    "wait until open uploads of this token end, a day after their last chunk, or ask an admin to end them"
                }
                (code::VERSION_TAKEN, _) => "push with another --version",
                (code::DOWNGRADE, _) => {
                    "if devices are to go back to it: distd channel set PRODUCT:CHANNEL VERSION --downgrade, with a token \
                     that has the scopes channel and downgrade"
                }
                (_, Some(next)) => return Some(next.clone()),
                (_, None) => return None,
            },
            _ => return None,
        };
        Some(text.to_owned())
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let (code, advice) = (error.exit_code(), error.advice());
        let failure = Self::new(code, error.into());
        match advice {
            Some(advice) => failure.next(advice),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{advice, code_of};

    #[test]
    fn http_statuses_become_exit_codes_with_the_servers_advice() {
        let cases = [
            (400, Code::Usage),
            (401, Code::Refused),
            (403, Code::Refused),
            (404, Code::NotFound),
            (409, Code::Conflict),
            (413, Code::Unusable),
            (422, Code::Integrity),
            (500, Code::Other),
            (503, Code::Network),
            (507, Code::Other),
        ];
        for (status, code) in cases {
            let status = StatusCode::from_u16(status).expect("a status");
            let body = br#"{"error":{"code":"x","message":"it happened","next":"do this"}}"#;
            let error = anyhow::Error::from(Failure::from(ApiError::answered(status, body)));
            assert_eq!(code_of(&error), code, "{status}");
            assert_eq!(advice(&error).as_deref(), Some("do this"));
            assert_eq!(error.to_string(), "it happened");
        }
    }

    #[test]
    fn advice_names_a_command_instead_of_a_request() {
        let body =
            br#"{"error":{"code":"unknown_version","message":"no","next":"GET /v1/products/os/releases"}}"#;
        let error = Failure::from(ApiError::answered(StatusCode::NOT_FOUND, body));
        assert!(advice(&error.into()).expect("advice").contains("distd release ls"));
    }

    #[test]
    fn a_foreign_answer_is_quoted_without_control_characters() {
        let error = ApiError::answered(StatusCode::BAD_GATEWAY, b"<h1>\x1b[31mbad\x07</h1>");
        assert_eq!(error.to_string(), "the server answered 502 Bad Gateway: <h1> [31mbad </h1>");
        assert!(error.is_passing());
        let error = ApiError::answered(StatusCode::NOT_FOUND, &[b'x'; 100_000]);
        assert!(error.to_string().len() < 300);
    }
}
