//! One blob on its way into a file: what is there already counts, what comes is hashed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ureq::http::{Response, StatusCode, header};

use super::transport::Failure;
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, IoContext, Result};

pub(crate) const BUFFER: usize = 256 << 10;

/// What is downloaded, and how it goes.
pub(crate) struct Blob<'b> {
    /// Its name.
    pub(crate) digest: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// What it is called in messages.
    pub(crate) what: &'b str,
    /// Where else it is, should the registry not have it.
    pub(crate) urls: &'b [String],
    /// Hears how many bytes are there.
    pub(crate) progress: &'b (dyn Fn(u64) + Sync),
    /// Set when another download failed, and this one is not wanted any more.
    pub(crate) cancelled: &'b AtomicBool,
}

/// A blob on its way into a file.
pub(super) struct Download<'b> {
    blob: &'b Blob<'b>,
    file: &'b File,
    path: &'b Path,
    hasher: Hasher,
    have: u64,
}

impl<'b> Download<'b> {
    /// Goes on with what an earlier attempt left in `file`.
    pub(super) fn resume(blob: &'b Blob<'b>, file: &'b File, path: &'b Path) -> Result<Self> {
        let mut download = Self {
            blob,
            file,
            path,
            hasher: Hasher::default(),
            have: 0,
        };
        let there = download.file.metadata().context("look at", path)?.len();
        if there > blob.size {
            download.restart()?;
            return Ok(download);
        }
        download
            .file
            .seek(SeekFrom::Start(0))
            .context("rewind", path)?;
        let mut buffer = vec![0u8; BUFFER];
        while download.have < there && !download.is_cancelled() {
            let count = download.file.read(&mut buffer).context("read", path)?;
            if count == 0 {
                break;
            }
            download.hasher.update(&buffer[..count]);
            download.have += count as u64;
        }
        Ok(download)
    }

    /// How many bytes are there.
    pub(super) fn have(&self) -> u64 {
        self.have
    }

    /// Whether all is there.
    pub(super) fn is_complete(&self) -> bool {
        self.have == self.blob.size
    }

    fn is_cancelled(&self) -> bool {
        self.blob.cancelled.load(Ordering::Relaxed)
    }

    /// Forgets what is there.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).context("truncate", self.path)?;
        self.file
            .seek(SeekFrom::Start(0))
            .context("rewind", self.path)?;
        self.hasher = Hasher::default();
        self.have = 0;
        Ok(())
    }

    /// Takes what a registry answered.
    pub(super) fn receive<R: Read>(
        &mut self,
        response: Response<ureq::Body>,
        body: impl FnOnce(Response<ureq::Body>) -> R,
    ) -> std::result::Result<(), Failure> {
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, self.have) => {}
            StatusCode::OK if self.have > 0 => self.restart()?,
            StatusCode::OK => {}
            _ => {
                self.restart()?;
                return Err(Failure::passing("the registry did not resume where asked"));
            }
        }
        let size = self.blob.size;
        // A part may end before the whole does (RFC 9110 §15.3.7); the next attempt asks for what follows.
        let may_be_short = response.status() == StatusCode::PARTIAL_CONTENT;
        if let Some(length) = response.body().content_length() {
            let end = self.have.saturating_add(length);
            if end > size || (end < size && !may_be_short) {
                return Err(self.wrong_size(end));
            }
        }
        let mut body = body(response);
        let mut buffer = vec![0u8; BUFFER];
        while self.have < size || size == 0 {
            if self.is_cancelled() {
                return Err(Failure::Final(ImageError::Registry {
                    registry: String::new(),
                    doing: format!("downloading {}", self.blob.what),
                    reason: "another download failed first".into(),
                }));
            }
            let count = match body.read(&mut buffer) {
                Ok(0) if size == 0 => return Ok(()),
                Ok(0) => {
                    return Err(Failure::passing(format!(
                        "the connection ended after {} of {size} bytes",
                        self.have
                    )));
                }
                Ok(count) => count,
                Err(error) => return Err(Failure::passing(error.to_string())),
            };
            if self.have + count as u64 > size {
                return Err(self.wrong_size(self.have + count as u64));
            }
            self.file
                .write_all(&buffer[..count])
                .context("write", self.path)?;
            self.hasher.update(&buffer[..count]);
            self.have += count as u64;
            (self.blob.progress)(self.have);
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

    /// Checks that this is what it is called, and makes it last.
    pub(super) fn finish(&mut self) -> Result<()> {
        let actual = std::mem::take(&mut self.hasher).finish();
        if actual != self.blob.digest {
            return Err(ImageError::DigestMismatch {
                what: self.blob.what.to_owned(),
                expected: self.blob.digest,
                actual,
            });
        }
        self.file.sync_data().context("sync", self.path)
    }

    fn wrong_size(&self, actual: u64) -> Failure {
        Failure::Final(ImageError::SizeMismatch {
            what: self.blob.what.to_owned(),
            expected: self.blob.size,
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
