//! `distd fetch`: gets the artifact of a ticket, on any machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::anyhow;
use distd_core::ticket::is_address;
use distd_peer::rates::Class;
use distd_peer::settings::{Table, TableArgs, TableOptions};

use super::context::Context;
use super::shown::ShownProgress;
use super::ticket::read;
use crate::config;
use crate::disk::path::{ArtifactPath, Role};
use crate::failure::{Code, Failure};
use crate::pull::{FetchRequest, TicketAccess, default_target, fetch};
use crate::share::{Sharing, anywhere};

/// Get the file or directory of a ticket.
///
/// Works on any machine, in a realm or not. Serves other fetchers of the same ticket meanwhile.
#[derive(clap::Args)]
pub struct Args {
    /// Path to put the artifact at. Default: the name in the ticket, in this directory.
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Replace a file that is there with other bytes.
    #[arg(long)]
    force: bool,
    /// An earlier artifact to copy chunks from; repeat for more.
    #[arg(long, value_name = "OLD")]
    seed: Vec<PathBuf>,
    #[command(flatten)]
    access: AccessArgs,
}

/// Options of commands that use a ticket.
#[derive(clap::Args)]
pub(super) struct AccessArgs {
    /// The ticket, or "-" to read it from standard input.
    #[arg(value_name = "TICKET", num_args = 1.., required = true)]
    ticket: Vec<String>,
    /// Hash that the artifact must have: its BLAKE3 or its manifest's id.
    #[arg(long, value_name = "HASH", value_parser = hash)]
    expect: Option<[u8; 32]>,
    /// Address of the sharer in place of those in the ticket; repeat for more.
    #[arg(long, value_name = "HOST:PORT")]
    address: Vec<String>,
    /// Serve no other fetchers, and fetch from none.
    #[arg(long)]
    no_seed: bool,
    /// Address to serve other fetchers at. Default: a free port on all addresses.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    settings: TableArgs<FetchOptions>,
}

/// Settings that matter to a fetch.
pub(crate) enum FetchOptions {}

impl TableOptions for FetchOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;

    fn has(key: &str) -> bool {
        ["transport", "metered", "share.linger_seconds"].contains(&key)
    }
}

fn hash(text: &str) -> Result<[u8; 32], String> {
    let mut out = [0; 32];
    hex::decode_to_slice(text, &mut out).map_err(|_| "a hash has 64 hexadecimal digits".to_owned())?;
    Ok(out)
}

impl AccessArgs {
    /// Reads the ticket, and the settings for reaching its sharer.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`] for a text that is no ticket or no address, [`Code::Refused`]
    /// for a forged ticket.
    pub(super) fn access(self, context: &Context) -> anyhow::Result<TicketAccess> {
        let ticket = read(&self.ticket)?;
        if let Some(wrong) = self.address.iter().find(|address| !is_address(address)) {
            return Err(Failure::new(Code::Usage, anyhow!("{wrong:?} is no address: give HOST:PORT")).into());
        }
        let settings = context.settings(&self.settings.line)?;
        let mut sharing = Sharing::of(&settings).with_class(Class::Interactive);
        // The share's fetchers are few, and the sharer tells of them.
        sharing.mdns = false;
        let outbound = settings.outbound(sharing.connectivity)?;
        Ok(TicketAccess {
            ticket,
            addresses: self.address,
            expected: self.expect,
            data: context.data().to_owned(),
            listen: self.listen.unwrap_or_else(|| anywhere(0)),
            sharing: if self.no_seed { sharing.off() } else { sharing },
            outbound,
        })
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let access = args.access.access(context)?;
    let out = match args.out {
        Some(out) => out,
        None => default_target(&access.ticket)?.to_owned(),
    };
    let target = ArtifactPath::target(&out).map_err(Failure::from)?;
    let seed = |typed: &PathBuf| ArtifactPath::existing(typed, Role::Seed).map(|seed| seed.path().to_owned());
    let seeds: Vec<PathBuf> = args.seed.iter().map(seed).collect::<Result<_, _>>().map_err(Failure::from)?;
    let request = FetchRequest { access, target, force: args.force, seeds };
    let fetched = fetch(&request, Arc::new(ShownProgress::new(context.output()))).await?;
    context.output().result(&fetched, |fetched| fetched.summary())
}
