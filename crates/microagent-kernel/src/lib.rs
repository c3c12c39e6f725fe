//! Kernels for microVMs: fetches them, keeps them, and builds the initramfs that starts the guest agent.
//!
//! A kernel goes through three steps: a [`KernelSource`] provides an image and modules, the image is unpacked to what a
//! VMM loads directly and the modules the guest needs are chosen, and the [`KernelStore`] keeps both under an id.
//! [`KernelStore::initramfs`] then joins the modules and the guest agent ([`GUEST_BINARY`]), which this crate builds
//! and carries.
//!
//! This crate knows nothing of VMMs, disks or workspaces, and reads neither environment nor home directory.
//!
//! ```no_run
//! # fn main() -> Result<(), microagent_kernel::KernelError> {
//! use microagent_kernel::{GUEST_BINARY, KernelStore};
//!
//! let store = KernelStore::open("/var/lib/microagent".as_ref())?;
//! let kernel = store.ensure_default(&mut |_progress| {})?;
//! let initramfs = store.initramfs(&kernel, GUEST_BINARY)?;
//! assert!(store.vmlinux(&kernel).exists() && initramfs.path.exists());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod apt;
mod build;
mod command;
mod compression;
mod deb;
mod elf;
mod error;
mod files;
#[cfg(test)]
mod fixtures;
mod hash;
mod image;
mod initramfs;
mod modules;
mod record;
mod repository;
mod source;
mod store;

pub use build::{BuildOptions, BuiltKernel, SOURCE_PACKAGE, build_files, check_configuration};
pub use error::{KernelError, Result};
pub use record::{Architecture, Divergence, Initramfs, KernelList, KernelRecord, ModuleRecord};
pub use repository::{DEFAULT_CHANNEL, Patience, RepositorySource};
pub use source::{KernelProgress, KernelSource, PackageProvenance, ProgressSink, Provenance};
pub use store::KernelStore;

/// The guest agent, a static Linux program for this build's architecture; empty in builds for other systems that were
/// given none.
pub static GUEST_BINARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest"));

/// SHA-256 of [`GUEST_BINARY`], lower-case hexadecimal.
pub const GUEST_SHA256: &str = env!("MICROAGENT_GUEST_SHA256");

/// Reads `data` as a kernel image and as a module, unpacking little, for fuzzing: whatever the bytes are, it returns.
#[doc(hidden)]
pub fn fuzz_image(data: &[u8]) {
    const LIMIT: usize = 4 << 20;
    // Any answer but a panic is fine.
    drop(image::extract_within(LIMIT, "fuzzed", data.to_vec()));
    if let Ok(module) = compression::decompress_if_needed(data, LIMIT) {
        drop(modules::ModuleInfo::parse(modules::without_signature(
            &module,
        )));
    }
}
