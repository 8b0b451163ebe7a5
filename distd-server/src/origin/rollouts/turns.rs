//! Turns of devices in rollouts that let only some begin at once (docs/rollouts.md, "Turns").

use distd_core::NodeId;
use distd_core::fleet::Selector;
use distd_core::fleet::rollout::{RolloutId, TurnAnswer, point_of, wave_of};
use distd_core::role::Role;
use distd_peer::clock::unix_now;
use distd_peer::trust::turn::{TurnQuestion, answer, no_answer};

use crate::db::{DbError, RolloutStage, TurnAsker};
use crate::origin::Origin;
use crate::realm::RealmError;

/// Error of answering a device that asks for a turn.
#[derive(Debug, thiserror::Error)]
pub(in crate::origin) enum TurnAnswerError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Signing failed.
    #[error(transparent)]
    Realm(#[from] RealmError),
}

impl Origin {
    /// Answers the question of a device whether it may begin a rollout now, whoever brings it. A
    /// node that is unknown, revoked, in no open wave or not selected gets no turn.
    ///
    /// # Errors
    /// [`TurnAnswerError`].
    pub(in crate::origin) async fn turn_answer(
        &self,
        asked: &TurnQuestion,
    ) -> Result<Vec<u8>, TurnAnswerError> {
        let Some(node) = asked.asker() else { return Ok(no_answer()) };
        Ok(match self.decide_turn(&node, &asked.rollout(), asked.number).await? {
            None => no_answer(),
            Some(TurnAnswer::Begin) => answer(Ok(self.realm.sign_turn(&asked.message(&node))?)),
            Some(TurnAnswer::Wait(after)) => answer(Err(after)),
        })
    }

    /// Decides whether a node may begin its attempt `number` at a rollout now; `None` for a node
    /// that is unknown, revoked, in no open wave or not selected, and where no turns are given.
    ///
    /// # Errors
    /// [`DbError`].
    pub(in crate::origin) async fn decide_turn(
        &self,
        node: &NodeId,
        rollout: &RolloutId,
        number: u32,
    ) -> Result<Option<TurnAnswer>, DbError> {
        let row = self.db.rollout(rollout).await?.filter(|row| row.stage == RolloutStage::Open);
        let Some(row) = row else { return Ok(None) };
        let member = self.db.member(&node.to_string()).await?.filter(|row| row.revoked.is_none());
        let Some(member) = member else { return Ok(None) };
        let labels = &member.member.labels;
        let conditions = &row.policy.conditions;
        let selects = |selector: &Selector| selector.selects(labels, Role::Leaf);
        let waves = self.db.rollout_waves(&row.id).await?;
        let thresholds: Vec<u64> = waves.iter().map(|wave| wave.upto.0).collect();
        let point = point_of(&row.id, node, conditions.first().as_ref().is_some_and(selects));
        let is_open = wave_of(&thresholds, point)
            .and_then(|wave| waves.get(wave))
            .is_some_and(|wave| wave.opened.is_some());
        if !is_open || !row.policy.selector.as_ref().is_none_or(selects) || !conditions.needs_turns() {
            return Ok(None);
        }
        let effective = labels.effective();
        let group = conditions.budget.as_ref().and_then(|budget| {
            effective.iter().find(|(key, _)| key.to_string() == budget.by).map(|(_, value)| value.to_string())
        });
        let asker = TurnAsker { node, group: group.as_deref().unwrap_or_default(), number };
        self.db.take_turn(&row, &asker, unix_now()).await.map(Some)
    }
}
