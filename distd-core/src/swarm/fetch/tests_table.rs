//! State × event tables of a [`Fetch`]: one chunk, and one peer. docs/states.md explains the
//! states.

use std::fmt::Write;

use super::*;
use crate::ranges::ChunkRanges;

const T0: Timestamp = Timestamp(1_000_000);
const SECOND: Duration = Duration::from_secs(1);
const CHUNK: ChunkId = ChunkId(1);
const PEER: PeerId = PeerId(0);
const OTHER: PeerId = PeerId(1);

type Event = fn(&mut Fetch, BatchId);

fn one() -> ChunkRanges {
    [CHUNK..=CHUNK].into_iter().collect()
}

/// A fetch of one chunk, which is requested from a peer of `tier`.
fn requested(tier: Tier) -> (Fetch, BatchId) {
    let mut fetch =
        Fetch::new(FetchConfig { batches_per_peer: 2, failures_max: 3, ..FetchConfig::default() });
    fetch.handle_connected(T0, PEER, tier);
    fetch.handle_have(T0, PEER, &one());
    fetch.want(&one());
    let (_, batch, _) = fetch.poll_request(T0).expect("the peer may be asked");
    (fetch, batch)
}

/// State of the chunk, by docs/states.md.
fn place(fetch: &Fetch) -> &'static str {
    let open = fetch.batches.values().filter(|b| b.open.contains(CHUNK)).count();
    let (wanted, unwanted) = (fetch.wanted.contains(CHUNK), fetch.unwanted.contains(CHUNK));
    assert_eq!(fetch.doubled.contains(CHUNK), open == 2, "doubled says that two batches have it");
    assert!(!(wanted && open > 0), "a chunk is in one place");
    match (wanted, open, unwanted) {
        (true, 0, _) => "wanted",
        (false, 1, false) => "open",
        (false, 1, true) => "open, unwanted",
        (false, 2, _) => "doubled",
        (false, 0, _) => "absent",
        other => panic!("no such state: {other:?}"),
    }
}

/// State of the peer, by docs/states.md.
fn standing(fetch: &Fetch, now: Timestamp) -> &'static str {
    let p = &fetch.peers[&PEER];
    match () {
        () if p.dropped => "given up",
        () if !p.connected => "away",
        () if p.not_before > now && p.excused => "excused",
        () if p.not_before > now => "backing off",
        () if p.choked_until > now => "choked",
        () if p.left_until > now => "leaves to others",
        () if p.distrusted_by_origin => "distrusted",
        () if p.stalled => "slow",
        () if p.right == 0 => "unproven",
        () => "proven",
    }
}

fn events_of(fetch: &mut Fetch) -> String {
    let names = std::iter::from_fn(|| fetch.poll_event()).map(|event| match event {
        FetchEvent::Abandon(..) => "Abandon".to_owned(),
        FetchEvent::Unavailable(_) => "Unavailable".to_owned(),
        FetchEvent::Dropped(_, fault) => format!("Dropped({fault:?})"),
    });
    names.map(|name| format!(", {name}")).collect()
}

#[test]
fn every_state_of_a_chunk_and_event_has_the_outcome_of_this_table() {
    let states: [(&str, Event); 5] = [
        ("absent", |fetch, batch| {
            fetch.handle_chunk(T0, batch, CHUNK);
        }),
        ("wanted", |fetch, batch| fetch.handle_batch_end(T0, batch)),
        ("open", |_, _| {}),
        ("open, unwanted", |fetch, _| {
            fetch.want_no_more(T0, &one());
        }),
        ("doubled", |fetch, _| {
            let second = BatchId(fetch.next_batch);
            fetch.next_batch += 1;
            fetch.handle_connected(T0, OTHER, Tier::Relay);
            let at = T0;
            let batch = Batch {
                peer: OTHER,
                open: one(),
                asked: at,
                progress: at,
                got: 0,
                deadline: at + SECOND * 9,
                held_back: false,
            };
            fetch.batches.insert(second, batch);
            fetch.peers.get_mut(&OTHER).expect("connected").in_flight += 1;
            fetch.doubled = one();
        }),
    ];
    let events: [(&str, Event); 11] = [
        ("want", |fetch, _| fetch.want(&one())),
        ("want no more", |fetch, _| {
            fetch.want_no_more(T0, &one());
        }),
        ("want no more, reported for bad data", |fetch, _| {
            fetch.handle_reported_bad_data(T0);
            fetch.want_no_more(T0, &one());
        }),
        ("chunk", |fetch, batch| {
            fetch.handle_chunk(T0, batch, CHUNK);
        }),
        ("dont have", |fetch, batch| fetch.handle_dont_have(T0, batch, &one(), false)),
        ("leased", |fetch, batch| fetch.handle_leased(T0, batch, &one())),
        ("upstream failed", |fetch, batch| fetch.handle_upstream_failed(T0, batch, &one())),
        ("batch end", |fetch, batch| fetch.handle_batch_end(T0, batch)),
        ("peer failed", |fetch, _| fetch.handle_fault(T0, PEER, PeerFault::Failed)),
        ("peer lied", |fetch, _| fetch.handle_fault(T0, PEER, PeerFault::WrongBytes)),
        ("peer gone for good", |fetch, _| {
            fetch.handle_disconnected(T0, PEER, Tier::Relay);
            fetch.handle_gone(PEER);
            fetch.poll_request(T0);
        }),
    ];
    let mut table = String::new();
    for (state, reach) in states {
        for (event, happen) in events {
            let (mut fetch, batch) = requested(Tier::Relay);
            reach(&mut fetch, batch);
            assert_eq!(place(&fetch), state);
            events_of(&mut fetch);
            happen(&mut fetch, batch);
            let (place, news) = (place(&fetch), events_of(&mut fetch));
            writeln!(table, "{state} + {event}: {place}{news}").expect("a string");
        }
    }
    assert_eq!(table, include_str!("testdata/chunk_table.txt"));
}

#[test]
fn every_state_of_a_peer_and_event_has_the_outcome_of_this_table() {
    let states: [(&str, Event); 9] = [
        ("unproven", |_, _| {}),
        ("proven", |fetch, batch| {
            fetch.handle_chunk(T0, batch, CHUNK);
        }),
        ("slow", |fetch, _| {
            fetch.handle_fault(T0, PEER, PeerFault::Stalled);
            fetch.peers.get_mut(&PEER).expect("connected").not_before = T0;
        }),
        ("choked", |fetch, _| fetch.handle_choked(T0, PEER, SECOND)),
        ("backing off", |fetch, _| fetch.handle_fault(T0, PEER, PeerFault::Failed)),
        ("excused", |fetch, batch| fetch.handle_upstream_failed(T0, batch, &one())),
        ("distrusted", |fetch, _| fetch.handle_distrusted(T0, PEER)),
        ("away", |fetch, _| fetch.handle_disconnected(T0, PEER, Tier::Relay)),
        ("given up", |fetch, _| fetch.handle_gone(PEER)),
    ];
    let events: [(&str, Event); 13] = [
        ("connected", |fetch, _| fetch.handle_connected(T0, PEER, Tier::Relay)),
        ("disconnected", |fetch, _| fetch.handle_disconnected(T0, PEER, Tier::Relay)),
        ("dialled again", |fetch, _| fetch.handle_awaiting(PEER)),
        ("chunk", |fetch, batch| {
            fetch.handle_chunk(T0, batch, CHUNK);
        }),
        ("choked", |fetch, _| fetch.handle_choked(T0, PEER, SECOND)),
        ("leaves a whole batch to others", |fetch, batch| {
            fetch.handle_leased(T0, batch, &one());
            fetch.handle_batch_end(T0, batch);
        }),
        ("upstream failed", |fetch, batch| fetch.handle_upstream_failed(T0, batch, &one())),
        ("stalled", |fetch, _| fetch.handle_fault(T0, PEER, PeerFault::Stalled)),
        ("failed", |fetch, _| fetch.handle_fault(T0, PEER, PeerFault::Failed)),
        ("failed three times", |fetch, _| {
            (0..3).for_each(|_| fetch.handle_fault(T0, PEER, PeerFault::Failed));
        }),
        ("wrong bytes", |fetch, _| fetch.handle_fault(T0, PEER, PeerFault::WrongBytes)),
        ("breach of the protocol", |fetch, _| fetch.handle_fault(T0, PEER, PeerFault::Protocol)),
        ("distrusted by the origin", |fetch, _| fetch.handle_distrusted(T0, PEER)),
    ];
    let mut table = String::new();
    for (state, reach) in states {
        for (event, happen) in events {
            let (mut fetch, batch) = requested(Tier::Relay);
            reach(&mut fetch, batch);
            assert_eq!(standing(&fetch, T0), state);
            events_of(&mut fetch);
            happen(&mut fetch, batch);
            let (now, news) = (standing(&fetch, T0), events_of(&mut fetch));
            writeln!(table, "{state} + {event}: {now}{news}").expect("a string");
        }
    }
    assert_eq!(table, include_str!("testdata/peer_table.txt"));
}
