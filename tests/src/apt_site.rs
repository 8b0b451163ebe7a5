//! A device whose proxy for apt is tested, with the mirror that it asks.

use std::fs;
use std::process::Command;

use crate::Rng;
use crate::apt::{Apt, Mirror, Repository, SUITE};
use crate::lab::{Daemon, Lab, Outcome, run};

/// A realm, a repository with its mirror, and a device, `till`, with a proxy.
#[derive(Debug)]
pub struct Site {
    /// Agent of the device, while it runs.
    pub agent: Option<Daemon>,
    /// Address of its proxy.
    pub proxy: String,
    /// Mirror of the repository.
    pub mirror: Mirror,
    /// The repository.
    pub repository: Repository,
    /// The realm.
    pub lab: Lab,
}

impl Site {
    /// Starts all. `None` where a tool is missing. `settings` are lines of the section `[apt]`.
    ///
    /// # Panics
    /// When something does not start.
    pub fn start(settings: &str) -> Option<Self> {
        Self::start_with(settings, &[])
    }

    /// Likewise, with more hosts that may be private.
    ///
    /// # Panics
    /// When something does not start.
    pub fn start_with(settings: &str, private: &[String]) -> Option<Self> {
        let lab = Lab::start();
        let repository = Repository::new(&lab.path(""))?;
        let mirror = Mirror::start(&repository.root);
        lab.enroll("till", lab.quic());
        let mut site = Self { agent: None, proxy: String::new(), mirror, repository, lab };
        let etc = site.lab.path("keys");
        fs::create_dir_all(etc.join("trusted.gpg.d")).expect("a directory");
        site.lab.configure("till", &site.section(settings, private));
        site.restart();
        Some(site)
    }

    fn section(&self, settings: &str, private: &[String]) -> String {
        let private: String = private.iter().map(|host| format!(", \"{host}\"")).collect();
        format!(
            "\n[apt]\nlisten = \"127.0.0.1:0\"\nprivate_hosts = [\"{}\"{private}]\netc = \"{}\"\nmin_free_bytes = 1000000\n\
             {settings}\n",
            self.mirror.address,
            self.lab.path("keys").display()
        )
    }

    /// The agent.
    ///
    /// # Panics
    /// When it was stopped.
    pub fn agent(&self) -> &Daemon {
        self.agent.as_ref().expect("it runs")
    }

    /// Ends the agent as a power cut would, and starts it again.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        drop(self.agent.take());
        let mut command = self.lab.agent_command("till", "127.0.0.1:0");
        command.args(["--metrics", "127.0.0.1:0"]).env("DISTD_LOG", "info");
        let agent = Daemon::start(command, &self.lab.path("till.log"), "agent listening on ");
        self.proxy = agent.said("proxy for apt on ");
        self.agent = Some(agent);
    }

    /// Lets the device know the key of the repository.
    ///
    /// # Panics
    /// When the key cannot be copied.
    pub fn trust_key(&self) {
        let to = self.lab.path("keys/trusted.gpg.d/test.gpg");
        fs::copy(&self.repository.keyring, to).expect("copy");
    }

    /// Lines of `sources.list` for the repository.
    pub fn sources(&self) -> String {
        let (key, url) = (self.repository.keyring.display(), self.mirror.url());
        format!("deb [signed-by={key}] {url} {SUITE} main\ndeb-src [signed-by={key}] {url} {SUITE} main\n")
    }

    /// An apt that goes through the proxy.
    pub fn apt(&self, name: &str) -> Apt {
        Apt::new(&self.lab.path(name), &self.sources(), Some(&self.proxy))
    }

    /// A counter of the proxy.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn metric(&self, name: &str) -> u64 {
        self.agent().metric(&format!("distd_apt_{name}"))
    }

    /// Runs curl through the proxy; returns status and body.
    ///
    /// # Panics
    /// When there is no curl.
    pub fn curl(&self, url: &str, args: &[&str]) -> (u16, Vec<u8>) {
        let mut command = Command::new("curl");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(["-sS", "--path-as-is", "--proxy", &self.proxy, "-w", "%{stderr}%{http_code}"]);
        let output = command.args(args).arg(url).output().expect("run curl");
        let text = String::from_utf8_lossy(&output.stderr);
        (text[text.len().saturating_sub(3)..].parse().unwrap_or(0), output.stdout)
    }

    /// Log of the agent.
    pub fn log(&self) -> String {
        self.agent().log()
    }

    /// Runs `distd apt` on the device.
    pub fn distd(&self, args: &[&str]) -> Outcome {
        run(self.lab.command("till").arg("apt").args(args))
    }
}

/// Bytes that nothing packs.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    Rng::new(seed).bytes(bytes)
}

/// Checks that a command of apt succeeded; `log` is shown when it did not.
///
/// # Panics
/// When it failed.
pub fn ok(outcome: Outcome, log: &str) {
    assert_eq!(outcome.code, 0, "{}{}\n{log}", outcome.stdout, outcome.stderr);
}
