//! The distribution protocol, client side: manifests and blobs of one repository, verified as they come.
//!
//! Knows nothing of the store: it writes where it is told and says what it did.

mod auth;
mod options;
mod transport;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::http::{Response, StatusCode, header};

pub use auth::{Credential, Credentials};
pub use options::RegistryOptions;
pub(crate) use transport::Failure;

use crate::choose::Fetched;
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, IoContext, Result};
use crate::event::ImageEvent;
use crate::manifest::{self, MAX_MANIFEST};
use crate::reference::Reference;
use crate::store::files;
use transport::Transport;

/// However much a broken transfer gains each time, it is not resumed more often than this.
const MAX_RESUMES: u32 = 64;
/// Bytes that must have come for a broken transfer to count as progress.
const PROGRESS: u64 = 1 << 20;

/// A connection to one repository of one registry.
pub(crate) struct Client<'a> {
    transport: Transport<'a>,
    reference: Reference,
    events: &'a (dyn Fn(ImageEvent) + Sync),
}

impl<'a> Client<'a> {
    pub(crate) fn new(
        reference: &Reference,
        options: &'a RegistryOptions,
        credentials: Option<&'a dyn Credentials>,
        events: &'a (dyn Fn(ImageEvent) + Sync),
    ) -> Result<Self> {
        Ok(Self {
            transport: Transport::new(reference, options, credentials)?,
            reference: reference.clone(),
            events,
        })
    }

    /// Fetches what the reference's digest, else its tag, names.
    pub(crate) fn manifest(&self) -> Result<Fetched> {
        match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => self.manifest_named(&digest.to_string(), Some(digest)),
            (None, Some(tag)) => self.manifest_named(tag, None),
            (None, None) => self.manifest_named("latest", None),
        }
    }

    /// Fetches the manifest an index points to.
    pub(crate) fn manifest_by_digest(&self, digest: Digest) -> Result<Fetched> {
        self.manifest_named(&digest.to_string(), Some(digest))
    }

    fn manifest_named(&self, name: &str, expected: Option<Digest>) -> Result<Fetched> {
        let doing = format!("fetching the manifest of {}", self.reference);
        let path = format!("/v2/{}/manifests/{name}", self.reference.repository());
        let (bytes, content_type, declared) = self.retrying(&doing, |_| {
            let response = self.transport.get(&path, Some(manifest::ACCEPT), None)?;
            let response = self.expect(response, &doing, &[StatusCode::OK])?;
            let field = |name: &str| {
                let value = response.headers().get(name)?;
                value.to_str().ok().map(str::to_owned)
            };
            let content_type = field("content-type");
            let declared = field("docker-content-digest");
            let bytes = read_bounded(response, MAX_MANIFEST)?;
            if bytes.len() as u64 > MAX_MANIFEST {
                return Err(Failure::Final(ImageError::BadManifest {
                    what: format!("manifest of {}", self.reference),
                    reason: format!("it is larger than {MAX_MANIFEST} bytes"),
                }));
            }
            Ok((bytes, content_type, declared))
        })?;
        let digest = Digest::of(&bytes);
        // A header of another algorithm says nothing about this digest.
        let declared = declared.and_then(|text| text.parse::<Digest>().ok());
        if let Some(expected) = expected.or(declared)
            && expected != digest
        {
            return Err(ImageError::DigestMismatch {
                what: format!("the manifest of {}", self.reference),
                expected,
                actual: digest,
            });
        }
        let document =
            manifest::parse_as(&bytes, content_type.as_deref()).map_err(|error| match error {
                ImageError::BadManifest { what, reason } => ImageError::BadManifest {
                    what: format!("{what} of {}", self.reference),
                    reason,
                },
                other => other,
            })?;
        Ok(Fetched {
            bytes,
            digest,
            document,
        })
    }

    /// Downloads a blob into the new file `to`, resuming after broken connections, and syncs it.
    /// `what` names it in messages; `progress` hears how many bytes are there.
    pub(crate) fn blob(
        &self,
        digest: Digest,
        size: u64,
        what: &str,
        to: &Path,
        progress: &dyn Fn(u64),
        cancelled: &AtomicBool,
    ) -> Result<()> {
        let mut file = files::create_new(to)?;
        let mut download = Download {
            file: &mut file,
            to,
            hasher: Hasher::default(),
            have: 0,
            size,
            what,
        };
        let doing = format!("downloading {what}");
        let path = format!("/v2/{}/blobs/{digest}", self.reference.repository());
        let mut last = 0;
        self.retrying(&doing, |attempts| {
            if download.have >= last + PROGRESS {
                *attempts = 0;
            }
            last = download.have;
            let resume = (download.have > 0).then_some(download.have);
            let response = self.transport.get(&path, None, resume)?;
            let response = self.expect(
                response,
                &doing,
                &[
                    StatusCode::OK,
                    StatusCode::PARTIAL_CONTENT,
                    StatusCode::RANGE_NOT_SATISFIABLE,
                ],
            )?;
            download.receive(response, progress, cancelled)
        })?;
        let actual = download.hasher.finish();
        if actual != digest {
            return Err(ImageError::DigestMismatch {
                what: what.to_owned(),
                expected: digest,
                actual,
            });
        }
        file.sync_data().context("sync", to)
    }

    fn expect(
        &self,
        response: Response<ureq::Body>,
        doing: &str,
        good: &[StatusCode],
    ) -> std::result::Result<Response<ureq::Body>, Failure> {
        if good.contains(&response.status()) {
            Ok(response)
        } else {
            Err(self.transport.refusal(response, doing))
        }
    }

    /// Runs `attempt` until it succeeds, fails for good, or has failed too often in a row. It gets
    /// the count of failures so far and may clear it when it sees progress.
    fn retrying<T>(
        &self,
        doing: &str,
        mut attempt: impl FnMut(&mut u32) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut failures = 0;
        for total in 1.. {
            let (reason, wait) = match attempt(&mut failures) {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { reason, wait }) => (reason, wait),
            };
            failures += 1;
            if failures >= self.transport.options().attempts.max(1) || total >= MAX_RESUMES {
                return Err(ImageError::Connection {
                    registry: self.reference.registry().to_owned(),
                    doing: doing.to_owned(),
                    attempts: total,
                    reason,
                });
            }
            let delay = wait.unwrap_or_else(|| self.transport.options().delay_after(failures));
            (self.events)(ImageEvent::Retrying {
                doing: doing.to_owned(),
                reason,
                delay_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
            });
            std::thread::sleep(delay);
        }
        unreachable!("the loop above ends only by returning")
    }
}

/// A blob on its way into a file.
struct Download<'f> {
    file: &'f mut File,
    to: &'f Path,
    hasher: Hasher,
    have: u64,
    size: u64,
    what: &'f str,
}

impl Download<'_> {
    fn receive(
        &mut self,
        response: Response<ureq::Body>,
        progress: &dyn Fn(u64),
        cancelled: &AtomicBool,
    ) -> std::result::Result<(), Failure> {
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, self.have) => {}
            StatusCode::OK => self.restart()?,
            _ => {
                self.restart()?;
                return Err(Failure::passing("the registry did not resume where asked"));
            }
        }
        if let Some(length) = response.body().content_length()
            && self.have.saturating_add(length) != self.size
        {
            return Err(self.wrong_size(self.have.saturating_add(length)));
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0u8; 256 << 10];
        while self.have < self.size || self.size == 0 {
            if cancelled.load(Ordering::Relaxed) {
                return Err(Failure::Final(ImageError::Registry {
                    registry: String::new(),
                    doing: format!("downloading {}", self.what),
                    reason: "another download failed first".into(),
                }));
            }
            let count = match body.read(&mut buffer) {
                Ok(0) if self.size == 0 => return Ok(()),
                Ok(0) => {
                    return Err(Failure::passing(format!(
                        "the connection ended after {} of {} bytes",
                        self.have, self.size
                    )));
                }
                Ok(count) => count,
                Err(error) => return Err(Failure::passing(error.to_string())),
            };
            if self.have + count as u64 > self.size {
                return Err(self.wrong_size(self.have + count as u64));
            }
            self.file
                .write_all(&buffer[..count])
                .context("write", self.to)?;
            self.hasher.update(&buffer[..count]);
            self.have += count as u64;
            progress(self.have);
        }
        // Without a declared length, more may follow than was promised. With one, the connection
        // goes back to the pool only when its end has been seen.
        match body.read(&mut buffer[..1]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.wrong_size(self.have + 1)),
            // All bytes are here; how the connection ends does not matter.
            Err(_) => Ok(()),
        }
    }

    fn restart(&mut self) -> Result<()> {
        if self.have > 0 {
            self.file.set_len(0).context("truncate", self.to)?;
            self.file
                .seek(SeekFrom::Start(0))
                .context("rewind", self.to)?;
            self.hasher = Hasher::default();
            self.have = 0;
        }
        Ok(())
    }

    fn wrong_size(&self, actual: u64) -> Failure {
        Failure::Final(ImageError::SizeMismatch {
            what: self.what.to_owned(),
            expected: self.size,
            actual,
        })
    }
}

/// Whether a partial answer begins at byte `at` (`Content-Range: bytes 5-9/10`).
fn starts_at(response: &Response<ureq::Body>, at: u64) -> bool {
    response
        .headers()
        .get(header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().strip_prefix("bytes "))
        .and_then(|range| range.split_once('-'))
        .and_then(|(start, _)| start.trim().parse::<u64>().ok())
        == Some(at)
}

/// Reads a body up to one byte more than `limit`, so that the caller can tell too long from just right.
fn read_bounded(
    response: Response<ureq::Body>,
    limit: u64,
) -> std::result::Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    response
        .into_body()
        .into_reader()
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::passing(error.to_string()))?;
    Ok(bytes)
}

/// The wait before attempt `failures + 1`: doubling, bounded.
fn backoff(base: Duration, failures: u32) -> Duration {
    base.saturating_mul(1 << failures.saturating_sub(1).min(6))
        .min(Duration::from_secs(20))
}
