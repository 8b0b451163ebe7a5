//! The state that every command starts from: the state directory, the remembered settings, and the
//! output.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use distd_peer::settings::{CommandLine, Source, Table, TableArgs, TableOptions};
use distd_peer::trust::files;
use distd_peer::trust::token::ApiToken;

use super::output::Output;
use crate::api::{Api, ServerUrl};
use crate::config::{self, Settings, default_data};
use crate::disk::side;
use crate::failure::{Code, Failure};

/// Options of commands that use the origin's HTTP API.
#[derive(clap::Args)]
pub struct ApiArgs {
    /// The server.
    #[command(flatten)]
    pub settings: TableArgs<ApiOptions>,
    /// File that holds the API token, or "-" for standard input. The file must belong to root or to
    /// this user, must not be writable by its group, and must be closed to other users. Default:
    /// $DISTD_TOKEN, then the token given to `distd login`.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Allow an http:// URL. Only for a loopback address: on any other network path the token would
    /// be readable.
    #[arg(long)]
    pub plain_http: bool,
}

impl ApiArgs {
    /// Arguments of a command that takes only the file of the token.
    pub fn with_token_file(token_file: Option<PathBuf>) -> Self {
        Self { settings: CommandLine::default().into(), token_file, plain_http: false }
    }
}

/// Settings of commands that use the origin's HTTP API.
pub enum ApiOptions {}

impl TableOptions for ApiOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;

    fn has(key: &str) -> bool {
        key == "server"
    }
}

/// The state that every command starts from.
pub struct Context {
    data: PathBuf,
    output: Output,
}

impl Context {
    /// Names the state directory: `data`, or the default one.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`].
    pub fn open(data: Option<PathBuf>, output: Output) -> anyhow::Result<Self> {
        let root = rustix::process::geteuid().is_root();
        let data = data.or_else(|| default_data(root, |name| std::env::var_os(name))).ok_or_else(|| {
            let error = anyhow!("no place to keep state: neither $HOME nor $XDG_STATE_HOME is set");
            Failure::new(Code::Usage, error).next("name a directory with --data DIR or $DISTD_DATA")
        })?;
        Ok(Self { data, output })
    }

    /// Returns the state directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Returns how to print results and notes.
    pub fn output(&self) -> Output {
        self.output
    }

    /// Returns the settings of this device: the options `line`, over the environment, over
    /// `client.toml`.
    ///
    /// # Errors
    /// Failures with [`Code::Local`] or [`Code::Usage`].
    pub fn settings(&self, line: &CommandLine) -> anyhow::Result<Settings> {
        Ok(Settings::resolve(&self.data, line, |name| std::env::var(name).ok()).map_err(Failure::from)?)
    }

    /// Puts values into `client.toml`; `None` removes a key.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub fn remember(&self, changes: &[(&str, Option<toml::Value>)]) -> anyhow::Result<()> {
        Ok(config::remember(&self.data, changes).map_err(Failure::from)?)
    }

    /// Returns the origin's URL.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`].
    pub fn server(&self, args: &ApiArgs) -> anyhow::Result<ServerUrl> {
        let settings = self.settings(&args.settings.line)?;
        let Some(text) = &settings.server else {
            let next = "name it with --server URL, or log in: distd login --server URL --token-file FILE";
            return Err(Failure::new(Code::Usage, anyhow!("no server to speak to")).next(next).into());
        };
        // A remembered URL with plain HTTP was allowed explicitly at login.
        let remembered = matches!(settings.source("server"), Source::File(_));
        ServerUrl::parse(text, args.plain_http || remembered)
            .map_err(|e| Failure::new(Code::Usage, e.into()).into())
    }

    /// Returns the API token: from the named file, else from the settings.
    ///
    /// # Errors
    /// Failures with [`Code::Refused`] or [`Code::Local`].
    pub fn token(&self, args: &ApiArgs) -> anyhow::Result<ApiToken> {
        let settings = self.settings(&args.settings.line)?;
        let (text, whence) = if let Some(path) = &args.token_file {
            (read_token_file(path)?, path.display().to_string())
        } else if let Some(text) = &settings.token {
            (text.clone(), settings.source("token").to_string())
        } else {
            let next = "name it with --token-file FILE or $DISTD_TOKEN, or log in: distd login; the origin wrote its \
                        first one to DIR/admin.token";
            return Err(Failure::new(Code::Refused, anyhow!("no API token")).next(next).into());
        };
        let token = text.parse().with_context(|| format!("the API token of {whence} is unusable"));
        token.map_err(|e| Failure::new(Code::Refused, e).into())
    }

    /// Returns the client of the origin's HTTP API.
    ///
    /// # Errors
    /// As [`server`](Self::server) and [`token`](Self::token).
    pub fn api(&self, args: &ApiArgs) -> anyhow::Result<Api> {
        Ok(Api::new(self.server(args)?, Some(&self.token(args)?)).map_err(Failure::from)?)
    }
}

/// Reads a secret file that was granted to this process, by the rule of [`files::check_granted`].
fn read_granted(path: &Path) -> anyhow::Result<Vec<u8>> {
    let other_way = format!("hand it over on standard input: --token-file - <{}", path.display());
    let local = |e: anyhow::Error| Failure::new(Code::Local, e);
    let file = side::open_regular(path).map_err(|error| {
        let text = match error.kind() {
            std::io::ErrorKind::NotFound => format!("there is no token file {}", path.display()),
            std::io::ErrorKind::InvalidInput => format!("{} is no file", path.display()),
            _ => {
                return local(
                    anyhow::Error::new(error).context(format!("could not open {}", path.display())),
                );
            }
        };
        local(anyhow!(text)).next("name the file that holds the token")
    })?;
    let meta = file.metadata().map_err(|e| local(e.into()))?;
    files::check_granted(&meta, path).map_err(|error| local(error.into()).next(other_way))?;
    side::read_anyones(path, files::TRUST_FILE_BYTES_MAX).map_err(|e| local(e.into()).into())
}

fn read_token_file(path: &Path) -> anyhow::Result<String> {
    let local = |e: anyhow::Error| Failure::new(Code::Local, e);
    if path == Path::new("-") {
        return std::io::read_to_string(std::io::stdin().lock())
            .context("could not read the token from standard input")
            .map_err(|e| local(e).into());
    }
    let bytes = read_granted(path)?;
    String::from_utf8(bytes).map_err(|_| local(anyhow!("{} is no token file", path.display())).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{advice, code_of};

    fn args(server: Option<&str>, token_file: Option<PathBuf>) -> ApiArgs {
        let line: CommandLine = server.map(|url| ("server", vec![url.to_owned()])).into_iter().collect();
        ApiArgs { settings: line.into(), token_file, plain_http: false }
    }

    fn context(data: &Path) -> Context {
        Context::open(Some(data.to_owned()), Output::new(false, true)).expect("a context")
    }

    #[test]
    fn options_override_remembered_settings() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let token = ApiToken::generate([1; 32]).to_secret_string();
        let values = [("server", Some("https://origin:8443".into())), ("token", Some(token.clone().into()))];
        context(dir.path()).remember(&values).expect("remember");
        let context = context(dir.path());
        assert_eq!(context.server(&args(None, None)).expect("server").to_string(), "https://origin:8443/");
        let other = context.server(&args(Some("https://other"), None)).expect("server");
        assert_eq!(other.to_string(), "https://other/");
        assert_eq!(context.token(&args(None, None)).expect("token").to_secret_string(), token);
        let path = dir.path().join("token");
        let named = ApiToken::generate([2; 32]).to_secret_string();
        files::create_secret(&path, format!("{named}\n").as_bytes()).expect("write");
        let got = context.token(&args(None, Some(path))).expect("token");
        assert_eq!(got.to_secret_string(), named);
    }

    #[test]
    fn token_files_of_containers_are_accepted_unless_others_may_read_them() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("token");
        let token = ApiToken::generate([3; 32]).to_secret_string();
        std::fs::write(&path, &token).expect("write");
        let read = |path: &Path| context(dir.path()).token(&args(None, Some(path.to_owned())));
        for (mode, good) in [
            (0o600, true),
            (0o400, true),
            (0o440, true),
            (0o640, true),
            (0o444, false),
            (0o660, false),
            (0o604, false),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            match read(&path) {
                Ok(got) => assert!(good && got.to_secret_string() == token, "{mode:o}"),
                Err(error) => {
                    let next = advice(&error).expect("what to do");
                    assert!(!good && next.contains("--token-file -"), "{mode:o}: {error:#}; {next}");
                    assert_eq!(code_of(&error), Code::Local);
                }
            }
        }
        let error = read(dir.path()).expect_err("a directory");
        assert!(format!("{error:#}").contains("is no file"), "{error:#}");
    }

    #[test]
    fn without_a_server_or_token_the_error_says_what_to_do() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let context = context(dir.path());
        let error = context.server(&args(None, None)).map(|_| ()).expect_err("no server");
        assert_eq!((code_of(&error), advice(&error).is_some()), (Code::Usage, true));
        let missing = args(None, Some(dir.path().join("none")));
        assert_eq!(code_of(&context.token(&missing).expect_err("no file")), Code::Local);
        let bad = dir.path().join("bad");
        files::create_secret(&bad, b"hello").expect("write");
        assert_eq!(code_of(&context.token(&args(None, Some(bad))).expect_err("no token")), Code::Refused);
    }
}
