//! Content on its way to a registry: looked for first, taken over from another repository of the same registry where
//! it is there, sent otherwise; and a broken transfer goes on where the registry says it ended.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ureq::Body;
use ureq::http::{Response, StatusCode, Uri, header};

use super::transport::{Ask, Failure, Sent, Verb};
use super::{Client, PROGRESS, answers_no_head, declared_digest};
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, IoContext, Result};

const BYTES: &str = "application/octet-stream";
/// An upload that the registry forgot is begun again, but not for ever.
const MAX_BEGINNINGS: u32 = 8;

/// What is sent, and how it goes.
pub(crate) struct Upload<'b> {
    /// Its name.
    pub(crate) digest: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// The file it is in.
    pub(crate) path: &'b Path,
    /// What it is called in messages.
    pub(crate) what: &'b str,
    /// Hears how many bytes are there.
    pub(crate) progress: &'b (dyn Fn(u64) + Sync),
    /// Set when another upload failed, and this one is not wanted any more.
    pub(crate) cancelled: &'b AtomicBool,
}

/// How a blob came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was there.
    Existed,
    /// The registry took it over from another repository of its own.
    Mounted,
    /// It was sent.
    Sent,
}

/// An upload under way: where it goes on, and how much of it is there.
struct Session {
    url: Uri,
    have: u64,
}

impl Client<'_> {
    /// Sees to it that the registry has a blob. It may be in the repository `from` of the same registry.
    pub(crate) fn send_blob(&self, upload: &Upload<'_>, from: Option<&str>) -> Result<Outcome> {
        if self.has_blob(upload.digest, upload.what)? {
            return Ok(Outcome::Existed);
        }
        let doing = format!("uploading {}", upload.what);
        let mut session: Option<Session> = None;
        let mut beginnings = 0;
        let mut last = 0;
        self.retrying(&doing, |attempts| {
            let found = match session.take() {
                Some(known) => self.resume(&known.url)?,
                None => None,
            };
            let mut current = match found {
                Some(found) => found,
                None => {
                    beginnings += 1;
                    if beginnings > MAX_BEGINNINGS {
                        return Err(Failure::Final(ImageError::Registry {
                            registry: self.transport.registry().to_owned(),
                            doing: doing.clone(),
                            reason: format!("it lost the upload {MAX_BEGINNINGS} times"),
                        }));
                    }
                    match self.begin(upload, from.filter(|_| beginnings == 1), &doing)? {
                        Some(begun) => begun,
                        None => return Ok(Outcome::Mounted),
                    }
                }
            };
            if current.have >= last + PROGRESS {
                *attempts = 0;
            }
            last = current.have;
            if current.have < upload.size {
                match self.send(upload, &current, &doing) {
                    Ok(next) => current = next,
                    Err(failure) => {
                        session = Some(current);
                        return Err(failure);
                    }
                }
            }
            match self.complete(upload, &current, &doing) {
                Ok(()) => Ok(Outcome::Sent),
                Err(failure) => {
                    session = Some(current);
                    Err(failure)
                }
            }
        })
    }

    fn has_blob(&self, digest: Digest, what: &str) -> Result<bool> {
        let doing = format!("looking for {what}");
        let path = format!("/v2/{}/blobs/{digest}", self.repository);
        self.retrying(&doing, |_| {
            let ask = Ask {
                verb: Verb::Head,
                ..Ask::default()
            };
            let response = self.transport.ask(&path, ask)?;
            match response.status() {
                StatusCode::OK => Ok(true),
                StatusCode::NOT_FOUND => Ok(false),
                // Then it is sent, and the registry says what it thinks of that.
                status if answers_no_head(status) => Ok(false),
                _ => Err(self.refused(response, &doing)),
            }
        })
    }

    /// Begins an upload; `None` if the blob was taken over from `from` instead.
    fn begin(
        &self,
        upload: &Upload<'_>,
        from: Option<&str>,
        doing: &str,
    ) -> std::result::Result<Option<Session>, Failure> {
        let mut path = format!("/v2/{}/blobs/uploads/", self.repository);
        if let Some(from) = from {
            // A repository's name has nothing in it that a query would have to hide.
            path.push_str(&format!("?mount={}&from={from}", upload.digest));
        }
        let ask = Ask {
            verb: Verb::Post,
            ..Ask::default()
        };
        let response = self.transport.ask(&path, ask)?;
        match response.status() {
            StatusCode::CREATED if from.is_some() => Ok(None),
            StatusCode::ACCEPTED => Ok(Some(Session {
                url: self.transport.upload_location(&path, &response)?,
                have: 0,
            })),
            _ => Err(self.refused(response, doing)),
        }
    }

    /// How far an upload came; `None` if it is to be begun again.
    fn resume(&self, url: &Uri) -> std::result::Result<Option<Session>, Failure> {
        let response = self.transport.ask_at(&url.to_string(), Ask::default())?;
        if response.status() != StatusCode::NO_CONTENT {
            return Ok(None);
        }
        Ok(match have(&response) {
            // What is there, if only one byte, cannot be told from nothing.
            None | Some(0..=1) => None,
            Some(have) => Some(Session {
                url: self
                    .transport
                    .upload_location(&url.to_string(), &response)?,
                have,
            }),
        })
    }

    /// Sends the rest of a blob.
    fn send(
        &self,
        upload: &Upload<'_>,
        session: &Session,
        doing: &str,
    ) -> std::result::Result<Session, Failure> {
        let digest = Cell::new(None);
        let open = || -> Result<Box<dyn Read + '_>> {
            Ok(Box::new(Outgoing::open(upload, session.have, &digest)?))
        };
        let sent = Sent {
            content_type: BYTES,
            length: upload.size - session.have,
            at: (session.have > 0).then_some(session.have),
            open: &open,
        };
        let ask = Ask {
            verb: Verb::Patch,
            sent: Some(sent),
            ..Ask::default()
        };
        let response = self.transport.ask_at(&session.url.to_string(), ask)?;
        if digest.get().is_some_and(|actual| actual != upload.digest) {
            return Err(Failure::Final(ImageError::Damaged {
                path: upload.path.to_owned(),
                reason: "does not hash to its name".into(),
                remedy: "Remove the image and pull or import it again.",
            }));
        }
        if !matches!(
            response.status(),
            StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT
        ) {
            return Err(self.refused(response, doing));
        }
        if let Some(have) = have(&response)
            && have != upload.size
        {
            return Err(Failure::passing(format!(
                "the registry has {have} of {} bytes",
                upload.size
            )));
        }
        (upload.progress)(upload.size);
        Ok(Session {
            url: self
                .transport
                .upload_location(&session.url.to_string(), &response)?,
            have: upload.size,
        })
    }

    /// Gives what was sent its name.
    fn complete(
        &self,
        upload: &Upload<'_>,
        session: &Session,
        doing: &str,
    ) -> std::result::Result<(), Failure> {
        let url = session.url.to_string();
        let separator = if session.url.query().is_some() {
            '&'
        } else {
            '?'
        };
        let ask = Ask {
            verb: Verb::Put,
            ..Ask::default()
        };
        let url = format!("{url}{separator}digest={}", upload.digest);
        let response = self.transport.ask_at(&url, ask)?;
        match response.status() {
            StatusCode::CREATED => Ok(()),
            _ => Err(self.refused(response, doing)),
        }
    }

    /// Puts a manifest under a tag or its digest, and holds what the registry says of it against what was sent.
    pub(crate) fn send_manifest(&self, media_type: &str, bytes: &[u8]) -> Result<()> {
        let doing = format!("publishing {}", self.reference);
        let path = self.manifest_path(&self.name());
        let expected = Digest::of(bytes);
        let said = self.retrying(&doing, |_| {
            let open = || -> Result<Box<dyn Read + '_>> { Ok(Box::new(bytes)) };
            let ask = Ask {
                verb: Verb::Put,
                sent: Some(Sent {
                    content_type: media_type,
                    length: bytes.len() as u64,
                    at: None,
                    open: &open,
                }),
                ..Ask::default()
            };
            let response = self.transport.ask(&path, ask)?;
            match response.status() {
                StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED => {
                    Ok(declared_digest(&response))
                }
                _ => Err(self.refused(response, &doing)),
            }
        })?;
        let actual = match said {
            Some(digest) => digest,
            None => self.current_digest()?,
        };
        if actual == expected {
            return Ok(());
        }
        Err(ImageError::DigestMismatch {
            what: format!("the manifest that {} stored", self.transport.registry()),
            expected,
            actual,
        })
    }

    /// What an answer that nobody wanted means to whoever sends.
    fn refused(&self, response: Response<Body>, doing: &str) -> Failure {
        let status = response.status();
        match (status, self.transport.refusal(response, doing)) {
            (
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED,
                Failure::Final(ImageError::Registry {
                    registry, reason, ..
                }),
            ) => Failure::Final(ImageError::TakesNoImages {
                image: self.reference.to_string(),
                registry,
                reason,
            }),
            (_, other) => other,
        }
    }
}

/// A blob as it leaves: counted, and hashed if it leaves as a whole.
struct Outgoing<'b> {
    file: File,
    upload: &'b Upload<'b>,
    have: u64,
    hasher: Option<Hasher>,
    digest: &'b Cell<Option<Digest>>,
}

impl<'b> Outgoing<'b> {
    fn open(upload: &'b Upload<'b>, from: u64, digest: &'b Cell<Option<Digest>>) -> Result<Self> {
        if upload.cancelled.load(Ordering::Relaxed) {
            return Err(ImageError::Registry {
                registry: String::new(),
                doing: format!("uploading {}", upload.what),
                reason: "another upload failed first".into(),
            });
        }
        let mut file = File::open(upload.path).context("open", upload.path)?;
        file.seek(SeekFrom::Start(from))
            .context("read", upload.path)?;
        digest.set(None);
        Ok(Self {
            file,
            upload,
            have: from,
            hasher: (from == 0).then(Hasher::default),
            digest,
        })
    }
}

impl Read for Outgoing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.upload.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("another upload failed first"));
        }
        let count = self.file.read(buffer)?;
        self.have += count as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        if self.have == self.upload.size
            && let Some(hasher) = self.hasher.take()
        {
            self.digest.set(Some(hasher.finish()));
        } else if self.have < self.upload.size {
            (self.upload.progress)(self.have);
        }
        Ok(count)
    }
}

/// How many bytes of an upload are there (`Range: 0-99`).
fn have(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get(header::RANGE)?.to_str().ok()?;
    let range = range.trim();
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let end: u64 = range.strip_prefix("0-")?.parse().ok()?;
    end.checked_add(1)
}
