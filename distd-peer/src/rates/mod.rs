//! Rate limits of a node's link: in total, for each peer and for each class of pull, by the time of
//! day.
//!
//! A limit is this node's own choice and never counts against the peer that it slows down.

mod file;
mod rate;
mod schedule;

pub use file::{LimitsError, LimitsFile, RATE_MIN, RatesFile, WindowFile};
pub(crate) use rate::LIMITED_PIECE;
pub use schedule::{RateWindow, Schedule, local_time, time_zone};

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::NodeId;

use self::rate::{Rate, RateOfEach};

/// Purpose of a device's pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A user waits for the pull.
    Interactive,
    /// A scheduled update.
    Update,
    /// An artifact that may be wanted later.
    Prefetch,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Update, Self::Prefetch];

    /// Name of the class in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Update => "update",
            Self::Prefetch => "prefetch",
        }
    }
}

/// A name that is not a class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: the classes are interactive, update and prefetch")]
pub struct UnknownClass(String);

impl FromStr for Class {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        Self::ALL.into_iter().find(|class| class.name() == text).ok_or_else(|| UnknownClass(text.to_owned()))
    }
}

/// Limits of both directions, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Limit on the bytes sent to peers.
    pub upload: Limit,
    /// Limit on the bytes received.
    pub download: Limit,
}

/// Limit of one direction, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Rate of all traffic together.
    pub all: Schedule,
    /// Rate of the traffic of each class together, indexed by [`Class`].
    pub classes: [Schedule; 3],
    /// Rate of each peer by itself, bytes a second.
    pub each: Option<u64>,
}

impl Limit {
    /// Returns the throttle for chunks of `class`, or of no class. `None` if no limit applies.
    pub fn for_class(&self, class: Option<Class>) -> Option<Arc<Throttle>> {
        let of_class = class.map(|class| self.classes[class as usize].clone());
        let schedules = [Some(self.all.clone()), of_class].into_iter().flatten().filter(|s| !s.is_free());
        let schedules: Vec<_> = schedules.collect();
        if schedules.is_empty() && self.each.is_none() {
            return None;
        }
        let rates = schedules.into_iter().map(Rate::new).collect();
        let holding = Mutex::default();
        Some(Arc::new(Throttle { each: self.each.map(RateOfEach::new), rates, holding }))
    }
}

/// Limits of one direction in operation.
pub struct Throttle {
    each: Option<RateOfEach<NodeId>>,
    /// Rates that all traffic passes, one after the other.
    rates: Vec<Rate>,
    /// Number of waiting transfers, by the peer they send to or receive from.
    holding: Mutex<BTreeMap<NodeId, usize>>,
}

/// Entry of one waiting transfer in [`Throttle::holding`], removed on drop.
struct Holding<'t>(&'t Throttle, NodeId);

impl Throttle {
    fn holding(&self) -> MutexGuard<'_, BTreeMap<NodeId, usize>> {
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a transfer to or from `peer` is waiting for a limit now.
    pub fn holds(&self, peer: &NodeId) -> bool {
        self.holding().contains_key(peer)
    }

    /// Waits until `bytes` may pass to or from `peer`.
    pub async fn pass(&self, peer: NodeId, bytes: usize) {
        *self.holding().entry(peer).or_default() += 1;
        let _holding = Holding(self, peer);
        if let Some(each) = &self.each {
            each.pass(&peer, bytes).await;
        }
        for rate in &self.rates {
            rate.pass(bytes).await;
        }
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        let mut holding = self.0.holding();
        if let Some(count) = holding.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                holding.remove(&self.1);
            }
        }
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle").finish_non_exhaustive()
    }
}
