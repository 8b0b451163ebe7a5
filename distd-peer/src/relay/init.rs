//! `distd-peer init`: writes the settings of a relay, after it asked for those that matter.

use std::path::{Path, PathBuf};

use super::{RelaySettings, TABLE};
use crate::process::host_name;
use crate::service;
use crate::settings::{CommandLine, EditError, FileEdit, Questions, SettingsError};
use crate::trust::files::{self, FileError};
use crate::trust::token::JoinToken;

/// File of the settings where the package is installed.
pub const CONFIG: &str = "/etc/distd/peer.toml";

/// Directory of the data where the package is installed.
const DATA: &str = "/var/lib/distd-peer";

/// Name of the file, beside that of the settings, from which the unit takes the join token.
const TOKEN_FILE: &str = "peer.env";

/// Unit of the relay.
const UNIT: &str = "distd-peer.service";

/// Comment at the top of a new file.
const HEADING: &str = "# Settings of the relay; docs/operations.md lists all of them.\n";

/// Order of `init`.
pub struct InitOrder {
    /// Settings of the command line.
    pub line: CommandLine,
    /// File of the settings.
    pub config: PathBuf,
    /// Join token, for the first start.
    pub token: Option<JoinToken>,
    /// Whether to write without asking.
    pub yes: bool,
    /// Whether to start the unit.
    pub start: bool,
}

/// Reason why the settings of a relay were not written.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A setting is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The file was not written.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The join token was not written.
    #[error(transparent)]
    File(#[from] FileError),
    /// No parent is named.
    #[error("a relay needs a parent, the origin or another relay; next: distd-peer init --parent HOST:PORT")]
    NoParent,
    /// The unit was not started.
    #[error("the settings are written, but the relay was not started")]
    Start(#[source] std::io::Error),
    /// The terminal failed.
    #[error("could not ask on the terminal")]
    Terminal(#[from] std::io::Error),
}

/// Asks, validates, shows the difference, writes the file, and says the next command.
///
/// # Errors
/// [`InitError`]; with all but the last two the file is as it was.
pub fn init(mut order: InitOrder) -> Result<(), InitError> {
    let mut asking = if order.yes { Questions::to_nobody() } else { Questions::on_terminal() };
    let mut edit = FileEdit::open(&order.config, HEADING)?;
    complete(&mut order, &edit, &asking)?;
    edit.set_all(&TABLE, &order.line)?;
    // The environment of this shell is not that of the service.
    let settings = RelaySettings::of(&CommandLine::new(), |_| None, Some(&edit.file()))?;
    let config = settings.config();
    if config.parents.is_empty() {
        return Err(InitError::NoParent);
    }
    edit.write(&mut asking, order.yes)?;
    let is_unit = order.config == Path::new(CONFIG) && service::is_installed(UNIT);
    if let Some(token) = &order.token {
        let path = order.config.with_file_name(TOKEN_FILE);
        let line = format!("DISTD_JOIN_TOKEN={}\n", token.to_secret_string());
        files::write_atomic_as(&path, line.as_bytes(), 0o600, None)?;
        asking.say(&format!("the join token is in {} until the relay has used it", path.display()))?;
    }
    let start = order.start || is_unit && asking.agrees("start the relay now, and at each boot?")?;
    if start {
        service::start(UNIT).map_err(InitError::Start)?;
    } else if is_unit {
        asking.say("next: systemctl enable --now distd-peer")?;
    } else {
        let token = if order.token.is_some() { "" } else { " --token-file FILE" };
        asking.say(&format!("next: distd-peer run --config {}{token}", order.config.display()))?;
    }
    asking.say(&format!(
        "then, on a device: distd enroll --parent {}:{} --token-file FILE",
        host_name("RELAY"),
        config.listen.port()
    ))?;
    Ok(())
}

/// Adds to the order what neither it nor the file says.
fn complete(order: &mut InitOrder, edit: &FileEdit, asking: &Questions) -> std::io::Result<()> {
    let InitOrder { line, token, .. } = order;
    let is_open = |line: &CommandLine, key: &str| !line.contains_key(key) && !edit.has(key);
    if is_open(line, "data") {
        let data = asking.ask("Directory for key, certificate and cache", DATA)?;
        line.insert("data", vec![data]);
    }
    // Later orders change what they name, and ask no more.
    let is_first = !edit.has("parents");
    if is_open(line, "parents") {
        let parents =
            asking.ask("Parents, the origin or relays, HOST:PORT, nearest first, separated by commas", "")?;
        let parents: Vec<String> =
            parents.split(',').map(str::trim).filter(|at| !at.is_empty()).map(str::to_owned).collect();
        if !parents.is_empty() {
            line.insert("parents", parents);
        }
    }
    if is_first && is_open(line, "cache.max_bytes") && asking.is_answered() {
        let bytes = asking.ask("Most bytes of the cache", "10000000000")?;
        line.insert("cache.max_bytes", vec![bytes]);
    }
    if is_first && token.is_none() && asking.is_answered() {
        let text = asking
            .ask("Join token, made by distd token join --role relay; empty if the relay has joined", "")?;
        if !text.is_empty() {
            *token = Some(text.parse().map_err(|_| std::io::Error::other("this is no join token"))?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::settings::SettingsFile;

    fn order(config: &Path, parents: &[&str], token: Option<JoinToken>) -> InitOrder {
        let mut line = CommandLine::new();
        if !parents.is_empty() {
            line.insert("parents", parents.iter().map(|&parent| parent.to_owned()).collect());
        }
        InitOrder { line, config: config.to_owned(), token, yes: true, start: false }
    }

    #[test]
    fn parents_and_token_are_written_and_the_token_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().join("peer.toml");
        assert!(matches!(init(order(&config, &[], None)), Err(InitError::NoParent)));
        assert!(!config.exists());
        let token = JoinToken::generate([7; 32]);
        let secret = token.to_secret_string();
        init(order(&config, &["origin.example.com:7444", "b:1"], Some(token))).expect("written");
        let read = SettingsFile::read(&config);
        let settings =
            RelaySettings::of(&CommandLine::new(), |_| None, Some(&read)).map_err(|e| e.to_string());
        let settings = settings.expect("settings").config();
        assert_eq!(settings.parents, ["origin.example.com:7444", "b:1"]);
        assert_eq!(settings.data, Path::new(DATA));
        let env = dir.path().join(TOKEN_FILE);
        assert_eq!(std::fs::metadata(&env).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(env).expect("read"), format!("DISTD_JOIN_TOKEN={secret}\n"));
    }
}
