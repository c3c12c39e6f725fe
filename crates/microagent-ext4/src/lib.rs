//! ext4 file systems in files: reading what a machine left, and changing what it will find, without
//! mounting them and without any program of the host.
//!
//! Knows nothing of workspaces, overlays or archives. Whoever wrote the file system may mean harm.
#![forbid(unsafe_code)]

mod attributes;
mod bytes;
mod directory;
mod error;
mod extent;
mod inode;
mod journal;
mod superblock;
mod volume;

pub use self::attributes::Attributes;
pub use self::directory::DirEntry;
pub use self::error::{Error, Result};
pub use self::inode::{FileKind, Inode, ROOT};
pub use self::superblock::Usage;
pub use self::volume::{Content, Volume};
