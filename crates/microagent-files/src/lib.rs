//! Trees of files in and out of tar streams.
//!
//! Every copy between a host and a guest is one tar stream: somebody packs a tree into it, somebody
//! else lands it somewhere. This crate is both, for the host and for the guest agent alike; it
//! knows nothing of machines or workspaces. Whoever lands a stream trusts nothing in it.
#![forbid(unsafe_code)]

mod attributes;
mod error;
mod incoming;
#[cfg(unix)]
mod land;
#[cfg(unix)]
mod pack;
#[cfg(unix)]
mod system;
pub mod tar;
#[cfg(not(unix))]
mod unsupported;

pub use self::attributes::{Attributes, travels};
pub use self::error::CopyError;
pub use self::incoming::{Incoming, Item, Kind, Place, Policy, Trust};
#[cfg(unix)]
pub use self::land::{Temporary, land};
#[cfg(unix)]
pub use self::pack::pack;
#[cfg(unix)]
pub use self::system::{FolderHandle, open_folder, sync_folder};
#[cfg(not(unix))]
pub use self::unsupported::{FolderHandle, Temporary, land, open_folder, pack, sync_folder};

/// The most directories above a file.
pub const MAX_DEPTH: usize = 512;

/// Shows a name of an archive in a message: bounded, lossy where it is not UTF-8.
#[must_use]
pub fn show(name: &[u8]) -> String {
    let cut = name.len().min(512);
    let mut text = String::from_utf8_lossy(&name[..cut]).into_owned();
    if cut < name.len() {
        text.push('…');
    }
    text
}
