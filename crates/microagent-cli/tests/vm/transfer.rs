//! What a guest did to its root leaves as an image: compared with what the guest saw, and booted again.

use std::{collections::BTreeSet, path::Path, process::Command};

use testkit::{Sandbox, registry::Registry};

/// What there is to know of every name, as the shell of a guest or of this host prints it. What a machine mounts, and
/// what is the machine's own, is no part of an image.
const LIST: &str = r#"
find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp \
  -o -path ./etc/hostname -o -path ./etc/hosts -o -path ./etc/resolv.conf -o -type s \) -prune -o -print |
while IFS= read -r name; do
  if [ -L "$name" ]; then stat -c '%n %f %u %g %Y' "$name"; readlink "$name"
  elif [ -d "$name" ]; then stat -c '%n %f %u %g %Y' "$name"
  elif [ -f "$name" ]; then stat -c '%n %f %u %g %s %Y %h' "$name"; [ "$name" = ./holes ] || md5sum "$name"
  else stat -c '%n %f %u %g %Y %t %T' "$name"; fi
done"#;

const AWKWARD: &str = r#"
cd /; set -e
rm bin/yes; mkdir bin/yes; echo in >bin/yes/in
rm -r root; echo file >root
rm -r opt 2>/dev/null || true; mkdir -p opt/deep; echo one >opt/one
ln opt/one opt/deep/two; ln opt/one three; ln -s ../nowhere opt/link
mknod opt/null c 1 3; mknod opt/disk b 7 300; mkfifo opt/pipe
chmod 4711 opt/one; chown 12:34 opt/one; touch -d '2001-02-03 04:05:06' opt/one
dd if=/dev/zero of=holes bs=1 count=0 seek=67108864 2>/dev/null; echo end >>holes
rm -r var; mkdir var; echo only >var/only
"#;

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

/// The same list of a directory of this host.
fn listed(root: &Path) -> BTreeSet<String> {
    let mut shell = Command::new("sh");
    shell.current_dir(root).args(["-c", LIST]);
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    lines(&String::from_utf8_lossy(&output.stdout))
}

#[test]
fn what_a_guest_did_leaves_as_an_image_and_boots_again() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let registry = Registry::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let create = ["create", "worker", Sandbox::BUSYBOX, "--profile", "tiny"];
    drop(sandbox.microagent(create).run().success());
    drop(sandbox.microagent(["start", "worker"]).run().success());
    let exec = |script: &str| {
        sandbox
            .microagent(["exec", "worker", "--", "sh", "-c", script])
            .run()
            .success()
    };
    drop(exec(AWKWARD));
    // A file with capabilities, from outside.
    let program = dir.path().join("capable");
    std::fs::write(&program, b"#!/bin/sh\n").unwrap();
    let mut setcap = Command::new("setcap");
    setcap.arg("cap_net_raw+ep").arg(&program);
    testkit::registry::run_tool("libcap2-bin", &mut setcap).unwrap();
    let from = program.to_str().unwrap();
    let copy = ["cp", "--archive", from, "worker:/opt/capable"];
    drop(sandbox.microagent(copy).run().success());
    let seen = lines(&exec(&format!("cd /; {LIST}")).out());
    assert!(seen.len() > 250, "{} lines", seen.len());

    let name = registry.reference("team/worker:1");
    let commit = ["commit", "worker", &name, "--push", "--message", "did it"];
    let refused = sandbox.microagent(commit).run().exited(1);
    assert!(
        refused.err().contains("microagent halt worker"),
        "{refused}"
    );
    drop(sandbox.microagent(["halt", "worker"]).run().success());
    let committed = sandbox.microagent(commit).json().run().success().parsed();
    assert_eq!(committed["pushed"]["digest"], committed["image"]["digest"]);
    assert_eq!(committed["workspace"], "worker");
    // What it is made of is kept for it, without a name.
    let base = ["images", "rm", Sandbox::BUSYBOX];
    drop(sandbox.microagent(base).run().success());
    let again = ["commit", "worker", "again:1", "--message", "did it"];
    let again = sandbox.microagent(again).json().run().success().parsed();
    assert_eq!(again["image"]["digest"], committed["image"]["digest"]);

    // By way of the registry and other tools it is what the guest saw.
    let layout = dir.path().join("layout");
    let mut skopeo = testkit::registry::skopeo();
    skopeo
        .args(["copy", "--src-tls-verify=false"])
        .arg(format!("docker://{name}"))
        .arg(format!("oci:{}:x", layout.display()));
    testkit::registry::run_tool("skopeo", &mut skopeo).unwrap();
    let bundle = dir.path().join("bundle");
    let mut umoci = Command::new("umoci");
    umoci
        .args(["unpack", "--image"])
        .arg(format!("{}:x", layout.display()))
        .arg(&bundle);
    testkit::registry::run_tool("umoci", &mut umoci).unwrap();
    let root = bundle.join("rootfs");
    let unpacked = listed(&root);
    let differences: Vec<_> = seen.symmetric_difference(&unpacked).collect();
    assert!(differences.is_empty(), "{differences:#?}");
    let mut getcap = Command::new("getcap");
    getcap.arg(root.join("opt/capable"));
    let said = testkit::registry::run_tool("libcap2-bin", &mut getcap).unwrap();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("cap_net_raw"), "{said}");

    // And a machine that boots it sees the same, but for where it was mounted on.
    let script = format!("cd /; {LIST}");
    let booted = sandbox
        .run(["--pull", "never", &name, "sh", "-c", &script])
        .run()
        .success();
    let of_directories = ["./etc ", ". "];
    let is_own = |line: &&String| !of_directories.iter().any(|name| line.starts_with(name));
    let booted = lines(&booted.out());
    let differences: Vec<_> = seen.symmetric_difference(&booted).filter(is_own).collect();
    assert!(differences.is_empty(), "{differences:#?}");

    // Frozen as evidence, it can still become an image: with what its guest had written to the disk.
    drop(sandbox.microagent(["start", "worker"]).run().success());
    drop(exec("echo evidence >/opt/evidence; sync"));
    drop(sandbox.microagent(["quarantine", "worker"]).run().success());
    let evidence = ["commit", "worker", "evidence:1"];
    drop(sandbox.microagent(evidence).run().success());
    drop(sandbox.microagent(["kill", "worker"]).run().success());
    let tar = dir.path().join("evidence.tar");
    let to = tar.to_str().unwrap();
    let export = [
        "images",
        "export",
        "evidence:1",
        "-o",
        to,
        "--format",
        "rootfs-tar",
    ];
    drop(sandbox.microagent(export).run().success());
    let mut read = Command::new("tar");
    read.args(["-xOf", to, "opt/evidence"]);
    assert_eq!(
        testkit::registry::run_tool("tar", &mut read).unwrap(),
        b"evidence\n"
    );
    drop(sandbox.microagent(["delete", "worker"]).run().success());
    sandbox.leftovers().none(&[]);
}

#[test]
fn files_of_images_by_the_command_line() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let saved = file("both.tar");
    let save = [
        "images",
        "save",
        Sandbox::BUSYBOX,
        Sandbox::SHELL_LESS,
        "-o",
        &saved,
    ];
    let report = sandbox.microagent(save).json().run().success().parsed();
    assert_eq!(report["format"], "docker-archive");
    let bytes = std::fs::read(&saved).unwrap();
    let sha256 = format!("sha256:{}", testkit::sha256(&bytes));
    assert_eq!(report["sha256"], sha256.as_str());
    // Through a pipe it is the same.
    let piped = sandbox
        .microagent(["images", "save", Sandbox::BUSYBOX, Sandbox::SHELL_LESS])
        .run()
        .success();
    assert_eq!(format!("sha256:{}", piped.out_sha256()), sha256);

    let other = Sandbox::empty(env!("CARGO_BIN_EXE_microagent"));
    let loaded = other
        .microagent(["images", "load"])
        .stdin(bytes)
        .json()
        .run()
        .success()
        .parsed();
    assert_eq!(loaded["images"].as_array().unwrap().len(), 2, "{loaded}");
    let digest = report["images"][0]["digest"].as_str().unwrap();
    assert_eq!(loaded["images"][0]["digest"], digest);

    // A disk of one's own: only by digest, unless that is allowed.
    let disk = file("root.ext4");
    let build = ["rootfs", "build", Sandbox::BUSYBOX, "-o", &disk];
    let refused = sandbox.microagent(build).run().exited(1);
    assert!(
        refused.err().contains(&format!("busybox@{digest}")),
        "{refused}"
    );
    assert!(!Path::new(&disk).exists());
    let pinned = format!("busybox@{digest}");
    let built = sandbox
        .microagent(["rootfs", "build", &pinned, "-o", &disk])
        .json()
        .run()
        .success()
        .parsed();
    assert_eq!(built["base_source"], "store");
    assert_eq!(built["digest"], digest);
    let bytes = std::fs::read(&disk).unwrap();
    assert_eq!(
        built["sha256"],
        format!("sha256:{}", testkit::sha256(&bytes)).as_str()
    );
    let sized = file("sized.ext4");
    let build = [
        "rootfs",
        "build",
        "--allow-mutable",
        "--size",
        "64M",
        Sandbox::BUSYBOX,
        "-o",
        &sized,
    ];
    drop(sandbox.microagent(build).run().success());
    assert_eq!(std::fs::metadata(&sized).unwrap().len(), 64 << 20);
    for disk in [&disk, &sized] {
        let mut check = Command::new("/sbin/e2fsck");
        check.args(["-fn", disk]);
        testkit::registry::run_tool("e2fsprogs", &mut check).unwrap();
    }
    let build = [
        "rootfs",
        "build",
        "--allow-mutable",
        "--size",
        "1M",
        Sandbox::BUSYBOX,
        "-o",
        &sized,
    ];
    let refused = sandbox.microagent(build).run().exited(1);
    assert!(refused.err().contains("is too small"), "{refused}");

    let refused = sandbox
        .microagent(["images", "export", "nothing:1", "-o", &disk])
        .run()
        .exited(1);
    assert!(refused.err().contains("No image matches"), "{refused}");
    let refused = sandbox
        .microagent(["images", "push", Sandbox::BUSYBOX, "127.0.0.1:1/x:1"])
        .run()
        .exited(1);
    assert!(refused.err().contains("127.0.0.1:1"), "{refused}");
}
