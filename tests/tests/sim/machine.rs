//! Tests of the simulation itself: a run repeats exactly, and the invariants notice faults.

use distd_tests::sim::{Behaviour, Sim, Wan, each_seed};

use crate::LIMIT;

fn small_swarm(rng_seed: u64) -> Sim {
    let (mut sim, origin) = Sim::new(rng_seed, 60);
    let site = sim.site(Wan::default());
    sim.lose(20);
    sim.leaves(8, site, &[origin]);
    sim.run_until_complete(LIMIT);
    sim
}

#[test]
fn the_same_number_is_the_same_run() {
    each_seed(|rng_seed| assert_eq!(small_swarm(rng_seed).digest(), small_swarm(rng_seed).digest()));
}

#[test]
fn another_number_is_another_run() {
    assert_ne!(small_swarm(1).digest().1, small_swarm(2).digest().1);
}

#[test]
#[should_panic(expected = "with wrong bytes")]
fn a_node_that_does_not_verify_is_noticed() {
    let (mut sim, origin) = Sim::new(1, 60);
    let site = sim.site(Wan::default());
    sim.leaves(1, site, &[origin]);
    sim.behave(origin, Behaviour { lies_permille: 100, ..Behaviour::default() });
    sim.verify_nothing();
    sim.run_until_complete(LIMIT);
}

#[test]
#[should_panic(expected = "the origin sent")]
fn an_uplink_crossed_too_often_is_noticed() {
    let (mut sim, origin) = Sim::new(1, 60);
    let site = sim.site(Wan::default());
    sim.leaves(2, site, &[origin]);
    sim.bound_egress(site, 90);
    sim.run_until_complete(LIMIT);
}
