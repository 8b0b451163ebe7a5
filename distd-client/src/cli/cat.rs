//! `distd cat`: reads part of the artifact of a ticket.

use std::path::PathBuf;

use anyhow::anyhow;
use distd_core::tree::TreePath;

use super::context::Context;
use super::fetch::AccessArgs;
use crate::failure::{Code, Failure};
use crate::pull::{ReadRequest, read};

/// Write the file of a ticket, or a part of it, to standard output.
///
/// Only chunks that have some of these bytes are fetched, and nothing is written to a disk.
#[derive(clap::Args)]
pub struct Args {
    /// Bytes to write, counted from 0 as in HTTP: FIRST-LAST, FIRST- or -COUNT for the last ones.
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    range: Option<String>,
    /// File in a shared directory.
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,
    #[command(flatten)]
    access: AccessArgs,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let path = args.path.map(|path| TreePath::new(path.as_os_str().as_encoded_bytes())).transpose();
    let path = path.map_err(|error| {
        let error = anyhow::Error::new(error).context("--path is no path in a directory");
        Failure::new(Code::Usage, anyhow!(error))
    })?;
    let mut access = args.access.access(context)?;
    // A part of an artifact serves nobody.
    access.sharing = access.sharing.off();
    let request = ReadRequest { access, path, range: args.range };
    let outcome = read(&request, &mut std::io::stdout()).await?;
    tracing::info!(bytes = outcome.bytes, wire_bytes = outcome.wire_bytes, "read");
    Ok(())
}
