//! A file is known by its number and its file system: other file systems may be mounted below a
//! destination, and count from the same number.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use microagent_files::{
    CopyError, Policy, land,
    tar::{Entry, EntryKind, TarWriter},
};
use microagent_protocol::{Landing, Shipment};

/// The directory to work in; set in the namespaces where the test may mount.
const INSIDE: &str = "MICROAGENT_TEST_MAY_MOUNT";

fn mount_memory(at: &Path) {
    fs::create_dir_all(at).unwrap();
    let mut mount = Command::new("mount");
    let mounted = mount.args(["-t", "tmpfs", "none"]).arg(at).status();
    assert!(mounted.unwrap().success());
}

/// A file of the stream's own, and a further name for a file that need not be.
fn stream(own: &str, name: &str, target: &str) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (path, kind) in [
        (own, EntryKind::File),
        (name, EntryKind::HardLink(target.into())),
    ] {
        let entry = Entry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (1, 0),
            size: 0,
            xattrs: Vec::new(),
        };
        writer.entry(&entry, None).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn a_file_of_another_file_system_with_the_same_number_gets_no_further_name() {
    let name = "a_file_of_another_file_system_with_the_same_number_gets_no_further_name";
    let Some(base) = std::env::var_os(INSIDE) else {
        let base = tempfile::tempdir().unwrap();
        let inside = Command::new("unshare")
            .args(["--map-root-user", "--mount", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, base.path())
            .stdin(Stdio::null())
            .output()
            .expect("unshare, of util-linux");
        assert!(
            inside.status.success(),
            "in namespaces of its own: {}{}",
            String::from_utf8_lossy(&inside.stdout),
            String::from_utf8_lossy(&inside.stderr)
        );
        return;
    };
    let destination = Path::new(&base).join("d");
    mount_memory(&destination);
    let other = destination.join("m");
    mount_memory(&other);
    // Each is called by its number.
    for at in 0..64 {
        let new = other.join(format!("new-{at}"));
        fs::write(&new, "not of the stream").unwrap();
        let number = fs::metadata(&new).unwrap().ino();
        fs::rename(&new, other.join(number.to_string())).unwrap();
    }
    let landing = Landing::new(Shipment::Archive);
    let mut coincided = 0;
    for round in 0..8 {
        // Memory counts its files: the next one is the one after this.
        let last = destination.join(format!("last-{round}"));
        fs::write(&last, "").unwrap();
        let next = fs::metadata(&last).unwrap().ino() + 1;
        let (own, target) = (format!("own-{round}"), format!("m/{next}"));
        let bytes = stream(&own, "m/stolen", &target);
        let landed = land(&bytes[..], &destination, &landing, &Policy::trusting());
        assert!(
            matches!(landed, Err(CopyError::Refused { .. })),
            "{landed:?}"
        );
        assert!(!other.join("stolen").exists());
        coincided += usize::from(
            fs::metadata(destination.join(&own)).unwrap().ino() == next
                && destination.join(&target).exists(),
        );
    }
    assert!(coincided > 0, "no two files had one number");
    // One of the stream's own has as many names as it likes.
    let bytes = stream("own", "own-too", "own");
    land(&bytes[..], &destination, &landing, &Policy::trusting()).unwrap();
    let number = |name: &str| fs::metadata(destination.join(name)).unwrap().ino();
    assert_eq!(number("own"), number("own-too"));
}
