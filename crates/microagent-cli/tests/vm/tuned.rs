//! The kernel of `kernel build`, booted: what agents and the containers they start need works in it.
//!
//! It takes longer to build than all tests take: `cargo xtask kernel test` builds it and names it here.

use std::{fs, process::Command};

use testkit::{Sandbox, containers_arm64_tar, containers_tar, registry::tar_of, require};

/// What is looked at in the guest, one check after the other: each says `ok` or `FAILED`, its name, and why.
const CHECKS: &str = include_str!("tuned/checks.sh");
/// System calls that no program of the image makes alone.
const CALLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/tuned/calls.c");
const IMAGE: &str = "containers:12";

#[test]
#[ignore = "takes a kernel that takes long to build: cargo xtask kernel test"]
fn it_has_what_containers_need() {
    let kernel = std::env::var_os("MICROAGENT_TUNED_KERNEL")
        .expect("MICROAGENT_TUNED_KERNEL names the kernel; `cargo xtask kernel test` sets it");
    // Built for arm64 and translated, it emulates machines of that kind.
    let foreign = std::env::var("MICROAGENT_TUNED_ARM64").ok();
    let program = foreign.as_deref();
    let sandbox = Sandbox::empty(program.unwrap_or(env!("CARGO_BIN_EXE_microagent")));
    let (compiler, platform, image) = match program {
        Some(_) => (
            "aarch64-linux-gnu-gcc",
            "linux/arm64",
            containers_arm64_tar(),
        ),
        None => ("cc", "linux/amd64", containers_tar()),
    };
    let installed = sandbox
        .microagent(["kernel", "install", "--default", "--from"])
        .arg(kernel)
        .json()
        .run()
        .success()
        .parsed();
    assert_eq!(installed["modules"], serde_json::json!([]));
    assert_eq!(installed["absent"], serde_json::json!([]));
    sandbox
        .microagent(["images", "import", "--platform", platform])
        .args(["--name", IMAGE, image.to_str().unwrap()])
        .run()
        .success();

    let place = tempfile::tempdir().unwrap();
    let calls = place.path().join("calls");
    require(compiler, "gcc or gcc-aarch64-linux-gnu");
    let mut compile = Command::new(compiler);
    compile.args(["-static", "-O1", "-Wall", "-Werror", CALLS, "-o"]);
    assert!(compile.arg(&calls).status().unwrap().success());
    let files = tar_of(&[
        ("calls", 0o755, &fs::read(calls).unwrap()),
        ("checks.sh", 0o644, CHECKS.as_bytes()),
    ]);
    // A container engine keeps its layers on a file system that may be the upper layer of an overlay.
    let disk = place.path().join("disk.ext4");
    fs::File::create(&disk).unwrap().set_len(2 << 30).unwrap();
    require("mkfs.ext4", "e2fsprogs");
    let mut format = Command::new("/usr/sbin/mkfs.ext4");
    assert!(format.arg("-q").arg(&disk).status().unwrap().success());

    let run = sandbox
        .run(["-i", "--memory", "1G", "--cpus", "2", "--disk"])
        .arg(format!("data={}:/data:rw", disk.display()))
        .args([IMAGE, "sh", "-c", "tar -x -C /tmp && sh /tmp/checks.sh"])
        .stdin(files)
        .run()
        .success();
    eprintln!("{}", run.out());
    assert!(!run.out().contains("FAILED"), "{run}");
    let checks = CHECKS.lines().filter(|line| line.starts_with("check "));
    assert_eq!(run.out().matches("ok ").count(), checks.count(), "{run}");
}
