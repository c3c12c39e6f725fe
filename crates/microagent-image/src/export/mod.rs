//! Images into files: OCI archives and layouts, what `docker load` reads, and the tar of a merged root.
//!
//! Manifests, configurations and layers leave as they came, byte for byte, and are held against their digests on
//! the way. The same images give the same bytes. Nothing has its name before it is complete.

mod archive;
mod disk;
mod output;
mod rootfs;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

pub use self::disk::RootDisk;

use crate::digest::Digest;
use crate::error::{ImageError, Result, clip};
use crate::event::ImageEvent;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{ImageRecord, ImageStore};

const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What images are written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportFormat {
    /// An OCI image layout in a tar file.
    #[default]
    OciArchive,
    /// What `docker load` reads, of any age: an OCI layout and a `manifest.json` in a tar file.
    DockerArchive,
    /// An OCI image layout, a directory.
    OciLayout,
    /// The root file system of one image: its layers merged, as one tar stream.
    RootfsTar,
}

impl ExportFormat {
    const NAMES: [(Self, &'static str); 4] = [
        (Self::OciArchive, "oci-archive"),
        (Self::DockerArchive, "docker-archive"),
        (Self::OciLayout, "oci-layout"),
        (Self::RootfsTar, "rootfs-tar"),
    ];
}

impl fmt::Display for ExportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(format, _)| format == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for ExportFormat {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::NAMES
            .iter()
            .find(|(_, name)| *name == text)
            .map(|(format, _)| *format)
            .ok_or_else(|| {
                format!(
                    "`{}` is no format; choose oci-archive, docker-archive, oci-layout or rootfs-tar",
                    clip(text)
                )
            })
    }
}

impl Serialize for ExportFormat {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How images are exported.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ExportOptions {
    /// What is written.
    pub format: ExportFormat,
    /// Which of the platforms an image was pulled for; the host's, else the only one, without.
    pub platform: Option<Platform>,
}

impl ExportOptions {
    /// Exports as `format`.
    #[must_use]
    pub fn new(format: ExportFormat) -> Self {
        Self {
            format,
            platform: None,
        }
    }

    /// Chooses the platform.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }
}

/// Where an export goes.
pub enum ExportTo<'w> {
    /// A file, replaced when all is written; or the directory of a layout, which must not be there yet.
    Path(&'w Path),
    /// A stream.
    Stream(&'w mut (dyn Write + Send)),
}

impl fmt::Debug for ExportTo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// As what.
    pub format: ExportFormat,
    /// Which images.
    pub images: Vec<ExportedImage>,
    /// Where it is; `None` for a stream.
    pub path: Option<PathBuf>,
    /// How many bytes were written.
    pub bytes: u64,
    /// The digest of the file or stream; `None` for a layout.
    pub sha256: Option<Digest>,
}

/// One of the exported images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportedImage {
    /// Its name.
    pub reference: Reference,
    /// The digest of its manifest.
    pub digest: Digest,
    /// What it was built for.
    pub platform: Platform,
}

impl ImageStore {
    /// Writes images to a file, a directory or a stream. `names` are references, digests or unique prefixes of
    /// digests; a root file system is that of one image.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] and [`ImageError::Ambiguous`] for a name, [`ImageError::CannotExport`] where the
    /// format does not hold what was asked for, [`ImageError::Damaged`] where the store does not hold what it
    /// should, [`ImageError::NoSpace`] and [`ImageError::Io`] for where it goes.
    pub fn export(
        &self,
        names: &[String],
        options: &ExportOptions,
        to: ExportTo<'_>,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Exported> {
        // While it lives, nothing of the store is reclaimed.
        let _transaction = self.begin()?;
        let mut records: Vec<ImageRecord> = Vec::new();
        for name in names {
            let record = self.select(name, options.platform.as_ref())?;
            let is_there = |other: &ImageRecord| {
                (&other.reference, &other.platform) == (&record.reference, &record.platform)
            };
            if !records.iter().any(is_there) {
                records.push(record);
            }
        }
        let path = match &to {
            ExportTo::Path(path) => Some((*path).to_owned()),
            ExportTo::Stream(_) => None,
        };
        let mut told = Told::new(events);
        let (bytes, sha256) = match (options.format, &records[..]) {
            (_, []) => {
                return Err(ImageError::CannotExport {
                    what: "nothing".into(),
                    reason: "name an image".into(),
                });
            }
            (ExportFormat::RootfsTar, [record]) => self.export_rootfs(record, to, &mut told)?,
            (ExportFormat::RootfsTar, _) => {
                return Err(ImageError::CannotExport {
                    what: format!("a root file system of {} images", records.len()),
                    reason: "it is that of one; export them one by one, or as an oci-archive"
                        .into(),
                });
            }
            (ExportFormat::OciLayout, records) => match to {
                ExportTo::Path(directory) => {
                    (self.export_layout(records, directory, &mut told)?, None)
                }
                ExportTo::Stream(_) => {
                    return Err(ImageError::CannotExport {
                        what: "an OCI layout".into(),
                        reason: "it is a directory, which is no stream; choose oci-archive".into(),
                    });
                }
            },
            (format, records) => {
                let with_docker = format == ExportFormat::DockerArchive;
                self.export_archive(records, with_docker, to, &mut told)?
            }
        };
        told.last(bytes);
        Ok(Exported {
            format: options.format,
            images: records
                .into_iter()
                .map(|record| ExportedImage {
                    reference: record.reference,
                    digest: record.digest,
                    platform: record.platform,
                })
                .collect(),
            path,
            bytes,
            sha256,
        })
    }
}

/// Tells of progress, but not too often.
struct Told<'e> {
    events: &'e (dyn Fn(ImageEvent) + Sync),
    at: Instant,
    total: Option<u64>,
}

impl<'e> Told<'e> {
    fn new(events: &'e (dyn Fn(ImageEvent) + Sync)) -> Self {
        Self {
            events,
            at: Instant::now(),
            total: None,
        }
    }

    fn tell(&mut self, bytes: u64) {
        if self.at.elapsed() >= PROGRESS_EVERY {
            self.at = Instant::now();
            self.last(bytes);
        }
    }

    fn last(&self, bytes: u64) {
        (self.events)(ImageEvent::Exporting {
            bytes,
            total: self.total.map(|total| total.max(bytes)),
        });
    }
}
