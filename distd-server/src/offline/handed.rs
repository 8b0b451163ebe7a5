//! The keys of a realm in one file, on their way to a further origin.
//!
//! A container has no program that copies files, and a secret of Kubernetes is a file that only
//! root may change, while the signer keeps its memory beside the keys.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use distd_peer::trust::files::{self, FileError};
use serde::{Deserialize, Serialize};

use crate::origin::Places;
use crate::signer::KeyHolder;

/// Version of the file.
const FORMAT: u32 = 1;

/// File without which a directory holds no keys. It is written last, so that an import that was cut
/// off is made again.
const CA_KEY: &str = "realm/ca.key";

/// Error of handing keys on.
#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    /// The keys are in the memory of another process.
    #[error("a signer holds the keys: copy them where it runs, or leave --signer out")]
    InSigner,
    /// There are no keys to hand on.
    #[error("{} holds no keys: give --data or --keys as distd-server serve does", .0.display())]
    NoKeys(PathBuf),
    /// The file does not exist.
    #[error("there is no file {}", .0.display())]
    NoFile(PathBuf),
    /// The file is no file of keys.
    #[error("{} is no file that distd-server keys export has written", .0.display())]
    Malformed(PathBuf, #[source] Option<serde_json::Error>),
    /// The directory has keys of another realm, or other files than the one before wrote.
    #[error("{} has another {file}: name a new directory", .directory.display())]
    Other {
        /// Directory of the keys.
        directory: PathBuf,
        /// Name of the file that differs.
        file: String,
    },
    /// A directory cannot be read.
    #[error("could not read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Keys of a realm, and what the signer remembers beside them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HandedKeys {
    format: u32,
    /// Contents by name, such as `realm/ca.key`.
    files: BTreeMap<String, String>,
}

/// Returns the keys of an origin as the text of one file. It is a secret: whoever has it signs for
/// the realm. The origin may run.
///
/// # Errors
/// [`HandedError`]
pub fn export_keys(places: &Places) -> Result<String, HandedError> {
    let keys = directory(places)?;
    let mut handed = HandedKeys { format: FORMAT, files: BTreeMap::new() };
    for part in ["realm", "tuf-keys"] {
        let directory = keys.join(part);
        let failed = |error| HandedError::Read(directory.clone(), error);
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = format!("{part}/{}", entry.file_name().to_string_lossy());
            if !is_name(&name) || !entry.path().is_file() {
                continue;
            }
            let read = if is_public(&name) { files::read } else { files::read_secret };
            let Some(bytes) = read(&entry.path())? else { continue };
            let text = String::from_utf8(bytes).map_err(|_| HandedError::Malformed(entry.path(), None))?;
            handed.files.insert(name, text);
        }
    }
    if !handed.files.contains_key(CA_KEY) {
        return Err(HandedError::NoKeys(keys.to_owned()));
    }
    Ok(serde_json::to_string(&handed).expect("names and texts always encode"))
}

/// Puts the keys of a file into the directory of a further origin, and returns whether that was
/// needed: a directory that has keys of that realm stays as it is, since they may be later ones.
///
/// # Errors
/// [`HandedError`]; nothing that was there is changed.
pub fn import_keys(places: &Places, from: &Path) -> Result<bool, HandedError> {
    let keys = directory(places)?;
    let text = files::read_granted(from)?.ok_or_else(|| HandedError::NoFile(from.to_owned()))?;
    let malformed = |error| HandedError::Malformed(from.to_owned(), error);
    let handed: HandedKeys = serde_json::from_slice(&text).map_err(|error| malformed(Some(error)))?;
    let Some(ca_key) = handed.files.get(CA_KEY) else { return Err(malformed(None)) };
    if handed.format != FORMAT || !handed.files.keys().all(|name| is_name(name)) {
        return Err(malformed(None));
    }
    let other = |file: &str| HandedError::Other { directory: keys.to_owned(), file: file.to_owned() };
    if let Some(present) = files::read_secret(&keys.join(CA_KEY))? {
        return if present == ca_key.as_bytes() { Ok(false) } else { Err(other(CA_KEY)) };
    }
    for directory in [&places.data, keys, &keys.join("realm"), &keys.join("tuf-keys")] {
        files::create_private_dir(directory)?;
    }
    let last = |name: &&String| name.as_str() == CA_KEY;
    let names = handed.files.keys().filter(|name| !last(name)).chain(handed.files.keys().filter(last));
    for name in names {
        let (path, text) = (keys.join(name), handed.files[name].as_bytes());
        if !files::create_secret(&path, text)? && files::read(&path)?.as_deref() != Some(text) {
            return Err(other(name));
        }
    }
    Ok(true)
}

fn directory(places: &Places) -> Result<&Path, HandedError> {
    match &places.keys {
        KeyHolder::ThisProcess(keys) => Ok(keys),
        KeyHolder::Signer(_) => Err(HandedError::InSigner),
    }
}

/// Whether a file holds no secret: others may read it.
fn is_public(name: &str) -> bool {
    name == "realm/ca.pem" || !(name.ends_with(".key") || name.ends_with(".pem"))
}

/// Whether a file goes with the keys: not the key of one origin's own TLS, not a lock or a
/// temporary file, and nothing outside the two directories.
fn is_name(name: &str) -> bool {
    let (file, kinds): (_, &[_]) = match name.split_once('/') {
        Some(("realm", file)) if file != "origin.key" => (file, &["key", "pem"]),
        Some(("tuf-keys", file)) => (file, &["pem", "json", "sha256"]),
        _ => return false,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let kind = file.rsplit_once('.').map(|(_, kind)| kind);
    !file.starts_with('.') && file.chars().all(is_plain) && kind.is_some_and(|kind| kinds.contains(&kind))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn origin(data: &Path, ca_key: &str) {
        for (name, text) in [
            (CA_KEY, ca_key),
            ("realm/ca.pem", "certificate"),
            ("realm/origin.key", "its own"),
            ("tuf-keys/root-12.pem", "root"),
            ("tuf-keys/newest-root.json", "{}"),
            ("tuf-keys/.root-13.pem", "a temporary file"),
        ] {
            let path = data.join(name);
            files::create_private_dir(path.parent().expect("a directory")).expect("make");
            files::create_secret(&path, text.as_bytes()).expect("write");
        }
    }

    #[test]
    fn a_further_origin_gets_the_keys_and_not_the_key_of_one_origin() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (first, further, file) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("keys"));
        origin(&first, "the key");
        let public = fs::Permissions::from_mode(0o644);
        fs::set_permissions(first.join("realm/ca.pem"), public).expect("chmod");
        let text = export_keys(&Places::in_dir(&first)).expect("export");
        assert!(!text.contains("its own") && !text.contains("temporary"));
        files::create_secret(&file, text.as_bytes()).expect("write");
        assert!(import_keys(&Places::in_dir(&further), &file).expect("import"));
        for name in [CA_KEY, "realm/ca.pem", "tuf-keys/root-12.pem", "tuf-keys/newest-root.json"] {
            assert_eq!(fs::read(further.join(name)).expect(name), fs::read(first.join(name)).expect(name));
            let mode = fs::metadata(further.join(name)).expect(name).permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        // Once more: keys that were changed meanwhile stay.
        fs::remove_file(further.join("tuf-keys/root-12.pem")).expect("remove");
        assert!(!import_keys(&Places::in_dir(&further), &file).expect("import"));
        assert!(!further.join("tuf-keys/root-12.pem").exists());
    }

    #[test]
    fn an_import_that_was_cut_off_is_completed_and_another_realm_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (first, further, file) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("keys"));
        origin(&first, "the key");
        files::create_secret(&file, export_keys(&Places::in_dir(&first)).expect("export").as_bytes())
            .expect("write");
        assert!(import_keys(&Places::in_dir(&further), &file).expect("import"));
        fs::remove_file(further.join(CA_KEY)).expect("remove");
        assert!(import_keys(&Places::in_dir(&further), &file).expect("import"));
        let other = dir.path().join("c");
        origin(&other, "another key");
        let error = import_keys(&Places::in_dir(&other), &file).expect_err("another realm");
        assert!(matches!(error, HandedError::Other { ref file, .. } if file == CA_KEY), "{error}");
        assert_eq!(fs::read(other.join(CA_KEY)).expect("the key"), b"another key");
    }

    #[test]
    fn a_file_whose_names_lead_elsewhere_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in
            ["../x.pem", "realm/../x.pem", "/etc/x.pem", "realm/origin.key", "tuf-keys/.x.pem", "x.pem"]
        {
            let file = dir.path().join("keys");
            let text = format!(r#"{{"format":1,"files":{{"realm/ca.key":"key","{name}":"text"}}}}"#);
            files::write_atomic(&file, text.as_bytes(), 0o600).expect("write");
            let error = import_keys(&Places::in_dir(&dir.path().join("b")), &file).expect_err(name);
            assert!(matches!(error, HandedError::Malformed(..)), "{name}: {error}");
        }
        assert!(!dir.path().join("b").exists());
    }
}
