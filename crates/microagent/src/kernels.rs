//! Kernels: what is installed, and how it gets there and out.

use std::path::Path;

use microagent_kernel::{
    BuildOptions, BuiltKernel, Divergence, KernelList, KernelProgress, KernelRecord, KernelSource,
    KernelStore,
};
use serde::Serialize;

use crate::{config::Config, error::Result};

/// What reading kernels again showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckedKernels {
    /// Whether all of them are what was installed.
    pub ok: bool,
    /// Each that was read.
    pub kernels: Vec<CheckedKernel>,
    /// Why each of the others could not be judged.
    pub damaged: Vec<String>,
}

/// A kernel that was read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckedKernel {
    /// Its id.
    pub id: String,
    /// Whether it is what was installed.
    pub ok: bool,
    /// Whether what was installed is what somebody answered for: the distribution's signed lists or a digest
    /// that was demanded. A file that was taken as it was is only the same file still.
    pub vouched: bool,
    /// Each file that is not what was installed.
    pub divergence: Vec<Divergence>,
}

/// The kernels of a state directory.
#[derive(Clone, Copy, Debug)]
pub struct Kernels<'a> {
    config: &'a Config,
}

impl<'a> Kernels<'a> {
    pub(crate) fn new(config: &'a Config) -> Self {
        Self { config }
    }

    fn store(&self) -> Result<KernelStore> {
        Ok(KernelStore::open(&self.config.state_dir)?)
    }

    /// Installs a kernel. One that is there already stays as it is.
    ///
    /// # Errors
    /// When the source has none, or it cannot run a microVM.
    pub fn install(
        &self,
        source: &KernelSource,
        progress: &mut dyn FnMut(KernelProgress),
    ) -> Result<KernelRecord> {
        Ok(self.store()?.install(source, progress)?)
    }

    /// Builds a kernel that is tuned for microVMs and writes it to `output`; nothing is installed. To install
    /// one, [`install`](Self::install) from [`KernelSource::Build`].
    ///
    /// # Errors
    /// When the source cannot be had, or it does not compile.
    pub fn build(
        &self,
        options: &BuildOptions,
        output: &Path,
        progress: &mut dyn FnMut(KernelProgress),
    ) -> Result<BuiltKernel> {
        Ok(microagent_kernel::build_files(options, output, progress)?)
    }

    /// Looks whether Linux takes every line of the configuration, which [`build`](Self::build) does first.
    ///
    /// # Errors
    /// When the source cannot be had, or a line is not taken.
    pub fn check_configuration(
        &self,
        options: &BuildOptions,
        progress: &mut dyn FnMut(KernelProgress),
    ) -> Result<()> {
        Ok(microagent_kernel::check_configuration(options, progress)?)
    }

    /// Every kernel, newest first, and what could not be read.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<KernelList> {
        Ok(self.store()?.list()?)
    }

    /// The ids of all kernels that can be read. Makes nothing where there are none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn ids(&self) -> Result<Vec<String>> {
        if !self.config.state_dir.join("kernels").is_dir() {
            return Ok(Vec::new());
        }
        let kernels = self.store()?.list()?.kernels;
        Ok(kernels.into_iter().map(|kernel| kernel.id).collect())
    }

    /// The kernel that boots when none is named, if there is one.
    ///
    /// # Errors
    /// When the chosen one is gone or damaged.
    pub fn default_kernel(&self) -> Result<Option<KernelRecord>> {
        Ok(self.store()?.default_kernel()?)
    }

    /// Makes a kernel the one that boots when none is named. Workspaces that exist keep theirs.
    ///
    /// # Errors
    /// When there is no such kernel.
    pub fn set_default(&self, id: &str) -> Result<()> {
        Ok(self.store()?.set_default(id)?)
    }

    /// Reads the kernels named, or all if none is, and compares each byte with what was installed.
    ///
    /// # Errors
    /// When one that is named is not there or its record is damaged, or a file cannot be read. What differs
    /// is in the result.
    pub fn verify(&self, only: &[String]) -> Result<CheckedKernels> {
        let store = self.store()?;
        let (records, damaged) = if only.is_empty() {
            let list = store.list()?;
            let damaged = list.damaged.iter().map(ToString::to_string).collect();
            (list.kernels, damaged)
        } else {
            let named = only.iter().map(|id| store.inspect(id));
            (named.collect::<Result<Vec<_>, _>>()?, Vec::new())
        };
        let mut kernels = Vec::new();
        for record in records {
            let divergence = store.verify(&record.id)?;
            kernels.push(CheckedKernel {
                ok: divergence.is_empty(),
                vouched: record.provenance.is_vouched(),
                id: record.id,
                divergence,
            });
        }
        Ok(CheckedKernels {
            ok: damaged.is_empty() && kernels.iter().all(|kernel| kernel.ok),
            kernels,
            damaged,
        })
    }

    /// One kernel by its id.
    ///
    /// # Errors
    /// When there is none, or its record is damaged.
    pub fn inspect(&self, id: &str) -> Result<KernelRecord> {
        Ok(self.store()?.inspect(id)?)
    }

    /// Removes a kernel.
    ///
    /// # Errors
    /// When there is none, or it cannot be removed.
    pub fn remove(&self, id: &str) -> Result<()> {
        Ok(self.store()?.remove(id)?)
    }
}
