//! `kernel build` with all that is its own: the package manager, the archive, the configuration, the compiler. Linux
//! itself would take a quarter of an hour: the source package here has a kernel of three lines, with the rules that
//! Linux's `Makefile` has. (`cargo xtask kernel build` and `test` build the real one.)

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use testkit::{Invocation, Sandbox, require, sha256};

use super::{count, sandbox};

/// Linux's rules: they say where and how it was built.
const MAKEFILE: &str = r##"
tinyconfig:
	echo "# made in $(CURDIR)" > .config
olddefconfig:
	$(TAKE) .config
vmlinux:
	$(CROSS_COMPILE)gcc -static -nostdlib -no-pie -Wl,--build-id=none -o vmlinux kernel.c \
		-D'BANNER="Linux version 6.12.0-tiny ($(KBUILD_BUILD_USER)@$(KBUILD_BUILD_HOST)) $(ARCH) $(filter -j%,$(MAKEFLAGS))\n"'
"##;

/// The banner and the entry point of a kernel.
const KERNEL: &str = r##"
const char banner[] = BANNER;
asm(".pushsection .note.Xen, \"a\", @note; .long 4, 4, 18; .asciz \"Xen\"; .long 0x1000000; .popsection");
void _start(void) { for (;;) { } }
"##;

/// A package manager's world of its own, with source packages in it.
struct Packages(tempfile::TempDir);

impl Packages {
    /// Packages of these names; each takes the configuration by a command of its own.
    fn new(each: &[(&str, &str)]) -> Self {
        for (program, package) in [
            ("apt-get", "apt"),
            ("dpkg-deb", "dpkg"),
            ("flex", "flex"),
            ("bison", "bison"),
            ("bc", "bc"),
            ("xz", "xz-utils"),
        ] {
            require(program, package);
        }
        let packages = Self(tempfile::tempdir().unwrap());
        let dir = packages.0.path();
        for part in ["etc", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        fs::write(dir.join("state/status"), "").unwrap();
        let show = dir.display();
        let source = format!("deb [trusted=yes] file:{show} ./\n");
        fs::write(dir.join("etc/sources.list"), source).unwrap();
        let settings = format!(
            "Dir::Etc \"{show}/etc\";\nDir::State \"{show}/state\";\nDir::State::status \"{show}/state/status\";\n\
             Dir::Cache \"{show}/cache\";\nAPT::Sandbox::User \"root\";\n"
        );
        fs::write(packages.settings(), settings).unwrap();
        let lists: String = each
            .iter()
            .map(|(name, take)| package(dir, name, take))
            .collect();
        fs::write(dir.join("Packages"), lists).unwrap();
        tool(
            Command::new("apt-get")
                .args(["update", "-q"])
                .env("APT_CONFIG", packages.settings()),
        );
        packages
    }

    fn settings(&self) -> PathBuf {
        self.0.path().join("apt.conf")
    }

    /// `microagent kernel build` from these packages.
    fn build(&self, sandbox: &Sandbox) -> Invocation {
        sandbox
            .microagent(["kernel", "build"])
            .env("APT_CONFIG", self.settings().to_str().unwrap())
    }
}

/// Makes one source package as Debian does, and gives its entry in the lists.
fn package(dir: &Path, name: &str, take: &str) -> String {
    let tree = dir.join("trees").join(name);
    let linux = tree.join(name);
    fs::create_dir_all(&linux).unwrap();
    fs::write(linux.join("Makefile"), format!("TAKE = {take}\n{MAKEFILE}")).unwrap();
    fs::write(linux.join("kernel.c"), KERNEL).unwrap();
    let deb = dir.join("debs").join(name);
    fs::create_dir_all(deb.join("DEBIAN")).unwrap();
    fs::create_dir_all(deb.join("usr/src")).unwrap();
    let archive = deb.join("usr/src").join(format!("{name}.tar.xz"));
    tool(
        Command::new("tar")
            .arg("-C")
            .arg(&tree)
            .arg("-cJf")
            .arg(archive)
            .arg(name),
    );
    let control = format!(
        "Package: {name}\nVersion: 6.12.0-1\nArchitecture: all\nMaintainer: Tests <tests@example.org>\n\
         Description: a kernel of three lines\n"
    );
    fs::write(deb.join("DEBIAN/control"), &control).unwrap();
    let file = dir.join(format!("{name}.deb"));
    tool(
        Command::new("dpkg-deb")
            .args(["--build", "--root-owner-group"])
            .arg(deb)
            .arg(&file),
    );
    let bytes = fs::read(file).unwrap();
    format!(
        "{control}Filename: ./{name}.deb\nSize: {}\nSHA256: {}\n\n",
        bytes.len(),
        sha256(&bytes)
    )
}

fn tool(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
}

#[test]
fn a_kernel_is_built_from_the_package_that_is_named() {
    let packages = Packages::new(&[("linux-source-tiny", "true")]);
    let (sandbox, place) = (sandbox(), tempfile::tempdir().unwrap());
    let build = || {
        packages
            .build(&sandbox)
            .args(["--package", "linux-source-tiny", "--directory"])
            .arg(place.path())
            .json()
    };
    let checked = build().args(["--check"]).run().success().parsed();
    assert_eq!(checked, json!({ "ok": true }));

    let output = tempfile::tempdir().unwrap();
    let built = build()
        .args(["--jobs", "3", "--arch", "x86_64", "--to"])
        .arg(output.path())
        .run()
        .success()
        .parsed();
    let kernel = fs::read(output.path().join("vmlinux")).unwrap();
    assert_eq!(built["sha256"], sha256(&kernel));
    assert_eq!(built["release"], "6.12.0-tiny");
    let banner: &[u8] = b"(microagent@microagent) x86_64 -j3\n";
    assert!(kernel.windows(banner.len()).any(|part| part == banner));
    let config = fs::read_to_string(output.path().join("vmlinux.config")).unwrap();
    let made_in = format!("# made in {}/", place.path().display());
    assert!(config.starts_with(&made_in), "{config}");
    assert!(config.contains("\nCONFIG_EROFS_FS=y\n"), "{config}");
    assert_eq!(count(&sandbox), 0, "nothing is installed");

    let record = build().args(["--default"]).run().success().parsed();
    // The same source and compiler gave the same bytes, in another directory and with other jobs.
    assert_eq!(record["release"], "6.12.0-tiny");
    let list = sandbox.microagent(["kernel", "list"]).run().success();
    assert!(
        list.out().contains("built from linux-source-tiny 6.12.0-1"),
        "{list}"
    );
    let list = sandbox.microagent(["kernel", "list"]).json().run().parsed();
    assert_eq!(list["default"], record["id"]);
    assert_eq!(
        fs::read_dir(place.path()).unwrap().count(),
        0,
        "the space is given back"
    );
}

#[test]
fn what_cannot_be_built_says_why_and_what_to_do() {
    // The second drops a line without a word, as Linux does; the third fails.
    let packages = Packages::new(&[
        ("linux-source-tiny", "true"),
        ("linux-source-old", "sed -i /^CONFIG_EROFS_FS=/d"),
        ("linux-source-broken", "cat /no/such/file"),
    ]);
    let (sandbox, place) = (sandbox(), tempfile::tempdir().unwrap());
    let build = |package: &str| {
        packages
            .build(&sandbox)
            .args(["--package", package, "--directory"])
            .arg(place.path())
    };
    let refused = |build: Invocation, words: &[&str]| {
        let refused = build.run();
        assert_ne!(refused.code(), 0, "{refused}");
        for word in words {
            assert!(refused.err().contains(word), "{word}: {refused}");
        }
    };
    refused(
        build("linux-source-none"),
        &["linux-source-none", "apt-get update"],
    );
    refused(
        build("linux-source-old").args(["--check"]),
        &["linux-source-old", "CONFIG_EROFS_FS=y", "linux-source-6.12"],
    );
    refused(
        build("linux-source-broken").args(["--check"]),
        &["make olddefconfig", "/no/such/file"],
    );
    refused(
        build("linux-source-tiny").args(["--arch", "aarch64"]),
        &["Aarch64", "write it to a directory"],
    );
    refused(
        build("linux-source-tiny").args(["--check", "--to", "x"]),
        &["--check", "--to"],
    );
    refused(
        packages
            .build(&sandbox)
            .args(["--directory", "/no/such/directory"]),
        &["/no/such/directory"],
    );
    // A host without the programs is told which, before anything is downloaded.
    let few = tempfile::tempdir().unwrap();
    for program in ["make", "gcc"] {
        symlink(
            Path::new("/usr/bin").join(program),
            few.path().join(program),
        )
        .unwrap();
    }
    refused(
        build("linux-source-tiny").env("PATH", few.path().to_str().unwrap()),
        &["Cannot run flex", "install gcc, make, flex, bison, bc"],
    );
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    assert_eq!(count(&sandbox), 0);
}
