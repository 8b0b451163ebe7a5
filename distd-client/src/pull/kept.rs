//! The manifest kept beside an artifact, so that it need not be cut again to serve as a seed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use distd_core::manifest::Manifest;

/// Largest manifest file read: one of a 1 TiB artifact.
const MANIFEST_FILE_MAX: u64 = 4 << 30;

/// Whether `path` is a block device.
pub(crate) fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

/// Where the manifest of the artifact at `path` is kept: `PATH.distd`, or under the state directory for a block device,
/// whose directory is no place for files.
pub(crate) fn kept_manifest_path(path: &Path, data: &Path) -> PathBuf {
    if is_block_device(path) {
        let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        return data.join("slots").join(format!("{}.distd", &name[..32]));
    }
    with_suffix(path, ".distd")
}

/// `path` with `suffix` behind its last component.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The kept manifest of `path`; `None` when there is none or it is damaged.
pub(crate) fn read_kept_manifest(path: &Path, data: &Path) -> Option<Manifest> {
    let file = kept_manifest_path(path, data);
    let len = fs::metadata(&file).ok()?.len();
    if len > MANIFEST_FILE_MAX {
        return None;
    }
    let bytes = fs::read(&file).ok()?;
    match Manifest::from_file_bytes(Bytes::from(bytes)) {
        Ok(manifest) => Some(manifest),
        Err(error) => {
            tracing::warn!(path = %file.display(), %error, "kept manifest is damaged; the seed is cut again");
            None
        }
    }
}

/// Keeps `manifest` for the artifact at `path`.
pub(crate) fn keep_manifest(path: &Path, data: &Path, manifest: &Manifest) -> io::Result<()> {
    let file = kept_manifest_path(path, data);
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    write_atomic(&file, &manifest.to_file_bytes())
}

/// Writes a file whole or not at all: temporary file, sync, rename, sync of the directory.
///
/// Unlike `distd_peer::trust::files::write_atomic` the temporary name is fixed: a journal is written every second, and a kill must not
/// leave one file behind each time.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = with_suffix(path, ".part");
    let mut file = File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&part, path)?;
    sync_parent(path)
}

/// Makes a rename in `path`'s directory durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
