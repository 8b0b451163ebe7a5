//! The origin's side of the connection: one signer, one request at a time.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use distd_core::error::Chain;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::openpgp::OpenPgpPublic;
use super::wire::{self, PublicKey, Reply, Request, VERSION};

/// Longest time that a signer may take for one request.
const PATIENCE: Duration = Duration::from_secs(30);

/// Callers that may wait for the signer at one time. Each holds a thread of the runtime, and every
/// node that enrols or renews its certificate brings one, so a signer that hangs must not collect
/// more of them.
const CALLERS_MAX: usize = 32;

/// Time after an unanswered request during which no other request is sent. The callers that waited
/// behind that request fail at once instead of waiting in turn.
const PAUSE: Duration = Duration::from_secs(5);

/// Prefixes of environment variables that a signer does not inherit: it needs neither database nor
/// object store.
const WITHHELD: [&str; 3] = ["DISTD_SERVER_", "AWS_", "PG"];

/// Reason why the signer gave no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The signer cannot be started.
    #[error("could not start the signer {}", .0.display())]
    Start(PathBuf, #[source] io::Error),
    /// The signer cannot be reached.
    #[error("could not connect to the signer at {}: check that it runs and that this user may use its socket", .0.display())]
    Connect(PathBuf, #[source] io::Error),
    /// The signer ended, or its answer makes no sense.
    #[error("the signer did not answer: look at its log")]
    Broken(#[source] io::Error),
    /// Too many callers already wait for the signer.
    #[error("the signer is busy: try again in a minute")]
    Busy,
    /// The signer left a request unanswered a few seconds ago.
    #[error("the signer does not answer: look at its log")]
    Hangs,
    /// The signer refused the request.
    #[error("the signer refused: {0}")]
    Refused(String),
}

/// Connection to a signer, opened at its first use and again after it was lost.
#[derive(Debug)]
pub struct SignerLink {
    way: Way,
    open: Mutex<Open>,
    callers: AtomicUsize,
    patience: Duration,
}

#[derive(Debug, Default)]
struct Open {
    connection: Option<Connection>,
    /// Time at which a request was given up for lack of an answer.
    given_up: Option<Instant>,
}

#[derive(Debug)]
enum Way {
    /// Starts this program with these arguments; its standard input is the socket.
    Start(PathBuf, Vec<String>),
    /// Connects to this socket.
    Connect(PathBuf),
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    child: Option<Child>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A signer keeps no state of a request, so each request can be repeated.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl SignerLink {
    /// Link to a signer that this process starts, `program` with `arguments`, and that ends with
    /// it.
    pub fn start(program: PathBuf, arguments: Vec<String>) -> Self {
        Self::new(Way::Start(program, arguments))
    }

    /// Link to a signer that listens on the Unix socket at `path`.
    pub fn connect(path: PathBuf) -> Self {
        Self::new(Way::Connect(path))
    }

    fn new(way: Way) -> Self {
        Self { way, open: Mutex::default(), callers: AtomicUsize::new(0), patience: PATIENCE }
    }

    /// Waits no longer than `patience` for each answer.
    #[cfg(test)]
    pub(super) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub(super) fn describe(&self) -> String {
        match &self.way {
            Way::Start(..) => "the signer's tuf-keys".to_owned(),
            Way::Connect(path) => format!("tuf-keys of the signer at {}", path.display()),
        }
    }

    /// Returns the CA's certificate, PEM, and the public TUF keys.
    pub(crate) fn hello(&self) -> Result<(String, Vec<PublicKey>), SignerError> {
        match self.call(&Request::Hello { version: VERSION })? {
            Reply::Hello { ca_pem, keys } => Ok((ca_pem, keys)),
            _ => Err(unfit()),
        }
    }

    /// Makes a new key of a TUF role, durable in the signer's files.
    pub(crate) fn generate(&self, role: &str) -> Result<PublicKey, SignerError> {
        match self.call(&Request::Generate { role: role.to_owned() })? {
            Reply::Key(key) => Ok(key),
            _ => Err(unfit()),
        }
    }

    /// Puts aside the keys of a role that metadata no longer lists. The keys in `listed` stay.
    pub(crate) fn retire(&self, role: &str, listed: &[impl AsRef<[u8]>]) -> Result<(), SignerError> {
        let listed = listed.iter().map(|id| id.as_ref().to_vec().into()).collect();
        match self.call(&Request::Retire { role: role.to_owned(), listed })? {
            Reply::Retired => Ok(()),
            _ => Err(unfit()),
        }
    }

    /// Signature of a TUF key under metadata in canonical form.
    pub(crate) fn sign_metadata(
        &self,
        role: &str,
        key_id: &[u8],
        message: &[u8],
    ) -> Result<Vec<u8>, SignerError> {
        let (role, key_id, message) = (role.to_owned(), key_id.to_vec(), message.to_vec());
        self.signature(&Request::Metadata { role, key_id, message })
    }

    /// Signature of the CA under a TBSCertificate, DER.
    pub(crate) fn sign_certificate(&self, tbs: &[u8]) -> Result<Vec<u8>, SignerError> {
        self.signature(&Request::Certificate { tbs: tbs.to_vec() })
    }

    /// Signature of the CA under a seal or a list of revoked nodes.
    pub(crate) fn sign_statement(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        self.signature(&Request::Statement { message: message.to_vec() })
    }

    /// Shows the signer a root, signed, JSON. Returns the version of the newest root that it knows.
    pub(crate) fn follow_root(&self, root: &[u8]) -> Result<u64, SignerError> {
        match self.call(&Request::Root { root: root.to_vec() })? {
            Reply::NewestRoot(version) => Ok(version),
            _ => Err(unfit()),
        }
    }

    /// Public half of the OpenPGP key.
    pub(crate) fn openpgp(&self) -> Result<OpenPgpPublic, SignerError> {
        match self.call(&Request::OpenPgp)? {
            Reply::OpenPgp(public) => Ok(public),
            _ => Err(unfit()),
        }
    }

    /// Signature of the OpenPGP key under one line of `SHA256SUMS`.
    pub(crate) fn sign_sum(&self, line: &[u8]) -> Result<Vec<u8>, SignerError> {
        self.signature(&Request::Sum { line: line.to_vec() })
    }

    fn signature(&self, request: &Request) -> Result<Vec<u8>, SignerError> {
        match self.call(request)? {
            Reply::Signature(signature) => Ok(signature),
            _ => Err(unfit()),
        }
    }

    /// Sends a request without blocking the other tasks on this runtime's thread.
    fn call(&self, request: &Request) -> Result<Reply, SignerError> {
        let several = |handle: Handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread;
        if Handle::try_current().is_ok_and(several) {
            tokio::task::block_in_place(|| self.exchange(request))
        } else {
            self.exchange(request)
        }
    }

    fn exchange(&self, request: &Request) -> Result<Reply, SignerError> {
        if self.callers.fetch_add(1, Ordering::Relaxed) >= CALLERS_MAX {
            self.callers.fetch_sub(1, Ordering::Relaxed);
            return Err(SignerError::Busy);
        }
        let reply = self.exchange_in_turn(request);
        self.callers.fetch_sub(1, Ordering::Relaxed);
        match reply? {
            Reply::Refused(why) => Err(SignerError::Refused(why)),
            reply => Ok(reply),
        }
    }

    fn exchange_in_turn(&self, request: &Request) -> Result<Reply, SignerError> {
        let mut open = self.open.lock().expect("no panic while it is locked");
        if open.given_up.is_some_and(|at| at.elapsed() < PAUSE) {
            return Err(SignerError::Hangs);
        }
        open.given_up = None;
        if let Some(connection) = open.connection.take() {
            match ask(&connection.stream, request) {
                Ok(reply) => {
                    open.connection = Some(connection);
                    return Ok(reply);
                }
                Err(error) if is_timeout(&error) => return Err(open.give_up(error)),
                Err(error) => {
                    tracing::warn!(
                        error = %Chain(&error),
                        "the connection to the signer broke; another one is opened"
                    );
                }
            }
        }
        let connection = self.open()?;
        match ask(&connection.stream, request) {
            Ok(reply) => {
                open.connection = Some(connection);
                Ok(reply)
            }
            Err(error) if is_timeout(&error) => Err(open.give_up(error)),
            Err(error) => Err(SignerError::Broken(error)),
        }
    }

    fn open(&self) -> Result<Connection, SignerError> {
        let connection = match &self.way {
            Way::Start(program, arguments) => {
                let failed = |e| SignerError::Start(program.clone(), e);
                let (stream, theirs) = UnixStream::pair().map_err(failed)?;
                let mut command = Command::new(program);
                command.args(arguments).stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
                command.stdout(Stdio::null());
                // An interrupt from the terminal must not reach the signer: the origin needs
                // signatures while it stops.
                std::os::unix::process::CommandExt::process_group(&mut command, 0);
                for (name, _) in std::env::vars_os() {
                    if WITHHELD.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                        command.env_remove(&name);
                    }
                }
                Connection { stream, child: Some(command.spawn().map_err(failed)?) }
            }
            Way::Connect(path) => {
                let failed = |e| SignerError::Connect(path.clone(), e);
                Connection { stream: UnixStream::connect(path).map_err(failed)?, child: None }
            }
        };
        let stream = &connection.stream;
        stream.set_read_timeout(Some(self.patience)).map_err(SignerError::Broken)?;
        stream.set_write_timeout(Some(self.patience)).map_err(SignerError::Broken)?;
        Ok(connection)
    }
}

impl Open {
    fn give_up(&mut self, error: io::Error) -> SignerError {
        self.given_up = Some(Instant::now());
        SignerError::Broken(error)
    }
}

/// Whether the socket's time limit passed, for which Linux reports `EAGAIN`.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn ask(stream: &UnixStream, request: &Request) -> io::Result<Reply> {
    wire::send(stream, request)?;
    wire::receive(stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn unfit() -> SignerError {
    SignerError::Broken(io::Error::new(io::ErrorKind::InvalidData, "the reply does not fit the request"))
}
