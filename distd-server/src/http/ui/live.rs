//! News for open pages: an event each time that something has changed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use distd_core::error::Chain;
use distd_peer::clock::unix_now;
use futures::StreamExt;
use futures::stream::unfold;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::{ApiError, App};
use super::page::Stop;
use super::session::Visitor;
use crate::origin::{Origin, signed};

/// Time between two looks for changes while a page is open.
const LOOK: Duration = Duration::from_secs(2);

/// Most pages that are told of changes at once. Others are read again by hand.
const STREAMS_MAX: usize = 200;

/// Most of these with one API token.
const STREAMS_OF_TOKEN: usize = 20;

/// Pages that read the rows of a whole fleet at once. The database has few connections.
const TURNS: usize = 2;

/// Longest time of one stream. The browser then asks again, so that a session that has ended is
/// noticed.
const STREAM: Duration = Duration::from_secs(600);

/// Pages that are told of changes.
pub(in super::super) struct Live {
    changes: Mutex<Option<Changes>>,
    /// Number of streams of each API token.
    streams: Arc<Mutex<HashMap<[u8; 32], usize>>>,
    /// Turns of pages that read the rows of a whole fleet.
    turns: Semaphore,
    /// Signalled when sums were made anew after a page had shown older ones.
    news: Arc<Notify>,
    /// Ends all streams.
    stop: CancellationToken,
}

/// The task that looks for changes, and the number of changes that it saw.
struct Changes {
    number: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            changes: Mutex::default(),
            streams: Arc::default(),
            turns: Semaphore::new(TURNS),
            news: Arc::default(),
            stop: CancellationToken::new(),
        }
    }
}

impl Live {
    /// Ends all streams, now and from now on.
    pub(in super::super) fn end(&self) {
        self.stop.cancel();
    }

    /// Waits for the turn of a page that reads the rows of a whole fleet, so that many open pages
    /// leave the database to others.
    pub(super) async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("the semaphore is never closed")
    }

    /// Tells open pages that there is something newer than what they show.
    pub(super) fn note_news(&self) {
        self.news.notify_one();
    }

    /// Number of changes; one task for all pages keeps it.
    fn changes(&self, origin: &Arc<Origin>) -> watch::Receiver<u64> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(changes) = changes.as_ref().filter(|changes| !changes.task.is_finished()) {
            return changes.number.clone();
        }
        let (tell, number) = watch::channel(0);
        let task = tokio::spawn(look(origin.clone(), self.news.clone(), tell));
        *changes = Some(Changes { number: number.clone(), task });
        number
    }
}

/// Looks for changes until no page is open any more. One receiver is that of [`Changes`] itself.
async fn look(origin: Arc<Origin>, news: Arc<Notify>, tell: watch::Sender<u64>) {
    let mut last = None;
    let mut looks_alone = 0;
    // The first page has its receiver only after a moment.
    loop {
        looks_alone = if tell.receiver_count() > 1 { 0 } else { looks_alone + 1 };
        if looks_alone > 3 {
            return;
        }
        match origin.db().web_stamp().await {
            Ok(stamp) => {
                if last.is_some_and(|last| last != stamp) {
                    tell.send_modify(|number| *number += 1);
                }
                let mut seen = stamp;
                // More reports may come in this very second, which change no number: the next look
                // takes it for changed.
                if i64::try_from(seen.reports).is_ok_and(|reports| reports >= signed(unix_now())) {
                    seen.reports = 0;
                }
                last = Some(seen);
            }
            Err(error) => tracing::warn!(error = %Chain(&error), "cannot look for changes for the web page"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = news.notified() => tell.send_modify(|number| *number += 1),
        }
    }
}

/// Place among the streams of a token, given back at the end.
struct Place {
    streams: Arc<Mutex<HashMap<[u8; 32], usize>>>,
    token: [u8; 32],
}

impl Place {
    fn take(live: &Live, token: [u8; 32]) -> Option<Self> {
        let mut streams = live.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let own = streams.get(&token).copied().unwrap_or(0);
        if own >= STREAMS_OF_TOKEN || streams.values().sum::<usize>() >= STREAMS_MAX {
            return None;
        }
        streams.insert(token, own + 1);
        Some(Self { streams: live.streams.clone(), token })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = streams.get_mut(&self.token) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.token);
            }
        }
    }
}

/// One page's stream.
struct Stream {
    app: Arc<App>,
    visitor: Visitor,
    changes: watch::Receiver<u64>,
    stop: CancellationToken,
    ends: tokio::time::Instant,
    _place: Place,
}

/// Sends an event `change` each time that something has changed. A comment comes first, without
/// which the answer would begin only with the first change.
pub(super) async fn events(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Response, Stop> {
    let place = Place::take(&app.live, visitor.token());
    let place = place.ok_or_else(|| ApiError::busy("too many pages are open"))?;
    let mut changes = app.live.changes(&app.origin);
    changes.mark_unchanged();
    let stream = Stream {
        changes,
        visitor,
        stop: app.live.stop.clone(),
        ends: tokio::time::Instant::now() + STREAM,
        _place: place,
        app,
    };
    let events = unfold(stream, |mut stream| async move {
        tokio::select! {
            () = stream.stop.cancelled() => None,
            () = tokio::time::sleep_until(stream.ends) => None,
            changed = stream.changes.changed() => {
                changed.ok()?;
                if !stream.visitor.goes_on(&stream.app).await {
                    return None;
                }
                // A browser drops an event without data.
                let event = Event::default().event("change").data("something");
                Some((Ok::<_, Infallible>(event), stream))
            }
        }
    });
    let first = futures::stream::once(async { Ok(Event::default().comment("changes follow")) });
    let events = first.chain(events);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response())
}
