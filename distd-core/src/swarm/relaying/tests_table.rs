//! State × event table of one chunk of a [`RelayedBatch`]. docs/states.md explains the states.

use std::fmt::Write;

use super::*;
use crate::ChunkId;
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

const T0: Timestamp = Timestamp(1_000_000);
const CHUNK: ChunkId = ChunkId(1);

type Reach = fn(&mut RelayedBatch);
type Event = fn(&mut RelayedBatch) -> String;

fn one() -> ChunkRanges {
    [CHUNK].into_iter().collect()
}

fn request(batch: &mut RelayedBatch) {
    let requested = batch.handle_room(1);
    batch.handle_fresh(&requested);
}

fn come(batch: &mut RelayedBatch) {
    request(batch);
    batch.handle_held(CHUNK);
}

fn evict_twice(batch: &mut RelayedBatch) {
    request(batch);
    for _ in 0..2 {
        batch.handle_held(CHUNK);
        batch.handle_read(CHUNK, false);
    }
}

/// Action after the event, in short.
fn action(next: &RelayedNext) -> String {
    match next {
        RelayedNext::Chunk(until) => format!("wait {} s", until.since(T0).as_secs()),
        RelayedNext::Room(permits) => format!("room {permits}"),
        RelayedNext::Refuse(chunks, reason) => format!("refuse {} {reason:?}", chunks.len()),
        RelayedNext::Done => "done".to_owned(),
    }
}

/// Remains of the batch if it ended now.
fn remains(batch: RelayedBatch) -> String {
    let end = batch.finish();
    let remains = [
        (end.open == one(), "chunk open"),
        (end.charged == one(), "charged"),
        (!end.wants_no_more, "still wanted"),
        (end.room > 0, "a permit"),
    ];
    let remains: Vec<_> = remains.iter().filter(|(is_so, _)| *is_so).map(|(_, name)| *name).collect();
    if remains.is_empty() { "nothing".to_owned() } else { remains.join(", ") }
}

#[test]
fn every_state_of_a_relayed_chunk_and_event_has_the_outcome_of_this_table() {
    // Chunk 1 is the only one of the batch.
    let states: [(&str, Reach); 9] = [
        ("later", |_| {}),
        ("requested", request),
        ("requested after others", |batch| drop(batch.handle_room(1))),
        ("came", come),
        ("came after others asked", |batch| {
            batch.handle_room(1);
            batch.handle_held(CHUNK);
        }),
        ("evicted twice", evict_twice),
        ("evicted twice, came", |batch| {
            evict_twice(batch);
            batch.handle_held(CHUNK);
        }),
        ("answered", |batch| {
            come(batch);
            batch.handle_sent(CHUNK);
        }),
        ("told to ask again", |batch| {
            request(batch);
            batch.poll_next(T0, || false);
            batch.poll_next(T0 + UPSTREAM_WAIT, || false);
        }),
    ];
    let events: [(&str, Event); 10] = [
        ("a free permit", |batch| {
            let permits = batch.poll_room(1, || false);
            format!("request {}", batch.handle_room(permits).len())
        }),
        ("credit spent", |batch| {
            let (permits, next) = (batch.poll_room(1, || true), batch.poll_next(T0, || true));
            format!("take {permits}, {}", action(&next))
        }),
        ("came", |batch| (if batch.handle_held(CHUNK) { "read" } else { "-" }).to_owned()),
        ("no parent has it", |batch| (if batch.handle_gone(CHUNK) { "refuse" } else { "-" }).to_owned()),
        ("read", |batch| format!("{:?}", batch.handle_read(CHUNK, true))),
        ("not found", |batch| format!("{:?}", batch.handle_read(CHUNK, false))),
        ("sent", |batch| {
            batch.handle_sent(CHUNK);
            "-".to_owned()
        }),
        ("9 s later", |batch| {
            batch.poll_next(T0, || false);
            action(&batch.poll_next(T0 + UPSTREAM_WAIT * 9 / 10, || false))
        }),
        ("10 s later", |batch| {
            batch.poll_next(T0, || false);
            action(&batch.poll_next(T0 + UPSTREAM_WAIT, || false))
        }),
        ("return of room", |batch| format!("{} back", batch.return_room())),
    ];
    let mut table = String::new();
    for (state, reach) in states {
        for (event, happen) in events {
            let mut batch = RelayedBatch::new(one());
            reach(&mut batch);
            let outcome = happen(&mut batch);
            let next = action(&batch.poll_next(T0, || false));
            let remains = remains(batch);
            writeln!(table, "{state} + {event}: {outcome}; then {next}; at the end {remains}")
                .expect("a string");
        }
    }
    assert_eq!(table, include_str!("../testdata/relayed_chunk_table.txt"));
}
