//! Two network namespaces joined by one cable: a site, and the network behind its router.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Address of the site's namespace on the cable.
pub const SITE: &str = "10.77.0.2";
/// Address of the router on the cable.
pub const ROUTER: &str = "10.77.0.1";
/// Address in the network behind the router.
pub const FAR: &str = "10.88.0.1";

/// The pair of namespaces; removed when dropped.
#[derive(Debug)]
pub struct Namespaces {
    site: String,
    far: String,
}

/// A namespace in which commands can be started.
#[derive(Clone, Debug)]
pub struct Place(String);

impl Place {
    pub(crate) fn of(namespace: &str) -> Self {
        Self(namespace.to_owned())
    }

    /// Makes `command` run in this namespace.
    pub fn run(&self, command: &Command) -> Command {
        inside(&self.0, command)
    }
}

fn inside(namespace: &str, command: &Command) -> Command {
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", namespace]).arg(command.get_program()).args(command.get_args());
    // Proxy settings of the host do not apply in the namespace.
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"] {
        inside.env_remove(name);
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            inside.env(name, value);
        }
    }
    inside.stdin(std::process::Stdio::null());
    inside
}

pub(crate) fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().expect("run ip: install iproute2");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Namespaces {
    /// Makes both namespaces, joined by a cable; the site's default route leads to the router.
    ///
    /// # Panics
    /// If the test does not run as root, or the kernel has no namespaces.
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (tag, n) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let this = Self { site: format!("distd-site-{tag}-{n}"), far: format!("distd-far-{tag}-{n}") };
        let (site, far) = (&this.site, &this.far);
        for ns in [site, far] {
            ip(&format!("netns add {ns}"));
            ip(&format!("-n {ns} link set lo up"));
        }
        ip(&format!("-n {site} link add up0 type veth peer name down0 netns {far}"));
        ip(&format!("-n {site} address add {SITE}/24 dev up0"));
        ip(&format!("-n {far} address add {ROUTER}/24 dev down0"));
        ip(&format!("-n {far} address add {FAR}/32 dev lo"));
        ip(&format!("-n {site} link set up0 up"));
        ip(&format!("-n {far} link set down0 up"));
        ip(&format!("-n {site} route add default via {ROUTER}"));
        this
    }

    /// Makes `command` run in the site.
    pub fn in_site(&self, command: &Command) -> Command {
        inside(&self.site, command)
    }

    /// Makes `command` run at the router.
    pub fn at_router(&self, command: &Command) -> Command {
        inside(&self.far, command)
    }

    /// A handle that makes commands run at the router.
    pub fn router(&self) -> Place {
        Place(self.far.clone())
    }

    /// Drops, from now on, every packet between site and router that matches `what`, an nftables
    /// expression such as `meta l4proto udp` or `tcp dport 7444`.
    ///
    /// # Panics
    /// When `nft` is missing or refuses.
    pub fn cut(&self, what: &str) {
        // Packets are dropped on their way in, so a sender in the site gets no error; a sender at
        // the router does.
        let rules = format!(
            "add table inet distd; \
             add chain inet distd in {{ type filter hook input priority 0; }}; \
             add chain inet distd out {{ type filter hook output priority 0; }}; \
             add rule inet distd in iifname down0 {what} drop; add rule inet distd out oifname down0 {what} drop"
        );
        self.nft(&rules);
    }

    /// Narrows the path, from now on: datagrams longer than `bytes`, IP header included, do not
    /// reach the site, and no router reports that. The sender's kernel splits a batch of datagrams
    /// itself, as a network card would; otherwise two short datagrams would count as one long.
    ///
    /// # Panics
    /// When `nft` is missing or refuses.
    pub fn narrow(&self, bytes: u32) {
        ip(&format!("-n {} link set down0 gso_max_segs 1", self.far));
        let rules = format!(
            "add table inet distd; add chain inet distd in {{ type filter hook input priority 0; }}; \
             add rule inet distd in iifname up0 meta l4proto udp meta length > {bytes} drop"
        );
        let mut command = Command::new("nft");
        command.arg(&rules);
        let output = self.in_site(&command).output().expect("run ip");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nft {rules}: {said} (install nftables)");
    }

    /// Lets everything pass again.
    ///
    /// # Panics
    /// If nothing was blocked before.
    pub fn let_through(&self) {
        self.nft("delete table inet distd");
    }

    fn nft(&self, rules: &str) {
        let mut command = Command::new("nft");
        command.arg(rules);
        let output = self.at_router(&command).output().expect("run ip");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nft {rules}: {said} (install nftables)");
    }

    /// IPv4 packets that the router has received from the site so far, without multicast, which
    /// belongs to the cable and is not routed.
    ///
    /// # Panics
    /// If the kernel does not count packets.
    pub fn packets_out(&self) -> u64 {
        self.counter("/proc/net/snmp", "Ip:", "InReceives")
            - self.counter("/proc/net/netstat", "IpExt:", "InMcastPkts")
    }

    fn counter(&self, file: &str, line: &str, name: &str) -> u64 {
        let shown = Command::new("ip").args(["netns", "exec", &self.far, "cat", file]).output();
        let text = String::from_utf8(shown.expect("run ip").stdout).expect("text");
        let mut lines = text.lines().filter(|text| text.starts_with(line));
        let (names, numbers) = (lines.next().expect("names"), lines.next().expect("numbers"));
        let at = names.split(' ').position(|other| other == name).expect("the kernel counts packets");
        numbers.split(' ').nth(at).and_then(|n| n.parse().ok()).expect("a number")
    }
}

impl Default for Namespaces {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for ns in [&self.site, &self.far] {
            // A namespace that cannot be removed goes with the machine.
            let _ = Command::new("ip").args(["netns", "delete", ns]).status();
        }
    }
}
