//! Verification of statements about this node, the question for them on a metadata stream, and the
//! file that keeps the newest (docs/fleet.md, "What a node knows about itself").

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use distd_core::NodeId;
use distd_core::error::Chain;
use distd_core::fleet::{NodeStatement, SignedStatement, StatementError, statement_message};
use serde::{Deserialize, Serialize};

use super::files::{self, FileError};
use super::seal::{SealError, verify_by_ca};
use super::tuf::wire::{Answer, Query, WireError};

/// Name of the file in a state directory.
pub const FILE_NAME: &str = "statement";

/// Name of the statement in an answer to a metadata question. An answer without it says that the
/// labels and pins are as the node has them.
pub const FILE: &str = "node-statement";

/// Name of the empty file by which an origin says that it knows the question.
pub const ASKED: &str = "node-statement-asked";

/// Question for the statement about a node, part of a [`Query`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementQuestion {
    /// The node. A parent believes it only of a relay.
    pub node: serde_bytes::ByteArray<16>,
    /// [Digest](NodeStatement::digest) of the statement that the node has; `None` without one.
    #[serde(default)]
    pub has: Option<u64>,
}

/// Reason why a statement is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum StatementRefused {
    /// It does not parse, or is about another node.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// It is not signed by the realm's CA.
    #[error("the statement is not signed by the realm")]
    Seal(#[from] SealError),
    /// The answer that should bring it is malformed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It cannot be kept.
    #[error(transparent)]
    File(#[from] FileError),
}

impl StatementQuestion {
    /// Makes the question of `node`, which has a statement with this digest.
    pub fn new(node: NodeId, has: Option<u64>) -> Self {
        Self { node: serde_bytes::ByteArray::new(node.0), has }
    }

    /// The node that the statement is about.
    pub fn node(&self) -> NodeId {
        NodeId(*self.node)
    }

    /// Encodes the question.
    pub fn encode(self) -> Bytes {
        Query { statement: Some(self), ..Query::default() }.encode().into()
    }
}

/// Checks a statement about `node` from the network or a file.
fn open(bytes: &Bytes, node: &NodeId, ca_der: &[u8]) -> Result<NodeStatement, StatementRefused> {
    let signed = SignedStatement::decode(bytes)?;
    if signed.statement.node != *node {
        return Err(StatementError::OtherNode.into());
    }
    verify_by_ca(ca_der, &statement_message(&signed.body), &signed.signature)?;
    Ok(signed.statement)
}

/// Reads the statement that `node` keeps in the state directory `data`, and how long ago a parent
/// was last asked for it. One that is damaged or not the realm's counts as none.
pub fn kept(data: &Path, node: &NodeId, ca_der: &[u8]) -> Option<(NodeStatement, Duration)> {
    let path = data.join(FILE_NAME);
    let bytes = Bytes::from(files::read(&path).ok()??);
    match open(&bytes, node, ca_der) {
        Ok(statement) => {
            let asked = std::fs::metadata(&path).and_then(|meta| meta.modified()).ok()?;
            // A clock that was set back makes the statement old.
            let age = SystemTime::now().duration_since(asked).unwrap_or(Duration::MAX);
            Some((statement, age))
        }
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "the kept statement about this node is not used");
            None
        }
    }
}

/// Takes the answer to a question for the statement about `node`: keeps and returns a newer
/// statement than `has` in the state directory `data`, and remembers that a parent was asked.
/// Blocks: writes a file.
///
/// # Errors
/// [`StatementRefused`]; the statement so far stays.
pub fn take(
    answer: &[u8],
    data: &Path,
    node: &NodeId,
    ca_der: &[u8],
    has: Option<&NodeStatement>,
) -> Result<Option<NodeStatement>, StatementRefused> {
    let answer = Answer::decode(answer)?;
    let file = |wanted: &str| answer.files.iter().find(|(name, _)| name == wanted).map(|(_, bytes)| bytes);
    let path = data.join(FILE_NAME);
    let Some(bytes) = file(FILE) else {
        if has.is_some() && file(ASKED).is_some() {
            let touched = std::fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
            if let Err(error) = touched {
                tracing::debug!(error = %Chain(&error), "the statement is asked for again soon");
            }
        }
        return Ok(None);
    };
    let statement = open(bytes, node, ca_der)?;
    // A relay may hand an earlier one out.
    if has.is_some_and(|has| has.issued > statement.issued) {
        return Ok(None);
    }
    files::write_atomic(&path, bytes, 0o600)?;
    Ok(Some(statement))
}
