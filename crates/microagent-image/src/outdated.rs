//! Whether what is in the store is still what its name stands for.

use serde::Serialize;

use crate::choose::choose;
use crate::digest::Digest;
use crate::error::Result;
use crate::event::ImageEvent;
use crate::pull::{PullOptions, Remote};
use crate::registry::{Client, RegistryScope};
use crate::store::{ImageRecord, ImageStore};

/// What a registry says about an image of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Freshness {
    /// Its name stands for it.
    Current,
    /// Its name stands for another one.
    Outdated {
        /// The manifest it stands for now, on the same platform.
        remote_digest: Digest,
    },
    /// Its name is a digest or was given to it here, or it was imported: there is nothing to compare
    /// it with.
    Pinned,
}

impl ImageStore {
    /// Asks the registry of `record` what its tag stands for now. Nothing is downloaded but documents,
    /// and those only where the tag moved. Mirrors are not asked: they may be behind.
    ///
    /// # Errors
    /// Those of [`pull`](Self::pull).
    pub fn freshness(
        &self,
        record: &ImageRecord,
        options: &PullOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Freshness> {
        let reference = &record.reference;
        let is_own_name = record.pulled_from.is_none() || record.tagged_from.is_some();
        if is_own_name || reference.digest().is_some() {
            return Ok(Freshness::Pinned);
        }
        let client = Client::new(
            reference,
            &RegistryScope::of(reference),
            &options.registry,
            options.credentials.as_deref(),
            events,
        )?;
        let now = client.current_digest()?;
        if now == record.digest || Some(now) == record.index_digest {
            return Ok(Freshness::Current);
        }
        // An index changes with any of its platforms: only ours counts.
        let transaction = self.begin()?;
        let remote = Remote {
            client: &client,
            reference,
            transaction: &transaction,
        };
        let name = reference.to_string();
        let chosen = choose(&remote, client.manifest()?, &name, &record.platform)?;
        Ok(match chosen.digest == record.digest {
            true => Freshness::Current,
            false => Freshness::Outdated {
                remote_digest: chosen.digest,
            },
        })
    }
}
