//! How much of this machine an image may use while it becomes a disk.

use microagent_files::tar::TarLimits;

/// Bounds on what layers may ask for; every one is reported by name when it is exceeded.
///
/// The defaults hold the largest public images with room to spare, and keep peak memory below 150 MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Layers of one image.
    pub max_layers: u64,
    /// Archive entries in all layers together, whiteouts included.
    pub max_entries: u64,
    /// Uncompressed bytes of all layers together.
    pub max_stream_bytes: u64,
    /// Bytes of the disk (holes not counted).
    pub max_disk_bytes: u64,
    /// Apparent size of one file in bytes (holes counted).
    pub max_file_bytes: u64,
    /// Bytes of one entry's path or link target.
    pub max_path_bytes: u64,
    /// Directories above an entry.
    pub max_depth: u64,
    /// Bytes of one extension header (PAX records, GNU long name).
    pub max_extension_bytes: u64,
    /// Segments of one sparse map.
    pub max_sparse_segments: u64,
    /// Bytes of memory for the merged tree: names, link targets, attributes, extents.
    pub max_tree_bytes: u64,
    /// Directory look-ups while resolving names, over all entries (bounds time).
    pub max_lookups: u64,
    /// Uncompressed bytes per compressed byte, judged once `expansion_grace_bytes` came out of one layer.
    pub max_expansion_ratio: u64,
    /// Uncompressed bytes of one layer for which any ratio is accepted.
    pub expansion_grace_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_layers: 1024,
            max_entries: 2_000_000,
            max_stream_bytes: 128 << 30,
            max_disk_bytes: 128 << 30,
            max_file_bytes: 1 << 40,
            max_path_bytes: 4096,
            max_depth: 1024,
            max_extension_bytes: 1 << 20,
            max_sparse_segments: 1 << 16,
            max_tree_bytes: 100 << 20,
            max_lookups: 200_000_000,
            max_expansion_ratio: 256,
            expansion_grace_bytes: 4 << 30,
        }
    }
}

impl Limits {
    /// Those that the tar reader holds.
    pub(crate) fn tar(&self) -> TarLimits {
        TarLimits {
            max_file_bytes: self.max_file_bytes,
            max_path_bytes: self.max_path_bytes,
            max_extension_bytes: self.max_extension_bytes,
            max_sparse_segments: self.max_sparse_segments,
        }
    }

    /// Tight bounds for fuzzing: small memory, small output, no long loops.
    #[must_use]
    pub fn tight() -> Self {
        Limits {
            max_layers: 8,
            max_entries: 4096,
            max_stream_bytes: 16 << 20,
            max_disk_bytes: 32 << 20,
            max_file_bytes: 1 << 32,
            max_path_bytes: 4096,
            max_depth: 256,
            max_extension_bytes: 64 << 10,
            max_sparse_segments: 1024,
            max_tree_bytes: 4 << 20,
            max_lookups: 1_000_000,
            max_expansion_ratio: 256,
            expansion_grace_bytes: 4 << 20,
        }
    }
}
