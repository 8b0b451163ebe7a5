//! Secrets that a command makes, printed once or written to a file of their owner, and join tokens
//! that it is given.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use distd_peer::trust::files;
use distd_peer::trust::token::JoinToken;
use serde::Serialize;

use super::context::Context;
use crate::failure::{Code, Failure};

#[derive(Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    file: &'a Path,
}

/// Refuses a file that exists, before the secret is made: a secret that cannot be written would be
/// lost.
///
/// # Errors
/// Failures with [`Code::Local`].
pub fn refuse_existing(out: Option<&Path>) -> anyhow::Result<()> {
    match out {
        Some(path) if path.exists() => {
            let error = anyhow!("{} exists", path.display());
            Err(Failure::new(Code::Local, error).next("name a new file with --out").into())
        }
        _ => Ok(()),
    }
}

/// Prints only the token, so that it can be piped, or writes it to the new file `out`. `made` is
/// what `--json` prints, `id` names the token there when it is in a file.
///
/// # Errors
/// Failures with [`Code::Local`].
pub fn hand_over(
    context: &Context,
    made: &impl Serialize,
    token: &str,
    id: Option<&str>,
    out: Option<&Path>,
) -> anyhow::Result<()> {
    let Some(path) = out else {
        return context.output().result(made, |_| token.to_owned());
    };
    let text = format!("{token}\n");
    let written =
        files::create_secret(path, text.as_bytes()).map_err(|e| Failure::new(Code::Local, e.into()))?;
    if !written {
        let error = anyhow!("another process created {} meanwhile", path.display());
        return Err(Failure::new(Code::Local, error)
            .next("revoke the token just made, then make another")
            .into());
    }
    let result = Written { id, file: path };
    context.output().result(&result, |result| format!("token written to {}", result.file.display()))
}

pub(super) fn parsed_join_token(text: &str) -> anyhow::Result<JoinToken> {
    text.parse::<JoinToken>().map_err(|e| Failure::new(Code::Refused, e.into()).into())
}

/// Reads the join token in a file.
///
/// # Errors
/// Failures with [`Code::Local`] or [`Code::Refused`].
pub fn join_token_in(path: &Path) -> anyhow::Result<JoinToken> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("could not read the join token from {}", path.display()))
        .map_err(|e| Failure::new(Code::Local, e))?;
    parsed_join_token(&text)
}
