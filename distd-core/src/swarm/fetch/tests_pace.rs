//! Tests of a [`Fetch`] with peers of different pace, and with batches that this side's limit holds
//! back.

use super::config::{CLAIM_AFTER, ENDGAME_LEAST, RELAY_ANSWERS, SEVERAL, SITE_BRINGS};
use super::*;

const T0: Timestamp = Timestamp(1_000_000);
const MS: Duration = Duration::from_millis(1);

fn set(start: u64, end: u64) -> ChunkRanges {
    [ChunkId(start)..=ChunkId(end)].into_iter().collect()
}

fn sharing(wanted: u64) -> Fetch {
    let mut f = Fetch::new(FetchConfig::sharing(wanted, 7));
    f.want(&set(1, wanted));
    f
}

/// Answers a batch with one chunk each `pace`; returns the time of its end.
fn answer(
    f: &mut Fetch,
    mut now: Timestamp,
    batch: BatchId,
    chunks: &ChunkRanges,
    pace: Duration,
) -> Timestamp {
    for id in chunks.ids() {
        now = now + pace;
        f.handle_chunk(now, batch, id);
    }
    f.handle_batch_end(now, batch);
    now
}

/// Returns a fetch with two neighbours that have everything. One has shown a pace of 1 ms a chunk,
/// the other of 100 ms.
fn fast_and_slow(wanted: u64) -> (Fetch, Timestamp) {
    let mut f = sharing(wanted);
    for peer in [1, 2] {
        f.handle_connected(T0, PeerId(peer), Tier::Site);
        f.handle_have(T0, PeerId(peer), &set(1, wanted));
    }
    let mut now = T0;
    while [1, 2].iter().any(|peer| f.peers[&PeerId(*peer)].capacity.rate().is_none()) {
        let (peer, batch, chunks) = f.poll_request(now).expect("both have room");
        now = answer(&mut f, now, batch, &chunks, if peer == PeerId(1) { MS } else { 100 * MS });
    }
    (f, now)
}

#[test]
fn the_faster_neighbour_is_asked_more_often_and_for_more() {
    let (mut f, mut now) = fast_and_slow(100_000);
    let mut asked = [0, 0];
    let mut sizes = [0, 0];
    for _ in 0..200 {
        let (peer, batch, chunks) = f.poll_request(now).expect("both have room");
        let at = peer.0 as usize - 1;
        asked[at] += 1;
        sizes[at] = chunks.len();
        now = answer(&mut f, now, batch, &chunks, if at == 0 { MS } else { 100 * MS });
    }
    assert!(asked[0] > 150 && asked[1] >= 4, "the slow one is tried now and then: {asked:?}");
    assert!(sizes[0] > 50 && sizes[1] == 4, "a tenth of a second each: {sizes:?}");
}

/// Makes a fetch with an origin, `stalled` neighbours that have everything and stalled, and one
/// neighbour that has half and has just brought a chunk. Returns the peers that are asked now,
/// until none has room.
fn asked_beside_stalled(stalled: u32) -> (Fetch, Timestamp, Vec<PeerId>) {
    let (mut f, origin, other) = (sharing(100), PeerId(0), PeerId(9));
    for peer in (1..=stalled).map(PeerId).chain([other]) {
        f.handle_connected(T0, peer, Tier::Site);
        f.handle_have(T0, peer, &set(1, if peer == other { 50 } else { 100 }));
    }
    let mut brought = T0;
    while let Some((peer, batch, chunks)) = f.poll_request(T0) {
        if peer == other {
            let first = chunks.ids().next().expect("a batch is not empty");
            brought = T0 + MS;
            f.handle_chunk(brought, batch, first);
        }
    }
    for peer in (1..=stalled).map(PeerId) {
        f.handle_fault(brought, peer, PeerFault::Stalled);
    }
    f.handle_connected(brought, origin, Tier::Origin);
    let asked = std::iter::from_fn(|| f.poll_request(brought)).map(|(peer, ..)| peer).collect();
    (f, brought, asked)
}

#[test]
fn chunks_several_stalled_neighbours_hold_are_not_asked_of_the_origin_while_others_bring_chunks() {
    let origin = PeerId(0);
    let (_, _, asked) = asked_beside_stalled(SEVERAL as u32 - 1);
    assert!(asked.contains(&origin), "few may be there for harm: {asked:?}");
    let (mut f, brought, asked) = asked_beside_stalled(SEVERAL as u32);
    assert!(!asked.contains(&origin), "{asked:?}");
    let dry = brought + SITE_BRINGS;
    assert!(f.poll_timeout(brought).is_some_and(|at| at <= dry));
    let asked: Vec<_> = std::iter::from_fn(|| f.poll_request(dry)).map(|(peer, ..)| peer).collect();
    assert!(asked.contains(&origin), "nothing came any more: {asked:?}");
}

#[test]
fn a_batch_that_waits_at_a_parent_is_taken_back_when_a_neighbour_has_its_chunks() {
    let mut f = sharing(1000);
    f.handle_connected(T0, PeerId(0), Tier::Relay);
    let (_, queued, chunks) = f.poll_request(T0).expect("the relay");
    f.handle_connected(T0, PeerId(1), Tier::Site);
    f.handle_have(T0, PeerId(1), &chunks);
    let early = T0 + CLAIM_AFTER / 2;
    while f.poll_request(early).is_some() {}
    assert_eq!(f.poll_event(), None, "it had no time yet");
    let late = f.poll_timeout(early).expect("it is looked at again");
    assert_eq!(late, T0 + CLAIM_AFTER);
    assert_eq!(f.poll_request(late).map(|(peer, _, c)| (peer, c)), Some((PeerId(1), chunks)));
    assert_eq!(f.poll_event(), Some(FetchEvent::Abandon(PeerId(0), queued)));
}

#[test]
fn a_batch_that_has_begun_is_left_to_its_peer() {
    let mut f = sharing(1000);
    f.handle_connected(T0, PeerId(0), Tier::Relay);
    let (_, batch, chunks) = f.poll_request(T0).expect("the relay");
    let first = chunks.nth(0).expect("not empty");
    f.handle_chunk(T0, batch, first);
    f.handle_connected(T0, PeerId(1), Tier::Site);
    f.handle_have(T0, PeerId(1), &chunks);
    let mut now = T0;
    while now < T0 + 2 * CLAIM_AFTER {
        while f.poll_request(now).is_some() {}
        assert_eq!(f.poll_event(), None);
        now = now + 50 * MS;
    }
}

/// A fetch near its end.
struct End {
    fetch: Fetch,
    now: Timestamp,
    /// The request to the fast peer for chunks that are open at the slow one.
    second: (BatchId, ChunkRanges),
    slow: Vec<(BatchId, ChunkRanges)>,
}

/// Requests all that is left of forty chunks. The fast peer answers at once until it is asked for
/// chunks the slow one has not brought.
fn at_the_end() -> End {
    let (mut f, mut now) = fast_and_slow(40);
    let mut slow: Vec<(BatchId, ChunkRanges)> = Vec::new();
    loop {
        let (peer, batch, chunks) = f.poll_request(now).expect("asked twice at last");
        if peer == PeerId(2) {
            slow.push((batch, chunks));
        } else if slow.iter().any(|(_, open)| open.intersects(&chunks)) {
            return End { fetch: f, now, second: (batch, chunks), slow };
        } else {
            now = answer(&mut f, now, batch, &chunks, MS);
        }
    }
}

#[test]
fn at_the_end_a_few_chunks_of_the_slowest_are_asked_of_a_second_peer_and_the_loser_is_cancelled() {
    let End { fetch: mut f, mut now, second: (batch, chunks), slow } = at_the_end();
    now = answer(&mut f, now, batch, &chunks, MS);
    let mut twice = chunks.len();
    while let Some((peer, batch, chunks)) = f.poll_request(now) {
        assert_eq!(peer, PeerId(1));
        twice += chunks.len();
        now = answer(&mut f, now, batch, &chunks, MS);
    }
    assert_eq!(twice, ENDGAME_LEAST, "a few of forty, however slow the rest is");
    let (cancelled, _) = slow.iter().find(|(_, open)| *open == chunks).expect("all of one batch");
    assert_eq!(f.poll_event(), Some(FetchEvent::Abandon(PeerId(2), *cancelled)));
    assert_eq!(f.duplicates(), 0, "the second was faster each time");
}

#[test]
fn a_chunk_that_comes_from_both_is_counted() {
    let End { fetch: mut f, now, second: (batch, chunks), slow } = at_the_end();
    let both = chunks.nth(0).expect("not empty");
    let (first, _) = slow.iter().find(|(_, open)| open.contains(both)).expect("asked of both");
    assert!(f.handle_chunk(now, *first, both));
    assert!(!f.handle_chunk(now, batch, both), "it came before");
    assert_eq!(f.duplicates(), 1);
}

#[test]
fn a_relay_whose_parent_was_away_is_asked_before_the_origin_again() {
    let mut f = sharing(1000);
    f.handle_connected(T0, PeerId(0), Tier::Relay);
    f.handle_connected(T0, PeerId(1), Tier::Origin);
    let (_, batch, chunks) = f.poll_request(T0).expect("the relay");
    let failed = T0 + Duration::from_secs(10);
    f.handle_upstream_failed(failed, batch, &chunks);
    f.handle_batch_end(failed, batch);
    assert_eq!(f.poll_request(failed), None, "the origin waits for a second failure");
    let again = f.poll_timeout(failed).expect("the relay is asked again");
    let (peer, batch, chunks) = f.poll_request(again).expect("the relay");
    assert_eq!(peer, PeerId(0));
    let failed = again + Duration::from_secs(10);
    f.handle_upstream_failed(failed, batch, &chunks);
    f.handle_batch_end(failed, batch);
    assert_eq!(f.poll_request(failed).map(|(peer, ..)| peer), Some(PeerId(1)));
}

#[test]
fn a_silent_relay_is_left_after_the_time_in_which_a_live_one_answers() {
    let mut f = sharing(1000);
    f.handle_connected(T0, PeerId(0), Tier::Relay);
    f.handle_connected(T0, PeerId(1), Tier::Origin);
    assert_eq!(f.poll_request(T0).map(|(peer, ..)| peer), Some(PeerId(0)));
    assert_eq!(f.poll_timeout(T0), Some(T0 + CLAIM_AFTER));
    let silent = T0 + RELAY_ANSWERS;
    assert_eq!(f.poll_request(silent).map(|(peer, ..)| peer), Some(PeerId(1)));
    // The relay is asked again after its backoff, for a little, and no other peer waits for it.
    let later = silent + Duration::from_secs(1);
    let asked: Vec<_> = std::iter::from_fn(|| f.poll_request(later)).map(|(peer, ..)| peer).collect();
    assert!(asked.iter().filter(|peer| **peer == PeerId(0)).count() <= 1, "{asked:?}");
}

#[test]
fn no_request_is_searched_for_again_until_something_changes() {
    let mut f = sharing(1000);
    f.handle_connected(T0, PeerId(0), Tier::Relay);
    let (_, batch, chunks) = f.poll_request(T0).expect("the relay");
    let now = answer(&mut f, T0, batch, &chunks, MS);
    let (_, batch, chunks) = std::iter::from_fn(|| f.poll_request(now)).last().expect("the relay");
    let quiet = f.quiet_until;
    assert!(quiet.is_some());
    f.handle_chunk(now, batch, chunks.nth(0).expect("not empty"));
    assert_eq!(f.quiet_until, quiet, "a chunk makes no room");
    f.handle_batch_end(now, batch);
    assert_eq!(f.quiet_until, None);
}

#[test]
fn batches_held_back_by_this_sides_limit_count_neither_as_faults_nor_as_pace() {
    let (mut f, mut now) = fast_and_slow(1000);
    let rate = |f: &Fetch| f.peers[&PeerId(1)].capacity.rate();
    let before = rate(&f);
    // Request all that may be requested from either neighbour.
    let mut open = Vec::new();
    while let Some(request) = f.poll_request(now) {
        open.push(request);
    }
    assert!(open.len() > 2);
    // For two minutes, the limit lets a chunk of one batch through now and then.
    let (_, first, chunks) =
        open.iter().find(|(peer, ..)| *peer == PeerId(1)).cloned().expect("the fast one");
    for id in chunks.ids().take(4) {
        for _ in 0..150 {
            now = now + 200 * MS;
            for (_, batch, _) in &open {
                f.handle_held_back(now, *batch);
            }
            assert_eq!(f.poll_request(now), None, "nothing is asked of another in its place");
            assert_eq!(f.poll_event(), None, "and nothing taken back");
        }
        f.handle_chunk(now, first, id);
    }
    for (_, batch, chunks) in open {
        for id in chunks.ids() {
            now = now + 500 * MS;
            f.handle_held_back(now, batch);
            f.handle_chunk(now, batch, id);
        }
        f.handle_batch_end(now, batch);
    }
    assert_eq!(rate(&f), before, "the peer is as fast as it was");
    assert!(f.peers.values().all(|peer| !peer.stalled && peer.failures == 0));
}
