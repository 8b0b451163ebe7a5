//! An origin's settings. [`TABLE`] describes each of them once; [`Settings::resolve`] checks those
//! that depend on each other.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use distd_core::bounds::ARTIFACT_BYTES_MAX;
use distd_core::packing::LEVEL_DEFAULT;
use distd_peer::apt::Network;
pub use distd_peer::settings::CommandLine;
use distd_peer::settings::{
    Resolved, Setting, SettingsError, SettingsFile, Shown, Table, duration, filled, flag, number, parsed,
    without_password,
};

use crate::http::DdiOptions;
use crate::ingest::IngestLimits;
use crate::origin::{GcOptions, Places, Tuning, WebhookOptions};
use crate::patches::PatchOptions;
use crate::signer::{KeyHolder, SignerLink};
use crate::tuf;

/// Environment variable that names the configuration file.
pub const ENV_CONFIG: &str = "DISTD_SERVER_CONFIG";

/// Keys of the settings that say where an origin is: every command of `distd-server` takes them.
pub const PLACE_KEYS: [&str; 5] = ["data", "db", "store", "keys", "signer"];

/// Bounds of the validity of node certificates, in seconds: clocks differ by minutes, and a CA
/// lasts ten years.
const VALIDITY_SECONDS: std::ops::RangeInclusive<u64> = 300..=365 * 24 * 3600;

/// Bounds of the validity of the metadata in a bundle, seconds: that of metadata which devices
/// poll, and what a role below the snapshot has left when it is signed again.
const BUNDLE_SECONDS: std::ops::RangeInclusive<u64> = 24 * 3600..=30 * 24 * 3600;

/// Validity that a capability may have, seconds.
const CAPABILITY_SECONDS: std::ops::RangeInclusive<u64> = 10..=7 * 24 * 3600;

/// Longest grace of a removal, and longest time between two collections, seconds.
const SPACE_SECONDS_MAX: u64 = 30 * 24 * 3600;

/// Most threads for patches. A thread takes some 200 MB.
const PATCH_THREADS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Most root keys of a realm.
const ROOT_KEYS_MAX: NonZeroU64 = NonZeroU64::new(tuf::ROOT_KEYS_MAX).expect("not zero");

/// Default time between two polls of a DDI device, hawkBit's own.
const DDI_POLL: Duration = Duration::from_secs(300);

/// Times between two polls that may be set, seconds: clients read hours of two digits.
const DDI_POLL_SECONDS: std::ops::RangeInclusive<u64> = 10..=24 * 3600;

/// Default port of HTTPS.
const HTTP_PORT: u16 = 7443;

/// Default port of QUIC.
const QUIC_PORT: u16 = 7444;

/// Values of all settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    /// Directory of keys, spool and, by default, everything else.
    pub data: PathBuf,
    /// Database: `sqlite:PATH` or `postgres://…`. Secret, as it may contain a password.
    pub db: String,
    /// Object store: a directory or `s3://…`.
    pub store: String,
    /// Directory of the CA's key and the TUF keys.
    pub keys: PathBuf,
    /// Unix socket of a signer that runs as another user; `None` if the origin starts its own.
    pub signer: Option<PathBuf>,
    /// Address for HTTPS, TCP.
    pub http: SocketAddr,
    /// Address for nodes: QUIC over UDP, HTTP/2 over TCP.
    pub quic: SocketAddr,
    /// Further names and addresses of the HTTPS certificate.
    pub name: Vec<String>,
    /// Whether HTTP is plain, on a loopback address only.
    pub http_plain: bool,
    /// Whether other origins use the same database and store.
    pub replica: bool,
    /// Address at which the other replicas reach this one's HTTP side; `None`: `http`.
    pub advertise: Option<SocketAddr>,
    /// Whether hawkBit's DDI is answered.
    pub ddi: bool,
    /// Address with which hrefs of DDI begin; empty: made from `name` or `http`.
    pub ddi_url: String,
    /// Time between two polls of a DDI device.
    pub ddi_poll: Duration,
    /// File with the settings of the OpenID provider; `None` where people sign in by API token
    /// alone.
    pub oidc: Option<PathBuf>,
    /// Validity of node certificates.
    pub cert_validity: Duration,
    /// Validity of the capabilities of nodes.
    pub capability_validity: Duration,
    /// Longest validity of the metadata in a bundle.
    pub bundle_validity: Duration,
    /// zstd level for files that the origin cuts.
    pub zstd_level: i32,
    /// Whether patches are made.
    pub patches: bool,
    /// Whether releases get a set from nothing.
    pub solid_sets: bool,
    /// Number of patches made at once.
    pub patch_threads: NonZeroUsize,
    /// zstd level within patches.
    pub patch_level: i32,
    /// Memory for making patches, in MiB.
    pub patch_memory_mib: u64,
    /// Longest artifact, in bytes.
    pub artifact_bytes_max: u64,
    /// Most bytes of one token's open uploads.
    pub upload_bytes_max: u64,
    /// Most open uploads of one token.
    pub uploads_max: u64,
    /// Time for which the bytes of a removed release stay.
    pub removal_grace: Duration,
    /// Time between two collections; zero: only on order.
    pub gc_period: Duration,
    /// Networks besides the public Internet to which webhooks may lead.
    pub webhook_network: Vec<Network>,
    /// File with the authorities that certify the receivers of webhooks.
    pub webhook_authorities: PathBuf,
    /// Files with the public root keys of a new realm; empty if the origin makes a root key.
    pub offline_root: Vec<PathBuf>,
    /// Number of root keys that must sign a root of a new realm.
    pub root_threshold: NonZeroU64,
}

impl Default for Values {
    fn default() -> Self {
        let everywhere = |port| SocketAddr::from(([0u16; 8], port));
        let Tuning {
            cert_validity, capability_validity, bundle_validity, patches, limits, gc, webhooks, ..
        } = Tuning::default();
        let PatchOptions { enabled, solid_sets, threads, level, memory_bytes } = patches;
        let IngestLimits { artifact_bytes_max, upload_bytes_max, uploads_max } = limits;
        Self {
            // These follow from the data directory, which has no default.
            data: PathBuf::new(),
            db: String::new(),
            store: String::new(),
            keys: PathBuf::new(),
            signer: None,
            http: everywhere(HTTP_PORT),
            quic: everywhere(QUIC_PORT),
            name: Vec::new(),
            http_plain: false,
            replica: false,
            advertise: None,
            ddi: false,
            ddi_url: String::new(),
            ddi_poll: DDI_POLL,
            oidc: None,
            cert_validity,
            bundle_validity,
            capability_validity,
            zstd_level: LEVEL_DEFAULT,
            patches: enabled,
            solid_sets,
            patch_threads: threads,
            patch_level: level,
            patch_memory_mib: memory_bytes >> 20,
            artifact_bytes_max,
            upload_bytes_max,
            uploads_max,
            removal_grace: gc.grace,
            gc_period: gc.period,
            webhook_network: webhooks.networks,
            webhook_authorities: webhooks.authorities,
            offline_root: Vec::new(),
            root_threshold: NonZeroU64::MIN,
        }
    }
}

fn path(path: &Path) -> Shown {
    Shown::Text(path.display().to_string())
}

/// An IP address as it stands in a URL.
fn host_of_url(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    parsed(text, "is not ADDRESS:PORT, as in 0.0.0.0:7443")
}

fn bytes(text: &str) -> Result<u64, String> {
    number(text, 1 << 20..=ARTIFACT_BYTES_MAX)
}

/// Address that others are added to: scheme, host, maybe port and path.
fn base_url(text: &str) -> Result<String, String> {
    let url = url::Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && (url.query(), url.fragment(), url.username(), url.password()) == (None, None, "", None)
    });
    let url = url.ok_or_else(|| "is no address, as in https://updates.example.com:7443".to_owned())?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn parsed_network(text: &str) -> Result<Network, String> {
    parsed(text, "is no network, as in 10.0.0.0/8")
}

fn parse_poll(text: &str) -> Result<Duration, String> {
    let poll = duration(text).filter(|poll| DDI_POLL_SECONDS.contains(&poll.as_secs()));
    poll.ok_or_else(|| "is no duration between 10s and 24h, as in 5m".to_owned())
}

fn host(text: &str) -> Result<String, String> {
    if is_host(text) {
        Ok(text.to_owned())
    } else {
        Err("is neither a host name nor an IP address".to_owned())
    }
}

/// Settings of an origin, with the layer that each value comes from.
#[derive(Clone, Debug)]
pub struct Settings(Resolved<Values>);

impl std::ops::Deref for Settings {
    type Target = Values;

    fn deref(&self) -> &Values {
        &self.0
    }
}

impl Settings {
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
        file: Option<&SettingsFile>,
    ) -> Result<Self, SettingsError> {
        let (mut settings, mut problems) = TABLE.resolve(command_line, environment, file);
        settings.complete(|values, is_default| {
            let places = Places::in_dir(&values.data);
            if is_default("db") {
                values.db = places.db;
            }
            if is_default("store") {
                values.store = places.store;
            }
            if is_default("keys") {
                values.keys.clone_from(&values.data);
            }
            if is_default("http") && values.http_plain {
                values.http = SocketAddr::from(([127, 0, 0, 1], HTTP_PORT));
            }
        });
        let (http, quic) = (settings.http, settings.quic);
        if settings.http_plain && !http.ip().is_loopback() {
            problems.push(format!(
                "http ({}): {http} is no loopback address, and plain HTTP would show tokens to the network: leave \
                 out http_plain, or listen on 127.0.0.1:{}",
                settings.source("http"),
                http.port()
            ));
        }
        if meet(http, quic) {
            problems.push(format!(
                "quic ({}): nodes are answered on UDP and TCP, and TCP {quic} is taken by http: choose another port",
                settings.source("quic")
            ));
        }
        if settings.replica {
            let source = settings.source("replica");
            if crate::db::sqlite_path(&settings.db).is_some() {
                problems.push(format!(
                    "replica ({source}): only one process can use a SQLite database: name a PostgreSQL database with db"
                ));
            }
            if crate::store::directory_of(&settings.store).is_some() {
                problems.push(format!(
                    "replica ({source}): only one process can use a directory as a store: name a bucket with store, as \
                     in s3://BUCKET"
                ));
            }
            if settings.advertise.is_none() && http.ip().is_unspecified() {
                problems.push(format!(
                    "replica ({source}): say at which address the other replicas reach this one: advertise = \
                     \"ADDRESS:{}\"",
                    http.port()
                ));
            }
        }
        let (keys, needed) = (settings.offline_root.len() as u64, settings.root_threshold.get());
        if keys > tuf::ROOT_KEYS_MAX {
            let source = settings.source("offline_root");
            problems.push(format!("offline_root ({source}): more than {} keys", tuf::ROOT_KEYS_MAX));
        } else if keys > 0 && needed > keys {
            let source = settings.source("root_threshold");
            problems.push(format!(
                "root_threshold ({source}): {needed} signatures, but offline_root names {keys} keys"
            ));
        }
        if settings.is_default("data") && problems.is_empty() {
            problems.push("say where to keep keys and data: --data DIR".to_owned());
        }
        if problems.is_empty() { Ok(Self(settings)) } else { Err(SettingsError(problems)) }
    }

    /// Returns each value and its source as commented TOML, without passwords: `serve --effective`.
    pub fn effective(&self) -> String {
        TABLE.effective(&self.0)
    }

    /// Returns whether no layer names `key`.
    pub fn is_default(&self, key: &str) -> bool {
        self.0.is_default(key)
    }

    /// Places of the origin's data and keys. Without a signer at a socket this process reads the
    /// keys.
    pub fn places(&self) -> Places {
        let keys = match &self.signer {
            Some(path) => KeyHolder::Signer(Arc::new(SignerLink::connect(path.clone()))),
            None => KeyHolder::ThisProcess(self.keys.clone()),
        };
        Places { data: self.data.clone(), db: self.db.clone(), store: self.store.clone(), keys }
    }

    /// Like [`Self::places`], with a signer that the origin starts: `program`, run as `distd-server
    /// signer`.
    pub fn places_with_signer(&self, program: PathBuf) -> Places {
        let mut places = self.places();
        if let KeyHolder::ThisProcess(keys) = &places.keys {
            let keys = keys.display().to_string();
            let validity = format!("{}s", self.cert_validity.as_secs());
            let bundles = format!("{}s", self.bundle_validity.as_secs());
            let arguments =
                ["signer", "--keys", &keys, "--cert-validity", &validity, "--bundle-validity", &bundles];
            let link = SignerLink::start(program, arguments.map(str::to_owned).to_vec());
            places.keys = KeyHolder::Signer(Arc::new(link));
        }
        places
    }

    /// Settings of hawkBit's DDI at an origin that listens on `http`; `None` where it is off.
    pub fn ddi_options(&self, http: SocketAddr) -> Option<DdiOptions> {
        let scheme = if self.http_plain { "http" } else { "https" };
        let url = match self.name.first() {
            _ if !self.ddi_url.is_empty() => self.ddi_url.clone(),
            Some(name) => {
                let host = name.parse::<IpAddr>().map_or_else(|_| name.clone(), host_of_url);
                format!("{scheme}://{host}:{}", http.port())
            }
            None if http.ip().is_unspecified() => format!("{scheme}://localhost:{}", http.port()),
            None => format!("{scheme}://{http}"),
        };
        self.ddi.then_some(DdiOptions { url, poll: self.ddi_poll })
    }

    /// Options of the origin.
    pub fn tuning(&self) -> Tuning {
        Tuning {
            hosts: self.name.clone(),
            cert_validity: self.cert_validity,
            capability_validity: self.capability_validity,
            bundle_validity: self.bundle_validity,
            zstd_level: self.zstd_level,
            patches: PatchOptions {
                enabled: self.patches,
                solid_sets: self.solid_sets,
                threads: self.patch_threads,
                level: self.patch_level,
                memory_bytes: self.patch_memory_mib << 20,
            },
            limits: IngestLimits {
                artifact_bytes_max: self.artifact_bytes_max,
                upload_bytes_max: self.upload_bytes_max,
                uploads_max: self.uploads_max,
            },
            gc: GcOptions { grace: self.removal_grace, period: self.gc_period },
            webhooks: WebhookOptions {
                networks: self.webhook_network.clone(),
                authorities: self.webhook_authorities.clone(),
            },
            offline_root: self.offline_root.clone(),
            root_threshold: self.root_threshold,
        }
    }
}

/// Parses the validity of a node's certificate, as in `24h`.
///
/// # Errors
/// The end of a sentence about the text.
pub fn parse_validity(text: &str) -> Result<Duration, String> {
    let validity = duration(text).filter(|validity| VALIDITY_SECONDS.contains(&validity.as_secs()));
    validity.ok_or_else(|| "is no duration between 5m and 365d, as in 24h".to_owned())
}

/// Parses the validity of a node's capability, as in `15m`.
///
/// # Errors
/// The end of a sentence about the text.
pub fn parse_capability_validity(text: &str) -> Result<Duration, String> {
    let validity = duration(text).filter(|validity| CAPABILITY_SECONDS.contains(&validity.as_secs()));
    validity.ok_or_else(|| "is no duration between 10s and 7d, as in 15m".to_owned())
}

/// Parses the longest validity of the metadata in a bundle, as in `14d`.
///
/// # Errors
/// The end of a sentence about the text.
pub fn parse_bundle_validity(text: &str) -> Result<Duration, String> {
    let fits = |validity: &Duration| validity.is_zero() || BUNDLE_SECONDS.contains(&validity.as_secs());
    let validity = if text == "0" { Some(Duration::ZERO) } else { duration(text).filter(fits) };
    validity.ok_or_else(|| "is neither 0 nor a duration between 24h and 30d, as in 14d".to_owned())
}

/// Parses the grace of a removal, or the time between two collections, as in `24h`.
///
/// # Errors
/// The end of a sentence about the text.
pub fn parse_space_time(text: &str) -> Result<Duration, String> {
    let fits = |time: &Duration| (1..=SPACE_SECONDS_MAX).contains(&time.as_secs());
    let time = if text == "0" { Some(Duration::ZERO) } else { duration(text).filter(fits) };
    time.ok_or_else(|| "is neither 0 nor a duration up to 30d, as in 24h".to_owned())
}

/// Whether two listeners of one protocol want the same port of the same address.
fn meet(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && (everywhere || a.ip() == b.ip())
}

fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.parse::<IpAddr>().is_ok()
        || text.len() <= 253 && text.strip_prefix("*.").unwrap_or(text).split('.').all(label)
}

mod table;

pub use table::TABLE;

#[cfg(test)]
mod tests;
