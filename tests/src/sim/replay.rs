//! The numbers with which a scenario runs, and the line that replays a failed run.

/// Number of runs of each scenario, unless `DISTD_TEST_SIM_RUNS` gives another.
const RUNS: u64 = 2;

/// Runs a scenario with the fixed numbers 1 to 2, with 1 to `DISTD_TEST_SIM_RUNS`, or with
/// `DISTD_TEST_RNG_SEED` alone. When it fails, the line that replays it is printed.
pub fn each_seed(scenario: impl Fn(u64)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, last) = match number("DISTD_TEST_RNG_SEED") {
        Some(one) => (one, one),
        None => (1, number("DISTD_TEST_SIM_RUNS").unwrap_or(RUNS)),
    };
    for rng_seed in first..=last {
        let _line = Line(rng_seed);
        scenario(rng_seed);
    }
}

/// Prints the replay line when a failure drops it.
struct Line(u64);

impl Drop for Line {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or_default();
            let rng_seed = self.0;
            eprintln!(
                "replay: DISTD_TEST_RNG_SEED={rng_seed} cargo nextest run -p distd-tests --test sim {name}"
            );
        }
    }
}
