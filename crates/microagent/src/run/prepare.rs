//! What a run needs before it has a machine: the image's disk and the kernel.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use microagent_image::{BaseDisk, ImageConfig, ImageEvent, ImageStore, Platform, Reference};
use microagent_kernel::{GUEST_BINARY, KernelRecord, KernelSource, KernelStore};

use super::phases::Phases;
use crate::{
    config::Config,
    error::{Error, Result},
    event::RunEvent,
    images,
    io::EventSink,
    options::{KernelChoice, RunOptions},
    result::{ImageInfo, KernelInfo, TagMove},
};

/// An image ready to boot from.
pub(crate) struct PreparedImage {
    pub(crate) info: ImageInfo,
    pub(crate) tag_moved: Option<TagMove>,
    pub(crate) config: ImageConfig,
    /// Keeps the disk from being removed for as long as the run lives.
    pub(crate) disk: BaseDisk,
}

/// A kernel ready to boot.
pub(crate) struct PreparedKernel {
    pub(crate) info: KernelInfo,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// The SHA-256 of the initramfs, in hexadecimal.
    pub(crate) initramfs_sha256: String,
}

/// Both.
pub(crate) struct Prepared {
    pub(crate) image: PreparedImage,
    pub(crate) kernel: PreparedKernel,
    pub(crate) phases: Phases,
}

/// Gets both ready, from the stores where they have them.
pub(crate) fn prepare(
    config: &Config,
    options: &RunOptions,
    reference: &Reference,
    events: &EventSink,
) -> Result<Prepared> {
    let mut phases = Phases::default();
    let begun = Instant::now();
    let image = image(config, options, reference, events)?;
    phases.add("image", begun.elapsed());
    let begun = Instant::now();
    let kernel = kernel(config, &options.kernel, events)?;
    phases.add("kernel", begun.elapsed());
    Ok(Prepared {
        image,
        kernel,
        phases,
    })
}

fn image(
    config: &Config,
    options: &RunOptions,
    reference: &Reference,
    events: &EventSink,
) -> Result<PreparedImage> {
    let _span = tracing::info_span!("image", %reference).entered();
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    // Before anything is downloaded: the guest's kernel is the host's kind, and emulates no other.
    if !Platform::host().runs(&platform) {
        return Err(Error::ForeignPlatform {
            image: reference.to_string(),
            platform: Box::new(platform),
            host: Box::new(Platform::host()),
        });
    }
    let store = ImageStore::open(config.images_dir())?;
    let listener = Arc::clone(events);
    let moved = Mutex::new(None);
    let progress = |event| {
        if let ImageEvent::TagMoved { from, to, .. } = &event {
            let (from, to) = (from.to_string(), to.to_string());
            *moved.lock().unwrap_or_else(PoisonError::into_inner) = Some(TagMove { from, to });
        }
        listener(RunEvent::Image(event));
    };
    let pull = images::pull_options(config, platform)?;
    let pull = match &options.verify_key {
        Some(key) => pull.verify_key(key.clone()),
        None => pull,
    };
    // Nothing of the image goes between being found and its disk being held.
    let _hold = store.hold()?;
    let record = store.ensure(reference, options.pull, &pull, &progress)?;
    let image_config = store.config(&record)?;
    let disk = store.base_disk(&record, &progress)?;
    let info = ImageInfo {
        reference: record.reference.canonical(),
        digest: record.digest.to_string(),
        platform: record.platform.to_string(),
    };
    events(RunEvent::ImageReady(info.clone()));
    Ok(PreparedImage {
        info,
        tag_moved: moved.into_inner().unwrap_or_else(PoisonError::into_inner),
        config: image_config,
        disk,
    })
}

/// The chosen kernel with its initramfs.
pub(crate) fn kernel(
    config: &Config,
    choice: &KernelChoice,
    events: &EventSink,
) -> Result<PreparedKernel> {
    let _span = tracing::info_span!("kernel").entered();
    let store = KernelStore::open(&config.state_dir)?;
    let mut progress = |event| events(RunEvent::Kernel(event));
    let record = match choice {
        KernelChoice::Default => store.ensure_default(&mut progress)?,
        KernelChoice::Installed(id) => store.inspect(id)?,
        KernelChoice::File { kernel, modules } => {
            let (kernel, modules, sha256) = (kernel.clone(), modules.clone(), None);
            store.install(
                &KernelSource::File {
                    kernel,
                    modules,
                    sha256,
                },
                &mut progress,
            )?
        }
    };
    let prepared = ready(&store, &record)?;
    events(RunEvent::KernelReady(prepared.info.clone()));
    Ok(prepared)
}

/// An installed kernel with its initramfs.
pub(crate) fn ready(store: &KernelStore, record: &KernelRecord) -> Result<PreparedKernel> {
    let initramfs = store.initramfs(record, GUEST_BINARY)?;
    let info = KernelInfo {
        id: record.id.clone(),
        release: record.release.clone(),
        sha256: record.sha256.clone(),
    };
    Ok(PreparedKernel {
        info,
        kernel: store.vmlinux(record),
        initramfs: initramfs.path,
        initramfs_sha256: initramfs.sha256,
    })
}
