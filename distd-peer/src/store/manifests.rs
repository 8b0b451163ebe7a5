//! Manifests stored beside the chunks, one file each. A file is complete or absent.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::manifest::Manifest;

use super::{EdgeStore, StoreError};
use crate::filesystem;

impl EdgeStore {
    fn manifest_path(&self, id: &ManifestId) -> PathBuf {
        self.dir.join("manifests").join(id.to_string())
    }

    /// Returns a stored manifest. A damaged file is removed and counts as absent.
    pub fn manifest(&self, id: &ManifestId) -> Result<Option<Manifest>, StoreError> {
        let path = self.manifest_path(id);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::io("read", &path)(e)),
        };
        match Manifest::from_file_bytes(Bytes::from(bytes)) {
            Ok(manifest) if manifest.id() == *id => Ok(Some(manifest)),
            _ => {
                fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
                Ok(None)
            }
        }
    }

    /// Stores a manifest: temporary file, sync, rename, sync of the directory.
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let path = self.manifest_path(&manifest.id());
        let part = path.with_extension("part");
        let file = File::create(&part).map_err(StoreError::io("create", &part))?;
        filesystem::replace_by(file, &part, &path, &manifest.to_file_bytes())
            .map_err(|failed| StoreError::io(failed.step, &path)(failed.cause))
    }

    /// Ids of the stored manifests, newest first, at most `limit`.
    pub fn recent_manifests(&self, limit: usize) -> Result<Vec<ManifestId>, StoreError> {
        let dir = self.dir.join("manifests");
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))? {
            let entry = entry.map_err(StoreError::io("read", &dir))?;
            let id = entry.file_name().to_str().and_then(|name| name.parse::<ManifestId>().ok());
            let modified = entry.metadata().and_then(|m| m.modified());
            if let (Some(id), Ok(modified)) = (id, modified) {
                found.push((modified, id));
            }
        }
        found.sort_unstable();
        Ok(found.into_iter().rev().take(limit).map(|(_, id)| id).collect())
    }
}
