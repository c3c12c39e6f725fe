//! Workspaces of earlier versions, whose base disks have blocks of 4 KiB: in one file (format 1), or in several that a
//! list joins (format 2). No writer of ours makes such disks any more, so `mke2fs` does, and they are put where those
//! versions left theirs; what their manifests said else is what today's say.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use testkit::{Sandbox, sha256};

const CHUNK: usize = 4 << 20;
/// Where format 2's shared content begins and ends here.
const PIECE: std::ops::Range<usize> = 1 << 20..9 << 20;

/// A read-only file of a disk.
fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
}

/// The list of the sums of a disk's chunks, as it stands beside each.
fn sums(bytes: &[u8]) -> String {
    let mut text = format!("microagent-disk-sums 1 {CHUNK} {}\n", bytes.len());
    for chunk in bytes.chunks(CHUNK) {
        writeln!(text, "{}", sha256(chunk)).unwrap();
    }
    text
}

/// The image's files in an ext4 with blocks of 4 KiB.
fn disk() -> Vec<u8> {
    let work = tempfile::tempdir().unwrap();
    let (root, disk) = (work.path().join("root"), work.path().join("disk"));
    fs::create_dir(&root).unwrap();
    let tool = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    };
    tool(
        Command::new("tar")
            .arg("-xpf")
            .arg(testkit::busybox_tar())
            .arg("-C")
            .arg(&root),
    );
    tool(
        Command::new("/sbin/mke2fs")
            .args([
                "-q",
                "-t",
                "ext4",
                "-b",
                "4096",
                "-O",
                "^has_journal,^orphan_file",
                "-d",
            ])
            .args([&root, &disk])
            .arg("16M"),
    );
    fs::read(disk).unwrap()
}

/// Gives a workspace that was just made the base disk of an earlier version, and another agent than today's.
fn age(sandbox: &Sandbox, name: &str, format: u32, disk: &[u8]) {
    let manifest = sandbox
        .state()
        .join("workspaces")
        .join(name)
        .join("manifest.json");
    // A line with the digest of the rest, and the rest.
    let text = fs::read_to_string(&manifest).unwrap();
    let (head, body) = text.split_once('\n').unwrap();
    let sealed = sha256(body.as_bytes());
    assert!(head.contains(&sealed), "{text}");
    let mut text: Value = serde_json::from_str(body).unwrap();
    let parts = &mut text["parts"];
    let today = PathBuf::from(parts["base_disk"]["path"].as_str().unwrap());
    let folder = today.parent().unwrap();
    let image = today.file_name().unwrap().to_str().unwrap();
    let image = image.split('.').next().unwrap();
    let at = |what: &str| folder.join(format!("{image}.{format}.{what}"));
    let (path, digest, hashed) = if format == 1 {
        let sums = sums(disk);
        put(&at("ext4"), disk);
        fs::write(at("sums"), &sums).unwrap();
        (at("ext4"), sha256(sums.as_bytes()), "chunks")
    } else {
        let layer = format!("{}.{format}.piece", "1".repeat(64));
        let front = [&disk[..PIECE.start], &disk[PIECE.end..]].concat();
        put(&at("front"), &front);
        put(&folder.join(&layer), &disk[PIECE]);
        let front_name = format!("{image}.{format}.front");
        let list = format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
             createType=\"twoGbMaxExtentFlat\"\n\
             RW {} FLAT \"{front_name}\" 0\nRW {} FLAT \"{layer}\" 0\nRW {} FLAT \"{front_name}\" {}\n\
             # sums {} {front_name}\n# sums {} {layer}\n",
            PIECE.start / 512,
            PIECE.len() / 512,
            (disk.len() - PIECE.end) / 512,
            PIECE.start / 512,
            sha256(sums(&front).as_bytes()),
            sha256(sums(&disk[PIECE]).as_bytes()),
        );
        put(&at("vmdk"), list.as_bytes());
        (at("vmdk"), sha256(list.as_bytes()), "list")
    };
    parts["base_disk"] = json!({"path": path, "sha256": digest, "hashed": hashed});
    parts["guest_sha256"] = json!("0".repeat(64));
    parts["initramfs"]["path"] = json!(folder.join("an-initramfs-that-is-gone"));
    let body = text.to_string();
    let head = head.replace(&sealed, &sha256(body.as_bytes()));
    fs::write(&manifest, format!("{head}\n{body}")).unwrap();
}

/// The files of disks of this format.
fn files(sandbox: &Sandbox, format: u32) -> Vec<String> {
    fs::read_dir(sandbox.state().join("images/disks"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(&format!(".{format}.")))
        .collect()
}

#[test]
fn workspaces_of_earlier_versions_are_used_as_before() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let act = |words: &[&str]| sandbox.microagent([]).words(words).run();
    let busybox = fs::read("/bin/busybox").unwrap();
    let disk = disk();
    for format in [1, 2] {
        act(&["create", "old", Sandbox::BUSYBOX]).success();
        age(&sandbox, "old", format, &disk);
        let status = act(&["--json", "status", "old"]).success().parsed();
        assert_eq!(status["verification"]["ok"], true, "{status}");
        act(&["clone", "old", "copy"]).success();

        act(&["start", "old"]).success();
        let script = "echo made >/root/made; sync; ls /bin | wc -l";
        let listed = act(&["exec", "old", "--", "sh", "-c", script]).success();
        assert!(
            listed.out().trim().parse::<u32>().unwrap() > 100,
            "{listed}"
        );
        act(&["halt", "old"]).success();

        let work = tempfile::tempdir().unwrap();
        let to = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
        act(&["cp", "old:/root/made", &to("made")]).success();
        assert_eq!(fs::read(to("made")).unwrap(), b"made\n");
        act(&["cp", "old:/bin/busybox", &to("busybox")]).success();
        assert!(
            fs::read(to("busybox")).unwrap() == busybox,
            "not the same program"
        );
        act(&["commit", "old", "made:1"]).success();
        let made = act(&["--json", "images", "inspect", "made:1"])
            .success()
            .parsed();
        assert_eq!(made["layers"].as_array().unwrap().len(), 2, "{made}");
        act(&["images", "rm", "made:1"]).success();

        // Today's disk of the image is beside it; it and this one stay as long as they are needed.
        act(&["df"]).success();
        act(&["images", "prune", "--all", "--yes"]).success();
        assert!(files(&sandbox, format).len() >= 2, "format {format}");
        let status = act(&["--json", "status", "copy"]).success().parsed();
        assert_eq!(status["verification"]["ok"], true, "{status}");
        // It is held to what was recorded, as today's are.
        let changed = sandbox.state().join("images/disks").join(
            files(&sandbox, format)
                .into_iter()
                .find(|name| name.ends_with("ext4") || name.ends_with("piece"))
                .unwrap(),
        );
        testkit::registry::damage(&changed).unwrap();
        let refused = act(&["start", "copy"]).exited(1);
        assert!(
            refused.err().contains(changed.to_str().unwrap()),
            "{refused}"
        );

        act(&["delete", "old", "copy"]).success();
        act(&["images", "prune"]).success();
        assert_eq!(files(&sandbox, format), Vec::<String>::new());
    }
}
