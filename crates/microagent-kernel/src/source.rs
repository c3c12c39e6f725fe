//! Where kernels come from.

use std::fs;
use std::path::{Path, PathBuf};

use microagent_host::process::linux_release;
use serde::{Deserialize, Serialize};

use crate::build::{self, BuildOptions};
use crate::error::{IoContext, KernelError, Result};
use crate::files::read_bounded;
use crate::hash::sha256;
use crate::image::{self, KernelImage};
use crate::modules::{Drivers, ModuleTree, drivers_from_config};
use crate::record::Architecture;
use crate::repository::{self, RepositorySource};
use crate::{apt, deb};

/// Largest kernel file that is read.
const MAX_KERNEL_FILE: u64 = 512 * 1024 * 1024;
/// Largest configuration file that is read; real ones are below 300 KB.
const MAX_CONFIG_FILE: u64 = 4 * 1024 * 1024;

/// A place to take a kernel from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelSource {
    /// The distribution's kernel package, downloaded by its package manager and unpacked, not installed.
    DistributionPackage {
        /// Package, or meta-package that depends on it; by default the distribution's kernel for virtual machines.
        package: Option<String>,
    },
    /// The kernel this host runs, from `/boot` and `/lib/modules`.
    Host,
    /// A file.
    File {
        /// A bzImage, an ELF `vmlinux` with a PVH entry, or an arm64 `Image`.
        kernel: PathBuf,
        /// Directory of its modules, with `modules.builtin`, as `/lib/modules/<release>`. Without it the kernel
        /// must have every driver built in.
        modules: Option<PathBuf>,
        /// SHA-256 the file must have, in hexadecimal.
        sha256: Option<String>,
    },
    /// Linux from the distribution's source package, configured for microVMs and compiled here.
    Build(BuildOptions),
    /// A channel of a signed repository.
    Repository(RepositorySource),
}

/// Where an installed kernel came from, with what identifies it there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Provenance {
    /// Packages of the distribution, checked against the package manager's signed lists.
    DistributionPackage {
        /// The image's package, then that of the modules if it is separate.
        packages: Vec<PackageProvenance>,
    },
    /// The host's own kernel.
    Host {
        /// Image file.
        kernel: PathBuf,
        /// SHA-256 of the image file.
        sha256: String,
    },
    /// A file.
    File {
        /// Image file.
        kernel: PathBuf,
        /// SHA-256 of the image file.
        sha256: String,
        /// Module directory.
        modules: Option<PathBuf>,
        /// Whether the digest was demanded by the caller; otherwise it is only what was found.
        verified: bool,
    },
    /// Compiled on this host.
    Build {
        /// The source package, checked against the package manager's signed lists.
        source: PackageProvenance,
        /// SHA-256 of the configuration fragment.
        fragment_sha256: String,
        /// The compiler, as it names itself.
        compiler: String,
    },
    /// A signed repository.
    Repository {
        /// Its address.
        url: String,
        /// The channel.
        channel: String,
        /// The kernel's name there.
        target: String,
        /// Version of the signed list that had it.
        version: u32,
        /// SHA-256 of the file.
        sha256: String,
    },
}

impl Provenance {
    /// Whether somebody answered for what was installed, and the bytes were compared with what they said.
    #[must_use]
    pub fn is_vouched(&self) -> bool {
        match self {
            Self::DistributionPackage { .. } | Self::Build { .. } | Self::Repository { .. } => true,
            Self::Host { .. } => false,
            Self::File { verified, .. } => *verified,
        }
    }
}

/// One package file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageProvenance {
    /// Package name.
    pub name: String,
    /// Package version.
    pub version: String,
    /// SHA-256 of the package file.
    pub sha256: String,
}

/// What an installation is doing, for whoever waits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelProgress {
    /// Another process works on the kernel store.
    Waiting,
    /// Asking the package manager for the current kernel.
    Resolving,
    /// Downloading a package.
    Downloading {
        /// Package name.
        package: String,
        /// Its size in bytes.
        bytes: u64,
    },
    /// Taking the kernel and modules out of a package.
    Unpacking {
        /// Package name.
        package: String,
    },
    /// Choosing what the kernel is made of.
    Configuring,
    /// Compiling it.
    Compiling {
        /// Steps done; there are about two thousand.
        steps: usize,
    },
    /// Decompressing the kernel and choosing its modules.
    Extracting,
    /// Writing it to the store.
    Storing {
        /// Kernel release.
        release: String,
    },
}

/// Receives progress.
pub type ProgressSink<'a> = dyn FnMut(KernelProgress) + 'a;

/// A kernel with all it needs, in memory.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) image: KernelImage,
    pub(crate) drivers: Drivers,
    pub(crate) provenance: Provenance,
}

/// Gets the kernel; `scratch` is an empty directory for the duration, and `trust` one for good, where what is
/// known of repositories is kept.
pub(crate) fn fetch(
    source: &KernelSource,
    scratch: &Path,
    trust: &Path,
    progress: &mut ProgressSink<'_>,
) -> Result<Fetched> {
    match source {
        KernelSource::DistributionPackage { package } => {
            from_package(package.as_ref(), scratch, progress)
        }
        KernelSource::Host => {
            progress(KernelProgress::Extracting);
            let release = linux_release().context("ask for the release of", Path::new("/boot"))?;
            from_host(Path::new("/"), &release)
        }
        KernelSource::File {
            kernel,
            modules,
            sha256,
        } => {
            progress(KernelProgress::Extracting);
            from_file(kernel, modules.as_deref(), sha256.as_deref())
        }
        KernelSource::Build(options) => build::for_this_host(options, progress),
        KernelSource::Repository(repository) => from_repository(repository, trust, progress),
    }
}

fn from_package(
    package: Option<&String>,
    scratch: &Path,
    progress: &mut ProgressSink<'_>,
) -> Result<Fetched> {
    progress(KernelProgress::Resolving);
    let names = package.map_or_else(apt::default_metapackages, |name| vec![name.clone()]);
    let packages = apt::resolve(&names, scratch)?;
    for package in &packages {
        progress(KernelProgress::Downloading {
            package: package.name.clone(),
            bytes: package.size,
        });
        let bytes = apt::download(package, scratch)?;
        progress(KernelProgress::Unpacking {
            package: package.name.clone(),
        });
        deb::unpack(&package.name, &bytes, scratch)?;
    }
    progress(KernelProgress::Extracting);
    let name = packages
        .first()
        .map(|package| package.name.clone())
        .unwrap_or_default();
    let kernel = scratch.join(deb::KERNEL_FILE);
    if !kernel.exists() {
        return Err(KernelError::InvalidPackage {
            package: name,
            reason: "it has no /boot/vmlinuz-*".to_owned(),
        });
    }
    let mut image = image::extract(&name, read_kernel(&kernel)?)?;
    add_config(&mut image, &scratch.join(deb::CONFIG_FILE))?;
    let drivers =
        ModuleTree::open(&scratch.join(deb::MODULES_DIRECTORY))?.drivers(&image.release)?;
    let packages = packages
        .into_iter()
        .map(|package| PackageProvenance {
            name: package.name,
            version: package.version,
            sha256: package.sha256,
        })
        .collect();
    Ok(Fetched {
        image,
        drivers,
        provenance: Provenance::DistributionPackage { packages },
    })
}

fn from_host(root: &Path, release: &str) -> Result<Fetched> {
    let modules = root.join("lib/modules").join(release);
    let kernels = [
        root.join(format!("boot/vmlinuz-{release}")),
        modules.join("vmlinuz"),
    ];
    let [preferred, _] = &kernels;
    let kernel = kernels.iter().find(|path| path.exists());
    let kernel = kernel.ok_or_else(|| KernelError::HostKernelAbsent {
        path: preferred.clone(),
    })?;
    if !modules.is_dir() {
        return Err(KernelError::HostKernelAbsent { path: modules });
    }
    let bytes = read_kernel(kernel)?;
    let digest = sha256(&bytes);
    let mut image = image::extract(&kernel.display().to_string(), bytes)?;
    add_config(&mut image, &root.join(format!("boot/config-{release}")))?;
    let drivers = ModuleTree::open(&modules)?.drivers(&image.release)?;
    Ok(Fetched {
        image,
        drivers,
        provenance: Provenance::Host {
            kernel: kernel.clone(),
            sha256: digest,
        },
    })
}

fn from_file(kernel: &Path, modules: Option<&Path>, expected: Option<&str>) -> Result<Fetched> {
    let bytes = read_kernel(kernel)?;
    let found = sha256(&bytes);
    if let Some(expected) = expected.map(str::to_ascii_lowercase)
        && expected != found
    {
        return Err(KernelError::DigestMismatch {
            name: kernel.display().to_string(),
            expected,
            found,
        });
    }
    let image = image::extract(&kernel.display().to_string(), bytes)?;
    let drivers = match modules {
        Some(directory) => ModuleTree::open(directory)?.drivers(&image.release)?,
        None => drivers_from_config(image.config.as_deref(), &image.release)?,
    };
    let provenance = Provenance::File {
        kernel: kernel.to_owned(),
        sha256: found,
        modules: modules.map(Path::to_owned),
        verified: expected.is_some(),
    };
    Ok(Fetched {
        image,
        drivers,
        provenance,
    })
}

fn from_repository(
    source: &RepositorySource,
    trust: &Path,
    progress: &mut ProgressSink<'_>,
) -> Result<Fetched> {
    progress(KernelProgress::Resolving);
    let vouched = repository::get(source, Architecture::HOST, trust)?;
    progress(KernelProgress::Extracting);
    let digest = sha256(&vouched.bytes);
    let image = image::extract(&vouched.target, vouched.bytes)?;
    let drivers = drivers_from_config(image.config.as_deref(), &image.release)?;
    Ok(Fetched {
        image,
        drivers,
        provenance: Provenance::Repository {
            url: vouched.url,
            channel: source.channel.clone(),
            target: vouched.target,
            version: vouched.version,
            sha256: digest,
        },
    })
}

/// Reads the configuration a distribution ships beside the kernel, if it does and the kernel carries none.
fn add_config(image: &mut KernelImage, path: &Path) -> Result<()> {
    if image.config.is_none() && path.exists() {
        image.config = String::from_utf8(read_bounded(path, MAX_CONFIG_FILE)?).ok();
    }
    Ok(())
}

fn read_kernel(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).context("read", path)?;
    if !metadata.is_file() || metadata.len() > MAX_KERNEL_FILE {
        let reason = format!("it is no regular file of at most {MAX_KERNEL_FILE} bytes");
        return Err(KernelError::InvalidImage {
            name: path.display().to_string(),
            reason,
        });
    }
    fs::read(path).context("read", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_host_kernel_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = from_host(root.path(), "6.1.0-test").unwrap_err();
        assert!(
            matches!(&error, KernelError::HostKernelAbsent { path } if path.ends_with("boot/vmlinuz-6.1.0-test")),
            "{error}"
        );
    }

    #[test]
    fn a_file_with_another_digest_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinuz");
        fs::write(&kernel, b"not what you think").unwrap();
        let error = from_file(&kernel, None, Some(&"0".repeat(64))).unwrap_err();
        assert!(
            matches!(error, KernelError::DigestMismatch { .. }),
            "{error}"
        );
    }
}
