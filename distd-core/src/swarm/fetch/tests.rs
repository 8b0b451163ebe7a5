//! Tests of the requests of a [`Fetch`]: which chunks, from which peer, and when.

use super::config::{CHOKES_MAX, SETTLED, SHARED_BATCHES};
use super::*;

fn set(start: u64, end: u64) -> ChunkRanges {
    [ChunkId(start)..=ChunkId(end)].into_iter().collect()
}

fn fetch(batch_chunks: u64) -> Fetch {
    Fetch::new(FetchConfig { batch_chunks, batches_per_peer: 2, ..FetchConfig::default() })
}

const T0: Timestamp = Timestamp(1_000_000);

#[test]
fn a_chunk_is_open_in_one_batch_only() {
    let mut f = fetch(10);
    f.handle_connected(T0, PeerId(0), Tier::Site);
    f.handle_connected(T0, PeerId(1), Tier::Site);
    f.handle_have(T0, PeerId(0), &set(1, 20));
    f.handle_have(T0, PeerId(1), &set(11, 35));
    f.want(&set(1, 35));
    let mut asked = ChunkRanges::new();
    while let Some((_, _, chunks)) = f.poll_request(T0) {
        assert!(asked.intersection(&chunks).is_empty());
        asked.extend(&chunks);
    }
    assert_eq!(asked, set(1, 35));
    f.want(&set(1, 35));
    assert_eq!(f.poll_request(T0), None, "wanted twice is asked for once");
}

#[test]
fn the_nearer_tier_is_asked_first_and_the_farther_one_takes_what_it_lacks() {
    let mut f = fetch(100);
    f.handle_connected(T0, PeerId(0), Tier::Origin);
    f.handle_connected(T0, PeerId(1), Tier::Site);
    f.handle_have(T0, PeerId(1), &set(1, 10));
    f.want(&set(1, 10));
    let (peer, batch, _) = f.poll_request(T0).expect("a peer is there");
    assert_eq!(peer, PeerId(1));
    f.handle_dont_have(T0, batch, &set(3, 4), false);
    assert_eq!(f.poll_request(T0).map(|(p, _, c)| (p, c)), Some((PeerId(0), set(3, 4))));
}

#[test]
fn a_farther_tier_is_not_asked_for_what_a_busy_nearer_one_will_send() {
    let mut f = fetch(10);
    f.handle_connected(T0, PeerId(0), Tier::Origin);
    f.handle_connected(T0, PeerId(1), Tier::Relay);
    f.want(&set(1, 100));
    let asked: Vec<_> = std::iter::from_fn(|| f.poll_request(T0)).collect();
    assert_eq!(asked.iter().map(|(peer, ..)| *peer).collect::<Vec<_>>(), [PeerId(1), PeerId(1)]);
    // The relay's failure makes the origin the nearest.
    f.handle_fault(T0, PeerId(1), PeerFault::Failed);
    assert_eq!(f.poll_request(T0).map(|(peer, ..)| peer), Some(PeerId(0)));
}

#[test]
fn of_two_relays_the_second_is_asked_when_the_first_fails_or_chokes() {
    let mut f = fetch(10);
    f.handle_connected(T0, PeerId(0), Tier::Relay);
    f.handle_connected(T0, PeerId(1), Tier::Relay);
    f.want(&set(1, 100));
    let asked: Vec<_> = std::iter::from_fn(|| f.poll_request(T0)).map(|(peer, ..)| peer).collect();
    assert_eq!(asked, [PeerId(0), PeerId(0)]);
    f.handle_choked(T0, PeerId(0), Duration::from_secs(1));
    let asked: Vec<_> = std::iter::from_fn(|| f.poll_request(T0)).map(|(peer, ..)| peer).collect();
    assert_eq!(asked, [PeerId(1), PeerId(1)]);
}

#[test]
fn chunks_no_peer_has_are_reported_once() {
    let mut f = fetch(100);
    f.handle_connected(T0, PeerId(0), Tier::Origin);
    f.want(&set(1, 10));
    let (_, batch, _) = f.poll_request(T0).expect("a peer is there");
    f.handle_dont_have(T0, batch, &set(1, 2), false);
    assert_eq!(f.poll_request(T0), None);
    assert_eq!(f.poll_event(), Some(FetchEvent::Unavailable(set(1, 2))));
    assert_eq!((f.poll_request(T0), f.poll_event()), (None, None));
}

#[test]
fn a_stalled_batch_goes_to_another_peer_and_its_late_chunk_is_not_asked_for_again() {
    let mut f = fetch(100);
    f.handle_connected(T0, PeerId(0), Tier::Relay);
    f.handle_connected(T0, PeerId(1), Tier::Origin);
    f.want(&set(1, 3));
    let (_, first, _) = f.poll_request(T0).expect("the relay");
    assert!(f.handle_chunk(T0, first, ChunkId(1)));
    let later = T0 + FetchConfig::default().stall;
    let (peer, _, chunks) = f.poll_request(later).expect("the origin");
    assert_eq!((peer, chunks), (PeerId(1), set(2, 3)));
    assert_eq!(f.poll_event(), Some(FetchEvent::Abandon(PeerId(0), first)));
}

#[test]
fn a_liar_is_dropped_at_once_and_a_failing_peer_after_its_last_try() {
    let mut f = fetch(100);
    f.handle_connected(T0, PeerId(0), Tier::Relay);
    f.want(&set(1, 3));
    f.poll_request(T0).expect("asked");
    f.handle_fault(T0, PeerId(0), PeerFault::WrongBytes);
    assert_eq!(f.poll_request(T0 + Duration::from_secs(3600)), None);
    let events: Vec<_> = std::iter::from_fn(|| f.poll_event()).collect();
    assert!(events.contains(&FetchEvent::Dropped(PeerId(0), PeerFault::WrongBytes)));
    assert!(events.contains(&FetchEvent::Unavailable(set(1, 3))), "{events:?}");

    let mut f = fetch(100);
    f.handle_connected(T0, PeerId(0), Tier::Relay);
    f.want(&set(1, 3));
    let mut now = T0;
    let mut tries = 0;
    while f.poll_request(now).is_some() {
        tries += 1;
        f.handle_fault(now, PeerId(0), PeerFault::Failed);
        now = f.poll_timeout(now).unwrap_or(now + Duration::from_secs(60));
    }
    assert_eq!(tries, FetchConfig::default().failures_max);
}

#[test]
fn any_order_of_answers_and_faults_ends_with_every_chunk_once() {
    // A small deterministic model: peers answer, refuse or fail by a generator seeded with this
    // number.
    for rng_seed in 0..200u64 {
        let mut state = rng_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = move |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let mut f = fetch(7);
        for peer in 0..3 {
            f.handle_connected(T0, PeerId(peer), if peer == 2 { Tier::Origin } else { Tier::Relay });
        }
        f.want(&set(1, 100));
        let mut got = ChunkRanges::new();
        let mut now = T0;
        let mut open: Vec<(PeerId, BatchId, ChunkRanges)> = Vec::new();
        for step in 0.. {
            assert!(step < 20_000, "no end with rng_seed {rng_seed}");
            while let Some(request) = f.poll_request(now) {
                open.push(request);
            }
            while let Some(event) = f.poll_event() {
                match event {
                    FetchEvent::Abandon(_, batch) => open.retain(|(_, b, _)| *b != batch),
                    FetchEvent::Unavailable(_) => {
                        panic!("the origin has everything, rng_seed {rng_seed}")
                    }
                    FetchEvent::Dropped(peer, _) => assert_ne!(peer, PeerId(2)),
                }
            }
            if f.is_idle() {
                break;
            }
            if open.is_empty() {
                now = f
                    .poll_timeout(now)
                    .expect("something must be waited for")
                    .max(now + Duration::from_micros(1));
                continue;
            }
            let pick = random(open.len() as u64) as usize;
            let (peer, batch, chunks) = &mut open[pick];
            let (peer, batch) = (*peer, *batch);
            match (random(10), peer) {
                (0, PeerId(0 | 1)) => f.handle_fault(now, peer, PeerFault::Failed),
                (1, PeerId(0 | 1)) => f.handle_dont_have(now, batch, &std::mem::take(chunks), random(2) == 0),
                _ => match chunks.take_first(1).ids().next() {
                    Some(id) => {
                        f.handle_chunk(now, batch, id);
                        assert!(got.insert(id), "chunk {id} twice, rng_seed {rng_seed}");
                    }
                    None => {
                        f.handle_batch_end(now, batch);
                        open.remove(pick);
                    }
                },
            }
        }
        assert_eq!(got, set(1, 100));
    }
}

#[test]
fn a_neighbour_is_asked_for_what_it_announced_and_the_parent_for_the_rest() {
    let mut f = fetch(100);
    f.handle_connected(T0, PeerId(0), Tier::Origin);
    f.handle_connected(T0, PeerId(1), Tier::Site);
    f.handle_have(T0, PeerId(1), &set(4, 6));
    f.want(&set(1, 10));
    let asked: Vec<_> = std::iter::from_fn(|| f.poll_request(T0)).map(|(p, _, c)| (p, c)).collect();
    let rest: ChunkRanges = [ChunkId(1)..=ChunkId(3), ChunkId(7)..=ChunkId(10)].into_iter().collect();
    assert_eq!(asked, [(PeerId(1), set(4, 6)), (PeerId(0), rest)]);
}

#[test]
fn chunks_a_neighbour_is_fetching_are_left_to_it_until_it_announces_them_or_time_is_up() {
    let mut f = fetch(100);
    f.handle_connected(T0, PeerId(0), Tier::Origin);
    f.handle_connected(T0, PeerId(1), Tier::Site);
    f.want(&set(1, 10));
    let (_, batch, _) = f.poll_request(T0).expect("the origin");
    f.handle_leased(T0, batch, &set(5, 10));
    assert_eq!(f.poll_request(T0), None);
    f.handle_have(T0, PeerId(1), &set(5, 6));
    assert_eq!(f.poll_request(T0).map(|(p, _, c)| (p, c)), Some((PeerId(1), set(5, 6))));
    let mut again = f.poll_timeout(T0).expect("it asks again");
    while again < T0 + FetchConfig::default().lease_retry {
        assert_eq!(f.poll_request(again), None);
        again = f.poll_timeout(again).expect("it asks again");
    }
    assert_eq!(again, T0 + FetchConfig::default().lease_retry);
    assert_eq!(f.poll_request(again).map(|(p, _, c)| (p, c)), Some((PeerId(0), set(7, 10))));
    assert_eq!(f.poll_event(), None, "nothing of this is a failure");
}

#[test]
fn chunks_of_a_choking_neighbour_wait_for_it_but_not_for_ever() {
    let mut f = fetch(100);
    f.handle_connected(T0, PeerId(0), Tier::Origin);
    f.handle_connected(T0, PeerId(1), Tier::Site);
    f.handle_have(T0, PeerId(1), &set(1, 10));
    f.want(&set(1, 10));
    let mut now = T0;
    let mut chokes = 0;
    while let Some((peer, batch, _)) = f.poll_request(now) {
        if peer == PeerId(0) {
            break;
        }
        f.handle_choked(now, peer, Duration::from_secs(1));
        f.handle_batch_end(now, batch);
        chokes += 1;
        if chokes <= CHOKES_MAX {
            assert_eq!(f.poll_request(now), None, "not asked of the origin");
            now = f.poll_timeout(now).expect("asked again");
        }
    }
    assert_eq!(chokes, CHOKES_MAX + 1);
}

#[test]
fn chunks_only_one_neighbour_has_are_requested_first() {
    let mut f = fetch(2);
    for peer in [1, 2] {
        f.handle_connected(T0, PeerId(peer), Tier::Site);
    }
    f.handle_have(T0, PeerId(1), &set(1, 10));
    f.handle_have(T0, PeerId(2), &set(1, 8));
    f.want(&set(1, 10));
    assert_eq!(f.poll_request(T0).map(|(p, _, c)| (p, c)), Some((PeerId(1), set(9, 10))));
}

#[test]
fn nodes_that_start_at_different_places_ask_for_different_chunks_and_all_ask_for_all() {
    let mut firsts = ChunkRanges::new();
    for rng_seed in 0..40 {
        let mut f = Fetch::new(FetchConfig::sharing(100, rng_seed));
        f.handle_connected(T0, PeerId(0), Tier::Origin);
        f.want(&set(1, 100));
        let mut all = ChunkRanges::new();
        while let Some((_, batch, chunks)) = f.poll_request(T0) {
            if all.is_empty() {
                firsts.extend(&chunks);
            }
            all.extend(&chunks);
            for id in chunks.ids() {
                f.handle_chunk(T0, batch, id);
            }
            f.handle_batch_end(T0, batch);
        }
        assert_eq!(all, set(1, 100));
    }
    assert!(firsts.len() > 60, "forty batches of four have {} chunks", firsts.len());
}

#[test]
fn batches_grow_without_neighbours_and_are_small_with_them() {
    let config = FetchConfig { shared_batch: Some(2), batch_chunks: 32, ..FetchConfig::default() };
    let mut f = Fetch::new(config);
    f.handle_connected(T0, PeerId(0), Tier::Origin);
    f.want(&set(1, 200));
    let mut sizes = Vec::new();
    let mut open: VecDeque<_> = std::iter::from_fn(|| f.poll_request(T0)).collect();
    for _ in 0..5 {
        let (_, batch, chunks) = open.pop_front().expect("the origin is asked");
        sizes.push(chunks.len());
        for id in chunks.ids() {
            f.handle_chunk(T0, batch, id);
        }
        f.handle_batch_end(T0, batch);
        open.extend(std::iter::from_fn(|| f.poll_request(T0)));
    }
    assert_eq!(sizes, [4, 8, 8, 8, 16], "one at first, three from then on");
    f.handle_connected(T0, PeerId(1), Tier::Site);
    open.iter().for_each(|(_, batch, _)| f.handle_batch_end(T0, *batch));
    let asked: Vec<_> = std::iter::from_fn(|| f.poll_request(T0)).map(|(.., c)| c.len()).collect();
    assert_eq!(asked, [2], "it may hold anything, and says so soon");
    let settled = T0 + SETTLED;
    let asked: Vec<_> = std::iter::from_fn(|| f.poll_request(settled)).map(|(.., c)| c.len()).collect();
    assert_eq!(asked, [2; SHARED_BATCHES - 1]);
}

#[test]
fn without_a_parent_a_silent_neighbour_is_waited_for_and_then_given_up() {
    let mut f = fetch(100);
    f.handle_connected(T0, PeerId(1), Tier::Site);
    f.want(&set(1, 3));
    assert_eq!((f.poll_request(T0), f.poll_event()), (None, None));
    let later = f.poll_timeout(T0).expect("it is not waited for without end");
    assert_eq!(later, T0 + FetchConfig::default().announce_grace);
    assert_eq!(f.poll_request(later), None);
    assert_eq!(f.poll_event(), Some(FetchEvent::Unavailable(set(1, 3))));
}

#[test]
fn chunks_left_to_a_neighbour_are_asked_of_the_parent_at_once_when_it_leaves() {
    let mut f = fetch(100);
    f.handle_connected(T0, PeerId(0), Tier::Origin);
    f.handle_connected(T0, PeerId(1), Tier::Site);
    f.want(&set(1, 3));
    let (_, batch, _) = f.poll_request(T0).expect("the origin");
    f.handle_leased(T0, batch, &set(1, 3));
    f.handle_batch_end(T0, batch);
    assert_eq!(f.poll_request(T0), None);
    f.handle_disconnected(T0, PeerId(1), Tier::Site);
    assert_eq!(f.poll_request(T0).map(|(p, _, c)| (p, c)), Some((PeerId(0), set(1, 3))));
}

#[test]
fn waiting_for_this_sides_own_limit_is_not_a_stall() {
    let mut f = fetch(100);
    f.handle_connected(T0, PeerId(0), Tier::Origin);
    f.want(&set(1, 3));
    let (_, batch, _) = f.poll_request(T0).expect("the origin");
    let stall = FetchConfig::default().stall;
    f.handle_held_back(T0 + stall / 2, batch);
    assert_eq!((f.poll_request(T0 + stall), f.poll_event()), (None, None));
    f.poll_request(T0 + stall * 2);
    assert_eq!(f.poll_event(), Some(FetchEvent::Abandon(PeerId(0), batch)));
}
