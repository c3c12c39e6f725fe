//! What is open here is open, for a moment, in every program that another test starts: from its fork to its
//! exec. A program just written is busy then, and so is a mount.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::eventually;

/// Writes a program that may be started at once: another process writes it, so nobody can inherit it open.
///
/// # Panics
/// If it cannot be written.
pub fn executable(path: &Path, contents: &[u8]) {
    let mut install = Command::new("install")
        .args(["-D", "-m", "755", "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("cannot run install: {error}; install the package coreutils")
        });
    let mut stdin = install.stdin.take().expect("its input is a pipe");
    stdin.write_all(contents).expect("the program is written");
    drop(stdin);
    let ended = install.wait().expect("install ends");
    assert!(ended.success(), "cannot write {}: {ended}", path.display());
}

/// Unmounts what is at `path` as soon as nobody has anything of it open. A test that has failed may have, and
/// is not waited for.
///
/// # Panics
/// If it is in use for half a minute.
pub fn unmount(path: &Path) {
    let unmounted = || {
        let ended = Command::new("umount").arg(path).output();
        ended
            .is_ok_and(|ended| ended.status.success())
            .then_some(())
    };
    if std::thread::panicking() {
        if unmounted().is_none() {
            eprintln!("{} is not unmounted", path.display());
        }
    } else {
        eventually(Duration::from_secs(30), "umount", unmounted);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, thread};

    use super::*;

    #[test]
    fn programs_written_while_others_start_can_be_started() {
        let directory = tempfile::tempdir().unwrap();
        thread::scope(|scope| {
            let others = scope.spawn(|| {
                for _ in 0..200 {
                    assert!(Command::new("true").status().unwrap().success());
                }
            });
            for round in 0..50 {
                let program = directory.path().join(format!("new/{round}"));
                executable(&program, b"#!/bin/sh\nexit 7\n");
                assert_eq!(Command::new(&program).status().unwrap().code(), Some(7));
            }
            others.join().unwrap();
        });
    }

    #[test]
    fn a_mount_in_use_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "tmpfs"])
            .arg(at)
            .status();
        assert!(mounted.unwrap().success());
        let open = File::create(at.join("file")).unwrap();
        thread::scope(|scope| {
            let waits = scope.spawn(|| unmount(at));
            assert!(at.join("file").exists(), "it is in use");
            drop(open);
            waits.join().unwrap();
        });
        assert!(!at.join("file").exists(), "it is unmounted");
    }
}
