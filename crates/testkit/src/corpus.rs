//! Images as many tools make them, out of the distribution's packages: what layers look like in the wild.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::registry::digest_of;

/// How one image is made.
#[derive(Debug)]
pub struct Recipe {
    /// What it is called.
    pub name: &'static str,
    /// Seconds at most, and no network: fit for every run of the tests.
    pub is_quick: bool,
    /// The tool that makes the image or its layers.
    pub by: &'static str,
    /// What is in it.
    pub from: &'static str,
    /// The programs it takes, and the packages they are in.
    needs: &'static [(&'static str, &'static str)],
    /// Run by `sh` in an empty directory; leaves what `form` says there.
    script: &'static str,
    form: Form,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    /// `rootfs.tar`.
    Rootfs,
    /// `layout`, an OCI layout with the one image `corpus`.
    Layout,
    /// `layout`, and the same image in another form, as `other.tar` or the layout `other`.
    Other,
}

/// An image that was made.
#[derive(Debug)]
pub struct Made {
    /// What is imported: a tar or a layout.
    pub image: PathBuf,
    /// The same as an OCI layout with the image `corpus`; none for the tar of a root file system.
    pub layout: Option<PathBuf>,
    /// How long it took; nothing if it was there from an earlier run.
    pub took: Option<Duration>,
}

/// Puts the files of installed packages into `$1.tar`, as the packages' own lists name them.
const INSTALLED: &str = r#"
installed() {
    out=$1; shift
    dpkg-query -L "$@" | sort -u | grep -Ev '^/(dev|proc|run|sys|tmp)(/|$)' | while read -r name; do
        if [ -e "$name" ] || [ -L "$name" ]; then printf '.%s\n' "$name"; fi
    done > "$out.list"
    tar -C / --no-recursion --numeric-owner --xattrs --xattrs-include='*' -cf "$out.tar" -T "$out.list"
}
image() {
    umoci init --layout layout && umoci new --image layout:corpus
    for layer in "$@"; do umoci raw add-layer --image layout:corpus "$layer"; done
}
"#;

/// All of them, the quick ones first.
pub const RECIPES: &[Recipe] = &[
    Recipe {
        name: "static-binary",
        is_quick: true,
        by: "GNU tar",
        from: "a program",
        needs: &[("busybox", "busybox-static")],
        script: "tar -C /bin -cf rootfs.tar busybox",
        form: Form::Rootfs,
    },
    Recipe {
        name: "busybox-hard-links",
        is_quick: true,
        by: "busybox's tar",
        from: "a program",
        needs: &[("busybox", "busybox-static")],
        script: r#"
            mkdir -p root/bin root/etc root/tmp && chmod 1777 root/tmp
            cp /bin/busybox root/bin/busybox
            for applet in $(busybox --list); do ln -f root/bin/busybox "root/bin/$applet" 2>/dev/null || true; done
            echo 'root:x:0:0::/:/bin/sh' > root/etc/passwd
            busybox tar -C root -cf rootfs.tar ."#,
        form: Form::Rootfs,
    },
    Recipe {
        name: "python-venv",
        is_quick: true,
        by: "Python's tarfile",
        from: "an application",
        needs: &[("python3", "python3")],
        script: r"
            mkdir root && python3 -m venv --without-pip --copies root/app
            (cd root && python3 -m tarfile -c ../rootfs.tar app)",
        form: Form::Rootfs,
    },
    Recipe {
        name: "dpkg-layers",
        is_quick: true,
        by: "umoci",
        from: "packages",
        needs: &[("umoci", "umoci")],
        script: r"
            for package in base-files tzdata libc6 perl-base coreutils util-linux iproute2 libcap2-bin e2fsprogs dpkg; do
                if dpkg-query -L $package >/dev/null 2>&1; then installed $package $package; fi
            done
            image *.tar",
        form: Form::Layout,
    },
    Recipe {
        name: "forty-layers",
        is_quick: true,
        by: "umoci",
        from: "made-up files",
        needs: &[("umoci", "umoci")],
        script: r#"
            mkdir -p root/etc
            for layer in $(seq 10 49); do
                echo "$layer" > root/etc/version; echo "$layer" > root/etc/only-$layer
                touch root/etc/.wh.only-$((layer - 7))
                tar -C root -cf "$layer.tar" etc && rm -r root/etc && mkdir root/etc
            done
            image *.tar"#,
        form: Form::Layout,
    },
    Recipe {
        name: "tar-formats",
        is_quick: true,
        by: "umoci",
        from: "made-up files",
        needs: &[("umoci", "umoci"), ("setcap", "libcap2-bin")],
        script: r#"
            mkdir -p root/d/e && truncate -s 5M root/sparse
            printf x | dd of=root/sparse bs=1 seek=3000000 conv=notrunc status=none
            cp /bin/true root/d/capable && setcap cap_net_raw+ep root/d/capable
            ln root/d/capable root/d/e/linked && ln -s ../d root/d/e/back && mkfifo root/d/fifo
            name=$(printf 'n%.0s' $(seq 90)) && mkdir -p "root/$name" && echo long > "root/$name/$name"
            for format in ustar gnu oldgnu; do tar -C root --format=$format -cf $format.tar .; done
            tar -C root --format=posix -Scf posix.tar .
            tar -C root --format=v7 --exclude=fifo -cf v7.tar d
            tar -C root --format=posix --xattrs --xattrs-include='*' -Scf xattrs.tar .
            image ustar.tar gnu.tar v7.tar posix.tar oldgnu.tar xattrs.tar"#,
        form: Form::Layout,
    },
    Recipe {
        name: "umoci-repack",
        is_quick: true,
        by: "umoci repack",
        from: "packages",
        needs: &[("umoci", "umoci")],
        script: r"
            installed base base-files tzdata && image base.tar
            umoci unpack --image layout:corpus bundle && cd bundle/rootfs
            rm -r usr/share/zoneinfo/A* && rm usr/share/zoneinfo/UTC && mkdir usr/share/zoneinfo/UTC
            chmod 700 etc && chown 1000:1000 usr && echo new > etc/issue && ln etc/issue etc/issue.too
            cd ../.. && umoci repack --image layout:corpus --refresh-bundle bundle
            rm -r bundle/rootfs/usr/share/zoneinfo && touch bundle/rootfs/usr/share/zoneinfo
            umoci repack --image layout:corpus bundle && rm -r bundle",
        form: Form::Layout,
    },
    Recipe {
        name: "docker-save",
        is_quick: true,
        by: "skopeo",
        from: "packages",
        needs: &[("umoci", "umoci"), ("skopeo", "skopeo")],
        script: r"
            installed one base-files && installed two libc6 libcap2-bin && image one.tar two.tar one.tar
            skopeo --insecure-policy copy -q oci:layout:corpus docker-archive:other.tar:corpus:1",
        form: Form::Other,
    },
    Recipe {
        name: "skopeo-zstd",
        is_quick: true,
        by: "skopeo",
        from: "packages",
        needs: &[("umoci", "umoci"), ("skopeo", "skopeo")],
        script: r"
            installed one base-files && installed two coreutils && image one.tar two.tar
            skopeo --insecure-policy copy -q --dest-compress-format zstd oci:layout:corpus oci:other:corpus",
        form: Form::Other,
    },
    Recipe {
        name: "mmdebstrap-minbase",
        is_quick: false,
        by: "mmdebstrap",
        from: "packages",
        needs: &[("mmdebstrap", "mmdebstrap")],
        script: "mmdebstrap --quiet --variant=minbase bookworm rootfs.tar",
        form: Form::Rootfs,
    },
    Recipe {
        name: "mmdebstrap-essential",
        is_quick: false,
        by: "mmdebstrap",
        from: "packages",
        needs: &[("mmdebstrap", "mmdebstrap")],
        script: "mmdebstrap --quiet --variant=essential --include=iputils-ping bookworm rootfs.tar",
        form: Form::Rootfs,
    },
    Recipe {
        name: "mmdebstrap-extract",
        is_quick: false,
        by: "mmdebstrap",
        from: "packages",
        needs: &[("mmdebstrap", "mmdebstrap")],
        script: "mmdebstrap --quiet --variant=extract --include=perl-base,coreutils,bash,iputils-ping,sudo bookworm rootfs.tar",
        form: Form::Rootfs,
    },
    Recipe {
        name: "mmdebstrap-trixie",
        is_quick: false,
        by: "mmdebstrap",
        from: "packages",
        needs: &[("mmdebstrap", "mmdebstrap")],
        script: "mmdebstrap --quiet --variant=apt trixie rootfs.tar",
        form: Form::Rootfs,
    },
    Recipe {
        name: "debootstrap-minbase",
        is_quick: false,
        by: "debootstrap",
        from: "packages",
        needs: &[("debootstrap", "debootstrap")],
        script: r"
            debootstrap --variant=minbase bookworm root
            tar -C root --numeric-owner --xattrs --xattrs-include='*' -cf rootfs.tar . && rm -r root",
        form: Form::Rootfs,
    },
    Recipe {
        name: "debootstrap-foreign",
        is_quick: false,
        by: "debootstrap",
        from: "packages",
        needs: &[("debootstrap", "debootstrap")],
        script: r"
            debootstrap --foreign --variant=minbase bookworm root
            tar -C root --numeric-owner -cf rootfs.tar . && rm -r root",
        form: Form::Rootfs,
    },
    Recipe {
        name: "cdebootstrap-minimal",
        is_quick: false,
        by: "cdebootstrap",
        from: "packages",
        needs: &[("cdebootstrap", "cdebootstrap")],
        script: r"
            cdebootstrap -f minimal bookworm root
            tar -C root --numeric-owner --format=gnu -cf rootfs.tar . && rm -r root",
        form: Form::Rootfs,
    },
    Recipe {
        name: "multistrap",
        is_quick: false,
        by: "multistrap",
        from: "packages",
        needs: &[("multistrap", "multistrap")],
        script: r"
            cat > multistrap.conf <<END
[General]
directory=$PWD/root
unpack=true
cleanup=true
bootstrap=Main
aptsources=Main
[Main]
packages=base-files base-passwd busybox-static libc6 tzdata dash iputils-ping
source=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Component: main' | head -n 1)
keyring=debian-archive-keyring
suite=bookworm
components=main
END
            multistrap -f multistrap.conf
            tar -C root --numeric-owner -cf rootfs.tar . && rm -r root",
        form: Form::Rootfs,
    },
    Recipe {
        name: "buildah",
        is_quick: false,
        by: "buildah",
        from: "packages",
        needs: &[("buildah", "buildah"), ("skopeo", "skopeo")],
        script: r#"
            buildah() { command buildah --storage-driver vfs --root "$PWD/storage" --runroot "$PWD/run" "$@"; }
            commit() { buildah commit --signature-policy policy.json -q "$1" "$2" >/dev/null; }
            printf '{"default":[{"type":"insecureAcceptAnything"}]}' > policy.json
            installed base base-files tzdata
            one=$(buildah from scratch) && at=$(buildah mount "$one")
            tar -C "$at" --numeric-owner -xpf base.tar && commit "$one" localhost/one
            two=$(buildah from --pull-never --signature-policy policy.json localhost/one) && at=$(buildah mount "$two")
            rm -r "$at/usr/share/zoneinfo/Europe" && rm "$at/etc/issue" && mkdir "$at/etc/issue"
            ln "$at/etc/debian_version" "$at/etc/issue/linked" && commit "$two" localhost/two
            three=$(buildah from --pull-never --signature-policy policy.json localhost/two) && at=$(buildah mount "$three")
            mkdir "$at/usr/share/zoneinfo/Europe" && echo back > "$at/usr/share/zoneinfo/Europe/Berlin"
            commit "$three" oci:layout:corpus
            buildah rm -a >/dev/null; rm -r storage run"#,
        form: Form::Layout,
    },
    Recipe {
        name: "npm-application",
        is_quick: false,
        by: "npm",
        from: "an application",
        needs: &[("npm", "npm")],
        script: r"
            mkdir root && npm install --silent --no-audit --no-fund --prefix root/app express@4
            tar -C root --owner=1000 --group=1000 -cf rootfs.tar app",
        form: Form::Rootfs,
    },
];

impl Recipe {
    /// Makes the image below `cache`, unless it is there.
    ///
    /// # Errors
    /// When a program is missing (its package is named) or fails.
    pub fn make(&self, cache: &Path) -> Result<Made> {
        // A recipe that changed is another recipe.
        let digest = digest_of(format!("{INSTALLED}{}", self.script).as_bytes());
        let hex = digest.trim_start_matches("sha256:");
        let directory = cache
            .join("corpus")
            .join(format!("{}-{}", self.name, &hex[..12]));
        let mut took = None;
        if !directory.exists() {
            let begun = Instant::now();
            self.run(&directory)?;
            took = Some(begun.elapsed());
        }
        let at = |name: &str| directory.join(name);
        let (image, layout) = match self.form {
            Form::Rootfs => (at("rootfs.tar"), None),
            Form::Layout => (at("layout"), Some(at("layout"))),
            Form::Other if at("other.tar").exists() => (at("other.tar"), Some(at("layout"))),
            Form::Other => (at("other"), Some(at("layout"))),
        };
        if !image.exists() {
            bail!("the recipe {} did not leave {}", self.name, image.display());
        }
        Ok(Made {
            image,
            layout,
            took,
        })
    }

    fn run(&self, directory: &Path) -> Result<()> {
        for (program, package) in self.needs {
            let found = Command::new("sh")
                .args(["-c", "command -v \"$0\"", program])
                .output()?
                .status
                .success();
            if !found {
                bail!(
                    "{} takes {program}; install the package {package}",
                    self.name
                );
            }
        }
        let parent = directory.parent().context("a cache has a directory")?;
        fs::create_dir_all(parent)?;
        let work = tempfile::tempdir_in(parent)?;
        let output = Command::new("sh")
            .args(["-euc", &format!("{INSTALLED}{}", self.script)])
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .current_dir(work.path())
            .output()
            .context("cannot run sh")?;
        if !output.status.success() {
            bail!(
                "the recipe {} failed ({}): {}{}",
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        fs::rename(work.keep(), directory)?;
        Ok(())
    }
}
