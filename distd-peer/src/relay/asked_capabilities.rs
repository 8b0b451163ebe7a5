//! Answers with the capabilities of a relay's askers, kept until the capabilities end.

use std::collections::VecDeque;

use bytes::Bytes;
use distd_core::NodeId;
use distd_core::fleet::SignedCapability;
use distd_core::lru::Lru;

use crate::trust::capability::{FILE, FILE_OF_ANY};
use crate::trust::tuf::wire::Answer;

/// Most nodes whose answers are kept.
const NODES_MAX: u64 = 4096;

/// Most answers kept of one node: one for each product that it follows, and some for patch sets.
const ANSWERS_MAX: usize = 8;

/// How long an answer about targets is fresh, seconds.
const TARGETS_FRESH: u64 = 2;

/// One answer of the origin.
struct Kept {
    question: Bytes,
    answer: Bytes,
    /// Time from which the origin should be asked again, unix seconds.
    renew_at: u64,
    /// End of the capability that ends first, unix seconds.
    expires: u64,
}

/// Answers by node and question. A node that asks many questions takes no place of another.
pub(super) struct AskedCapabilities(Lru<NodeId, VecDeque<Kept>>);

impl Default for AskedCapabilities {
    fn default() -> Self {
        Self(Lru::new(NODES_MAX))
    }
}

impl AskedCapabilities {
    fn find(&mut self, node: &NodeId, question: &Bytes) -> Option<&Kept> {
        self.0.get(node)?.iter().find(|kept| kept.question == *question)
    }

    /// Answer that need not be asked for again at `now` (unix seconds).
    pub(super) fn fresh(&mut self, node: &NodeId, question: &Bytes, now: u64) -> Option<Bytes> {
        self.find(node, question).filter(|kept| now < kept.renew_at).map(|kept| kept.answer.clone())
    }

    /// Answer of which every capability is valid at `now` (unix seconds).
    pub(super) fn valid(&mut self, node: &NodeId, question: &Bytes, now: u64) -> Option<Bytes> {
        self.find(node, question).filter(|kept| now < kept.expires).map(|kept| kept.answer.clone())
    }

    /// Keeps an answer, of which `decoded` are the files. One without a capability is not kept, so
    /// that a new grant is seen at once. An answer about targets, which may lead elsewhere soon, is
    /// fresh for [`TARGETS_FRESH`] after `of_targets` (unix seconds).
    pub(super) fn keep(
        &mut self,
        node: NodeId,
        question: Bytes,
        answer: &Bytes,
        decoded: &Answer,
        of_targets: Option<u64>,
    ) {
        let files = decoded.files.iter().filter(|(name, _)| name == FILE || name == FILE_OF_ANY);
        let capabilities: Vec<_> =
            files.filter_map(|(_, bytes)| Some(SignedCapability::decode(bytes).ok()?.capability)).collect();
        let stale_at = of_targets.map(|now| now.saturating_add(TARGETS_FRESH));
        let renew_at = capabilities.iter().map(|capability| capability.renew_at()).min();
        let renew_at = renew_at.map(|due| stale_at.map_or(due, |stale| stale.min(due)));
        let expires = capabilities.iter().map(|capability| capability.expires).min();
        let mut answers = self.0.remove(&node).unwrap_or_default();
        answers.retain(|kept| kept.question != question);
        if let (Some(renew_at), Some(expires)) = (renew_at, expires) {
            answers.truncate(ANSWERS_MAX - 1);
            answers.push_front(Kept { question, answer: answer.clone(), renew_at, expires });
        }
        if !answers.is_empty() {
            self.0.put(node, answers, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use distd_core::fleet::Capability;

    use super::*;

    fn keep(
        asked: &mut AskedCapabilities,
        node: NodeId,
        question: Bytes,
        answer: &Bytes,
        targets: Option<u64>,
    ) {
        asked.keep(node, question, answer, &Answer::decode(answer).expect("an answer"), targets);
    }

    #[test]
    fn an_answer_is_fresh_for_two_thirds_of_its_validity_and_valid_to_its_end() {
        let capability = Capability { node: None, issued: 1000, expires: 1900, manifests: Vec::new() };
        let signed = SignedCapability { body: capability.encode(), capability, signature: vec![1].into() };
        let answer = Answer { files: vec![(FILE.to_owned(), signed.encode())] }.encode();
        let (question, answer) = (Bytes::from_static(b"question"), Bytes::from(answer));
        let (mut asked, node) = (AskedCapabilities::default(), NodeId([1; 16]));
        keep(&mut asked, node, question.clone(), &answer, None);
        assert_eq!(asked.fresh(&node, &question, 1599), Some(answer.clone()));
        assert_eq!(asked.fresh(&node, &question, 1600), None);
        assert_eq!(asked.valid(&node, &question, 1899), Some(answer.clone()));
        assert_eq!(asked.valid(&node, &question, 1900), None);
        assert_eq!(asked.valid(&NodeId([2; 16]), &question, 1599), None, "another node");
        // A right that was withdrawn is forgotten.
        let empty = Bytes::from(Answer::default().encode());
        keep(&mut asked, node, question.clone(), &empty, None);
        assert_eq!(asked.valid(&node, &question, 0), None);
        // Many questions of one node take only its own places.
        keep(&mut asked, NodeId([2; 16]), question.clone(), &answer, None);
        for n in 0..=ANSWERS_MAX as u8 {
            keep(&mut asked, node, Bytes::from(vec![n]), &answer, None);
        }
        assert_eq!(asked.fresh(&node, &Bytes::from(vec![0]), 1000), None);
        assert!(asked.fresh(&node, &Bytes::from(vec![1]), 1000).is_some());
        assert!(asked.fresh(&NodeId([2; 16]), &question, 1000).is_some());
        // A channel may lead elsewhere soon.
        keep(&mut asked, node, question.clone(), &answer, Some(1000));
        assert!(asked.fresh(&node, &question, 1001).is_some());
        assert!(
            asked.fresh(&node, &question, 1002).is_none() && asked.valid(&node, &question, 1002).is_some()
        );
    }
}
