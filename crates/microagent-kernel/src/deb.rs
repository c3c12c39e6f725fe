//! Takes a kernel and its modules out of a Debian package, without installing it, without root and without running
//! any of its scripts.
//!
//! Format: deb(5), an `ar` archive whose member `data.tar*` has the files.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::compression::Compression;
use crate::elf::range;
use crate::error::{IoContext, KernelError, Result};
use crate::modules::module_file_stem;

/// Most bytes a package may unpack to; the largest distribution kernel packages are below 1 GB.
const MAX_UNPACKED: u64 = 4 * 1024 * 1024 * 1024;
/// Size of an `ar` member header.
const AR_HEADER: usize = 60;
/// Name the kernel image is unpacked to.
pub(crate) const KERNEL_FILE: &str = "vmlinuz";
/// Name the kernel's configuration is unpacked to.
pub(crate) const CONFIG_FILE: &str = "config";
/// Directory the modules and `modules.builtin` are unpacked to, flat: module names are unique within a kernel.
pub(crate) const MODULES_DIRECTORY: &str = "modules";

/// Unpacks the kernel image, modules and `modules.builtin` of `package` into `directory`; `name` is for messages.
pub(crate) fn unpack(name: &str, package: &[u8], directory: &Path) -> Result<()> {
    let invalid = |reason: String| KernelError::InvalidPackage {
        package: name.to_owned(),
        reason,
    };
    let (member, data) =
        data_member(package).ok_or_else(|| invalid("it is no Debian package".to_owned()))?;
    let tar: Box<dyn Read + '_> = match Compression::detect(data) {
        Some(compression) => compression
            .reader(data)
            .map_err(|e| invalid(format!("{member}: {e}")))?,
        None => Box::new(data),
    };
    let modules = directory.join(MODULES_DIRECTORY);
    if !modules.exists() {
        fs::create_dir(&modules).context("create", &modules)?;
    }
    let damaged = |e: io::Error| invalid(format!("{member} is damaged: {e}"));
    let mut archive = tar::Archive::new(tar.take(MAX_UNPACKED));
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let Some(wanted) = wanted(&entry.path_bytes()) else {
            continue;
        };
        let path = directory.join(&wanted);
        let mut file = File::create_new(&path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => invalid(format!("it has {wanted} twice")),
            _ => KernelError::Io {
                action: "create",
                path: path.clone(),
                source: e,
            },
        })?;
        io::copy(&mut entry, &mut file).map_err(damaged)?;
    }
    Ok(())
}

/// Where a package's file goes, relative to the directory to unpack to; `None` if it is not wanted. Only the last part
/// of the path is ever used, and only in forms that are plain names.
fn wanted(path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let path = path.trim_start_matches("./").trim_start_matches('/');
    if let Some(file) = path
        .strip_prefix("boot/")
        .filter(|file| !file.contains('/'))
    {
        let target = [("vmlinuz-", KERNEL_FILE), ("config-", CONFIG_FILE)];
        return target
            .iter()
            .find(|(prefix, _)| file.starts_with(prefix))
            .map(|(_, name)| (*name).to_owned());
    }
    let path = path
        .strip_prefix("usr/")
        .unwrap_or(path)
        .strip_prefix("lib/modules/")?;
    let (_release, path) = path.split_once('/')?;
    let file = path.rsplit('/').next()?;
    (path == "modules.builtin" || module_file_stem(file).is_some())
        .then(|| format!("{MODULES_DIRECTORY}/{file}"))
}

/// The name and content of the `ar` member that has the package's files.
fn data_member(package: &[u8]) -> Option<(&str, &[u8])> {
    let mut rest = package.strip_prefix(b"!<arch>\n")?;
    loop {
        let header = range(rest, 0, AR_HEADER)?;
        let name = std::str::from_utf8(range(header, 0, 16)?)
            .ok()?
            .trim_end()
            .trim_end_matches('/');
        let size: usize = std::str::from_utf8(range(header, 48, 10)?)
            .ok()?
            .trim_end()
            .parse()
            .ok()?;
        let content = range(rest, AR_HEADER, size)?;
        if name.starts_with("data.tar") {
            return Some((name, content));
        }
        // Members begin at even offsets.
        rest = rest.get(AR_HEADER.checked_add(size)?.checked_next_multiple_of(2)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernel_and_its_modules_are_wanted() {
        assert_eq!(
            wanted(b"./boot/vmlinuz-6.1.0-1-cloud-amd64").as_deref(),
            Some("vmlinuz")
        );
        assert_eq!(wanted(b"./boot/config-6.1").as_deref(), Some("config"));
        assert_eq!(
            wanted(b"./usr/lib/modules/6.12/kernel/fs/ext4/ext4.ko.xz").as_deref(),
            Some("modules/ext4.ko.xz")
        );
        assert_eq!(
            wanted(b"./lib/modules/6.1/modules.builtin").as_deref(),
            Some("modules/modules.builtin")
        );
        for unwanted in [
            &b"./boot/System.map-6.1"[..],
            b"./boot/vmlinuz-/../../etc/passwd",
            b"./lib/modules/6.1/kernel/..",
            b"./lib/modules/6.1/kernel/a b.ko",
            b"./etc/passwd",
            b"./lib/modules/overlay.ko",
        ] {
            assert_eq!(
                wanted(unwanted),
                None,
                "{}",
                String::from_utf8_lossy(unwanted)
            );
        }
    }

    #[test]
    fn what_is_no_package_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        for bytes in [
            &b""[..],
            b"!<arch>\n",
            b"!<arch>\ndebian-binary   0           0     0     100644  9999999999`\n",
        ] {
            let error = unpack("broken.deb", bytes, directory.path()).unwrap_err();
            assert!(error.to_string().contains("broken.deb"), "{error}");
        }
    }

    /// A package with a kernel, a module, and files that must stay where they are.
    fn package() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for name in [
            "boot/vmlinuz-6.1",
            "lib/modules/6.1/kernel/a-b.ko",
            "lib/modules/6.1/modules.builtin",
            "etc/passwd",
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_size(name.len() as u64);
            tar.append_data(&mut header, name, name.as_bytes()).unwrap();
        }
        let mut package = b"!<arch>\n".to_vec();
        for (name, content) in [
            ("debian-binary", b"2.0\n".to_vec()),
            (
                "data.tar.gz",
                crate::fixtures::gzip(&tar.into_inner().unwrap()),
            ),
        ] {
            package.extend(
                format!(
                    "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                    0,
                    0,
                    0,
                    100_644,
                    content.len()
                )
                .bytes(),
            );
            package.extend(&content);
            package.resize(package.len().next_multiple_of(2), b'\n');
        }
        package
    }

    #[test]
    fn the_kernel_and_its_modules_are_unpacked() {
        let directory = tempfile::tempdir().unwrap();
        unpack("linux", &package(), directory.path()).unwrap();
        for (file, content) in [
            ("vmlinuz", "boot/vmlinuz-6.1"),
            ("modules/a-b.ko", "lib/modules/6.1/kernel/a-b.ko"),
            ("modules/modules.builtin", "lib/modules/6.1/modules.builtin"),
        ] {
            assert_eq!(
                fs::read_to_string(directory.path().join(file)).unwrap(),
                content
            );
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_packages_never_panic(at in 0_usize..1024, flip in 1_u8.., length in 0_usize..1024) {
            let whole = package();
            let mut flipped = whole.clone();
            let index = at % flipped.len();
            flipped[index] ^= flip;
            for bytes in [&flipped[..], &whole[..length.min(whole.len())]] {
                let directory = tempfile::tempdir().unwrap();
                if let Err(error) = unpack("damaged.deb", bytes, directory.path()) {
                    proptest::prop_assert!(error.to_string().contains("damaged.deb"), "{}", error);
                }
            }
        }
    }
}
