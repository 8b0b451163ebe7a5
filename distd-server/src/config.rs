//! Settings of an origin. The command line overrides the environment (`DISTD_SERVER_*`), which
//! overrides the TOML file, which overrides the defaults.
//!
//! A value has the same text form and the same parser in every source, and every mistake is
//! reported, not only the first. docs/operations.md, "Origin", lists the keys.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use distd_core::bounds::ARTIFACT_BYTES_MAX;
use distd_core::packing::LEVEL_DEFAULT;

use crate::ingest::IngestLimits;
use crate::origin::{Places, Tuning};
use crate::patches::PatchOptions;
use crate::signer::{KeyHolder, SignerLink};
use crate::tuf::ROOT_KEYS_MAX;

/// Prefix of environment variables.
const ENV_PREFIX: &str = "DISTD_SERVER_";

/// Environment variable that names the file.
pub const ENV_CONFIG: &str = "DISTD_SERVER_CONFIG";

/// Largest configuration file read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// All keys, in the order in which they are shown.
pub const KEYS: [&str; 21] = [
    "data",
    "db",
    "store",
    "keys",
    "signer",
    "offline_root",
    "root_threshold",
    "http",
    "quic",
    "name",
    "http_plain",
    "cert_validity",
    "zstd_level",
    "patches",
    "solid_sets",
    "patch_threads",
    "patch_level",
    "patch_memory_mib",
    "artifact_bytes_max",
    "upload_bytes_max",
    "uploads_max",
];

/// Bounds of the validity of node certificates, seconds. Clocks differ by minutes, and a CA lasts
/// ten years.
const VALIDITY_SECONDS: std::ops::RangeInclusive<u64> = 300..=365 * 24 * 3600;

/// Most threads for patches. Each takes about 200 MB.
const PATCH_THREADS_MAX: usize = 1024;

/// Source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An option of the command line.
    CommandLine,
    /// This environment variable.
    Environment(String),
    /// This file.
    File(PathBuf),
    /// No source names the value.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("command line"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Source of the value.
    pub source: Source,
}

/// All settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory of keys, spool and, by default, everything else.
    pub data: Setting<PathBuf>,
    /// Database: `sqlite:PATH` or `postgres://…`.
    pub db: Setting<String>,
    /// Object store: a directory or `s3://…`.
    pub store: Setting<String>,
    /// Directory of the CA's key and the TUF keys.
    pub keys: Setting<PathBuf>,
    /// Unix socket of a signer that runs as another user. Without it the origin starts a signer of
    /// its own.
    pub signer: Setting<Option<PathBuf>>,
    /// Files with the public root keys of a new realm. Without them the origin makes a root key.
    pub offline_root: Setting<Vec<PathBuf>>,
    /// Number of root keys that must sign a root of a new realm.
    pub root_threshold: Setting<NonZeroU64>,
    /// Address for HTTPS, TCP.
    pub http: Setting<SocketAddr>,
    /// Address for nodes: QUIC over UDP, HTTP/2 over TCP.
    pub quic: Setting<SocketAddr>,
    /// Further names and addresses of the HTTPS certificate.
    pub name: Setting<Vec<String>>,
    /// Whether to serve plain HTTP, on a loopback address only.
    pub http_plain: Setting<bool>,
    /// Validity of node certificates.
    pub cert_validity: Setting<Duration>,
    /// zstd level for files that the origin cuts.
    pub zstd_level: Setting<i32>,
    /// Whether patches are made.
    pub patches: Setting<bool>,
    /// Whether releases also get a patch set from nothing.
    pub solid_sets: Setting<bool>,
    /// Number of patch jobs at once.
    pub patch_threads: Setting<NonZeroUsize>,
    /// zstd level within patches.
    pub patch_level: Setting<i32>,
    /// Memory for making patches, MiB.
    pub patch_memory_mib: Setting<u64>,
    /// Longest artifact, bytes.
    pub artifact_bytes_max: Setting<u64>,
    /// Most bytes of one token's open uploads.
    pub upload_bytes_max: Setting<u64>,
    /// Most open uploads of one token.
    pub uploads_max: Setting<u64>,
}

/// Settings given on the command line: texts by key.
pub type CommandLine = BTreeMap<&'static str, Vec<String>>;

/// All mistakes in the settings, one line each.
#[derive(Debug, thiserror::Error)]
#[error("the settings cannot be used:\n  {}", .0.join("\n  "))]
pub struct SettingsError(pub Vec<String>);

impl Settings {
    /// Resolves all settings. `environment` returns a variable's text; `file` is the TOML file to
    /// read, if any.
    ///
    /// # Errors
    /// [`SettingsError`] with one line for each mistake.
    pub fn resolve(
        command_line: &CommandLine,
        environment: impl Fn(&str) -> Option<String>,
        file: Option<&Path>,
    ) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let file = match file {
            Some(path) => (path.to_owned(), read_file(path, &mut problems)),
            None => (PathBuf::new(), BTreeMap::new()),
        };
        let mut layers = Layers { command_line, environment: &environment, file: &file, problems };

        let data = layers.pick("data", None, |text| match text {
            "" => Err("is empty: name a directory"),
            path => Ok(PathBuf::from(path)),
        });
        let places = Places::in_dir(data.as_ref().map_or(Path::new(""), |data| &data.value));
        let some = |text: &str| if text.is_empty() { Err("is empty") } else { Ok(text.to_owned()) };
        let db = layers.pick("db", Some(places.db), some);
        let store = layers.pick("store", Some(places.store), some);
        let data_dir = data.as_ref().map(|data| data.value.clone()).unwrap_or_default();
        let directory =
            |text: &str| if text.is_empty() { Err("is empty: name a directory") } else { Ok(text.into()) };
        let keys = layers.pick("keys", Some(data_dir), directory);
        let signer = layers.pick("signer", Some(None), |text| {
            if text.is_empty() { Err("is empty: name a socket") } else { Ok(Some(PathBuf::from(text))) }
        });
        let offline_root = layers.pick_all("offline_root", |text| {
            if text.is_empty() { Err("is empty: name a file") } else { Ok(PathBuf::from(text)) }
        });
        let root_threshold = layers.pick("root_threshold", Some(NonZeroU64::MIN), |text| {
            let threshold =
                text.parse().ok().filter(|threshold: &NonZeroU64| threshold.get() <= ROOT_KEYS_MAX);
            threshold.ok_or("is not a number between 1 and 32")
        });
        if let (Some(keys), Some(threshold)) = (&offline_root, &root_threshold) {
            let (files, needed) = (keys.value.len() as u64, threshold.value.get());
            if files > ROOT_KEYS_MAX {
                layers
                    .problems
                    .push(format!("offline_root ({}): {files} keys, more than {ROOT_KEYS_MAX}", keys.source));
            } else if files > 0 && needed > files {
                layers.problems.push(format!(
                    "root_threshold ({}): {needed} signatures, but offline_root names {files} keys",
                    threshold.source
                ));
            }
        }
        let yes_or_no = |text: &str| match text {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" => Ok(false),
            _ => Err("is neither true nor false"),
        };
        let http_plain = layers.pick("http_plain", Some(false), yes_or_no);
        let plain = http_plain.as_ref().is_some_and(|plain| plain.value);
        let everywhere = |port| SocketAddr::from(([0u16; 8], port));
        let http_default =
            if plain { SocketAddr::from(([127, 0, 0, 1], HTTP_PORT)) } else { everywhere(HTTP_PORT) };
        let address = |text: &str| text.parse().map_err(|_| "is not ADDRESS:PORT, as in 0.0.0.0:7443");
        let http = layers.pick("http", Some(http_default), address);
        let quic = layers.pick("quic", Some(everywhere(QUIC_PORT)), address);
        let name = layers.pick_all("name", |text| match is_host(text) {
            true => Ok(text.to_owned()),
            false => Err("is neither a host name nor an IP address"),
        });
        let tuning = Tuning::default();
        let cert_validity = layers.pick("cert_validity", Some(tuning.cert_validity), parse_validity);
        let zstd_level = layers.pick("zstd_level", Some(LEVEL_DEFAULT), |text| {
            text.parse()
                .ok()
                .filter(|level| (1..=19).contains(level))
                .ok_or("is not a number between 1 and 19")
        });
        let PatchOptions { enabled, solid_sets, threads, level, memory_bytes } = tuning.patches;
        let patches = layers.pick("patches", Some(enabled), yes_or_no);
        let solid_sets = layers.pick("solid_sets", Some(solid_sets), yes_or_no);
        let patch_threads = layers.pick("patch_threads", Some(threads), |text| {
            let threads =
                text.parse().ok().filter(|threads: &NonZeroUsize| threads.get() <= PATCH_THREADS_MAX);
            threads.ok_or("is not a number between 1 and 1024")
        });
        let patch_level = layers.pick("patch_level", Some(level), |text| {
            text.parse()
                .ok()
                .filter(|level| (1..=22).contains(level))
                .ok_or("is not a number between 1 and 22")
        });
        let patch_memory_mib = layers.pick("patch_memory_mib", Some(memory_bytes >> 20), |text| {
            let mib = text.parse().ok().filter(|mib| (64..=1 << 20).contains(mib));
            mib.ok_or("is not a number between 64 and 1048576")
        });

        let bytes = |text: &str| {
            let bytes = text.parse().ok().filter(|bytes| (1 << 20..=ARTIFACT_BYTES_MAX).contains(bytes));
            bytes.ok_or("is not a number of bytes between 1048576 and 17592186044416")
        };
        let IngestLimits { artifact_bytes_max, upload_bytes_max, uploads_max } = tuning.limits;
        let artifact_bytes_max = layers.pick("artifact_bytes_max", Some(artifact_bytes_max), bytes);
        let upload_bytes_max = layers.pick("upload_bytes_max", Some(upload_bytes_max), bytes);
        let uploads_max = layers.pick("uploads_max", Some(uploads_max), |text| {
            let uploads = text.parse().ok().filter(|uploads| (1..=100_000).contains(uploads));
            uploads.ok_or("is not a number between 1 and 100000")
        });

        if let (true, Some(http)) = (plain, &http)
            && !http.value.ip().is_loopback()
        {
            let Setting { value, source } = http;
            layers.problems.push(format!(
                "http ({source}): {value} is not a loopback address, and plain HTTP would show tokens to the network: \
                 leave out http_plain, or listen on 127.0.0.1:{}",
                value.port()
            ));
        }
        if let (Some(http), Some(quic)) = (&http, &quic)
            && meet(http.value, quic.value)
        {
            layers.problems.push(format!(
                "quic ({}): nodes connect over UDP and TCP, and http already uses TCP {}: choose another port",
                quic.source, quic.value
            ));
        }
        if data.is_none() && layers.problems.is_empty() {
            layers.problems.push("no directory for keys and data is given: add --data DIR".to_owned());
        }
        let problems = layers.problems;
        let patches = (patches, solid_sets, patch_threads, patch_level, patch_memory_mib);
        let limits = (artifact_bytes_max, upload_bytes_max, uploads_max);
        let db = (db, keys, signer, offline_root, root_threshold);
        match (data, db, store, http, quic, name, http_plain, cert_validity, zstd_level, patches, limits) {
            (
                Some(data),
                (Some(db), Some(keys), Some(signer), Some(offline_root), Some(root_threshold)),
                Some(store),
                Some(http),
                Some(quic),
                Some(name),
                Some(http_plain),
                Some(cert_validity),
                Some(zstd_level),
                (
                    Some(patches),
                    Some(solid_sets),
                    Some(patch_threads),
                    Some(patch_level),
                    Some(patch_memory_mib),
                ),
                (Some(artifact_bytes_max), Some(upload_bytes_max), Some(uploads_max)),
            ) if problems.is_empty() => Ok(Self {
                data,
                db,
                store,
                keys,
                signer,
                offline_root,
                root_threshold,
                http,
                quic,
                name,
                http_plain,
                cert_validity,
                zstd_level,
                patches,
                solid_sets,
                patch_threads,
                patch_level,
                patch_memory_mib,
                artifact_bytes_max,
                upload_bytes_max,
                uploads_max,
            }),
            _ => Err(SettingsError(problems)),
        }
    }

    /// All values and their sources as commented TOML, without passwords; printed by `serve
    /// --effective`.
    pub fn effective(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let names: Vec<String> = self.name.value.iter().map(|name| quoted(name)).collect();
        let signer = self.signer.value.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let roots: Vec<String> =
            self.offline_root.value.iter().map(|path| quoted(&path.display().to_string())).collect();
        let lines = [
            ("data", quoted(&self.data.value.display().to_string()), &self.data.source),
            ("db", quoted(&without_password(&self.db.value)), &self.db.source),
            ("store", quoted(&without_password(&self.store.value)), &self.store.source),
            ("keys", quoted(&self.keys.value.display().to_string()), &self.keys.source),
            ("signer", quoted(&signer), &self.signer.source),
            ("offline_root", format!("[{}]", roots.join(", ")), &self.offline_root.source),
            ("root_threshold", self.root_threshold.value.to_string(), &self.root_threshold.source),
            ("http", quoted(&self.http.value.to_string()), &self.http.source),
            ("quic", quoted(&self.quic.value.to_string()), &self.quic.source),
            ("name", format!("[{}]", names.join(", ")), &self.name.source),
            ("http_plain", self.http_plain.value.to_string(), &self.http_plain.source),
            (
                "cert_validity",
                quoted(&format!("{}s", self.cert_validity.value.as_secs())),
                &self.cert_validity.source,
            ),
            ("zstd_level", self.zstd_level.value.to_string(), &self.zstd_level.source),
            ("patches", self.patches.value.to_string(), &self.patches.source),
            ("solid_sets", self.solid_sets.value.to_string(), &self.solid_sets.source),
            ("patch_threads", self.patch_threads.value.to_string(), &self.patch_threads.source),
            ("patch_level", self.patch_level.value.to_string(), &self.patch_level.source),
            ("patch_memory_mib", self.patch_memory_mib.value.to_string(), &self.patch_memory_mib.source),
            (
                "artifact_bytes_max",
                self.artifact_bytes_max.value.to_string(),
                &self.artifact_bytes_max.source,
            ),
            ("upload_bytes_max", self.upload_bytes_max.value.to_string(), &self.upload_bytes_max.source),
            ("uploads_max", self.uploads_max.value.to_string(), &self.uploads_max.source),
        ];
        let mut out = String::new();
        for (key, value, source) in lines {
            let _ = writeln!(out, "{key} = {value}  # {source}");
        }
        out
    }

    /// Places of the origin's data and keys. Without a signer at a socket this process reads the
    /// keys.
    pub fn places(&self) -> Places {
        let keys = match &self.signer.value {
            Some(path) => KeyHolder::Signer(Arc::new(SignerLink::connect(path.clone()))),
            None => KeyHolder::ThisProcess(self.keys.value.clone()),
        };
        Places {
            data: self.data.value.clone(),
            db: self.db.value.clone(),
            store: self.store.value.clone(),
            keys,
        }
    }

    /// Like [`Self::places`], with a signer that the origin starts: `program`, run as `distd-server
    /// signer`.
    pub fn places_with_signer(&self, program: PathBuf) -> Places {
        let mut places = self.places();
        if let KeyHolder::ThisProcess(keys) = &places.keys {
            let keys = keys.display().to_string();
            let validity = format!("{}s", self.cert_validity.value.as_secs());
            let arguments = ["signer", "--keys", &keys, "--cert-validity", &validity];
            let link = SignerLink::start(program, arguments.map(str::to_owned).to_vec());
            places.keys = KeyHolder::Signer(Arc::new(link));
        }
        places
    }

    /// Options of the origin.
    pub fn tuning(&self) -> Tuning {
        Tuning {
            hosts: self.name.value.clone(),
            cert_validity: self.cert_validity.value,
            zstd_level: self.zstd_level.value,
            patches: PatchOptions {
                enabled: self.patches.value,
                solid_sets: self.solid_sets.value,
                threads: self.patch_threads.value,
                level: self.patch_level.value,
                memory_bytes: self.patch_memory_mib.value << 20,
            },
            limits: IngestLimits {
                artifact_bytes_max: self.artifact_bytes_max.value,
                upload_bytes_max: self.upload_bytes_max.value,
                uploads_max: self.uploads_max.value,
            },
            offline_root: self.offline_root.value.clone(),
            root_threshold: self.root_threshold.value,
        }
    }
}

/// Default port of HTTPS.
const HTTP_PORT: u16 = 7443;

/// Default port of QUIC.
const QUIC_PORT: u16 = 7444;

/// Sources of settings, and the mistakes found in them so far.
struct Layers<'a, E> {
    command_line: &'a CommandLine,
    environment: &'a E,
    file: &'a (PathBuf, BTreeMap<String, Vec<String>>),
    problems: Vec<String>,
}

impl<E: Fn(&str) -> Option<String>> Layers<'_, E> {
    /// Texts of the highest source that has the key, and that source.
    fn texts(&self, key: &str) -> Option<(Vec<String>, Source)> {
        if let Some(texts) = self.command_line.get(key) {
            return Some((texts.clone(), Source::CommandLine));
        }
        let variable = format!("{ENV_PREFIX}{}", key.to_uppercase());
        if let Some(text) = (self.environment)(&variable) {
            // These two keys can have several values, separated by commas.
            let texts = match key {
                "name" | "offline_root" => {
                    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
                }
                _ => vec![text],
            };
            return Some((texts, Source::Environment(variable)));
        }
        let (path, file) = self.file;
        file.get(key).map(|texts| (texts.clone(), Source::File(path.clone())))
    }

    fn pick<T>(
        &mut self,
        key: &str,
        default: Option<T>,
        parse: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Option<Setting<T>> {
        let Some((texts, source)) = self.texts(key) else {
            return default.map(|value| Setting { value, source: Source::Default });
        };
        let [text] = &texts[..] else {
            self.problems.push(format!("{key} ({source}): takes one value"));
            return None;
        };
        match parse(text) {
            Ok(value) => Some(Setting { value, source }),
            Err(why) => {
                self.problem(key, &source, text, why);
                None
            }
        }
    }

    fn pick_all<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Option<Setting<Vec<T>>> {
        let (texts, source) = self.texts(key).unwrap_or((Vec::new(), Source::Default));
        let mut value = Vec::new();
        for text in &texts {
            match parse(text) {
                Ok(one) => value.push(one),
                Err(why) => self.problem(key, &source, text, why),
            }
        }
        (value.len() == texts.len()).then_some(Setting { value, source })
    }

    fn problem(&mut self, key: &str, source: &Source, text: &str, why: &str) {
        let shown = without_password(text);
        self.problems.push(format!("{key} ({source}): {shown:?} {why}"));
    }
}

fn read_file(path: &Path, problems: &mut Vec<String>) -> BTreeMap<String, Vec<String>> {
    let mut values = BTreeMap::new();
    let shown = path.display();
    let text = match read_bounded(path) {
        Ok(text) => text,
        Err(error) => {
            problems.push(format!("{shown}: cannot be read: {error}"));
            return values;
        }
    };
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            problems.push(format!("{shown}: is not TOML: {error}"));
            return values;
        }
    };
    for (key, value) in table {
        if !KEYS.contains(&key.as_str()) {
            problems.push(format!("{shown}: unknown key {key:?}; the keys are {}", KEYS.join(", ")));
            continue;
        }
        let texts = match value {
            toml::Value::Array(several) => several.into_iter().map(text_of).collect(),
            one => text_of(one).map(|text| vec![text]),
        };
        match texts {
            Some(texts) => {
                values.insert(key, texts);
            }
            None => {
                problems.push(format!("{shown}: {key} is neither a text nor a number nor true nor false"))
            }
        }
    }
    values
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other("longer than 1 MiB"));
    }
    Ok(text)
}

fn text_of(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

/// Parses the validity of a node's certificate, as in `24h`.
///
/// # Errors
/// Reason why the text is not a validity.
pub fn parse_validity(text: &str) -> Result<Duration, &'static str> {
    let validity = parse_duration(text).filter(|validity| VALIDITY_SECONDS.contains(&validity.as_secs()));
    validity.ok_or("is not a duration between 5m and 365d, as in 24h")
}

/// Parses a duration such as `90`, `90s`, `15m`, `24h` or `7d`. A number without a unit is in
/// seconds.
fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    Some(Duration::from_secs(digits.parse::<u64>().ok()?.checked_mul(unit)?))
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

/// Address without its password, for messages.
fn without_password(address: &str) -> String {
    match url::Url::parse(address) {
        Ok(mut url) if url.password().is_some() => {
            // This fails only for URLs that cannot have a password.
            let _ = url.set_password(Some("***"));
            url.to_string()
        }
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command_line(pairs: &[(&'static str, &str)]) -> CommandLine {
        let mut line = CommandLine::new();
        for (key, value) in pairs {
            line.entry(*key).or_default().push((*value).to_owned());
        }
        line
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("write");
        file
    }

    #[test]
    fn a_data_directory_alone_is_enough() {
        let settings = Settings::resolve(&command_line(&[("data", "/d")]), |_| None, None).expect("settings");
        assert_eq!(settings.places().db, "sqlite:/d/distd.sqlite");
        assert_eq!(settings.http.value.port(), 7443);
        assert_eq!(settings.http.source, Source::Default);
        let error = Settings::resolve(&command_line(&[]), |_| None, None).expect_err("no directory");
        assert!(error.to_string().contains("--data DIR"), "{error}");
    }

    #[test]
    fn command_line_beats_environment_beats_file_beats_default() {
        let file = file(
            "data = \"/f\"\nzstd_level = 5\nhttp = \"127.0.0.1:1\"\nname = [\"a.example\", \"10.0.0.1\"]\n",
        );
        let environment = |name: &str| match name {
            "DISTD_SERVER_HTTP" => Some("127.0.0.1:2".to_owned()),
            "DISTD_SERVER_DATA" => Some("/e".to_owned()),
            _ => None,
        };
        let settings = Settings::resolve(&command_line(&[("data", "/c")]), environment, Some(file.path()))
            .expect("settings");
        assert_eq!(settings.data.value, Path::new("/c"));
        assert_eq!(settings.data.source, Source::CommandLine);
        assert_eq!(settings.http.value.port(), 2);
        assert_eq!(settings.http.source, Source::Environment("DISTD_SERVER_HTTP".to_owned()));
        assert_eq!(settings.zstd_level.value, 5);
        assert_eq!(settings.zstd_level.source, Source::File(file.path().to_owned()));
        assert_eq!(settings.name.value, ["a.example", "10.0.0.1"]);
        let shown = settings.effective();
        assert!(
            shown.contains("http = \"127.0.0.1:2\"  # environment variable DISTD_SERVER_HTTP"),
            "{shown}"
        );
        assert_eq!(shown.parse::<toml::Table>().expect("is TOML itself").len(), KEYS.len());
    }

    #[test]
    fn every_mistake_is_reported() {
        let file = file(
            "zstd_level = 40\nhtpp = \"x\"\ncert_validity = \"1s\"\nstore = 1.5\npatches = \"maybe\"\npatch_threads = 0\n",
        );
        let line = command_line(&[("data", "/d"), ("http", ":80"), ("name", "no host!")]);
        let error = Settings::resolve(&line, |_| None, Some(file.path())).expect_err("mistakes").to_string();
        for part in [
            "zstd_level",
            "\"htpp\"",
            "cert_validity",
            "http (command line)",
            "no host!",
            "store is",
            "patches (file",
            "patch_threads",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn plain_http_needs_a_loopback_address() {
        let on = |address| command_line(&[("data", "/d"), ("http_plain", "true"), ("http", address)]);
        assert!(Settings::resolve(&on("127.0.0.1:80"), |_| None, None).is_ok());
        assert!(Settings::resolve(&on("[::1]:80"), |_| None, None).is_ok());
        for address in ["0.0.0.0:80", "[::]:80", "192.168.1.1:80"] {
            let error = Settings::resolve(&on(address), |_| None, None).expect_err("refused");
            assert!(error.to_string().contains("loopback"), "{error}");
        }
        let without = command_line(&[("data", "/d"), ("http_plain", "true")]);
        let settings = Settings::resolve(&without, |_| None, None).expect("settings");
        assert!(settings.http.value.ip().is_loopback());
    }

    #[test]
    fn nodes_and_http_cannot_share_a_port() {
        let on = |http, quic| {
            let line = command_line(&[("data", "/d"), ("http", http), ("quic", quic)]);
            Settings::resolve(&line, |_| None, None)
        };
        let error = on("0.0.0.0:443", "[::]:443").expect_err("one port").to_string();
        assert!(error.contains("quic (command line)"), "{error}");
        assert!(on("192.0.2.1:443", "192.0.2.2:443").is_ok());
        assert!(on("127.0.0.1:0", "127.0.0.1:0").is_ok());
    }

    #[test]
    fn a_password_is_not_shown() {
        let line = command_line(&[("data", "/d"), ("db", "postgres://me:secret@db/distd")]);
        let shown = Settings::resolve(&line, |_| None, None).expect("settings").effective();
        assert!(!shown.contains("secret"), "{shown}");
    }
}
