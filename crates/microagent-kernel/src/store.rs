//! The installed kernels: one directory each, complete or absent, under `<state>/kernels`.
//!
//! Readers take no lock: a kernel's directory appears and disappears by one rename. Writers take turns.

mod cache;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::build;
use crate::error::{IoContext, KernelError, Result};
use crate::files::{
    StoreLock, TEMPORARY, create_directory, ensure_directory, read_bounded, remove_temporaries,
    replace, sync_directory, write_new,
};
use crate::hash::{sha256, sha256_of_parts};
use crate::modules::signatures_required;
use crate::record::{Divergence, KernelList, KernelRecord, MANIFEST_FORMAT, ModuleRecord};
use crate::source::{Fetched, KernelProgress, KernelSource, ProgressSink, fetch};

/// Largest manifest that is read; real ones are a few kilobytes.
const MAX_MANIFEST: u64 = 1024 * 1024;
/// Largest file of a kernel that is read back.
const MAX_FILE: u64 = 1024 * 1024 * 1024;
const MANIFEST: &str = "manifest.json";
const VMLINUX: &str = "vmlinux";
const MODULES: &str = "modules";
const DEFAULT: &str = "default.json";
/// What is known of signed repositories; no kernel's id begins with a dot.
const TRUST: &str = ".trust";

/// The kernels of one state directory.
#[derive(Clone, Debug)]
pub struct KernelStore {
    root: PathBuf,
}

/// Content of [`DEFAULT`].
#[derive(Serialize, Deserialize)]
struct DefaultKernel {
    format: u32,
    id: String,
}

impl KernelStore {
    /// Opens the store of `state`, creating its directories (0700) if need be.
    ///
    /// # Errors
    /// If a directory cannot be created.
    pub fn open(state: &Path) -> Result<Self> {
        let root = state.join("kernels");
        ensure_directory(&root)?;
        Ok(Self { root })
    }

    /// Installs a kernel. Installing what is there already gives the existing record.
    ///
    /// # Errors
    /// If the source cannot provide a kernel, if the kernel cannot run a microVM, or if it cannot be stored.
    pub fn install(
        &self,
        source: &KernelSource,
        progress: &mut ProgressSink<'_>,
    ) -> Result<KernelRecord> {
        let _span = tracing::info_span!("kernel install").entered();
        // Nobody waits for a compiler: only what is made is stored under the lock.
        let built = match source {
            KernelSource::Build(options) => Some(build::for_this_host(options, progress)?),
            _ => None,
        };
        let _lock = self.lock(|| progress(KernelProgress::Waiting))?;
        self.install_locked(source, built, progress)
    }

    /// All kernels.
    ///
    /// # Errors
    /// If the store itself cannot be read; damaged kernels are part of the answer.
    pub fn list(&self) -> Result<KernelList> {
        let mut list = KernelList::default();
        for entry in fs::read_dir(&self.root).context("list", &self.root)? {
            let entry = entry.context("list", &self.root)?;
            let is_directory = match entry.file_type() {
                Ok(kind) => kind.is_dir(),
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(error).context("inspect", &entry.path()),
            };
            match entry.file_name().to_str() {
                Some(name) if is_directory && is_id(name) => match self.inspect(name) {
                    Ok(record) => list.kernels.push(record),
                    Err(KernelError::NotFound { .. }) => {}
                    Err(error) => list.damaged.push(error),
                },
                _ => {}
            }
        }
        list.kernels.sort_by(|a, b| {
            b.installed_at
                .cmp(&a.installed_at)
                .then_with(|| a.id.cmp(&b.id))
        });
        Ok(list)
    }

    /// The record of one kernel.
    ///
    /// # Errors
    /// If there is no such kernel, or its manifest is damaged.
    pub fn inspect(&self, id: &str) -> Result<KernelRecord> {
        let path = self.directory(id)?.join(MANIFEST);
        let bytes = match read_bounded(&path, MAX_MANIFEST) {
            Err(KernelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(KernelError::NotFound { id: id.to_owned() });
            }
            other => other?,
        };
        let invalid = |reason: String| KernelError::InvalidManifest {
            path: path.clone(),
            reason,
        };
        let record: KernelRecord =
            serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
        if record.format != MANIFEST_FORMAT {
            return Err(invalid(format!(
                "it has format {}, but {MANIFEST_FORMAT} is read",
                record.format
            )));
        }
        if record.id != id {
            return Err(invalid(format!("it belongs to kernel {}", record.id)));
        }
        if !record
            .modules
            .iter()
            .all(|module| is_module_name(&module.name))
        {
            return Err(invalid("it names an impossible module".to_owned()));
        }
        Ok(record)
    }

    /// Removes a kernel, with its initramfs and modules. A running VM has read it and goes on.
    ///
    /// # Errors
    /// If there is no such kernel or it cannot be removed.
    pub fn remove(&self, id: &str) -> Result<()> {
        let directory = self.directory(id)?;
        let _lock = self.lock(|| {})?;
        if !directory.is_dir() {
            return Err(KernelError::NotFound { id: id.to_owned() });
        }
        remove_temporaries(&self.root)?;
        let chosen = match self.default_id() {
            Ok(chosen) => chosen.as_deref() == Some(id),
            // A choice that cannot be read is none.
            Err(KernelError::InvalidDefault { .. }) => true,
            Err(error) => return Err(error),
        };
        // First, so that a kill in between leaves no choice of a kernel that is gone.
        if chosen {
            let path = self.root.join(DEFAULT);
            fs::remove_file(&path).context("remove", &path)?;
        }
        // Gone for readers at once, and for good: what a kill leaves behind, the next writer removes.
        let doomed = self.root.join(format!("{TEMPORARY}removed-{id}"));
        fs::rename(&directory, &doomed).context("remove", &directory)?;
        sync_directory(&self.root)?;
        fs::remove_dir_all(&doomed).context("remove", &doomed)
    }

    /// Compares a kernel and its cached initramfs with what was recorded, byte by byte.
    ///
    /// # Errors
    /// If there is no such kernel, or a file cannot be read for another reason than being gone.
    pub fn verify(&self, id: &str) -> Result<Vec<Divergence>> {
        let record = self.inspect(id)?;
        let directory = self.directory(id)?;
        let mut recorded = vec![(VMLINUX.to_owned(), record.sha256)];
        recorded.extend(
            record
                .modules
                .into_iter()
                .map(|module| (module_path(&module.name), module.sha256)),
        );
        let installed = recorded.len();
        recorded.extend(cache::recorded(&directory)?);
        let mut divergences = Vec::new();
        for (index, (file, expected)) in recorded.into_iter().enumerate() {
            let found = match read_bounded(&directory.join(&file), MAX_FILE) {
                Ok(bytes) => Some(sha256(&bytes)),
                Err(KernelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    // A cached file may go at any time, and is built again when it is needed.
                    if index >= installed {
                        continue;
                    }
                    None
                }
                Err(error) => return Err(error),
            };
            if found.as_ref() != Some(&expected) {
                divergences.push(Divergence {
                    file,
                    expected,
                    found,
                });
            }
        }
        Ok(divergences)
    }

    /// The kernel to use when none is named: the chosen one, else the most recently installed.
    ///
    /// # Errors
    /// If the chosen kernel is gone or damaged, or the store cannot be read.
    pub fn default_kernel(&self) -> Result<Option<KernelRecord>> {
        match self.default_id()? {
            Some(id) => self.inspect(&id).map(Some),
            None => Ok(self.list()?.kernels.into_iter().next()),
        }
    }

    /// Chooses the kernel to use when none is named.
    ///
    /// # Errors
    /// If there is no such kernel, or the choice cannot be written.
    pub fn set_default(&self, id: &str) -> Result<()> {
        let _lock = self.lock(|| {})?;
        let record = self.inspect(id)?;
        let default = DefaultKernel {
            format: MANIFEST_FORMAT,
            id: record.id,
        };
        let path = self.root.join(DEFAULT);
        replace(&path, &to_json(&default, &path)?)
    }

    /// The default kernel; if there is none at all, the distribution's is installed first.
    ///
    /// # Errors
    /// As [`default_kernel`](Self::default_kernel) and [`install`](Self::install).
    pub fn ensure_default(&self, progress: &mut ProgressSink<'_>) -> Result<KernelRecord> {
        if let Some(record) = self.default_kernel()? {
            return Ok(record);
        }
        let _lock = self.lock(|| progress(KernelProgress::Waiting))?;
        // Whoever held the lock may have installed one.
        match self.default_kernel()? {
            Some(record) => Ok(record),
            None => self.install_locked(
                &KernelSource::DistributionPackage { package: None },
                None,
                progress,
            ),
        }
    }

    /// The image a VMM loads: an ELF `vmlinux` with a PVH entry, on arm64 a flat `Image`.
    #[must_use]
    pub fn vmlinux(&self, record: &KernelRecord) -> PathBuf {
        self.root.join(&record.id).join(VMLINUX)
    }

    fn install_locked(
        &self,
        source: &KernelSource,
        built: Option<Fetched>,
        progress: &mut ProgressSink<'_>,
    ) -> Result<KernelRecord> {
        remove_temporaries(&self.root)?;
        let staging = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(&self.root)
            .context("create a directory in", &self.root)?;
        let scratch = staging.path().join("scratch");
        create_directory(&scratch)?;
        let fetched = match built {
            Some(fetched) => fetched,
            None => fetch(source, &scratch, &self.root.join(TRUST), progress)?,
        };
        progress(KernelProgress::Storing {
            release: fetched.image.release.clone(),
        });
        let record = describe(&fetched);
        match self.inspect(&record.id) {
            Ok(existing) => return Ok(existing),
            Err(KernelError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let complete = staging.path().join(&record.id);
        write_kernel(&complete, &record, &fetched)?;
        let directory = self.root.join(&record.id);
        fs::rename(&complete, &directory).context("create", &directory)?;
        sync_directory(&self.root)?;
        tracing::info!(kernel = record.id, "kernel installed");
        Ok(record)
    }

    fn lock(&self, waiting: impl FnOnce()) -> Result<StoreLock> {
        StoreLock::take(&self.root, waiting)
    }

    fn directory(&self, id: &str) -> Result<PathBuf> {
        if is_id(id) {
            Ok(self.root.join(id))
        } else {
            Err(KernelError::NotFound { id: id.to_owned() })
        }
    }

    fn default_id(&self) -> Result<Option<String>> {
        let path = self.root.join(DEFAULT);
        let bytes = match read_bounded(&path, MAX_MANIFEST) {
            Err(KernelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            other => other?,
        };
        let invalid = |reason: String| KernelError::InvalidDefault {
            path: path.clone(),
            reason,
        };
        let default: DefaultKernel =
            serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
        if default.format != MANIFEST_FORMAT {
            return Err(invalid(format!(
                "it has format {}, but {MANIFEST_FORMAT} is read",
                default.format
            )));
        }
        Ok(Some(default.id))
    }
}

/// The record of what was fetched.
fn describe(fetched: &Fetched) -> KernelRecord {
    let Fetched {
        image,
        drivers,
        provenance,
    } = fetched;
    let modules: Vec<_> = drivers
        .modules
        .iter()
        .map(|module| ModuleRecord {
            name: module.name.clone(),
            sha256: sha256(&module.bytes),
            size: module.bytes.len() as u64,
        })
        .collect();
    let digest = sha256(&image.bytes);
    let parts = modules
        .iter()
        .flat_map(|module| [module.name.as_bytes(), module.sha256.as_bytes()]);
    let identity = sha256_of_parts(std::iter::once(digest.as_bytes()).chain(parts));
    KernelRecord {
        format: MANIFEST_FORMAT,
        id: format!(
            "{}-{}",
            image.release,
            identity.get(..12).unwrap_or_default()
        ),
        release: image.release.clone(),
        version: image.version.clone(),
        architecture: image.architecture,
        sha256: digest,
        size: image.bytes.len() as u64,
        provenance: provenance.clone(),
        modules,
        built_in: drivers.built_in.clone(),
        absent: drivers.absent.clone(),
        drivers_verified: drivers.verified,
        module_signatures_required: signatures_required(image.config.as_deref()),
        installed_at: SystemTime::now(),
    }
}

fn write_kernel(directory: &Path, record: &KernelRecord, fetched: &Fetched) -> Result<()> {
    create_directory(directory)?;
    write_new(&directory.join(VMLINUX), &fetched.image.bytes)?;
    let modules = directory.join(MODULES);
    create_directory(&modules)?;
    for module in &fetched.drivers.modules {
        write_new(&directory.join(module_path(&module.name)), &module.bytes)?;
    }
    sync_directory(&modules)?;
    let manifest = directory.join(MANIFEST);
    write_new(&manifest, &to_json(record, &manifest)?)?;
    sync_directory(directory)
}

fn to_json<T: Serialize>(value: &T, path: &Path) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(value)
        .map_err(io::Error::from)
        .context("write", path)?;
    json.push(b'\n');
    Ok(json)
}

/// Whether a name can be a kernel's id: one path component, not hidden, of the bytes a release may have.
fn is_id(name: &str) -> bool {
    !name.starts_with('.')
        && (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._+-~".contains(&byte))
}

fn is_module_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn module_path(name: &str) -> String {
    format!("{MODULES}/{name}.ko")
}
