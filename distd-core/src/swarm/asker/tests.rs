use std::fmt::Write;

use super::*;
use crate::swarm::dial_backoff::NEIGHBOUR_TRIES;

const T0: Timestamp = Timestamp(1_000_000);
const RELAY: PeerId = PeerId(0);
const ORIGIN: PeerId = PeerId(1);
const RELAY_NODE: NodeId = NodeId([100; 16]);
const ORIGIN_NODE: NodeId = NodeId([101; 16]);
const MINUTE: Duration = Duration::from_secs(60);

fn set(first: u64, last: u64) -> ChunkRanges {
    [ChunkId(first)..=ChunkId(last)].into_iter().collect()
}

fn neighbour(n: u8) -> Neighbour {
    Neighbour { node: NodeId([n; 16]), address: ([10, 0, 0, n], 4434).into() }
}

fn actions(asker: &mut Asker, now: Timestamp) -> Vec<AskerAction> {
    std::iter::from_fn(|| asker.poll_action(now)).collect()
}

/// An asker that wants the chunks 1 to 9 of a relay and an origin, both being dialled.
fn asker() -> Asker {
    let mut asker = Asker::new(T0, FetchConfig::default(), 2, set(1, 9));
    asker.want(&set(1, 9));
    let dialled = actions(&mut asker, T0);
    assert_eq!(
        dialled,
        [(RELAY, 0), (ORIGIN, 1)].map(|(peer, at)| AskerAction::Dial(peer, DialTarget::Parent(at)))
    );
    asker
}

/// An asker whose relay is connected and has been asked for everything.
fn asking() -> (Asker, BatchId) {
    let mut asker = asker();
    asker.handle_connected(T0, RELAY, RELAY_NODE, Tier::Relay);
    asker.handle_handshake(RELAY);
    let asked = actions(&mut asker, T0);
    let [AskerAction::Request(RELAY, batch, _)] = asked[..] else { panic!("{asked:?}") };
    (asker, batch)
}

fn dials(actions: &[AskerAction]) -> Vec<PeerId> {
    let dialled = |action: &AskerAction| match action {
        AskerAction::Dial(peer, _) => Some(*peer),
        _ => None,
    };
    actions.iter().filter_map(dialled).collect()
}

#[test]
fn a_farther_parent_waits_a_moment_for_the_nearer() {
    let mut asker = asker();
    asker.handle_connected(T0, ORIGIN, ORIGIN_NODE, Tier::Origin);
    assert_eq!(actions(&mut asker, T0), []);
    assert_eq!(asker.poll_timeout(T0), Some(T0 + NEARER_GRACE));
    let asked = actions(&mut asker, T0 + NEARER_GRACE);
    assert!(matches!(asked[..], [AskerAction::Request(ORIGIN, ..)]), "{asked:?}");
}

#[test]
fn the_nearest_parent_is_asked_at_once_and_a_failed_one_is_not_waited_for() {
    asking();
    let mut asker = asker();
    asker.handle_connected(T0, ORIGIN, ORIGIN_NODE, Tier::Origin);
    asker.handle_lost(T0, RELAY);
    let asked = actions(&mut asker, T0);
    assert!(matches!(asked[..], [AskerAction::Request(ORIGIN, ..)]), "{asked:?}");
}

#[test]
fn a_lost_parent_is_dialled_again_ever_less_often_until_it_answers() {
    let (mut asker, _) = asking();
    let mut now = T0;
    let mut pauses = Vec::new();
    for _ in 0..8 {
        asker.handle_lost(now, RELAY);
        let lost = now;
        while dials(&actions(&mut asker, now)) != [RELAY] {
            now = asker.poll_timeout(now).filter(|at| *at > now).expect("the relay is dialled again");
        }
        pauses.push(now.since(lost).as_millis());
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    asker.handle_connected(now, RELAY, RELAY_NODE, Tier::Relay);
    asker.handle_handshake(RELAY);
    asker.handle_lost(now, RELAY);
    actions(&mut asker, now);
    assert_eq!(dials(&actions(&mut asker, now + Duration::from_millis(100))), [RELAY], "it answered");
}

#[test]
fn a_neighbour_that_does_not_answer_is_given_up_and_may_be_advertised_again() {
    let mut asker = asker();
    for round in 0..2 {
        asker.handle_neighbours(T0, NeighbourSource::Advertised, [neighbour(1), neighbour(1)]);
        let peer = PeerId(2 + round);
        let mut now = T0;
        assert_eq!(dials(&actions(&mut asker, now)), [peer], "dialled once");
        for _ in 1..NEIGHBOUR_TRIES {
            asker.handle_lost(now, peer);
            now = now + MINUTE;
            assert_eq!(dials(&actions(&mut asker, now)), [peer]);
        }
        asker.handle_lost(now, peer);
        assert_eq!(dials(&actions(&mut asker, now + MINUTE)), []);
    }
}

#[test]
fn places_are_kept_for_neighbours_that_dial_this_node() {
    let mut asker = asker();
    let advertised = (1..=30).map(neighbour);
    asker.handle_neighbours(T0, NeighbourSource::Remembered, advertised.clone());
    assert_eq!(dials(&actions(&mut asker, T0)).len(), REMEMBERED_TRIED);
    asker.handle_neighbours(T0, NeighbourSource::Advertised, advertised);
    assert_eq!(dials(&actions(&mut asker, T0)).len(), HEARSAY_DIALS_MAX - REMEMBERED_TRIED);
    asker.handle_neighbours(T0, NeighbourSource::Caller, (31..=60).map(neighbour));
    assert_eq!(dials(&actions(&mut asker, T0)).len(), NEIGHBOURS_MAX - HEARSAY_DIALS_MAX);
}

#[test]
fn a_neighbour_dropped_for_a_fault_frees_its_place_and_is_not_dialled_again() {
    let mut asker = asker();
    asker.handle_neighbours(T0, NeighbourSource::Caller, (1..=30).map(neighbour));
    actions(&mut asker, T0);
    let first = PeerId(2);
    asker.handle_connected(T0, first, neighbour(1).node, Tier::Site);
    asker.handle_fault(T0, first, PeerFault::WrongBytes);
    assert_eq!(actions(&mut asker, T0), [AskerAction::Drop(first, PeerFault::WrongBytes)]);
    // The loss of the closed connection is reported late.
    asker.handle_lost(T0, first);
    asker.handle_neighbours(T0, NeighbourSource::Caller, [neighbour(1), neighbour(40), neighbour(41)]);
    let dialled = actions(&mut asker, T0);
    assert!(
        matches!(&dialled[..], [AskerAction::Dial(_, DialTarget::Neighbour(next))] if *next == neighbour(40)),
        "{dialled:?}"
    );
}

#[test]
fn a_parent_dropped_for_a_fault_is_not_dialled_again() {
    let (mut asker, batch) = asking();
    asker.handle_fault(T0, RELAY, PeerFault::Protocol);
    assert_eq!(
        actions(&mut asker, T0),
        [AskerAction::Withdraw(RELAY, batch), AskerAction::Drop(RELAY, PeerFault::Protocol)]
    );
    asker.handle_lost(T0, RELAY);
    assert_eq!(actions(&mut asker, T0 + MINUTE), []);
}

#[test]
fn a_parent_is_not_asked_for_what_it_announces_and_a_neighbour_for_nothing_else() {
    let (mut asker, batch) = asking();
    asker.handle_neighbours(T0, NeighbourSource::Advertised, [neighbour(1)]);
    let peer = PeerId(2);
    asker.handle_connected(T0, peer, neighbour(1).node, Tier::Site);
    actions(&mut asker, T0);
    asker.handle_dont_have(T0, batch, &set(1, 9), DontHaveReason::Leased);
    asker.handle_batch_end(T0, batch);
    // Chunks that are not of the swarm are ignored.
    asker.handle_have(T0, peer, &set(9, 20));
    let asked = actions(&mut asker, T0);
    let nine = set(9, 9);
    assert!(
        matches!(&asked[..], [AskerAction::Request(at, _, chunks)] if *at == peer && *chunks == nine),
        "{asked:?}"
    );
}

#[test]
fn only_an_origin_is_believed_about_relays() {
    for (speaker, tier, believed) in [(ORIGIN, Tier::Origin, true), (ORIGIN, Tier::Relay, false)] {
        let (mut asker, batch) = asking();
        asker.handle_connected(T0, speaker, ORIGIN_NODE, tier);
        actions(&mut asker, T0);
        asker.handle_distrusted(T0, speaker, [RELAY_NODE].into());
        let after = actions(&mut asker, T0);
        assert_eq!(after.contains(&AskerAction::Withdraw(RELAY, batch)), believed, "{after:?}");
    }
    // The report also holds for a relay that connects later.
    let mut asker = asker();
    asker.handle_connected(T0, ORIGIN, ORIGIN_NODE, Tier::Origin);
    asker.handle_distrusted(T0, ORIGIN, [RELAY_NODE].into());
    asker.handle_connected(T0, RELAY, RELAY_NODE, Tier::Relay);
    let asked = actions(&mut asker, T0);
    assert!(matches!(asked[..], [AskerAction::Request(ORIGIN, ..)]), "{asked:?}");
}

#[test]
fn a_relay_that_lied_is_not_waited_for_once_the_origin_distrusts_it() {
    // A neighbour brings chunks, so this node would leave the others to neighbours, which fetch
    // through the relay as far as this node knows.
    let mut asker = Asker::new(T0, FetchConfig::sharing(9, 1), 2, set(1, 9));
    asker.want(&set(1, 9));
    let neighbour_peer = PeerId(2);
    asker.handle_neighbours(T0, NeighbourSource::Advertised, [neighbour(1)]);
    asker.handle_connected(T0, RELAY, RELAY_NODE, Tier::Relay);
    asker.handle_connected(T0, ORIGIN, ORIGIN_NODE, Tier::Origin);
    asker.handle_connected(T0, neighbour_peer, neighbour(1).node, Tier::Site);
    asker.handle_have(T0, neighbour_peer, &set(1, 1));
    for action in actions(&mut asker, T0) {
        if let AskerAction::Request(peer, batch, _) = action
            && peer == neighbour_peer
        {
            assert!(asker.handle_chunk(T0, batch, ChunkId(1)));
            asker.handle_batch_end(T0, batch);
        }
    }
    asker.handle_fault(T0, RELAY, PeerFault::WrongBytes);
    let requests = |actions: Vec<AskerAction>| {
        actions.iter().filter(|action| matches!(action, AskerAction::Request(..))).count()
    };
    assert_eq!(requests(actions(&mut asker, T0)), 0, "neighbours fetch");
    asker.handle_distrusted(T0, ORIGIN, [RELAY_NODE].into());
    assert!(requests(actions(&mut asker, T0)) > 0, "neighbours cannot fetch there, either");
}

#[test]
fn a_withdrawal_comes_before_the_requests_that_follow_from_it() {
    let (mut asker, batch) = asking();
    asker.handle_connected(T0, ORIGIN, ORIGIN_NODE, Tier::Origin);
    actions(&mut asker, T0);
    asker.handle_lost(T0, RELAY);
    let after = actions(&mut asker, T0);
    assert!(
        matches!(
            &after[..],
            [AskerAction::Withdraw(RELAY, first), AskerAction::Request(ORIGIN, second, _)]
                if *first == batch && second != first
        ),
        "{after:?}"
    );
}

/// State of a contact, by docs/states.md.
fn state(asker: &Asker, peer: PeerId, now: Timestamp) -> &'static str {
    match asker.contacts.get(&peer).map(|contact| contact.state) {
        Some(State::Dialling) => "dialling",
        Some(State::Connected(..)) => "connected",
        Some(State::Paused(until)) if until > now => "paused",
        Some(State::Paused(_)) => "due",
        Some(State::Ended) | None => "ended",
    }
}

#[test]
fn every_state_of_a_contact_and_event_has_the_outcome_of_this_table() {
    type Event = fn(&mut Asker, PeerId);
    let connect: Event = |asker, peer| asker.handle_connected(T0, peer, NodeId([1; 16]), Tier::Relay);
    let lose: Event = |asker, peer| asker.handle_lost(T0, peer);
    let states: [(&str, &[Event]); 4] = [
        ("dialling", &[]),
        ("connected", &[connect]),
        ("paused", &[lose]),
        (
            "ended",
            &[connect, |asker, peer| {
                asker.handle_fault(T0, peer, PeerFault::Protocol);
                actions(asker, T0);
            }],
        ),
    ];
    let events: [(&str, Event); 7] = [
        ("connected", connect),
        ("handshake", |asker, peer| asker.handle_handshake(peer)),
        ("lost", lose),
        ("lost four times in a row", |asker, peer| {
            (0..NEIGHBOUR_TRIES).for_each(|_| asker.handle_lost(T0, peer))
        }),
        ("failed", |asker, peer| asker.handle_fault(T0, peer, PeerFault::Failed)),
        ("wrong bytes", |asker, peer| asker.handle_fault(T0, peer, PeerFault::WrongBytes)),
        ("pause over", |asker, _| {
            let later = actions(asker, T0 + MINUTE);
            asker.actions.extend(later);
        }),
    ];
    let mut table = String::new();
    for (kind, peer) in [("parent", RELAY), ("neighbour", PeerId(1))] {
        for (name, reach) in states {
            for (event, happen) in events {
                let mut asker = Asker::new(T0, FetchConfig::default(), 1, set(1, 9));
                asker.handle_neighbours(T0, NeighbourSource::Advertised, [neighbour(1)]);
                actions(&mut asker, T0);
                reach.iter().for_each(|step| step(&mut asker, peer));
                actions(&mut asker, T0);
                assert_eq!(state(&asker, peer, T0), name);
                happen(&mut asker, peer);
                let news: Vec<_> = actions(&mut asker, T0)
                    .into_iter()
                    .map(|action| match action {
                        AskerAction::Dial(..) => "Dial".to_owned(),
                        AskerAction::Drop(_, fault) => format!("Drop({fault:?})"),
                        other => panic!("nothing is wanted: {other:?}"),
                    })
                    .collect();
                let news = news.iter().map(|name| format!(", {name}")).collect::<String>();
                writeln!(table, "{kind}, {name} + {event}: {}{news}", state(&asker, peer, T0))
                    .expect("a string");
            }
        }
    }
    assert_eq!(table, include_str!("testdata/contact_table.txt"));
}
