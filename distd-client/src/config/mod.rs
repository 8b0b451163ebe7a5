//! Settings of a device: [`TABLE`] describes each of them once. `login` and `enroll` keep some of
//! them in the file `DIR/client.toml`, so that later commands need no options.

mod table;

use std::net::{Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use distd_core::fleet::window::Window;
use distd_core::names::{Name, Wanted};
use distd_peer::apt::{self, AptSettings};
use distd_peer::net::{Outbound, Proxies, Transport};
use distd_peer::rates::LimitsFile;
use distd_peer::settings::{CommandLine, Resolved, SettingsError, SettingsFile, Source};
use distd_peer::trust::files::{self, FileError};
use jiff::tz::TimeZone;

pub use self::table::TABLE;
use crate::failure::{Code, Failure};
use crate::follow::{LoaderKind, PartitionPlace};
use crate::gateway::Offer;
use crate::pull::Downgrade;
use crate::share::Connectivity;

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "client.toml";

/// File in the state directory that records the transport by which each parent was reached.
const TRANSPORTS_FILE: &str = "transports.json";

/// Section of the file that [`LimitsFile`] describes.
const LIMITS: &str = "limits";

/// Default time that a finished pull lingers to serve neighbours.
const LINGER: Duration = Duration::from_secs(5);

/// Longest time that a finished pull can be told to linger, seconds.
const LINGER_SECONDS_MAX: u64 = DAY_SECONDS;

/// Default number of releases that stay in the directory of a channel that is followed.
const FOLLOW_KEEP: usize = 2;

/// Default number of releases of a product that stay in the gateway: the one before is the base of
/// the next.
const GATEWAY_KEEP: usize = 2;

/// Default time between two looks at a channel that is followed.
const FOLLOW_POLL: Duration = Duration::from_secs(5 * 60);

/// Default directory with the programs that are run at each state of an attempt.
const HOOKS: &str = "/etc/distd/hooks.d";

/// Default time limit of such a program.
const HOOK_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Time after which a receipt that a parent keeps must be in the log: a relay that is cut off for
/// some minutes is no reason for alarm.
const RECEIPT_BOUND: Duration = Duration::from_secs(3600);

/// Default longest time for which somebody at the device may put updates off.
const DEFER_MAX: Duration = Duration::from_secs(7 * DAY_SECONDS);

/// Default program that restarts the system.
const REBOOT_COMMAND: &str = "systemctl reboot";

/// Longest time limit, and longest time between two looks, seconds.
const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Views take at most one part in this many of the device's memory, unless its settings say more.
const VIEW_MEMORY_PART: u128 = 4;

/// Least default for the memory for views, bytes.
const VIEW_MEMORY_MIN: u64 = 16 << 20;

/// Default port of an agent.
const AGENT_PORT: u16 = 4434;

/// Reasons why the settings of a device could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The system refused the access, or other users may read the token in `client.toml`.
    #[error(transparent)]
    File(#[from] FileError),
    /// Mistakes in `client.toml`.
    #[error("the settings cannot be used: {}", .0.0.join("; "))]
    Contents(SettingsError),
    /// Mistakes in the environment or on the command line.
    #[error("the settings cannot be used: {}", .0.0.join("; "))]
    Settings(SettingsError),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let code = match &error {
            ConfigError::File(_) | ConfigError::Contents(_) => Code::Local,
            ConfigError::Settings(_) => Code::Usage,
        };
        Self::new(code, error.into())
    }
}

/// Values of all settings of a device but its rate limits.
#[derive(Clone)]
pub struct Values {
    /// URL of the origin's HTTP API.
    pub server: Option<String>,
    /// API token, a secret.
    pub token: Option<String>,
    /// Parents to pull from, nearest first, `HOST:PORT`.
    pub parents: Vec<String>,
    /// Transport to parents.
    pub transport: Transport,
    /// HTTP proxy to parents; `None` to use `HTTPS_PROXY`. The URL may hold a password.
    pub proxy_url: Option<String>,
    /// Networks to which packets may go.
    pub connectivity: Connectivity,
    /// Site of this device; `None` to let the parent decide. A relay puts all its askers in one
    /// site, an origin goes by the network at which it sees them.
    pub site: Option<String>,
    /// Whether the link is paid by the byte. A device on such a link serves nobody.
    pub metered: bool,
    /// Whether to look for neighbours by multicast DNS.
    pub mdns: bool,
    /// Whether this device exchanges chunks with its neighbours.
    pub share: bool,
    /// Address that `distd agent` listens on.
    pub listen: SocketAddr,
    /// Loopback address where `distd agent` serves metrics.
    pub metrics: Option<SocketAddr>,
    /// Time for which a finished pull lingers to serve neighbours that fetch from it.
    pub linger: Duration,
    /// Whether a channel may take this device back to an older release.
    pub downgrade: Downgrade,
    /// Memory for views that are packed or unpacked at once, MiB; `None` for a quarter of what the
    /// device has.
    pub view_memory_mib: Option<u64>,
    /// Channel that `distd agent` follows.
    pub follow: Option<Wanted>,
    /// Directory in which it installs the channel's releases.
    pub follow_directory: Option<PathBuf>,
    /// Number of releases that stay there.
    pub follow_keep: usize,
    /// Slots that the channel's releases are written to instead of a directory: the boot loader's
    /// name of each, and its block device.
    pub slots: Vec<(Name, PathBuf)>,
    /// Partitions of a release with their places in a slot; empty when a release is the image of
    /// the slot's device.
    pub partitions: Vec<PartitionPlace>,
    /// Boot loader that chooses among them.
    pub boot_loader: Option<LoaderKind>,
    /// Place where the boot loader keeps its choice.
    pub boot_path: Option<PathBuf>,
    /// Number of times that a release which does not start is started before it has failed.
    pub boot_tries: u32,
    /// Command that restarts the system; empty when something else restarts it.
    pub reboot_command: String,
    /// Label of the partition with a unified kernel image, for systemd-boot.
    pub unified_kernel: Option<String>,
    /// Path of the kernel in a slot, for systemd-boot.
    pub kernel: Option<PathBuf>,
    /// Path of the initial RAM disk in a slot, for systemd-boot.
    pub initrd: Option<PathBuf>,
    /// Options of the kernel, for systemd-boot; `{slot}` stands for the slot's name.
    pub kernel_options: String,
    /// Time between two looks at the channel.
    pub follow_poll: Duration,
    /// Parts of the week in which releases may be fetched; empty for the whole week.
    pub download_windows: Vec<Window>,
    /// Parts of the week in which a device may begin to install a release; empty for all of it.
    pub install_windows: Vec<Window>,
    /// Time zone of these; `None` for the system's.
    pub time_zone: Option<TimeZone>,
    /// Directory with the programs that are run at each state of an attempt.
    pub hooks: PathBuf,
    /// Time limit of each of these programs.
    pub hook_limit: Duration,
    /// Time within which a receipt of the device must be in the realm's log.
    pub receipt_bound: Duration,
    /// Longest time for which somebody at the device may put updates off; zero forbids it.
    pub defer_max: Duration,
    /// Address at which `distd agent` gives releases to other updaters.
    pub gateway_listen: Option<SocketAddr>,
    /// Products and channels that it offers there.
    pub gateway_offers: Vec<Offer>,
    /// Directory of these releases; `None` for one in the state directory.
    pub gateway_directory: Option<PathBuf>,
    /// Number of releases of a product that stay there.
    pub gateway_keep: usize,
    /// Certificate chain of the gateway, PEM.
    pub gateway_certificate: Option<PathBuf>,
    /// Key of that certificate, PEM.
    pub gateway_key: Option<PathBuf>,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            server: None,
            token: None,
            parents: Vec::new(),
            transport: Transport::default(),
            proxy_url: None,
            connectivity: Connectivity::default(),
            site: None,
            metered: false,
            mdns: true,
            share: true,
            listen: (Ipv6Addr::UNSPECIFIED, AGENT_PORT).into(),
            metrics: None,
            linger: LINGER,
            downgrade: Downgrade::default(),
            view_memory_mib: None,
            follow: None,
            follow_directory: None,
            follow_keep: FOLLOW_KEEP,
            slots: Vec::new(),
            partitions: Vec::new(),
            boot_loader: None,
            boot_path: None,
            boot_tries: 1,
            reboot_command: REBOOT_COMMAND.to_owned(),
            unified_kernel: None,
            kernel: None,
            initrd: None,
            kernel_options: String::new(),
            follow_poll: FOLLOW_POLL,
            download_windows: Vec::new(),
            install_windows: Vec::new(),
            time_zone: None,
            hooks: HOOKS.into(),
            hook_limit: HOOK_LIMIT,
            receipt_bound: RECEIPT_BOUND,
            defer_max: DEFER_MAX,
            gateway_listen: None,
            gateway_offers: Vec::new(),
            gateway_directory: None,
            gateway_keep: GATEWAY_KEEP,
            gateway_certificate: None,
            gateway_key: None,
        }
    }
}

impl Values {
    /// Memory for views that are packed or unpacked at once, bytes.
    pub fn view_memory(&self) -> u64 {
        self.view_memory_mib.map_or_else(
            || {
                let memory = rustix::system::sysinfo();
                // The number of units is a machine word.
                let physical = u128::from(memory.totalram) * u128::from(memory.mem_unit);
                let most = physical.min(distd_peer::process::memory_bound().into());
                u64::try_from(most / VIEW_MEMORY_PART).unwrap_or(u64::MAX).max(VIEW_MEMORY_MIN)
            },
            |mebibytes| mebibytes << 20,
        )
    }
}

/// Settings of a device that passed every check.
#[derive(Clone)]
pub struct Settings {
    values: Resolved<Values>,
    limits: LimitsFile,
    apt: Option<AptSettings>,
    data: PathBuf,
}

impl Deref for Settings {
    type Target = Values;

    fn deref(&self) -> &Values {
        &self.values
    }
}

impl Settings {
    /// Resolves the settings of the device whose state directory is `data`: command line over
    /// environment over `client.toml` over default. A missing file is the same as an empty one, and
    /// so is an empty variable.
    ///
    /// # Errors
    /// [`ConfigError`], with every mistake.
    pub fn resolve(
        data: &Path,
        command_line: &CommandLine,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let path = data.join(FILE_NAME);
        // The file holds a token, so this read refuses a file that others may read.
        let file = files::read_secret(&path)?.map(|bytes| SettingsFile::of_bytes(path.clone(), bytes));
        // The file by itself first: a mistake in it is one of this device, not of the command line.
        let (values, mut problems) = TABLE.resolve(&CommandLine::new(), |_| None, file.as_ref());
        let section = values.sections.get(LIMITS);
        let parsed = section.map_or_else(|| Ok(LimitsFile::default()), LimitsFile::of_section);
        let checked = parsed.and_then(|limits| match limits.check() {
            Ok(_) => Ok(limits),
            Err(wrong) => Err(wrong.to_string()),
        });
        let limits = checked.unwrap_or_else(|wrong| {
            problems.push(format!("{}: {wrong}", path.display()));
            LimitsFile::default()
        });
        let apt = values.sections.get(apt::SECTION).map(AptSettings::of_section).transpose();
        let apt = apt.unwrap_or_else(|wrong| {
            problems.push(format!("{}: {wrong}", path.display()));
            None
        });
        if !problems.is_empty() {
            return Err(ConfigError::Contents(SettingsError(problems)));
        }
        let filled = |name: &str| environment(name).filter(|text| !text.is_empty());
        let (values, problems) = TABLE.resolve(command_line, filled, file.as_ref());
        match problems.is_empty() {
            true => Ok(Self { values, limits, apt, data: data.to_owned() }),
            false => Err(ConfigError::Settings(SettingsError(problems))),
        }
    }

    /// Resolves the settings from `client.toml` in `data` alone.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn of_file(data: &Path) -> Result<Self, ConfigError> {
        Self::resolve(data, &CommandLine::new(), |_| None)
    }

    /// Returns the layer that the value of `key` comes from.
    pub fn source(&self, key: &str) -> &Source {
        self.values.source(key)
    }

    /// Returns the section `[limits]`, which passed its checks.
    pub fn limits(&self) -> &LimitsFile {
        &self.limits
    }

    /// Returns the section `[apt]`; `None` for a device without a proxy for apt.
    pub fn apt(&self) -> Option<&AptSettings> {
        self.apt.as_ref()
    }

    /// Returns each value and its source as commented TOML, without secrets:
    /// `distd agent --effective`.
    pub fn effective(&self) -> String {
        TABLE.effective(&self.values)
    }

    /// Returns how parents are reached, for a device whose packets may go as far as `reach`.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`] when `proxy_url` is not a valid proxy URL.
    pub fn outbound(&self, reach: Connectivity) -> anyhow::Result<Arc<Outbound>> {
        let proxies = match &self.proxy_url {
            // A proxy would forward packets beyond the networks they must not leave.
            _ if reach != Connectivity::Online => Proxies::none(),
            Some(url) => Proxies::fixed(url).map_err(|e| {
                let next = format!("correct proxy_url ({})", self.source("proxy_url"));
                Failure::new(Code::Usage, e.into()).next(next)
            })?,
            None => Proxies::of_environment(),
        };
        Ok(Outbound::new(self.transport, proxies, &self.data.join(TRANSPORTS_FILE)))
    }
}

/// Puts values into `client.toml` in `data`, and leaves everything else in it: `None` removes a
/// key. A dot separates a section from its key. The file has mode 0600.
///
/// # Errors
/// [`ConfigError`]; the file is unchanged.
pub fn remember(data: &Path, changes: &[(&str, Option<toml::Value>)]) -> Result<(), ConfigError> {
    files::create_private_dir(data)?;
    let path = data.join(FILE_NAME);
    let mut table = match files::read_secret(&path)? {
        Some(bytes) => SettingsFile::of_bytes(path.clone(), bytes).table().map_err(ConfigError::Contents)?,
        None => toml::Table::new(),
    };
    for (key, value) in changes {
        let (table, key) = match key.split_once('.') {
            Some((section, key)) => {
                let below = table.entry(section).or_insert_with(|| toml::Table::new().into());
                let Some(below) = below.as_table_mut() else {
                    let wrong = format!("{}: {section} is no section", path.display());
                    return Err(ConfigError::Contents(SettingsError(vec![wrong])));
                };
                (below, key)
            }
            None => (&mut table, *key),
        };
        match value {
            Some(value) => table.insert(key.to_owned(), value.clone()),
            None => table.remove(key),
        };
    }
    Ok(files::write_atomic(&path, table.to_string().as_bytes(), 0o600)?)
}

/// Checks `HOST:PORT` of a relay or an origin.
///
/// # Errors
/// The end of a sentence about the text.
pub fn parent(text: &str) -> Result<String, String> {
    let wrong = || {
        "is not HOST:PORT: a name or an address, [..] around one of IPv6, and the port for nodes (7444 at an origin)"
            .to_owned()
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bracketed = host.strip_prefix('[').is_some_and(|rest| rest.ends_with(']'));
    let bad_host = host.is_empty() || host.contains(['/', '@', ' ']) || (host.contains(':') && !bracketed);
    match port.parse::<u16>() {
        Ok(1..) if !bad_host => Ok(text.to_owned()),
        _ => Err(wrong()),
    }
}

/// Returns the default state directory: `/var/lib/distd` for root, else `$XDG_STATE_HOME/distd` or
/// `~/.local/state/distd`.
///
/// `None` when the user is not root and neither variable has an absolute path.
pub fn default_data(root: bool, env: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    if root {
        return Some("/var/lib/distd".into());
    }
    // The XDG Base Directory specification says to ignore relative paths.
    let absolute = |name| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("distd"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::failure::{advice, code_of};

    fn written(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        files::write_atomic(&dir.path().join(FILE_NAME), text.as_bytes(), 0o600).expect("write");
        dir
    }

    fn refused(text: &str) -> String {
        let dir = written(text);
        Settings::of_file(dir.path()).err().expect("mistakes").to_string()
    }

    #[test]
    fn remembered_values_are_loaded_and_only_their_owner_can_read_the_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(Settings::of_file(dir.path()).expect("no file").server.is_none());
        let path = dir.path().join(FILE_NAME);
        let text = "site = \"hall\"\n[share]\nlinger_seconds = 7\n[[limits.windows]]\nfrom = \"08:00\"\n\
                    to = \"17:00\"\nupload_bytes_per_second = 5000\n";
        files::write_atomic(&path, text.as_bytes(), 0o600).expect("write");
        let server = toml::Value::from("https://origin:8443");
        let parents = toml::Value::from(vec!["relay:4433".to_owned()]);
        remember(dir.path(), &[("server", Some(server)), ("parents", Some(parents))]).expect("remember");
        let settings = Settings::of_file(dir.path()).expect("load");
        assert_eq!(settings.server.as_deref(), Some("https://origin:8443"));
        assert_eq!(settings.parents, ["relay:4433"]);
        assert_eq!((settings.site.as_deref(), settings.linger.as_secs()), (Some("hall"), 7));
        assert_eq!(settings.limits().windows.len(), 1);
        let channel = toml::Value::from("os:stable");
        remember(dir.path(), &[("follow.channel", Some(channel))]).expect("remember");
        let follow = Settings::of_file(dir.path()).expect("settings").follow.clone().expect("a channel");
        assert_eq!(follow.to_string(), "os:stable");
        remember(dir.path(), &[("parents.x", Some(1.into()))]).expect_err("parents is no section");
        remember(dir.path(), &[("server", None)]).expect("forget");
        assert!(Settings::of_file(dir.path()).expect("load").server.is_none());
        assert_eq!(std::fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = Settings::of_file(dir.path()).err().expect("open to others");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn the_command_line_comes_before_the_environment_and_both_before_the_file() {
        let dir = written("transport = \"quic\"\nsite = \"hall\"\nmetered = true\n");
        let line = CommandLine::from([("site", vec!["yard".to_owned()])]);
        let environment = |name: &str| match name {
            "DISTD_SITE" => Some("street".to_owned()),
            "DISTD_TRANSPORT" => Some("https".to_owned()),
            "DISTD_METERED" => Some(String::new()),
            _ => None,
        };
        let settings = Settings::resolve(dir.path(), &line, environment).expect("settings");
        assert_eq!(settings.site.as_deref(), Some("yard"));
        assert_eq!(settings.transport, Transport::Https);
        assert!(settings.metered);
        let shown = settings.effective();
        assert!(shown.contains("transport = \"https\"  # environment variable DISTD_TRANSPORT"), "{shown}");
        assert!(shown.contains("mdns = true  # default"), "{shown}");
    }

    #[test]
    fn what_effective_prints_is_a_file_with_the_same_values() {
        let dir = written("token = \"topsecret\"\nproxy_url = \"http://u:topsecret@proxy:1\"\n");
        let shown = Settings::of_file(dir.path()).expect("settings").effective();
        assert!(!shown.contains("topsecret"), "{shown}");
        let again = written(&shown);
        let again = Settings::of_file(again.path()).expect("settings");
        assert!(again.metrics.is_none() && again.server.is_none() && again.site.is_none());
        assert_eq!(again.listen, Values::default().listen);
    }

    #[test]
    fn mistakes_are_named_and_the_token_is_not_quoted() {
        assert!(refused("token = \"topsecret\"\nservr = \"x\"\n").contains("servr"));
        let error = refused("token = topsecret\n");
        assert!(error.contains("line 1") && !error.contains("topsecret"), "{error}");
        let error = refused("[limits]\nupload_slots = 0\nwindows = [{}]\n");
        assert!(error.contains("limits.upload_slots"), "{error}");
        assert!(error.contains("limits.windows[0].from"), "{error}");
        let error = refused("parents = [\"origin\"]\nmdns = \"perhaps\"\n[limits]\nuploads = 1\n");
        for mistake in ["HOST:PORT", "neither true nor false", "uploads"] {
            assert!(error.contains(mistake), "{error}");
        }
        // The output shows an error on one line.
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn an_invalid_proxy_url_is_reported_before_dialling() {
        let with = |url: &str| {
            let dir = written(&format!("proxy_url = \"{url}\"\n"));
            let settings = Settings::of_file(dir.path()).expect("settings");
            let reach = |reach| settings.outbound(reach).map(|_| ());
            (reach(Connectivity::Online), reach(Connectivity::LanOnly))
        };
        assert!(with("http://u:p@proxy:3128").0.is_ok());
        let (online, lan_only) = with("socks5://u:topsecret@proxy:1080");
        let error = online.expect_err("no HTTP proxy");
        assert_eq!(code_of(&error), Code::Usage);
        let (text, next) = (format!("{error:#}"), advice(&error).expect("what to do"));
        assert!(!text.contains("topsecret") && next.contains("proxy_url"), "{text}; {next}");
        assert!(lan_only.is_ok(), "none is used there");
    }

    #[test]
    fn the_page_for_operators_has_this_table() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
        distd_peer::settings::check_page(&page, "distd", &TABLE.markdown());
    }

    #[test]
    fn the_defaults_in_words_are_the_defaults() {
        let values = Values::default();
        for setting in TABLE.settings.iter().filter(|setting| setting.default.starts_with('`')) {
            let default = setting.default.trim_matches('`');
            if setting.key != "proxy_url" {
                assert_eq!((setting.show)(&values).to_string().trim_matches('"'), default, "{}", setting.key);
            }
        }
    }

    #[test]
    fn a_parent_is_a_host_and_a_port() {
        for good in ["relay:4433", "10.0.0.1:1", "[::1]:7444", "[fe80::1%eth0]:4433", "a-b.example:65535"] {
            assert_eq!(parent(good).as_deref(), Ok(good));
        }
        let no_port = ["foo", "foo:", ":4433", "foo:0", "foo:65536", "foo:http"];
        for bad in no_port.into_iter().chain(["http://foo:4433", "foo/x:1", "::1:4433", "a b:1", "u@h:1"]) {
            assert!(parent(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_state_directory_follows_user_and_environment() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into())
        };
        let home = env(&[("HOME", "/home/a")]);
        assert_eq!(default_data(false, home), Some("/home/a/.local/state/distd".into()));
        let xdg = env(&[("HOME", "/home/a"), ("XDG_STATE_HOME", "/s")]);
        assert_eq!(default_data(false, xdg), Some("/s/distd".into()));
        let relative = env(&[("XDG_STATE_HOME", "s")]);
        assert_eq!(default_data(false, relative), None);
        assert_eq!(default_data(true, home), Some("/var/lib/distd".into()));
    }
}
