//! Nodes that are revoked before their certificates end.

use std::sync::Arc;

use distd_peer::clock::unix_now;
use distd_peer::trust::revoked::{FILE, Revoked, RevokedList};
use distd_peer::trust::tuf::wire::Answer;

use super::{Origin, signed};
use crate::db::{DbError, MoveBy};
use crate::realm::RealmError;

/// Error of making the list of revoked nodes.
#[derive(Debug, thiserror::Error)]
pub enum RevokedListError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Signing failed.
    #[error(transparent)]
    Realm(#[from] RealmError),
}

impl Origin {
    /// The nodes that are served nothing although their certificates hold.
    pub fn revoked(&self) -> &Arc<Revoked> {
        &self.revoked
    }

    /// Reads the list of revoked nodes, and ends their connections. Call it at start, after each
    /// revocation, and now and then for the revocations of other processes.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn refresh_revoked(&self) -> Result<RevokedList, DbError> {
        // One reading at a time: a list that was read before a revocation must not replace a later
        // one.
        let _turn = self.revoking.lock().await;
        let made = unix_now();
        let ids = self.db.nodes_revoked(signed(made)).await?;
        let nodes = ids.iter().filter_map(|id| id.parse().ok()).collect();
        let list = RevokedList { made, nodes };
        self.revoked.replace(list.clone());
        Ok(list)
    }

    /// Revokes a node in the name of `by` and ends its connections; returns `false` when there is
    /// none of this id.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn revoke_node(&self, id: &str, by: &MoveBy) -> Result<bool, DbError> {
        let now = signed(unix_now());
        let known = self.db.acting(by, now).revoke_node(id, now).await?;
        self.refresh_revoked().await?;
        Ok(known)
    }

    /// As [`revoke_node`](Self::revoke_node), and revokes the join tokens that brought the
    /// node in. Returns the public keys of those; `None` when there is no such node.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn revoke_node_and_tokens(
        &self,
        id: &str,
        by: &MoveBy,
    ) -> Result<Option<Vec<String>>, DbError> {
        let now = signed(unix_now());
        let tokens = self.db.acting(by, now).revoke_node_and_tokens(id, now).await?;
        self.refresh_revoked().await?;
        Ok(tokens)
    }

    /// The signed list as an answer to a metadata question.
    pub(super) async fn revoked_answer(&self) -> Result<Vec<u8>, RevokedListError> {
        let list = self.refresh_revoked().await?;
        let signed = self.realm.sign_revoked(&list)?;
        Ok(Answer { files: vec![(FILE.to_owned(), signed.encode().into())] }.encode())
    }
}
