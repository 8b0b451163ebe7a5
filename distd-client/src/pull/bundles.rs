//! Opening of a bundle, and the check that it is the one for a request.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use distd_core::names::Wanted;
use distd_peer::bundle::{Bundle, BundleError, Head};
use distd_peer::trust::files;
use distd_peer::trust::tuf::wire::end_of;

use crate::disk::side;
use crate::failure::{Code, Failure};

/// Opens the bundle at `path` and reads it once.
///
/// # Errors
/// Failures with [`Code::Integrity`] when the file is damaged or cut short, with [`Code::Local`]
/// when it cannot be read, else with [`Code::Unusable`].
pub fn open(path: &Path) -> anyhow::Result<Bundle> {
    Bundle::open(path).map_err(|error| {
        let code = match &error {
            BundleError::Io(_) => Code::Local,
            BundleError::Short | BundleError::Damaged => Code::Integrity,
            BundleError::NoBundle
            | BundleError::TooMany(_)
            | BundleError::Unknown(_)
            | BundleError::Malformed(_) => Code::Unusable,
        };
        let error = anyhow::Error::new(error).context(format!("could not use {}", path.display()));
        Failure::new(code, error).into()
    })
}

/// Name of what a bundle brings: `os@2`, or `os:stable (os@2)`.
pub fn name_of(head: &Head) -> String {
    let release = format!("{}@{}", head.product, head.release.version);
    match &head.channel {
        Some(channel) => format!("{}:{channel} ({release})", head.product),
        None => release,
    }
}

/// Checks that a bundle brings the wanted release.
///
/// # Errors
/// Failures with [`Code::Usage`].
pub(super) fn check_wanted(head: &Head, wanted: &Wanted, path: &Path) -> anyhow::Result<()> {
    let fits = *wanted.product() == head.product
        && match wanted {
            Wanted::Release { version, .. } => *version == head.release.version,
            Wanted::Channel { channel, .. } => head.channel.as_ref() == Some(channel),
        };
    if fits {
        return Ok(());
    }
    let error =
        anyhow!("{} does not bring that release: it is a bundle of {}", path.display(), name_of(head));
    Err(Failure::new(Code::Usage, error).into())
}

/// Longest root metadata that is read, bytes.
const ROOT_BYTES_MAX: u64 = 1 << 20;

/// Reads a file with root metadata.
///
/// # Errors
/// Failures with [`Code::Local`].
pub(super) fn read_root(path: &Path) -> anyhow::Result<Bytes> {
    let root = side::read_anyones(path, ROOT_BYTES_MAX);
    let root = root.with_context(|| format!("could not read the root metadata {}", path.display()));
    Ok(root.map_err(|error| Failure::new(Code::Local, error))?.into())
}

/// Returns the directory, which is made if needed, for what a device remembers of the realm with
/// this root metadata.
///
/// # Errors
/// Failures with [`Code::Local`], with [`Code::Unusable`] when it is no root metadata.
pub(super) fn data_of_root(data: &Path, root: &[u8]) -> anyhow::Result<PathBuf> {
    // Another root of the realm with the same keys, or other blanks, is the same realm.
    let json: Option<serde_json::Value> = serde_json::from_slice(root).ok();
    let keys = json.as_ref().and_then(|json| json.pointer("/signed/roles/root/keyids"));
    let Some(keys) = keys else {
        let error =
            anyhow!("the file with the root metadata is none: take /tuf/1.root.json of the realm's origin");
        return Err(Failure::new(Code::Unusable, error).into());
    };
    let name = blake3::hash(keys.to_string().as_bytes()).to_hex();
    let dir = data.join("roots").join(&name[..32]);
    files::create_private_dir(&dir).map_err(|error| Failure::new(Code::Local, error.into()))?;
    Ok(dir)
}

/// Advice when a bundle lacks something that this device needs.
pub(super) fn advice(head: &Head) -> String {
    match &head.since {
        Some(since) => format!(
            "this bundle is for devices that have {product}@{since} as distd put it there: name that artifact \
             with --seed, or export {product} without --since",
            product = head.product,
            since = since.version
        ),
        None => "export the release again".to_owned(),
    }
}

/// Time at which the timestamp among some metadata files ends, unix seconds.
pub fn timestamp_ends(files: &[(String, Bytes)]) -> Option<u64> {
    let (_, bytes) = files.iter().find(|(name, _)| name == "timestamp.json")?;
    end_of(bytes)
}
