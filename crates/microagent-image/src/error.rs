//! What can go wrong with images: each error names the input, the reason and what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_protocol::text::is_harmful;

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
    /// The text names no registry.
    #[error("`{input}` is not a registry: {reason}.")]
    BadRegistry {
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
    #[error("{image} has no image for {wanted}; it has only: {available}.")]
    NoSuchPlatform {
        /// The image.
        image: String,
        /// The platform that was asked for.
        wanted: Platform,
        /// The platforms there are.
        available: String,
    },
    /// The registry does not have the image.
    #[error("{image} was not found on {registry}. {hint}")]
    NotFound {
        /// The image.
        image: String,
        /// The registry that was asked.
        registry: String,
        /// What was probably meant, as a sentence.
        hint: String,
    },
    /// The registry wants credentials, or other ones.
    #[error("{registry} refused access to {image}: {reason}.")]
    Unauthorized {
        /// The image.
        image: String,
        /// The registry that was asked.
        registry: String,
        /// What the registry said, and what to do.
        reason: String,
    },
    /// The registry does not accept a user name and password.
    #[error("{registry} does not accept this user name and password. Nothing was stored.")]
    LoginRefused {
        /// The registry.
        registry: String,
    },
    /// The configuration says that nothing is pulled from there.
    #[error("{image} cannot be pulled or pushed: {registry} is blocked in registries.toml.")]
    Blocked {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
    },
    /// The registry was asked too often.
    #[error("{registry} limits how often it may be asked, and the limit is reached: {reason}{}.", until(.wait))]
    RateLimited {
        /// The registry.
        registry: String,
        /// What it said.
        reason: String,
        /// How long it asked to wait.
        wait: Option<Duration>,
    },
    /// A name could not be turned into an address.
    #[error(
        "There is no host `{host}` to reach {registry} by: {reason}. Check the name, and this host's DNS and proxy settings."
    )]
    NoSuchHost {
        /// The host that was looked up.
        host: String,
        /// The registry that was asked.
        registry: String,
        /// What the resolver said.
        reason: String,
    },
    /// The proxy could not be reached, or will not serve.
    #[error("The proxy {proxy} did not connect to {registry}: {reason}.")]
    Proxy {
        /// The proxy, without credentials.
        proxy: String,
        /// The registry that was asked.
        registry: String,
        /// What happened.
        reason: String,
    },
    /// The certificate is of another time than this host's clock.
    #[error(
        "The certificate of {registry} {reason}, and this host's clock shows {now}. Check the clock; if it is right, the registry's certificate is to be renewed."
    )]
    Clock {
        /// The registry.
        registry: String,
        /// From or until when it is valid.
        reason: String,
        /// What this host's clock showed.
        now: String,
    },
    /// Plain HTTP was spoken to a server that wants TLS.
    #[error(
        "{registry} failed while {doing}: a server that speaks TLS was asked in plain HTTP. Whoever runs the registry gave an http:// address where https:// belongs."
    )]
    WantsTls {
        /// The registry.
        registry: String,
        /// What was being done.
        doing: String,
    },
    /// What the configuration says of a registry cannot be used.
    #[error("The settings for {registry} cannot be used: {reason}.")]
    Settings {
        /// The registry.
        registry: String,
        /// Why.
        reason: String,
    },
    /// The disk is full, or would be.
    #[error("There is no space for {what} in {}: {}.", path.display(), space(*.needed, *.available))]
    NoSpace {
        /// What was to be written.
        what: String,
        /// Where.
        path: PathBuf,
        /// How many bytes are missing or were to be written, where that is known.
        needed: Option<u64>,
        /// How many bytes are free.
        available: u64,
    },
    /// The registry is none that takes images, or not this one.
    #[error(
        "{registry} does not take {image}: {reason}. It may be a mirror or read-only, or want the repository to be made there first; or it is no registry."
    )]
    TakesNoImages {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// What it said.
        reason: String,
    },
    /// What was asked for cannot be pushed as it was asked.
    #[error("{image} cannot be pushed: {reason}.")]
    CannotPush {
        /// The image.
        image: String,
        /// Why, and what would be right.
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
        "The TLS connection to {registry} was refused: {reason}. If its certificate comes from a private authority, name that authority's certificate as `ca` in registries.toml, or add it to the system's store."
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
    #[error("No image matches `{name}`.")]
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
    /// The text is no change of a configuration.
    #[error("`{input}` is no change of an image: {reason}.")]
    BadChange {
        /// What was given.
        input: String,
        /// The fault in it.
        reason: String,
    },
    /// What an image is to be made on top of is not there.
    #[error(
        "The image {digest}, on top of which this was changed, is not in the store any more, or not whole."
    )]
    BaseGone {
        /// Its manifest.
        digest: Digest,
    },
    /// A change cannot become an image.
    #[error("{image} cannot be made: {reason}.")]
    CannotCommit {
        /// The image.
        image: String,
        /// Why.
        reason: String,
    },
    /// What was asked for cannot be written as it was asked.
    #[error("{what} cannot be exported: {reason}.")]
    CannotExport {
        /// The image, or where it was to go.
        what: String,
        /// Why, and what would be right.
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
    /// The key that images are to be signed with is none.
    #[error("{key} is no key to check signatures with: {reason}.")]
    BadKey {
        /// Its file.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image has no signature.
    #[error(
        "{image} is not signed: its registry has no signature of {digest}. Nothing was stored; without a key to check, unsigned images are accepted."
    )]
    Unsigned {
        /// The image.
        image: String,
        /// What its name stands for.
        digest: String,
    },
    /// The image has signatures, and none is what was asked for.
    #[error(
        "{image} is not signed with the key {key}: {reason}. Nothing was stored; check that the key is the right one, and do not use the image if it is."
    )]
    BadSignature {
        /// The image.
        image: String,
        /// The key's fingerprint.
        key: String,
        /// What is wrong with each signature.
        reason: String,
    },
    /// The image is here, its signature was not checked with this key, and its registry must not be asked.
    #[error(
        "The signature of {image} was not checked with the key {key} yet, and its registry must not be asked; pull it with that key, or allow pulling."
    )]
    NotVerified {
        /// The image.
        image: String,
        /// The key's fingerprint.
        key: String,
    },
    /// Others add content, so that nothing can be removed.
    #[error(
        "The image store {} is busy: a pull or an import is under way. Try again when it has ended.",
        path.display()
    )]
    StoreBusy {
        /// The store.
        path: PathBuf,
    },
    /// Whether somebody needs an image cannot be told.
    #[error("It cannot be told which images are needed, so none is removed: {reason}")]
    NeedsUnknown {
        /// Why not, and what to do.
        reason: String,
    },
    /// The name cannot be given or taken.
    #[error("`{name}` cannot be {doing}: {reason}.")]
    BadName {
        /// The name.
        name: String,
        /// What was asked for: `a new name`, `taken away`.
        doing: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// The store has no place: this user may not write there, or a file is in the way.
    #[error("Images cannot be kept in {}: {source}.", path.display())]
    NoPlace {
        /// The store's directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
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
    /// A disk cannot be read.
    #[error("Cannot use the disk {}: {source}.", path.display())]
    Volume {
        /// The disk.
        path: PathBuf,
        /// What is wrong with it.
        source: microagent_ext4::Error,
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

fn until(wait: &Option<Duration>) -> String {
    match wait {
        Some(wait) => format!(
            "; it may be asked again in {}",
            humantime::format_duration(Duration::from_secs(wait.as_secs()))
        ),
        None => String::new(),
    }
}

fn space(needed: Option<u64>, available: u64) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    match needed {
        Some(needed) => format!(
            "{} MiB are needed and {} MiB are free",
            mib(needed),
            available >> 20
        ),
        None => format!("{} MiB are free", available >> 20),
    }
}

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, ImageError>;

/// Adds what was being done, and to which file, to an I/O result.
pub(crate) trait IoContext<T> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| {
            let source = source.into();
            if matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) {
                let directory = path.parent().unwrap_or(path);
                return ImageError::NoSpace {
                    what: "the image".into(),
                    path: directory.to_owned(),
                    needed: None,
                    available: crate::store::files::free_space(directory).unwrap_or(0),
                };
            }
            ImageError::Io {
                doing,
                path: path.to_owned(),
                source,
            }
        })
    }
}

/// Foreign text made fit for a message: bounded, and harmless.
pub(crate) fn clip(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut clipped: String = text
        .chars()
        .take(LONGEST)
        .map(|c| if is_harmful(c) { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        clipped.push('…');
    }
    clipped
}
