//! What a user can hand over as a kernel or a module: setup headers, ELF, compressed payloads.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| microagent_kernel::fuzz_image(data));
