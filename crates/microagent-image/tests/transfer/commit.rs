//! What the kernel's overlay file system leaves on a disk, as a layer: compared with what the kernel itself shows.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use microagent_image::disk::create_scratch;
use microagent_image::{
    CommitOptions, Committed, ExportFormat, ImageError, PullOptions, UpperDirectory,
};
use testkit::registry::{Packing, Registry, run_tool};

use super::{Bench, attribute, push_options, registry_options, skopeo_copy, unpacked, untarred};
use crate::nasty::{CAPABILITY, nasty};
use crate::oracle::{Mounted, assert_same, tool};

/// Base and scratch joined as the guest agent joins them.
struct Overlay {
    at: tempfile::TempDir,
    _base: Mounted,
    _scratch: Mounted,
}

impl Overlay {
    fn new(base: &Path, scratch: &Path) -> Self {
        let (base, scratch) = (Mounted::new(base), Mounted::writable(scratch));
        for folder in ["upper", "work"] {
            fs::create_dir_all(scratch.path().join(folder)).unwrap();
        }
        let at = crate::oracle::directory();
        let options = format!(
            "lowerdir={},upperdir={s}/upper,workdir={s}/work,redirect_dir=off,metacopy=off,index=off",
            base.path().display(),
            s = scratch.path().display()
        );
        let target = at.path().to_str().unwrap();
        tool(
            "mount",
            "mount",
            &["-t", "overlay", "-o", &options, "overlay", target],
        );
        Self {
            at,
            _base: base,
            _scratch: scratch,
        }
    }

    fn path(&self) -> PathBuf {
        self.at.path().to_owned()
    }

    fn run(&self, script: &str) {
        let mut shell = Command::new("bash");
        shell.current_dir(self.path()).args(["-euc", script]);
        run_tool("bash", &mut shell).unwrap();
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        testkit::unmount(self.at.path());
    }
}

const AWKWARD: &str = r#"
rm secret usr/n*n; rm -r many; printf file >many
rm morph; mkdir morph; printf in >morph/in
rm -r opaque; mkdir opaque; printf only >opaque/only
rm loop-a; ln -s elsewhere loop-a
chmod 4711 usr/bin/wall; chown 12:34 usr/bin/wall
mkdir -p new/deep; printf one >new/one; ln new/one new/deep/two; ln new/one three
cp usr/noted ping; printf more >>usr/bin/ping
truncate -s 64M holes; printf end >>holes; printf x | dd of=holes bs=1 seek=5M conv=notrunc status=none
mknod dev/mine c 10 200; mknod dev/disk b 259 70000; mkfifo new/pipe
printf name >'new/a
b'; touch -d '2001-02-03 04:05:06.789' new/one
printf host >etc/hostname; printf hosts >etc/hosts; printf mine >etc/mine
touch -d @1700000000 etc new opaque .
"#;

const MACHINE: &[&[u8]] = &[b"etc/hostname", b"etc/hosts", b"etc/resolv.conf"];

impl Bench {
    fn commit(
        &self,
        base: microagent_image::Digest,
        disk: &Path,
        name: &str,
        options: &CommitOptions,
    ) -> Result<Committed, ImageError> {
        let upper = UpperDirectory {
            disk,
            name: b"upper",
            without: MACHINE,
        };
        self.store
            .commit(base, &upper, &name.parse().unwrap(), options, &|event| {
                self.hear(event);
            })
    }
}

#[test]
fn what_the_kernel_shows_is_what_the_image_is() {
    let bench = Bench::new();
    let mut layers = nasty(50);
    layers.push(
        crate::archive::Tar::default()
            .dir("etc/", crate::archive::DIR)
            .end(),
    );
    let base = bench.image("base:1", &layers, Packing::Gzip);
    let lower = bench
        .store
        .base_disk(&base, &|_| {})
        .unwrap()
        .flat()
        .unwrap();
    let scratch = bench.path("scratch.ext4");
    create_scratch(&scratch, 128).unwrap();
    let crashed = bench.path("crashed.ext4");
    {
        let overlay = Overlay::new(&lower, &scratch);
        let root = overlay.path();
        let _listener = UnixListener::bind(root.join("etc/socket")).unwrap();
        overlay.run(AWKWARD);
        attribute(&root.join("ping"), "security.capability", &CAPABILITY);
        attribute(&root.join("new"), "user.note", b"on a\0directory");
        attribute(&root.join("new/deep"), "trusted.mine", b"kept");
        // user::rw-, user:1000:r--, group::r--, mask::r--, other::r--
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, rights, id) in [
            (1u16, 6u16, u32::MAX),
            (2, 4, 1000),
            (4, 4, u32::MAX),
            (0x10, 4, u32::MAX),
            (0x20, 4, u32::MAX),
        ] {
            acl.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
            acl.extend(id.to_le_bytes());
        }
        attribute(&root.join("new/one"), "system.posix_acl_access", &acl);
        // As if the machine had lost its power here: what is on the disk is in its journal.
        run_tool("coreutils", Command::new("sync").arg("-f").arg(&root)).unwrap();
        fs::copy(&scratch, &crashed).unwrap();
    }
    let options = CommitOptions::new()
        .message("made awkward")
        .author("a test")
        .change("CMD [\"/bin/x\"]".parse().unwrap());
    let committed = bench
        .commit(base.digest, &scratch, "awkward:1", &options)
        .unwrap();
    assert_eq!(committed.sockets_left_out, 1);
    assert_eq!(committed.image.layers.len(), 5);
    let details = bench.store.inspect("awkward:1").unwrap();
    assert_eq!(details.image.cmd, ["/bin/x"]);
    assert_eq!(details.image.diff_ids[4], committed.diff_id);
    // The same again, and the same from the disk of a machine that was not shut down.
    for disk in [&scratch, &crashed] {
        let again = bench
            .commit(base.digest, disk, "awkward:2", &options)
            .unwrap();
        assert_eq!(again.image.digest, committed.image.digest);
    }

    // By way of a registry, skopeo and umoci, and by our own.
    let registry = Registry::start().unwrap();
    let name = registry.reference("awkward:1");
    bench
        .store
        .push(
            "awkward:1",
            Some(&name.parse().unwrap()),
            &push_options(),
            &|_| {},
        )
        .unwrap();
    let layout = bench.path("layout");
    skopeo_copy(
        &format!("docker://{name}"),
        &format!("oci:{}:x", layout.display()),
    );
    let theirs = unpacked(&layout, "x", &bench.path("bundle"));
    let pull = PullOptions::new()
        .platform("linux/amd64".parse().unwrap())
        .registry(registry_options());
    let pulled = bench
        .store
        .pull(&name.parse().unwrap(), &pull, &|_| {})
        .unwrap();
    assert_eq!(pulled.digest, committed.image.digest);
    let tar = bench.path("rootfs.tar");
    bench
        .export(&[&name], ExportFormat::RootfsTar, &tar)
        .unwrap();
    let ours = untarred(&tar, &bench.path("untarred"));
    assert_same(&ours, &theirs);

    let overlay = Overlay::new(&lower, &scratch);
    overlay.run("rm etc/hostname etc/hosts etc/socket; touch -d @1700000000 etc");
    assert!(assert_same(&overlay.path(), &theirs) > 50);
}

#[test]
fn what_cannot_be_committed_says_why() {
    let bench = Bench::new();
    let base = bench.image(
        "base:1",
        &[testkit::registry::tar_of(&[("f", 0o644, b"f")])],
        Packing::Gzip,
    );
    let scratch = bench.path("scratch.ext4");
    create_scratch(&scratch, 32).unwrap();
    let options = CommitOptions::new();
    // Nothing was written: a layer of nothing.
    let empty = bench
        .commit(base.digest, &scratch, "same:1", &options)
        .unwrap();
    assert_eq!((empty.entries, empty.image.layers.len()), (0, 2));
    let refused = |disk: &Path, name: &str| {
        let before = bench.store.list().unwrap();
        let error = bench.commit(base.digest, disk, name, &options).unwrap_err();
        assert_eq!(bench.store.list().unwrap(), before, "{error}");
        let left = fs::read_dir(bench.store.root().join("tmp")).unwrap();
        assert_eq!(left.count(), 0, "{error}");
        error
    };
    let pinned = format!("base@{}", base.digest);
    let error = refused(&scratch, &pinned);
    assert!(matches!(error, ImageError::CannotCommit { .. }), "{error}");
    {
        let mounted = Mounted::writable(&scratch);
        fs::create_dir_all(mounted.path().join("upper/d")).unwrap();
        fs::write(mounted.path().join("upper/d/.wh.f"), b"").unwrap();
    }
    let error = refused(&scratch, "x:1").to_string();
    assert!(error.contains("`d/.wh.f` cannot be in a layer"), "{error}");
    {
        let mounted = Mounted::writable(&scratch);
        let upper = mounted.path().join("upper");
        fs::remove_file(upper.join("d/.wh.f")).unwrap();
        attribute(&upper.join("d"), "trusted.overlay.redirect", b"/f");
    }
    let error = refused(&scratch, "x:1").to_string();
    assert!(error.contains("only in part"), "{error}");
    let error = refused(&bench.path("from-base-1/index.json"), "x:1");
    assert!(matches!(error, ImageError::Volume { .. }), "{error}");
    let nobody = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let error = bench
        .commit(nobody.parse().unwrap(), &scratch, "x:1", &options)
        .unwrap_err();
    assert!(matches!(error, ImageError::BaseGone { .. }), "{error}");
}
