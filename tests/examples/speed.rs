//! Throughput of QUIC alone with distd's own settings and certificates, and a bad link to try it
//! on; for `tests/bench/speed.sh`.
//!
//! ```text
//! speed serve STATE LISTEN
//! speed fetch STATE ADDRESS BYTES STREAMS
//! speed impair LISTEN TARGET LOSS% DELAY_MS MBIT QUEUE_MS
//! ```
//!
//! `serve` sends the number of bytes that a client requests, with the STATE of an enrolled relay.
//! `fetch` requests them and prints seconds and MB/s, with the STATE of an enrolled device.
//!
//! Settings for these two: `--congestion cubic|newreno|bbr|follow`, `--window MIB` (of a
//! connection, half of it a stream), `--mtu BYTES`, `--file PATH`. With `--file`, `serve` reads the
//! bytes from PATH, and `fetch` hashes them in pieces, writes them to PATH, reads them back and
//! hashes them once more: the rest of QUIC's speed for a program that receives a file as distd
//! does.

use std::error::Error;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distd_peer::net::{Congestion, Tuning, fit_send_window, udp_socket};
use distd_peer::trust::identity::{NodeIdentity, PARENT_NAME};
use distd_peer::trust::tls::{Credentials, quic_client, quic_server};
use distd_tests::impair::{Impairment, Link};
use quinn::{Endpoint, EndpointConfig, TokioRuntime};

type Failure = Box<dyn Error + Send + Sync>;

/// Bytes handed to a stream at once: a chunk of middling length.
const PIECE: usize = 64 << 10;

/// Bytes read, hashed and written at once with `--file`, as distd does.
const RUN: usize = 128 << 10;

struct Settings {
    tuning: Tuning,
    file: Option<PathBuf>,
}

fn main() -> Result<(), Failure> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let settings = settings(&mut args)?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve", state, listen] => runtime()?.block_on(serve(state.as_ref(), listen.parse()?, &settings)),
        ["fetch", state, address, bytes, streams] => runtime()?.block_on(fetch(
            state.as_ref(),
            address.parse()?,
            bytes.parse()?,
            streams.parse()?,
            &settings,
        )),
        ["impair", listen, target, loss, delay, mbit, queue] => {
            let impairment = Impairment {
                lost_per_million: (loss.parse::<f64>()? * 10_000.0) as u64,
                delay: Duration::from_secs_f64(delay.parse::<f64>()? / 1000.0),
                rate: mbit.parse::<u64>()? * 1_000_000 / 8,
                queue: Duration::from_millis(queue.parse()?),
            };
            let link = Link::start(listen.parse()?, target.parse()?, impairment, 1)?;
            println!("listening on {}", link.address());
            loop {
                std::thread::sleep(Duration::from_secs(5));
                eprintln!("passed, lost, dropped: {:?}", link.counts());
            }
        }
        _ => Err("usage: see the top of tests/examples/speed.rs".into()),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// Removes the settings from the arguments.
fn settings(args: &mut Vec<String>) -> Result<Settings, Failure> {
    let (mut tuning, mut file) = (Tuning::default(), None);
    while let Some(at) = args.iter().position(|arg| arg.starts_with("--")) {
        let mut pair = args.drain(at..(at + 2).min(args.len()));
        let (name, value) = (pair.next().unwrap_or_default(), pair.next().ok_or("an option wants a value")?);
        match (name.as_str(), value.as_str()) {
            ("--congestion", "cubic") => tuning.congestion = Congestion::Cubic,
            ("--congestion", "newreno") => tuning.congestion = Congestion::NewReno,
            ("--congestion", "bbr") => tuning.congestion = Congestion::QuinnBbr,
            ("--congestion", "follow") => tuning.congestion = Congestion::Follow,
            ("--window", mib) => {
                tuning.connection_window = mib.parse::<u32>()? << 20;
                tuning.stream_window = tuning.connection_window / 2;
            }
            ("--mtu", bytes) => tuning.mtu_max = bytes.parse()?,
            ("--file", path) => file = Some(path.into()),
            _ => return Err(format!("unknown setting {name} {value}").into()),
        }
    }
    Ok(Settings { tuning, file })
}

fn endpoint(
    listen: SocketAddr,
    server: Option<quinn::ServerConfig>,
    tuning: &Tuning,
) -> Result<Endpoint, Failure> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(tuning.mtu_max)?;
    let socket = udp_socket(listen)?;
    Ok(Endpoint::new(config, server, socket, Arc::new(TokioRuntime))?)
}

async fn serve(state: &Path, listen: SocketAddr, settings: &Settings) -> Result<(), Failure> {
    let tuning = &settings.tuning;
    let file = settings.file.as_deref().map(File::open).transpose()?.map(Arc::new);
    let identity = NodeIdentity::load_or_create(state)?;
    let ca = identity.ca_der().ok_or("not enrolled")?.clone();
    let mut config = quic_server(Credentials::of_node(&identity)?, &ca)?;
    config.transport_config(tuning.answering());
    let endpoint = endpoint(listen, Some(config), tuning)?;
    println!("listening on {}", endpoint.local_addr()?);
    while let Some(incoming) = endpoint.accept().await {
        let file = file.clone();
        tokio::spawn(async move {
            let connection = incoming.await?;
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let (connection, file) = (connection.clone(), file.clone());
                tokio::spawn(async move {
                    let asked = recv.read_to_end(16).await?;
                    let number =
                        |at: usize| Ok::<_, Failure>(u64::from_be_bytes(asked[at..at + 8].try_into()?));
                    let (mut at, end) = (number(0)?, number(0)? + number(8)?);
                    // Equal bytes do no harm: QUIC encrypts any content in the same time.
                    let piece = bytes::Bytes::from(vec![0x5a; PIECE]);
                    while at < end {
                        fit_send_window(&connection);
                        let bytes = match &file {
                            Some(file) => {
                                let mut run = vec![0; RUN.min((end - at) as usize)];
                                file.read_exact_at(&mut run, at)?;
                                run.into()
                            }
                            None => piece.slice(..PIECE.min((end - at) as usize)),
                        };
                        at += bytes.len() as u64;
                        send.write_chunk(bytes).await?;
                    }
                    send.finish()?;
                    Ok::<(), Failure>(())
                });
            }
            let s = connection.stats();
            eprintln!(
                "lost {} of {} packets, congestion events {}, cwnd {}",
                s.path.lost_packets, s.path.sent_packets, s.path.congestion_events, s.path.cwnd
            );
            Ok::<(), Failure>(())
        });
    }
    Ok(())
}

async fn fetch(
    state: &Path,
    address: SocketAddr,
    bytes: u64,
    streams: u64,
    settings: &Settings,
) -> Result<(), Failure> {
    let tuning = &settings.tuning;
    let create = |path| File::options().read(true).write(true).create(true).truncate(true).open(path);
    let file = settings.file.as_ref().map(create).transpose()?.map(Arc::new);
    let identity = NodeIdentity::load_or_create(state)?;
    let ca = identity.ca_der().ok_or("not enrolled")?.clone();
    let mut config = quic_client(Credentials::of_node(&identity)?, &ca)?;
    config.transport_config(tuning.asking());
    let any: SocketAddr = if address.is_ipv6() { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let mut endpoint = endpoint(any, None, tuning)?;
    endpoint.set_default_client_config(config);
    let start = Instant::now();
    let connection = endpoint.connect(address, PARENT_NAME)?.await?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..streams {
        let (connection, file) = (connection.clone(), file.clone());
        tasks.spawn(async move {
            let (mut send, mut recv) = connection.open_bi().await?;
            let (from, count) = (number * (bytes / streams), bytes / streams);
            send.write_all(&[from.to_be_bytes(), count.to_be_bytes()].concat()).await?;
            send.finish()?;
            let mut got = 0;
            let mut run = Vec::with_capacity(RUN + PIECE);
            while let Some(chunk) = recv.read_chunk(PIECE, true).await? {
                got += chunk.bytes.len() as u64;
                if let Some(file) = &file {
                    run.extend_from_slice(&chunk.bytes);
                    if run.len() >= RUN || got == count {
                        std::hint::black_box(blake3::hash(&run));
                        file.write_all_at(&run, from + got - run.len() as u64)?;
                        run.clear();
                    }
                }
            }
            Ok::<u64, Failure>(got)
        });
    }
    let mut got = 0;
    while let Some(done) = tasks.join_next().await {
        got += done??;
    }
    if let Some(file) = file {
        tokio::task::spawn_blocking(move || read_back(&file, got)).await??;
    }
    let seconds = start.elapsed().as_secs_f64();
    let stats = connection.stats();
    println!(
        "{{\"seconds\":{seconds:.3},\"bytes\":{got},\"mb_s\":{:.1},\"rtt_ms\":{:.2},\"mtu\":{}}}",
        got as f64 / 1e6 / seconds,
        stats.path.rtt.as_secs_f64() * 1000.0,
        stats.path.current_mtu
    );
    connection.close(0u32.into(), b"");
    endpoint.wait_idle().await;
    Ok(())
}

/// Reads the whole file, half on each of two threads, and hashes it.
fn read_back(file: &File, bytes: u64) -> std::io::Result<()> {
    let half = |range: std::ops::Range<u64>| {
        let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 20]);
        for at in range.clone().step_by(buffer.len()) {
            let len = buffer.len().min((range.end - at) as usize);
            file.read_exact_at(&mut buffer[..len], at)?;
            hasher.update(&buffer[..len]);
        }
        std::hint::black_box(hasher.finalize());
        Ok(())
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| half(0..bytes / 2));
        half(bytes / 2..bytes)?;
        first.join().unwrap_or_else(|_| Err(std::io::Error::other("a reading thread failed")))
    })
}
