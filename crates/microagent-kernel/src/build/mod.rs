//! Builds the tuned kernel: Linux from the distribution's source package, `tinyconfig` and our fragment.
//!
//! Everything is built in, so the guest agent alone makes the initramfs. The same source, fragment and
//! compiler give the same bytes: names and times of the build are fixed.

mod fragment;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::apt;
use crate::command::{run, run_watched};
use crate::error::{IoContext, KernelError, Result};
use crate::files::{read_bounded, replace};
use crate::hash::sha256;
use crate::image;
use crate::modules::drivers_from_config;
use crate::record::Architecture;
use crate::source::{Fetched, KernelProgress, PackageProvenance, ProgressSink, Provenance};

/// The source package that is built when none is named.
pub const SOURCE_PACKAGE: &str = "linux-source-6.12";
/// Time to unpack a package or a source tree of 2 GB, or to configure.
const STEP_TIMEOUT: Duration = Duration::from_secs(1800);
/// Time to compile.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// Largest configuration and kernel that are read back.
const MAX_CONFIG: u64 = 4 * 1024 * 1024;
const MAX_KERNEL: u64 = 512 * 1024 * 1024;
/// Variables of an environment by which Linux would be built elsewhere, by another compiler or otherwise.
const DECIDING: [&str; 8] = [
    "GNUMAKEFLAGS",
    "KBUILD_KCONFIG",
    "KBUILD_OUTPUT",
    "KCONFIG_ALLCONFIG",
    "KCONFIG_CONFIG",
    "LLVM",
    "MAKEFLAGS",
    "SOURCE_DATE_EPOCH",
];
const REMEDY: &str = "A kernel is built with the distribution's own programs: install gcc, make, flex, bison, bc, \
    xz-utils, libelf-dev and, for another architecture, its cross compiler.";

/// How a kernel is built.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildOptions {
    /// An existing directory with 4 GB of space; what is made in it is removed again.
    pub directory: PathBuf,
    /// The source package, as the package manager names it.
    pub package: String,
    /// What the kernel is for.
    pub architecture: Architecture,
    /// How many files are compiled at a time.
    pub jobs: NonZeroUsize,
}

impl BuildOptions {
    /// For this host's architecture, one file at a time.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            package: SOURCE_PACKAGE.to_owned(),
            architecture: Architecture::HOST,
            jobs: NonZeroUsize::MIN,
        }
    }

    /// The same from another source package.
    #[must_use]
    pub fn package(mut self, package: impl Into<String>) -> Self {
        self.package = package.into();
        self
    }

    /// The same for another architecture.
    #[must_use]
    pub fn architecture(mut self, architecture: Architecture) -> Self {
        self.architecture = architecture;
        self
    }

    /// The same with so many files compiled at a time.
    #[must_use]
    pub fn jobs(mut self, jobs: NonZeroUsize) -> Self {
        self.jobs = jobs;
        self
    }
}

/// A kernel that was built into files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuiltKernel {
    /// What a VMM loads: an ELF `vmlinux`, on arm64 an `Image`.
    pub kernel: PathBuf,
    /// Its whole configuration.
    pub config: PathBuf,
    /// Release, as `uname -r` prints it.
    pub release: String,
    /// SHA-256 of the kernel, lower-case hexadecimal.
    pub sha256: String,
}

/// Builds a kernel and writes it to `output`, as `vmlinux` or `Image`, and its configuration beside it.
///
/// # Errors
/// When the source cannot be had, Linux does not take an option of the fragment, or it does not compile.
pub fn build_files(
    options: &BuildOptions,
    output: &Path,
    progress: &mut ProgressSink<'_>,
) -> Result<BuiltKernel> {
    let Fetched { image, .. } = build(options, progress)?;
    crate::files::ensure_directory(output)?;
    let kernel = output.join(target(options.architecture).name);
    let config = kernel.with_extension("config");
    replace(&kernel, &image.bytes)?;
    replace(&config, image.config.unwrap_or_default().as_bytes())?;
    Ok(BuiltKernel {
        kernel,
        config,
        release: image.release,
        sha256: sha256(&image.bytes),
    })
}

/// Gets the source and applies the fragment, and does not compile.
///
/// # Errors
/// When the source cannot be had, or Linux does not take an option of the fragment.
pub fn check_configuration(options: &BuildOptions, progress: &mut ProgressSink<'_>) -> Result<()> {
    Tree::prepare(options, progress)?
        .configure(progress)
        .map(drop)
}

/// Builds a kernel to be installed.
pub(crate) fn for_this_host(
    options: &BuildOptions,
    progress: &mut ProgressSink<'_>,
) -> Result<Fetched> {
    if options.architecture != Architecture::HOST {
        return Err(KernelError::ForeignArchitecture {
            architecture: options.architecture,
        });
    }
    build(options, progress)
}

/// Builds a kernel.
fn build(options: &BuildOptions, progress: &mut ProgressSink<'_>) -> Result<Fetched> {
    let tree = Tree::prepare(options, progress)?;
    let configuration = tree.configure(progress)?;
    let bytes = tree.compile(progress)?;
    progress(KernelProgress::Extracting);
    let mut image = image::extract(target(options.architecture).name, bytes)?;
    image.config.get_or_insert(configuration);
    let drivers = drivers_from_config(image.config.as_deref(), &image.release)?;
    let compiler = tree.tool(
        &format!("{}gcc", cross(options.architecture)),
        &["--version"],
    )?;
    Ok(Fetched {
        provenance: Provenance::Build {
            source: tree.source.clone(),
            fragment_sha256: sha256(fragment::fragment(options.architecture).as_bytes()),
            compiler: compiler.lines().next().unwrap_or_default().to_owned(),
        },
        image,
        drivers,
    })
}

/// An unpacked source tree, for as long as it is needed.
struct Tree<'a> {
    options: &'a BuildOptions,
    source: PackageProvenance,
    root: PathBuf,
    _scratch: tempfile::TempDir,
}

impl<'a> Tree<'a> {
    fn prepare(options: &'a BuildOptions, progress: &mut ProgressSink<'_>) -> Result<Self> {
        let scratch = tempfile::Builder::new()
            .prefix("microagent-kernel-")
            .tempdir_in(&options.directory)
            .context("create a directory in", &options.directory)?;
        require_tools(options.architecture, scratch.path())?;
        progress(KernelProgress::Resolving);
        let package = apt::find(&options.package, scratch.path())?;
        progress(KernelProgress::Downloading {
            package: package.name.clone(),
            bytes: package.size,
        });
        let deb = scratch.path().join("source.deb");
        fs::write(&deb, apt::download(&package, scratch.path())?).context("write", &deb)?;
        progress(KernelProgress::Unpacking {
            package: package.name.clone(),
        });
        let step = |program, arguments: &[&str]| {
            run(program, arguments, scratch.path(), STEP_TIMEOUT, REMEDY)
        };
        step("dpkg-deb", &["--extract", "source.deb", "package"])?;
        // Debian's and Ubuntu's source packages hold one archive of this name.
        let archive = format!("package/usr/src/{}.tar.xz", options.package);
        if !scratch.path().join(&archive).is_file() {
            return Err(KernelError::InvalidPackage {
                package: options.package.clone(),
                reason: format!("it has no /usr/src/{}.tar.xz", options.package),
            });
        }
        fs::create_dir(scratch.path().join("linux")).context("create", scratch.path())?;
        let unpack = [
            "--extract",
            "--file",
            &archive,
            "--strip-components=1",
            "--directory=linux",
        ];
        step("tar", &unpack)?;
        for spent in ["source.deb", "package"] {
            let path = scratch.path().join(spent);
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.context("remove", &path)?;
        }
        Ok(Self {
            options,
            source: PackageProvenance {
                name: package.name,
                version: package.version,
                sha256: package.sha256,
            },
            root: scratch.path().join("linux"),
            _scratch: scratch,
        })
    }

    /// The whole configuration, in which every line of the fragment holds.
    fn configure(&self, progress: &mut ProgressSink<'_>) -> Result<String> {
        progress(KernelProgress::Configuring);
        self.make(&["tinyconfig"], STEP_TIMEOUT, &mut |_| {})?;
        let path = self.root.join(".config");
        let read = || -> Result<String> {
            let bytes = read_bounded(&path, MAX_CONFIG)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let fragment = fragment::fragment(self.options.architecture);
        // The last word on an option counts.
        fs::write(&path, format!("{}\n{fragment}", read()?)).context("write", &path)?;
        self.make(&["olddefconfig"], STEP_TIMEOUT, &mut |_| {})?;
        let config = read()?;
        let dropped = fragment::dropped(&fragment, &config);
        if dropped.is_empty() {
            return Ok(config);
        }
        Err(KernelError::OptionsDropped {
            package: self.options.package.clone(),
            dropped,
        })
    }

    fn compile(&self, progress: &mut ProgressSink<'_>) -> Result<Vec<u8>> {
        let target = target(self.options.architecture);
        let mut watch = |steps| progress(KernelProgress::Compiling { steps });
        watch(0);
        self.make(&[target.make], COMPILE_TIMEOUT, &mut watch)?;
        let path = self.root.join(target.file);
        if target.symbols {
            let objcopy = format!("{}objcopy", cross(self.options.architecture));
            self.tool(&objcopy, &["--strip-all", target.file])?;
        }
        read_bounded(&path, MAX_KERNEL)
    }

    fn make(
        &self,
        targets: &[&str],
        timeout: Duration,
        watch: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let mut command = Command::new("make");
        command
            .args(targets)
            .arg(format!("--jobs={}", self.options.jobs))
            .arg(format!("ARCH={}", target(self.options.architecture).linux))
            .arg(format!(
                "CROSS_COMPILE={}",
                cross(self.options.architecture)
            ))
            // Who builds it, when and where is no part of it: the same input gives the same bytes.
            .args([
                "KBUILD_BUILD_USER=microagent",
                "KBUILD_BUILD_HOST=microagent",
            ])
            .arg("KBUILD_BUILD_VERSION=1")
            // With its zone: east of Greenwich the plain day begins before there was time.
            .arg("KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970")
            .args(["LOCALVERSION=", "KCFLAGS=", "KCPPFLAGS=", "KAFLAGS="])
            .env("TZ", "UTC")
            .current_dir(&self.root);
        for variable in DECIDING {
            command.env_remove(variable);
        }
        run_watched(command, timeout, REMEDY, watch).map(drop)
    }

    fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(program, arguments, &self.root, STEP_TIMEOUT, REMEDY)
    }
}

/// What is missing is told before 150 MB are downloaded.
fn require_tools(architecture: Architecture, directory: &Path) -> Result<()> {
    let ask = |program: &str, arguments: &[&str]| {
        run(program, arguments, directory, STEP_TIMEOUT, REMEDY).map(drop)
    };
    for program in ["make", "gcc", "flex", "bison", "bc", "xz", "tar"] {
        ask(program, &["--version"])?;
    }
    let compiler = format!("{}gcc", cross(architecture));
    ask(&compiler, &["--version"])?;
    if architecture == Architecture::X86_64 {
        // Linux checks its own object files there, by this library.
        let include = ["-E", "-include", "libelf.h", "-x", "c", "/dev/null"];
        ask("gcc", &include).map_err(|_| KernelError::LibraryMissing {
            library: "libelf",
            remedy: REMEDY,
        })?;
    }
    Ok(())
}

/// What the names of a compiler's programs begin with.
fn cross(architecture: Architecture) -> &'static str {
    match architecture {
        architecture if architecture == Architecture::HOST => "",
        Architecture::X86_64 => "x86_64-linux-gnu-",
        Architecture::Aarch64 => "aarch64-linux-gnu-",
    }
}

/// What Linux calls things on an architecture.
struct Target {
    linux: &'static str,
    make: &'static str,
    file: &'static str,
    name: &'static str,
    /// Whether the file has symbols, which no VMM reads.
    symbols: bool,
}

fn target(architecture: Architecture) -> Target {
    match architecture {
        Architecture::X86_64 => Target {
            linux: "x86_64",
            make: "vmlinux",
            file: "vmlinux",
            name: "vmlinux",
            symbols: true,
        },
        Architecture::Aarch64 => Target {
            linux: "arm64",
            make: "Image",
            file: "arch/arm64/boot/Image",
            name: "Image",
            symbols: false,
        },
    }
}
