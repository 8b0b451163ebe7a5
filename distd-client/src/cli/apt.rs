//! `distd apt`: makes the apt of this machine use the proxy of its agent.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Subcommand;
use distd_peer::apt::{AptSettings, DETECT_PATH, SECTION};
use distd_peer::settings::CommandLine;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::context::Context;
use crate::apt::enable::{EnableError, Files, State};
use crate::failure::{Code, Failure};

/// Time that the agent has to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Make the apt of this machine use the proxy of its agent, or no longer (docs/apt.md).
///
/// apt asks a small program for its proxy each time. When the agent is stopped, frozen or removed,
/// the program sends apt to the mirrors themselves.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the configuration and the program, and put `[apt]` into client.toml.
    Enable,
    /// Remove the configuration and the program. `[apt]` in client.toml stays.
    Disable,
    /// Show whether apt uses the proxy, and whether the proxy answers.
    Status,
}

#[derive(Serialize)]
struct Changed {
    changed: bool,
    files: [String; 2],
}

#[derive(Serialize)]
struct Status {
    enabled: bool,
    program: &'static str,
    configuration: &'static str,
    listen: Option<SocketAddr>,
    answers: bool,
}

fn failed(error: EnableError) -> Failure {
    let (code, next) = match &error {
        EnableError::NotOurs(_) => {
            (Code::Conflict, Some("move the file away, or set the proxy there by hand"))
        }
        EnableError::Path(_) => (Code::Usage, Some("name another directory: etc in [apt] of client.toml")),
        EnableError::File(_) | EnableError::Read(..) => (Code::Local, None),
    };
    let failure = Failure::new(code, error.into());
    match next {
        Some(next) => failure.next(next),
        None => failure,
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::Absent => "absent",
        State::Current => "current",
        State::Other => "outdated",
        State::NotOurs => "not written by distd",
    }
}

/// Files for the settings; `None` when the proxy listens nowhere.
fn files(settings: &AptSettings) -> anyhow::Result<(SocketAddr, Files)> {
    let Some(listen) = settings.listen else {
        let error = anyhow!("the proxy for apt listens nowhere");
        return Err(Failure::new(Code::Usage, error).next("set listen in [apt] of client.toml").into());
    };
    Ok((listen, Files::new(&settings.keys.etc, listen).map_err(failed)?))
}

pub(super) fn defaults() -> anyhow::Result<AptSettings> {
    AptSettings::of_section(&toml::Value::Table(toml::Table::new())).map_err(|error| anyhow!(error))
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let settings = context.settings(&CommandLine::new())?;
    let has_section = settings.apt().is_some();
    let apt = match settings.apt() {
        Some(apt) => apt.clone(),
        None => defaults()?,
    };
    let (listen, files) = files(&apt)?;
    let changed = |changed| Changed {
        changed,
        files: [files.program.display().to_string(), files.snippet.display().to_string()],
    };
    match args.command {
        Command::Enable => {
            let made = files.enable().map_err(failed)?;
            if !has_section {
                context.remember(&[(SECTION, Some(toml::Value::Table(toml::Table::new())))])?;
            }
            let answers = answers(listen).await;
            context.output().result(&changed(made || !has_section), |changed| {
                let what = if changed.changed { "wrote" } else { "unchanged:" };
                let next = match answers {
                    true => "",
                    false => "\nnext: start the agent anew; until it answers, apt asks the mirrors itself",
                };
                format!("{what} {} and {}{next}", changed.files[0], changed.files[1])
            })
        }
        Command::Disable => {
            let made = files.disable().map_err(failed)?;
            context.output().result(&changed(made), |changed| match changed.changed {
                true => format!("removed {} and {}", changed.files[0], changed.files[1]),
                false => "apt does not use the proxy".to_owned(),
            })
        }
        Command::Status => {
            let [program, configuration] = files.states().map_err(failed)?;
            let status = Status {
                enabled: [program, configuration] == [State::Current; 2],
                program: word(program),
                configuration: word(configuration),
                listen: has_section.then_some(listen),
                answers: answers(listen).await,
            };
            context.output().result(&status, |status| {
                format!(
                    "apt uses the proxy: {}\nprogram: {} ({})\nconfiguration: {} ({})\nproxy: {listen}, {}",
                    if status.enabled { "yes" } else { "no" },
                    files.program.display(),
                    status.program,
                    files.snippet.display(),
                    status.configuration,
                    if status.answers { "answers" } else { "does not answer" },
                )
            })
        }
    }
}

/// Whether a proxy answers at `listen`.
async fn answers(listen: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(listen).await?;
        let request = format!(
            "GET {DETECT_PATH}?host=deb.debian.org HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut start = [0; 12];
        stream.read_exact(&mut start).await?;
        Ok::<_, std::io::Error>(&start == b"HTTP/1.1 200")
    };
    tokio::time::timeout(ANSWER, ask)
        .await
        .context("no answer")
        .is_ok_and(|answered| answered.unwrap_or(false))
}
