//! Large simulated fleets, printed as a table: `tests/soak/sim.sh`.
//!
//! All numbers but the last column are virtual: a fleet behaves the same on every machine.

use std::time::{Duration, Instant};

use distd_tests::sim::{NodeNo, Rate, Sim, Wan};

const LIMIT: Duration = Duration::from_secs(3600);

/// A number of leaves behind each of a number of relays.
struct Fleet {
    relays: usize,
    leaves: usize,
    chunks: u64,
    uplink: Rate,
}

/// What came of one: how long each leaf took in ascending order, what the uplinks carried at most and the relays sent in all.
struct Outcome {
    took: Vec<Duration>,
    uplink_percent: u64,
    of_relays: u64,
    real: Duration,
}

fn run(fleet: &Fleet, rng_seed: u64) -> Outcome {
    let start = Instant::now();
    let (mut sim, origin) = Sim::new(rng_seed, fleet.chunks);
    let wan = Wan { up: fleet.uplink, down: fleet.uplink, ..Wan::default() };
    let mut sites = Vec::new();
    let mut leaves: Vec<(NodeNo, NodeNo)> = Vec::new();
    for _ in 0..fleet.relays {
        let site = sim.site(wan);
        let relay = sim.relay(site, &[origin]);
        sites.push(site);
        leaves.extend(sim.leaves(fleet.leaves, site, &[relay, origin]).into_iter().map(|leaf| (leaf, relay)));
    }
    sim.run_until_complete(LIMIT);
    let mut took: Vec<_> = leaves.iter().filter_map(|(leaf, _)| sim.took(*leaf)).collect();
    took.sort_unstable();
    Outcome {
        took,
        uplink_percent: sites.iter().map(|site| sim.egress_percent(*site)).max().unwrap_or(0),
        of_relays: leaves.iter().map(|(leaf, relay)| sim.received(*leaf, *relay)).sum(),
        real: start.elapsed(),
    }
}

fn main() {
    let rng_seed = std::env::var("DISTD_TEST_RNG_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    println!(
        "links of nodes 1 Gbit/s, uplinks as said, 64 KiB chunks; virtual seconds; DISTD_TEST_RNG_SEED={rng_seed}"
    );
    println!(
        "relays  leaves  chunks  uplink   alone    p50    p99   last  last/alone  p99/p50  uplink  of relays   real"
    );
    let arguments: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let fleets = match arguments[..] {
        [relays, leaves, chunks, megabits] => vec![(relays as usize, leaves as usize, chunks, megabits)],
        _ => vec![(1, 100, 400, 100), (1, 1000, 200, 1000), (1, 1000, 200, 100), (100, 100, 64, 100)],
    };
    for (relays, leaves, chunks, megabits) in fleets {
        let fleet = Fleet { relays, leaves, chunks, uplink: Rate::megabits(megabits) };
        let alone = run(&Fleet { relays: 1, leaves: 1, ..fleet }, rng_seed).took[0].as_secs_f64();
        let all = run(&fleet, rng_seed);
        let at = |part: f64| all.took[((all.took.len() - 1) as f64 * part) as usize].as_secs_f64();
        let (p50, p99, last) = (at(0.5), at(0.99), at(1.0));
        let sent = (relays * leaves) as u64 * chunks;
        println!(
            "{relays:>6}  {leaves:>6}  {chunks:>6}  {megabits:>6}  {alone:>6.2} {p50:>6.2} {p99:>6.2} {last:>6.2}  {:>10.2}  {:>7.2}  {:>4} %  {:>7} %  {:>3} s",
            last / alone,
            p99 / p50,
            all.uplink_percent,
            all.of_relays * 100 / sent,
            all.real.as_secs(),
        );
    }
}
