//! Leaves and relays that behave.

use std::time::Duration;

use distd_tests::sim::{Sim, Wan, each_seed};

const LIMIT: Duration = Duration::from_secs(600);

#[test]
fn one_leaf_gets_everything_once() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let leaf = sim.leaves(1, site, &[origin])[0];
        sim.run_until_complete(LIMIT);
        assert_eq!((sim.received(leaf, origin), sim.egress_percent(site)), (200, 100));
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
