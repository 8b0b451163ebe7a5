//! Sites with relays, and sites whose relay, origin or uplink is away.

use std::time::Duration;

use distd_tests::sim::{Sim, Wan, each_seed};

use crate::LIMIT;

#[test]
fn one_leaf_gets_everything_once() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let leaf = sim.leaves(1, site, &[origin])[0];
        sim.run_until_complete(LIMIT);
        assert_eq!(sim.received(leaf, origin), 200);
        sim.assert_egress(site, 100..=100);
    });
}

#[test]
fn a_cold_site_under_a_relay_crosses_the_uplink_once() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        let leaves = sim.leaves(10, site, &[relay, origin]);
        sim.bound_egress(site, 100);
        sim.run_until_complete(LIMIT);
        assert!(leaves.iter().all(|leaf| sim.received(*leaf, origin) == 0), "nobody went past the relay");
    });
}

#[test]
fn when_a_relay_dies_its_leaves_share_what_they_have_and_go_to_the_origin() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        let leaves = sim.leaves(10, site, &[relay, origin]);
        sim.run_until("half through", LIMIT, |sim| sim.held(leaves[0]) >= 100);
        sim.kill(relay);
        sim.run_until_complete(LIMIT);
        // Measured: at most 104 %.
        sim.assert_egress(site, 100..=110);
    });
}

#[test]
fn a_relay_that_comes_back_goes_on_with_what_it_had() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        let leaves = sim.leaves(10, site, &[relay]);
        sim.run_until("half through", LIMIT, |sim| sim.held(relay) >= 100);
        sim.kill(relay);
        sim.start_after(relay, Duration::from_secs(5));
        sim.run_until_complete(LIMIT);
        assert_eq!((sim.received_all(relay), sim.received_twice(relay)), (200, 0));
        // Chunks on their way to the relay were sent again. Measured: at most 104 %.
        sim.assert_egress(site, 100..=105);
        leaves.iter().for_each(|leaf| sim.assert_few_twice(*leaf));
    });
}

#[test]
fn a_site_whose_relay_is_cut_off_from_the_origin_goes_on_when_that_is_over() {
    for away in [10, 300] {
        each_seed(|rng_seed| {
            let (mut sim, origin) = Sim::new(rng_seed, 200);
            let site = sim.site(Wan::default());
            let relay = sim.relay(site, &[origin]);
            let leaves = sim.leaves(10, site, &[relay, origin]);
            sim.run_until("half through", LIMIT, |sim| sim.held(relay) >= 100);
            sim.cut_site(site);
            sim.run_for(Duration::from_secs(away));
            assert!(leaves.iter().all(|leaf| sim.held(*leaf) < 200));
            sim.heal();
            let healed = sim.now();
            sim.run_until_complete(LIMIT);
            // Leaves that the relay could not serve ask it again before the origin, which is back
            // too. Measured: at most 104 %.
            sim.assert_egress(site, 100..=105);
            assert!(sim.now() - healed < Duration::from_secs(15));
        });
    }
}

#[test]
fn all_leaves_get_the_chunks_that_their_site_had_before_the_origin_went_away() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        let first = sim.leaves(1, site, &[relay, origin]);
        sim.run_until_complete(LIMIT);
        sim.kill(origin);
        let late = sim.leaves(5, site, &[relay, origin]);
        sim.run_until_complete(LIMIT);
        sim.assert_egress(site, 100..=100);
        assert!(late.iter().chain(&first).all(|leaf| sim.is_done(*leaf)));
    });
}

#[test]
fn an_origin_that_is_away_for_minutes_is_asked_again() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let leaves = sim.leaves(5, site, &[origin]);
        sim.run_until("half through", LIMIT, |sim| leaves.iter().all(|leaf| sim.held(*leaf) >= 40));
        sim.kill(origin);
        sim.start_after(origin, Duration::from_secs(240));
        sim.run_for(Duration::from_secs(240));
        let back = sim.now();
        sim.run_until_complete(LIMIT);
        // A pull ends when its parent failed twelve times; the agent starts another.
        assert!(leaves.iter().all(|leaf| sim.failed_attempts(*leaf) == 1));
        assert!(sim.now() - back < Duration::from_secs(30));
        sim.assert_egress(site, 100..=105);
    });
}
