//! What everything takes on the disk, and taking away what nobody needs.

use std::{collections::BTreeSet, path::Path};

use microagent_image::{Bytes, ImageError, ImageStore, PruneOptions, Pruned};
use microagent_kernel::KernelStore;
use serde::Serialize;

use crate::{
    config::Config,
    directories::{self, Leftover, bytes_of},
    error::Result,
    images::WorkspaceNeeds,
    workspaces::manifest::Manifest,
};

/// What a state directory takes on the disk.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DiskUsage {
    /// Images: blobs and base disks.
    pub images: KindUsage,
    /// Kernels, with the initramfs of each.
    pub kernels: KindUsage,
    /// Workspaces: what they have written.
    pub workspaces: KindUsage,
    /// Parts of layers to go on with, and notes on what was proved and verified.
    pub caches: KindUsage,
    /// All of that.
    pub total: Bytes,
}

/// What one kind of thing takes.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct KindUsage {
    /// How many there are.
    pub count: u64,
    /// What they take; what they share counts once.
    pub total: Bytes,
    /// What more than one of them has.
    pub shared: Bytes,
    /// What only one of them has.
    pub unique: Bytes,
    /// What `command` would give back, in bytes on the disk; `None` while that cannot be told.
    pub reclaimable_bytes: Option<u64>,
    /// The command that gives it back.
    pub command: &'static str,
}

/// What [`crate::Microagent::prune`] took away, or would have.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PruneReport {
    /// Whether it only told.
    pub dry_run: bool,
    /// What killed programs had left behind.
    pub leftovers: Vec<Leftover>,
    /// Images, and content that no image has.
    pub images: Pruned,
    /// What became free in all, in bytes.
    pub reclaimed_bytes: u64,
}

pub(crate) fn prune(config: &Config, options: &PruneOptions) -> Result<PruneReport> {
    // First those who might need images and are gone.
    let leftovers = directories::collect(config, options.dry_run)?;
    let images = ImageStore::open(config.images_dir())?.prune(options, &WorkspaceNeeds(config))?;
    let of_leftovers: u64 = leftovers.iter().map(|leftover| leftover.bytes).sum();
    Ok(PruneReport {
        dry_run: options.dry_run,
        reclaimed_bytes: of_leftovers + images.reclaimed.bytes,
        leftovers,
        images,
    })
}

pub(crate) fn disk_usage(config: &Config) -> Result<DiskUsage> {
    let (images, partial, partial_count) = images(config)?;
    let kernels = kernels(config)?;
    let workspaces = workspaces(config)?;
    let mut caches = partial;
    caches += bytes_of(&config.host_cache_dir());
    caches += bytes_of(&config.verified_dir());
    let caches = KindUsage {
        count: partial_count,
        total: caches,
        unique: caches,
        shared: Bytes::default(),
        reclaimable_bytes: Some(partial.allocated_bytes),
        command: "microagent images prune",
    };
    let total = [&images, &kernels, &workspaces, &caches]
        .into_iter()
        .map(|kind| kind.total)
        .sum();
    Ok(DiskUsage {
        images,
        kernels,
        workspaces,
        caches,
        total,
    })
}

/// The images; and apart from them parts of layers that did not come whole, with their number.
fn images(config: &Config) -> Result<(KindUsage, Bytes, u64)> {
    let store = ImageStore::open(config.images_dir())?;
    let usage = store.usage()?;
    let mut look = PruneOptions::new().all(true).dry_run(true);
    look.patience = std::time::Duration::ZERO;
    let reclaimable = match store.prune(&look, &WorkspaceNeeds(config)) {
        Ok(pruned) => {
            Some(pruned.reclaimed.bytes - usage.partial.allocated_bytes.min(pruned.reclaimed.bytes))
        }
        // Images come in, or a workspace is damaged: nothing would be given back now.
        Err(ImageError::StoreBusy { .. } | ImageError::NeedsUnknown { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let kind = KindUsage {
        count: usage.images.len() as u64,
        total: Bytes {
            apparent_bytes: usage.stored.apparent_bytes - usage.partial.apparent_bytes,
            allocated_bytes: usage.stored.allocated_bytes - usage.partial.allocated_bytes,
        },
        shared: usage.shared,
        unique: usage.unique,
        reclaimable_bytes: reclaimable,
        command: "microagent images prune --all",
    };
    Ok((kind, usage.partial, usage.partial_files))
}

fn kernels(config: &Config) -> Result<KindUsage> {
    let store = KernelStore::open(&config.state_dir)?;
    let root = config.state_dir.join("kernels");
    let default = store.default_kernel().ok().flatten().map(|it| it.id);
    let used: BTreeSet<String> = directories::named(config)?
        .iter()
        .filter_map(|(_, directory)| Some(Manifest::read(directory).ok()?.kernel.id))
        .chain(default)
        .collect();
    let kernels = store.list()?.kernels;
    let unused = kernels.iter().filter(|kernel| !used.contains(&kernel.id));
    let total = bytes_of(&root);
    Ok(KindUsage {
        count: kernels.len() as u64,
        total,
        unique: total,
        shared: Bytes::default(),
        reclaimable_bytes: Some(unused.map(|it| allocated(&root.join(&it.id))).sum()),
        command: "microagent kernel rm",
    })
}

fn workspaces(config: &Config) -> Result<KindUsage> {
    let named = directories::named(config)?;
    let total = bytes_of(&config.workspaces_dir());
    let left: u64 = directories::collect(config, true)?
        .iter()
        .map(|leftover| leftover.bytes)
        .sum();
    Ok(KindUsage {
        count: named.len() as u64,
        total,
        unique: total,
        shared: Bytes::default(),
        reclaimable_bytes: Some(left),
        command: "microagent gc",
    })
}

fn allocated(path: &Path) -> u64 {
    bytes_of(path).allocated_bytes
}
