//! One release of a gateway: its state, and its bytes while and after it arrives.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use distd_peer::gateway::{FileBytes, Refusal};
use tokio::sync::watch;

use crate::pull::Arriving;

/// Most bytes read from a whole file at once.
const READ_BYTES: u64 = 128 << 10;

/// Time that a caller who asked for a part waits for the pull to get there by itself.
const PART_WAITS: Duration = Duration::from_millis(200);

/// The same for a caller who asked for the whole file: some updaters give up after a minute
/// without bytes. The pull brings the bytes cheaper, in its own order.
const WHOLE_WAITS: Duration = Duration::from_secs(20);

/// State of a release.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// The pull has not begun to write.
    Preparing,
    /// Bytes arrive.
    Arriving(Arc<Arriving>),
    /// The file is whole, and was verified.
    Whole(Arc<WholeFile>),
    /// The pull failed.
    Failed(Box<Refusal>),
}

/// A release that is whole.
#[derive(Debug)]
pub(super) struct WholeFile {
    pub(super) file: File,
    /// Lengths of its chunks, in its order.
    pub(super) lengths: Vec<u32>,
}

/// The bytes of a release, in whatever state it is.
pub(super) struct EntryFile(pub(super) watch::Receiver<State>);

#[async_trait]
impl FileBytes for EntryFile {
    async fn read(&self, range: Range<u64>, part: bool) -> io::Result<Bytes> {
        let mut state = self.0.clone();
        loop {
            let now = state.borrow_and_update().clone();
            match now {
                State::Preparing => {}
                State::Failed(refusal) => return Err(io::Error::other(refusal.message)),
                State::Whole(whole) => {
                    let reading = move || read_whole(&whole.file, &range);
                    return tokio::task::spawn_blocking(reading).await.map_err(io::Error::other)?;
                }
                State::Arriving(arriving) => {
                    tokio::select! {
                        read = read_arriving(&arriving, &range, part) => {
                            if let Some(bytes) = read? {
                                return Ok(bytes);
                            }
                            // The bytes on the disk are not those of the chunk. The pull notices
                            // that at its end and gets the chunk again.
                        }
                        _ = state.changed() => continue,
                    }
                }
            }
            if state.changed().await.is_err() {
                return Err(io::Error::other("the gateway stops"));
            }
        }
    }

    async fn lengths(&self) -> io::Result<Vec<u32>> {
        Ok(self.whole().await?.lengths.clone())
    }
}

impl EntryFile {
    async fn whole(&self) -> io::Result<Arc<WholeFile>> {
        let mut state = self.0.clone();
        let ended = state.wait_for(|state| matches!(state, State::Whole(_) | State::Failed(_))).await;
        match ended.as_deref() {
            Ok(State::Whole(whole)) => Ok(whole.clone()),
            Ok(State::Failed(refusal)) => Err(io::Error::other(refusal.message.clone())),
            _ => Err(io::Error::other("the gateway stops")),
        }
    }
}

/// Reads bytes that are in place; waits for the first of them.
async fn read_arriving(
    arriving: &Arc<Arriving>,
    range: &Range<u64>,
    part: bool,
) -> io::Result<Option<Bytes>> {
    let patience = if part { PART_WAITS } else { WHOLE_WAITS };
    while let Err(_too_long) = tokio::time::timeout(patience, arriving.wait(range)).await {
        arriving.hurry(range);
    }
    arriving.read(range.clone()).await
}

fn read_whole(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let len = (range.end - range.start).min(READ_BYTES);
    let mut buffer = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut buffer, range.start)?;
    Ok(buffer.into())
}
