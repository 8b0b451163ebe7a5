//! What of its link a node gives and takes: in all, of each peer, for each class of pull, by the time of day.
//!
//! A limit is this node's own doing and never counts against the peer it holds back.

mod file;
mod rate;
mod schedule;

pub use file::{LimitsError, LimitsFile, RATE_MIN, RatesFile, WindowFile};
pub(crate) use rate::LIMITED_PIECE;
pub use schedule::{LocalTime, Schedule, Window};

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::NodeId;

use self::rate::{Rate, RateOfEach};

/// Why a device pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Somebody waits for it.
    Interactive,
    /// An update, in its time.
    Update,
    /// What may be wanted later.
    Prefetch,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Update, Self::Prefetch];

    /// Its name, as in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Update => "update",
            Self::Prefetch => "prefetch",
        }
    }
}

/// No class has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: the classes are interactive, update and prefetch")]
pub struct UnknownClass(String);

impl FromStr for Class {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        Self::ALL.into_iter().find(|class| class.name() == text).ok_or_else(|| UnknownClass(text.to_owned()))
    }
}

/// Both directions, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// What others get.
    pub upload: Limit,
    /// What is fetched.
    pub download: Limit,
}

/// One direction, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// All together.
    pub all: Schedule,
    /// Those of each class together.
    pub classes: [Schedule; 3],
    /// Each peer by itself, bytes a second.
    pub each: Option<u64>,
}

impl Limit {
    /// What holds for chunks of a class, or of none. `None` when nothing does.
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

/// One direction's limits at work.
pub struct Throttle {
    each: Option<RateOfEach<NodeId>>,
    /// All of these hold.
    rates: Vec<Rate>,
    /// How many wait, by the peer whose bytes they hold.
    holding: Mutex<BTreeMap<NodeId, usize>>,
}

/// One that waits.
struct Holding<'t>(&'t Throttle, NodeId);

impl Throttle {
    fn holding(&self) -> MutexGuard<'_, BTreeMap<NodeId, usize>> {
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything to or from `peer` is held back just now.
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
