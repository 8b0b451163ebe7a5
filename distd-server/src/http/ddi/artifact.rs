//! Artifacts of actions: the whole file or one range of it, read from the store in order.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use distd_core::error::Chain;
use distd_core::fleet::Right;
use futures::stream;
use tokio::sync::mpsc::Receiver;

use super::auth::DdiCaller;
use super::{artifact_of, no_action, open_action};
use crate::db::DdiState;
use crate::http::{ApiError, App, objects};
use crate::origin::ReadBytesError;

/// Sends the artifact of an open action.
pub(super) async fn send(
    State(app): State<Arc<App>>,
    caller: DdiCaller,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let action = open_action(&app, &caller).await?;
    // An action that is called back gets no more bytes.
    if matches!(action.state, DdiState::Confirming | DdiState::Canceling) {
        return Err(no_action());
    }
    let (release, digests, name) = artifact_of(&app, &action).await?;
    if caller.param("file") != name {
        return Err(ApiError::not_found("file of this name in the action"));
    }
    let rights = app.origin.rights_of(&caller.device.node, &[release.manifest]).await?;
    if !rights.first().is_some_and(|found| found.rights.has(Right::Read)) {
        return Err(no_action());
    }
    let etag = format!("\"{}\"", hex::encode(digests.sha256));
    let (status, headers, range) = match objects::select(&headers, &etag, release.bytes) {
        Ok(selected) => selected,
        Err(outside) => return Ok(*outside),
    };
    if method == Method::HEAD {
        return Ok((status, headers).into_response());
    }
    app.origin.ddi_begun(&caller.device, &action).await?;
    let left = range.end - range.start;
    let pieces = app.origin.artifact(release.manifest).await?.in_order(range);
    let sent = Sent { app, action: action.id, pieces, left, unsaved: 0 };
    let body = Body::from_stream(stream::try_unfold(sent, |mut sent| async move {
        Ok::<_, std::io::Error>(sent.next().await?.map(|piece| (piece, sent)))
    }));
    Ok((status, headers, body).into_response())
}

/// A response under way.
struct Sent {
    app: Arc<App>,
    action: u64,
    pieces: Receiver<Result<Bytes, ReadBytesError>>,
    /// Bytes still to send.
    left: u64,
    /// Bytes that are sent and not counted in the action.
    unsaved: u64,
}

impl Sent {
    async fn next(&mut self) -> Result<Option<Bytes>, std::io::Error> {
        match self.pieces.recv().await {
            Some(Ok(piece)) => {
                self.left = self.left.saturating_sub(piece.len() as u64);
                self.unsaved += piece.len() as u64;
                if self.left == 0 {
                    // Before the last bytes, so that the device's next word finds them counted.
                    let bytes = std::mem::take(&mut self.unsaved);
                    let counted = self.app.origin.db().add_ddi_bytes(self.action, bytes).await;
                    counted.unwrap_or_else(|error| {
                        tracing::warn!(error = %Chain(&error), "bytes of an action were not counted");
                    });
                }
                Ok(Some(piece))
            }
            Some(Err(error)) => {
                tracing::error!(action = self.action, error = %Chain(&error), "an artifact could not be read");
                Err(std::io::Error::other("the store failed"))
            }
            None => Ok(None),
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if self.unsaved > 0 && tokio::runtime::Handle::try_current().is_ok() {
            let (app, action, bytes) = (self.app.clone(), self.action, self.unsaved);
            self.app.tasks.spawn(async move {
                // The number is for operators alone.
                let _ = app.origin.db().add_ddi_bytes(action, bytes).await;
            });
        }
    }
}
