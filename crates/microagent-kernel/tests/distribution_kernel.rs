//! The distribution's kernel, from the package manager to the first line of PID 1.
//!
//! The package is downloaded once, by the code under test, into `MICROAGENT_TEST_CACHE` or the target directory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use microagent_kernel::{
    GUEST_BINARY, GUEST_SHA256, KernelRecord, KernelSource, KernelStore, Provenance,
};

fn cache() -> KernelStore {
    let directory = std::env::var_os("MICROAGENT_TEST_CACHE").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"),
        PathBuf::from,
    );
    KernelStore::open(&directory).unwrap()
}

fn kernel(store: &KernelStore) -> KernelRecord {
    // One that an older version installed lacks what is newer.
    let is_whole = |record: &KernelRecord| {
        let modules = record.modules.iter().map(|module| &module.name);
        let mut drivers = modules.chain(&record.built_in);
        drivers.any(|driver| driver == "virtio_balloon")
    };
    let is_package = |record: &KernelRecord| {
        matches!(record.provenance, Provenance::DistributionPackage { .. }) && is_whole(record)
    };
    match store.list().unwrap().kernels.into_iter().find(is_package) {
        Some(record) => record,
        None => store
            .install(
                &KernelSource::DistributionPackage { package: None },
                &mut |_| {},
            )
            .unwrap(),
    }
}

#[test]
fn the_distribution_kernel_has_what_a_microvm_needs() {
    let store = cache();
    let record = kernel(&store);
    assert_eq!(store.verify(&record.id).unwrap(), []);
    assert!(
        record.drivers_verified && !record.module_signatures_required,
        "{record:#?}"
    );
    assert!(record.version.starts_with(&record.release));
    let position = |name: &str| record.modules.iter().position(|module| module.name == name);
    let available = |name: &str| {
        position(name).is_some() || record.built_in.iter().any(|built_in| built_in == name)
    };
    for name in [
        "virtio_blk",
        "ext4",
        "overlay",
        "vmw_vsock_virtio_transport",
        "virtio_net",
        "virtio_rng",
        "virtio_balloon",
        "virtio_pci",
    ] {
        assert!(available(name), "{name} in {record:#?}");
    }
    for (first, then) in [
        ("virtio_ring", "virtio"),
        ("virtio", "virtio_blk"),
        ("vsock", "vmw_vsock_virtio_transport"),
        ("failover", "net_failover"),
        ("net_failover", "virtio_net"),
    ] {
        assert!(
            position(first) < position(then) || position(then).is_none(),
            "{first} after {then}"
        );
    }
}

#[test]
fn the_embedded_guest_is_the_one_that_was_built() {
    assert!(GUEST_BINARY.starts_with(b"\x7fELF") && GUEST_BINARY.len() <= 2 * 1024 * 1024);
    assert_eq!(GUEST_SHA256.len(), 64);
    let store = cache();
    let record = kernel(&store);
    let initramfs = store.initramfs(&record, GUEST_BINARY).unwrap();
    let bytes = fs::read(&initramfs.path).unwrap();
    assert!(
        bytes
            .windows(4096)
            .step_by(4)
            .any(|window| window == &GUEST_BINARY[..4096])
    );
    assert!(bytes.len() < 4 * 1024 * 1024, "{} bytes", bytes.len());
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_kernel_boots_to_init_and_loads_every_module() {
    let store = cache();
    let record = kernel(&store);
    let directory = tempfile::tempdir().unwrap();
    let guest = compile(GUEST, directory.path());
    let initramfs = store.initramfs(&record, &fs::read(guest).unwrap()).unwrap();
    let console = boot(&store.vmlinux(&record), &initramfs.path, directory.path());
    let expected = format!(
        "loaded {} of {} modules",
        record.modules.len(),
        record.modules.len()
    );
    assert!(
        console.contains(&expected),
        "no {expected:?} in:\n{console}"
    );
}

/// A guest that loads the modules in the order given, says so and restarts, which ends the VM.
const GUEST: &str = r#"
use std::ffi::{c_int, c_long, c_char};
unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn reboot(how: c_int) -> c_int;
}
fn main() {
    let order = std::fs::read_to_string("/modules/order").expect("order");
    let mut loaded = 0;
    for name in order.lines() {
        use std::os::fd::AsRawFd;
        let file = std::fs::File::open(format!("/modules/{name}")).expect("module");
        // finit_module
        let result = unsafe { syscall(313, file.as_raw_fd(), c"".as_ptr() as *const c_char, 0) };
        if result == 0 { loaded += 1 } else { println!("{name}: {}", std::io::Error::last_os_error()) }
    }
    println!("loaded {loaded} of {} modules", order.lines().count());
    unsafe { reboot(0x0123_4567) };
}
"#;

fn compile(source: &str, directory: &Path) -> PathBuf {
    let (input, output) = (directory.join("init.rs"), directory.join("init"));
    fs::write(&input, source).unwrap();
    let status = Command::new("rustc")
        .args([
            "--edition=2024",
            "-O",
            "-Cstrip=symbols",
            "-Ctarget-feature=+crt-static",
            "-Crelocation-model=static",
            "-o",
        ])
        .args([&output, &input])
        .status()
        .expect("rustc is needed");
    assert!(status.success());
    output
}

/// Boots under software emulation and returns what came out of the serial console. The first boot of an emulator can
/// hang on a busy machine before the kernel says a word, so there is one retry, as for users.
fn boot(kernel: &Path, initramfs: &Path, directory: &Path) -> String {
    let log = directory.join("console");
    let command_line = format!(
        "console=ttyS0 quiet reboot=t panic=-1 no_timer_check tsc_early_khz={}",
        tsc_khz()
    );
    for _ in 0..2 {
        let mut qemu = Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
                "-m",
                "256",
            ])
            .args([
                "-M",
                "microvm,pit=on,pic=on,rtc=on",
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-append",
                &command_line,
            ])
            .arg("-serial")
            .arg(format!("file:{}", log.display()))
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 is needed: install package qemu-system-x86");
        let deadline = Instant::now() + Duration::from_secs(60);
        let ended = loop {
            if qemu.try_wait().unwrap().is_some() {
                break true;
            }
            if Instant::now() > deadline {
                break false;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if ended {
            break;
        }
        qemu.kill().unwrap();
        qemu.wait().unwrap();
    }
    String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned()
}

/// The rate of the time stamp counter, which the guest cannot measure reliably under emulation.
#[cfg(target_arch = "x86_64")]
fn tsc_khz() -> u64 {
    // SAFETY: rdtsc exists on every x86-64 and has no effect on memory.
    let read = || unsafe { std::arch::x86_64::_rdtsc() };
    let (start, from) = (Instant::now(), read());
    while start.elapsed() < Duration::from_millis(100) {
        std::hint::spin_loop();
    }
    let (to, elapsed) = (read(), start.elapsed());
    (to - from) * 1000 / elapsed.as_micros() as u64
}
