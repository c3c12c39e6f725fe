//! What can stand in files of credentials (Docker's and the containers tools') and, after a `t`, in
//! `registries.toml`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| microagent::fuzz_registry_files(data));
