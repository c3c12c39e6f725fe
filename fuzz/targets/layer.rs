//! What a hostile layer can hold: the tar reader, the merge with whiteouts, and the ext4 writer behind them.
#![no_main]

#[path = "../shared/checksums.rs"]
mod checksums;

use libfuzzer_sys::fuzz_target;
use microagent_image::disk::fuzz_layer;

// Any answer but a panic is fine: the layer is either written or refused.
fuzz_target!(|data: &[u8]| {
    if fuzz_layer(data).is_err() {
        drop(fuzz_layer(&checksums::with_checksums(data)));
    }
});
