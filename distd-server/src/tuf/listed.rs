//! Releases and channels that the repository lists now, for comparison with the rows.

use distd_core::ManifestId;
use distd_core::names::Name;
use distd_peer::trust::tuf::wire::target_path;
use distd_peer::trust::tuf::{ChannelDoc, SEQUENCE};
use serde_json::{Map, Value};

use super::metadata::RepositoryError;
use super::state::TufRepository;

/// Release that devices accept.
#[derive(Clone, Debug)]
pub struct ListedRelease {
    /// Product of the release.
    pub product: Name,
    /// Version of the release.
    pub version: Name,
    /// Fields that are signed beside the release.
    pub custom: Map<String, Value>,
}

impl ListedRelease {
    /// Manifest of the release, if the fields name it.
    pub fn manifest(&self) -> Option<ManifestId> {
        self.custom.get("manifest")?.as_str()?.parse().ok()
    }

    /// Number of the release among the product's, if the fields name it.
    pub fn sequence(&self) -> Option<u64> {
        self.custom.get(SEQUENCE)?.as_u64()
    }
}

/// Releases and channels that devices accept.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// Releases, by name.
    pub releases: Vec<ListedRelease>,
    /// Documents of channels, by name.
    pub channels: Vec<ChannelDoc>,
}

impl TufRepository {
    /// Releases and channels that are listed now. Every signature is checked.
    pub async fn listed(&self) -> Result<Listed, RepositoryError> {
        let keys = self.keys.lock().await;
        let mut state = self.state(&keys).await?;
        self.read_bins(&mut state, &keys).await?;
        let mut listed = Listed::default();
        for (name, target) in state.roles.values().flat_map(|role| &role.targets) {
            let parts: Vec<&str> = name.raw().split('/').collect();
            match parts[..] {
                ["releases", product, version] => {
                    let (Ok(product), Ok(version)) = (product.parse(), version.parse()) else { continue };
                    let custom = target.custom.clone().into_iter().collect();
                    listed.releases.push(ListedRelease { product, version, custom });
                }
                ["channels", _, _] => {
                    let path = target_path(name.raw(), &target.hashes.sha256);
                    let missing = || RepositoryError::Missing(path.clone());
                    let bytes = self.store.get(&path).await?.ok_or_else(missing)?;
                    let doc = serde_json::from_slice(&bytes);
                    listed.channels.push(
                        doc.map_err(|e| RepositoryError::Altered { name: path.clone(), cause: e.into() })?,
                    );
                }
                _ => {}
            }
        }
        listed.releases.sort_by(|a, b| (&a.product, &a.version).cmp(&(&b.product, &b.version)));
        listed.channels.sort_by(|a, b| (&a.product, &a.channel).cmp(&(&b.product, &b.channel)));
        Ok(listed)
    }
}
