//! Shared helpers of the end-to-end tests: a realm of real processes on loopback, and artifacts to
//! send through it.

pub mod apt;
pub mod apt_site;
pub mod artifacts;
pub mod disks;
pub mod faults;
pub mod forward;
pub mod impair;
pub mod lab;
pub mod later;
pub mod leaf;
pub mod machine;
pub mod netns;
pub mod office;
pub mod proxy;
pub mod receiver;
pub mod recorder;
pub mod replicas;
pub mod rng;
pub mod scrape;
pub mod sim;
pub mod svg;

pub use lab::{Lab, Outcome};
pub use rng::Rng;
