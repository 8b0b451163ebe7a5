//! Output of the program: results go to standard output, everything else to standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use distd_core::error::Chain;
use distd_core::text::shown;
use serde::Serialize;

use crate::failure::{self, Code};

/// Longest message, in characters: two paths of the greatest length (`PATH_MAX` is 4096) and some
/// words.
const MESSAGE_MAX: usize = 10_000;

/// Findings of a failed check, kept until they are printed together with the error.
static FOUND: Mutex<Option<serde_json::Map<String, serde_json::Value>>> = Mutex::new(None);

/// Form and amount of output.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
}

/// The one object that `--json` prints when a command fails.
#[derive(Serialize)]
struct ErrorObject<'a> {
    /// Findings of the command before it failed.
    #[serde(flatten)]
    found: serde_json::Map<String, serde_json::Value>,
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'static str,
    exit: u8,
    message: &'a str,
    next: Option<&'a str>,
}

impl Output {
    /// Results are JSON or text; `quiet` leaves out progress and notes.
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Returns whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Returns whether progress and notes are left out.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Returns whether standard error is a terminal, on which a progress bar can be drawn.
    pub fn has_terminal(&self) -> bool {
        io::stderr().is_terminal()
    }

    /// Prints the result of a command: one line of JSON, or the text that `human` makes of the
    /// value.
    ///
    /// # Errors
    /// When standard output cannot be written. A closed pipe is no error: its reader has read
    /// enough.
    pub fn result<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let text = if self.json { serde_json::to_string(value)? } else { human(value) };
        match writeln!(io::stdout().lock(), "{}", text.trim_end()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(anyhow::Error::new(e)
                    .context("done, but the result could not be written to standard output"))
            }
            _ => Ok(()),
        }
    }

    /// Prints the findings of a failed check. As JSON they are kept, to be printed in one object
    /// with the error that follows.
    ///
    /// # Errors
    /// As [`result`](Self::result).
    pub fn finding<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        if !self.json {
            return self.result(value, human);
        }
        self.beside_failure(value);
        Ok(())
    }

    /// Adds the fields of `value` to the JSON object of a failure, beside `error`.
    pub fn beside_failure<T: Serialize>(&self, value: &T) {
        let found = serde_json::to_value(value).ok();
        let found = found.as_ref().and_then(serde_json::Value::as_object).cloned();
        *FOUND.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// Prints a line for people on standard error: an event beside the result, or the next step.
    pub fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            // If standard error is closed there is nobody to tell.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Prints the JSON for a refused command line; clap has printed its text already.
    pub fn refused(message: &str, next: Option<&str>) {
        let code = Code::Usage;
        let body = ErrorBody { code: code.name(), exit: code as u8, message, next };
        if let Ok(text) = serde_json::to_string(&ErrorObject { found: serde_json::Map::new(), error: body }) {
            let _ = writeln!(io::stdout().lock(), "{text}");
        }
    }

    /// Prints why the command failed and the next step; returns the exit code.
    pub fn failure(&self, error: &anyhow::Error) -> Code {
        let code = failure::code_of(error);
        // Peers, files and servers wrote parts of the text, so control characters are escaped and
        // the length is bounded.
        let next = failure::next(error).map(|next| shown(&next, MESSAGE_MAX));
        let message = shown(&Chain(error.as_ref()).to_string(), MESSAGE_MAX);
        let mut stderr = io::stderr().lock();
        // If standard error is closed there is nobody to tell; the exit code remains.
        let _ = writeln!(stderr, "error: {message}");
        if let Some(next) = &next {
            let _ = writeln!(stderr, "next: {next}");
        }
        if self.json {
            let body =
                ErrorBody { code: code.name(), exit: code as u8, message: &message, next: next.as_deref() };
            let found = FOUND.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
            if let Ok(text) = serde_json::to_string(&ErrorObject { found, error: body }) {
                let _ = writeln!(io::stdout().lock(), "{text}");
            }
        }
        code
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_cause_that_repeats_its_parent_is_printed_once() {
        let error = anyhow!("no").context("no").context("could not");
        assert_eq!(Chain(error.as_ref()).to_string(), "could not: no");
    }
}
