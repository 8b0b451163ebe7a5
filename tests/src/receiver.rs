//! A receiver of webhooks: an HTTP server that keeps what it is sent.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

/// Answer of the receiver to one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status without a body.
    Status(u16),
    /// A redirect to an address.
    Redirect(String),
    /// 200, and a body without end.
    Endless,
    /// Nothing, for so long.
    Silent(Duration),
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// Path.
    pub path: String,
    /// Headers, by their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: String,
    /// Bytes that the receiver could send of its answer before the sender went away.
    pub answered: u64,
}

impl Received {
    /// Kind of the event.
    ///
    /// # Panics
    /// If the body is no event.
    pub fn kind(&self) -> String {
        self.json()["type"].as_str().expect("a type").to_owned()
    }

    /// Body as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

#[derive(Default)]
struct State {
    received: Vec<Received>,
    replies: VecDeque<Reply>,
}

/// A running receiver. It answers 204 unless it is told otherwise.
pub struct Receiver {
    /// Its address.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receiver {
    /// Starts a receiver on a free port of the loopback address.
    ///
    /// # Panics
    /// If there is none.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    /// Starts a receiver at an address.
    ///
    /// # Panics
    /// If another program has it.
    pub fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("listen");
        let (address, state) = (listener.local_addr().expect("an address"), Arc::default());
        let shared: Arc<Mutex<State>> = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || serve(&stream, &state));
            }
        });
        Self { address, state }
    }

    /// Address of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Answers to the next requests, in order.
    pub fn will_reply(&self, replies: impl IntoIterator<Item = Reply>) {
        lock(&self.state).replies.extend(replies);
    }

    /// All requests so far, in the order in which they came.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.state).received.clone()
    }

    /// Kinds of the events so far.
    pub fn kinds(&self) -> Vec<String> {
        self.received().iter().map(Received::kind).collect()
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
                None => break,
            };
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let body = String::from_utf8_lossy(&body).into_owned();
        let (reply, index) = {
            let mut state = lock(state);
            state.received.push(Received { path, headers, body, answered: 0 });
            (state.replies.pop_front().unwrap_or(Reply::Status(204)), state.received.len() - 1)
        };
        let sent = match reply {
            Reply::Status(status) => {
                write!(writer, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n").map(|()| true)
            }
            Reply::Redirect(to) => {
                write!(writer, "HTTP/1.1 307 x\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n").map(|()| true)
            }
            Reply::Silent(time) => {
                std::thread::sleep(time);
                Ok(false)
            }
            Reply::Endless => {
                let _ = write!(writer, "HTTP/1.1 200 x\r\ncontent-length: 1000000000\r\n\r\n");
                let piece = [b'x'; 4096];
                while writer.write_all(&piece).is_ok() {
                    lock(state).received[index].answered += piece.len() as u64;
                }
                Ok(false)
            }
        };
        if !matches!(sent, Ok(true)) {
            return;
        }
    }
}
