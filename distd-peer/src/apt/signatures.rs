//! Signatures of `Release` files, checked by the program `gpgv` with the keys that apt would use.
//!
//! apt checks signatures itself, on each machine. The proxy checks them so that a mirror that lies
//! cannot fill the cache with what every machine will refuse.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use base64::Engine as _;

use super::address::Address;

/// Largest file of sources, and largest keyring, that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Most keyrings for one repository.
const KEYRINGS_MAX: usize = 64;

/// Most files of sources.
const SOURCES_MAX: usize = 256;

/// How the proxy treats signatures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signatures {
    /// They are not looked at.
    Off,
    /// A wrong or missing one is logged and counted.
    Warn,
    /// A wrong one is refused, and a missing one where the repository has a key of its own or was
    /// signed before. A repository whose key is not here is taken.
    #[default]
    Auto,
    /// Only what a key of this machine has signed is taken.
    Enforce,
}

impl FromStr for Signatures {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "off" => Ok(Self::Off),
            "warn" => Ok(Self::Warn),
            "auto" => Ok(Self::Auto),
            "enforce" => Ok(Self::Enforce),
            _ => Err(()),
        }
    }
}

/// Result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A key of the repository has signed it.
    Good,
    /// The keys that signed it are not here.
    UnknownKey,
    /// There is no signature.
    Unsigned,
    /// A signature is wrong, or its key has expired or was revoked.
    Bad(String),
    /// `gpgv` cannot be run.
    NoProgram(String),
}

/// Keys that apt uses on this machine.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Directory with apt's configuration, `/etc/apt`.
    pub etc: PathBuf,
    /// Keyrings besides those.
    pub keyrings: Vec<PathBuf>,
}

/// Keyrings for one repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyrings {
    files: Vec<PathBuf>,
    /// Whether the sources of this machine name the key of this repository.
    pub is_named: bool,
}

impl Keys {
    /// Keyrings of the repository whose `Release` lies in the directory at `release`: those that
    /// `Signed-By` of a source with that address names, else those that apt trusts for everything.
    pub fn of(&self, release: &Address) -> Keyrings {
        let mut files: Vec<PathBuf> = Vec::new();
        for source in self.sources() {
            let matches = source.addresses.iter().any(|address| {
                let with_slash = format!("{}/", address.path.trim_end_matches('/'));
                address.authority() == release.authority() && release.path.starts_with(&with_slash)
            });
            if matches {
                files.extend(source.signed_by);
            }
        }
        files.sort();
        files.dedup();
        files.truncate(KEYRINGS_MAX);
        if !files.is_empty() {
            return Keyrings { files, is_named: true };
        }
        let mut files = self.keyrings.clone();
        files.push(self.etc.join("trusted.gpg"));
        files.extend(directory(&self.etc.join("trusted.gpg.d"), &["gpg", "asc"]));
        files.retain(|file| file.is_file());
        files.truncate(KEYRINGS_MAX);
        Keyrings { files, is_named: false }
    }

    fn sources(&self) -> Vec<Source> {
        let mut out = Vec::new();
        let mut lists = vec![self.etc.join("sources.list")];
        lists.extend(directory(&self.etc.join("sources.list.d"), &["list"]));
        for list in lists {
            out.extend(read_bounded(&list).iter().flat_map(|text| text.lines().filter_map(Source::of_line)));
        }
        for file in directory(&self.etc.join("sources.list.d"), &["sources"]) {
            if let Some(text) = read_bounded(&file) {
                out.extend(text.replace("\r\n", "\n").split("\n\n").filter_map(Source::of_stanza));
            }
        }
        out
    }
}

/// A source of packages, as far as keys go.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    addresses: Vec<Address>,
    signed_by: Vec<PathBuf>,
}

impl Source {
    /// Parses a line of `sources.list`.
    fn of_line(line: &str) -> Option<Self> {
        let line = line.split('#').next()?.trim();
        let rest = line.strip_prefix("deb-src ").or_else(|| line.strip_prefix("deb "))?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let address = Address::parse(rest.split_whitespace().next()?).ok()?;
        let signed_by = options.split_whitespace().filter_map(|option| {
            let (name, value) = option.split_once('=')?;
            name.eq_ignore_ascii_case("signed-by").then_some(value)
        });
        let signed_by = signed_by.flat_map(|value| value.split(',')).filter_map(keyring).collect();
        Some(Self { addresses: vec![address], signed_by })
    }

    /// Parses a stanza of a `.sources` file.
    fn of_stanza(text: &str) -> Option<Self> {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if line.starts_with([' ', '\t']) {
                let (_, value) = fields.last_mut()?;
                value.push(' ');
                value.push_str(line.trim());
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        let value =
            |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
        let addresses: Vec<Address> =
            value("uris")?.split_whitespace().filter_map(|text| Address::parse(text).ok()).collect();
        // A key in the file itself is not used: such a repository has no keyring here.
        let signed_by =
            value("signed-by").unwrap_or_default().split_whitespace().filter_map(keyring).collect();
        (!addresses.is_empty()).then_some(Self { addresses, signed_by })
    }
}

fn keyring(text: &str) -> Option<PathBuf> {
    // Fingerprints, which may stand here too, begin with no slash.
    text.starts_with('/').then(|| PathBuf::from(text)).filter(|path| path.is_file())
}

/// Files of a directory with one of these suffixes, in order.
fn directory(dir: &Path, suffixes: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let has =
        |path: &PathBuf| path.extension().is_some_and(|ext| suffixes.iter().any(|suffix| ext == *suffix));
    let mut paths: Vec<PathBuf> = paths.filter(has).take(SOURCES_MAX).collect();
    paths.sort();
    paths
}

fn read_bounded(path: &Path) -> Option<String> {
    let is_short = fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= FILE_BYTES_MAX);
    is_short.then(|| fs::read(path).ok()).flatten().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The OpenPGP packets in an armoured keyring (RFC 9580, section 6); `None` for a text without any.
fn dearmored(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut lines = text.lines();
    while lines.any(|line| line.trim_end() == "-----BEGIN PGP PUBLIC KEY BLOCK-----") {
        let mut packed = String::new();
        // Headers up to an empty line, then base64, then a checksum that begins with '='.
        for line in lines.by_ref() {
            if line.trim().is_empty() {
                break;
            }
        }
        for line in lines.by_ref() {
            let line = line.trim();
            if line.starts_with('=') || line.starts_with('-') {
                break;
            }
            packed.push_str(line);
        }
        out.extend(base64::engine::general_purpose::STANDARD.decode(packed).ok()?);
    }
    (!out.is_empty()).then_some(out)
}

/// Checks a signature: of the message in the clear `signed`, or of `signed` with `detached`.
/// Blocks.
pub(super) fn check(keyrings: &Keyrings, signed: &[u8], detached: Option<&[u8]>) -> Verdict {
    run(keyrings, signed, detached).unwrap_or_else(|error| Verdict::NoProgram(error.to_string()))
}

fn run(keyrings: &Keyrings, signed: &[u8], detached: Option<&[u8]>) -> io::Result<Verdict> {
    let dir = tempfile::tempdir()?;
    let write = |name: &str, bytes: &[u8]| -> io::Result<PathBuf> {
        let path = dir.path().join(name);
        fs::File::create(&path)?.write_all(bytes)?;
        Ok(path)
    };
    let mut command = Command::new("gpgv");
    command.args(["--status-fd", "1", "--homedir"]).arg(dir.path());
    let mut is_any = false;
    for (number, keyring) in keyrings.files.iter().enumerate() {
        if fs::metadata(keyring)?.len() > FILE_BYTES_MAX {
            continue;
        }
        let bytes = fs::read(keyring)?;
        let path = match std::str::from_utf8(&bytes).ok().and_then(dearmored) {
            Some(packets) => write(&format!("{number}.gpg"), &packets)?,
            None => keyring.clone(),
        };
        command.arg("--keyring").arg(path);
        is_any = true;
    }
    if !is_any {
        // gpgv would take the keyring of the user that runs it.
        return Ok(Verdict::UnknownKey);
    }
    if let Some(detached) = detached {
        command.arg(write("signature", detached)?);
    }
    command.arg(write("signed", signed)?);
    command.env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output()?;
    Ok(verdict(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads the status lines of gpgv. As for apt, one good signature is enough, and one over other
/// text spoils all. A key that has expired or was revoked signs nothing, though gpgv calls its
/// signature valid too.
fn verdict(status: &str) -> Verdict {
    let (mut is_good, mut is_unknown, mut worthless) = (false, false, None);
    // Whether the signature that the lines are about was made by a key that still counts.
    let mut counts = false;
    for line in status.lines() {
        let Some(words) = line.strip_prefix("[GNUPG:] ") else { continue };
        match words.split(' ').next().unwrap_or_default() {
            "NEWSIG" => counts = false,
            "GOODSIG" => counts = true,
            "VALIDSIG" => is_good |= counts,
            "NO_PUBKEY" => is_unknown = true,
            "BADSIG" => return Verdict::Bad("BADSIG".to_owned()),
            word @ ("EXPSIG" | "EXPKEYSIG" | "REVKEYSIG") => {
                counts = false;
                worthless = Some(word.to_owned());
            }
            _ => {}
        }
    }
    match (is_good, worthless, is_unknown) {
        (true, ..) => Verdict::Good,
        (false, Some(word), _) => Verdict::Bad(word),
        (false, None, true) => Verdict::UnknownKey,
        (false, None, false) => Verdict::Unsigned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(text: &str) -> Address {
        Address::parse(text).expect("an address")
    }

    #[test]
    fn the_keys_of_a_repository_are_those_that_its_source_names() {
        let dir = tempfile::tempdir().expect("a directory");
        let etc = dir.path().join("apt");
        fs::create_dir_all(etc.join("sources.list.d")).expect("directories");
        fs::create_dir_all(etc.join("trusted.gpg.d")).expect("directories");
        let key = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "key").expect("write");
            path
        };
        let [a, b, extra] = ["a.gpg", "b.asc", "extra.gpg"].map(key);
        fs::write(etc.join("trusted.gpg.d/all.gpg"), "key").expect("write");
        fs::write(etc.join("trusted.gpg.d/readme"), "no key").expect("write");
        let lists = format!(
            "# deb [signed-by=/x] http://h/none x y\ndeb [arch=amd64 signed-by={}] http://h/a/ stable main\n",
            a.display()
        );
        fs::write(etc.join("sources.list"), lists).expect("write");
        let stanza = format!(
            "Types: deb\nURIs: http://h/b\n https://other/b/\nSuites: x\nSigned-By:\n {}\n\nTypes: deb\nURIs: \
             http://h/c\nSuites: x\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n",
            b.display()
        );
        fs::write(etc.join("sources.list.d/b.sources"), stanza).expect("write");
        let keys = Keys { etc: etc.clone(), keyrings: vec![extra.clone(), "/none".into()] };
        let named = |path: &PathBuf| Keyrings { files: vec![path.clone()], is_named: true };
        assert_eq!(keys.of(&release("http://h/a/dists/stable/")), named(&a));
        assert_eq!(keys.of(&release("https://other/b/dists/x/")), named(&b));
        let all = Keyrings { files: vec![extra, etc.join("trusted.gpg.d/all.gpg")], is_named: false };
        for other in ["http://h/ab/dists/x/", "http://h/c/dists/x/", "http://h/none/dists/x/", "http://k/a/"]
        {
            assert_eq!(keys.of(&release(other)), all, "{other}");
        }
    }

    #[test]
    fn the_lines_of_gpgv_decide() {
        for (status, expected) in [
            ("[GNUPG:] GOODSIG x y\n[GNUPG:] VALIDSIG x", Verdict::Good),
            (
                "[GNUPG:] NEWSIG\n[GNUPG:] NO_PUBKEY x\n[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG x\n[GNUPG:] VALIDSIG x",
                Verdict::Good,
            ),
            ("[GNUPG:] GOODSIG x\n[GNUPG:] VALIDSIG x\n[GNUPG:] BADSIG x", Verdict::Bad("BADSIG".into())),
            ("[GNUPG:] EXPKEYSIG x y\n[GNUPG:] VALIDSIG x", Verdict::Bad("EXPKEYSIG".into())),
            (
                "[GNUPG:] NEWSIG\n[GNUPG:] EXPKEYSIG x\n[GNUPG:] VALIDSIG x\n[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG y\n[GNUPG:] \
                 VALIDSIG y",
                Verdict::Good,
            ),
            ("[GNUPG:] VALIDSIG x", Verdict::Unsigned),
            ("[GNUPG:] ERRSIG x\n[GNUPG:] NO_PUBKEY x", Verdict::UnknownKey),
            ("[GNUPG:] NODATA 4", Verdict::Unsigned),
            ("VALIDSIG x", Verdict::Unsigned),
            ("", Verdict::Unsigned),
        ] {
            assert_eq!(verdict(status), expected, "{status}");
        }
    }

    #[test]
    fn armour_is_taken_off() {
        let text = "x\n-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: y\n\nAAEC\nAwQF\n=abcd\n-----END PGP PUBLIC KEY \
                    BLOCK-----\n-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nBg==\n-----END PGP PUBLIC KEY BLOCK-----\n";
        assert_eq!(dearmored(text), Some(vec![0, 1, 2, 3, 4, 5, 6]));
        assert_eq!(dearmored("no key"), None);
        assert_eq!(dearmored("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n***\n"), None);
    }
}
