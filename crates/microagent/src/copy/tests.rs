//! Workspaces at rest, against the kernel's own overlay. Needs root: it mounts.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use microagent_files::{Policy, pack};
use microagent_image::disk::{BuildOptions, Compression, LayerSource, build, create_scratch};
use microagent_protocol::{CopyIn, CopyReport, CopyWhat, Landing, Shipment};

use super::{
    land::land_overlay,
    overlay::{Disk, DiskError, Overlay},
    pack::{View, pack_overlay, pack_within},
};

fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A workspace's two disks.
struct Disks {
    dir: tempfile::TempDir,
}

impl Disks {
    /// With an image of some directories and files.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        for folder in [
            "etc/conf.d",
            "usr/bin",
            "usr/share/doc",
            "var/log",
            "home/me",
            "tmp",
        ] {
            fs::create_dir_all(image.join(folder)).unwrap();
        }
        for n in 0..300 {
            fs::write(image.join(format!("usr/share/doc/page-{n}")), n.to_string()).unwrap();
        }
        fs::write(image.join("etc/passwd"), "root").unwrap();
        fs::write(image.join("etc/conf.d/a"), "a").unwrap();
        fs::write(image.join("usr/bin/tool"), vec![1; 100_000]).unwrap();
        fs::hard_link(image.join("usr/bin/tool"), image.join("usr/bin/tool-too")).unwrap();
        symlink("usr/bin", image.join("bin")).unwrap();
        symlink("/var/log", image.join("logs")).unwrap();
        symlink("../../../../etc", image.join("usr/up")).unwrap();
        symlink("loop", image.join("loop")).unwrap();
        fs::set_permissions(image.join("etc"), fs::Permissions::from_mode(0o2750)).unwrap();
        chown(image.join("etc"), Some(7), Some(8)).unwrap();
        chown(image.join("home/me"), Some(1000), Some(1000)).unwrap();
        let tar = dir.path().join("image.tar");
        tool("tar", &["-cf", text(&tar), "-C", text(&image), "."]);
        let layer = LayerSource {
            label: "image".to_owned(),
            reader: Box::new(File::open(&tar).unwrap()),
            compression: Compression::None,
            diff_id: None,
        };
        build(
            vec![layer],
            &dir.path().join("base"),
            &BuildOptions::default(),
            &mut |_| {},
        )
        .unwrap();
        create_scratch(&dir.path().join("scratch"), 64).unwrap();
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn guest(&self) -> Guest {
        Guest::mount(self)
    }

    fn pack(&self, path: &str, what: CopyWhat) -> Result<(Vec<u8>, CopyReport), crate::Error> {
        let overlay = Overlay::new(
            Disk::open(self.at("base")).unwrap(),
            Some(Disk::open(self.at("scratch")).unwrap()),
        );
        let path: microagent_protocol::CopyPath = path.parse().unwrap();
        let view = View {
            overlay,
            path: path.clone(),
            shown: path,
        };
        let mut bytes = Vec::new();
        let report = pack_overlay(&view, what, &mut bytes)?;
        Ok((bytes, report))
    }

    fn pack_within(&self, path: &str, most_held: usize) -> Result<CopyReport, DiskError> {
        let path: microagent_protocol::CopyPath = path.parse().unwrap();
        let view = View {
            overlay: Overlay::new(Disk::open(self.at("base")).unwrap(), None),
            path: path.clone(),
            shown: path,
        };
        pack_within(&view, CopyWhat::default(), io::sink(), most_held)
    }

    fn land(&self, bytes: &[u8], path: &str, landing: Landing) -> Result<CopyReport, DiskError> {
        let request = CopyIn {
            path: path.parse().unwrap(),
            landing,
        };
        let landed = land_overlay(
            self.at("base"),
            self.at("scratch"),
            bytes,
            &request,
            &Policy::trusting(),
        );
        tool("e2fsck", &["-fn", text(&self.at("scratch"))]);
        landed
    }
}

/// The root as a guest sees it.
struct Guest(tempfile::TempDir);

impl Guest {
    fn mount(disks: &Disks) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["base", "scratch", "root"] {
            fs::create_dir(at(name)).unwrap();
        }
        tool(
            "mount",
            &["-o", "loop,ro", text(&disks.at("base")), text(&at("base"))],
        );
        tool(
            "mount",
            &[
                "-o",
                "loop",
                text(&disks.at("scratch")),
                text(&at("scratch")),
            ],
        );
        for name in ["scratch/upper", "scratch/work"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off",
            text(&at("base")),
            text(&at("scratch/upper")),
            text(&at("scratch/work")),
        );
        tool(
            "mount",
            &[
                "-t",
                "overlay",
                "-o",
                &options,
                "overlay",
                text(&at("root")),
            ],
        );
        Self(dir)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join("root").join(path)
    }

    fn run(&self, script: &str) {
        let done = Command::new("sh")
            .args(["-ec", script])
            .current_dir(self.at(""))
            .output()
            .unwrap();
        assert!(done.status.success(), "{script}: {done:?}");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for name in ["root", "scratch", "base"] {
            testkit::unmount(&self.0.path().join(name));
        }
    }
}

const CONTENTS: CopyWhat = CopyWhat {
    contents: true,
    follow: false,
};
const PLAIN: CopyWhat = CopyWhat {
    contents: false,
    follow: false,
};

/// What a guest does to its root in a day.
const DAY: &str = "
    echo new > etc/new; rm etc/passwd; rm -r etc/conf.d; mkdir etc/conf.d; echo b > etc/conf.d/b
    rm -r usr/share/doc; echo now a file > usr/share/doc; chmod 600 usr/bin/tool
    mv home/me home/you; mkdir -p home/me/inner; rm bin; mkdir bin; echo x > bin/x
    rm -r var/log; ln -s /home var/log; mknod var/null c 1 3; truncate -s 10M var/holes
    printf middle | dd of=var/holes bs=1 seek=5000000 conv=notrunc status=none
    ln etc/new etc/new-too; mkdir -p a/b/c; chown 5:6 a/b; setfattr -n user.note -v x a/b || true
    i=0; while [ $i -lt 300 ]; do echo $i > a/b/c/file-$i; i=$((i+1)); done
    i=0; while [ $i -lt 200 ]; do rm a/b/c/file-$i; i=$((i+1)); done
";

/// The same stream, whether it is read from the disks or where the kernel has them.
fn assert_same(disks: &Disks, path: &str, what: CopyWhat) {
    let ours = disks.pack(path, what).unwrap();
    let guest = disks.guest();
    let inside = guest.at(path.trim_start_matches('/'));
    let theirs = pack(&inside, what, Vec::new()).unwrap();
    assert_eq!(ours.1, theirs.1, "{path}");
    if ours.0 != theirs.0 {
        let list = |bytes: &[u8]| {
            let file = disks.at("listed.tar");
            fs::write(&file, bytes).unwrap();
            let listed = Command::new("tar").arg("-tvf").arg(&file).output().unwrap();
            String::from_utf8_lossy(&listed.stdout).into_owned()
        };
        assert_eq!(list(&ours.0), list(&theirs.0));
        let at = ours.0.iter().zip(&theirs.0).position(|(a, b)| a != b);
        let around = |bytes: &[u8]| {
            let at = at.unwrap_or(0) / 512 * 512;
            String::from_utf8_lossy(&bytes[at.saturating_sub(1024)..(at + 512).min(bytes.len())])
                .replace('\0', "")
        };
        assert_eq!(around(&ours.0), around(&theirs.0), "{path}");
        panic!("{path}: one stream is longer");
    }
}

#[test]
fn a_workspace_at_rest_looks_as_its_guest_saw_it() {
    let disks = Disks::new();
    // Until the first boot the root directory is the image's.
    disks.guest().run("");
    assert_same(&disks, "/", CONTENTS);
    disks.guest().run(DAY);
    assert_same(&disks, "/", CONTENTS);
    assert_same(&disks, "/etc", PLAIN);
    assert_same(&disks, "/usr/share", PLAIN);
    assert_same(&disks, "/home/me", PLAIN);
    for (path, missing) in [
        ("/etc/passwd", true),
        ("/usr/share/doc/page-1", false),
        ("/none/x", true),
    ] {
        let error = disks.pack(path, PLAIN).unwrap_err();
        let expected = if missing {
            "there is no"
        } else {
            "not a directory"
        };
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn links_lead_where_the_guest_would_go() {
    let disks = Disks::new();
    let files = |path: &str, follow| {
        let what = CopyWhat {
            contents: false,
            follow,
        };
        disks.pack(path, what).map(|(_, report)| report.files)
    };
    assert_eq!(files("/bin", false).unwrap(), 1);
    assert_eq!(files("/bin", true).unwrap(), 2);
    assert_eq!(files("/bin/tool", false).unwrap(), 1);
    // Beyond the root is the root.
    assert_eq!(files("/usr/up/conf.d/a", false).unwrap(), 1);
    assert_eq!(files("/logs", true).unwrap(), 0);
    for path in ["/loop/x", "/loop"] {
        assert!(
            files(path, true)
                .unwrap_err()
                .to_string()
                .contains("too many"),
            "{path}"
        );
    }
}

/// A stream of some files of the host.
fn stream(dir: &Path, name: &str) -> Vec<u8> {
    let src = dir.join(name);
    fs::create_dir_all(src.join("deep/er")).unwrap();
    fs::write(src.join("hello"), "hello").unwrap();
    fs::write(src.join("deep/er/big"), vec![3; 2_000_000]).unwrap();
    fs::hard_link(src.join("hello"), src.join("deep/hello")).unwrap();
    symlink("/etc/passwd", src.join("deep/link")).unwrap();
    fs::set_permissions(src.join("deep"), fs::Permissions::from_mode(0o1777)).unwrap();
    chown(src.join("deep/er"), Some(1234), Some(5678)).unwrap();
    pack(&src, PLAIN, Vec::new()).unwrap().0
}

#[test]
fn what_is_landed_at_rest_is_there_for_the_guest() {
    for used in [false, true] {
        let disks = Disks::new();
        if used {
            disks.guest().run(DAY);
        }
        let host = tempfile::tempdir().unwrap();
        let bytes = stream(host.path(), "src");
        let named = Landing::new(Shipment::Named);
        for (path, lands) in [
            ("/etc", "etc/src"),
            ("/etc/other", "etc/other"),
            ("/usr/up", "etc/src"),
            (
                "/logs/here",
                if used { "home/here" } else { "var/log/here" },
            ),
            ("/home/me", "home/me/src"),
            ("/etc/conf.d", "etc/conf.d/src"),
            ("/", "src"),
        ] {
            let report = disks.land(&bytes, path, named.clone()).unwrap();
            assert_eq!(
                (report.files, report.directories, report.bytes),
                (4, 3, 2_000_005)
            );
            let guest = disks.guest();
            let landed = pack(&guest.at(lands), PLAIN, Vec::new()).unwrap().0;
            let source = tempfile::tempdir().unwrap();
            let name = Path::new(lands).file_name().unwrap();
            std::os::unix::fs::symlink(host.path().join("src"), source.path().join(name)).unwrap();
            let follow = CopyWhat {
                contents: false,
                follow: true,
            };
            assert!(
                pack(&source.path().join(name), follow, Vec::new())
                    .unwrap()
                    .0
                    == landed,
                "{path}"
            );
        }
        assert_same(&disks, "/", CONTENTS);
        // What was there is what it was, and directories on the way are their owners'.
        let guest = disks.guest();
        let etc = fs::metadata(guest.at("etc")).unwrap();
        assert_eq!((etc.mode() & 0o7777, etc.uid(), etc.gid()), (0o2750, 7, 8));
        assert_eq!(guest.at("etc/conf.d/a").exists(), !used);
        assert_eq!(guest.at("etc/conf.d/b").exists(), used);
        assert_eq!(
            fs::metadata(guest.at("home/me")).unwrap().uid(),
            if used { 0 } else { 1000 }
        );
        guest.run("rm -r etc/src src; mkdir src; echo again > src/hello; mv etc/other moved");
    }
}

#[test]
fn files_take_the_place_of_files_and_of_nothing_else() {
    let disks = Disks::new();
    disks.guest().run(DAY);
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("f"), "landed").unwrap();
    let (file, _) = pack(&host.path().join("f"), PLAIN, Vec::new()).unwrap();
    let tree = stream(host.path(), "bin");
    let named = Landing::new(Shipment::Named);
    let into = Landing {
        into_directory: true,
        ..named.clone()
    };
    let parents = Landing {
        parents: true,
        ..named.clone()
    };
    for path in [
        "/etc/passwd",
        "/usr/bin/tool",
        "/etc/new",
        "/usr/share/doc",
        "/var/log/x",
    ] {
        disks.land(&file, path, named.clone()).unwrap();
    }
    disks.land(&file, "/x/y/z", parents.clone()).unwrap();
    disks.land(&file, "/etc/conf.d", into.clone()).unwrap();
    let removed = disks.land(&tree, "/etc/removed/here", parents).unwrap();
    assert_eq!(removed.files, 4);
    {
        let guest = disks.guest();
        for path in [
            "etc/passwd",
            "usr/bin/tool",
            "etc/new",
            "usr/share/doc",
            "home/x",
            "x/y/z",
            "etc/conf.d/f",
        ] {
            assert_eq!(
                fs::read_to_string(guest.at(path)).unwrap(),
                "landed",
                "{path}"
            );
        }
        // Another name of a file that was replaced keeps what it had.
        assert_eq!(
            fs::read_to_string(guest.at("etc/new-too")).unwrap(),
            "new\n"
        );
        assert_eq!(
            fs::read(guest.at("usr/bin/tool-too")).unwrap().len(),
            100_000
        );
        fs::remove_dir_all(guest.at("etc/removed")).unwrap();
        fs::remove_dir_all(guest.at("usr/share")).unwrap();
    }
    // Where the guest removed a directory, its old content does not come back.
    let contents = Landing::new(Shipment::Contents);
    let (inner, _) = pack(&host.path().join("bin"), CONTENTS, Vec::new()).unwrap();
    disks.land(&inner, "/usr/share", contents.clone()).unwrap();
    {
        let guest = disks.guest();
        let names: Vec<_> = fs::read_dir(guest.at("usr/share"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(
            fs::metadata(guest.at("usr/share/deep")).unwrap().mode() & 0o7777,
            0o1777
        );
    }
    assert_same(&disks, "/", CONTENTS);
    let before = disks.pack("/", CONTENTS).unwrap();
    for (bytes, path, landing, words) in [
        (&tree, "/etc/new", &named, "directory"),
        (&tree, "/etc/new/x", &named, "not a directory"),
        (&file, "/none/x", &named, "--parents"),
        (&file, "/none", &into, "--parents"),
        (&file, "/etc/new", &into, "not a directory"),
        (&inner, "/none/x", &contents, "--parents"),
        (&inner, "/etc/new", &contents, "not a directory"),
        (&tree[..tree.len() - 2000].to_vec(), "/cut", &named, "ends"),
    ] {
        let error = disks
            .land(bytes, path, landing.clone())
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{path}: {error}");
        assert!(
            disks.pack("/", CONTENTS).unwrap() == before,
            "{path}: nothing is changed"
        );
    }
}

#[test]
fn an_archive_that_plants_links_is_refused_at_rest_as_in_a_guest() {
    let disks = Disks::new();
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name);
    fs::create_dir_all(at("one")).unwrap();
    symlink("/etc", at("one/planted")).unwrap();
    fs::create_dir_all(at("two/planted")).unwrap();
    fs::write(at("two/planted/x"), "x").unwrap();
    let archive = Landing::new(Shipment::Archive);
    let (one, _) = pack(&at("one"), CONTENTS, Vec::new()).unwrap();
    disks.land(&one, "/tmp", archive.clone()).unwrap();
    let (two, _) = pack(&at("two"), CONTENTS, Vec::new()).unwrap();
    for path in ["/tmp", "/"] {
        let landed = disks.land(&two, path, archive.clone());
        assert_eq!(landed.is_err(), path == "/tmp", "{landed:?}");
    }
    // The image's own links are no way in either.
    fs::create_dir_all(at("three/bin")).unwrap();
    fs::write(at("three/bin/x"), "x").unwrap();
    let (three, _) = pack(&at("three"), CONTENTS, Vec::new()).unwrap();
    let error = disks.land(&three, "/", archive).unwrap_err().to_string();
    assert!(error.contains("links are not followed"), "{error}");
    assert!(!disks.guest().at("etc/x").exists());
}

/// A guest can fill every directory on a long way down.
#[test]
fn what_is_held_of_the_directories_on_the_way_is_bounded() {
    let disks = Disks::new();
    // Of the doc directory there are 300 names, and more above it.
    assert!(disks.pack_within("/usr/share/doc", 300).is_ok());
    assert!(disks.pack_within("/", 400).is_ok());
    let error = disks.pack_within("/", 301).unwrap_err().to_string();
    assert!(error.contains("301 entries together"), "{error}");
}
