//! Images that tests run: made here, of real programs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{cache_dir, require, sha256};

/// A root file system of one static busybox, as a tar archive.
#[must_use]
pub fn busybox_tar() -> PathBuf {
    require("busybox", "busybox-static");
    let tar = cache_dir().join("busybox.tar");
    if tar.exists() {
        return tar;
    }
    let dir = tempfile::tempdir_in(cache_dir()).expect("a directory for the busybox image");
    let root = dir.path().join("root");
    for name in ["bin", "etc", "tmp", "root", "home/agent", "var"] {
        std::fs::create_dir_all(root.join(name)).expect("directories of the busybox image");
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("/bin/busybox of busybox-static");
    let applets = run(Command::new("/bin/busybox").arg("--list"));
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))
            .expect("an applet's link");
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:Agent:/home/agent:/bin/sh\n",
    )
    .expect("passwd");
    std::fs::write(
        root.join("etc/group"),
        "root:x:0:\nagent:x:1000:\nextra:x:2000:agent\n",
    )
    .expect("group");
    pack(&root, &tar);
    tar
}

/// An image that has one static program, and no shell.
pub(crate) fn shell_less_tar() -> PathBuf {
    require("busybox", "busybox-static");
    let tar = cache_dir().join("shell-less.tar");
    if !tar.exists() {
        let dir = tempfile::tempdir_in(cache_dir()).expect("a directory for the image");
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("app")).expect("directories of the image");
        // Busybox acts by the name it is called by: this one only prints its arguments.
        std::fs::copy("/bin/busybox", root.join("app/echo"))
            .expect("/bin/busybox of busybox-static");
        std::fs::write(root.join("app/notes.txt"), "not a program\n").expect("a plain file");
        pack(&root, &tar);
    }
    tar
}

/// The Debian 12 root file system that the test runner made.
pub(crate) fn debian_tar() -> PathBuf {
    bootstrap("debian-12-minbase", &["--variant=minbase"])
}

/// What asks a kernel for much: a container engine, and besides.
const CONTAINERS: &str = "docker.io,iptables,nftables,iproute2,iputils-ping,cryptsetup-bin,erofs-utils,fuse2fs,\
                          e2fsprogs,busybox-static";

/// A Debian 12 with a container engine, and with what else asks a kernel for much.
#[must_use]
pub fn containers_tar() -> PathBuf {
    let options = ["--variant=minbase", "--include", CONTAINERS];
    bootstrap("debian-12-containers", &options)
}

/// The same of arm64's packages. This host runs none of their scripts: they are unpacked, and not set up.
#[must_use]
pub fn containers_arm64_tar() -> PathBuf {
    let base = "base-files,bsdutils,coreutils,dash,debianutils,diffutils,findutils,grep,gzip,hostname,libc-bin,\
                mount,sed,tar,util-linux";
    let include = format!("--include={CONTAINERS},{base}");
    let options = ["--variant=extract", "--architectures=arm64", &include];
    bootstrap("debian-12-containers-arm64", &options)
}

fn bootstrap(name: &str, options: &[&str]) -> PathBuf {
    let tar = cache_dir().join(format!("{name}.tar.gz"));
    if !tar.exists() {
        require("mmdebstrap", "mmdebstrap");
        let part = cache_dir().join(format!("{name}.part.tar.gz"));
        run(Command::new("mmdebstrap")
            .arg("--quiet")
            .args(options)
            .arg("bookworm")
            .arg(&part));
        std::fs::rename(part, &tar).expect("the finished archive");
    }
    tar
}

/// An OCI layout below `dir` with the busybox image under the given `config`
/// (the `config` object of an OCI image configuration). Gives its path.
#[must_use]
pub fn image_with_config(dir: &Path, config: &serde_json::Value) -> PathBuf {
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("the layout's directories");
    let blob = |bytes: &[u8]| {
        let digest = sha256(bytes);
        std::fs::write(blobs.join(&digest), bytes).expect("a blob");
        serde_json::json!({ "digest": format!("sha256:{digest}"), "size": bytes.len() })
    };
    let described = |mut descriptor: serde_json::Value, media_type: &str| {
        descriptor["mediaType"] = media_type.into();
        descriptor
    };
    let layer = std::fs::read(busybox_tar()).expect("the busybox archive");
    let layer = described(blob(&layer), "application/vnd.oci.image.layer.v1.tar");
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = described(
        blob(config.to_string().as_bytes()),
        "application/vnd.oci.image.config.v1+json",
    );
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": [layer],
    });
    let index = serde_json::json!({
        "schemaVersion": 2, "manifests": [described(blob(manifest.to_string().as_bytes()), manifest_type)],
    });
    std::fs::write(layout.join("index.json"), index.to_string()).expect("the index");
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .expect("the layout's marker");
    layout
}

fn pack(root: &Path, tar: &Path) {
    let part = tar.with_extension("part");
    run(Command::new("tar")
        .args(["--numeric-owner", "--owner=0", "--group=0", "-C"])
        .arg(root)
        .arg("-cf")
        .arg(&part)
        .arg("."));
    std::fs::rename(part, tar).expect("the finished archive");
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
