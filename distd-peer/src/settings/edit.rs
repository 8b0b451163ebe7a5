//! Changes of a TOML file with settings that keep everything else in it, and the questions of
//! `init`, which makes such changes.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};

use super::{CommandLine, SettingsError, SettingsFile, Shown, Table, without_password};
use crate::trust::files::{self, FileError};

/// Most pairs of lines that are compared for a difference.
const COMPARED_MAX: usize = 1 << 20;

/// Longest answer to a question, bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Reason why a file with settings was not written.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The file cannot be read, or is no TOML.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The value stands in the file in a way that cannot be changed line by line.
    #[error(
        "{path} has {key} in a form that is not changed here; next: write this line into it by hand: {line}"
    )]
    Form {
        /// Path of the file.
        path: PathBuf,
        /// Key of the setting.
        key: String,
        /// The line as it should be, without a password.
        line: String,
    },
    /// The terminal failed.
    #[error("could not ask on the terminal")]
    Terminal(#[from] std::io::Error),
    /// Nobody agreed.
    #[error(
        "{0} is not written: nobody agreed to it; next: the same command with --yes, once the difference is right"
    )]
    NotAgreed(PathBuf),
}

/// A file with settings, and the changes of it that are wanted.
pub struct FileEdit {
    path: PathBuf,
    /// Content of the file; `None` if there is none.
    old: Option<String>,
    text: String,
    /// Whether a value has a password.
    is_secret: bool,
}

impl FileEdit {
    /// Reads the file at `path`, which need not exist; `heading` is the comment at the top of a new
    /// one.
    ///
    /// # Errors
    /// [`EditError::Settings`].
    pub fn open(path: &Path, heading: &str) -> Result<Self, EditError> {
        let missing = matches!(std::fs::metadata(path), Err(e) if e.kind() == std::io::ErrorKind::NotFound);
        if missing {
            return Ok(Self { path: path.to_owned(), old: None, text: heading.to_owned(), is_secret: false });
        }
        let file = SettingsFile::read(path);
        file.table()?;
        let old = file.text.unwrap_or_default();
        Ok(Self { path: path.to_owned(), text: old.clone(), old: Some(old), is_secret: false })
    }

    /// The file as it will be.
    pub fn file(&self) -> SettingsFile {
        SettingsFile::of_bytes(self.path.clone(), self.text.clone().into_bytes())
    }

    /// Returns whether the file names `key`.
    pub fn has(&self, key: &str) -> bool {
        let table: toml::Table = self.text.parse().unwrap_or_default();
        match key.split_once('.') {
            Some((section, name)) => table.get(section).is_some_and(|section| section.get(name).is_some()),
            None => table.contains_key(key),
        }
    }

    /// Sets `key` to `texts`: in place where the file has it, else behind the other keys of its
    /// section.
    ///
    /// # Errors
    /// [`EditError::Form`] for a value that stands on several lines and the like; nothing is
    /// changed then.
    pub fn set<S>(&mut self, table: &Table<S>, key: &str, texts: &[String]) -> Result<(), EditError> {
        let several = table.settings.iter().any(|setting| setting.key == key && setting.several);
        let shown = match (texts, several) {
            ([one], false) => toml_of(one),
            _ => Shown::List(texts.to_vec()),
        };
        self.is_secret |= texts.iter().any(|text| without_password(text) != *text);
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let line = format!("{name} = {shown}");
        let text = with_line(&self.text, section, name, &line);
        // Lines are not TOML. What counts is that the parser finds this change and no other.
        let value = format!("v = {shown}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
        let before = self.text.parse::<toml::Table>().ok();
        let wanted = before.zip(value).map(|(mut table, value)| {
            match section {
                "" => table.insert(name.to_owned(), value),
                section => match table.entry(section).or_insert_with(|| toml::Table::new().into()) {
                    toml::Value::Table(below) => below.insert(name.to_owned(), value),
                    other => Some(std::mem::replace(other, value)),
                },
            };
            table
        });
        if text.parse::<toml::Table>().ok() != wanted || wanted.is_none() {
            let line = format!("{name} = {}", without_password(&shown.to_string()));
            return Err(EditError::Form { path: self.path.clone(), key: key.to_owned(), line });
        }
        self.text = text;
        Ok(())
    }

    /// Sets each key of `line`.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_all<S>(&mut self, table: &Table<S>, line: &CommandLine) -> Result<(), EditError> {
        line.iter().try_for_each(|(key, texts)| self.set(table, key, texts))
    }

    /// The lines that change, for people: `-` before those that go, `+` before those that come.
    /// Passwords are left out.
    pub fn difference(&self) -> String {
        let (old, new): (Vec<&str>, Vec<&str>) =
            (self.old.as_deref().unwrap_or("").lines().collect(), self.text.lines().collect());
        let mut out = format!("{}:\n", self.path.display());
        for (sign, line) in changed_lines(&old, &new) {
            let _ = writeln!(out, "{sign} {}", without_passwords(line));
        }
        out
    }

    /// Returns whether the file has to be written.
    pub fn is_changed(&self) -> bool {
        self.old.as_deref() != Some(&self.text)
    }

    /// Shows the difference, asks whether to write it unless `agreed`, and writes. Returns whether
    /// the file was changed. A file that exists keeps owner and mode; a new one has mode 0644, or
    /// 0600 with a password in it.
    ///
    /// # Errors
    /// [`EditError`]; the file is as it was.
    pub fn write(self, asking: &mut Questions, agreed: bool) -> Result<bool, EditError> {
        if !self.is_changed() {
            asking.say(&format!("{} has these settings already", self.path.display()))?;
            return Ok(false);
        }
        asking.say(self.difference().trim_end())?;
        if !agreed && !asking.agrees(&format!("write {}?", self.path.display()))? {
            return Err(EditError::NotAgreed(self.path));
        }
        let kept = std::fs::metadata(&self.path).ok();
        let mode = kept.as_ref().map_or(if self.is_secret { 0o600 } else { 0o644 }, |meta| {
            meta.permissions().mode() & 0o7777 & if self.is_secret { !0o007 } else { !0 }
        });
        if let Some(parent) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let io = |cause| FileError::Io { action: "create", path: parent.to_owned(), cause };
            if !parent.exists() {
                std::fs::create_dir_all(parent).map_err(io)?;
                let others_may_look = std::fs::Permissions::from_mode(0o755);
                std::fs::set_permissions(parent, others_may_look).map_err(io)?;
            }
        }
        let owner = kept.map(|meta| (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid())));
        files::write_atomic_as(&self.path, self.text.as_bytes(), mode, owner)?;
        Ok(true)
    }
}

/// A text of a setting as TOML: numbers and truth values bare.
fn toml_of(text: &str) -> Shown {
    match (text, text.parse::<i64>()) {
        ("true", _) => Shown::Flag(true),
        ("false", _) => Shown::Flag(false),
        (_, Ok(number)) if number.to_string() == text => Shown::Number(number.into()),
        _ => Shown::Text(text.to_owned()),
    }
}

/// Lines that are in one of the two alone, in their order.
fn changed_lines<'t>(old: &[&'t str], new: &[&'t str]) -> Vec<(char, &'t str)> {
    let same = |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| pairs.take_while(|(a, b)| a == b).count();
    let begin = same(&mut old.iter().zip(new));
    let (old, new) = (&old[begin..], &new[begin..]);
    let end = same(&mut old.iter().rev().zip(new.iter().rev()));
    let (old, new) = (&old[..old.len() - end], &new[..new.len() - end]);
    // Longest common part of the rests, unless that takes too much memory.
    let (rows, columns) = (old.len() + 1, new.len() + 1);
    let mut common = vec![0u32; if rows * columns <= COMPARED_MAX { rows * columns } else { 0 }];
    if !common.is_empty() {
        for i in (0..old.len()).rev() {
            for j in (0..new.len()).rev() {
                let (down, right) = (common[(i + 1) * columns + j], common[i * columns + j + 1]);
                let both = common[(i + 1) * columns + j + 1] + 1;
                common[i * columns + j] = if old[i] == new[j] { both } else { down.max(right) };
            }
        }
    }
    let at = |i: usize, j: usize| common.get(i * columns + j).copied().unwrap_or(0);
    let (mut out, mut i, mut j) = (Vec::new(), 0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || at(i + 1, j) >= at(i, j + 1)) {
            out.push(('-', old[i]));
            i += 1;
        } else {
            out.push(('+', new[j]));
            j += 1;
        }
    }
    out
}

/// A line with `***` in place of the password of each address in it.
fn without_passwords(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out += before;
        let end = after.find(['/', '"', ' ']).unwrap_or(after.len());
        rest = match (after[..end].find(':'), after[..end].rfind('@')) {
            (Some(colon), Some(host)) if colon < host => {
                out += &after[..=colon];
                out += "***";
                &after[host..]
            }
            _ => after,
        };
    }
    out + rest
}

/// `text` with `line` in place of the line of `name` in `section`, or behind the section's keys.
fn with_line(text: &str, section: &str, name: &str, line: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    let header = format!("[{section}]");
    let begin = match section {
        "" => Some(0),
        _ => lines.iter().position(|line| line.trim() == header).map(|at| at + 1),
    };
    let Some(begin) = begin else {
        if !lines.is_empty() {
            lines.push("");
        }
        lines.extend([header.as_str(), line]);
        return lines.join("\n") + "\n";
    };
    let is_header = |line: &&str| line.trim_start().starts_with('[');
    let end = lines[begin..].iter().position(is_header).map_or(lines.len(), |at| begin + at);
    let is_own = |line: &&str| line.split_once('=').is_some_and(|(key, _)| key.trim() == name);
    if let Some(at) = lines[begin..end].iter().position(is_own) {
        lines[begin + at] = line;
    } else {
        // Before the blank lines and comments that belong to the next section.
        let is_key = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
        let last = lines[begin..end].iter().rposition(is_key).map(|at| begin + at + 1);
        let at = if end == lines.len() { end } else { last.unwrap_or(begin) };
        lines.insert(at, line);
    }
    lines.join("\n") + "\n"
}

/// Questions to a person, on the terminal; nobody is asked where there is none.
pub struct Questions {
    is_terminal: bool,
}

impl Questions {
    /// The terminal of this process, if its input is one.
    pub fn on_terminal() -> Self {
        Self { is_terminal: std::io::stdin().is_terminal() }
    }

    /// Questions that nobody answers.
    pub fn to_nobody() -> Self {
        Self { is_terminal: false }
    }

    /// Whether a person can answer.
    pub fn is_answered(&self) -> bool {
        self.is_terminal
    }

    /// Prints lines.
    ///
    /// # Errors
    /// Those of standard output.
    pub fn say(&self, text: &str) -> std::io::Result<()> {
        writeln!(std::io::stdout(), "{text}")
    }

    /// Asks for a text, with `default` for an empty answer. Returns `default` where nobody answers.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn ask(&self, question: &str, default: &str) -> std::io::Result<String> {
        if !self.is_terminal {
            return Ok(default.to_owned());
        }
        let mut out = std::io::stdout();
        match default {
            "" => write!(out, "{question}: ")?,
            default => write!(out, "{question} [{default}]: ")?,
        }
        out.flush()?;
        let mut answer = String::new();
        std::io::Read::take(std::io::stdin().lock(), ANSWER_BYTES_MAX).read_line(&mut answer)?;
        match answer.trim() {
            "" => Ok(default.to_owned()),
            answer => Ok(answer.to_owned()),
        }
    }

    /// Asks whether to do something. Returns false where nobody answers.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn agrees(&self, question: &str) -> std::io::Result<bool> {
        if !self.is_terminal {
            return Ok(false);
        }
        let answer = self.ask(&format!("{question} (yes or no)"), "no")?;
        Ok(matches!(answer.to_lowercase().as_str(), "y" | "yes"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Setting, filled, number};
    use super::*;

    #[derive(Default)]
    struct Toy {
        name: Vec<String>,
        db: String,
        size: u8,
    }

    const TOY: Table<Toy> = Table {
        settings: &[
            Setting {
                key: "name",
                option: "name",
                variable: "TOY_NAME",
                value: "NAME",
                several: true,
                default: "",
                help: "Names",
                set: |toy, text| filled(text, "name").map(|name| toy.name.push(name)),
                show: |toy| Shown::List(toy.name.clone()),
            },
            Setting {
                key: "db",
                option: "db",
                variable: "TOY_DB",
                value: "DB",
                several: false,
                default: "",
                help: "Database",
                set: |toy, text| filled(text, "database").map(|db| toy.db = db),
                show: |toy| Shown::Text(toy.db.clone()),
            },
            Setting {
                key: "cache.size",
                option: "cache-size",
                variable: "TOY_SIZE",
                value: "N",
                several: false,
                default: "",
                help: "Size",
                set: |toy, text| number(text, 1..=9).map(|size| toy.size = size),
                show: |toy| Shown::Number(toy.size.into()),
            },
        ],
        sections: &["own"],
    };

    fn edit(dir: &Path, text: &str) -> FileEdit {
        let path = dir.join("toy.toml");
        std::fs::write(&path, text).expect("write");
        FileEdit::open(&path, "").expect("a file")
    }

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|&value| value.to_owned()).collect()
    }

    #[test]
    fn a_change_keeps_comments_and_other_keys() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = "# ours\nname = [\"a\"]  # first\n\n# the cache\n[cache]\n# small\n[own]\nx = 1\n";
        let mut edit = edit(dir.path(), text);
        assert!(edit.has("name") && !edit.has("db") && !edit.has("cache.size"));
        edit.set(&TOY, "name", &texts(&["b", "c"])).expect("a change");
        edit.set(&TOY, "db", &texts(&["sqlite:/x"])).expect("a change");
        edit.set(&TOY, "cache.size", &texts(&["3"])).expect("a change");
        let wanted = "# ours\nname = [\"b\", \"c\"]\ndb = \"sqlite:/x\"\n\n# the cache\n[cache]\nsize = 3\n# small\n[own]\nx = 1\n";
        assert_eq!(edit.text, wanted);
        let shown = edit.difference();
        let changes =
            "- name = [\"a\"]  # first\n+ name = [\"b\", \"c\"]\n+ db = \"sqlite:/x\"\n+ size = 3\n";
        assert_eq!(shown.split_once('\n').map(|(_, lines)| lines), Some(changes));
        let (resolved, problems) = TOY.resolve(&CommandLine::new(), |_| None, Some(&edit.file()));
        assert_eq!((problems, resolved.size, resolved.name.len()), (Vec::new(), 3, 2));
    }

    #[test]
    fn a_value_on_several_lines_is_left_to_the_operator() {
        let dir = tempfile::tempdir().expect("a directory");
        for text in ["name = [\n  \"a\",\n]\n", "x = \"\"\"\nname = 1\n\"\"\"\n[cache.deeper]\n"] {
            let mut edit = edit(dir.path(), text);
            let error = edit.set(&TOY, "name", &texts(&["b"])).expect_err("not by lines");
            assert!(error.to_string().contains("name = [\"b\"]"), "{error}");
            assert_eq!(edit.text, text);
        }
    }

    #[test]
    fn nothing_is_written_without_consent_and_owner_and_mode_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("toy.toml");
        let mut nobody = Questions::to_nobody();
        let mut changed = edit(dir.path(), "# mine\n");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        changed.set(&TOY, "db", &texts(&["x"])).expect("a change");
        assert!(matches!(changed.write(&mut nobody, false), Err(EditError::NotAgreed(_))));
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "# mine\n");
        let mut changed = FileEdit::open(&path, "").expect("a file");
        changed.set(&TOY, "db", &texts(&["x"])).expect("a change");
        assert!(changed.write(&mut nobody, true).expect("written"));
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "# mine\ndb = \"x\"\n");
        assert_eq!(std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o640);
        let mut same = FileEdit::open(&path, "").expect("a file");
        same.set(&TOY, "db", &texts(&["x"])).expect("no change");
        assert!(!same.write(&mut nobody, false).expect("nothing to write"));
    }

    #[test]
    fn a_password_is_neither_shown_nor_open_to_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new").join("toy.toml");
        let mut edit = FileEdit::open(&path, "# heading\n").expect("no file");
        edit.set(&TOY, "db", &texts(&["postgres://me:topsecret@db/x"])).expect("a change");
        let shown = edit.difference();
        assert!(shown.contains("postgres://me:***@db/x") && !shown.contains("topsecret"), "{shown}");
        edit.write(&mut Questions::to_nobody(), true).expect("written");
        let meta = std::fs::metadata(&path).expect("a file");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        assert!(std::fs::read_to_string(&path).expect("read").contains("topsecret"));
    }
}
