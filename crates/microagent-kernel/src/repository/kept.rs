//! What was seen of a repository and held: without it, old metadata could be passed off as new.

use std::collections::BTreeMap;
use std::fs;
use std::future::ready as now;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use futures_io::AsyncRead;
use tuf::Database;
use tuf::metadata::{Metadata, MetadataPath, MetadataVersion, RawSignedMetadata, TargetPath};
use tuf::pouf::Pouf1;
use tuf::repository::{RepositoryProvider, RepositoryStorage};

use super::read_to_end;
use crate::error::{IoContext, KernelError, Result};
use crate::files::{ensure_directory, read_bounded, replace};

/// Largest metadata that is kept; the client takes no larger.
const MAX_METADATA: u64 = 5_000_000;

type Answer<'a, T> = Pin<Box<dyn Future<Output = tuf::Result<T>> + Send + 'a>>;

/// Metadata on the disk, and what is to be written there when all of it holds.
pub(super) struct Kept {
    directory: PathBuf,
    pending: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Kept {
    pub(super) fn open(directory: &Path) -> Result<Self> {
        ensure_directory(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            pending: Mutex::default(),
        })
    }

    /// Teaches the database what was known. Its age does not matter here: it is a lower bound.
    pub(super) fn restore(&self, database: &mut Database<Pouf1>) -> Result<()> {
        const LONG_AGO: DateTime<Utc> = DateTime::UNIX_EPOCH;
        loop {
            let next = database.trusted_root().version().saturating_add(1);
            match self.read(&format!("{next}.root.json"))? {
                Some(root) => {
                    let root = RawSignedMetadata::new(root);
                    self.judge(&format!("{next}.root.json"), database.update_root(&root))?;
                }
                None => break,
            }
        }
        if let Some(bytes) = self.read("timestamp.json")? {
            let raw = RawSignedMetadata::new(bytes);
            let known = database.update_timestamp(&LONG_AGO, &raw).map(|_| true);
            if !self.judge("timestamp.json", known)? {
                return Ok(());
            }
        }
        if let Some(bytes) = self.read("snapshot.json")? {
            let raw = RawSignedMetadata::new(bytes);
            let known = database.update_snapshot(&LONG_AGO, &raw);
            if !self.judge("snapshot.json", known)? {
                return Ok(());
            }
        }
        if let Some(bytes) = self.read("targets.json")? {
            let raw = RawSignedMetadata::new(bytes);
            self.judge("targets.json", database.update_targets(&LONG_AGO, &raw))?;
        }
        Ok(())
    }

    /// Whether what was kept still counts. Keys that were replaced since, and a kill between two files,
    /// leave something that does not; anything else is damage, and going on would forget what was known.
    fn judge<T: Default>(&self, name: &str, result: tuf::Result<T>) -> Result<T> {
        use tuf::Error::{
            AttemptedMetadataRollBack, MetadataMissingSignatures, MetadataNotFound,
            WrongMetadataVersion,
        };
        match result {
            Ok(value) => Ok(value),
            Err(
                MetadataMissingSignatures { .. }
                | WrongMetadataVersion { .. }
                | AttemptedMetadataRollBack { .. }
                | MetadataNotFound { .. },
            ) if !name.ends_with("root.json") => Ok(T::default()),
            Err(error) => Err(KernelError::TrustDamaged {
                path: self.directory.join(name),
                reason: error.to_string(),
            }),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match read_bounded(&self.directory.join(name), MAX_METADATA) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(KernelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes down the roots that were seen, in their order.
    pub(super) fn commit_roots(&self) -> Result<()> {
        let mut roots: Vec<_> = self
            .pending()
            .iter()
            .filter_map(|(name, bytes)| {
                let version: u32 = name.strip_suffix(".root.json")?.parse().ok()?;
                Some((version, name.clone(), bytes.clone()))
            })
            .collect();
        roots.sort();
        for (_, name, bytes) in roots {
            replace(&self.directory.join(name), &bytes)?;
        }
        Ok(())
    }

    /// Writes down everything that was seen. The timestamp goes first: it bounds the others.
    pub(super) fn commit(&self) -> Result<()> {
        for name in ["timestamp.json", "snapshot.json", "targets.json"] {
            let bytes = self.pending().get(name).cloned();
            if let Some(bytes) = bytes {
                replace(&self.directory.join(name), &bytes)?;
            }
        }
        fs::File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .context("sync", &self.directory)
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RepositoryStorage<Pouf1> for Kept {
    fn store_metadata<'a>(
        &'a self,
        path: &MetadataPath,
        version: MetadataVersion,
        metadata: &'a mut (dyn AsyncRead + Send + Unpin),
    ) -> Answer<'a, ()> {
        let name = path.components::<Pouf1>(version).join("/");
        let stored = read_to_end(metadata, MAX_METADATA).map(|bytes| {
            self.pending().insert(name, bytes);
        });
        Box::pin(now(stored.map_err(tuf::Error::from)))
    }

    fn store_target<'a>(
        &'a self,
        path: &TargetPath,
        _target: &'a mut (dyn AsyncRead + Send + Unpin),
    ) -> Answer<'a, ()> {
        Box::pin(now(Err(tuf::Error::TargetNotFound(path.clone()))))
    }
}

/// The client asks for this, and reads nothing through it: [`Kept::restore`] did.
impl RepositoryProvider<Pouf1> for Kept {
    fn fetch_metadata<'a>(
        &'a self,
        path: &MetadataPath,
        version: MetadataVersion,
    ) -> Answer<'a, Box<dyn AsyncRead + Send + Unpin + 'a>> {
        let path = path.clone();
        Box::pin(now(Err(tuf::Error::MetadataNotFound { path, version })))
    }

    fn fetch_target<'a>(
        &'a self,
        path: &TargetPath,
    ) -> Answer<'a, Box<dyn AsyncRead + Send + Unpin + 'a>> {
        Box::pin(now(Err(tuf::Error::TargetNotFound(path.clone()))))
    }
}
