//! Kernels from a signed repository (The Update Framework): a *channel* is a target of its metadata,
//! `<architecture>/<channel>/kernel`.
//!
//! The `tuf` crate verifies roots, signatures, thresholds, versions and digests. What it leaves open is
//! closed here: metadata that was known already may have expired meanwhile (a frozen repository), and a
//! new timestamp may point to an older snapshot. What was seen is kept only when all of it holds.

mod kept;
mod patience;
mod remote;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io::ErrorKind::{FileTooLarge, InvalidData, Other};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use futures_io::AsyncRead;
use tuf::Database;
use tuf::client::{Client, Config};
use tuf::metadata::{Metadata, MetadataPath, RawSignedMetadata, TargetPath};
use tuf::pouf::Pouf1;

use crate::error::{KernelError, Result};
use crate::hash::sha256;
use crate::record::Architecture;
use kept::Kept;
pub use patience::Patience;
use remote::Remote;

/// The root of trust that this build was given (`MICROAGENT_KERNEL_ROOT`); empty if it was given none.
static BUILT_IN_ROOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernel-root.json"));
/// The repository that this build was given (`MICROAGENT_KERNEL_REPOSITORY`).
const BUILT_IN_URL: Option<&str> = option_env!("MICROAGENT_KERNEL_REPOSITORY");
/// The channel that is taken when none is named.
pub const DEFAULT_CHANNEL: &str = "stable";
/// Largest kernel that is downloaded.
const MAX_KERNEL: u64 = 512 * 1024 * 1024;
/// Largest root of trust that is read from a file.
const MAX_ROOT: u64 = 512 * 1024;

/// A channel of a signed repository of kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepositorySource {
    /// Where it is: `https://`, `http://` (what is signed needs no secret way) or `file://`. `None` stands for
    /// the one this build was given.
    pub url: Option<String>,
    /// The channel.
    pub channel: String,
    /// A file with the root metadata to trust first, instead of the one this build was given.
    pub root: Option<PathBuf>,
    /// How long its server is waited for.
    pub patience: Patience,
}

impl RepositorySource {
    /// A channel of the repository this build was given.
    #[must_use]
    pub fn new(channel: impl Into<String>) -> Self {
        Self {
            url: None,
            channel: channel.into(),
            root: None,
            patience: Patience::default(),
        }
    }

    /// The same channel of another repository.
    #[must_use]
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// The same with the root metadata of this file trusted first.
    #[must_use]
    pub fn root(mut self, file: impl Into<PathBuf>) -> Self {
        self.root = Some(file.into());
        self
    }

    /// The same with a server that is waited for so long.
    #[must_use]
    pub fn patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }
}

/// A kernel that a repository vouches for.
pub(crate) struct Vouched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) url: String,
    pub(crate) target: String,
    /// Version of the metadata that vouches.
    pub(crate) version: u32,
}

/// Gets the kernel of a channel. `trust` is where what is known of repositories is kept. The caller holds
/// the store's lock.
pub(crate) fn get(
    source: &RepositorySource,
    architecture: Architecture,
    trust: &Path,
) -> Result<Vouched> {
    let url = source
        .url
        .as_deref()
        .or(BUILT_IN_URL)
        .ok_or_else(untrusted)?;
    let url = url.trim_end_matches('/').to_owned();
    let root = match &source.root {
        Some(file) => crate::files::read_bounded(file, MAX_ROOT)?,
        None => BUILT_IN_ROOT.to_vec(),
    };
    if root.is_empty() {
        return Err(untrusted());
    }
    let target = target(architecture, &source.channel)?;
    // What is kept belongs to a place and to whom it was trusted by.
    let name = sha256([url.as_bytes(), b"\0", &root].concat().as_slice());
    let kept = Kept::open(&trust.join(name.get(..16).unwrap_or_default()))?;
    let now = DateTime::<Utc>::from(SystemTime::now());
    let mut repository = Repository::open(&url, root, kept, now, source.patience)?;
    let updated = repository.update();
    // A chain of roots is verified link by link, so it is kept whatever follows.
    repository.client.local_repo().commit_roots()?;
    updated?;
    let bytes = repository.fetch(&target, source)?;
    repository.client.local_repo().commit()?;
    let version = repository
        .database()
        .trusted_targets()
        .map_or(0, |targets| targets.version());
    drop(repository);
    Ok(Vouched {
        bytes,
        url,
        target: target.to_string(),
        version,
    })
}

fn untrusted() -> KernelError {
    KernelError::NoTrustedRoot
}

fn target(architecture: Architecture, channel: &str) -> Result<TargetPath> {
    let sound = (1..=64).contains(&channel.len())
        && channel.starts_with(|first: char| first.is_ascii_alphanumeric())
        && channel
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let architecture = match architecture {
        Architecture::X86_64 => "x86_64",
        Architecture::Aarch64 => "aarch64",
    };
    sound
        .then(|| TargetPath::new(format!("{architecture}/{channel}/kernel")).ok())
        .flatten()
        .ok_or_else(|| KernelError::InvalidChannel {
            channel: channel.to_owned(),
        })
}

/// A repository, with what is known of it.
struct Repository<'a> {
    url: &'a str,
    now: DateTime<Utc>,
    client: Client<Pouf1, Kept, Remote<'a>>,
    /// What is known from before: the root's version, the snapshot's, the targets'.
    known: (u32, u32, u32),
}

impl<'a> Repository<'a> {
    fn open(
        url: &'a str,
        root: Vec<u8>,
        kept: Kept,
        now: DateTime<Utc>,
        patience: Patience,
    ) -> Result<Self> {
        let refused = |error: &dyn std::fmt::Display| KernelError::RepositoryRefused {
            url: url.to_owned(),
            reason: format!("its root of trust cannot be used: {error}"),
        };
        let mut database = Database::<Pouf1>::from_trusted_root(&RawSignedMetadata::new(root))
            .map_err(|error| refused(&error))?;
        kept.restore(&mut database)?;
        let known = (
            database.trusted_root().version(),
            database
                .trusted_timestamp()
                .map_or(0, |it| it.snapshot().version()),
            targets_version(&database),
        );
        // Nothing is delegated: a channel is in the first targets metadata or nowhere.
        let config = Config::build().max_delegation_depth(0).finish();
        let client = Client::from_database(
            config.map_err(|error| refused(&error))?,
            database,
            kept,
            Remote::new(url, patience)?,
        );
        Ok(Self {
            url,
            now,
            client,
            known,
        })
    }

    fn database(&self) -> &Database<Pouf1> {
        self.client.database()
    }

    /// Brings the metadata up to date, and judges all of it.
    fn update(&mut self) -> Result<()> {
        let now = self.now;
        let updated = ready(self.client.update_with_start_time(&now));
        self.told(updated)?;
        self.unexpired()?;
        let (root, snapshot, targets) = self.known;
        let database = self.database();
        // A new root may have replaced keys, after which versions may begin anew (TUF 5.3.11).
        if database.trusted_root().version() != root {
            return Ok(());
        }
        let rolled_back = |what: &str, from: u32, to: u32| {
            self.refused(format!("its {what} went back from version {from} to {to}"))
        };
        let now_snapshot = database.trusted_snapshot().map_or(0, |it| it.version());
        if now_snapshot < snapshot {
            return Err(rolled_back("snapshot", snapshot, now_snapshot));
        }
        let now_targets = targets_version(database);
        if now_targets < targets {
            return Err(rolled_back("list of kernels", targets, now_targets));
        }
        Ok(())
    }

    /// Old metadata is as good as none, also where nothing newer was offered.
    fn unexpired(&self) -> Result<()> {
        let database = self.database();
        let expiries = [
            ("root", Some(*database.trusted_root().expires())),
            (
                "timestamp",
                database.trusted_timestamp().map(|it| *it.expires()),
            ),
            (
                "snapshot",
                database.trusted_snapshot().map(|it| *it.expires()),
            ),
            (
                "list of kernels",
                database.trusted_targets().map(|it| *it.expires()),
            ),
        ];
        for (what, expires) in expiries {
            match expires {
                None => return Err(self.refused(format!("it has no {what}"))),
                Some(at) if at <= self.now => {
                    let at = humantime::format_rfc3339_seconds(at.into());
                    return Err(self.refused(format!("its {what} expired at {at}")));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn fetch(&mut self, target: &TargetPath, source: &RepositorySource) -> Result<Vec<u8>> {
        let listed = self
            .database()
            .trusted_targets()
            .and_then(|targets| targets.targets().get(target).cloned());
        let Some(listed) = listed else {
            return Err(KernelError::NoSuchChannel {
                url: self.url.to_owned(),
                channel: source.channel.clone(),
            });
        };
        if listed.length() > MAX_KERNEL {
            return Err(self.refused(format!(
                "its kernel has {} bytes; at most {MAX_KERNEL} are downloaded",
                listed.length()
            )));
        }
        let now = self.now;
        let read = ready(async {
            let body = self
                .client
                .fetch_target_with_start_time(target, &now)
                .await?;
            read_to_end(body, listed.length()).map_err(tuf::Error::from)
        });
        let bytes = self.told(read)?;
        if bytes.len() as u64 != listed.length() {
            return Err(self.refused(format!(
                "its kernel has {} bytes, and {} were promised",
                bytes.len(),
                listed.length()
            )));
        }
        Ok(bytes)
    }

    /// An error of ours that went through the client, or what the client found.
    fn told<T>(&self, result: tuf::Result<T>) -> Result<T> {
        result.map_err(|error| {
            if let Some(ours) = self.client.remote_repo().failure() {
                return ours;
            }
            match error {
                // The client's own checks give these kinds; the way to the server gives others, or its own errors.
                tuf::Error::Io(error)
                    if !matches!(error.kind(), InvalidData | FileTooLarge | Other)
                        || by_the_server(&error) =>
                {
                    KernelError::RepositoryUnreachable {
                        url: self.url.to_owned(),
                        reason: error.to_string(),
                    }
                }
                error => self.refused(error.to_string()),
            }
        })
    }

    fn refused(&self, reason: String) -> KernelError {
        KernelError::RepositoryRefused {
            url: self.url.to_owned(),
            reason,
        }
    }
}

/// Whether the way to the server gave this error: a time limit, say.
fn by_the_server(error: &std::io::Error) -> bool {
    let inner = error.get_ref();
    inner
        .and_then(|inner| inner.downcast_ref::<ureq::Error>())
        .is_some()
}

/// Version of the targets metadata that the snapshot names.
fn targets_version(database: &Database<Pouf1>) -> u32 {
    database
        .trusted_snapshot()
        .and_then(|snapshot| snapshot.meta().get(&MetadataPath::targets()))
        .map_or(0, tuf::metadata::MetadataDescription::version)
}

/// The result of a future that never waits: everything below reads and writes like any blocking code.
fn ready<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            return output;
        }
    }
}

/// At most `limit` bytes; the reader fails at its end if they are not what was promised.
fn read_to_end(mut body: impl AsyncRead + Unpin, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match Pin::new(&mut body)
            .poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer)
        {
            Poll::Ready(read) => read?,
            Poll::Pending => continue,
        };
        match buffer.get(..length) {
            Some([]) | None => return Ok(bytes),
            Some(_) if bytes.len() as u64 > limit => {
                return Err(FileTooLarge.into());
            }
            Some(read) => bytes.extend_from_slice(read),
        }
    }
}
