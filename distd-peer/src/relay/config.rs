//! Settings of a relay: [`TABLE`] describes each of them once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::apt::{self, AptSettings};
use crate::net::Transport;
use crate::process::host_name;
use crate::rates::{Limits, LimitsFile, Throttle};
use crate::serve::ServeConfig;
use crate::settings::{
    CommandLine, Resolved, Setting, SettingsError, SettingsFile, Shown, Table, filled, number, parsed,
    without_password,
};
use crate::store::StoreConfig;

/// Settings of one relay.
#[derive(Clone)]
pub struct RelayConfig {
    /// Directory for state and cache.
    pub data: PathBuf,
    /// Parents, `HOST:PORT`, asked in this order.
    pub parents: Vec<String>,
    /// Address to listen on, UDP for QUIC and TCP for HTTPS.
    pub listen: SocketAddr,
    /// Whether `listen` is the default, which falls back from all IPv6 addresses to IPv4 on a host
    /// without IPv6.
    pub listen_is_default: bool,
    /// How parents are reached: QUIC, HTTPS or whichever gets through.
    pub transport: Transport,
    /// URL of the HTTP proxy towards parents; if `None`, `HTTPS_PROXY` applies. Secret, as it may
    /// contain a password.
    pub proxy_url: Option<String>,
    /// Name of the relay that operators see.
    pub label: String,
    /// Loopback address where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Bounds of the store.
    pub store: StoreConfig,
    /// Rate limit for chunks from parents.
    pub download: Option<Arc<Throttle>>,
    /// Bounds of the answering side.
    pub serve: ServeConfig,
    /// Proxy for apt; `None` for none.
    pub apt: Option<AptSettings>,
}

/// Values of all settings of a relay but its rate limits.
#[derive(Clone)]
pub struct Values {
    /// Directory for state and cache.
    pub data: PathBuf,
    /// Parents, `HOST:PORT`, asked in this order.
    pub parents: Vec<String>,
    /// Address to listen on, UDP for QUIC and TCP for HTTPS.
    pub listen: SocketAddr,
    /// How parents are reached: QUIC, HTTPS or whichever gets through.
    pub transport: Transport,
    /// URL of the HTTP proxy towards parents. Secret, as it may contain a password.
    pub proxy_url: Option<String>,
    /// Name of the relay that operators see.
    pub label: String,
    /// Loopback address where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Most batches answered at once.
    pub upload_slots_max: usize,
    /// Most connections of nodes.
    pub connections_max: usize,
    /// Most news streams of nodes.
    pub news_streams_max: usize,
    /// Most bytes of the edge store.
    pub cache_max_bytes: u64,
    /// Free space to leave on the store's file system, in bytes.
    pub cache_min_free_bytes: u64,
}

impl Default for Values {
    fn default() -> Self {
        let (store, serve) = (StoreConfig::default(), ServeConfig::default());
        Self {
            data: PathBuf::new(),
            parents: Vec::new(),
            listen: SocketAddr::from(([0u16; 8], LISTEN_PORT)),
            transport: Transport::default(),
            proxy_url: None,
            label: host_name("relay"),
            metrics: None,
            upload_slots_max: serve.upload_slots_max,
            connections_max: serve.connections_max,
            news_streams_max: serve.news_streams_max,
            cache_max_bytes: store.max_bytes,
            cache_min_free_bytes: store.min_free_bytes,
        }
    }
}

/// Default port of a relay.
const LISTEN_PORT: u16 = 4433;

/// Section of the file with the rate limits.
const LIMITS: &str = "limits";

/// Every setting of a relay. The file also has the sections `[limits]` and `[apt]`.
pub const TABLE: Table<Values> = Table {
    settings: &[
        Setting {
            key: "data",
            option: "data",
            variable: "DISTD_PEER_DATA",
            value: "DIR",
            several: false,
            default: "",
            help: "Directory for key, certificate and cache",
            set: |s, text| filled(text, "directory").map(|data| s.data = data),
            show: |s| Shown::Text(s.data.display().to_string()),
        },
        Setting {
            key: "parents",
            option: "parent",
            variable: "DISTD_PEER_PARENTS",
            value: "HOST:PORT",
            several: true,
            default: "",
            help: "Parent to pull from, the origin or another relay, nearest first",
            set: |s, text| filled(text, "address").map(|parent| s.parents.push(parent)),
            show: |s| Shown::List(s.parents.clone()),
        },
        Setting {
            key: "listen",
            option: "listen",
            variable: "DISTD_PEER_LISTEN",
            value: "ADDR:PORT",
            several: false,
            default: "`[::]:4433`",
            help: "Address to listen on, QUIC over UDP and HTTPS over TCP",
            set: |s, text| {
                parsed(text, "is not ADDRESS:PORT, as in 0.0.0.0:4433").map(|listen| s.listen = listen)
            },
            show: |s| Shown::Text(s.listen.to_string()),
        },
        Setting {
            key: "transport",
            option: "transport",
            variable: "DISTD_TRANSPORT",
            value: "HOW",
            several: false,
            default: "`auto`",
            help: "How parents are reached: auto, quic, or https where UDP is blocked",
            set: |s, text| {
                text.parse()
                    .map(|transport| s.transport = transport)
                    .map_err(|_| "is none of auto, quic and https".to_owned())
            },
            show: |s| Shown::Text(s.transport.to_string()),
        },
        Setting {
            key: "proxy_url",
            option: "",
            variable: "DISTD_PEER_PROXY_URL",
            value: "URL",
            several: false,
            default: "`HTTPS_PROXY`",
            help: "HTTP proxy towards parents, `http://[USER:PASSWORD@]HOST:PORT`",
            set: |s, text| filled(text, "URL").map(|url| s.proxy_url = Some(url)),
            show: |s| Shown::Text(s.proxy_url.as_deref().map(without_password).unwrap_or_default()),
        },
        Setting {
            key: "label",
            option: "label",
            variable: "DISTD_PEER_LABEL",
            value: "TEXT",
            several: false,
            default: "the host name",
            help: "Name of this relay that operators see",
            set: |s, text| filled(text, "name").map(|label| s.label = label),
            show: |s| Shown::Text(s.label.clone()),
        },
        Setting {
            key: "metrics",
            option: "metrics",
            variable: "DISTD_PEER_METRICS",
            value: "ADDR:PORT",
            several: false,
            default: "",
            help: "Loopback address to serve Prometheus metrics on, `http://ADDR:PORT/metrics`",
            set: |s, text| {
                parsed(text, "is not ADDRESS:PORT, as in 127.0.0.1:9100").map(|at| s.metrics = Some(at))
            },
            show: |s| Shown::Text(s.metrics.map(|at| at.to_string()).unwrap_or_default()),
        },
        Setting {
            key: "upload_slots_max",
            option: "upload-slots-max",
            variable: "DISTD_PEER_UPLOAD_SLOTS_MAX",
            value: "N",
            several: false,
            default: "128",
            help: "Most batches answered at once",
            set: |s, text| number(text, 1..=65536).map(|slots| s.upload_slots_max = slots),
            show: |s| Shown::Number(s.upload_slots_max as i128),
        },
        Setting {
            key: "connections_max",
            option: "connections-max",
            variable: "DISTD_PEER_CONNECTIONS_MAX",
            value: "N",
            several: false,
            default: "4096",
            help: "Most connections of nodes",
            set: |s, text| number(text, 1..=1 << 20).map(|connections| s.connections_max = connections),
            show: |s| Shown::Number(s.connections_max as i128),
        },
        Setting {
            key: "news_streams_max",
            option: "news-streams-max",
            variable: "DISTD_PEER_NEWS_STREAMS_MAX",
            value: "N",
            several: false,
            default: "2048",
            help: "Most nodes that are told of halts and newer metadata at once; the others poll",
            set: |s, text| number(text, 0..=1 << 20).map(|streams| s.news_streams_max = streams),
            show: |s| Shown::Number(s.news_streams_max as i128),
        },
        Setting {
            key: "cache.max_bytes",
            option: "cache-max-bytes",
            variable: "DISTD_PEER_CACHE_MAX_BYTES",
            value: "BYTES",
            several: false,
            default: "10000000000",
            help: "Most bytes of the cache",
            set: |s, text| number(text, 1..=u64::MAX).map(|bytes| s.cache_max_bytes = bytes),
            show: |s| Shown::Number(s.cache_max_bytes.into()),
        },
        Setting {
            key: "cache.min_free_bytes",
            option: "cache-min-free-bytes",
            variable: "DISTD_PEER_CACHE_MIN_FREE_BYTES",
            value: "BYTES",
            several: false,
            default: "256000000",
            help: "Free space that the cache leaves on its file system",
            set: |s, text| number(text, 0..=u64::MAX).map(|bytes| s.cache_min_free_bytes = bytes),
            show: |s| Shown::Number(s.cache_min_free_bytes.into()),
        },
    ],
    sections: &[LIMITS, apt::SECTION],
};

/// Settings of a relay, with the layer that each value comes from.
pub struct RelaySettings {
    values: Resolved<Values>,
    limits: Limits,
    apt: Option<AptSettings>,
}

impl RelaySettings {
    /// Resolves every value. `environment` returns the text of a variable; `file` is the TOML file
    /// to read, if any.
    ///
    /// # Errors
    /// [`SettingsError`] with one line for each mistake.
    pub fn resolve(
        command_line: &CommandLine,
        environment: impl Fn(&str) -> Option<String>,
        file: Option<&Path>,
    ) -> Result<Self, SettingsError> {
        Self::of(command_line, environment, file.map(SettingsFile::read).as_ref())
    }

    /// Like [`Self::resolve`], with a file that was read.
    ///
    /// # Errors
    /// [`SettingsError`] with one line for each mistake.
    pub fn of(
        command_line: &CommandLine,
        environment: impl Fn(&str) -> Option<String>,
        read: Option<&SettingsFile>,
    ) -> Result<Self, SettingsError> {
        let (values, mut problems) = TABLE.resolve(command_line, environment, read);
        let file = read.map(SettingsFile::path);
        let limits = match values.sections.get(LIMITS) {
            Some(section) => limits(section).unwrap_or_else(|wrong| {
                let file = file.unwrap_or(Path::new("")).display();
                problems.push(format!("{file}: {wrong}"));
                Limits::default()
            }),
            None => Limits::default(),
        };
        let apt = values.sections.get(apt::SECTION).map(AptSettings::of_section).transpose();
        let apt = apt.unwrap_or_else(|wrong| {
            let file = file.unwrap_or(Path::new("")).display();
            problems.push(format!("{file}: {wrong}"));
            None
        });
        if values.is_default("data") && problems.is_empty() {
            problems.push("no directory for key and cache: name one with --data DIR".to_owned());
        }
        if problems.is_empty() { Ok(Self { values, limits, apt }) } else { Err(SettingsError(problems)) }
    }

    /// Returns each value and its source as commented TOML, without passwords: `run --effective`.
    pub fn effective(&self) -> String {
        TABLE.effective(&self.values)
    }

    /// Returns the configuration of the relay.
    pub fn config(self) -> RelayConfig {
        let listen_is_default = self.values.is_default("listen");
        let Values { data, parents, listen, transport, proxy_url, label, metrics, .. } = &*self.values;
        RelayConfig {
            data: data.clone(),
            parents: parents.clone(),
            listen: *listen,
            listen_is_default,
            transport: *transport,
            proxy_url: proxy_url.clone(),
            label: label.clone(),
            metrics: *metrics,
            store: StoreConfig {
                max_bytes: self.values.cache_max_bytes,
                min_free_bytes: self.values.cache_min_free_bytes,
                ..StoreConfig::default()
            },
            download: self.limits.download.for_class(None),
            serve: ServeConfig {
                upload: self.limits.upload.for_class(None),
                upload_slots_max: self.values.upload_slots_max,
                connections_max: self.values.connections_max,
                news_streams_max: self.values.news_streams_max,
                ..ServeConfig::default()
            },
            apt: self.apt,
        }
    }
}

/// Parses the section `[limits]`.
fn limits(section: &toml::Value) -> Result<Limits, String> {
    LimitsFile::of_section(section)?.check_without_classes().map_err(|wrong| wrong.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RelaySettings, SettingsError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("write");
        RelaySettings::resolve(&CommandLine::new(), |_| None, Some(file.path()))
    }

    #[test]
    fn a_file_is_read_and_an_unknown_key_is_refused_by_name() {
        let error = read("data = \"/d\"\nlisen = \"[::]:4433\"").err().expect("typo");
        assert!(error.to_string().contains("lisen"), "{error}");
        let error =
            read("label = \"a\"\nproxy_url = \"http://u:topsecret@p:1\" 5\n").err().expect("not TOML");
        let error = error.to_string();
        assert!(error.contains("line 2") && !error.contains("topsecret"), "{error}");
        let wrong = "data = \"/d\"\n[limits]\nupload_slots = 3\ndownload_bytes_per_second = 1\n";
        let error = read(wrong).err().expect("no such limits").to_string();
        assert!(
            error.contains("upload_slots_max") && error.contains("download_bytes_per_second = 1"),
            "{error}"
        );
        let good = "data = \"/d\"\nparents = [\"a:1\"]\nproxy_url = \"http://u:topsecret@p:1\"\n[cache]\nmax_bytes = 5";
        let settings = match read(good) {
            Ok(settings) => settings,
            Err(error) => panic!("{error}"),
        };
        assert!(!settings.effective().contains("topsecret"), "{}", settings.effective());
        let config = settings.config();
        assert_eq!((config.store.max_bytes, config.parents.len(), config.listen_is_default), (5, 1, true));
    }

    #[test]
    fn without_a_directory_the_error_names_the_option() {
        let error = RelaySettings::resolve(&CommandLine::new(), |_| None, None).err().expect("no directory");
        assert!(error.to_string().contains("--data DIR"), "{error}");
    }

    #[test]
    fn the_page_for_operators_has_this_table() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
        crate::settings::check_page(&page, "distd-peer", &TABLE.markdown());
    }

    #[test]
    fn the_defaults_in_words_are_the_defaults() {
        let values = Values::default();
        for setting in TABLE.settings {
            let default = setting.default.trim_matches('`');
            if default.parse::<u64>().is_ok() || default.starts_with('[') {
                assert_eq!((setting.show)(&values).to_string().trim_matches('"'), default, "{}", setting.key);
            }
        }
    }
}
