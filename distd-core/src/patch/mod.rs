//! Patches: payloads that rebuild the new chunks of a release from chunks a device already has.
//!
//! # Goals
//! - An update costs bytes for what changed, not for every chunk that the change touches.
//! - No trust: any payload ends in the wanted number of bytes or an error, within bounded memory,
//!   and the device checks each rebuilt chunk against its hash in the signed manifest.
//! - Freedom of choice: a device uses the patches that pay off for it. Chunks without a patch, and
//!   chunks whose patch failed, are fetched.
//! - Composition: patches name chunk ids, not positions. The sets from release 1 to 2 and from 2 to
//!   3 form a [`route()`] from 1 to 3.
//!
//! # Non-goals
//! - The smallest possible difference: bases are found by name and by sampled content ([`pair`]).
//! - Patches of whole artifacts: one patch has at most 16 MiB of base and 4 MiB of target, 256 MiB
//!   of either for a single large file, or 1 GiB where it streams ([`view`]).
//! - I/O: the origin makes sets and devices apply them; this module gets and returns bytes.
//!
//! # Example
//!
//! Release 1 is a file with the chunks A B C, ids 1 2 3. Release 2 has A B' C: a few bytes changed,
//! and the origin gave the new chunk B' the id 4.
//!
//! 1. The origin asks [`pair::needs`]: A and C are held, B' is wanted. [`pair::pair()`] looks for
//!    the base around the held neighbours of B' and returns one job: rebuild B' from A B C. Bytes
//!    of a base cost nothing on the wire.
//! 2. [`pair::build`] encodes the job. The payload has 53 bytes; B' as a chunk would cost 3500.
//! 3. The set has an index (from release 1, to release 2; one patch with bases 1 to 3 and target 4)
//!    and behind it the payload. The set is a separate artifact: index and payload are its chunks,
//!    with ids of their own, say 5 and 6, and travel like all chunks.
//! 4. The device has release 1. It fetches the set's index, and [`choose()`] prefers the patch to
//!    the chunk. The device fetches the payload, reads A B C from the old release, decodes B' and
//!    compares its hash with the manifest. It writes A and C from the old release and B' between
//!    them. If the hash were wrong, it would fetch chunk 4.
//!
//! ```
//! use distd_core::patch::{
//!     PatchMethod, Effort, Offer, Optimize, SetIndex, SetPatch, TargetRun, choose, decode, encode,
//! };
//! use distd_core::{ChunkHash, ChunkId, ManifestId};
//!
//! # let noise = |seed: u32| -> Vec<u8> {
//! #     let mut state = seed;
//! #     let next = |_| {
//! #         state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
//! #         (state >> 24) as u8
//! #     };
//! #     (0..3500).map(next).collect()
//! # };
//! let [a, b, c] = [1, 2, 3].map(noise); // incompressible, 3500 bytes each
//! let mut b2 = b.clone();
//! b2[100..104].copy_from_slice(b"new!");
//!
//! // Origin: encode the payload and describe it in the index.
//! let base = [a, b, c].concat();
//! let payload = encode(PatchMethod::Suffix, &base, &b2, Effort::default());
//! let payload = payload.expect("within the limits");
//! assert!(payload.len() < 100);
//! let index = SetIndex {
//!     from: ManifestId([1; 32]),
//!     to: ManifestId([2; 32]),
//!     patches: vec![SetPatch {
//!         codec: PatchMethod::Suffix.number(),
//!         packed: b2.len() as u64,
//!         bases: vec![ChunkId(1).into()..=ChunkId(3).into()],
//!         targets: vec![TargetRun { first: ChunkId(4).into(), lens: vec![b2.len() as u32] }],
//!     }],
//! };
//! let packed_index = index.encode();
//!
//! // Device: holds 1 to 3, wants 4.
//! let index = SetIndex::decode(&packed_index)?;
//! let offer = Offer { patches: &index.patches, payloads: &[payload.len() as u32] };
//! let held = |id: ChunkId| id.0 <= 3;
//! let choice = choose(&[ChunkId(4)], held, &[offer], Optimize::Bytes);
//! assert_eq!((choice.patches.len(), choice.chunks.len()), (1, 0));
//! let rebuilt = decode(PatchMethod::Suffix, &base, &payload, b2.len())?;
//! assert_eq!(ChunkHash::of(&rebuilt), ChunkHash::of(&b2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Modules
//!
//! [`encode`] and [`decode`] turn `(base, target)` into a payload and back, whatever base and
//! target are. [`pair`] finds a base for every new chunk of a release. [`view`] first unpacks
//! content that a compressor hides. [`hash_tree`] computes what follows from other bytes. The
//! payload formats are specified byte by byte in the modules of the codecs, those of recipes in
//! `view::pieces` and `view::clusters`.

mod choose;
mod chunk_id;
mod codec;
mod cost;
pub mod hash_tree;
mod large;
mod matches;
mod outline;
pub mod pair;
mod prefix;
mod references;
mod route;
mod set;
mod suffix;
pub mod view;

pub use choose::{Choice, Offer, Optimize, PatchRef, Terms, choose};
pub use chunk_id::{PatchChunkId, ViewChunkId};
pub use codec::{Effort, PatchError, PatchMethod, decode, encode};
pub use cost::Cost;
pub use large::{LargePayload, large_cost, rebuild_large};
pub use outline::{Outline, OutlineError};
pub use references::memory as references_memory;
pub use route::{Leg, ROUTE_LEGS_MAX, route};
pub use set::{Method, SetError, SetIndex, SetPatch, TargetRun};
