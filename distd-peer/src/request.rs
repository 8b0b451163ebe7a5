//! Ids of requests. A device gives an id to each pull, and to each look of its agent; the question
//! for metadata carries it to the relay and the origin, and all of them log it. An id proves
//! nothing and decides nothing.

use std::future::Future;
use std::sync::Arc;

use crate::random;

/// Target of the log lines about questions, for filters: `DISTD_LOG=warn,distd::request=debug`.
pub const LOG_TARGET: &str = "distd::request";

/// Longest id that is logged, bytes.
const ID_BYTES_MAX: usize = 64;

tokio::task_local! {
    static ID: Arc<str>;
}

/// Fresh id.
pub fn fresh() -> Arc<str> {
    hex::encode(random::bytes::<8>()).into()
}

/// Runs `work` under an id.
pub fn under<F: Future>(id: Arc<str>, work: F) -> impl Future<Output = F::Output> {
    ID.scope(id, work)
}

/// Id of the work of the current task, or a fresh one.
pub(crate) fn current() -> Arc<str> {
    ID.try_with(Arc::clone).unwrap_or_else(|_| fresh())
}

/// The id that a peer sent, if it is one: a peer may send any text, and a log shows none of it.
pub fn plain(id: Option<&str>) -> Option<&str> {
    id.filter(|id| {
        (1..=ID_BYTES_MAX).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_can_write_no_text_into_a_log() {
        for id in ["0123456789abcdef", "a-b_c.D", &"x".repeat(64)] {
            assert_eq!(plain(Some(id)), Some(id));
        }
        for id in ["", "a b", "a\nb", "a\u{1b}[2J", "\u{fc}", &"x".repeat(65)] {
            assert_eq!(plain(Some(id)), None, "{id:?}");
        }
        assert_eq!(plain(None), None);
        assert_eq!(plain(Some(&fresh())).map(str::len), Some(16));
    }

    #[tokio::test]
    async fn work_has_the_id_that_it_runs_under() {
        let id = fresh();
        assert_eq!(under(id.clone(), async { current() }).await, id);
        assert_ne!(current(), current(), "work without one has a fresh one each time");
    }
}
