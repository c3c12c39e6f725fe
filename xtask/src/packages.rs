//! Installing what a task needs, by package name, and saying so.

use std::{
    io::{IsTerminal as _, Write as _},
    process::Command,
};

use anyhow::bail;

use crate::process;

/// A program that a task needs and the Debian package it comes in.
pub(crate) struct Need {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
}

const fn need(program: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need {
        program,
        package,
        purpose,
    }
}

/// What building and running a microVM takes.
pub(crate) const RUN: &[Need] = &[
    need("cc", "gcc", "links Rust programs"),
    need("qemu-system-x86_64", "qemu-system-x86", "the VMM"),
    need("passt", "passt", "user networks"),
    need("mmdebstrap", "mmdebstrap", "makes the Debian image"),
];

/// What the tests take besides.
pub(crate) const TEST: &[Need] = &[
    need(
        "docker-registry",
        "docker-registry",
        "a real registry to pull from",
    ),
    need("skopeo", "skopeo", "pushes images to it"),
    need("umoci", "umoci", "unpacks images, to compare with"),
    need("htpasswd", "apache2-utils", "the registry's users"),
    need("e2fsck", "e2fsprogs", "checks the disks we write"),
    need("b3sum", "b3sum", "hashes the files of disks by hand"),
    need("setcap", "libcap2-bin", "file capabilities in test images"),
    need("busybox", "busybox-static", "a tiny test image"),
    need("zstd", "zstd", "zstd layers in test images"),
    need(
        "faketime",
        "faketime",
        "a clock that jumps, a host whose clock is wrong",
    ),
    need("openssl", "openssl", "certificates of test registries"),
    need(
        "nginx",
        "nginx-light",
        "redirects, ranges, limits and failures in front of a test registry",
    ),
    need(
        "tinyproxy",
        "tinyproxy",
        "a proxy between us and a test registry",
    ),
    need(
        "python3",
        "python3",
        "a client of the supervisor protocol in another language",
    ),
    need("zsh", "zsh", "a shell to complete in"),
    need("fish", "fish", "a shell to complete in"),
    need("cpio", "cpio", "reads the initramfs back"),
    need("c++", "g++", "builds the fuzzer"),
    need(
        "mkfs.xfs",
        "xfsprogs",
        "a file system whose files share blocks",
    ),
];

/// What building a kernel takes besides.
pub(crate) const KERNEL: &[Need] = &[
    need("make", "make", "builds Linux"),
    need("flex", "flex", "builds Linux's configuration"),
    need("bison", "bison", "builds Linux's configuration"),
    need("bc", "bc", "computes Linux's constants"),
    need("xz", "xz-utils", "unpacks Linux's source"),
    need("dpkg-deb", "dpkg", "unpacks the source's package"),
    need(
        "/usr/include/libelf.h",
        "libelf-dev",
        "checks Linux's object files",
    ),
];

/// What building a kernel for arm64 on another architecture takes besides.
pub(crate) const KERNEL_AARCH64: &[Need] = &[
    need(
        "aarch64-linux-gnu-gcc",
        "gcc-aarch64-linux-gnu",
        "compiles Linux for arm64",
    ),
    need(
        "/usr/aarch64-linux-gnu/lib/libc.a",
        "libc6-dev-arm64-cross",
        "makes a program to try it with",
    ),
    need("qemu-system-aarch64", "qemu-system-arm", "emulates arm64"),
];

/// What runs all of it for arm64 on another architecture, besides.
pub(crate) const ARM64: &[Need] = &[need(
    "qemu-aarch64-static",
    "qemu-user-static",
    "translates arm64 programs",
)];

/// What a pull is measured against, besides.
pub(crate) const BENCH: &[Need] = &[
    need("curl", "curl", "downloads layers, to compare with"),
    need("pigz", "pigz", "decompresses them, to compare with"),
];

/// What makes the images that `corpus` compares, besides.
pub(crate) const CORPUS: &[Need] = &[
    need("debootstrap", "debootstrap", "makes images"),
    need("cdebootstrap", "cdebootstrap", "makes images"),
    need("multistrap", "multistrap", "makes images"),
    need("buildah", "buildah", "makes images of layers"),
    need("npm", "npm", "makes an image of an application"),
];

/// What checks the types for other systems: a toolchain with its library's source.
pub(crate) const TARGETS: &[Need] = &[
    need("/usr/bin/rustc", "rustc-web", "a compiler of a known place"),
    need("/usr/bin/cargo", "cargo-web", "its cargo"),
    need(
        "/usr/lib/rustlib/src/rust/library/std/Cargo.toml",
        "rust-web-src",
        "its library, to check for systems it was not built for",
    ),
];

/// Installs the packages of `needs` whose programs are missing: asks on a
/// terminal unless `yes`.
pub(crate) fn install(needs: &[&[Need]], yes: bool) -> anyhow::Result<()> {
    let missing: Vec<&Need> = needs
        .iter()
        .copied()
        .flatten()
        .filter(|need| process::find(need.program).is_none())
        .collect();
    if missing.is_empty() {
        println!("packages: everything needed is installed");
        return Ok(());
    }
    println!("packages to install:");
    for need in &missing {
        println!("  {:<18} {} ({})", need.package, need.purpose, need.program);
    }
    if process::find("apt-get").is_none() {
        bail!(
            "this machine has no apt-get; install the programs in brackets by hand and run this again"
        );
    }
    if !yes && std::io::stdin().is_terminal() && !confirmed()? {
        bail!("nothing was installed; install the packages above and run this again");
    }
    apt(&["update", "-q"])?;
    let mut arguments = vec!["install", "-q", "-y", "--no-install-recommends"];
    arguments.extend(missing.iter().map(|need| need.package));
    apt(&arguments)?;
    if let Some(need) = missing
        .iter()
        .find(|need| process::find(need.program).is_none())
    {
        bail!(
            "{} was installed but {} is still not found",
            need.package,
            need.program
        );
    }
    Ok(())
}

fn confirmed() -> anyhow::Result<bool> {
    print!("install them now with apt-get? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    let is_root =
        String::from_utf8(process::output(Command::new("id").arg("-u"))?.stdout)?.trim() == "0";
    let mut command = if is_root {
        Command::new("apt-get")
    } else if process::find("sudo").is_some() {
        let mut sudo = Command::new("sudo");
        sudo.args(["--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
        sudo
    } else {
        bail!(
            "installing packages takes root: run this as root, or install sudo, or install the packages above by hand"
        );
    };
    process::run(
        command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}
