//! Wrong clocks, and messages that are late or out of order.

use std::time::Duration;

use distd_tests::sim::{Sim, Wan, each_seed};

use crate::LIMIT;

const DAY: i64 = 24 * 3600;

#[test]
fn monotonic_clocks_that_start_days_apart_change_no_event() {
    each_seed(|rng_seed| {
        let run = |days: i64| {
            let (mut sim, origin) = Sim::new(rng_seed, 100);
            let site = sim.site(Wan::default());
            let relay = sim.relay(site, &[origin]);
            let leaves = sim.leaves(6, site, &[relay, origin]);
            for (at, leaf) in leaves.iter().enumerate() {
                sim.skew(*leaf, if at % 2 == 0 { days * DAY } else { -days * DAY }, 0);
            }
            sim.skew(relay, -days * DAY, 0);
            sim.run_until("under way", LIMIT, |sim| sim.held(leaves[0]) > 30);
            sim.kill(relay);
            sim.run_until_complete(LIMIT);
            sim.digest()
        };
        assert_eq!(run(0), run(1));
    });
}

#[test]
fn leaves_whose_wall_clock_is_a_day_off_take_no_part_and_get_everything() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 100);
        let site = sim.site(Wan::default());
        let leaves = sim.leaves(6, site, &[origin]);
        let (off, right) = leaves.split_at(2);
        sim.skew(off[0], 0, DAY);
        sim.skew(off[1], 0, -DAY);
        sim.run_until_complete(LIMIT);
        for leaf in off {
            assert_eq!(sim.received(*leaf, origin), 100);
            assert!(right.iter().all(|other| sim.received(*other, *leaf) == 0));
        }
        // The four leaves that share cost one copy, the others one each.
        sim.assert_egress(site, 300..=310);
    });
}

#[test]
fn messages_that_overtake_each_other_change_nothing_that_matters() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        sim.jitter(Duration::from_millis(200));
        sim.leaves(10, site, &[relay, origin]);
        sim.bound_egress(site, 100);
        sim.run_until_complete(LIMIT);
    });
}

#[test]
fn a_link_that_loses_a_tenth_of_everything_is_slow_and_nothing_else() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        sim.lose(100);
        let leaves = sim.leaves(10, site, &[relay, origin]);
        sim.bound_egress(site, 100);
        sim.run_until_complete(LIMIT);
        leaves.iter().for_each(|leaf| sim.assert_few_twice(*leaf));
    });
}
