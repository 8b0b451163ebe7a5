//! The section `[apt]` of the settings, the same for a device and a relay.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use super::reach::HostPattern;
use super::signatures::{Keys, Signatures};
use super::store::Bounds;

/// Name of the section.
pub const SECTION: &str = "apt";

/// Default address of the proxy.
pub const LISTEN: &str = "127.0.0.1:9977";

/// Directory of the cache in the state directory.
const DIRECTORY: &str = "apt";

/// Network of clients, as in `192.168.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no network, as in 192.168.0.0/16");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if bits > most { Err(wrong()) } else { Ok(Self { address, bits }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Network {
    /// Whether an address belongs to the network.
    pub fn has(&self, address: IpAddr) -> bool {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let (own, other) = (octets(self.address), octets(address.to_canonical()));
        own.len() == other.len()
            && (0..usize::from(self.bits)).all(|bit| {
                let mask = 0x80 >> (bit % 8);
                own[bit / 8] & mask == other[bit / 8] & mask
            })
    }
}

/// The section as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    listen: String,
    allowed_cidrs: Vec<String>,
    hosts: Vec<String>,
    private_hosts: Vec<String>,
    signatures: Signatures,
    keyrings: Vec<PathBuf>,
    etc: PathBuf,
    directory: Option<PathBuf>,
    max_bytes: u64,
    min_free_bytes: u64,
    stall_seconds: u64,
    tunnel_idle_seconds: u64,
    use_relay: bool,
    use_neighbours: bool,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            listen: LISTEN.to_owned(),
            allowed_cidrs: Vec::new(),
            hosts: Vec::new(),
            private_hosts: Vec::new(),
            signatures: Signatures::default(),
            keyrings: Vec::new(),
            etc: PathBuf::from("/etc/apt"),
            directory: None,
            max_bytes: 10_000_000_000,
            min_free_bytes: 1_000_000_000,
            stall_seconds: 30,
            tunnel_idle_seconds: 300,
            use_relay: true,
            use_neighbours: true,
        }
    }
}

/// Settings of a proxy.
#[derive(Clone, Debug)]
pub struct AptSettings {
    /// Address to listen on; `None` for a relay that serves its devices alone.
    pub listen: Option<SocketAddr>,
    /// Networks of clients, besides this machine.
    pub allowed: Vec<Network>,
    /// Hosts that are asked, besides the archives of Debian and Ubuntu.
    pub hosts: Vec<HostPattern>,
    /// Hosts that are asked and may have private addresses.
    pub private_hosts: Vec<HostPattern>,
    /// How signatures are treated.
    pub signatures: Signatures,
    /// Keys of repositories.
    pub keys: Keys,
    /// Directory of the cache; `None` for one in the state directory.
    pub directory: Option<PathBuf>,
    /// Bounds of the cache.
    pub bounds: Bounds,
    /// Longest silence of a mirror.
    pub stall: Duration,
    /// Longest time for which nothing goes through a tunnel.
    pub tunnel_idle: Duration,
    /// Whether a device asks its relay before a mirror.
    pub use_relay: bool,
    /// Whether a device asks its neighbours, and answers them.
    pub use_neighbours: bool,
    /// Whether packets may go to mirrors at all; a device whose packets stay in its networks asks
    /// its relay alone.
    pub asks_mirrors: bool,
}

impl AptSettings {
    /// Parses the section.
    ///
    /// # Errors
    /// The mistake, as a sentence.
    pub fn of_section(section: &toml::Value) -> Result<Self, String> {
        let written: Written = section
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| format!("[{SECTION}]: {}", error.message()))?;
        let wrong = |what: &str| format!("[{SECTION}]: {what}");
        let listen = match written.listen.as_str() {
            "" | "none" => None,
            text => Some(
                text.parse::<SocketAddr>()
                    .map_err(|_| wrong("listen is not ADDRESS:PORT, as in 127.0.0.1:9977, nor none"))?,
            ),
        };
        let allowed: Vec<Network> = written
            .allowed_cidrs
            .iter()
            .map(|text| text.parse().map_err(|error: String| wrong(&format!("allowed_cidrs: {error}"))))
            .collect::<Result<_, _>>()?;
        if listen.is_some_and(|listen| !listen.ip().to_canonical().is_loopback()) && allowed.is_empty() {
            return Err(wrong(
                "listen is beyond loopback, and allowed_cidrs names no network that may use the proxy",
            ));
        }
        let patterns = |texts: &[String], key: &str| -> Result<Vec<HostPattern>, String> {
            let parse = |text: &String| {
                text.parse().map_err(|_| {
                    wrong(&format!("{key}: {text:?} is no host, as in repo.example or *.example:8080"))
                })
            };
            texts.iter().map(parse).collect()
        };
        let seconds = |seconds: u64, key: &str| match seconds {
            1..=86400 => Ok(Duration::from_secs(seconds)),
            _ => Err(wrong(&format!("{key} is not between 1 and 86400"))),
        };
        Ok(Self {
            listen,
            allowed,
            hosts: patterns(&written.hosts, "hosts")?,
            private_hosts: patterns(&written.private_hosts, "private_hosts")?,
            signatures: written.signatures,
            keys: Keys { etc: written.etc, keyrings: written.keyrings },
            directory: written.directory,
            bounds: Bounds { max_bytes: written.max_bytes, min_free_bytes: written.min_free_bytes },
            stall: seconds(written.stall_seconds, "stall_seconds")?,
            tunnel_idle: seconds(written.tunnel_idle_seconds, "tunnel_idle_seconds")?,
            use_relay: written.use_relay,
            use_neighbours: written.use_neighbours,
            asks_mirrors: true,
        })
    }

    /// Directory of the cache of a node whose state directory is `data`.
    pub fn directory_in(&self, data: &Path) -> PathBuf {
        self.directory.clone().unwrap_or_else(|| data.join(DIRECTORY))
    }

    /// Whether a client at this address may use the proxy.
    pub fn admits(&self, address: IpAddr) -> bool {
        address.to_canonical().is_loopback() || self.allowed.iter().any(|network| network.has(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AptSettings, String> {
        AptSettings::of_section(&toml::Value::Table(text.parse().expect("TOML")))
    }

    #[test]
    fn an_empty_section_is_a_proxy_for_this_machine() {
        let settings = read("").expect("settings");
        assert_eq!(settings.listen, Some(LISTEN.parse().expect("an address")));
        assert!(settings.admits("127.0.0.1".parse().expect("an address")));
        assert!(settings.admits("::ffff:127.0.0.1".parse().expect("an address")));
        assert!(!settings.admits("192.168.1.1".parse().expect("an address")));
    }

    #[test]
    fn a_proxy_for_others_names_their_networks() {
        assert!(read("listen = \"0.0.0.0:9977\"").expect_err("open").contains("allowed_cidrs"));
        let text = "listen = \"[::]:9977\"\nallowed_cidrs = [\"10.1.0.0/15\", \"fd00::/8\"]\nsignatures = \"enforce\"";
        let settings = read(text).expect("settings");
        for (address, admitted) in [
            ("10.0.9.9", true),
            ("10.1.9.9", true),
            ("::ffff:10.1.9.9", true),
            ("10.2.0.1", false),
            ("fd12::1", true),
            ("fe80::1", false),
        ] {
            assert_eq!(settings.admits(address.parse().expect("an address")), admitted, "{address}");
        }
        assert!(read("listen = \"none\"").expect("settings").listen.is_none());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("lisen = \"x\"", "lisen"),
            ("listen = \"9977\"", "listen"),
            ("allowed_cidrs = [\"10.0.0.0/33\"]", "10.0.0.0/33"),
            ("hosts = [\"http://x\"]", "hosts"),
            ("private_hosts = [\"\"]", "private_hosts"),
            ("signatures = \"maybe\"", "maybe"),
            ("stall_seconds = 0", "stall_seconds"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
