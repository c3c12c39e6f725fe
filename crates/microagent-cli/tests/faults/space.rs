//! Disks that are full or cannot be written, and clocks that jump.

use std::{
    io::Write,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    process::Command,
};

use testkit::{Finished, Sandbox};

use crate::world::{World, entries, sound};

/// A file system of a few MiB in memory, for a state directory that is soon full.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size},mode=700"),
                "tmpfs",
            ])
            .arg(directory.path())
            .output()
            .unwrap();
        assert!(
            mounted.status.success(),
            "mounting a small file system takes root: {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        Self(directory)
    }

    /// A command on the workspaces that are here.
    fn ask(&self, world: &World, words: &[&str]) -> Finished {
        let state = self.0.path().to_str().unwrap();
        world
            .sandbox
            .microagent(["--state-dir", state])
            .json()
            .words(words)
            .run()
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut filler = std::fs::File::create(self.0.path().join("filler")).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
    }

    fn remount(&self, option: &str) {
        let mounted = Command::new("mount")
            .args(["-o", &format!("remount,{option}")])
            .arg(self.0.path())
            .status()
            .unwrap();
        assert!(mounted.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        testkit::unmount(self.0.path());
    }
}

/// Shows the kernels and images of `world` in the state directory `at`, workspaces apart.
fn borrow_state(world: &World, at: &Path) {
    for part in ["images", "kernels"] {
        std::os::unix::fs::symlink(world.sandbox.state().join(part), at.join(part)).unwrap();
    }
}

fn fails_for(finished: &Finished, reason: &str) {
    sound(finished);
    assert_ne!(finished.code(), 0, "{finished}");
    let report: serde_json::Value = serde_json::from_slice(&finished.stderr)
        .unwrap_or_else(|error| panic!("no report ({error}): {finished}"));
    let message = report["message"].as_str().unwrap_or_default();
    assert!(message.contains(reason), "{finished}");
}

#[test]
fn a_full_disk_refuses_and_leaves_nothing_half_done() {
    let world = World::new();
    // Less than a manifest and a scratch disk's structures take.
    let small = SmallDisk::new("64k");
    borrow_state(&world, small.0.path());
    let ask = |words: &[&str]| small.ask(&world, words);
    fails_for(
        &ask(&["create", "big", Sandbox::BUSYBOX]),
        "No space left on device",
    );
    let left = entries(&small.0.path().join("workspaces"));
    assert!(
        left.iter().all(|name| name.starts_with(".lock")),
        "{left:?}"
    );
    let listed = ask(&["list"]).success().parsed();
    assert_eq!(listed["workspaces"], serde_json::json!([]));

    // With room again it is as if nothing had happened.
    small.remount("size=64m");
    ask(&["create", "big", Sandbox::BUSYBOX]).success();
    // Full while it is in use: reading and deleting still work.
    small.fill();
    ask(&["status", "big"]).success();
    sound(&ask(&["clone", "big", "more"]));
    ask(&["delete", "big"]).success();
    let left = entries(&small.0.path().join("workspaces"));
    assert!(
        left.iter().all(|name| name.starts_with(".lock")),
        "{left:?}"
    );
    world.end();
}

#[test]
fn a_state_directory_that_cannot_be_written_is_still_read() {
    let world = World::new();
    let small = SmallDisk::new("64m");
    borrow_state(&world, small.0.path());
    let ask = |words: &[&str]| small.ask(&world, words);
    ask(&["create", "kept", Sandbox::BUSYBOX]).success();
    small.remount("ro");
    let status = ask(&["status", "kept"]).success().parsed();
    assert_eq!(status["state"], "prepared");
    ask(&["list"]).success();
    ask(&["events", "kept"]).success();
    for words in [
        &["create", "other", Sandbox::BUSYBOX][..],
        &["start", "kept"],
        &["clone", "kept", "other"],
        &["delete", "kept"],
    ] {
        fails_for(&ask(words), "Read-only file system");
    }
    small.remount("rw");
    ask(&["delete", "kept"]).success();
    world.end();
}

#[test]
fn a_clock_that_jumps_changes_no_history() {
    testkit::require("faketime", "faketime");
    let mut world = World::new();
    let at = |offset: &str, words: &str| {
        let script = format!("faketime -f '{offset}' microagent --json {words}");
        let finished = world.sandbox.shell(&script, Path::new("/")).run();
        sound(&finished);
        finished.success()
    };
    at("+10y", "create jumpy busybox:test --profile tiny");
    at("+10y", "start jumpy");
    at("-10y", "exec jumpy -- true");
    at("-10y", "halt jumpy");
    at("+0", "start jumpy");
    at("+0", "stop jumpy");
    world.check("two jumps of the clock");
    world.end();
}

#[test]
fn what_is_written_is_the_owners_alone() {
    let world = World::new();
    // Some of it anew, whatever made the cache that the rest is from.
    std::fs::remove_dir_all(world.sandbox.state().join("images/disks")).unwrap();
    world
        .ask(["create", "private", Sandbox::BUSYBOX, "--profile", "tiny"])
        .success();
    world.ask(["start", "private"]).success();
    let mut looked_at = 0;
    let runtime = world.sandbox.runtime();
    // The runtime directory itself is the user's, with whatever mode they gave it.
    let mut open: Vec<_> = entries(runtime)
        .iter()
        .map(|name| runtime.join(name))
        .collect();
    open.push(world.sandbox.state().to_owned());
    let mut sockets = 0;
    while let Some(path) = open.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        looked_at += 1;
        if metadata.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            open.extend(entries(&path).into_iter().map(|name| path.join(name)));
        } else if !metadata.is_symlink() {
            // A socket's own mode counts as well; its directory is closed already.
            assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
            sockets += usize::from(metadata.file_type().is_socket());
        }
    }
    assert!(looked_at > 40, "{looked_at}: images, kernels, a workspace");
    assert!(sockets > 1, "a running workspace has sockets");
    world.end();
}
