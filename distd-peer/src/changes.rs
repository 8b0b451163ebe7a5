//! Waiting for a change that may never come.

use tokio::sync::watch;

/// Waits for the next change; for ever if nothing is watched or the source has ended. A caller that
/// drops the future loses no change.
pub(crate) async fn changed(watched: &mut Option<watch::Receiver<()>>) {
    if let Some(receiver) = watched {
        if receiver.changed().await.is_ok() {
            return;
        }
        *watched = None;
    }
    std::future::pending().await
}

/// Takes the changes so far as seen.
pub(crate) fn seen(watched: &mut Option<watch::Receiver<()>>) {
    if let Some(receiver) = watched {
        receiver.mark_unchanged();
    }
}
