//! Whether what the store says of an image is what it said before: asked ahead of each start, so nothing
//! large is read.

use std::path::Path;

use super::disks::{MAX_NOTE, Note};
use super::{ImageDivergence, ImageStore, files};
use crate::digest::Digest;
use crate::manifest::MAX_MANIFEST;

impl ImageStore {
    /// What the store at `root` says otherwise of the image with this manifest, whose base disk is at `at` and
    /// had the digest `disk`. Of a disk of an older format it says nothing any more. What it does not say any more, as the image was removed, is no divergence. Touches
    /// nothing, and does not read the disk.
    #[must_use]
    pub fn record_divergence(
        root: &Path,
        manifest: Digest,
        at: &Path,
        disk: &str,
    ) -> Vec<ImageDivergence> {
        let store = Self { root: root.into() };
        let mut all = Vec::new();
        let mut differs = |artifact: &str, path: &Path, expected: String, actual: String| {
            all.push(ImageDivergence {
                artifact: artifact.to_owned(),
                path: path.to_owned(),
                expected,
                actual,
            });
        };
        let path = store.blob_path(manifest);
        match files::read_bounded(&path, MAX_MANIFEST) {
            Ok(None) => {}
            Ok(Some(bytes)) if Digest::of(&bytes) == manifest => {}
            Ok(Some(bytes)) => {
                let actual = Digest::of(&bytes).to_string();
                differs("image manifest", &path, manifest.to_string(), actual);
            }
            Err(error) => {
                let actual = format!("an error ({error})");
                differs("image manifest", &path, manifest.to_string(), actual);
            }
        }
        if at != store.disk_path(manifest) {
            return all;
        }
        let path = store.disk_note_path(manifest);
        let actual = match files::read_bounded(&path, MAX_NOTE) {
            Ok(None) => return all,
            Ok(Some(bytes)) => match serde_json::from_slice::<Note>(&bytes) {
                Ok(note) if !note.is_whole() => format!("{}, changed since", note.list.hex()),
                Ok(note) if note.manifest != manifest => {
                    format!("{} of the image {}", note.list.hex(), note.manifest)
                }
                Ok(note) if note.list.hex() == disk => return all,
                Ok(note) => note.list.hex(),
                Err(_) => "no record of a disk".to_owned(),
            },
            Err(error) => format!("an error ({error})"),
        };
        differs("record of the base_disk", &path, disk.to_owned(), actual);
        all
    }
}
