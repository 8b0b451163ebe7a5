//! TUF metadata through whichever parent answers first.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use distd_peer::parents::Parents;
use distd_peer::trust::tuf::{MetadataSource, SourceError};

/// Asks the parents in order.
pub(super) struct ParentMetadata(pub(super) Arc<Parents>);

#[async_trait]
impl MetadataSource for ParentMetadata {
    async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>, SourceError> {
        let query = Bytes::from(query);
        let mut last: Option<SourceError> = None;
        for index in 0..self.0.len() {
            let answer = async {
                let link = self.0.link(index).await?;
                Ok::<_, SourceError>(link.metadata(query.clone()).await?)
            };
            match answer.await {
                Ok(answer) => return Ok(answer.to_vec()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| "no parent to ask: name one with --parent HOST:PORT".into()))
    }
}
