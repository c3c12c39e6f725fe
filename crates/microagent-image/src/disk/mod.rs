//! OCI layers to a read-only ext4 disk, without root, staging directory or foreign tools.
//!
//! [`convert()`] makes a *piece* of each layer, content and an index of its entries, and [`join()`] merges pieces to a
//! disk whose content stays in them: so images share what their layers have. [`build`] makes a disk of one file, in
//! one pass. It inflates on one thread and hashes, parses, merges and writes on the caller's: a file's content goes from
//! the decompressor to its final blocks as it arrives, while names and metadata grow into a tree in memory; when the
//! last layer is through, the tree is written behind the content. It must not know where layers come from, what an
//! image config says, or where disks are kept.
//!
//! Everything a layer says is hostile until checked: see [`Limits`] and [`LayerFault`]. The merge rules are stated in
//! the module `tree`. The same layers give the same bytes, on every machine.

mod buffer;
mod content;
mod convert;
mod error;
mod ext4;
mod flat;
mod fuzz;
mod index;
mod join;
mod layer;
mod limits;
mod output;
mod scratch;
mod sink;
mod source;
mod sums;
mod tree;
mod xattr;

use sha2::{Digest, Sha256};

pub(crate) use self::convert::conversion_memory;
pub use self::convert::{Piece, convert};
pub use self::error::{DiskError, EntryFault, LayerFault};
pub use self::ext4::Headroom;
use self::ext4::Identity;
pub use self::flat::{BuiltDisk, build, build_sized, build_writable};
pub use self::fuzz::{fuzz_index, fuzz_layer, fuzz_layers};
pub(crate) use self::join::join_memory;
pub use self::join::{Join, JoinedDisk, join};
pub use self::limits::Limits;
pub use self::scratch::create_scratch;
pub use self::source::{Compression, LayerSource};
pub use self::sums::{CHUNK_BYTES, ChunkHash, ChunkSums};
pub(crate) use self::xattr::acl_from_disk;

/// Raised whenever equal layers begin to give other bytes; part of a cached disk's name.
pub const FORMAT_VERSION: u32 = 3;

/// How to build a disk.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct BuildOptions {
    /// What layers may ask for.
    pub limits: Limits,
}

/// What is going on in [`build`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildProgress<'a> {
    /// A layer begins.
    Layer {
        /// Its place, from 0.
        index: usize,
        /// How many there are.
        count: usize,
        /// Its label.
        label: &'a str,
    },
    /// Uncompressed bytes of all layers read so far; about every 16 MiB.
    Bytes(u64),
    /// All layers are merged; metadata is written and the disk hashed.
    Finishing,
}

/// The file system's UUID is a digest of what is in it (RFC 9562 version 8).
fn identity(diff_ids: &[[u8; 32]]) -> Identity {
    let mut hasher = Sha256::new();
    hasher.update(b"microagent base disk\0");
    hasher.update(FORMAT_VERSION.to_le_bytes());
    for diff_id in diff_ids {
        hasher.update(diff_id);
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let mut label = [0; 16];
    label[..4].copy_from_slice(b"base");
    Identity { uuid, label }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
