//! Names of images: given and taken away, without a byte of content moving.

use serde::Serialize;

use super::index::RECORD_VERSION;
use super::{Entry, ImageRecord, ImageStore};
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::reference::Reference;
use crate::signature::CheckedSignature;

/// What [`ImageStore::tag`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tagged {
    /// The image under its new name.
    #[serde(flatten)]
    pub record: ImageRecord,
    /// What the name stood for until now, if that was another image.
    pub replaced: Option<Digest>,
}

/// What [`ImageStore::untag`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Untagged {
    /// The name that is gone.
    pub untagged: Reference,
    /// The images it stood for.
    pub digests: Vec<Digest>,
    /// The names by digest that those have from now on which had no other.
    pub kept_as: Vec<Reference>,
}

impl ImageStore {
    /// Gives the image that `source` names (as [`inspect`](Self::inspect) finds it) the name `target`
    /// as well. If that stood for another image, it does no longer.
    ///
    /// # Errors
    /// [`ImageError::Unknown`], [`ImageError::Ambiguous`], [`ImageError::BadName`] for a target with a
    /// digest in it, or when the index cannot be changed.
    pub fn tag(&self, source: &str, target: &Reference) -> Result<Tagged> {
        if target.digest().is_some() {
            return Err(ImageError::BadName {
                name: target.to_string(),
                doing: "a new name",
                reason: "a digest is not given but computed; write NAME[:TAG]",
            });
        }
        let transaction = self.begin()?;
        let mut tagged = None;
        let mut replaced = None;
        self.change_index(&transaction, |entries| {
            let source = self.meant(source, None, entries)?;
            let origin = source.tagged_from.as_ref().unwrap_or(&source.reference);
            let entry = Entry {
                reference: target.clone(),
                tagged_from: (origin != target).then(|| origin.clone()),
                version: RECORD_VERSION,
                ..source.clone()
            };
            entries.retain(|old| {
                let stays = old.reference != *target || old.platform != entry.platform;
                if !stays && old.manifest != entry.manifest {
                    replaced = Some(old.manifest);
                }
                stays
            });
            entries.push(entry.clone());
            tagged = Some(entry);
            Ok(())
        })?;
        let entry = tagged.ok_or_else(|| ImageError::Unknown {
            name: crate::error::clip(source),
        })?;
        Ok(Tagged {
            record: self.record(&entry)?,
            replaced,
        })
    }

    /// Takes the name `reference` away, for every platform. An image that has no other name stays under
    /// its repository's name and its digest.
    ///
    /// # Errors
    /// [`ImageError::Unknown`], [`ImageError::BadName`] for a name that is a digest, or when the index
    /// cannot be changed.
    pub fn untag(&self, reference: &Reference) -> Result<Untagged> {
        if reference.digest().is_some() {
            return Err(ImageError::BadName {
                name: reference.to_string(),
                doing: "taken away",
                reason: "an image's digest is its identity; `images rm` removes the image",
            });
        }
        let transaction = self.begin()?;
        let mut digests = Vec::new();
        let mut kept_as = Vec::new();
        self.change_index(&transaction, |entries| {
            let (named, mut rest): (Vec<Entry>, Vec<Entry>) = std::mem::take(entries)
                .into_iter()
                .partition(|entry| entry.reference == *reference);
            for entry in named {
                digests.push(entry.manifest);
                if rest.iter().all(|other| other.manifest != entry.manifest) {
                    let pinned = reference.pinned(entry.manifest);
                    kept_as.push(pinned.clone());
                    rest.push(Entry {
                        reference: pinned,
                        ..entry
                    });
                }
            }
            *entries = rest;
            if digests.is_empty() {
                return Err(ImageError::Unknown {
                    name: reference.to_string(),
                });
            }
            Ok(())
        })?;
        Ok(Untagged {
            untagged: reference.clone(),
            digests,
            kept_as,
        })
    }

    /// Notes that the image's signature holds, under every name it has.
    pub(crate) fn note_signature(
        &self,
        record: ImageRecord,
        signature: CheckedSignature,
    ) -> Result<ImageRecord> {
        let transaction = self.begin()?;
        self.change_index(&transaction, |entries| {
            for entry in entries.iter_mut() {
                if entry.manifest == record.digest {
                    entry.signature = Some(signature.clone());
                    entry.version = RECORD_VERSION;
                }
            }
            Ok(())
        })?;
        Ok(ImageRecord {
            signature: Some(signature),
            ..record
        })
    }

    /// Makes an image known under `reference` too.
    pub(crate) fn name(&self, record: &ImageRecord, reference: &Reference) -> Result<ImageRecord> {
        if record.reference == *reference {
            return Ok(record.clone());
        }
        let transaction = self.begin()?;
        let mut named = None;
        self.change_index(&transaction, |entries| {
            let found = entries.iter().find(|entry| {
                entry.reference == record.reference && entry.platform == record.platform
            });
            if let Some(entry) = found {
                let entry = Entry {
                    reference: reference.clone(),
                    ..entry.clone()
                };
                named = Some(entry.clone());
                entries.push(entry);
            }
            Ok(())
        })?;
        match named {
            Some(entry) => self.record(&entry),
            // It was removed this instant.
            None => Err(ImageError::Unknown {
                name: reference.to_string(),
            }),
        }
    }
}
