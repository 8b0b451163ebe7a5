//! Pulls a release into a file with the device library: `cargo run --example pull -- STATE_DIR
//! PRODUCT:CHANNEL OUT`. The state directory is one that `distd enroll` has filled.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use distd_client::progress::Ignored;
use distd_client::pull::{PullRequest, pull};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [data, wanted, out] = args.as_slice() else { anyhow::bail!("usage: pull STATE_DIR RELEASE OUT") };
    let wanted = wanted.parse().context("a release is PRODUCT@VERSION or PRODUCT:CHANNEL")?;
    let request = PullRequest::new(Path::new(data), wanted, Path::new(out))?;
    let outcome = pull(&request, Arc::new(Ignored)).await?;
    println!("{}", outcome.summary());
    Ok(())
}
