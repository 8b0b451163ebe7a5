//! Sentences about why a node runs what it runs. The origin and `distd why` say the same.

use super::{Node, NodeRunning};

impl Node {
    /// The sentence about a node that says nothing about any channel; `None` for a node that does.
    /// `time` formats unix seconds.
    pub fn why_silent(&self, time: impl Fn(i64) -> String) -> Option<String> {
        if let Some(at) = self.revoked {
            return Some(format!("the node was revoked at {}: no parent serves it", time(at)));
        }
        match self.reported {
            None if self.ddi => Some(
                "the device has not polled the origin, or lacks the right report".to_owned(),
            ),
            None => Some(
                "the node has sent no report: it runs no agent that follows a channel, or lacks the right report"
                    .to_owned(),
            ),
            Some(at) if self.running.is_empty() => {
                Some(format!("the node follows no channel, by its report of {}", time(at)))
            }
            Some(_) => None,
        }
    }

    /// The sentence about a channel that the node follows and that leads to `wanted`; `None` when
    /// the channel is gone. `time` formats unix seconds.
    pub fn why(&self, running: &NodeRunning, wanted: Option<&str>, time: impl Fn(i64) -> String) -> String {
        let NodeRunning { product, channel, version, held } = running;
        let runs = version.as_deref().unwrap_or("no release");
        let head = format!("{product}:{channel}: the node runs {runs}");
        let Some(wanted) = wanted else { return format!("{head}; the channel was removed") };
        let reported =
            self.reported.map_or_else(String::new, |at| format!(", by its report of {}", time(at)));
        match held {
            Some(held) => format!("{head}: {held}{reported}"),
            None if version.as_deref() == Some(wanted) => {
                format!("{head}, the release of the channel{reported}")
            }
            None => {
                format!("{head}, and the channel leads to {wanted}: it has not ended its update{reported}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NodeLabels, Word};
    use super::*;
    use crate::role::Role;

    #[test]
    fn each_state_has_its_sentence() {
        let mut node = Node {
            id: "0a".into(),
            role: Word::from(Role::Leaf),
            label: String::new(),
            enrolled: 0,
            cert_expires: 0,
            revoked: None,
            labels: NodeLabels::default(),
            reported: None,
            running: Vec::new(),
            ddi: false,
        };
        let time = |at: i64| at.to_string();
        let silent = |node: &Node| node.why_silent(time).unwrap_or_default();
        assert!(silent(&node).contains("no report"));
        node.reported = Some(0);
        assert!(silent(&node).contains("follows no channel"));
        let mut running = NodeRunning {
            product: "os".into(),
            channel: "stable".into(),
            version: Some("1".into()),
            held: Some("the rollout is paused".into()),
        };
        node.running = vec![running.clone()];
        assert_eq!(silent(&node), "");
        let say = |running: &NodeRunning, wanted| node.why(running, wanted, time);
        assert!(say(&running, Some("2")).starts_with("os:stable: the node runs 1: the rollout is paused"));
        running.held = None;
        assert!(say(&running, Some("2")).contains("leads to 2: it has not ended its update"));
        assert!(say(&running, None).ends_with("the channel was removed"));
        running.version = Some("2".into());
        assert!(say(&running, Some("2")).contains("the release of the channel"));
        node.revoked = Some(1);
        assert!(silent(&node).contains("revoked"));
    }
}
