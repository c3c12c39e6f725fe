//! The initramfs files beside a kernel: one per guest agent, built at first use, with a note of what was built.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{KernelStore, MANIFEST, MAX_FILE, MAX_MANIFEST, is_module_name, module_path, to_json};
use crate::error::{IoContext, KernelError, Result};
use crate::files::{read_bounded, remove_temporaries, replace};
use crate::hash::sha256;
use crate::initramfs;
use crate::modules::without_signature;
use crate::record::{Initramfs, KernelRecord};

/// How many initramfs files a kernel keeps. Each new build of the guest agent makes one.
const KEPT: usize = 4;
const PREFIX: &str = "initramfs-";
const NOTE: &str = ".json";

/// What was built, beside it.
#[derive(Serialize, Deserialize)]
struct Note {
    sha256: String,
    size: u64,
}

impl KernelStore {
    /// The initramfs of a kernel and a guest agent ([`GUEST_BINARY`](crate::GUEST_BINARY)), built at first use.
    ///
    /// # Errors
    /// If the kernel's modules are not as recorded, or the file cannot be written.
    pub fn initramfs(&self, record: &KernelRecord, guest: &[u8]) -> Result<Initramfs> {
        if guest.is_empty() {
            return Err(KernelError::NoGuest);
        }
        let directory = self.directory(&record.id)?;
        let guest_digest = if std::ptr::eq(guest, crate::GUEST_BINARY) {
            crate::GUEST_SHA256.to_owned()
        } else {
            sha256(guest)
        };
        let key = guest_digest.get(..16).unwrap_or_default();
        let path = directory.join(format!("{PREFIX}{}-{key}", initramfs::FORMAT));
        if let Some(found) = cached(&path)? {
            return Ok(found);
        }
        let _span = tracing::info_span!("initramfs", kernel = record.id).entered();
        let _lock = self.lock(|| {})?;
        if let Some(found) = cached(&path)? {
            return Ok(found);
        }
        if !directory.is_dir() {
            return Err(KernelError::NotFound {
                id: record.id.clone(),
            });
        }
        remove_temporaries(&directory)?;
        remove_oldest(&directory)?;
        let bytes = initramfs::build(guest, &modules(&directory, record)?);
        let note = Note {
            sha256: sha256(&bytes),
            size: bytes.len() as u64,
        };
        // The file first: one without a note is built again.
        replace(&path, &bytes)?;
        let note_path = path.with_added_extension("json");
        replace(&note_path, &to_json(&note, &note_path)?)?;
        Ok(Initramfs {
            path,
            sha256: note.sha256,
            size: note.size,
        })
    }
}

/// The cached files of a kernel with their recorded digests.
pub(super) fn recorded(directory: &Path) -> Result<Vec<(String, String)>> {
    let mut recorded = Vec::new();
    for (_, name) in cached_files(directory)? {
        if let Some(note) = read_note(&directory.join(&name))? {
            recorded.push((name, note.sha256));
        }
    }
    Ok(recorded)
}

fn cached(path: &Path) -> Result<Option<Initramfs>> {
    let Some(Note { sha256, size }) = read_note(path)? else {
        return Ok(None);
    };
    let there = fs::metadata(path).is_ok_and(|metadata| metadata.len() == size);
    Ok(there.then(|| Initramfs {
        path: path.to_owned(),
        sha256,
        size,
    }))
}

/// The note beside a file; `None` also if it cannot be understood, for then the file is built again.
fn read_note(path: &Path) -> Result<Option<Note>> {
    match read_bounded(&path.with_added_extension("json"), MAX_MANIFEST) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(KernelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The modules' names and contents in load order, as recorded or not at all.
fn modules(directory: &Path, record: &KernelRecord) -> Result<Vec<(String, Vec<u8>)>> {
    let mut modules = Vec::with_capacity(record.modules.len());
    for module in &record.modules {
        if !is_module_name(&module.name) {
            let reason = "it names an impossible module".to_owned();
            return Err(KernelError::InvalidManifest {
                path: directory.join(MANIFEST),
                reason,
            });
        }
        let file = directory.join(module_path(&module.name));
        let bytes = read_bounded(&file, MAX_FILE)?;
        let found = sha256(&bytes);
        if found != module.sha256 {
            let (name, expected) = (file.display().to_string(), module.sha256.clone());
            return Err(KernelError::DigestMismatch {
                name,
                expected,
                found,
            });
        }
        // Checked above, so the kernel need not spend time on it: 5 ms a module under software emulation.
        let content = if record.module_signatures_required {
            &bytes
        } else {
            without_signature(&bytes)
        };
        modules.push((module.name.clone(), content.to_vec()));
    }
    Ok(modules)
}

/// Makes room for one more file. A VM that was started with a removed one has read it.
fn remove_oldest(directory: &Path) -> Result<()> {
    let mut files = cached_files(directory)?;
    files.sort();
    let surplus = (files.len() + 1).saturating_sub(KEPT);
    for (_, name) in files.into_iter().take(surplus) {
        for path in [
            directory.join(format!("{name}{NOTE}")),
            directory.join(&name),
        ] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.context("remove", &path)?,
            }
        }
    }
    Ok(())
}

/// When each cached file, or its note if that is all there is, was written, and the file's name.
fn cached_files(directory: &Path) -> Result<Vec<(SystemTime, String)>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).context("list", directory)? {
        let entry = entry.context("list", directory)?;
        if let Some(name) = entry.file_name().to_str()
            && name.starts_with(PREFIX)
        {
            let metadata = match entry.metadata() {
                // Replaced by a newer one since it was listed; `verify` holds no lock.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.context("inspect", &entry.path())?,
            };
            let written = metadata.modified().context("inspect", &entry.path())?;
            files.insert(name.strip_suffix(NOTE).unwrap_or(name).to_owned(), written);
        }
    }
    Ok(files
        .into_iter()
        .map(|(name, written)| (written, name))
        .collect())
}
