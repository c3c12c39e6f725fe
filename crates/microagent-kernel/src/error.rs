//! What can go wrong with kernels, each with the input, the reason and the remedy.

use std::path::PathBuf;
use std::time::Duration;

/// Failure of a kernel operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A file or directory could not be read or written.
    #[error("Cannot {action} {path}: {source}.", path = path.display())]
    Io {
        /// What was attempted, as a verb ("read", "create").
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The image is no kernel this crate can boot.
    #[error("{name} is not a bootable kernel: {reason}.")]
    InvalidImage {
        /// File or package the image came from.
        name: String,
        /// What is wrong, and what would be accepted.
        reason: String,
    },
    /// Compressed data is damaged, too large or in a format Linux packages do not use.
    #[error("Cannot decompress {name}: {reason}.")]
    Decompress {
        /// What was being decompressed.
        name: String,
        /// Why it failed.
        reason: String,
    },
    /// A kernel module, or the description of them, is damaged.
    #[error("The kernel modules in {name} are damaged: {reason}.")]
    InvalidModules {
        /// The module or the file that lists modules.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The kernel cannot run a microVM.
    #[error(
        "The kernel {release} lacks what a microVM needs: {missing}. Use a kernel that has these built in or give the \
         directory of its modules.",
        missing = missing.join(", ")
    )]
    MissingDrivers {
        /// Kernel release, as `uname -r` prints it.
        release: String,
        /// Module names, one entry per unmet need.
        missing: Vec<String>,
    },
    /// The modules were built for another kernel.
    #[error("The modules in {path} are for kernel {found}, but the kernel is {expected}. Give the modules that belong to it.", path = path.display())]
    WrongModules {
        /// Module directory.
        path: PathBuf,
        /// Release the modules name.
        found: String,
        /// Release of the kernel image.
        expected: String,
    },
    /// This host has no kernel image or no modules to borrow.
    #[error("This host's kernel cannot be used: {path} does not exist. Install the distribution's kernel package, or choose the package or a file as the source.", path = path.display())]
    HostKernelAbsent {
        /// The file or directory that is missing.
        path: PathBuf,
    },
    /// A program that is needed is not installed.
    #[error("Cannot run {program}: {source}. {remedy}")]
    ToolUnavailable {
        /// Program name.
        program: String,
        /// The operating system's reason.
        source: std::io::Error,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A library that a program is built with is not installed.
    #[error("The compiler does not find {library}'s header. {remedy}")]
    LibraryMissing {
        /// Its name.
        library: &'static str,
        /// What to install.
        remedy: &'static str,
    },
    /// A program failed.
    #[error("{program} failed ({status}): {stderr}")]
    ToolFailed {
        /// Program name with its arguments.
        program: String,
        /// Exit code or signal.
        status: String,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// A program did not finish in time and was killed.
    #[error("{program} did not finish within {}.", humantime::format_duration(*.after))]
    ToolTimedOut {
        /// Program name with its arguments.
        program: String,
        /// How long it was given.
        after: Duration,
    },
    /// The package manager knows no such kernel package.
    #[error("The package manager knows none of these kernel packages: {packages}. Run `apt-get update` as root and try again, or install a kernel from a file.", packages = packages.join(", "))]
    PackageUnknown {
        /// Package names that were looked up.
        packages: Vec<String>,
    },
    /// A package's metadata or contents cannot be used.
    #[error("The package {package} cannot be used: {reason}.")]
    InvalidPackage {
        /// Package name or file.
        package: String,
        /// What is wrong.
        reason: String,
    },
    /// Linux did not take a part of the configuration.
    #[error(
        "Linux of {package} does not take these lines of our configuration: {dropped}. They depend on something that \
         is not there, or this version calls them otherwise: build {default}.",
        dropped = dropped.join(", "),
        default = crate::SOURCE_PACKAGE
    )]
    OptionsDropped {
        /// Source package.
        package: String,
        /// The lines.
        dropped: Vec<String>,
    },
    /// A kernel for another architecture cannot be installed.
    #[error(
        "A kernel for {architecture:?} runs no machine on this host: write it to a directory instead of installing it."
    )]
    ForeignArchitecture {
        /// What it would be for.
        architecture: crate::Architecture,
    },
    /// What a repository says of itself does not hold.
    #[error(
        "The kernel repository {url} cannot be trusted: {reason}. Nothing was installed; ask who runs it before you try again."
    )]
    RepositoryRefused {
        /// Its address.
        url: String,
        /// What does not hold.
        reason: String,
    },
    /// A repository's file could not be had.
    #[error("Cannot get {url}: {reason}. Try again, or give another repository.")]
    RepositoryUnreachable {
        /// Address of the file.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The address of a repository is in no form that is read.
    #[error(
        "{url:?} is no address of a kernel repository: give https://HOST/PATH, http://HOST/PATH or file:///PATH."
    )]
    InvalidRepository {
        /// The address.
        url: String,
    },
    /// There is nobody to trust, or no place to look.
    #[error(
        "This build of microagent was given no kernel repository. Name one, and a file with its root metadata."
    )]
    NoTrustedRoot,
    /// The name of a channel cannot be one.
    #[error("{channel:?} is no name of a channel: letters, digits and . _ - are allowed.")]
    InvalidChannel {
        /// The name.
        channel: String,
    },
    /// The repository has no such channel for this architecture.
    #[error("The kernel repository {url} has no channel {channel:?} for this host's architecture.")]
    NoSuchChannel {
        /// Its address.
        url: String,
        /// The channel.
        channel: String,
    },
    /// What was known of a repository cannot be read any more.
    #[error("What is known of a kernel repository cannot be used: {path}: {reason}. Remove the directory of this file to begin anew; what was known there then protects no more against old kernels.", path = path.display())]
    TrustDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// What arrived is not what was announced.
    #[error(
        "{name} has SHA-256 {found}, but {expected} was expected. Remove it and fetch it again; do not use it."
    )]
    DigestMismatch {
        /// What was checked.
        name: String,
        /// Announced digest, lower-case hexadecimal.
        expected: String,
        /// Digest of what is there.
        found: String,
    },
    /// No kernel of that id is installed.
    #[error("No kernel {id:?} is installed.")]
    NotFound {
        /// The id asked for.
        id: String,
    },
    /// The manifest of an installed kernel cannot be understood.
    #[error("The manifest {path} cannot be used: {reason}. Remove the kernel and install it again.", path = path.display())]
    InvalidManifest {
        /// Manifest file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The choice of the default kernel cannot be understood.
    #[error("The choice of the default kernel in {path} cannot be used: {reason}. Choose the default kernel again.", path = path.display())]
    InvalidDefault {
        /// File with the choice.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// This build carries no guest agent.
    #[error(
        "The guest agent is empty: this microagent was built for a system on which the guest cannot be compiled. Build it with MICROAGENT_GUEST_BINARY set."
    )]
    NoGuest,
    /// Another process holds the kernel store.
    #[error("Another process has been working on the kernels in {path} for {}. Try again when it is done.", humantime::format_duration(*.after), path = path.display())]
    Busy {
        /// The store's directory.
        path: PathBuf,
        /// How long this process waited.
        after: Duration,
    },
}

/// Result of a kernel operation.
pub type Result<T, E = KernelError> = std::result::Result<T, E>;

/// Names the path in an I/O error.
pub(crate) trait IoContext<T> {
    fn context(self, action: &'static str, path: &std::path::Path) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn context(self, action: &'static str, path: &std::path::Path) -> Result<T> {
        self.map_err(|source| KernelError::Io {
            action,
            path: path.to_owned(),
            source,
        })
    }
}
