//! `distd-server init`: writes the settings of an origin, after it asked for those that matter.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use distd_peer::process::host_name;
use distd_peer::service;
use distd_peer::settings::{CommandLine, FileEdit, Questions};

use crate::config::{Settings, TABLE};

/// File of the settings where the package is installed.
pub const CONFIG: &str = "/etc/distd/server.toml";

/// Directory of the data where the package is installed.
const DATA: &str = "/var/lib/distd-server";

/// Unit of the origin.
const UNIT: &str = "distd-server.service";

/// Comment at the top of a new file.
const HEADING: &str = "# Settings of the origin; docs/operations.md lists all of them.\n";

/// Order of `init`.
pub struct InitOrder {
    /// Settings of the command line.
    pub line: CommandLine,
    /// File of the settings.
    pub config: PathBuf,
    /// Whether to write without asking.
    pub yes: bool,
    /// Whether to start the unit.
    pub start: bool,
}

/// Asks, validates, shows the difference, writes the file, and says the next command.
///
/// # Errors
/// When a setting is wrong, nobody agrees, or the file cannot be written. The file is as it was.
pub fn init(mut order: InitOrder) -> anyhow::Result<()> {
    let mut asking = if order.yes { Questions::to_nobody() } else { Questions::on_terminal() };
    let mut edit = FileEdit::open(&order.config, HEADING)?;
    complete(&mut order.line, &edit, &asking)?;
    edit.set_all(&TABLE, &order.line)?;
    // The environment of this shell is not that of the service.
    let settings = Settings::of(&CommandLine::new(), |_| None, Some(&edit.file()))?;
    if let Some(dir) = settings.offline_root.iter().find(|file| !file.is_file()) {
        bail!("offline_root: there is no file {}; next: distd-server root new-key makes one", dir.display());
    }
    if let Some(file) = settings.oidc.as_ref().filter(|file| !file.is_file()) {
        bail!("oidc: there is no file {}; docs/web.md says what it holds", file.display());
    }
    edit.write(&mut asking, order.yes)?;
    let is_unit = order.config == Path::new(CONFIG) && service::is_installed(UNIT);
    let start = order.start || is_unit && asking.agrees("start the origin now, and at each boot?")?;
    if start {
        service::start(UNIT).context("the settings are written, but the origin was not started")?;
    } else if is_unit {
        asking.say("next: systemctl enable --now distd-server")?;
    } else {
        let (config, data) = (order.config.display(), settings.data.display());
        asking.say(&format!("next: distd-server serve --config {config}; it keeps everything in {data}"))?;
        return Ok(());
    }
    let token = settings.data.join("admin.token");
    let scheme = if settings.http_plain { "http" } else { "https" };
    asking.say(&format!(
        "then: distd login --server {scheme}://127.0.0.1:{} --token-file - <{}",
        settings.http.port(),
        token.display()
    ))?;
    Ok(())
}

/// Adds to the command line what neither it nor the file says.
fn complete(line: &mut CommandLine, edit: &FileEdit, asking: &Questions) -> anyhow::Result<()> {
    let is_open = |line: &CommandLine, key: &str| !line.contains_key(key) && !edit.has(key);
    if is_open(line, "data") {
        let data = asking.ask("Directory for keys and data", DATA)?;
        line.insert("data", vec![data]);
    }
    // Later orders change what they name, and ask no more.
    let is_first = !edit.has("name");
    if is_open(line, "name") {
        let question =
            "Names or addresses at which people and devices reach this origin, separated by commas";
        let names = asking.ask(question, &host_name("localhost"))?;
        let names: Vec<String> =
            names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        line.insert("name", names);
    }
    for (key, question) in [
        ("db", "Database, postgres://USER:PASSWORD@HOST/NAME; empty for SQLite in that directory"),
        ("store", "Object store, s3://BUCKET/PREFIX; empty for files in that directory"),
    ] {
        if is_first && is_open(line, key) {
            let answer = asking.ask(question, "")?;
            if !answer.is_empty() {
                line.insert(key, vec![answer]);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use distd_peer::settings::SettingsFile;

    use super::*;

    fn settings_in(file: &Path) -> Settings {
        Settings::of(&CommandLine::new(), |_| None, Some(&SettingsFile::read(file))).expect("settings")
    }

    fn order(config: &Path, line: &[(&'static str, &str)], yes: bool) -> InitOrder {
        let line = line.iter().map(|(key, text)| (*key, vec![(*text).to_owned()])).collect();
        InitOrder { line, config: config.to_owned(), yes, start: false }
    }

    #[test]
    fn the_file_has_what_was_said_and_what_must_be_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().join("server.toml");
        init(order(&config, &[("name", "updates.example.com"), ("zstd_level", "9")], true)).expect("written");
        let settings = settings_in(&config);
        assert_eq!((settings.data.as_path(), settings.zstd_level), (Path::new(DATA), 9));
        assert_eq!(settings.name, ["updates.example.com"]);
        init(order(&config, &[("name", "other.example.com")], true)).expect("written again");
        let settings = settings_in(&config);
        assert_eq!(
            (settings.name.as_slice(), settings.zstd_level),
            (&["other.example.com".to_owned()][..], 9)
        );
    }

    #[test]
    fn a_wrong_setting_or_nobody_who_agrees_leaves_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().join("server.toml");
        let text = "data = \"/d\"\n";
        std::fs::write(&config, text).expect("write");
        let wrong = [
            ("name", "not a name"),
            ("zstd_level", "90"),
            ("offline_root", "/nowhere"),
            ("quic", "[::]:7443"),
        ];
        for setting in wrong {
            init(order(&config, &[setting], true)).expect_err(setting.0);
            assert_eq!(std::fs::read_to_string(&config).expect("read"), text);
        }
        let error = init(order(&config, &[("name", "a.example.com")], false)).expect_err("nobody is asked");
        assert!(error.to_string().contains("--yes"), "{error}");
        assert_eq!(std::fs::read_to_string(&config).expect("read"), text);
    }
}
