//! What a hostile layer can hold: the tar reader, the merge with whiteouts, and the ext4 writer behind them.
#![no_main]

use libfuzzer_sys::fuzz_target;

// Any answer but a panic is fine: the layer is either written or refused.
fuzz_target!(|data: &[u8]| drop(microagent_image::disk::fuzz_layer(data)));
