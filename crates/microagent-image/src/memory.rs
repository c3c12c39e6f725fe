//! How much memory it takes to make a disk: what was planned, and what was seen.

use serde::Serialize;

use crate::manifest::Layer;
use crate::store::{ImageRecord, conversion_memory};

/// Memory of an operation that made an image's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryUse {
    /// The most physical memory that this process had at a time since it began, with everything else it did and its
    /// own code; `None` where the host does not count it.
    pub peak_bytes: Option<u64>,
    /// The most that downloading and converting these layers may have at a time: all buffers, what the decompressors
    /// may ask for, and the names and metadata at the limit that images are refused at.
    pub bound_bytes: u64,
}

impl MemoryUse {
    /// Of an image that just came in.
    #[must_use]
    pub fn of(image: &ImageRecord) -> Self {
        Self {
            peak_bytes: microagent_host::process::peak_memory().ok(),
            bound_bytes: bound_of(&image.layers),
        }
    }
}

fn bound_of(layers: &[Layer]) -> u64 {
    let kinds = layers.iter().map(|layer| layer.compression.into());
    crate::pull::memory(layers.len()) + conversion_memory(kinds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::manifest::Compression;

    fn bound(kinds: &[Compression]) -> u64 {
        let layer = |compression: &Compression| Layer {
            digest: Digest::of(b""),
            size: 1,
            compression: *compression,
            urls: Vec::new(),
        };
        bound_of(&kinds.iter().map(layer).collect::<Vec<_>>()) >> 20
    }

    #[test]
    fn what_is_planned_is_within_the_promise_whatever_the_size() {
        use Compression::{Gzip, None, Zstd};
        // The tree at its limit, and what is in flight.
        assert!(bound(&[Gzip]) > 100);
        assert!(bound(&[Gzip; 100]) <= 150, "{}", bound(&[Gzip; 100]));
        assert_eq!(bound(&[Gzip; 16]), bound(&[Gzip; 1000]));
        assert!(bound(&[None; 2]) <= bound(&[Gzip; 2]));
        // A frame of zstd may ask for a window of 64 MiB, and two layers are converted at once.
        let more = |kinds: &[Compression]| bound(kinds) - bound(&[Gzip; 9]);
        assert!((64..=65).contains(&more(&[
            Zstd, Gzip, Gzip, Gzip, Gzip, Gzip, Gzip, Gzip, Gzip
        ])));
        assert!((128..=129).contains(&more(&[Zstd; 9])));
    }
}
