//! What a hostile layer can hold: the tar reader, the merge with whiteouts, and the ext4 writer behind them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_image::disk::fuzz_layer;

const BLOCK: usize = 512;

// Any answer but a panic is fine: the layer is either written or refused.
fuzz_target!(|data: &[u8]| {
    if fuzz_layer(data).is_err() {
        // Most changes break a header's checksum and get no further; an attacker would set it right.
        drop(fuzz_layer(&with_checksums(data)));
    }
});

/// The same archive with the checksum of every header recomputed (POSIX pax, "ustar Interchange Format").
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut archive = data.to_vec();
    for block in archive.chunks_exact_mut(BLOCK) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    archive
}
