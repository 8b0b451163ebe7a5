//! `distd gc`: removes releases that nothing keeps, or shows what would go and why the rest stays.

use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::{human_bytes, table, time};
use distd_core::api::{
    GcLot, GcPatchSet, GcRelease, GcReport, KeepReason, Kept, REMOVALS_MAX, SetReason, Word,
};

/// Remove releases that no policy, channel or node keeps, and patch sets that nobody can take.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Show what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Show every release with the reasons for which it stays, and remove nothing.
    #[arg(long)]
    explain: bool,
    /// Most releases to remove in this run, the oldest first. Default: 100.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(REMOVALS_MAX)))]
    max: Option<u32>,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let api = context.api(&args.api)?;
    let looks = args.dry_run || args.explain;
    let report = if looks { api.gc_report(args.max).await } else { api.collect(args.max).await };
    context.output().result(&report.map_err(Failure::from)?, |report| text(report, looks, args.explain))
}

fn text(report: &GcReport, looks: bool, explain: bool) -> String {
    let mut out = Vec::new();
    let going = |release: &&GcRelease| explain || release.lot != GcLot::Keep;
    let shown: Vec<&GcRelease> = report.releases.iter().filter(going).collect();
    if !shown.is_empty() {
        let head = ["RELEASE", "CREATED", "SIZE", "ITS OWN", "LOT"].map(str::to_owned).to_vec();
        let rows = shown.into_iter().map(|release| {
            vec![
                format!("{}@{}", release.product, release.version),
                time(release.created),
                human_bytes(release.bytes),
                human_bytes(release.unique_bytes),
                lot(release, looks),
            ]
        });
        out.push(table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    }
    if !report.patch_sets.is_empty() {
        let head = ["PATCH SET", "SIZE", "REMOVED BECAUSE"].map(str::to_owned).to_vec();
        let rows = report.patch_sets.iter().map(|set| {
            let GcPatchSet { product, from, to, bytes, reason } = set;
            let from = from.as_deref().unwrap_or("nothing");
            vec![format!("{product} {from} -> {to}"), human_bytes(*bytes), set_reason(reason)]
        });
        out.push(table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    }
    let count = |lot| report.releases.iter().filter(|release| release.lot == lot).count();
    let (gone, later) = (count(GcLot::Remove), count(GcLot::Later));
    let what = if looks { "would be removed" } else { "are removed" };
    let mut sums = format!(
        "{gone} releases and {} patch sets {what}; with removals under way that frees {}",
        report.patch_sets.len(),
        human_bytes(report.freed_bytes)
    );
    if later > 0 {
        sums.push_str(&format!("; {later} more go in later runs"));
    }
    out.push(sums);
    out.push(format!(
        "packs {}: used {}, unused {}, emptied and kept for a day {}, open uploads {}",
        human_bytes(report.stored_bytes),
        human_bytes(report.live_bytes),
        human_bytes(report.dead_bytes),
        human_bytes(report.emptied_bytes),
        human_bytes(report.upload_bytes)
    ));
    if report.grace_seconds > 0 {
        out.push(format!("bytes of removed releases stay for {} s", report.grace_seconds));
    }
    out.join("\n\n")
}

fn lot(release: &GcRelease, looks: bool) -> String {
    match &release.lot {
        Word::Known(GcLot::Keep) => {
            let reasons: Vec<String> = release.kept.iter().map(reason).collect();
            format!("stays: {}", reasons.join("; "))
        }
        Word::Known(GcLot::Remove) if looks => "would be removed".to_owned(),
        Word::Known(GcLot::Remove) => "removed".to_owned(),
        Word::Known(GcLot::Later) => "goes in a later run".to_owned(),
        Word::Known(GcLot::Removing) => "is being removed".to_owned(),
        Word::Other(word) => word.clone(),
    }
}

fn reason(kept: &Kept) -> String {
    let Kept { reason, detail } = kept;
    match reason {
        Word::Known(KeepReason::Channel) => format!("channel {detail}"),
        Word::Known(KeepReason::Rollout) => format!("rollout in {detail}"),
        Word::Known(KeepReason::Running) => format!("{detail} nodes run it"),
        Word::Known(KeepReason::NodePin) => format!("{detail} nodes are pinned to it"),
        Word::Known(KeepReason::Action) => format!("{detail} DDI devices are to install it"),
        Word::Known(KeepReason::Pinned) if detail.is_empty() => "pinned".to_owned(),
        Word::Known(KeepReason::Pinned) => format!("pinned: {detail}"),
        Word::Known(KeepReason::RouteBase) => "on the way of patches".to_owned(),
        Word::Known(KeepReason::Newest) => "among the newest".to_owned(),
        Word::Known(KeepReason::Age) => "young".to_owned(),
        Word::Known(KeepReason::Withdrawn) => "withdrawn, can be restored".to_owned(),
        Word::Known(KeepReason::LastOfProduct) => "the product would have no release".to_owned(),
        Word::Known(KeepReason::NoPolicy) => "the product keeps all".to_owned(),
        Word::Other(word) => word.clone(),
    }
}

fn set_reason(reason: &Word<SetReason>) -> String {
    match reason {
        Word::Known(SetReason::ReleaseGoes) => "its release goes".to_owned(),
        Word::Known(SetReason::NobodyHas) => "nobody has its first release".to_owned(),
        Word::Known(SetReason::NobodyWants) => "nobody wants its last release".to_owned(),
        Word::Known(SetReason::Unlisted) => "newer sets fill the list".to_owned(),
        Word::Other(word) => word.clone(),
    }
}
