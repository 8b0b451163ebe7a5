//! Rules of the swarm that a scenario may switch off, to show the purpose of each.

use super::world::Sim;

/// A rule of answering nodes, or of the exchange between askers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Nodes report to parents which nodes they shun, and the origin passes on nodes that several
    /// report.
    Shuns,
    /// A relay cancels chunks that no asker waits for any more.
    Unwanted,
    /// Duplicate suppression: with many askers at once, a node sends each chunk once for a while.
    SuppressDuplicates,
    /// A dialled node dials back.
    DialBack,
}

impl Sim {
    /// Switches a rule off for the whole run.
    pub fn without(&mut self, rule: Rule) {
        self.off.insert(rule);
    }

    pub(super) fn has(&self, rule: Rule) -> bool {
        !self.off.contains(&rule)
    }
}
