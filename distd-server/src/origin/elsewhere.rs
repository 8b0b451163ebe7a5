//! Changes that other processes on the same database and store have made.

use bytes::Bytes;
use distd_core::error::Chain;
use distd_peer::clock::unix_now;

use super::Origin;
use crate::tuf::MetadataStore;

/// State that this process has taken notice of.
#[derive(Debug, Default)]
pub struct SeenElsewhere {
    generation: Option<u64>,
    timestamp: Option<Bytes>,
}

impl Origin {
    /// Looks for changes of other processes and tells those who wait for them: swarms of changed
    /// rights, and where this process follows, nodes of newer metadata and of halts. Call it every
    /// few seconds. A failure is logged; the next look finds the change.
    pub async fn look_elsewhere(&self, seen: &mut SeenElsewhere) {
        match self.db.fleet_generation().await {
            Ok(generation) => {
                if seen.generation.replace(generation).is_some_and(|before| before != generation) {
                    self.db.note_fleet_change();
                }
            }
            Err(error) => tracing::warn!(error = %Chain(&error), "changes of rights could not be read"),
        }
        if !self.follows() {
            return;
        }
        match self.metadata.get("timestamp.json").await {
            Ok(found) if found != seen.timestamp => {
                seen.timestamp = found;
                if let Err(error) = self.tell_of_channels().await {
                    tracing::warn!(error = %Chain(&error), "nodes were not told of changes");
                    seen.timestamp = None;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = %Chain(&error), "the metadata could not be read"),
        }
    }

    /// Renews the certificate of this process where that is due; the rest of
    /// [`maintain`](Self::maintain) is the business of the one that leads.
    ///
    /// # Errors
    /// [`OpenError::Realm`](super::OpenError::Realm).
    pub fn renew_certificate(&self) -> Result<(), super::OpenError> {
        let cert = self.realm.origin_cert(&self.hosts, unix_now())?;
        self.realm.replace_credentials(&self.credentials, &cert)?;
        Ok(())
    }
}
