//! Orders of somebody at the device to its agent: to look, to begin now, to put updates off, to
//! take the device back. They come through a socket in the state directory, which only the agent's
//! user and root may use.
//!
//! A connection carries one order and its answers, each a JSON object on a line: the state of the
//! device whenever it changes, then the end. An order that would wait for an attempt under way is
//! refused at once, unless it asks for just that attempt.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use distd_core::error::Chain;
use distd_core::fleet::report::AttemptState;
use distd_core::names::Name;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::status::Status;
use crate::failure::{Code, Failure};

/// Name of the socket in the state directory.
const SOCKET: &str = "agent.sock";

/// Longest order, bytes with its line end.
const ORDER_BYTES_MAX: u64 = 4 << 10;

/// Longest answer, bytes with its line end. The state of a device has 1 to 2 kB.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Connections that are served at once.
const CONNECTIONS_MAX: usize = 8;

/// Time in which an order must have come.
const READ: Duration = Duration::from_secs(10);

/// Time in which one answer must be taken.
const WRITE: Duration = Duration::from_secs(10);

/// Pause after a connection could not be accepted, since the reason may be a lack of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// Order of somebody at the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Look at the channel, and begin nothing.
    Check {},
    /// Look at the channel, and begin what the device is to run without its own windows, its hook
    /// `consent` and what was put off.
    Now {
        /// Whether a release that failed here, or that the device was taken back from, is tried
        /// again.
        again: bool,
    },
    /// Begin nothing for this number of seconds; 0 ends that.
    Defer {
        /// Seconds.
        seconds: u64,
    },
    /// Go back to the release before the one that runs.
    RollBack {
        /// The release to go back to; `None` for the one before.
        to: Option<Name>,
    },
}

/// Answer to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Answer {
    /// The state of the device has changed; more answers follow.
    State {
        /// The state.
        status: Box<Status>,
    },
    /// The order was carried out as far as the device may. The last answer.
    Done {
        /// The state after it.
        status: Box<Status>,
    },
    /// The order was not carried out. The last answer.
    Refused {
        /// Reason.
        reason: String,
        /// Next step for the user.
        next: String,
    },
}

impl Answer {
    pub(super) fn refused(reason: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into(), next: next.into() }
    }
}

/// An order with the way back for its last answer.
pub(super) struct Given {
    pub(super) order: Order,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// The agent's end of the socket.
pub(super) struct Orders {
    given: mpsc::Receiver<Given>,
    /// Keeps `given` open on a device without a socket.
    _open: mpsc::Sender<Given>,
    serving: Option<tokio::task::JoinHandle<()>>,
    path: PathBuf,
}

impl Orders {
    /// Listens in the state directory `data`. `seen` is the state of the device. A device whose
    /// socket cannot be made works without it, and its log says so.
    pub(super) fn listen(data: &Path, seen: watch::Receiver<Option<Status>>) -> Self {
        let (open, given) = mpsc::channel(1);
        let path = data.join(SOCKET);
        let serving = match bind(&path) {
            Ok(listener) => Some(tokio::spawn(serve(listener, open.clone(), seen))),
            Err(error) => {
                tracing::warn!(
                    path = %path.display(),
                    error = %Chain(&error),
                    "no socket for orders: distd update and distd rollback do not work on this device"
                );
                None
            }
        };
        Self { given, _open: open, serving, path }
    }

    /// Waits for the next order.
    pub(super) async fn next(&mut self) -> Given {
        match self.given.recv().await {
            Some(given) => given,
            // One sender lives as long as this.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            // The next agent removes it where this fails.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds the socket, in place of one that an agent left which has ended. The lock of the follower
/// says that no other agent listens.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            std::fs::remove_file(path)?
        }
        Ok(_) => return Err(io::Error::other("there is something else of this name; remove it")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    // The directory is the agent's own as well; each connection is asked for its user.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(listener: UnixListener, orders: mpsc::Sender<Given>, seen: watch::Receiver<Option<Status>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (orders, seen) = (orders.clone(), seen.clone());
                tokio::spawn(async move {
                    if let Err(error) = one(stream, orders, seen).await {
                        tracing::debug!(error = %Chain(&error), "a connection for an order ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "no connection for orders");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Whether the other end is this user or root.
fn is_ours(stream: &UnixStream) -> io::Result<bool> {
    let user = stream.peer_cred()?.uid();
    Ok(user == 0 || user == rustix::process::geteuid().as_raw())
}

/// Serves one connection.
async fn one(
    mut stream: UnixStream,
    orders: mpsc::Sender<Given>,
    mut seen: watch::Receiver<Option<Status>>,
) -> io::Result<()> {
    if !is_ours(&stream)? {
        let refused = Answer::refused(
            "only the user of the agent and root give orders to it",
            "run the command as that user",
        );
        return say(&mut stream, &refused).await;
    }
    let order = match tokio::time::timeout(READ, read_order(&mut stream)).await {
        Ok(Ok(order)) => order,
        Ok(Err(error)) => {
            let reason = format!("the agent does not know the order: {error}");
            return say(&mut stream, &Answer::refused(reason, "restart the agent after an update of distd"))
                .await;
        }
        Err(_) => return Ok(()),
    };
    let now = seen.borrow_and_update().clone();
    if let Some(last) = now.and_then(|status| while_under_way(&order, &status)) {
        return say(&mut stream, &last).await;
    }
    let (answer, mut answered) = oneshot::channel();
    let given = Given { order: order.clone(), answer };
    let mut sending = std::pin::pin!(orders.send(given));
    let mut is_sent = false;
    loop {
        tokio::select! {
            // The step takes an order when it does nothing else.
            sent = &mut sending, if !is_sent => match sent {
                Ok(()) => is_sent = true,
                Err(_) => return Ok(()),
            },
            last = &mut answered => {
                let stopped = || Answer::refused("the agent was told to stop", "run the command again when it runs");
                return say(&mut stream, &last.unwrap_or_else(|_| stopped())).await;
            }
            changed = seen.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let status = seen.borrow_and_update().clone();
                let Some(status) = status else { continue };
                if let Some(last) = while_under_way(&order, &status) {
                    return say(&mut stream, &last).await;
                }
                say(&mut stream, &Answer::State { status: Box::new(status) }).await?;
            }
        }
    }
}

/// Last answer to an order that does not wait for the attempt under way; `None` when it waits, or
/// there is no attempt.
fn while_under_way(order: &Order, status: &Status) -> Option<Answer> {
    let attempt = status.under_way()?;
    let under_way = || format!("an attempt at {} is under way: {}", attempt.version, attempt.state.as_str());
    match order {
        Order::Now { .. } => None,
        Order::Check {} => Some(Answer::Done { status: Box::new(status.clone()) }),
        Order::Defer { .. } => Some(Answer::refused(
            under_way(),
            "what has begun is not put off; an operator can pause the rollout: distd rollout pause",
        )),
        // The check may take minutes, and then the device has gone back by itself or can be told.
        Order::RollBack { .. } if attempt.state == AttemptState::Checking => None,
        Order::RollBack { .. } => Some(Answer::refused(
            under_way(),
            "wait for its end: distd status; or let an operator halt the rollout: distd rollout halt",
        )),
    }
}

async fn read_order(stream: &mut UnixStream) -> io::Result<Order> {
    let mut line = Vec::new();
    BufReader::new(&mut *stream).take(ORDER_BYTES_MAX).read_until(b'\n', &mut line).await?;
    serde_json::from_slice(&line).map_err(io::Error::other)
}

async fn say(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer).map_err(io::Error::other)?;
    line.push(b'\n');
    tokio::time::timeout(WRITE, stream.write_all(&line)).await?
}

/// Gives an order to the agent whose state directory is `data`; returns the state of the device
/// after it. `on_state` gets each state on the way.
///
/// # Errors
/// Failures with [`Code::Local`] when no agent listens, [`Code::Conflict`] when it refuses.
pub async fn give_order(
    data: &Path,
    order: &Order,
    mut on_state: impl FnMut(&Status),
) -> anyhow::Result<Status> {
    let no_agent = |error: io::Error| {
        let next = match error.kind() {
            io::ErrorKind::PermissionDenied => "run the command as the user of the agent",
            _ => {
                "start an agent that follows a channel: distd agent --follow PRODUCT:CHANNEL; name its state directory with --data"
            }
        };
        let error =
            anyhow::Error::new(error).context(format!("the agent of {} cannot be reached", data.display()));
        Failure::new(Code::Local, error).next(next)
    };
    let broken = |error: io::Error| {
        let error = anyhow::Error::new(error).context("the agent's answer is damaged");
        Failure::new(Code::Local, error).next("look at the agent's log, and run the command again")
    };
    let mut stream = UnixStream::connect(data.join(SOCKET)).await.map_err(no_agent)?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(broken)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        (&mut reader).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line).await.map_err(broken)?;
        if line.is_empty() {
            let error = anyhow!("the agent ended before it answered");
            return Err(Failure::new(Code::Local, error).next("see what it did: distd status").into());
        }
        match serde_json::from_slice(&line).map_err(|error| broken(error.into()))? {
            Answer::State { status } => on_state(&status),
            Answer::Done { status } => return Ok(*status),
            Answer::Refused { reason, next } => {
                return Err(Failure::new(Code::Conflict, anyhow!(reason)).next(next).into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use distd_core::fleet::report::{Attempt, SourceBytes};

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn status(state: Option<AttemptState>) -> Status {
        let attempt = state.map(|state| Attempt {
            rollout: None,
            product: name("os"),
            version: name("2"),
            number: 1,
            state,
            failure: None,
            began: 1,
            seconds: 2,
            bytes: SourceBytes::default(),
        });
        Status {
            product: name("os"),
            channel: name("stable"),
            version: Some(name("1")),
            slot: None,
            wanted: Some(name("2")),
            held: None,
            attempt,
            going_back: false,
            looked: Some(3),
            error: None,
            written: 4,
        }
    }

    #[tokio::test]
    async fn an_order_gets_the_states_on_the_way_and_its_end() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (state, seen) = watch::channel(Some(status(None)));
        let mut orders = Orders::listen(dir.path(), seen);
        let mode = std::fs::metadata(dir.path().join(SOCKET)).expect("the socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let agent = async {
            let given = orders.next().await;
            assert_eq!(given.order, Order::Now { again: true });
            state.send_replace(Some(status(Some(AttemptState::Fetching))));
            tokio::task::yield_now().await;
            let done = Answer::Done { status: Box::new(status(Some(AttemptState::Succeeded))) };
            given.answer.send(done).expect("somebody waits");
        };
        let mut states = Vec::new();
        let order = Order::Now { again: true };
        let (end, ()) = tokio::join!(
            give_order(dir.path(), &order, |status| states.push(status.attempt.as_ref().map(|a| a.state))),
            agent
        );
        assert_eq!(end.expect("done"), status(Some(AttemptState::Succeeded)));
        assert!(states.iter().all(|state| *state == Some(AttemptState::Fetching)), "{states:?}");
        drop(orders);
        let error = give_order(dir.path(), &order, |_| {}).await.expect_err("no agent");
        assert_eq!(crate::failure::code_of(&error), Code::Local);
    }

    #[tokio::test]
    async fn an_attempt_under_way_answers_what_does_not_wait_for_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (_state, seen) = watch::channel(Some(status(Some(AttemptState::Fetching))));
        let _orders = Orders::listen(dir.path(), seen);
        let check = give_order(dir.path(), &Order::Check {}, |_| {}).await.expect("answered");
        assert_eq!(check, status(Some(AttemptState::Fetching)));
        for order in [Order::Defer { seconds: 60 }, Order::RollBack { to: None }] {
            let error = give_order(dir.path(), &order, |_| {}).await.expect_err("refused");
            assert_eq!(crate::failure::code_of(&error), Code::Conflict);
            assert!(format!("{error:#}").contains("under way"), "{error:#}");
        }
    }

    #[tokio::test]
    async fn an_order_that_is_none_is_refused_and_the_next_one_is_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (_state, seen) = watch::channel(Some(status(Some(AttemptState::Fetching))));
        let _orders = Orders::listen(dir.path(), seen);
        let long = [b'{'; 2 * ORDER_BYTES_MAX as usize];
        for bytes in [&b"{\"order\":\"format\"}\n"[..], b"{\"order\":\"check\",\"x\":1}\n", b"\n", &long] {
            let mut stream = UnixStream::connect(dir.path().join(SOCKET)).await.expect("connects");
            // The agent may have refused before it took all of a long line.
            let _ = stream.write_all(bytes).await;
            let mut text = Vec::new();
            let _ = stream.read_to_end(&mut text).await;
            let said = String::from_utf8_lossy(&text);
            assert!(said.contains("refused") || bytes.len() > ORDER_BYTES_MAX as usize, "{said}");
        }
        give_order(dir.path(), &Order::Check {}, |_| {}).await.expect("answered");
    }

    #[test]
    fn something_else_in_the_place_of_the_socket_stays() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join(SOCKET);
        std::fs::write(&path, "mine").expect("write");
        assert!(bind(&path).is_err());
        assert_eq!(std::fs::read(&path).expect("read"), b"mine");
    }
}
