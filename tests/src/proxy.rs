//! A real HTTP proxy: tinyproxy.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use crate::lab::wait_until;

/// Port on which the proxy listens.
pub const PROXY_PORT: u16 = 3128;

/// A running proxy; killed when dropped.
pub struct Proxy(Child);

impl Proxy {
    /// Starts a proxy that listens at `host` and connects only to port `allowed`, and waits until
    /// it answers. `at` moves a command to the namespace in which the proxy is to run; `settings`
    /// are further lines of its configuration.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(
        dir: &Path,
        at: impl Fn(&Command) -> Command,
        host: &dyn Display,
        allowed: u16,
        settings: &str,
    ) -> Self {
        let config = dir.join("tinyproxy.conf");
        let text = format!(
            "Port {PROXY_PORT}\nListen {host}\nTimeout 600\nMaxClients 50\nConnectPort {allowed}\n{settings}"
        );
        fs::write(&config, text).expect("write");
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(&config);
        let log = fs::File::create(dir.join("proxy.log")).expect("create the log");
        let proxy = Self(at(&command).stdout(log).spawn().expect("start tinyproxy"));
        let mut probe = Command::new("curl");
        probe.args(["-s", "-o", "/dev/null", &format!("http://{host}:{PROXY_PORT}")]);
        wait_until("the proxy listens", || at(&probe).status().expect("run curl").success());
        proxy
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
