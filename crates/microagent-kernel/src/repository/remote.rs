//! The repository's files: over HTTP, or in a directory of this host.

use std::fs::File;
use std::future::ready as now;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_io::AsyncRead;
use tuf::metadata::{MetadataPath, MetadataVersion, TargetPath};
use tuf::pouf::Pouf1;
use tuf::repository::RepositoryProvider;

use super::patience::{Paced, Patience, too_late};
use crate::error::{KernelError, Result};

/// Most files that are asked for: roots that follow each other, three lists, one kernel.
const MAX_FILES: usize = 256;
/// Largest list that is read; what a list says of the next one's length is optional, and checked besides.
const MAX_METADATA: u64 = 8 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: u32 = 5;

type Answer<'a> =
    Pin<Box<dyn Future<Output = tuf::Result<Box<dyn AsyncRead + Send + Unpin + 'a>>> + Send + 'a>>;

/// Where the files come from.
pub(super) struct Remote<'a> {
    url: &'a str,
    place: Place,
    patience: Patience,
    /// When all lists have to be there.
    lists: Instant,
    asked: AtomicUsize,
    /// Why a file could not be had, in our words: the client has none for it.
    failure: Mutex<Option<KernelError>>,
}

enum Place {
    Directory(PathBuf),
    Server(ureq::Agent),
}

impl<'a> Remote<'a> {
    pub(super) fn new(url: &'a str, patience: Patience) -> Result<Self> {
        let place = if let Some(path) = url.strip_prefix("file://") {
            if !Path::new(path).is_absolute() {
                return Err(KernelError::InvalidRepository {
                    url: url.to_owned(),
                });
            }
            Place::Directory(path.into())
        } else if url.starts_with("https://") || url.starts_with("http://") {
            Place::Server(agent(patience))
        } else {
            return Err(KernelError::InvalidRepository {
                url: url.to_owned(),
            });
        };
        Ok(Self {
            url,
            place,
            patience,
            lists: Instant::now() + patience.lists,
            asked: AtomicUsize::new(0),
            failure: Mutex::default(),
        })
    }

    /// Takes the reason why a file could not be had.
    pub(super) fn failure(&self) -> Option<KernelError> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// A file that has to be there at `deadline`, `None` if there is none. Names come from the client, which lets
    /// none lead elsewhere.
    fn open(
        &self,
        components: &[String],
        deadline: Instant,
    ) -> tuf::Result<Option<Box<dyn Read + Send>>> {
        let name = components.join("/");
        let failed = |reason: String| {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            *failure = Some(KernelError::RepositoryUnreachable {
                url: format!("{}/{name}", self.url),
                reason: reason.clone(),
            });
            tuf::Error::Opaque(reason)
        };
        if self.asked.fetch_add(1, Ordering::Relaxed) >= MAX_FILES {
            return Err(failed(format!("more than {MAX_FILES} files were needed")));
        }
        match &self.place {
            Place::Directory(directory) => match File::open(directory.join(&name)) {
                Ok(file) => Ok(Some(Box::new(file))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(failed(error.to_string())),
            },
            Place::Server(agent) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(failed(too_late().to_string()));
                }
                let answer = agent
                    .get(format!("{}/{name}", self.url))
                    .config()
                    .timeout_per_call(Some(left))
                    .build()
                    .call()
                    .map_err(|error| failed(error.to_string()))?;
                match answer.status().as_u16() {
                    200 => {
                        let body = answer.into_body().into_reader();
                        Ok(Some(Box::new(Paced::new(body, self.patience, deadline))))
                    }
                    // Object stores say 403 where nobody may list what there is.
                    403 | 404 | 410 => Ok(None),
                    status => Err(failed(format!("the server answered {status}"))),
                }
            }
        }
    }
}

impl RepositoryProvider<Pouf1> for Remote<'_> {
    fn fetch_metadata<'a>(&'a self, path: &MetadataPath, version: MetadataVersion) -> Answer<'a> {
        let opened = self.open(&path.components::<Pouf1>(version), self.lists);
        let path = path.clone();
        Box::pin(now(opened.and_then(|file| {
            let file = file.ok_or(tuf::Error::MetadataNotFound { path, version })?;
            let file = Bounded {
                file,
                left: MAX_METADATA,
            };
            Ok(Box::new(Blocking(Box::new(file))) as Box<dyn AsyncRead + Send + Unpin>)
        })))
    }

    fn fetch_target<'a>(&'a self, path: &TargetPath) -> Answer<'a> {
        let opened = self.open(&path.components(), Instant::now() + self.patience.kernel);
        let path = path.clone();
        Box::pin(now(opened.and_then(|file| {
            let file = file.ok_or(tuf::Error::TargetNotFound(path))?;
            Ok(Box::new(Blocking(file)) as Box<dyn AsyncRead + Send + Unpin>)
        })))
    }
}

/// A file that may not be longer than that.
struct Bounded<R> {
    file: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(read)
    }
}

/// A reader that is always ready, because it blocks.
struct Blocking(Box<dyn Read + Send>);

impl AsyncRead for Blocking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.read(buffer))
    }
}

fn agent(patience: Patience) -> ureq::Agent {
    use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    ureq::Agent::config_builder()
        .tls_config(tls)
        // Set even though there is none: the default would read the environment.
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(MAX_REDIRECTS)
        .user_agent(concat!("microagent/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(patience.silence.saturating_mul(2)))
        .timeout_per_read(Some(patience.silence))
        .build()
        .new_agent()
}
