//! The news stream to a parent: kept open, and passed to the next parent when one is lost.

use std::sync::Arc;
use std::time::Duration;

use distd_core::error::Chain;
use distd_core::proto::close::CloseCode;
use distd_core::swarm::NewsFrom;

use super::{NewsEvent, Newsroom, Passed};
use crate::net::{Link, LinkError, WireError};
use crate::parents::Parents;
use crate::random;

/// First pause after no parent was reached. Doubles up to [`AGAIN_MAX`].
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Pause after all parents that answer are busy, or of an earlier version: the node polls.
const REFUSED: Duration = Duration::from_secs(15 * 60);

/// Time after which a node that listens to a farther parent tries the nearer ones again.
const NEARER: Duration = Duration::from_secs(5 * 60);

/// Time in which a parent accepts the stream.
const ACCEPTED: Duration = Duration::from_secs(20);

/// End of listening to one parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The parent is not there.
    Unreachable,
    /// The parent takes no news stream.
    Refused,
    /// The stream was open, and has ended.
    Lost,
}

/// Listens to the nearest parent that answers, and passes notices to it, for as long as the
/// returned future is polled. `room` has the news.
pub async fn follow(parents: Arc<Parents>, room: Arc<Newsroom>) {
    let mut pause = AGAIN;
    loop {
        let mut refused = false;
        let mut lost = false;
        for index in 0..parents.len() {
            match listen(&parents, index, &room).await {
                End::Unreachable => {}
                End::Refused => refused = true,
                End::Lost => {
                    lost = true;
                    break;
                }
            }
        }
        room.set_parent(false);
        let wait = match (lost, refused) {
            (true, _) => {
                pause = AGAIN;
                AGAIN
            }
            (false, true) => REFUSED,
            (false, false) => {
                let now = pause;
                pause = (pause * 2).min(AGAIN_MAX);
                now
            }
        };
        // Jitter keeps the nodes of a relay that starts again from coming in one instant.
        tokio::time::sleep(wait.mul_f64(0.5 + random::fraction())).await;
    }
}

async fn listen(parents: &Parents, index: usize, room: &Arc<Newsroom>) -> End {
    let link = match parents.link(index).await {
        Ok(link) => link,
        Err(error) => {
            tracing::debug!(parent = parents.address(index), error = %Chain(&error), "no news from a parent");
            return End::Unreachable;
        }
    };
    let mut accepted = false;
    let hearing = hear(&link, room, &mut accepted);
    let ended = match index {
        0 => hearing.await,
        _ => match tokio::time::timeout(NEARER, hearing).await {
            Ok(ended) => ended,
            // A nearer parent may be back.
            Err(_) => Ok(()),
        },
    };
    if let Err(error) = &ended {
        tracing::debug!(parent = parents.address(index), error = %Chain(error), "no more news from a parent");
    }
    let end = match (accepted, ended) {
        (true, _) => End::Lost,
        (false, Err(LinkError::Wire(_, WireError::Closed(_)))) => End::Refused,
        (false, _) => End::Unreachable,
    };
    // A connection that nothing else uses is not kept alive in vain: a count of two is the list's
    // and this one.
    if Arc::strong_count(&link) <= 2 && end == End::Refused {
        link.close(CloseCode::Done);
    }
    end
}

/// Exchanges news on one connection until it ends.
async fn hear(link: &Arc<Link>, room: &Arc<Newsroom>, accepted: &mut bool) -> Result<(), LinkError> {
    let mut news = link.open_news().await?;
    let (mut passed, mut changes) = (Passed::default(), room.changes());
    let wire = |error| link.wire(error);
    loop {
        if *accepted {
            changes.mark_unchanged();
            news.pass(&mut passed, room).await.map_err(wire)?;
        }
        let event = tokio::select! {
            event = news.next() => event.map_err(wire)?,
            // The sender lives as long as `room`.
            _ = changes.changed(), if *accepted => continue,
            () = tokio::time::sleep(ACCEPTED), if !*accepted => return Err(wire(WireError::Stalled(ACCEPTED))),
        };
        if !*accepted {
            *accepted = true;
            room.set_parent(true);
            tracing::info!(parent = link.address(), "listening for news");
        }
        match event {
            Some(NewsEvent::Halt(bytes)) => match room.take(&bytes, NewsFrom::Parent) {
                Ok((signed, judged)) => passed.note(&signed.notice, judged),
                Err(error) => {
                    tracing::warn!(parent = link.address(), error = %Chain(&error), "a parent sent a notice that is not used");
                    return Ok(());
                }
            },
            Some(NewsEvent::Newer(0)) => {}
            Some(NewsEvent::Newer(version)) => room.hear(version),
            None => return Ok(()),
        }
    }
}
