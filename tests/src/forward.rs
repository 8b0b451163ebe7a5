//! A connection forwarder with faults: what lies between a process and the database or store that
//! it uses.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Behaviour of a forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Path {
    /// Bytes pass.
    Open,
    /// Nothing passes and nothing ends: a cut cable.
    Silent,
    /// Connections end at once: a server that restarts.
    Broken,
    /// Each read waits a fifth of a second.
    Slow,
    /// Each request is answered with HTTP 503 and the words of an S3 server under load.
    Throttled,
}

impl Path {
    fn of(number: u8) -> Self {
        [Self::Open, Self::Silent, Self::Broken, Self::Slow, Self::Throttled][usize::from(number)]
    }
}

/// Answer of a bucket that is asked too much.
const THROTTLED: &str = "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n\r\n\
     <?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
     <Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";

/// A forwarder on loopback; its threads end with the process.
pub struct Forwarder {
    /// Port on which it listens.
    pub port: u16,
    path: Arc<AtomicU8>,
    open: Arc<Open>,
}

/// Both ends of the connections that are open, by number.
#[derive(Default)]
struct Open {
    number: AtomicU64,
    ends: Mutex<BTreeMap<u64, [TcpStream; 2]>>,
}

impl Open {
    fn ends(&self) -> MutexGuard<'_, BTreeMap<u64, [TcpStream; 2]>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forwarder {
    /// Forwards to `to`, `HOST:PORT`.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn to(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let this = Self { port, path: Arc::default(), open: Arc::default() };
        let (to, path, open) = (to.to_owned(), this.path.clone(), this.open.clone());
        std::thread::spawn(move || {
            for from in listener.incoming().flatten() {
                let (to, path, open) = (to.clone(), path.clone(), open.clone());
                std::thread::spawn(move || forward(from, &to, &path, &open));
            }
        });
        this
    }

    /// Changes what happens to the bytes of all connections from now on.
    pub fn set(&self, path: Path) {
        self.path.store(path as u8, Ordering::SeqCst);
        if matches!(path, Path::Broken | Path::Throttled) {
            for stream in std::mem::take(&mut *self.open.ends()).into_values().flatten() {
                // It may have ended already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

fn forward(mut from: TcpStream, to: &str, path: &Arc<AtomicU8>, open: &Open) {
    let now = || Path::of(path.load(Ordering::SeqCst));
    match now() {
        Path::Broken => return,
        Path::Throttled => {
            let mut request = [0; 4096];
            // The one that asks may be gone.
            let _ = from.read(&mut request);
            let _ = from.write_all(THROTTLED.as_bytes());
            return;
        }
        Path::Open | Path::Silent | Path::Slow => {}
    }
    let Ok(to) = TcpStream::connect(to) else { return };
    let (Ok(from_too), Ok(to_too)) = (from.try_clone(), to.try_clone()) else { return };
    let number = open.number.fetch_add(1, Ordering::Relaxed);
    if let (Ok(one), Ok(other)) = (from.try_clone(), to.try_clone()) {
        open.ends().insert(number, [one, other]);
    }
    let back = path.clone();
    let back = std::thread::spawn(move || copy(to_too, from_too, &back));
    copy(from, to, path);
    // It ends when either side does.
    let _ = back.join();
    open.ends().remove(&number);
}

fn copy(mut from: TcpStream, mut to: TcpStream, path: &AtomicU8) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(read) if read > 0 => read,
            _ => break,
        };
        if Path::of(path.load(Ordering::SeqCst)) == Path::Slow {
            std::thread::sleep(Duration::from_millis(200));
        }
        while Path::of(path.load(Ordering::SeqCst)) == Path::Silent {
            std::thread::sleep(Duration::from_millis(20));
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
