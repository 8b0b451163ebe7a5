//! TUF metadata from the first parent that answers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use distd_peer::parents::Parents;
use distd_peer::trust::tuf::{MetadataSource, SourceError};

/// Number of times that a question is repeated to a parent whose connection was lost meanwhile. A
/// restart of the parent takes a second or two.
pub(super) const LOST_MAX: u32 = 5;

/// Returns the pause before the next repetition.
pub(super) fn pause_after(lost: u32) -> Duration {
    Duration::from_millis(100 << lost.min(5))
}

/// Source of metadata that asks the parents in order, beginning with index `first`.
pub(super) struct ParentMetadata {
    pub(super) parents: Arc<Parents>,
    pub(super) first: usize,
}

impl ParentMetadata {
    async fn ask(&self, index: usize, query: &Bytes) -> Result<Vec<u8>, SourceError> {
        for lost in 0.. {
            let link = self.parents.link(index).await?;
            match link.metadata(query.clone()).await {
                Ok(answer) => return Ok(answer.to_vec()),
                Err(_) if lost < LOST_MAX && link.is_closed() => tokio::time::sleep(pause_after(lost)).await,
                Err(error) => return Err(error.into()),
            }
        }
        unreachable!("the loop ends by returning")
    }
}

#[async_trait]
impl MetadataSource for ParentMetadata {
    async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>, SourceError> {
        let query = Bytes::from(query);
        let mut last: Option<SourceError> = None;
        for index in self.first..self.parents.len() {
            match self.ask(index, &query).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| "no parent to ask: name one with --parent HOST:PORT".into()))
    }
}
