//! Statements about nodes: what a node is told about its own labels and pins (docs/fleet.md, "What
//! a node knows about itself").

use distd_core::fleet::NodeStatement;
use distd_core::role::Role;
use distd_peer::clock::unix_now;
use distd_peer::trust::statement::{ASKED, FILE, StatementQuestion};
use distd_peer::trust::tls::PeerIdentity;
use distd_peer::trust::tuf::wire::Answer;

use super::Origin;
use crate::db::DbError;
use crate::realm::RealmError;

/// Error of making a statement.
#[derive(Debug, thiserror::Error)]
pub(super) enum StatementAnswerError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Signing failed.
    #[error(transparent)]
    Realm(#[from] RealmError),
}

impl Origin {
    /// Answers a peer's question for the statement about a node: the bytes of an [`Answer`]. It is
    /// without a statement when the node has the same one, or is unknown or revoked.
    ///
    /// # Errors
    /// [`StatementAnswerError`].
    pub(super) async fn statement_answer(
        &self,
        peer: &PeerIdentity,
        asked: &StatementQuestion,
    ) -> Result<Vec<u8>, StatementAnswerError> {
        // Only relays ask for others.
        let node = if peer.role == Role::Relay { asked.node() } else { peer.node_id };
        let mut files = vec![(ASKED.to_owned(), bytes::Bytes::new())];
        let id = node.to_string();
        if let Some(row) = self.db.member(&id).await?.filter(|row| row.revoked.is_none()) {
            let labels = row.member.labels.effective();
            let statement = NodeStatement {
                node,
                issued: unix_now(),
                labels: labels.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
                pins: self.db.pins_of(&id).await?,
            };
            if asked.has != Some(statement.digest()) {
                files.push((FILE.to_owned(), self.realm.sign_node_statement(statement)?.encode()));
            }
        }
        Ok(Answer { files }.encode())
    }
}
