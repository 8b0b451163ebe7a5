//! `distd grant`: rights of groups on releases.

use std::time::Duration;

use clap::Subcommand;
use distd_client::cli::parse::{duration, moment};
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::{joined, table, time};
use distd_core::api::{GRANT_RELEASES_MAX, GrantInfo, NewGrants, Word};
use distd_core::fleet::{EVERYONE, ReleasePattern, Right};
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use serde::Serialize;

/// Grant, list or withdraw rights of groups on releases.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Grant a group rights on the releases of products and channels.
    Add {
        /// Name of the group, from distd group ls; everyone is every node of the realm.
        group: Name,
        /// Releases, such as os:stable or 'os-*:*'; * stands for any characters. A product without
        /// a channel includes its releases in no channel.
        #[arg(required = true, value_name = "PRODUCT[:CHANNEL]", num_args = 1..=GRANT_RELEASES_MAX)]
        releases: Vec<ReleasePattern>,
        /// Rights to grant, separated by commas: read, seed (serve to neighbours), report. seed and
        /// report need read. Default: all three.
        #[arg(long, value_delimiter = ',')]
        rights: Vec<Right>,
        /// Time at which the grant ends, UTC, such as 2027-01-31 or 2027-01-31T18:00:00Z. Default:
        /// the grant has no end.
        #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "lasting")]
        until: Option<i64>,
        /// How long the grant lasts from now, such as 24h or 90d.
        #[arg(long = "for", id = "lasting", value_name = "DURATION", value_parser = duration)]
        lasting: Option<Duration>,
        /// Let the certificate alone prove these rights, also while the origin is away. A revoked
        /// node is then served by relays that cannot reach the origin until its certificate ends.
        /// Only for everyone.
        #[arg(long)]
        by_certificate: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List the grants.
    Ls {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Withdraw a grant.
    Rm {
        /// Id of the grant, from distd grant ls.
        id: u64,
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(Serialize)]
struct Removed {
    removed: u64,
}

/// Grants as a table.
pub(super) fn grant_table(grants: &[GrantInfo]) -> String {
    let head = ["ID", "GROUP", "RELEASES", "RIGHTS", "UNTIL", "BY", "MADE", "STATE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(grants.iter().map(|grant| {
        let GrantInfo { id, group, rights, releases, until, by_certificate, created, created_by, state } =
            grant.clone();
        let made = match created {
            Some(created) => format!("{} by {created_by}", time(created)),
            None => format!("by {created_by}"),
        };
        vec![
            id.to_string(),
            group,
            releases,
            joined(&rights, ","),
            until.map_or("no end".to_owned(), time),
            if by_certificate { "certificate" } else { "capability" }.to_owned(),
            made,
            state.to_string(),
        ]
    }));
    table(&rows)
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Add { group, releases, rights, until, lasting, by_certificate, api } => {
            let now = i64::try_from(unix_now()).unwrap_or(i64::MAX);
            let lasting = lasting.map(|lasting| i64::try_from(lasting.as_secs()).unwrap_or(i64::MAX));
            let wanted = NewGrants {
                group: group.to_string(),
                releases: releases.iter().map(ToString::to_string).collect(),
                rights: (!rights.is_empty()).then_some(rights),
                until: until.or(lasting.map(|lasting| now.saturating_add(lasting))),
                by_certificate,
            };
            let made =
                context.api(&api)?.add_grants(&wanted).await.map_err(|error| match error.is_not_found() {
                    true => Failure::from(error)
                        .next(format!("make the group first: distd group set {group} SELECTOR")),
                    false => Failure::from(error),
                })?;
            context.output().result(&made, |made| grant_table(&made.grants))?;
            let next = match group.as_str() {
                EVERYONE => "next: distd grant ls".to_owned(),
                _ => format!("next: distd group show {group}"),
            };
            context.output().note(&next);
            Ok(())
        }
        Command::Ls { api } => {
            let list = context.api(&api)?.grants().await.map_err(Failure::from)?;
            let valid = list
                .grants
                .iter()
                .any(|grant| !matches!(grant.state, Word::Known(distd_core::api::GrantState::Expired)));
            context.output().result(&list, |list| grant_table(&list.grants))?;
            if !valid {
                context
                    .output()
                    .note("no node may fetch any release; next: distd grant add GROUP PRODUCT:CHANNEL");
            }
            Ok(())
        }
        Command::Rm { id, api } => {
            let done = context.api(&api)?.remove_grant(id).await;
            done.map_err(|error| match error.is_not_found() {
                true => Failure::from(error).next("list the grants: distd grant ls"),
                false => Failure::from(error),
            })?;
            context
                .output()
                .result(&Removed { removed: id }, |done| format!("grant {} is removed", done.removed))
        }
    }
}
