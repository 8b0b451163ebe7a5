//! A bad link for UDP, in user space: loss, delay, and a rate with a queue before it. For kernels
//! without netem.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use distd_peer::net::udp_socket;

use crate::Rng;

/// Length of the largest datagram passed on: an Ethernet packet without its IPv4 and UDP headers.
const DATAGRAM_MAX: usize = 1472;

/// Properties of the link in each direction.
#[derive(Clone, Copy, Debug)]
pub struct Impairment {
    /// Number of datagrams in a million that are lost.
    pub lost_per_million: u64,
    /// Delay in one direction.
    pub delay: Duration,
    /// Bytes in a second, 0 for no bound.
    pub rate: u64,
    /// Longest wait before the rate; a datagram that would wait longer is dropped.
    pub queue: Duration,
}

/// Datagrams on their way, and the counters.
#[derive(Default)]
struct Pipe {
    on_their_way: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    arrived: Condvar,
    passed: AtomicU64,
    lost: AtomicU64,
    dropped: AtomicU64,
}

/// A running link for one client: the client sends to [`address`](Self::address), which reaches the
/// target, and answers come back.
pub struct Link {
    address: SocketAddr,
    there: Arc<Pipe>,
    back: Arc<Pipe>,
    stop: Arc<AtomicBool>,
    client_side: UdpSocket,
    target_side: UdpSocket,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Link {
    /// Listens on `listen` and passes datagrams on to `target` and back.
    ///
    /// # Errors
    /// Errors of the sockets.
    pub fn start(
        listen: SocketAddr,
        target: SocketAddr,
        impairment: Impairment,
        rng_seed: u64,
    ) -> io::Result<Self> {
        let client_side = udp_socket(listen)?;
        let target_side = udp_socket(SocketAddr::new(listen.ip(), 0))?;
        target_side.connect(target)?;
        for socket in [&client_side, &target_side] {
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        }
        let client: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let (there, back): (Arc<Pipe>, Arc<Pipe>) = Default::default();
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (from, to, pipe, learns) in
            [(&client_side, &target_side, &there, true), (&target_side, &client_side, &back, false)]
        {
            let (from, pipe_in, stopped) = (from.try_clone()?, pipe.clone(), stop.clone());
            let (learnt, mut rng) = (client.clone(), Rng::new(rng_seed + u64::from(learns)));
            threads.push(std::thread::spawn(move || {
                take_in(&from, &pipe_in, &stopped, impairment, &mut rng, |whom| {
                    if learns {
                        *learnt.lock().unwrap_or_else(PoisonError::into_inner) = Some(whom);
                    }
                });
            }));
            let (to, pipe_out, stopped, client) =
                (to.try_clone()?, pipe.clone(), stop.clone(), client.clone());
            threads.push(std::thread::spawn(move || {
                let whom =
                    || if learns { None } else { *client.lock().unwrap_or_else(PoisonError::into_inner) };
                give_out(&to, &pipe_out, &stopped, learns, whom);
            }));
        }
        let address = client_side.local_addr()?;
        Ok(Self { address, there, back, stop, client_side, target_side, threads })
    }

    /// Address to which the client sends.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Datagrams passed on, lost by chance, and dropped before the rate, in both directions.
    pub fn counts(&self) -> [u64; 3] {
        let sum = |of: fn(&Pipe) -> &AtomicU64| {
            of(&self.there).load(Ordering::Relaxed) + of(&self.back).load(Ordering::Relaxed)
        };
        [sum(|p| &p.passed), sum(|p| &p.lost), sum(|p| &p.dropped)]
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for pipe in [&self.there, &self.back] {
            pipe.arrived.notify_all();
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has printed its message.
            let _ = thread.join();
        }
        let _ = (&self.client_side, &self.target_side);
    }
}

fn take_in(
    from: &UdpSocket,
    pipe: &Pipe,
    stop: &AtomicBool,
    impairment: Impairment,
    rng: &mut Rng,
    mut heard: impl FnMut(SocketAddr),
) {
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    let mut free_at = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        // A time-out, or a port that is not open yet.
        let Ok((len, whom)) = from.recv_from(&mut buffer) else { continue };
        heard(whom);
        if len > DATAGRAM_MAX {
            // A path drops a datagram that is too long for it without a message.
            continue;
        }
        let now = Instant::now();
        if rng.below(1_000_000) < impairment.lost_per_million {
            pipe.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let starts = free_at.max(now);
        if impairment.rate > 0 {
            if starts - now > impairment.queue {
                pipe.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            // IPv4 and UDP headers take room on the link too.
            free_at = starts + Duration::from_secs_f64((len + 28) as f64 / impairment.rate as f64);
        } else {
            free_at = now;
        }
        let due = free_at + impairment.delay;
        let mut waiting = pipe.on_their_way.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back((due, buffer[..len].to_vec()));
        drop(waiting);
        pipe.arrived.notify_one();
    }
}

fn give_out(
    to: &UdpSocket,
    pipe: &Pipe,
    stop: &AtomicBool,
    connected: bool,
    whom: impl Fn() -> Option<SocketAddr>,
) {
    let mut due = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut waiting = pipe.on_their_way.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while waiting.front().is_some_and(|(at, _)| *at <= now) {
            due.extend(waiting.pop_front());
        }
        if due.is_empty() {
            let wait = waiting.front().map_or(Duration::from_millis(100), |(at, _)| *at - now);
            // Each new datagram wakes this thread, so a wait that is too long ends in time.
            drop(pipe.arrived.wait_timeout(waiting, wait));
            continue;
        }
        drop(waiting);
        for (_, datagram) in due.drain(..) {
            let sent = match (connected, whom()) {
                (true, _) => to.send(&datagram).is_ok(),
                (false, Some(client)) => to.send_to(&datagram, client).is_ok(),
                (false, None) => false,
            };
            if sent {
                pipe.passed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
