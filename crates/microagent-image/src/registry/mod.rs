//! The distribution protocol, client side: manifests and blobs of one repository, verified as they come.
//!
//! Knows nothing of the store: it writes where it is told and says what it did.

mod challenge;
mod check;
mod credential;
mod download;
mod options;
mod proxy;
mod retry;
mod scope;
mod suggest;
mod transport;
mod upload;

use std::fs::File;
use std::path::Path;

use ureq::http::{Response, StatusCode, header};

pub use check::{LoginCheck, check_login};
pub use credential::{Credential, Credentials, Secret};
pub(crate) use download::{BUFFER as DOWNLOAD_BUFFER, Blob};
pub use options::{ClientCertificate, HostOptions, RegistryOptions};
pub use proxy::ProxyOptions;
pub use scope::RegistryScope;
pub(crate) use upload::{Outcome, Upload};

use crate::choose::Fetched;
use crate::digest::Digest;
use crate::error::{ImageError, Result, clip};
use crate::event::ImageEvent;
use crate::manifest::{self, MAX_MANIFEST};
use crate::reference::Reference;
use crate::signature::MAX_STATEMENT;
use download::Download;
use retry::LONGEST_WAIT;
use transport::{Ask, Failure, Passing, PassingKind, Transport, Verb};

/// However much a broken transfer gains each time, it is not resumed more often than this.
const MAX_RESUMES: u32 = 64;
/// Bytes that must have come for a broken transfer to count as progress.
const PROGRESS: u64 = 1 << 20;

/// A connection to the repository of an image, at its registry or at a mirror of that.
pub(crate) struct Client<'a> {
    transport: Transport<'a>,
    reference: Reference,
    /// Where the image's repository is.
    repository: String,
}

impl<'a> Client<'a> {
    /// A connection to `at`, where the content of `reference` is expected.
    pub(crate) fn new(
        reference: &Reference,
        at: &RegistryScope,
        options: &'a RegistryOptions,
        credentials: Option<&'a dyn Credentials>,
        events: &'a (dyn Fn(ImageEvent) + Sync),
    ) -> Result<Self> {
        Ok(Self {
            transport: Transport::new(
                at.clone(),
                reference.to_string(),
                options,
                credentials,
                events,
            )?,
            reference: reference.clone(),
            repository: at.path().unwrap_or_default().to_owned(),
        })
    }

    /// The same for whoever sends content there; some of it may be in the repository `from` already.
    pub(crate) fn pushing(self, from: Option<String>) -> Self {
        Self {
            transport: self.transport.pushing(from),
            ..self
        }
    }

    /// Fetches what the reference's digest, else its tag, names.
    pub(crate) fn manifest(&self) -> Result<Fetched> {
        let found = self.manifest_named(&self.name(), self.reference.digest());
        match found {
            Err(ImageError::NotFound {
                image, registry, ..
            }) => Err(ImageError::NotFound {
                image,
                registry,
                hint: suggest::hint(&self.transport, &self.reference),
            }),
            other => other,
        }
    }

    /// Fetches the manifest an index points to.
    pub(crate) fn manifest_by_digest(&self, digest: Digest) -> Result<Fetched> {
        self.manifest_named(&digest.to_string(), Some(digest))
    }

    /// What the reference stands for now, without fetching it where the registry says so much.
    pub(crate) fn current_digest(&self) -> Result<Digest> {
        let doing = self.doing();
        let path = self.manifest_path(&self.name());
        let said = self.retrying(&doing, |_| {
            let ask = Ask {
                accept: Some(manifest::ACCEPT),
                verb: Verb::Head,
                ..Ask::default()
            };
            let response = self.transport.ask(&path, ask)?;
            if answers_no_head(response.status()) {
                return Ok(None);
            }
            let response = self.expect(response, &doing, &[StatusCode::OK])?;
            Ok(declared_digest(&response))
        })?;
        match said {
            Some(digest) => Ok(digest),
            None => Ok(self.manifest()?.digest),
        }
    }

    fn name(&self) -> String {
        match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => "latest".to_owned(),
        }
    }

    fn doing(&self) -> String {
        format!("fetching the manifest of {}", self.reference)
    }

    fn manifest_path(&self, name: &str) -> String {
        format!("/v2/{}/manifests/{name}", self.repository)
    }

    fn manifest_named(&self, name: &str, expected: Option<Digest>) -> Result<Fetched> {
        let (bytes, digest, content_type) = self.manifest_bytes(name, expected)?;
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

    /// The bytes of a manifest of any kind, its digest, and what the registry says it is.
    fn manifest_bytes(
        &self,
        name: &str,
        expected: Option<Digest>,
    ) -> Result<(Vec<u8>, Digest, Option<String>)> {
        let doing = self.doing();
        let path = self.manifest_path(name);
        let (bytes, content_type, declared) = self.retrying(&doing, |_| {
            let ask = Ask {
                accept: Some(manifest::ACCEPT),
                ..Ask::default()
            };
            let response = self.transport.ask(&path, ask)?;
            let response = self.expect(response, &doing, &[StatusCode::OK])?;
            if let Some(packed) = content_encoding(&response) {
                return Err(Failure::Final(ImageError::BadManifest {
                    what: format!("manifest of {}", self.reference),
                    reason: format!(
                        "it came with the content encoding `{packed}`, which was not asked for; whatever stands before the registry is not to change what it sends"
                    ),
                }));
            }
            let content_type = response
                .headers()
                .get("content-type")
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned);
            let declared = declared_digest(&response);
            let bytes = self.transport.bytes(response, MAX_MANIFEST)?;
            if bytes.len() as u64 > MAX_MANIFEST {
                return Err(Failure::Final(ImageError::BadManifest {
                    what: format!("manifest of {}", self.reference),
                    reason: format!("it is larger than {MAX_MANIFEST} bytes"),
                }));
            }
            Ok((bytes, content_type, declared))
        })?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = expected.or(declared)
            && expected != digest
        {
            return Err(ImageError::DigestMismatch {
                what: format!("the manifest of {}", self.reference),
                expected,
                actual: digest,
            });
        }
        Ok((bytes, digest, content_type))
    }

    /// The manifest under a tag for signatures; `None` if there is none.
    pub(crate) fn signatures(&self, tag: &str) -> Result<Option<Vec<u8>>> {
        match self.manifest_bytes(tag, None) {
            Ok((bytes, ..)) => Ok(Some(bytes)),
            Err(ImageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A small blob: what a signature is of.
    pub(crate) fn statement(&self, digest: Digest, size: u64) -> Result<Vec<u8>> {
        let what = format!("the signed statement of {}", self.reference);
        let doing = format!("downloading {what}");
        let path = format!("/v2/{}/blobs/{digest}", self.repository);
        let limit = size.min(MAX_STATEMENT);
        let bytes = self.retrying(&doing, |_| {
            let response = self.transport.ask(&path, Ask::default())?;
            let response = self.expect(response, &doing, &[StatusCode::OK])?;
            self.transport.bytes(response, limit)
        })?;
        let actual = Digest::of(&bytes);
        if actual == digest {
            Ok(bytes)
        } else {
            Err(ImageError::DigestMismatch {
                what,
                expected: digest,
                actual,
            })
        }
    }

    /// Downloads a blob into `file`, going on with what is there, after broken connections too, and
    /// syncs it. `path` names the file in messages.
    pub(crate) fn blob(&self, blob: &Blob<'_>, file: &File, path: &Path) -> Result<()> {
        let mut download = Download::resume(blob, file, path)?;
        let mut resumed = download.have() > 0;
        loop {
            self.fill(&mut download, blob)?;
            match download.finish() {
                // What was left of an earlier attempt may have been damaged since.
                Err(ImageError::DigestMismatch { .. }) if resumed => {
                    resumed = false;
                    download.restart()?;
                }
                done => return done,
            }
        }
    }

    fn fill(&self, download: &mut Download<'_>, blob: &Blob<'_>) -> Result<()> {
        if download.is_complete() && blob.size > 0 {
            (blob.progress)(blob.size);
            return Ok(());
        }
        let doing = format!("downloading {}", blob.what);
        let path = format!("/v2/{}/blobs/{}", self.repository, blob.digest);
        let mut last = download.have();
        self.retrying(&doing, |attempts| {
            if download.have() >= last + PROGRESS {
                *attempts = 0;
            }
            last = download.have();
            let ask = Ask {
                from: (download.have() > 0).then_some(download.have()),
                ..Ask::default()
            };
            let mut response = self.transport.ask(&path, ask)?;
            if response.status() == StatusCode::NOT_FOUND
                && let Some(found) = self.elsewhere(blob, ask)?
            {
                response = found;
            }
            let response = self.expect(
                response,
                &doing,
                &[
                    StatusCode::OK,
                    StatusCode::PARTIAL_CONTENT,
                    StatusCode::RANGE_NOT_SATISFIABLE,
                ],
            )?;
            download.receive(response, |response| self.transport.body(response))
        })
    }

    /// A blob that registries may not hand on, from where its maker put it; the last failure if none has it.
    fn elsewhere(
        &self,
        blob: &Blob<'_>,
        ask: Ask<'_>,
    ) -> std::result::Result<Option<Response<ureq::Body>>, Failure> {
        let mut last = Ok(None);
        for url in blob.urls {
            last = self.transport.get_elsewhere(url, ask).map(Some);
            if let Ok(Some(response)) = &last
                && response.status().is_success()
            {
                break;
            }
        }
        last
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

    fn retrying<T>(
        &self,
        doing: &str,
        attempt: impl FnMut(&mut u32) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        retrying(&self.transport, doing, attempt)
    }
}

/// Runs `attempt` until it succeeds, fails for good, or has failed too often in a row. It gets
/// the count of failures so far and may clear it when it sees progress.
fn retrying<T>(
    transport: &Transport<'_>,
    doing: &str,
    mut attempt: impl FnMut(&mut u32) -> std::result::Result<T, Failure>,
) -> Result<T> {
    let mut failures = 0;
    for total in 1.. {
        let failed = match attempt(&mut failures) {
            Ok(value) => return Ok(value),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(failed)) => failed,
        };
        failures += 1;
        let too_long = failed.wait.is_some_and(|wait| wait > LONGEST_WAIT);
        let attempts = transport.options().attempts.max(1);
        if too_long || failures >= attempts || total >= MAX_RESUMES {
            return Err(given_up(transport, doing, total, failed));
        }
        // Whoever says "at once" is asked less and less often all the same.
        let own = transport.options().delay_after(failures);
        let delay = failed.wait.map_or(own, |wait| wait.max(own));
        transport.tell(ImageEvent::Retrying {
            doing: doing.to_owned(),
            reason: failed.reason,
            delay_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
        });
        std::thread::sleep(delay);
    }
    unreachable!("the loop above ends only by returning")
}

fn given_up(transport: &Transport<'_>, doing: &str, attempts: u32, failed: Passing) -> ImageError {
    let registry = transport.registry().to_owned();
    let Passing { reason, wait, kind } = failed;
    match kind {
        PassingKind::Limited => ImageError::RateLimited {
            registry,
            reason,
            wait,
        },
        PassingKind::LookUp(host) => transport.no_such_host(&host, &reason),
        PassingKind::Connection => ImageError::Connection {
            registry,
            doing: doing.to_owned(),
            attempts,
            reason,
        },
    }
}

/// Whether a server does not know how to answer with headers only.
fn answers_no_head(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
    )
}

/// How an answer is packed, if it is.
fn content_encoding(response: &Response<ureq::Body>) -> Option<String> {
    let value = response.headers().get(header::CONTENT_ENCODING)?;
    let value = value.to_str().ok()?.trim();
    (!value.is_empty() && !value.eq_ignore_ascii_case("identity")).then(|| clip(value))
}

/// What a registry says the digest of its answer is; one of another algorithm says nothing.
fn declared_digest(response: &Response<ureq::Body>) -> Option<Digest> {
    let value = response.headers().get("docker-content-digest")?;
    value.to_str().ok()?.parse().ok()
}
