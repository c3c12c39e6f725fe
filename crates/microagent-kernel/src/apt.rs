//! Finds and downloads kernel packages with the distribution's package manager, which holds the keys that say which
//! bytes are the distribution's. Nothing is installed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::command::run;
use crate::error::{IoContext, KernelError, Result};
use crate::files::read_bounded;
use crate::hash::sha256;

/// Time for a query of the local package lists.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for the download of one package.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(900);
/// Largest package that is downloaded.
const MAX_PACKAGE: u64 = 512 * 1024 * 1024;
/// What to do on hosts without apt.
const REMEDY: &str = "Kernel packages come through apt, which only Debian and its relatives have; \
    elsewhere install a kernel from a file or use this host's own.";

/// A package the package manager knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) sha256: String,
    /// Size of the package file in bytes.
    pub(crate) size: u64,
    depends: Vec<String>,
}

/// Meta-packages that depend on the current small kernel, for this architecture: Debian's, then Ubuntu's.
pub(crate) fn default_metapackages() -> Vec<String> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    vec![
        format!("linux-image-cloud-{architecture}"),
        "linux-image-virtual".to_owned(),
    ]
}

/// The packages that hold the kernel the first known of `names` stands for: the image, and on some distributions
/// a separate one with its modules.
pub(crate) fn resolve(names: &[String], directory: &Path) -> Result<Vec<Package>> {
    for name in names {
        check_name(name)?;
    }
    let Some(mut image) = names
        .iter()
        .find_map(|name| show(name, directory).transpose())
        .transpose()?
    else {
        return Err(KernelError::PackageUnknown {
            packages: names.to_vec(),
        });
    };
    // A meta-package has no kernel of its own, but depends on the one that has. Meta-packages of meta-packages exist.
    for _ in 0..3 {
        let Some(next) = image
            .depends
            .iter()
            .find(|name| name.starts_with("linux-image-"))
        else {
            break;
        };
        image = require(next, directory)?;
    }
    let modules = image
        .depends
        .iter()
        .filter(|name| name.starts_with("linux-modules-"));
    let modules = modules
        .map(|name| require(name, directory))
        .collect::<Result<Vec<_>>>()?;
    Ok(std::iter::once(image).chain(modules).collect())
}

/// Downloads a package into `directory` and returns its bytes, which are those the package lists promise.
pub(crate) fn download(package: &Package, directory: &Path) -> Result<Vec<u8>> {
    let invalid = |reason: String| KernelError::InvalidPackage {
        package: package.name.clone(),
        reason,
    };
    if package.size > MAX_PACKAGE {
        return Err(invalid(format!(
            "it has {} bytes; at most {MAX_PACKAGE} are downloaded",
            package.size
        )));
    }
    let target = directory.join(&package.name);
    fs::create_dir(&target).context("create", &target)?;
    let mut arguments = vec!["download", "--quiet"];
    if microagent_host::process::User::current().is_root() {
        // Root's apt would download as user _apt, who cannot enter our private directory. The digest below, not
        // the user, is what makes the package trustworthy.
        arguments.extend(["--option", "APT::Sandbox::User=root"]);
    }
    let wanted = format!("{}={}", package.name, package.version);
    arguments.push(&wanted);
    run("apt-get", &arguments, &target, DOWNLOAD_TIMEOUT, REMEDY)?;

    let mut entries = fs::read_dir(&target).context("list", &target)?;
    let entry = entries
        .next()
        .ok_or_else(|| invalid("apt-get download left no file".to_owned()))?;
    let path = entry.context("list", &target)?.path();
    let bytes = read_bounded(&path, package.size)?;
    let found = sha256(&bytes);
    if found != package.sha256 {
        return Err(KernelError::DigestMismatch {
            name: wanted,
            expected: package.sha256.clone(),
            found,
        });
    }
    fs::remove_dir_all(&target).context("remove", &target)?;
    Ok(bytes)
}

/// The package of exactly this name.
pub(crate) fn find(name: &str, directory: &Path) -> Result<Package> {
    require(name, directory)
}

fn require(name: &str, directory: &Path) -> Result<Package> {
    show(name, directory)?.ok_or_else(|| KernelError::PackageUnknown {
        packages: vec![name.to_owned()],
    })
}

/// What the package lists say of the version that would be installed; `None` if there is no such package.
fn show(name: &str, directory: &Path) -> Result<Option<Package>> {
    check_name(name)?;
    let arguments = ["show", "--no-all-versions", "--quiet=2", name];
    match run("apt-cache", &arguments, directory, QUERY_TIMEOUT, REMEDY) {
        // A purely virtual package is known but has no record.
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => parse(&text).map(Some).ok_or_else(|| KernelError::InvalidPackage {
            package: name.to_owned(),
            reason: "the package lists do not give its version, size and SHA-256; run `apt-get update`".to_owned(),
        }),
        // apt-cache has one exit code for every failure; with valid arguments and readable lists it means "unknown".
        Err(KernelError::ToolFailed { status, stderr, .. })
            if status.ends_with("100") && (stderr.is_empty() || stderr.contains("No packages found")) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads the first record of `apt-cache show`.
fn parse(text: &str) -> Option<Package> {
    let record = text.split("\n\n").next()?;
    let field = |name: &str| {
        record
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let sha256 = field("SHA256")?.to_ascii_lowercase();
    let version = field("Version")?.to_owned();
    let name = field("Package")?.to_owned();
    let depends = field("Depends")
        .unwrap_or_default()
        .split(',')
        // Of alternatives the first is the preferred.
        .filter_map(|dependency| {
            dependency
                .split('|')
                .next()?
                .split([' ', '(', ':'])
                .find(|word| !word.is_empty())
        })
        .map(str::to_owned)
        .collect();
    let sound = sha256.len() == 64
        && sha256.bytes().all(|byte| byte.is_ascii_hexdigit())
        && check_name(&name).is_ok()
        && version
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".+-:~".contains(&byte));
    sound.then_some(Package {
        name,
        version,
        sha256,
        size: field("Size")?.parse().ok()?,
        depends,
    })
}

/// Refuses what is no package name (Debian Policy 5.6.7), above all options.
fn check_name(name: &str) -> Result<()> {
    let sound = name.len() <= 128
        && name.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
        && name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte)
        });
    if sound {
        return Ok(());
    }
    let reason =
        "it is no package name: lower-case letters, digits and + - . are allowed".to_owned();
    Err(KernelError::InvalidPackage {
        package: name.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "Package: linux-image-6.8.0-31-generic\nVersion: 6.8.0-31.31\nDepends: kmod, linux-base (>= 4.5), \
        linux-modules-6.8.0-31-generic, initramfs-tools | linux-initramfs-tool\nSize: 14928068\n\
        SHA256: 00be21c0c17f08ddf26e82d3b53fe7a41efa4a288938da6bb69e89c4b25c281d\n\nPackage: other\n";

    #[test]
    fn a_record_is_read() {
        let package = parse(RECORD).unwrap();
        assert_eq!(
            (package.name.as_str(), package.size),
            ("linux-image-6.8.0-31-generic", 14_928_068)
        );
        assert_eq!(
            package.depends,
            [
                "kmod",
                "linux-base",
                "linux-modules-6.8.0-31-generic",
                "initramfs-tools"
            ]
        );
    }

    #[test]
    fn a_record_without_a_sound_digest_is_refused() {
        assert_eq!(parse(&RECORD.replace("SHA256", "SHA1")), None);
        assert_eq!(parse(&RECORD.replace("00be21", "00be2!")), None);
        assert_eq!(parse(&RECORD.replace("6.8.0-31.31", "6.8 -o evil")), None);
    }

    #[test]
    fn an_option_is_no_package_name() {
        for name in ["-o=Dir::Etc=/tmp", "", "Linux", "a b", "a=1", "../x"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn an_unknown_package_names_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let error = resolve(
            &["linux-image-there-is-no-such".to_owned()],
            directory.path(),
        )
        .unwrap_err();
        assert!(error.to_string().contains("apt-get update"), "{error}");
    }
}
