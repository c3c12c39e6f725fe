//! Kernels: what is installed, and how it gets there and out.

use microagent_kernel::{KernelList, KernelProgress, KernelRecord, KernelSource, KernelStore};

use crate::{config::Config, error::Result};

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

    /// Makes a kernel the one that boots when none is named.
    ///
    /// # Errors
    /// When there is no such kernel.
    pub fn set_default(&self, id: &str) -> Result<()> {
        Ok(self.store()?.set_default(id)?)
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
