//! `distd ticket`: looks into a ticket without a connection.

use clap::Subcommand;
use distd_core::ManifestId;
use distd_core::text::shown;
use distd_core::ticket::{Audience, SharedKind, SignedTicket, TicketTextError};
use distd_peer::clock::unix_now;
use distd_peer::trust::ticket::{TicketRefused, open};
use serde::Serialize;

use super::context::Context;
use crate::failure::{Code, Failure};
use crate::text::{human_bytes, time};

/// Longest text that is read from standard input or a file, bytes.
const TEXT_BYTES_MAX: u64 = 64 << 10;

/// Look into a ticket without a connection.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what a ticket is for, whom it is for, and until when.
    Show {
        /// The ticket, or "-" to read it from standard input.
        #[arg(value_name = "TICKET", num_args = 1.., required = true)]
        ticket: Vec<String>,
        /// Also draw it as a QR code.
        #[arg(long)]
        qr: bool,
    },
}

/// A ticket as `--json` prints it.
#[derive(Serialize)]
struct Shown {
    id: String,
    name: String,
    kind: &'static str,
    bytes: u64,
    manifest: ManifestId,
    key: String,
    not_after: u64,
    expired: bool,
    once: bool,
    #[serde(rename = "for")]
    audience: Option<String>,
    addresses: Vec<String>,
}

/// Returns the nodes that a ticket is for, as text; `None` when anyone may use it.
pub(super) fn audience_text(audience: &Audience) -> Option<String> {
    match audience {
        Audience::Anyone => None,
        Audience::Node { node, .. } => Some(format!("node {node}")),
        Audience::Group { group, .. } => Some(format!("group {group}")),
    }
}

impl Shown {
    fn of(signed: &SignedTicket) -> Self {
        let ticket = &signed.ticket;
        Self {
            id: ticket.id.to_string(),
            name: ticket.name.as_str().to_owned(),
            kind: match ticket.kind {
                SharedKind::File => "file",
                SharedKind::Tree => "tree",
            },
            bytes: ticket.bytes,
            manifest: ticket.manifest,
            key: ticket.key.to_string(),
            not_after: ticket.not_after,
            expired: unix_now() >= ticket.not_after,
            once: ticket.once,
            audience: audience_text(&ticket.audience),
            addresses: ticket.addresses.clone(),
        }
    }

    fn summary(&self) -> String {
        let until = time(i64::try_from(self.not_after).unwrap_or(i64::MAX));
        let rows = [
            ("name", shown(&self.name, 300)),
            ("kind", self.kind.to_owned()),
            ("size", format!("{} ({} bytes)", human_bytes(self.bytes), self.bytes)),
            ("manifest", self.manifest.to_string()),
            ("for", self.audience.clone().unwrap_or_else(|| "whoever holds it".to_owned())),
            ("until", if self.expired { format!("{until}, which is over") } else { until }),
            ("fetches", if self.once { "one" } else { "any number" }.to_owned()),
            ("at", self.addresses.join(" ")),
            ("key", self.key.clone()),
            ("id", self.id.clone()),
        ];
        rows.map(|(name, value)| format!("{name:<9}{value}")).join("\n")
    }
}

/// Returns the failure of a text that is not accepted as a ticket.
fn refused(error: TicketRefused) -> Failure {
    let (code, next) = match error {
        TicketRefused::Forged => (Code::Refused, "ask whoever gave it to you for the ticket itself"),
        TicketRefused::Text(TicketTextError::Ticket(distd_core::ticket::TicketError::Form(_))) => {
            (Code::Unusable, "use a newer distd")
        }
        TicketRefused::Text(_) => (Code::Usage, "copy the whole ticket again"),
    };
    Failure::new(code, error.into()).next(next)
}

/// Reads a ticket from the arguments of a command: its pieces, or `-` for standard input.
///
/// # Errors
/// Failures with [`Code::Usage`] for a text that is no ticket or has a typo, [`Code::Refused`] for
/// a forged one.
pub(super) fn read(pieces: &[String]) -> anyhow::Result<SignedTicket> {
    let text = if pieces == ["-"] {
        let mut text = String::new();
        let mut input = std::io::Read::take(std::io::stdin().lock(), TEXT_BYTES_MAX);
        std::io::Read::read_to_string(&mut input, &mut text).map_err(|error| {
            let error = anyhow::Error::new(error).context("could not read the ticket from standard input");
            Failure::new(Code::Local, error)
        })?;
        text
    } else {
        pieces.join(" ")
    };
    Ok(open(&text).map_err(refused)?)
}

/// Draws a ticket as a QR code of half blocks, for a terminal with a dark or light background.
///
/// # Errors
/// A failure with [`Code::Unusable`] when the ticket is too long for a QR code.
pub(super) fn qr(ticket: &SignedTicket) -> anyhow::Result<String> {
    // Capitals and digits take eleven bits a pair, other letters eight bits each.
    let text = ticket.to_text().to_ascii_uppercase();
    let code = qrcode::QrCode::with_error_correction_level(text, qrcode::EcLevel::L).map_err(|error| {
        let error = anyhow::Error::new(error).context("the ticket is too long for a QR code");
        Failure::new(Code::Unusable, error)
            .next("share with fewer addresses: --address HOST alone is not enough; use --listen")
    })?;
    Ok(drawn(&code.to_colors(), code.width()))
}

/// Light border around a code, in modules (ISO 18004).
const BORDER: usize = 4;

/// Draws two rows of modules in one line of text. Light modules are drawn, so the code is right on
/// a dark background; scanners read the inverse too.
fn drawn(colors: &[qrcode::Color], width: usize) -> String {
    let side = width + 2 * BORDER;
    let is_light = |x: usize, y: usize| {
        let inside = |n: usize| (BORDER..BORDER + width).contains(&n);
        let at = |x: usize, y: usize| colors[(y - BORDER) * width + x - BORDER];
        !(inside(x) && inside(y)) || at(x, y) == qrcode::Color::Light
    };
    let mut out = String::new();
    for y in (0..side).step_by(2) {
        for x in 0..side {
            out.push(match (is_light(x, y), y + 1 < side && is_light(x, y + 1)) {
                (true, true) => '\u{2588}',
                (true, false) => '\u{2580}',
                (false, true) => '\u{2584}',
                (false, false) => ' ',
            });
        }
        out.push('\n');
    }
    out
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let Command::Show { ticket, qr: wants_qr } = args.command;
    let signed = read(&ticket)?;
    if wants_qr {
        context.output().note(&qr(&signed)?);
    }
    context.output().result(&Shown::of(&signed), Shown::summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_code_has_a_border_and_two_rows_a_line() {
        use qrcode::Color::{Dark, Light};
        let text = drawn(&[Dark, Light, Light, Dark], 2);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines.iter().all(|line| line.chars().count() == 10));
        assert_eq!(
            lines[2],
            "\u{2588}\u{2588}\u{2588}\u{2588}\u{2584}\u{2580}\u{2588}\u{2588}\u{2588}\u{2588}"
        );
    }
}
