//! Waiting for a change that may never come.

use tokio::sync::watch;

/// Waits for the next change; for ever if nothing is watched or the source has ended. A caller that
/// drops the future loses no change.
pub(crate) async fn changed<T>(watched: &mut Option<watch::Receiver<T>>) {
    if let Some(receiver) = watched {
        if receiver.changed().await.is_ok() {
            return;
        }
        *watched = None;
    }
    std::future::pending().await
}

/// Takes the changes so far as seen.
pub(crate) fn seen<T>(watched: &mut Option<watch::Receiver<T>>) {
    if let Some(receiver) = watched {
        receiver.mark_unchanged();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether a change is reported now.
    async fn reports(watched: &mut Option<watch::Receiver<()>>) -> bool {
        tokio::select! {
            biased;
            () = changed(watched) => true,
            () = tokio::task::yield_now() => false,
        }
    }

    #[tokio::test]
    async fn each_change_is_reported_once_unless_it_was_seen() {
        let (sender, receiver) = watch::channel(());
        let mut watched = Some(receiver);
        assert!(!reports(&mut watched).await);
        sender.send_replace(());
        // A caller that gives up before it looks loses nothing.
        drop(changed(&mut watched));
        assert!(reports(&mut watched).await);
        assert!(!reports(&mut watched).await);
        sender.send_replace(());
        seen(&mut watched);
        assert!(!reports(&mut watched).await);
        sender.send_replace(());
        drop(sender);
        assert!(reports(&mut watched).await, "the last change comes before the end of the source");
        assert!(!reports(&mut watched).await && watched.is_none());
        assert!(!reports(&mut None).await);
    }
}
