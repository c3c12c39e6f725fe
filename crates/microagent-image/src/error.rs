//! What can go wrong with images: each error names the input, the reason and what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::platform::Platform;

/// Every failure of this crate but those of disk building.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The text is not an image reference.
    #[error("`{input}` is not an image reference: {reason}.")]
    BadReference {
        /// What was given.
        input: String,
        /// The fault in it.
        reason: String,
    },
    /// The text is not a digest.
    #[error("`{input}` is not a digest: {reason}.")]
    BadDigest {
        /// What was given.
        input: String,
        /// The fault in it.
        reason: &'static str,
    },
    /// The text is not a platform.
    #[error("`{input}` is not a platform: {reason}; write for example linux/amd64 or linux/arm64.")]
    BadPlatform {
        /// What was given.
        input: String,
        /// The fault in it.
        reason: &'static str,
    },
    /// A manifest, index or config was refused.
    #[error("The {what} is refused: {reason}.")]
    BadManifest {
        /// Which document.
        what: String,
        /// Why it is refused.
        reason: String,
    },
    /// A multi-platform image has none for the wanted platform.
    #[error(
        "{image} has no image for {wanted}; it has only: {available}. Choose one with --platform."
    )]
    NoSuchPlatform {
        /// The image.
        image: String,
        /// The platform that was asked for.
        wanted: Platform,
        /// The platforms there are.
        available: String,
    },
    /// The registry does not have the image.
    #[error("{image} was not found on {registry}; check the name and the tag.")]
    NotFound {
        /// The image.
        image: String,
        /// The registry that was asked.
        registry: String,
    },
    /// The registry wants credentials, or other ones.
    #[error("{registry} refused access to {image}: {reason}")]
    Unauthorized {
        /// The image.
        image: String,
        /// The registry that was asked.
        registry: String,
        /// What the registry said, and what to do.
        reason: String,
    },
    /// The registry answered with an error, or not as a registry does.
    #[error("{registry} failed while {doing}: {reason}.")]
    Registry {
        /// The registry that was asked.
        registry: String,
        /// What was being done.
        doing: String,
        /// What happened.
        reason: String,
    },
    /// The registry could not be reached, or the connection broke and did not come back.
    #[error(
        "The connection to {registry} failed while {doing} ({attempts} attempts): {reason}. Check the network and try again."
    )]
    Connection {
        /// The registry that was asked.
        registry: String,
        /// What was being done.
        doing: String,
        /// How often it was tried.
        attempts: u32,
        /// The last failure.
        reason: String,
    },
    /// TLS was spoken to a server that does not speak it.
    #[error(
        "{registry} does not speak TLS; if plain HTTP is really meant, name it as an insecure registry."
    )]
    PlainHttp {
        /// The registry.
        registry: String,
    },
    /// The certificate was not accepted.
    #[error(
        "The TLS connection to {registry} was refused: {reason}. If its certificate comes from a private authority, add that authority's certificate to the system's store."
    )]
    Tls {
        /// The registry.
        registry: String,
        /// What the TLS library said.
        reason: String,
    },
    /// Content does not hash to its name.
    #[error(
        "The digest of {what} does not match: expected {expected}, got {actual}. Nothing was stored; the source is corrupt or was tampered with."
    )]
    DigestMismatch {
        /// Which content.
        what: String,
        /// Its name.
        expected: Digest,
        /// What it hashes to.
        actual: Digest,
    },
    /// Content is longer or shorter than declared.
    #[error(
        "The size of {what} does not match: declared {expected} bytes, got {actual}. Nothing was stored."
    )]
    SizeMismatch {
        /// Which content.
        what: String,
        /// The declared size in bytes.
        expected: u64,
        /// The size in bytes, or how much had come when it was enough.
        actual: u64,
    },
    /// The image is not in the local store and must not be pulled.
    #[error("{image} is not in the local store for {platform}; pull it first, or allow pulling.")]
    NotLocal {
        /// The image.
        image: String,
        /// The platform that was asked for.
        platform: Platform,
    },
    /// Nothing in the store matches.
    #[error("No image matches `{name}`; `images list` shows what is there.")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// More than one image in the store matches.
    #[error("`{name}` matches more than one image: {candidates}. Write more of it.")]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// What matches.
        candidates: String,
    },
    /// The file or directory is no image.
    #[error("{} cannot be imported: {reason}.", path.display())]
    BadArchive {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The store's own files are not as they were written.
    #[error("The image store is damaged: {} {reason}. {remedy}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A system call failed.
    #[error("Cannot {doing} {}: {source}.", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The base disk could not be built.
    #[error("The base disk of {image} could not be built: {source}")]
    Disk {
        /// The image.
        image: String,
        /// What the builder said.
        source: Box<crate::disk::DiskError>,
    },
}

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, ImageError>;

/// Adds what was being done, and to which file, to an I/O result.
pub(crate) trait IoContext<T> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| ImageError::Io {
            doing,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}

/// Foreign text made fit for a message: bounded, no control characters.
pub(crate) fn clip(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut clipped: String = text
        .chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        clipped.push('…');
    }
    clipped
}
