//! Downloads of files whose hash is known, each once however many ask for it.
//!
//! All who want a file read it while it arrives. The last 64 KiB wait until the hash of the whole
//! is right, so that a caller never gets all of a file that is wrong: its response ends before its
//! length.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;

use async_trait::async_trait;
use aws_lc_rs::digest;
use bytes::Bytes;
use http::StatusCode;
use tokio::sync::watch;

use super::index::Sum;
use super::mirror::{Answer, MirrorError};
use super::store::{Partial, Stored, finish, read_at};
use crate::gateway::FileBytes;

/// Bytes at the end of a file that wait for its hash.
pub(super) const HELD_BACK: u64 = 64 << 10;

/// Reason why a download failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server answered with this status.
    #[error("the mirror answered with status {0}")]
    Status(StatusCode),
    /// The bytes are not those of the file.
    #[error("{0}")]
    WrongBytes(String),
    /// The server cannot be reached, or broke off.
    #[error("{0}")]
    Unreachable(String),
    /// The proxy may not ask the server.
    #[error("{0}")]
    Refused(String),
    /// The disk takes no more.
    #[error("the disk takes no more")]
    Disk,
}

impl From<MirrorError> for Failure {
    fn from(error: MirrorError) -> Self {
        let text = distd_core::error::Chain(&error).to_string();
        if error.is_refusal() { Self::Refused(text) } else { Self::Unreachable(text) }
    }
}

/// How far a download is.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// Whether a server sends the file.
    is_begun: bool,
    /// Bytes that were written.
    written: u64,
    /// Its end.
    end: Option<Result<Arc<Stored>, Failure>>,
}

/// A download under way.
#[derive(Debug)]
pub struct Flight {
    /// Sum of the file.
    pub sum: Sum,
    /// `Last-Modified`, unix seconds.
    pub modified: OnceLock<u64>,
    file: File,
    progress: watch::Sender<Progress>,
}

impl Flight {
    pub(super) fn new(sum: Sum, partial: &Partial) -> io::Result<Arc<Self>> {
        let (file, progress) = (partial.handle()?, watch::Sender::new(Progress::default()));
        Ok(Arc::new(Self { sum, modified: OnceLock::new(), file, progress }))
    }

    /// Waits until bytes come, or until the download failed.
    pub(super) async fn begun(&self) -> Result<(), Failure> {
        let mut progress = self.progress.subscribe();
        let begun = progress.wait_for(|progress| progress.is_begun || progress.end.is_some()).await;
        match begun {
            Ok(progress) => match &progress.end {
                Some(Err(failure)) => Err(failure.clone()),
                _ => Ok(()),
            },
            Err(_) => Err(Failure::Unreachable("the download was given up".into())),
        }
    }

    /// Waits for the end.
    pub(super) async fn ended(&self) -> Result<Arc<Stored>, Failure> {
        let mut progress = self.progress.subscribe();
        let given_up = Err(Failure::Unreachable("the download was given up".into()));
        match progress.wait_for(|progress| progress.end.is_some()).await {
            Ok(progress) => progress.end.clone().unwrap_or(given_up),
            Err(_) => given_up,
        }
    }

    pub(super) fn end(&self, end: Result<Arc<Stored>, Failure>) {
        self.progress.send_modify(|progress| progress.end = Some(end));
    }

    /// Whether the download is over.
    pub(super) fn is_over(&self) -> bool {
        self.progress.borrow().end.is_some()
    }
}

#[async_trait]
impl FileBytes for Flight {
    async fn read(&self, range: Range<u64>, _part: bool) -> io::Result<Bytes> {
        let end = self.sum.bytes - HELD_BACK.min(self.sum.bytes);
        let mut progress = self.progress.subscribe();
        let there = |progress: &Progress| match &progress.end {
            Some(Ok(_)) => self.sum.bytes,
            _ => progress.written.min(end),
        };
        let readable = {
            let state = progress.wait_for(|state| state.end.is_some() || there(state) > range.start);
            let state = state.await.map_err(|_| io::Error::other("the download was given up"))?;
            if let Some(Err(failure)) = &state.end {
                return Err(io::Error::other(failure.clone()));
            }
            there(&state)
        };
        let (file, range) = (self.file.try_clone()?, range.start..range.end.min(readable));
        tokio::task::spawn_blocking(move || read_at(&file, range)).await.map_err(io::Error::other)?
    }

    async fn lengths(&self) -> io::Result<Vec<u32>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writer of a download: it hashes and writes what servers send, one after the other.
pub(super) struct Writer {
    flight: Arc<Flight>,
    context: Option<digest::Context>,
    file: Option<File>,
    pub(super) written: u64,
}

impl Writer {
    pub(super) fn new(flight: &Arc<Flight>, partial: &Partial) -> io::Result<Self> {
        let file = Some(partial.handle()?);
        let context = Some(digest::Context::new(&digest::SHA256));
        Ok(Self { flight: flight.clone(), context, file, written: 0 })
    }

    /// Writes the body of an answer, whose first byte has the number `from` in the file. Bytes that
    /// were written before are skipped.
    ///
    /// # Errors
    /// [`Failure`]; what came until then is written.
    pub(super) async fn take(&mut self, answer: &mut Answer, from: u64) -> Result<(), Failure> {
        let mut skip = self.written.saturating_sub(from);
        while let Some(mut bytes) = answer.next().await? {
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            let _ = bytes.split_to(usize::try_from(skipped).unwrap_or(bytes.len()));
            if bytes.is_empty() {
                continue;
            }
            if bytes.len() as u64 > self.flight.sum.bytes - self.written {
                return Err(Failure::WrongBytes("the mirror sends more than the index lists".into()));
            }
            self.write(bytes).await?;
        }
        if self.written < self.flight.sum.bytes {
            return Err(Failure::Unreachable("the mirror sent less than it said".into()));
        }
        Ok(())
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let (Some(mut context), Some(mut file)) = (self.context.take(), self.file.take()) else {
            return Err(Failure::Disk);
        };
        let length = bytes.len() as u64;
        let work = tokio::task::spawn_blocking(move || {
            context.update(&bytes);
            file.write_all(&bytes).map(|()| (context, file))
        });
        let Ok(Ok((context, file))) = work.await else { return Err(Failure::Disk) };
        (self.context, self.file) = (Some(context), Some(file));
        self.written += length;
        let written = self.written;
        self.flight.progress.send_modify(|progress| {
            progress.is_begun = true;
            progress.written = written;
        });
        Ok(())
    }

    /// Whether the bytes are those of the file.
    pub(super) fn is_right(&mut self) -> bool {
        self.written == self.flight.sum.bytes
            && self.context.take().is_some_and(|context| finish(context) == self.flight.sum.sha256)
    }
}
