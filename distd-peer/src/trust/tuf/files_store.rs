//! Storage of the repository's files.

use std::path::{Path, PathBuf};

use crate::trust::files;
use async_trait::async_trait;
use bytes::Bytes;

/// File in which an origin notes since when other files have been unreachable. It is only advice:
/// its loss delays the removal of those files.
pub const PRUNING: &str = "pruning.json";

/// Reason why an operation of a store failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {name} in the TUF repository")]
pub struct StoreError {
    /// Attempted operation, a verb for the message.
    pub action: &'static str,
    /// Name of the file.
    pub name: String,
    /// Error of the storage.
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

impl StoreError {
    /// Creates an error from the storage's own error.
    pub fn new(
        action: &'static str,
        name: &str,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { action, name: name.to_owned(), cause: cause.into() }
    }
}

/// Files by name, as served under `/tuf/`. Names satisfy [`is_served_name`] or are `pruning.json`.
#[async_trait]
pub trait MetadataStore: Send + Sync {
    /// Returns the bytes of a file; `None` if there is no such file.
    async fn get(&self, name: &str) -> Result<Option<Bytes>, StoreError>;
    /// Writes or replaces a file. On return the file is durable; a crash before that leaves the new
    /// file or the old one.
    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), StoreError>;
    /// Returns the names of all files.
    async fn list(&self) -> Result<Vec<String>, StoreError>;
    /// Removes a file. A missing file is not an error.
    async fn delete(&self, name: &str) -> Result<(), StoreError>;
}

/// Whether peers may request `name`: plain segments, no leading dot, no character that needs
/// escaping.
pub fn is_served_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
    name.len() <= 512
        && name != PRUNING
        && name.split('/').all(|s| !s.is_empty() && !s.starts_with('.') && s.chars().all(plain))
}

/// A repository in a local directory.
#[derive(Clone, Debug)]
pub struct DirStore {
    dir: PathBuf,
}

impl DirStore {
    /// Creates a store in `dir`, which is created when needed.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    fn path(&self, name: &str) -> Result<PathBuf, StoreError> {
        if is_served_name(name) || name == PRUNING {
            Ok(self.dir.join(name))
        } else {
            Err(StoreError::new("name", name, "not a name of the repository"))
        }
    }
}

#[async_trait]
impl MetadataStore for DirStore {
    async fn get(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        match tokio::fs::read(self.path(name)?).await {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::IsADirectory) => {
                Ok(None)
            }
            Err(e) => Err(StoreError::new("read", name, e)),
        }
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let write = move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            Ok(files::write_atomic(&path, &bytes, 0o644)?)
        };
        let done = tokio::task::spawn_blocking(write).await;
        done.map_err(|e| StoreError::new("write", name, e))?.map_err(|e| StoreError::new("write", name, e))
    }

    async fn list(&self) -> Result<Vec<String>, StoreError> {
        let dir = self.dir.clone();
        let walk = tokio::task::spawn_blocking(move || {
            let mut names = Vec::new();
            walk(&dir, "", &mut names).map(|()| names)
        });
        walk.await.map_err(|e| StoreError::new("list", "/", e))?.map_err(|e| StoreError::new("list", "/", e))
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        files::remove(&self.path(name)?).map_err(|e| StoreError::new("delete", name, e))
    }
}

fn walk(dir: &Path, prefix: &str, names: &mut Vec<String>) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let Ok(file) = entry.file_name().into_string() else { continue };
        // Temporary files of interrupted writes.
        if file.starts_with('.') {
            continue;
        }
        let name = format!("{prefix}{file}");
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &format!("{name}/"), names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_repository_are_not_served() {
        for bad in
            ["", "/", "../x", "a/../b", ".hidden", "a//b", "/etc/passwd", "a\\b", "a%2fb", "pruning.json"]
        {
            assert!(!is_served_name(bad), "{bad:?}");
        }
        for good in ["timestamp.json", "4.releases.json", "targets/releases/os/00ff.12.1+deb12u3"] {
            assert!(is_served_name(good), "{good:?}");
        }
    }
}
