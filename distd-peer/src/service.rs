//! The service manager that started a daemon, and what the daemon tells it: sd_notify(3) of
//! systemd, over the datagram socket named by `NOTIFY_SOCKET`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Time after which a daemon that still waits for its network is reported as started. The boot
/// of a machine waits for its services, and a parent may be away for days.
const PATIENCE: Duration = Duration::from_secs(20);

/// Number of signs of life within the time after which the service manager ends the daemon.
const BEATS: u32 = 3;

/// The service manager of this process. Does nothing where none asked to be told.
pub struct ServiceManager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The manager that the environment of this process names.
    pub fn of_environment() -> Self {
        Self::of(|name| std::env::var(name).ok(), std::process::id())
    }

    fn of(environment: impl Fn(&str) -> Option<String>, process: u32) -> Self {
        let socket = environment("NOTIFY_SOCKET").and_then(|name| socket(&name));
        // A daemon that another daemon started inherits the variables, which are not for it.
        let is_for_this =
            environment("WATCHDOG_PID").is_none_or(|pid| pid.parse::<u32>().is_ok_and(|pid| pid == process));
        let micros = environment("WATCHDOG_USEC").and_then(|text| text.parse::<u64>().ok());
        let watchdog = micros.filter(|micros| is_for_this && *micros > 0).map(Duration::from_micros);
        Self { socket, watchdog }
    }

    /// Tells that the daemon has started, with a sentence for `systemctl status`.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// Tells that the daemon is about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping");
    }

    /// Awaits `start` of a daemon that may wait for its network. After 20 seconds the daemon
    /// counts as started, so that the boot goes on; the caller tells [`ready`](Self::ready) when
    /// it has.
    pub async fn patiently<T>(&self, start: impl Future<Output = T>) -> T {
        let mut start = std::pin::pin!(start);
        tokio::select! {
            started = &mut start => started,
            () = tokio::time::sleep(PATIENCE) => {
                self.ready("waiting for the network or a parent; the log says more");
                start.await
            }
        }
    }

    /// Gives signs of life for as long as the daemon does its work, if the manager asked for them.
    /// Never ends; to be polled by the daemon's main loop.
    ///
    /// A sign follows only after a task of the runtime's workers was run, and while `works` is
    /// true: a program whose workers hang or whose serving task is gone is ended by its manager,
    /// and started again.
    pub async fn watched(&self, works: impl Fn() -> bool) {
        let Some(limit) = self.watchdog else { return std::future::pending().await };
        let mut beat = tokio::time::interval(limit / BEATS);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            // The main loop has a thread of its own: that it runs says nothing about the workers.
            if tokio::spawn(async {}).await.is_ok() && works() {
                self.tell("WATCHDOG=1");
            } else {
                tracing::error!("a part of this program has ended; the service manager will start it again");
            }
        }
    }

    fn tell(&self, state: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::warn!(%error, "the service manager could not be told of this program's state");
        }
    }
}

/// Returns whether this machine runs systemd and has the unit.
pub fn is_installed(unit: &str) -> bool {
    let places = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
    Path::new("/run/systemd/system").is_dir() && places.iter().any(|dir| Path::new(dir).join(unit).exists())
}

/// Starts the unit now and at each boot. Returns when it has started.
///
/// # Errors
/// When `systemctl` cannot be run, or says why the unit did not start.
pub fn start(unit: &str) -> std::io::Result<()> {
    // `enable --now` leaves a unit alone that runs with its old settings.
    for arguments in [["enable", unit], ["restart", unit]] {
        let done = Command::new("systemctl").args(arguments).status()?;
        if !done.success() {
            let [verb, _] = arguments;
            let why = format!("systemctl {verb} {unit} failed; next: journalctl -u {unit}");
            return Err(std::io::Error::other(why));
        }
    }
    Ok(())
}

/// Opens a socket to the manager at `name`, a path or, behind `@`, an abstract name.
fn socket(name: &str) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None if name.starts_with('/') => SocketAddr::from_pathname(name),
        // The protocol has other families, for virtual machines.
        None => return None,
    };
    let socket = UnixDatagram::unbound().ok()?;
    // A manager that does not read must not hold the daemon up.
    socket.set_nonblocking(true).ok()?;
    Some((socket, address.ok()?))
}

/// Text without line breaks, which would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(socket: &str, watchdog: Option<&str>, pid: Option<&str>) -> ServiceManager {
        let environment = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(socket.to_owned()),
            "WATCHDOG_USEC" => watchdog.map(str::to_owned),
            "WATCHDOG_PID" => pid.map(str::to_owned),
            _ => None,
        };
        ServiceManager::of(environment, 77)
    }

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        let mut out = Vec::new();
        let mut bytes = [0; 512];
        while let Ok(length) = socket.recv(&mut bytes) {
            out.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
        }
        out
    }

    fn listening() -> (tempfile::TempDir, UnixDatagram, String) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        let name = path.display().to_string();
        (dir, socket, name)
    }

    #[test]
    fn states_are_told_over_paths_and_abstract_names() {
        let (_dir, socket, path) = listening();
        let told = manager(&path, None, None);
        told.ready("serving\nWATCHDOG=1");
        told.stopping();
        assert_eq!(heard(&socket), ["READY=1\nSTATUS=serving WATCHDOG=1", "STOPPING=1\nSTATUS=stopping"]);
        let name = format!("distd-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        manager(&format!("@{name}"), None, None).ready("here");
        assert_eq!(heard(&socket), ["READY=1\nSTATUS=here"]);
        for nowhere in ["", "vsock:2:1", "/nowhere/at/all"] {
            manager(nowhere, None, None).ready("nobody hears this");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_work_gives_no_sign_of_life() {
        let (_dir, socket, path) = listening();
        let told = manager(&path, Some("30000000"), Some("77"));
        let _ = tokio::time::timeout(Duration::from_secs(25), told.watched(|| true)).await;
        assert_eq!(heard(&socket), ["WATCHDOG=1"; 3]);
        let _ = tokio::time::timeout(Duration::from_secs(300), told.watched(|| false)).await;
        assert_eq!(heard(&socket), [""; 0]);
        // Not asked for, or asked of another process.
        for (watchdog, pid) in [(None, None), (Some("0"), None), (Some("30000000"), Some("78"))] {
            let told = manager(&path, watchdog, pid);
            let _ = tokio::time::timeout(Duration::from_secs(300), told.watched(|| true)).await;
            assert_eq!(heard(&socket), [""; 0]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_waits_for_its_network_does_not_hold_the_boot_up() {
        let (_dir, socket, path) = listening();
        let told = manager(&path, None, None);
        told.patiently(tokio::time::sleep(Duration::from_secs(19))).await;
        assert_eq!(heard(&socket), [""; 0]);
        told.patiently(tokio::time::sleep(Duration::from_secs(3600))).await;
        assert_eq!(heard(&socket).len(), 1);
    }
}
