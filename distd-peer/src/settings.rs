//! Layered settings of the programs: command line over environment over TOML file over default.
//!
//! A program describes each setting once, in a [`Table`]. The options and their help, the
//! environment variables, the keys of the file, `--effective` and the page in docs/operations.md
//! are made from the table, so they cannot disagree. A value passes through the same text form and
//! the same parser wherever it comes from, and every mistake is reported, not only the first.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::io::Read;
use std::marker::PhantomData;
use std::ops::{Deref, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches};

mod edit;

pub use edit::{EditError, FileEdit, Questions};

/// Largest configuration file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Layer that a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An option of the command line.
    CommandLine,
    /// This environment variable.
    Environment(&'static str),
    /// This file.
    File(PathBuf),
    /// No layer names the setting.
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

/// Value as `--effective` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Text; empty if the setting is off.
    Text(String),
    /// A number.
    Number(i128),
    /// True or false.
    Flag(bool),
    /// A list of texts.
    List(Vec<String>),
}

impl fmt::Display for Shown {
    /// Formats the value as TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        match self {
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Number(number) => number.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
            Self::List(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
                write!(f, "[{}]", texts.join(", "))
            }
        }
    }
}

/// One setting of a program whose settings are an `S`.
pub struct Setting<S> {
    /// Key in the file; a dot separates a section from its key, as in `cache.max_bytes`.
    pub key: &'static str,
    /// Option of the command line, without the dashes before it, as in `cache-max-bytes`; empty for
    /// a secret, which other users would see in the list of processes.
    pub option: &'static str,
    /// Environment variable.
    pub variable: &'static str,
    /// Name of the value in the help, such as `DIR`; empty for an option that needs no value.
    pub value: &'static str,
    /// Whether the setting takes several values: the option is repeated, the variable separates
    /// them by commas, the file has an array.
    pub several: bool,
    /// Default in words; empty if there is none.
    pub default: &'static str,
    /// Purpose, in one sentence without a full stop at its end.
    pub help: &'static str,
    /// Parses one value and stores it.
    ///
    /// # Errors
    /// The mistake in the text, as the end of a sentence about the text: "is no number".
    pub set: fn(&mut S, &str) -> Result<(), String>,
    /// Returns the value, without any password.
    pub show: fn(&S) -> Shown,
}

/// All settings of a program.
pub struct Table<S: 'static> {
    /// Settings in the order in which they are shown.
    pub settings: &'static [Setting<S>],
    /// Sections of the file that the program reads itself.
    pub sections: &'static [&'static str],
}

/// Texts given on the command line, by key.
pub type CommandLine = BTreeMap<&'static str, Vec<String>>;

/// Settings with the layer that each value comes from.
#[derive(Clone, Debug)]
pub struct Resolved<S> {
    values: S,
    sources: BTreeMap<&'static str, Source>,
    /// Sections of the file that the program reads itself.
    pub sections: BTreeMap<&'static str, toml::Value>,
}

impl<S> Deref for Resolved<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.values
    }
}

impl<S> Resolved<S> {
    /// Returns the layer that the value of `key` comes from.
    pub fn source(&self, key: &str) -> &Source {
        self.sources.get(key).unwrap_or(&Source::Default)
    }

    /// Returns whether no layer names `key`.
    pub fn is_default(&self, key: &str) -> bool {
        *self.source(key) == Source::Default
    }

    /// Changes values whose defaults depend on other values.
    pub fn complete(&mut self, change: impl FnOnce(&mut S, &dyn Fn(&str) -> bool)) {
        let sources = &self.sources;
        change(&mut self.values, &|key| !sources.contains_key(key));
    }
}

/// All mistakes in the settings, one line each.
#[derive(Debug, thiserror::Error)]
#[error("the settings cannot be used:\n  {}", .0.join("\n  "))]
pub struct SettingsError(pub Vec<String>);

/// Text of a TOML file with settings, or the reason why there is none.
pub struct SettingsFile {
    path: PathBuf,
    text: Result<String, String>,
}

impl SettingsFile {
    /// Reads at most 1 MiB of `path`. A failure is reported with the mistakes in the file.
    pub fn read(path: &Path) -> Self {
        let text = read_bounded(path).map_err(|error| format!("cannot be read: {error}"));
        Self { path: path.to_owned(), text }
    }

    /// Takes the content of `path` that the caller read.
    pub fn of_bytes(path: PathBuf, bytes: Vec<u8>) -> Self {
        Self { path, text: String::from_utf8(bytes).map_err(|_| "is not text in UTF-8".to_owned()) }
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Parses the file.
    ///
    /// # Errors
    /// The reason, without the text of the line, which may hold a password.
    pub fn table(&self) -> Result<toml::Table, SettingsError> {
        let wrong = |what: String| SettingsError(vec![format!("{}: {what}", self.path.display())]);
        let text = self.text.as_ref().map_err(|why| wrong(why.clone()))?;
        text.parse().map_err(|error| wrong(toml_problem(text, &error)))
    }
}

impl<S: Default> Table<S> {
    /// Resolves every value. `environment` returns the text of a variable. The second result has
    /// one line for each mistake; the values of wrong settings are their defaults.
    pub fn resolve(
        &self,
        command_line: &CommandLine,
        environment: impl Fn(&str) -> Option<String>,
        file: Option<&SettingsFile>,
    ) -> (Resolved<S>, Vec<String>) {
        let mut problems = Vec::new();
        let mut resolved =
            Resolved { values: S::default(), sources: BTreeMap::new(), sections: BTreeMap::new() };
        let in_file = match file {
            Some(file) => self.read_file(file, &mut resolved.sections, &mut problems),
            None => BTreeMap::new(),
        };
        for setting in self.settings {
            let key = setting.key;
            let (texts, source) = if let Some(texts) = command_line.get(key) {
                (texts.clone(), Source::CommandLine)
            } else if let Some(text) = environment(setting.variable) {
                let texts = match setting.several {
                    // No host, address or path of this field holds a comma.
                    true => {
                        text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
                    }
                    false => vec![text],
                };
                (texts, Source::Environment(setting.variable))
            } else if let (Some(texts), Some(file)) = (in_file.get(key), file) {
                (texts.clone(), Source::File(file.path.clone()))
            } else {
                continue;
            };
            if !setting.several && texts.len() != 1 {
                problems.push(format!("{key} ({source}): takes one value"));
                continue;
            }
            for text in &texts {
                if let Err(why) = (setting.set)(&mut resolved.values, text) {
                    problems.push(format!("{key} ({source}): {:?} {why}", without_password(text)));
                }
            }
            resolved.sources.insert(key, source);
        }
        (resolved, problems)
    }

    /// Reads the texts of all keys from a file, and the program's own sections.
    fn read_file(
        &self,
        file: &SettingsFile,
        sections: &mut BTreeMap<&'static str, toml::Value>,
        problems: &mut Vec<String>,
    ) -> BTreeMap<String, Vec<String>> {
        let mut values = BTreeMap::new();
        let shown = file.path.display();
        let table = match file.table() {
            Ok(table) => table,
            Err(SettingsError(mut mistakes)) => {
                problems.append(&mut mistakes);
                return values;
            }
        };
        for (key, value) in table {
            if let Some(section) = self.sections.iter().find(|section| **section == key) {
                sections.insert(section, value);
                continue;
            }
            match value {
                toml::Value::Table(below) => {
                    for (name, value) in below {
                        self.take(&shown, format!("{key}.{name}"), value, &mut values, problems);
                    }
                }
                value => self.take(&shown, key, value, &mut values, problems),
            }
        }
        values
    }

    fn take(
        &self,
        shown: &dyn fmt::Display,
        key: String,
        value: toml::Value,
        values: &mut BTreeMap<String, Vec<String>>,
        problems: &mut Vec<String>,
    ) {
        if !self.settings.iter().any(|setting| setting.key == key) {
            let keys: Vec<&str> = self.settings.iter().map(|setting| setting.key).collect();
            problems.push(format!("{shown}: there is no key {key:?}; the keys are {}", keys.join(", ")));
            return;
        }
        let texts = match value {
            toml::Value::Array(several) => several.into_iter().map(text_of).collect(),
            one => text_of(one).map(|text| vec![text]),
        };
        match texts {
            Some(texts) => {
                values.insert(key, texts);
            }
            None => problems.push(format!("{shown}: {key} is neither text nor a number nor true or false")),
        }
    }

    /// Returns each value and its source as commented TOML, for `--effective`. Sections that the
    /// program reads itself are not shown.
    pub fn effective(&self, resolved: &Resolved<S>) -> String {
        let mut out = String::new();
        let mut section = "";
        for setting in self.settings {
            let (in_section, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
            if in_section != section {
                section = in_section;
                let _ = writeln!(out, "[{section}]");
            }
            let (value, source) = ((setting.show)(&resolved.values), resolved.source(setting.key));
            // An empty text means that the setting is off. In the file it would be refused.
            let _ = match (&value, source) {
                (Shown::Text(text), Source::Default) if text.is_empty() => {
                    writeln!(out, "# {name} is not set")
                }
                _ => writeln!(out, "{name} = {value}  # {source}"),
            };
        }
        out
    }
}

impl<S> Table<S> {
    /// Returns the options of the settings that `is_wanted` names.
    pub fn arguments(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Arg> {
        let argument = |setting: &Setting<S>| {
            let mut help = setting.help.to_owned();
            if setting.several {
                help += "; repeat for more";
            }
            if setting.default.is_empty() {
                help += ".";
            } else {
                let _ = write!(help, " [default: {}]", setting.default);
            }
            // Backticks are for the page.
            let arg = Arg::new(setting.key).long(setting.option).help(help.replace('`', ""));
            match (setting.several, setting.value) {
                (true, name) => arg.value_name(name).action(ArgAction::Append),
                (false, "") => arg
                    .value_name("BOOL")
                    .action(ArgAction::Set)
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true"),
                (false, name) => arg.value_name(name).action(ArgAction::Set),
            }
        };
        let wanted = |setting: &&Setting<S>| !setting.option.is_empty() && is_wanted(setting.key);
        self.settings.iter().filter(wanted).map(argument).collect()
    }

    /// Returns the texts of all options of this table that the command line has.
    pub fn command_line(&self, matches: &ArgMatches) -> CommandLine {
        let mut line = CommandLine::new();
        for setting in self.settings {
            // A command that has only some of the options knows nothing of the others.
            if let Ok(Some(texts)) = matches.try_get_many::<String>(setting.key) {
                line.insert(setting.key, texts.cloned().collect());
            }
        }
        line
    }

    /// Returns the table of docs/operations.md, in Markdown.
    pub fn markdown(&self) -> String {
        let mut out = "| key and option | environment | default | |\n|---|---|---|---|\n".to_owned();
        for setting in self.settings {
            let Setting { key, option, variable, default, help, .. } = setting;
            let (repeat, commas) = if setting.several { (" (repeat)", " (commas)") } else { ("", "") };
            let default = if default.is_empty() { "none" } else { default };
            let option = if option.is_empty() { String::new() } else { format!(", `--{option}`{repeat}") };
            let _ = writeln!(out, "| `{key}`{option} | `{variable}`{commas} | {default} | {help} |");
        }
        out
    }
}

/// Options of a command that are made from a table. An implementation is a type without values.
pub trait TableOptions {
    /// Settings of the program.
    type Values: 'static;
    /// Table of the program.
    const TABLE: Table<Self::Values>;

    /// Returns whether the command has the option of `key`.
    fn has(_key: &str) -> bool {
        true
    }
}

/// Texts of the options that `T` describes, for `#[command(flatten)]`.
pub struct TableArgs<T> {
    /// Texts by key.
    pub line: CommandLine,
    options: PhantomData<fn() -> T>,
}

impl<T> From<CommandLine> for TableArgs<T> {
    fn from(line: CommandLine) -> Self {
        Self { line, options: PhantomData }
    }
}

impl<T: TableOptions> clap::Args for TableArgs<T> {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(T::TABLE.arguments(T::has))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<T: TableOptions> clap::FromArgMatches for TableArgs<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(T::TABLE.command_line(matches).into())
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Checks that a file of the documentation is `expected`. For tests: with `DISTD_WRITE_DOCS` in the
/// environment the file is written instead.
///
/// # Panics
/// When the file is absent or different.
#[doc(hidden)]
pub fn check_doc(path: &Path, expected: &str) {
    if std::env::var_os("DISTD_WRITE_DOCS").is_some() {
        std::fs::write(path, expected).expect("write");
        return;
    }
    let text = std::fs::read_to_string(path).expect("the file");
    assert!(text == expected, "{} is out of date: run this test with DISTD_WRITE_DOCS=1", path.display());
}

/// Checks that a page of the documentation has the table of a program, between the lines
/// `<!-- settings: NAME -->` and `<!-- end -->`, as [`check_doc`] does.
///
/// # Panics
/// When the page has no such lines, or another table.
#[doc(hidden)]
pub fn check_page(page: &Path, name: &str, markdown: &str) {
    let text = std::fs::read_to_string(page).expect("the page");
    let begin = format!("<!-- settings: {name} -->\n");
    let (before, rest) = text.split_once(&begin).expect("the first line of the table");
    let (_, after) = rest.split_once("<!-- end -->").expect("the last line of the table");
    check_doc(page, &format!("{before}{begin}{markdown}<!-- end -->{after}"));
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other("longer than 1 MiB"));
    }
    Ok(text)
}

/// Describes a mistake in a TOML text by its line. The parser's own message quotes the line, which
/// may contain a password.
pub fn toml_problem(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|at| text.get(..at.start));
    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
    format!("line {line}: {}", error.message())
}

fn text_of(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

/// Parses a number in `range`.
///
/// # Errors
/// The end of a sentence that names the range.
pub fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("is no number between {} and {}", range.start(), range.end())),
    }
}

/// Parses `true` or `false`; also `1`, `yes`, `0` and `no`.
///
/// # Errors
/// The end of a sentence.
pub fn flag(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("is neither true nor false".to_owned()),
    }
}

/// Parses text that is not empty into a path or a string. `what` names it in the error.
///
/// # Errors
/// The end of a sentence.
pub fn filled<'t, T: From<&'t str>>(text: &'t str, what: &str) -> Result<T, String> {
    if text.is_empty() { Err(format!("is no {what}")) } else { Ok(text.into()) }
}

/// Parses anything with a [`FromStr`]; `what` is the end of the sentence if it fails.
///
/// # Errors
/// `what`.
pub fn parsed<T: FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.parse().map_err(|_| what.to_owned())
}

/// Parses a duration: a number of seconds, or a number with `s`, `m`, `h`, `d` or `w`. Returns
/// `None` for any other text.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return None,
    };
    Some(Duration::from_secs(digits.parse::<u64>().ok()?.checked_mul(unit)?))
}

/// Returns an address without its password, for people.
pub fn without_password(address: &str) -> String {
    match url::Url::parse(address) {
        Ok(mut url) if url.password().is_some() => {
            // Fails only for URLs that cannot have a password.
            let _ = url.set_password(Some("***"));
            url.to_string()
        }
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Toy {
        name: String,
        size: u8,
        hosts: Vec<String>,
        plain: bool,
    }

    const TOY: Table<Toy> = Table {
        settings: &[
            Setting {
                key: "name",
                option: "name",
                variable: "TOY_NAME",
                value: "NAME",
                several: false,
                default: "",
                help: "Name of the toy",
                set: |toy, text| filled(text, "name").map(|name| toy.name = name),
                show: |toy| Shown::Text(toy.name.clone()),
            },
            Setting {
                key: "hosts",
                option: "hosts",
                variable: "TOY_HOSTS",
                value: "HOST",
                several: true,
                default: "",
                help: "Hosts of the toy",
                set: |toy, text| filled(text, "host").map(|host| toy.hosts.push(host)),
                show: |toy| Shown::List(toy.hosts.clone()),
            },
            Setting {
                key: "plain",
                option: "plain",
                variable: "TOY_PLAIN",
                value: "",
                several: false,
                default: "false",
                help: "Plain toy",
                set: |toy, text| flag(text).map(|plain| toy.plain = plain),
                show: |toy| Shown::Flag(toy.plain),
            },
            Setting {
                key: "box.size",
                option: "box-size",
                variable: "TOY_BOX_SIZE",
                value: "N",
                several: false,
                default: "0",
                help: "Size of its box",
                set: |toy, text| number(text, 1..=9).map(|size| toy.size = size),
                show: |toy| Shown::Number(toy.size.into()),
            },
        ],
        sections: &["own"],
    };

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("write");
        file
    }

    fn parse(arguments: &[&str]) -> CommandLine {
        let command = clap::Command::new("toy").args(TOY.arguments(|_| true));
        TOY.command_line(&command.get_matches_from(std::iter::once(&"toy").chain(arguments)))
    }

    #[test]
    fn each_layer_wins_over_those_below_it() {
        let file =
            file("name = \"f\"\nhosts = [\"f\", \"g\"]\nplain = true\n[box]\nsize = 3\n[own]\nx = 1\n");
        let environment = |name: &str| match name {
            "TOY_HOSTS" => Some("e, ,h".to_owned()),
            "TOY_NAME" => Some("e".to_owned()),
            _ => None,
        };
        let line = parse(&["--name", "c", "--plain=false"]);
        let (resolved, problems) = TOY.resolve(&line, environment, Some(&SettingsFile::read(file.path())));
        assert_eq!(problems, Vec::<String>::new());
        let expected = Toy { name: "c".into(), size: 3, hosts: vec!["e".into(), "h".into()], plain: false };
        assert_eq!(*resolved, expected);
        assert_eq!(*resolved.source("hosts"), Source::Environment("TOY_HOSTS"));
        assert_eq!(*resolved.source("box.size"), Source::File(file.path().to_owned()));
        assert!(resolved.sections.contains_key("own"));
        let shown = TOY.effective(&resolved);
        assert!(shown.contains("[box]\nsize = 3  # file "), "{shown}");
        let again: toml::Table = shown.parse().expect("is TOML itself");
        assert_eq!(again["hosts"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn options_without_a_value_and_repeated_options_are_read() {
        let line = parse(&["--plain", "--hosts", "a", "--hosts", "b", "--box-size", "2"]);
        let (resolved, problems) = TOY.resolve(&line, |_| None, None);
        assert_eq!((problems.len(), resolved.plain, resolved.hosts.len(), resolved.size), (0, true, 2, 2));
        assert!(resolved.is_default("name") && !resolved.is_default("plain"));
    }

    #[test]
    fn a_secret_has_no_option() {
        const SECRET: Table<Toy> = Table {
            settings: &[Setting {
                key: "name",
                option: "",
                variable: "TOY_NAME",
                value: "NAME",
                several: false,
                default: "",
                help: "Secret name",
                set: |toy, text| filled(text, "name").map(|name| toy.name = name),
                show: |_| Shown::Text(String::new()),
            }],
            sections: &[],
        };
        assert!(SECRET.arguments(|_| true).is_empty());
        assert!(SECRET.markdown().ends_with("| `name` | `TOY_NAME` | none | Secret name |\n"));
        let (resolved, _) = SECRET.resolve(&CommandLine::new(), |_| Some("n".to_owned()), None);
        assert_eq!(resolved.name, "n");
    }

    #[test]
    fn every_mistake_is_named_without_any_password() {
        let file = file("nmae = \"x\"\nname = 1.5\nplain = [true, true]\n[box]\nsize = 10\nlid = 1\n");
        let line = parse(&["--hosts", ""]);
        let (_, problems) = TOY.resolve(&line, |_| None, Some(&SettingsFile::read(file.path())));
        let text = SettingsError(problems).to_string();
        for part in [
            "\"nmae\"",
            "name is neither",
            "plain (file",
            "takes one value",
            "between 1 and 9",
            "box.lid",
            "is no host",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let broken = self::file("name = \"http://u:topsecret@p:1\" 5\n");
        let (_, problems) =
            TOY.resolve(&CommandLine::new(), |_| None, Some(&SettingsFile::read(broken.path())));
        assert!(problems[0].contains("line 1") && !problems[0].contains("topsecret"), "{problems:?}");
        assert_eq!(without_password("postgres://me:secret@db/x"), "postgres://me:***@db/x");
    }

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, seconds) in
            [("90", Some(90)), ("15m", Some(900)), ("2w", Some(1_209_600)), ("1y", None), ("h", None)]
        {
            assert_eq!(duration(text).map(|d| d.as_secs()), seconds, "{text}");
        }
    }
}
