//! Rules of the swarm that a scenario may do without, to show what they are for.

use super::world::Sim;

/// One rule of those that answer, or between those that ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Parents are told whom a node shuns, and tell of whom several do.
    Shuns,
    /// A relay fetches no more what nobody waits for.
    Unwanted,
    /// A crowd gets each chunk from a node once for a while.
    Crowd,
    /// Those last of whom many were told.
    Balance,
    /// Who is dialled dials back.
    DialBack,
}

impl Sim {
    /// Does without a rule in the whole run.
    pub fn without(&mut self, rule: Rule) {
        self.off.insert(rule);
    }

    pub(super) fn has(&self, rule: Rule) -> bool {
        !self.off.contains(&rule)
    }
}
