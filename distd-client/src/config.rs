//! The file `DIR/client.toml`: settings that `login` and `enroll` remember, so that later commands
//! need no options.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use distd_peer::net::{Outbound, Proxies, Transport};
use distd_peer::rates::{LimitsError, LimitsFile};
use distd_peer::trust::files::{self, FileError};
use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};
use crate::pull::Downgrade;
use crate::share::Connectivity;

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "client.toml";

/// File in the state directory that records the transport by which each parent was reached.
const TRANSPORTS_FILE: &str = "transports.json";

/// Reasons why `client.toml` could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The system refused the access, or other users may read the token in the file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not valid TOML, or has an unknown key or a value of the wrong type.
    #[error("{0} is malformed; correct it, or delete it and run distd login or distd enroll again")]
    Malformed(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// Limits that are out of range; the source lists all of them.
    #[error("{0} has invalid limits")]
    Limits(PathBuf, #[source] LimitsError),
}

/// Contents of `client.toml`. Unknown keys are refused because a misspelt key would silently do
/// nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// URL of the origin's HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// API token. It is a secret, so only the file's owner may read the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Parents to pull from, nearest first, `HOST:PORT`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<String>,
    /// Site of this device; `None` to let the parent decide. A relay puts all its askers in one
    /// site, an origin goes by the network at which it sees them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Whether the link is paid by the byte. A device on such a link serves nobody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub metered: bool,
    /// Whether to look for neighbours by multicast DNS; `None` for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mdns: Option<bool>,
    /// Networks to which packets may go.
    #[serde(default, skip_serializing_if = "Connectivity::is_default")]
    pub connectivity: Connectivity,
    /// Transport to parents.
    #[serde(default, skip_serializing_if = "Transport::is_default")]
    pub transport: Transport,
    /// HTTP proxy to parents; `None` to use `HTTPS_PROXY`. The URL may hold a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
    /// Settings of the exchange with neighbours.
    #[serde(default, skip_serializing_if = "ShareFile::is_default")]
    pub share: ShareFile,
    /// Limits on the traffic of both directions.
    #[serde(default, skip_serializing_if = "LimitsFile::is_default")]
    pub limits: LimitsFile,
    /// Rules for releases that come by channels.
    #[serde(default, skip_serializing_if = "PolicyFile::is_default")]
    pub policy: PolicyFile,
}

/// Section `[policy]` of `client.toml`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// Whether a channel may take this device back to an older release.
    #[serde(default, skip_serializing_if = "Downgrade::is_default")]
    pub downgrade: Downgrade,
}

impl PolicyFile {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Section `[share]` of `client.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareFile {
    /// Whether this device exchanges chunks with its neighbours; `None` for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Address that `distd agent` listens on, `ADDR:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Time for which a finished pull lingers to serve neighbours that fetch from it, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linger_seconds: Option<u64>,
}

impl ShareFile {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl ClientFile {
    /// Reads the file in `data`; a missing file is the same as an empty one.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(data: &Path) -> Result<Self, ConfigError> {
        let path = data.join(FILE_NAME);
        let Some(bytes) = files::read_secret(&path)? else { return Ok(Self::default()) };
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(e) => return Err(ConfigError::Malformed(path, e.into())),
        };
        let file: Self = toml::from_str(text).map_err(|e| {
            // The parser's message without the quoted line, which may be the line with the token.
            let what = e.message().to_owned();
            ConfigError::Malformed(path.clone(), what.into())
        })?;
        match file.limits.check() {
            Ok(_) => Ok(file),
            Err(wrong) => Err(ConfigError::Limits(path, wrong)),
        }
    }

    /// Returns how parents are reached, for a device whose packets may go as far as `reach` and
    /// whose state directory is `data`. `transport` overrides the setting of the same name.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`] when `proxy_url` is not a valid proxy URL.
    pub fn outbound(
        &self,
        data: &Path,
        transport: Option<Transport>,
        reach: Connectivity,
    ) -> anyhow::Result<Arc<Outbound>> {
        let proxies = match &self.proxy_url {
            // A proxy would forward packets beyond the networks they must not leave.
            _ if reach != Connectivity::Online => Proxies::none(),
            Some(url) => Proxies::fixed(url).map_err(|e| {
                let place = data.join(FILE_NAME);
                Failure::new(Code::Usage, e.into()).next(format!("correct proxy_url in {}", place.display()))
            })?,
            None => Proxies::of_environment(),
        };
        let transport = transport.unwrap_or(self.transport);
        Ok(Outbound::new(transport, proxies, &data.join(TRANSPORTS_FILE)))
    }

    /// Replaces the file in `data`, with mode 0600.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn store(&self, data: &Path) -> Result<(), ConfigError> {
        files::create_private_dir(data)?;
        let path = data.join(FILE_NAME);
        let text = match toml::to_string(self) {
            Ok(text) => text,
            Err(e) => return Err(ConfigError::Malformed(path, e.into())),
        };
        Ok(files::write_atomic(&path, text.as_bytes(), 0o600)?)
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

    #[test]
    fn a_stored_file_is_loaded_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(ClientFile::load(dir.path()).expect("none yet"), ClientFile::default());
        let file = ClientFile {
            transport: Transport::Https,
            proxy_url: Some("http://u:p@proxy:3128".into()),
            server: Some("https://origin:8443".into()),
            token: Some("secret".into()),
            parents: vec!["relay:4433".into()],
            site: Some("hall".into()),
            metered: true,
            mdns: Some(false),
            connectivity: Connectivity::LanOnly,
            share: ShareFile { enabled: Some(false), ..ShareFile::default() },
            limits: LimitsFile { upload_slots: Some(3), ..LimitsFile::default() },
            policy: PolicyFile { downgrade: Downgrade::Never },
        };
        file.store(dir.path()).expect("store");
        assert_eq!(ClientFile::load(dir.path()).expect("load"), file);
        let path = dir.path().join(FILE_NAME);
        assert_eq!(std::fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = ClientFile::load(dir.path()).expect_err("open to others");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_refused_and_the_token_is_not_quoted() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join(FILE_NAME);
        files::write_atomic(&path, b"token = \"topsecret\"\nservr = \"x\"\n", 0o600).expect("write");
        let error = anyhow::Error::from(ClientFile::load(dir.path()).expect_err("unknown key"));
        assert!(format!("{error:#}").contains("servr"), "{error:#}");
        files::write_atomic(&path, b"token = topsecret\n", 0o600).expect("write");
        let error = anyhow::Error::from(ClientFile::load(dir.path()).expect_err("not TOML"));
        assert!(!format!("{error:#}").contains("topsecret"), "{error:#}");
        files::write_atomic(&path, b"[limits]\nupload_slots = 0\nwindows = [{}]\n", 0o600).expect("write");
        let error = anyhow::Error::from(ClientFile::load(dir.path()).expect_err("no such limits"));
        let said = format!("{error:#}");
        assert!(said.contains("limits.upload_slots") && said.contains("limits.windows[0].from"), "{said}");
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
