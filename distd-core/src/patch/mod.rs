//! Patches: objects that rebuild target chunks from base chunks with the fewest bytes.
//!
//! [`encode`] and [`decode`] turn `(base, target)` into a payload and back; what base and target are is not
//! theirs to know. [`pair`] decides that: it finds a base for every new chunk of a release, and [`view`] unpacks what hides behind a compressor before that. The payload
//! formats are specified in the modules of the codecs, those of recipes in `view::recipe` and `view::clusters`, byte by byte.

mod choose;
mod codec;
mod matches;
mod outline;
pub mod pair;
mod prefix;
mod route;
mod set;
mod suffix;
pub mod view;

pub use choose::{Choice, Offer, Optimize, PatchRef, choose};
pub use codec::{Codec, Effort, PatchError, decode, encode};
pub use outline::{Outline, OutlineError};
pub use route::{Leg, ROUTE_LEGS_MAX, route};
pub use set::{Method, SetError, SetIndex, SetPatch, TargetRun};
