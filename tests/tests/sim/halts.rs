//! Rollouts of a large fleet while parts of it are cut off, and halts while the origin is dead.
//! Every begin and every activation of every device is checked (`Fleet::check`).

use std::time::{Duration, Instant};

use distd_core::fleet::rollout::{Gate, RolloutState};
use distd_tests::sim::each_seed;
use distd_tests::sim::fleet::{First, Fleet, FleetConfig};

const HOUR: Duration = Duration::from_secs(3600);

fn gate(halt_on: &str) -> Gate {
    let (success, halt_on) = ("90%".parse().expect("a share"), halt_on.parse().expect("a limit"));
    Gate { soak: 3600, success, halt_on }
}

/// Sites of one device, of a thousand, and of about a hundred: 100 000 devices in 1000 sites.
fn devices_of(site: usize) -> usize {
    match site % 100 {
        0 => 1000,
        1..=9 => 1,
        n => 80 + n % 41,
    }
}

const LARGE: FleetConfig =
    FleetConfig { sites: devices_of, count: 1000, relays: 600, failing: 10, off: 50, channels: 2 };

/// Two rollouts, each to one half of 100 000 devices. Uplinks are cut, sites split, relays die, a
/// fifth of the clocks is a day ahead and a fifth a day behind, and the origin is down for a day in
/// the middle. No device acts beyond its wave, nor after it has heard of a halt. Then a halt
/// reaches one device or the relay of each site and the origin dies: 99 % of each connected site
/// know within two seconds.
#[test]
fn no_device_of_100_000_is_beyond_its_wave_and_a_halt_reaches_a_site_in_two_seconds() {
    // One number, as the run is long; others by DISTD_TEST_RNG_SEED.
    let rng_seed = std::env::var("DISTD_TEST_RNG_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    println!("replay with DISTD_TEST_RNG_SEED={rng_seed}");
    let began = Instant::now();
    let mut fleet = Fleet::new(LARGE, rng_seed);
    fleet.start_rollouts("1%,10%,50%,100%", gate("5%"));
    let members = fleet.waves(0);
    fleet.run_for(HOUR);
    fleet.cut_uplinks(100);
    fleet.split_sites(50);
    fleet.kill_relays(100);
    fleet.run_for(HOUR);
    let (tried, open) = fleet.tried(0);
    assert!(open >= 2 && tried as u64 > members[0], "the rollouts go on: {open} waves, {tried} devices");
    // A day without the origin, with documents of several ages at the relays.
    fleet.set_origin(false);
    fleet.run_for(12 * HOUR);
    let (_, still) = fleet.tried(0);
    fleet.cut_uplinks(0);
    fleet.split_sites(0);
    fleet.run_for(12 * HOUR);
    assert_eq!(still, open, "nothing opens without the origin");
    fleet.kill_relays(0);
    fleet.set_origin(true);
    let mut hours = 0;
    while fleet.tried(1).1 < 3 {
        fleet.run_for(HOUR / 2);
        hours += 1;
        assert!(hours < 24, "the third wave of a rollout does not open");
    }
    // Devices of the third wave are about to begin, and some relays are dead.
    fleet.kill_relays(100);
    fleet.split_sites(20);
    fleet.run_for(HOUR / 12);
    let before = fleet.tried(1).0;
    for (channel, first) in [(1, First::Relay), (0, First::DyingRelay)] {
        if channel == 0 {
            fleet.set_origin(true);
        }
        let spread = fleet.halt_and_die(channel, first);
        println!(
            "{first:?}: {} sites, {} complete within 2 s; slowest 99 % in {} ms; a device dials {} neighbours at most, {:.2} on average",
            spread.sites,
            spread.complete,
            spread.slowest.as_millis(),
            spread.tells_max,
            spread.tells_mean
        );
        assert!(spread.slowest <= Duration::from_secs(2), "{spread:?}");
        assert!(spread.tells_max <= 24 && spread.tells_mean < 12.0, "{spread:?}");
    }
    // Parts of sites that were cut off learn it from their neighbours when they are connected
    // again, with the origin still dead.
    let cut_off = fleet.unaware();
    fleet.split_sites(0);
    fleet.start_exchanges();
    fleet.run_for(HOUR / 4);
    let unaware = fleet.unaware();
    assert!(cut_off > 500 && unaware * 1000 < 100_000, "{cut_off} were cut off, {unaware} do not know");
    fleet.run_for(HOUR);
    let began_since = fleet.tried(1).0.saturating_sub(before);
    println!(
        "{} events, {} s; waves {members:?}; {before} devices had tried, {began_since} more ended an attempt that was open",
        fleet.events(),
        began.elapsed().as_secs()
    );
}

/// A halt that reaches one device of each site where no relay lives.
#[test]
fn a_halt_spreads_from_one_device_without_any_relay() {
    each_seed(|rng_seed| {
        let off = 300;
        let config = FleetConfig { count: 200, relays: 500, off, ..LARGE };
        let mut fleet = Fleet::new(config, rng_seed);
        fleet.start_rollouts("1%,100%", gate("5%"));
        fleet.run_for(HOUR / 2);
        fleet.kill_relays(999);
        let spread = fleet.halt_and_die(0, First::Device);
        println!("{off} of 1000 devices off: {spread:?}");
        assert!(spread.slowest <= Duration::from_secs(2), "{spread:?}");
        assert!(spread.tells_max <= 24, "{spread:?}");
    });
}

/// Of 10 000 devices, 3 % fail with a rollout that halts at 2 %: the second wave never opens.
#[test]
fn three_failing_devices_in_a_hundred_halt_before_the_second_wave() {
    each_seed(|rng_seed| {
        let config =
            FleetConfig { sites: |_| 100, count: 100, relays: 500, failing: 30, off: 0, channels: 1 };
        let mut fleet = Fleet::new(config, rng_seed);
        fleet.start_rollouts("10%,50%,100%", gate("2%"));
        fleet.run_for(6 * HOUR);
        let (tried, open) = fleet.tried(0);
        assert_eq!((fleet.state(0), open), (RolloutState::Halted, 1));
        assert!(tried > 0 && tried as u64 <= fleet.waves(0)[0], "{tried} devices tried");
        assert_eq!(
            fleet.unaware(),
            0,
            "all listen, at a relay or within the origin's bound, or tell each other"
        );
    });
}
