//! OCI layouts, in directories and in tar files; with the `manifest.json` that older Dockers read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use microagent_files::tar::{Entry, EntryKind, TarWriter};
use microagent_host::fs::set_mode;
use serde::Serialize;

use super::output::{Output, failure, no_space};
use super::{ExportTo, Told};
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, IoContext, Result};
use crate::manifest::{Descriptor, DescriptorPlatform, OCI_INDEX};
use crate::store::files::{self, parent_of, sync_dir};
use crate::store::{ImageRecord, ImageStore, LAYOUT};

/// An image's name where tools of the OCI look for it, and where containerd and Docker do.
const NAMES: [&str; 2] = [
    "org.opencontainers.image.ref.name",
    "io.containerd.image.name",
];
const PIECE: usize = 256 << 10;

/// What an export of images consists of.
struct Plan {
    /// Small files of the layout, in their order.
    documents: Vec<(&'static str, Vec<u8>)>,
    /// What the images are made of, and how large it is.
    blobs: BTreeMap<Digest, u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

/// What `docker load` reads.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

impl ImageStore {
    fn plan(&self, records: &[ImageRecord], with_docker: bool) -> Result<Plan> {
        let mut blobs = BTreeMap::new();
        let mut manifests = Vec::new();
        let mut saved: Vec<(Digest, Saved)> = Vec::new();
        for record in records {
            let manifest = self.manifest(record.digest)?;
            let path = self.blob_path(record.digest);
            let size = fs::metadata(&path).context("look at", &path)?.len();
            blobs.insert(record.digest, size);
            blobs.insert(manifest.config.digest, manifest.config.size);
            blobs.extend(
                manifest
                    .layers
                    .iter()
                    .map(|layer| (layer.digest, layer.size)),
            );
            // A digest is no name that a tool could give an image.
            let named = record.reference.digest().is_none();
            let canonical = record.reference.canonical();
            manifests.push(Descriptor {
                media_type: manifest.media_type.to_owned(),
                digest: record.digest,
                size,
                platform: Some(DescriptorPlatform {
                    architecture: record.platform.architecture.clone(),
                    os: record.platform.os.clone(),
                    variant: record.platform.variant.clone(),
                }),
                annotations: named.then(|| {
                    NAMES
                        .iter()
                        .map(|key| ((*key).to_owned(), canonical.clone()))
                        .collect()
                }),
                artifact_type: None,
                urls: None,
            });
            let tag = named.then(|| record.reference.familiar());
            match saved
                .iter_mut()
                .find(|(digest, _)| *digest == record.digest)
            {
                Some((_, same)) => same.repo_tags.extend(tag),
                None => saved.push((
                    record.digest,
                    Saved {
                        config: blob_name(manifest.config.digest),
                        repo_tags: tag.into_iter().collect(),
                        layers: manifest
                            .layers
                            .iter()
                            .map(|layer| blob_name(layer.digest))
                            .collect(),
                    },
                )),
            }
        }
        let index = Index {
            schema_version: 2,
            media_type: OCI_INDEX,
            manifests,
        };
        // Strings, numbers, lists and maps with string keys: there is nothing here JSON cannot hold.
        let mut documents = vec![
            ("oci-layout", LAYOUT.to_vec()),
            ("index.json", serde_json::to_vec(&index).unwrap_or_default()),
        ];
        if with_docker {
            let saved: Vec<Saved> = saved.into_iter().map(|(_, saved)| saved).collect();
            documents.push((
                "manifest.json",
                serde_json::to_vec(&saved).unwrap_or_default(),
            ));
        }
        Ok(Plan { documents, blobs })
    }

    pub(super) fn export_archive(
        &self,
        records: &[ImageRecord],
        with_docker: bool,
        to: ExportTo<'_>,
        told: &mut Told<'_>,
    ) -> Result<(u64, Option<Digest>)> {
        let plan = self.plan(records, with_docker)?;
        told.total = Some(plan.archived_bytes());
        let output = Output::create(to)?;
        let mut archive = Archive {
            writer: TarWriter::new(output),
        };
        for (name, content) in &plan.documents {
            archive.begin(name, EntryKind::File, content.len() as u64)?;
            archive.add(content)?;
        }
        for folder in ["blobs", "blobs/sha256"] {
            archive.begin(folder, EntryKind::Directory, 0)?;
        }
        for (digest, size) in &plan.blobs {
            archive.begin(&blob_name(*digest), EntryKind::File, *size)?;
            self.each_piece(*digest, *size, &mut |piece| {
                archive.add(piece)?;
                told.tell(archive.writer.get_ref().bytes());
                Ok(())
            })?;
        }
        archive.finish()
    }

    pub(super) fn export_layout(
        &self,
        records: &[ImageRecord],
        directory: &Path,
        told: &mut Told<'_>,
    ) -> Result<u64> {
        let is_free = match fs::read_dir(directory) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if !is_free {
            return Err(ImageError::CannotExport {
                what: directory.display().to_string(),
                reason: "there is something already; name a directory that is not there yet".into(),
            });
        }
        let plan = self.plan(records, false)?;
        let total = plan.bytes();
        told.total = Some(total);
        let parent = parent_of(directory);
        let mut name = tempfile::Builder::new();
        name.prefix(".microagent-export-").suffix(".partial");
        #[cfg(unix)]
        name.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let temporary = name
            .tempdir_in(parent)
            .context("create a directory in", parent)?;
        let root = temporary.path();
        let blobs = root.join("blobs/sha256");
        fs::create_dir_all(&blobs).context("create", &blobs)?;
        let mut written = 0;
        for (name, content) in &plan.documents {
            let path = root.join(name);
            let mut file = new_file(&path)?;
            file.write_all(content)
                .and_then(|()| file.sync_all())
                .map_err(|error| no_space(error, directory))?;
            written += content.len() as u64;
        }
        for (digest, size) in &plan.blobs {
            let path = blobs.join(digest.hex());
            let mut file = new_file(&path)?;
            self.each_piece(*digest, *size, &mut |piece| {
                file.write_all(piece)
                    .map_err(|error| no_space(error, directory))?;
                written += piece.len() as u64;
                told.tell(written);
                Ok(())
            })?;
            file.sync_all()
                .map_err(|error| no_space(error, directory))?;
        }
        for folder in [&blobs, &root.join("blobs"), root] {
            sync_dir(folder)?;
        }
        // From here on it is nobody's to remove.
        let made = temporary.keep();
        if let Err(error) = fs::rename(&made, directory) {
            // It is ours, and what cannot be removed is seen by its name.
            let _ = fs::remove_dir_all(&made);
            return Err(error).context("create", directory);
        }
        sync_dir(parent)?;
        Ok(total)
    }

    /// Reads a blob, and holds it against its name at the end.
    pub(crate) fn each_piece(
        &self,
        digest: Digest,
        size: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let path = self.blob_path(digest);
        let damaged = |reason: &str| ImageError::Damaged {
            path: path.clone(),
            reason: reason.into(),
            remedy: "Remove the image and pull or import it again.",
        };
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged("is missing"));
            }
            file => file.context("open", &path)?,
        };
        let mut reader = file.take(size + 1);
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; PIECE];
        let mut left = size;
        loop {
            let count = match reader.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                count => count.context("read", &path)?,
            };
            if count == 0 {
                break;
            }
            left = left
                .checked_sub(count as u64)
                .ok_or_else(|| damaged("is longer than its manifest says"))?;
            hasher.update(&buffer[..count]);
            take(&buffer[..count])?;
        }
        match (left, hasher.finish() == digest) {
            (0, true) => Ok(()),
            (0, false) => Err(damaged("does not hash to its name")),
            _ => Err(damaged("is shorter than its manifest says")),
        }
    }
}

impl Plan {
    fn bytes(&self) -> u64 {
        let documents = self
            .documents
            .iter()
            .map(|(_, content)| content.len() as u64);
        documents
            .chain(self.blobs.values().copied())
            .fold(0, u64::saturating_add)
    }

    /// The same in a tar: whole blocks and headers.
    fn archived_bytes(&self) -> u64 {
        let padded = |bytes: u64| bytes.div_ceil(512).saturating_mul(512).saturating_add(512);
        let documents = self
            .documents
            .iter()
            .map(|(_, content)| content.len() as u64);
        documents
            .chain(self.blobs.values().copied())
            .map(padded)
            .fold(4 * 512, u64::saturating_add)
    }
}

/// A tar file in the making, in which nothing tells when and by whom it was made.
struct Archive<'w> {
    writer: TarWriter<Output<'w>>,
}

impl Archive<'_> {
    fn begin(&mut self, name: &str, kind: EntryKind, size: u64) -> Result<()> {
        let mode = if kind == EntryKind::Directory {
            0o755
        } else {
            0o644
        };
        let entry = Entry {
            path: name.as_bytes().to_vec(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size,
            xattrs: Vec::new(),
        };
        self.writer
            .entry(&entry, None)
            .map_err(|error| self.writer.get_ref().failed(error))
    }

    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer
            .content(bytes)
            .map_err(|error| self.writer.get_ref().failed(error))
    }

    fn finish(self) -> Result<(u64, Option<Digest>)> {
        let file = self.writer.get_ref().file();
        let output = self
            .writer
            .finish()
            .map_err(|error| failure(error, file.as_deref()))?;
        output.finish()
    }
}

fn new_file(path: &Path) -> Result<File> {
    let file = files::create_new(path)?;
    set_mode(&file, 0o644).context("set the mode of", path)?;
    Ok(file)
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
