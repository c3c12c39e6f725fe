//! Registries, content store, archives, and layers to disk: from an image reference to a base disk.
//!
//! Knows nothing of machines, workspaces or terminals, and reads neither environment nor home directory:
//! where the store is, who asks, and which registries may be spoken to in plain HTTP come in as arguments.
//! Everything that comes from a registry or a file is hostile until it is verified: documents are bounded
//! and checked ([`manifest::parse`], [`ImageConfig::parse`]), content is hashed before it gets a name.
//!
//! ```no_run
//! use microagent_image::{ImageStore, PullOptions, PullPolicy};
//!
//! # fn main() -> microagent_image::Result<()> {
//! let store = ImageStore::open("/var/lib/microagent/images")?;
//! let name = "debian:12".parse()?;
//! let image = store.ensure(&name, PullPolicy::Missing, &PullOptions::new(), &|_event| {})?;
//! let disk = store.base_disk(&image, &|_event| {})?;
//! println!("{} is {} bytes at {}", image.digest, disk.size_bytes, disk.path.display());
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod choose;
mod commit;
mod config;
mod digest;
pub mod disk;
mod error;
mod event;
mod export;
mod import;
pub mod manifest;
mod memory;
mod outdated;
mod pack;
mod platform;
mod pull;
mod push;
mod reference;
mod registry;
mod signature;
mod store;
mod sync;

pub use commit::{CommitOptions, Committed, ImageChange, UpperDirectory};
pub use config::ImageConfig;
pub use digest::{Digest, Hasher};
pub use error::{ImageError, Result};
pub use event::ImageEvent;
pub use export::{ExportFormat, ExportOptions, ExportTo, Exported, ExportedImage, RootDisk};
pub use import::ImportOptions;
pub use memory::MemoryUse;
pub use outdated::Freshness;
#[doc(hidden)]
pub use pack::fuzz_pack;
pub use platform::Platform;
pub use pull::{PullOptions, PullPolicy};
pub use push::{PushOptions, Pushed};
pub use reference::Reference;
pub use registry::{
    ClientCertificate, Credential, Credentials, HostOptions, LoginCheck, ProxyOptions,
    RegistryOptions, RegistryScope, Secret, check_login,
};
pub use signature::{CheckedSignature, VerifyKey};
pub use store::{
    BaseDisk, BaseDiskGuard, Bytes, CheckedImage, HistoryStep, ImageDetails, ImageDivergence,
    ImageHistory, ImageRecord, ImageStore, ImageTree, ImageUsage, LayerRecord, Needs, Provenance,
    PruneOptions, PruneReason, Pruned, PrunedImage, Reclaimed, Removed, StoreHold, StoreUsage,
    StoreVerification, Tagged, TreeImage, TreeLayer, Untagged,
};
