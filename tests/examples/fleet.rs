//! Large simulated fleets, printed as a table and drawn as curves, for `tests/soak/sim.sh`.
//!
//! All numbers except the last column are virtual: a fleet behaves the same on every machine.

use std::path::Path;
use std::time::{Duration, Instant};

use distd_tests::sim::{NodeNo, Rate, Sim, Wan};
use distd_tests::svg::{Chart, Curve};

const LIMIT: Duration = Duration::from_secs(3600);

/// Number of chunks of 64 KiB in the reference update (30 MB) and in a first install (180 MB);
/// docs/benchmarks.md.
const UPDATE: u64 = 458;
const INSTALL: u64 = 2750;

/// Largest number of leaves for which a curve is drawn.
const DRAWN_MAX: usize = 1000;

/// A fleet: the number of relays (which may be 0) and the number of leaves behind each.
#[derive(Clone, Copy)]
struct Fleet {
    relays: usize,
    leaves: usize,
    chunks: u64,
    megabits: u64,
}

/// Result of one fleet: the time of each leaf in ascending order, the largest traffic of an uplink,
/// the traffic of all relays, and the traffic that came twice.
struct Outcome {
    took: Vec<f64>,
    uplink_percent: u64,
    of_relays: u64,
    twice: u64,
    real: Duration,
}

fn run(fleet: Fleet, rng_seed: u64) -> Outcome {
    let start = Instant::now();
    let (mut sim, origin) = Sim::new(rng_seed, fleet.chunks);
    let uplink = Rate::megabits(fleet.megabits);
    let wan = Wan { up: uplink, down: uplink, ..Wan::default() };
    let mut sites = Vec::new();
    let mut leaves: Vec<(NodeNo, NodeNo)> = Vec::new();
    for _ in 0..fleet.relays.max(1) {
        let site = sim.site(wan);
        let relay = if fleet.relays > 0 { sim.relay(site, &[origin]) } else { origin };
        let parents = if fleet.relays > 0 { vec![relay, origin] } else { vec![origin] };
        sites.push(site);
        leaves.extend(sim.leaves(fleet.leaves, site, &parents).into_iter().map(|leaf| (leaf, relay)));
    }
    sim.run_until_complete(LIMIT);
    let mut took: Vec<_> =
        leaves.iter().filter_map(|(leaf, _)| sim.took(*leaf)).map(|t| t.as_secs_f64()).collect();
    took.sort_unstable_by(f64::total_cmp);
    Outcome {
        took,
        uplink_percent: sites.iter().map(|site| sim.egress_percent(*site)).max().unwrap_or(0),
        of_relays: leaves.iter().map(|(leaf, relay)| sim.received(*leaf, *relay)).sum(),
        twice: leaves.iter().map(|(leaf, _)| sim.received_twice(*leaf)).sum(),
        real: start.elapsed(),
    }
}

fn print_line(fleet: Fleet, rng_seed: u64) {
    let alone = run(Fleet { relays: 1, leaves: 1, ..fleet }, rng_seed).took[0];
    let all = run(fleet, rng_seed);
    let at = |part: f64| all.took[((all.took.len() - 1) as f64 * part) as usize];
    let (p50, p99, last) = (at(0.5), at(0.99), at(1.0));
    let Fleet { relays, leaves, chunks, megabits } = fleet;
    let sent = (relays.max(1) * leaves) as u64 * chunks;
    println!(
        "{relays:>6}  {leaves:>6}  {chunks:>6}  {megabits:>6}  {alone:>6.2} {p50:>6.2} {p99:>6.2} {last:>6.2}  {:>10.2}  {:>7.2}  {:>4} %  {:>7} %  {:>5.2} %  {:>3} s",
        last / alone,
        p99 / p50,
        all.uplink_percent,
        all.of_relays * 100 / sent,
        all.twice as f64 * 100.0 / sent as f64,
        all.real.as_secs(),
    );
}

/// Draws the times at which leaves are complete, and the origin's traffic over the number of
/// leaves.
fn draw(directory: &Path, rng_seed: u64) -> std::io::Result<()> {
    let (mut completion, mut relayed, mut direct) = (Vec::new(), Vec::new(), Vec::new());
    for leaves in [1, 10, 100, DRAWN_MAX] {
        let fleet = Fleet { relays: 1, leaves, chunks: UPDATE, megabits: 100 };
        let outcome = run(fleet, rng_seed);
        relayed.push((leaves as f64, outcome.uplink_percent as f64));
        if leaves != 10 {
            let part = |n: usize| n as f64 * 100.0 / leaves as f64;
            let steps = outcome.took.iter().enumerate();
            let steps = steps.flat_map(|(n, took)| [(*took, part(n)), (*took, part(n + 1))]);
            let name = format!("{leaves} {}", if leaves == 1 { "leaf" } else { "leaves" });
            completion.push(Curve { name, points: std::iter::once((0.0, 0.0)).chain(steps).collect() });
        }
        if leaves < DRAWN_MAX {
            let outcome = run(Fleet { relays: 0, ..fleet }, rng_seed);
            direct.push((leaves as f64, outcome.uplink_percent as f64));
        }
    }
    std::fs::create_dir_all(directory)?;
    let completion = Chart {
        title: "An update of 30 MB behind one relay with 100 Mbit/s".into(),
        x: "seconds".into(),
        y: "leaves that have everything, %".into(),
        log_x: false,
        curves: completion,
    };
    std::fs::write(directory.join("completion.svg"), completion.to_svg())?;
    let egress = Chart {
        title: "What the origin sends a site, update of 30 MB".into(),
        x: "leaves".into(),
        y: "of what one needs, %".into(),
        log_x: true,
        curves: vec![
            Curve { name: "behind a relay".into(), points: relayed },
            Curve { name: "without one".into(), points: direct },
        ],
    };
    std::fs::write(directory.join("egress.svg"), egress.to_svg())
}

fn main() -> std::io::Result<()> {
    let rng_seed = std::env::var("DISTD_TEST_RNG_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [draws, directory] = &arguments[..]
        && draws == "draw"
    {
        return draw(Path::new(directory), rng_seed);
    }
    println!(
        "links of nodes 1 Gbit/s, uplinks as said, 64 KiB chunks; virtual seconds; DISTD_TEST_RNG_SEED={rng_seed}"
    );
    println!(
        "relays  leaves  chunks  uplink   alone    p50    p99   last  last/alone  p99/p50  uplink  of relays    twice   real"
    );
    let numbers: Vec<u64> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let fleets = match numbers[..] {
        [relays, leaves, chunks, megabits] => vec![(relays as usize, leaves as usize, chunks, megabits)],
        _ => vec![
            (1, 100, UPDATE, 100),
            (1, 1000, UPDATE, 100),
            (1, 1000, INSTALL, 100),
            (1, 100, INSTALL, 1000),
            (1, 1000, INSTALL, 1000),
            (100, 100, 64, 100),
        ],
    };
    for (relays, leaves, chunks, megabits) in fleets {
        print_line(Fleet { relays, leaves, chunks, megabits }, rng_seed);
    }
    Ok(())
}
