//! The repository's files: over HTTP, or in a directory of this host.

use std::fs::File;
use std::future::ready as now;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_io::AsyncRead;
use tuf::metadata::{MetadataPath, MetadataVersion, TargetPath};
use tuf::pouf::Pouf1;
use tuf::repository::RepositoryProvider;

use crate::error::{KernelError, Result};

/// Most files that are asked for: roots that follow each other, three lists, one kernel.
const MAX_FILES: usize = 256;
/// Largest list that is read; what a list says of the next one's length is optional, and checked besides.
const MAX_METADATA: u64 = 8 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server may say nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// How long one file may take.
const FILE_TIMEOUT: Duration = Duration::from_secs(1800);
const MAX_REDIRECTS: u32 = 5;

type Answer<'a> =
    Pin<Box<dyn Future<Output = tuf::Result<Box<dyn AsyncRead + Send + Unpin + 'a>>> + Send + 'a>>;

/// Where the files come from.
pub(super) struct Remote<'a> {
    url: &'a str,
    place: Place,
    asked: AtomicUsize,
    /// Why a file could not be had, in our words: the client has none for it.
    failure: Mutex<Option<KernelError>>,
}

enum Place {
    Directory(PathBuf),
    Server(ureq::Agent),
}

impl<'a> Remote<'a> {
    pub(super) fn new(url: &'a str) -> Result<Self> {
        let place = if let Some(path) = url.strip_prefix("file://") {
            if !Path::new(path).is_absolute() {
                return Err(KernelError::InvalidRepository {
                    url: url.to_owned(),
                });
            }
            Place::Directory(path.into())
        } else if url.starts_with("https://") || url.starts_with("http://") {
            Place::Server(agent())
        } else {
            return Err(KernelError::InvalidRepository {
                url: url.to_owned(),
            });
        };
        Ok(Self {
            url,
            place,
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

    /// A file, `None` if there is none. Names come from the client, which lets none lead elsewhere.
    fn open(&self, components: &[String]) -> tuf::Result<Option<Box<dyn Read + Send>>> {
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
                let answer = agent
                    .get(format!("{}/{name}", self.url))
                    .call()
                    .map_err(|error| failed(error.to_string()))?;
                match answer.status().as_u16() {
                    200 => Ok(Some(Box::new(answer.into_body().into_reader()))),
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
        let opened = self.open(&path.components::<Pouf1>(version));
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
        let opened = self.open(&path.components());
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

fn agent() -> ureq::Agent {
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
        .timeout_per_read(Some(STALL_TIMEOUT))
        .timeout_per_call(Some(FILE_TIMEOUT))
        .build()
        .new_agent()
}
