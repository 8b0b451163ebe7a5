//! Peers that lie, drop connections, choke, boast, stall or are slow.

use std::time::Duration;

use distd_tests::sim::{Behaviour, NodeNo, Rate, Sim, Wan, each_seed};

use crate::LIMIT;

const HONEST: fn() -> Behaviour = Behaviour::default;

#[test]
fn a_lying_neighbour_is_not_asked_again_and_its_chunks_come_from_others() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        let liar = sim.leaves(1, site, &[relay, origin])[0];
        sim.behave(liar, Behaviour { lies_permille: 1000, ..HONEST() });
        sim.run_until_complete(LIMIT);
        let leaves = sim.leaves(6, site, &[relay, origin]);
        sim.run_until_complete(LIMIT);
        for leaf in leaves {
            assert!(sim.has_quarantined(leaf, liar) && sim.received(leaf, liar) == 0);
            assert!(sim.wrong(leaf, liar) <= 1, "a second chunk of a liar was looked at");
        }
        sim.assert_egress(site, 100..=100);
    });
}

#[test]
fn half_of_a_site_may_lie_and_drop_connections() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        let leaves = sim.leaves(32, site, &[relay, origin]);
        for leaf in &leaves[..16] {
            sim.behave(*leaf, Behaviour { lies_permille: 50, drops_permille: 50, ..HONEST() });
        }
        sim.run_until_complete(LIMIT);
        let (bad, good) = leaves.split_at(16);
        let lied_to = |leaf: &NodeNo| bad.iter().map(|liar| sim.wrong(*leaf, *liar)).sum::<u64>();
        assert!(leaves.iter().map(lied_to).sum::<u64>() > 0, "they did lie");
        for leaf in &leaves {
            assert!(
                bad.iter()
                    .all(|liar| sim.wrong(*leaf, *liar) == u64::from(sim.has_quarantined(*leaf, *liar)))
            );
            assert!(good.iter().all(|honest| !sim.has_quarantined(*leaf, *honest)));
        }
        sim.assert_egress(site, 100..=105);
    });
}

#[test]
fn a_neighbour_that_announces_chunks_it_does_not_hold_costs_one_request() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        let leaves = sim.leaves(8, site, &[relay, origin]);
        for leaf in &leaves[..4] {
            sim.behave(*leaf, Behaviour { boasts: true, ..HONEST() });
        }
        sim.run_until_complete(LIMIT);
        sim.assert_egress(site, 100..=105);
    });
}

#[test]
fn a_neighbour_that_never_answers_is_left() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        let dead = sim.leaves(1, site, &[relay, origin])[0];
        sim.behave(dead, Behaviour { silent: true, ..HONEST() });
        sim.run_until_complete(LIMIT);
        let leaves = sim.leaves(6, site, &[relay, origin]);
        let before = sim.now();
        sim.run_until_complete(LIMIT);
        assert!(leaves.iter().all(|leaf| sim.received(*leaf, dead) == 0));
        // Batches open at the silent peer are withdrawn when others have their chunks; measured:
        // 0.5 s.
        assert!(sim.now() - before < Duration::from_secs(5));
        sim.assert_egress(site, 100..=100);
    });
}

#[test]
fn a_relay_that_never_answers_is_left_for_the_origin() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        sim.behave(relay, Behaviour { silent: true, ..HONEST() });
        sim.leaves(6, site, &[relay, origin]);
        sim.run_until_complete(LIMIT);
        // Measured: 13.6 s. A live relay has answered by then.
        assert!(sim.now() < Duration::from_secs(16), "one stall");
        // Leases work without the relay too.
        sim.assert_egress(site, 100..=105);
    });
}

#[test]
fn leaves_wait_for_choking_peers_and_do_not_bypass_them() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        sim.behave(relay, Behaviour { upload_slots: 1, ..HONEST() });
        let leaves = sim.leaves(20, site, &[relay, origin]);
        for leaf in &leaves {
            sim.behave(*leaf, Behaviour { upload_slots: 1, ..HONEST() });
            sim.link(*leaf, Rate::megabits(20));
        }
        sim.link(relay, Rate::megabits(20));
        sim.run_until_complete(LIMIT);
        assert!(leaves.iter().all(|leaf| sim.received(*leaf, origin) == 0));
        sim.assert_egress(site, 100..=100);
    });
}

#[test]
fn peers_that_always_choke_are_left() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        sim.behave(relay, Behaviour { upload_slots: 0, ..HONEST() });
        sim.leaves(4, site, &[relay, origin]);
        sim.run_until_complete(LIMIT);
        assert!(sim.received_all(relay) == 0 && sim.now() < Duration::from_secs(60));
        sim.assert_egress(site, 100..=105);
    });
}

#[test]
fn a_slow_neighbour_delays_no_leaf() {
    each_seed(|rng_seed| {
        let (mut sim, origin) = Sim::new(rng_seed, 200);
        let site = sim.site(Wan::default());
        let relay = sim.relay(site, &[origin]);
        let slow = sim.leaves(1, site, &[relay, origin])[0];
        sim.run_until_complete(LIMIT);
        sim.link(slow, Rate(100_000));
        let leaves = sim.leaves(6, site, &[relay, origin]);
        let before = sim.now();
        sim.run_until_complete(LIMIT);
        // Only the slow peer announces everything, at 100 kB/s. The relay helps out, and the slow
        // peer's last chunks are asked of a second peer. Measured: 0.5 s.
        assert!(leaves.iter().all(|leaf| sim.received(*leaf, slow) <= 24));
        assert!(sim.now() - before < Duration::from_secs(5), "{:?}", sim.now() - before);
        leaves.iter().for_each(|leaf| sim.assert_few_twice(*leaf));
        sim.assert_egress(site, 100..=100);
    });
}
