//! Tests of a [`Fetch`] with relays that lie, and with chunks that are no longer wanted.

use super::config::OTHERS_FETCH;
use super::*;

const T0: Timestamp = Timestamp(1_000_000);
const RELAY: PeerId = PeerId(0);
const ORIGIN: PeerId = PeerId(1);
const NEIGHBOUR: PeerId = PeerId(2);

fn set(start: u64, end: u64) -> ChunkRanges {
    [ChunkId(start)..=ChunkId(end)].into_iter().collect()
}

fn sharing(rng_seed: u64) -> Fetch {
    let mut f = Fetch::new(FetchConfig::sharing(1000, rng_seed));
    f.want(&set(1, 1000));
    f.handle_connected(T0, RELAY, Tier::Relay);
    f
}

/// Returns all requests that are made now.
fn asked(f: &mut Fetch, now: Timestamp) -> Vec<(PeerId, BatchId, ChunkRanges)> {
    std::iter::from_fn(|| f.poll_request(now)).collect()
}

#[test]
fn all_nodes_of_a_site_ask_an_unproven_relay_for_the_same_chunk_and_then_for_different_ones() {
    let after_the_first = |rng_seed| {
        let mut f = sharing(rng_seed);
        let first = asked(&mut f, T0);
        assert_eq!(first, [(RELAY, BatchId(0), set(1, 1))]);
        f.handle_chunk(T0, BatchId(0), ChunkId(1));
        f.handle_batch_end(T0, BatchId(0));
        asked(&mut f, T0).into_iter().map(|(_, _, chunks)| chunks).collect::<Vec<_>>()
    };
    let (one, other) = (after_the_first(1), after_the_first(2));
    assert!(one.iter().all(|chunks| chunks.len() >= 4), "{one:?}");
    assert_ne!(one, other);
}

#[test]
fn the_origin_is_not_asked_while_neighbours_bring_chunks_of_a_relay_that_lied_to_this_side() {
    let mut f = sharing(1);
    f.handle_connected(T0, NEIGHBOUR, Tier::Site);
    f.handle_have(T0, NEIGHBOUR, &set(1, 1));
    let both = asked(&mut f, T0);
    assert_eq!(both.iter().map(|(peer, ..)| *peer).collect::<Vec<_>>(), [NEIGHBOUR, RELAY]);
    f.handle_fault(T0, RELAY, PeerFault::WrongBytes);
    f.handle_connected(T0, ORIGIN, Tier::Origin);
    let later = T0 + Duration::from_millis(100);
    f.handle_chunk(later, BatchId(0), ChunkId(1));
    f.handle_batch_end(later, BatchId(0));
    assert_eq!(asked(&mut f, later), [], "the neighbour may bring more");
    let dry = later + OTHERS_FETCH;
    assert_eq!(f.poll_timeout(later), Some(dry));
    let request = f.poll_request(dry).expect("it brought no more");
    assert_eq!(request.0, ORIGIN);
    // The origin knows of other nodes that the relay lied to, so no node fetches through it any
    // more.
    f.handle_batch_end(dry, request.1);
    f.handle_have(dry, NEIGHBOUR, &set(2, 2));
    let (_, batch, _) = f.poll_request(dry).expect("the neighbour");
    f.handle_chunk(dry, batch, ChunkId(2));
    f.handle_batch_end(dry, batch);
    assert_eq!(asked(&mut f, dry), []);
    f.handle_distrusted(dry, RELAY);
    assert_eq!(f.poll_request(dry).map(|(peer, ..)| peer), Some(ORIGIN));
}

#[test]
fn a_relay_that_lied_to_others_is_asked_only_when_the_origin_cannot_be() {
    let mut f = sharing(1);
    let first = asked(&mut f, T0);
    f.handle_connected(T0, ORIGIN, Tier::Origin);
    assert_eq!((asked(&mut f, T0), first.len()), (vec![], 1), "the relay is nearer");
    f.handle_distrusted(T0, RELAY);
    assert_eq!(f.poll_event(), Some(FetchEvent::Abandon(RELAY, first[0].1)), "nothing of it had come");
    let (peer, batch, _) = f.poll_request(T0).expect("the origin");
    assert_eq!(peer, ORIGIN);
    f.handle_batch_end(T0, batch);
    f.handle_disconnected(T0, ORIGIN, Tier::Origin);
    assert_eq!(f.poll_request(T0).map(|(peer, ..)| peer), Some(RELAY), "better than nobody");
}

#[test]
fn unwanted_chunks_are_not_requested_and_are_withdrawn_after_a_report_of_bad_data() {
    let mut f = Fetch::new(FetchConfig { batch_chunks: 10, ..FetchConfig::relay() });
    f.handle_connected(T0, ORIGIN, Tier::Origin);
    f.want(&set(1, 50));
    assert_eq!(asked(&mut f, T0).len(), 3, "30 of them");
    // Chunks that are not requested yet, a part of one batch, and all of another.
    f.want_no_more(T0, &set(41, 50));
    f.want_no_more(T0, &set(1, 4));
    f.want_no_more(T0, &set(11, 20));
    assert_eq!(f.poll_event(), None, "it is on its way, and somebody may want it again");
    f.handle_reported_bad_data(T0);
    assert_eq!(f.poll_event(), Some(FetchEvent::Abandon(ORIGIN, BatchId(1))));
    assert_eq!(f.poll_event(), None);
    assert_eq!(asked(&mut f, T0).into_iter().map(|(_, _, chunks)| chunks).collect::<Vec<_>>(), [set(31, 40)]);
    // Two chunks are wanted again before half of the first batch is unwanted, so the batch stays.
    // Then half of it is unwanted.
    f.want(&set(1, 2));
    f.want_no_more(T0, &set(5, 6));
    assert_eq!(f.poll_event(), None);
    f.want_no_more(T0, &set(9, 9));
    assert_eq!(f.poll_event(), Some(FetchEvent::Abandon(ORIGIN, BatchId(0))));
    let rest: ChunkRanges = [1, 2, 7, 8, 10].map(ChunkId).into_iter().collect();
    assert_eq!(asked(&mut f, T0).into_iter().map(|(_, _, chunks)| chunks).collect::<Vec<_>>(), [rest]);
}
