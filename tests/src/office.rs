//! An office: devices in network namespaces of their own on one switch, a router, and an origin's
//! network behind the router.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::netns::{Place, ip};

/// Address plan of the office.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// Private IPv4 addresses behind a NAT with one public address.
    Nat,
    /// IPv6 without a NAT, and no IPv4 at all, not even 127.0.0.1.
    Ipv6,
}

/// The namespaces of an office; removed when dropped.
#[derive(Debug)]
pub struct Office {
    numbering: Numbering,
    far: String,
    router: String,
    devices: Vec<String>,
}

impl Office {
    /// Makes an office of `devices` devices, whose default route leads through its router.
    ///
    /// # Panics
    /// If the test does not run as root, or the kernel lacks namespaces, bridges or nftables.
    pub fn new(numbering: Numbering, devices: usize) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (tag, made) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let name = |what: String| format!("distd-{what}-{tag}-{made}");
        let devices = (0..devices).map(|n| name(format!("dev{n}"))).collect();
        let this = Self { numbering, far: name("wan".into()), router: name("gate".into()), devices };
        let (far, router) = (&this.far, &this.router);
        for ns in this.devices.iter().chain([far, router]) {
            ip(&format!("netns add {ns}"));
            ip(&format!("-n {ns} link set lo up"));
            if numbering == Numbering::Ipv6 {
                ip(&format!("-n {ns} address delete 127.0.0.1/8 dev lo"));
            }
        }
        ip(&format!("-n {router} link add wan0 type veth peer name isp0 netns {far}"));
        ip(&format!("-n {router} link add lan0 type bridge"));
        for (ns, device, n) in [(router, "wan0", 7), (far, "isp0", 1)] {
            ip(&format!("-n {ns} address add {} dev {device}{}", this.wan(n), this.no_wait()));
            ip(&format!("-n {ns} link set {device} up"));
        }
        ip(&format!("-n {router} address add {} dev lan0{}", this.lan(1), this.no_wait()));
        ip(&format!("-n {router} link set lan0 up"));
        for (n, ns) in this.devices.iter().enumerate() {
            ip(&format!("-n {router} link add port{n} type veth peer name eth0 netns {ns}"));
            ip(&format!("-n {router} link set port{n} master lan0"));
            ip(&format!("-n {router} link set port{n} up"));
            ip(&format!("-n {ns} address add {} dev eth0{}", this.lan(10 + n), this.no_wait()));
            ip(&format!("-n {ns} link set eth0 up"));
            ip(&format!("-n {ns} route add default via {}", plain(&this.lan(1))));
        }
        match numbering {
            Numbering::Nat => {
                this.at_router("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
                this.nft(
                    "add table ip office; \
                     add chain ip office post { type nat hook postrouting priority 100; }; \
                     add rule ip office post oifname wan0 masquerade",
                );
            }
            Numbering::Ipv6 => {
                this.at_router("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
                ip(&format!("-n {far} route add 2001:db8:1::/64 via {}", plain(&this.wan(7))));
            }
        }
        this
    }

    fn wan(&self, n: usize) -> String {
        match self.numbering {
            Numbering::Nat => format!("203.0.113.{n}/24"),
            Numbering::Ipv6 => format!("2001:db8::{n}/64"),
        }
    }

    fn lan(&self, n: usize) -> String {
        match self.numbering {
            Numbering::Nat => format!("192.168.1.{n}/24"),
            Numbering::Ipv6 => format!("2001:db8:1::{n}/64"),
        }
    }

    /// Switches off duplicate address detection, so that IPv6 addresses can be used at once.
    fn no_wait(&self) -> &'static str {
        if self.numbering == Numbering::Ipv6 { " nodad" } else { "" }
    }

    /// Host part of an origin's addresses, in the network behind the router.
    pub fn origin_host(&self) -> String {
        match self.numbering {
            Numbering::Nat => plain(&self.wan(1)),
            Numbering::Ipv6 => format!("[{}]", plain(&self.wan(1))),
        }
    }

    /// The namespace behind the router.
    pub fn beyond(&self) -> Place {
        Place::of(&self.far)
    }

    /// The namespace of the router's own programs.
    pub fn gate(&self) -> Place {
        Place::of(&self.router)
    }

    /// Address of the router in the office.
    pub fn gate_host(&self) -> String {
        plain(&self.lan(1))
    }

    /// The namespace of one device.
    pub fn device(&self, n: usize) -> Place {
        Place::of(&self.devices[n])
    }

    /// Isolates the devices, from now on: they reach the router but not each other, like customers
    /// behind a carrier's NAT.
    pub fn isolate(&self) {
        for n in 0..self.devices.len() {
            ip(&format!("-n {} link set dev port{n} type bridge_slave isolated on", self.router));
        }
        // They do not reach each other through the router either, which would send a packet back to
        // where it came from.
        self.forward_no("iifname lan0 oifname lan0");
    }

    /// Lets nothing leave the office, from now on, except the router's own packets.
    pub fn nothing_out(&self) {
        self.forward_no("oifname wan0");
    }

    fn forward_no(&self, what: &str) {
        self.nft(&format!(
            "add table inet cut; add chain inet cut forward {{ type filter hook forward priority 0; }}; \
             add rule inet cut forward {what} drop"
        ));
    }

    fn nft(&self, rules: &str) {
        self.at_router("nft", &[rules]);
    }

    fn at_router(&self, program: &str, args: &[&str]) {
        let mut command = Command::new(program);
        command.args(args);
        let output = self.gate().run(&command).output().expect("run ip");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {said}");
    }
}

/// The address without its prefix length.
fn plain(network: &str) -> String {
    network.split('/').next().unwrap_or(network).to_owned()
}

impl Drop for Office {
    fn drop(&mut self) {
        for ns in self.devices.iter().chain([&self.far, &self.router]) {
            // A namespace that cannot be removed goes with the machine.
            let _ = Command::new("ip").args(["netns", "delete", ns]).status();
        }
    }
}
