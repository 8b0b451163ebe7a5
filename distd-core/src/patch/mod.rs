//! Patches: objects that rebuild target chunks from base chunks with the fewest bytes.
//!
//! [`encode`] and [`decode`] turn `(base, target)` into a payload and back; what base and target are is not
//! theirs to know. The payload formats are specified in the modules of the codecs, byte by byte.

mod codec;
mod prefix;

pub use codec::{Codec, Effort, PatchError, decode, encode};
