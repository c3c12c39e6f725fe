//! What is happening to an image, as typed events, so that any front end can draw it.

use serde::Serialize;

use crate::digest::Digest;

/// A step of a pull, an import or a disk build. Events of one layer come in order; layers interleave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImageEvent {
    /// A reference is being resolved to a digest.
    Resolving {
        /// The reference, in its familiar form.
        reference: String,
    },
    /// The reference stands for this manifest.
    Resolved {
        /// The reference, in its familiar form.
        reference: String,
        /// The digest of the platform's manifest.
        digest: Digest,
        /// How many layers it has.
        layers: usize,
        /// The sum of the layers' sizes as stored (compressed), in bytes.
        bytes: u64,
    },
    /// The image comes from a mirror of its registry.
    FromMirror {
        /// The reference, in its familiar form.
        reference: String,
        /// The mirror.
        mirror: String,
    },
    /// A mirror could not give the image; the next place is asked.
    MirrorFailed {
        /// The mirror.
        mirror: String,
        /// Why.
        reason: String,
    },
    /// The credentials for a registry could not be had; it is asked anonymously.
    NoCredentials {
        /// The registry.
        registry: String,
        /// Why.
        reason: String,
    },
    /// The tag stands for another image than the one in the store.
    TagMoved {
        /// The reference, in its familiar form.
        reference: String,
        /// The manifest it stood for.
        from: Digest,
        /// The manifest it stands for now.
        to: Digest,
    },
    /// So much of this layer was left by an earlier pull and need not come again.
    LayerResumed {
        /// The layer.
        digest: Digest,
        /// Bytes that are there.
        bytes: u64,
        /// Bytes in all.
        total: u64,
    },
    /// This layer is already in the store.
    LayerExists {
        /// The layer.
        digest: Digest,
        /// Its size in bytes.
        bytes: u64,
    },
    /// So much of this layer has come. Sent at most every 100 ms, and at its end.
    LayerProgress {
        /// The layer.
        digest: Digest,
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A request failed in a way that may pass and is tried again.
    Retrying {
        /// What is being done.
        doing: String,
        /// What failed.
        reason: String,
        /// Milliseconds until the next attempt.
        delay_ms: u64,
    },
    /// So much of the imported file has been read.
    Importing {
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all.
        total: u64,
    },
    /// An image is sent to a registry. What [`LayerExists`](Self::LayerExists) and
    /// [`LayerProgress`](Self::LayerProgress) say after that is about the registry.
    Pushing {
        /// Where it goes, in its familiar form.
        reference: String,
        /// The digest of its manifest.
        digest: Digest,
        /// How many layers it has.
        layers: usize,
        /// The sum of the layers' sizes as stored (compressed), in bytes.
        bytes: u64,
    },
    /// The registry took this layer over from another repository of its own.
    LayerMounted {
        /// The layer.
        digest: Digest,
        /// Its size in bytes.
        bytes: u64,
        /// The repository it came from.
        from: String,
    },
    /// The registry has the image.
    Pushed {
        /// Where it is, in its familiar form.
        reference: String,
        /// The digest of its manifest.
        digest: Digest,
    },
    /// So much of the content of a new layer has been written.
    Committing {
        /// The image it is for, in its familiar form.
        reference: String,
        /// Bytes so far.
        bytes: u64,
    },
    /// So much of what is exported has been written.
    Exporting {
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all, where that is known before.
        total: Option<u64>,
    },
    /// So much of what is stored has been read again.
    Verifying {
        /// Bytes so far.
        bytes: u64,
    },
    /// The image's signature was checked against the key, and holds.
    SignatureVerified {
        /// The reference, in its familiar form.
        reference: String,
        /// The signed manifest or index.
        digest: Digest,
        /// The key: the SHA-256 of its DER form.
        key: Digest,
    },
    /// Another process is working on the same image; this one waits for its result.
    Waiting {
        /// The image.
        digest: Digest,
    },
    /// The base disk is being built.
    BuildingDisk {
        /// The image, in its familiar form.
        reference: String,
        /// Uncompressed bytes of all layers so far; sent about every 16 MiB.
        bytes: u64,
        /// Whether all layers are merged and only metadata and the disk's digest are left.
        finishing: bool,
    },
    /// The base disk is there.
    DiskReady {
        /// The image.
        digest: Digest,
        /// Its size in bytes.
        bytes: u64,
        /// Whether it had been built before.
        existed: bool,
    },
    /// The image is in the store.
    Done {
        /// The reference, in its familiar form.
        reference: String,
        /// The digest of its manifest.
        digest: Digest,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each; whoever adds one is led here by the compiler.
    fn one_of_each() -> Vec<ImageEvent> {
        let digest = Digest::of(b"");
        let (reference, mirror, reason) = (String::new, String::new, String::new);
        let all = vec![
            ImageEvent::Resolving {
                reference: reference(),
            },
            ImageEvent::Resolved {
                reference: reference(),
                digest,
                layers: 0,
                bytes: 0,
            },
            ImageEvent::FromMirror {
                reference: reference(),
                mirror: mirror(),
            },
            ImageEvent::MirrorFailed {
                mirror: mirror(),
                reason: reason(),
            },
            ImageEvent::NoCredentials {
                registry: String::new(),
                reason: reason(),
            },
            ImageEvent::TagMoved {
                reference: reference(),
                from: digest,
                to: digest,
            },
            ImageEvent::LayerResumed {
                digest,
                bytes: 0,
                total: 0,
            },
            ImageEvent::LayerExists { digest, bytes: 0 },
            ImageEvent::LayerProgress {
                digest,
                bytes: 0,
                total: 0,
            },
            ImageEvent::Retrying {
                doing: String::new(),
                reason: reason(),
                delay_ms: 0,
            },
            ImageEvent::Importing { bytes: 0, total: 0 },
            ImageEvent::Pushing {
                reference: reference(),
                digest,
                layers: 0,
                bytes: 0,
            },
            ImageEvent::LayerMounted {
                digest,
                bytes: 0,
                from: String::new(),
            },
            ImageEvent::Pushed {
                reference: reference(),
                digest,
            },
            ImageEvent::Committing {
                reference: reference(),
                bytes: 0,
            },
            ImageEvent::Exporting {
                bytes: 0,
                total: None,
            },
            ImageEvent::Verifying { bytes: 0 },
            ImageEvent::SignatureVerified {
                reference: reference(),
                digest,
                key: digest,
            },
            ImageEvent::Waiting { digest },
            ImageEvent::BuildingDisk {
                reference: reference(),
                bytes: 0,
                finishing: false,
            },
            ImageEvent::DiskReady {
                digest,
                bytes: 0,
                existed: false,
            },
            ImageEvent::Done {
                reference: reference(),
                digest,
            },
        ];
        for event in &all {
            match event {
                ImageEvent::Resolving { .. }
                | ImageEvent::Resolved { .. }
                | ImageEvent::FromMirror { .. }
                | ImageEvent::MirrorFailed { .. }
                | ImageEvent::NoCredentials { .. }
                | ImageEvent::TagMoved { .. }
                | ImageEvent::LayerResumed { .. }
                | ImageEvent::LayerExists { .. }
                | ImageEvent::LayerProgress { .. }
                | ImageEvent::Retrying { .. }
                | ImageEvent::Importing { .. }
                | ImageEvent::Pushing { .. }
                | ImageEvent::LayerMounted { .. }
                | ImageEvent::Pushed { .. }
                | ImageEvent::Committing { .. }
                | ImageEvent::Exporting { .. }
                | ImageEvent::Verifying { .. }
                | ImageEvent::SignatureVerified { .. }
                | ImageEvent::Waiting { .. }
                | ImageEvent::BuildingDisk { .. }
                | ImageEvent::DiskReady { .. }
                | ImageEvent::Done { .. } => {}
            }
        }
        all
    }

    #[test]
    fn the_document_names_each_event_and_its_fields() {
        let page = include_str!("../../../docs/json.md");
        let (_, section) = page.split_once("### Progress of images").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let all = one_of_each();
        assert_eq!(rows.clone().count(), all.len());
        for event in all {
            let value = serde_json::to_value(&event).unwrap();
            let fields = value.as_object().unwrap();
            let start = format!("| `{}` |", fields["event"].as_str().unwrap());
            let row = rows.clone().find(|row| row.starts_with(&start)).unwrap();
            for field in fields.keys().filter(|field| *field != "event") {
                assert!(row.contains(&format!("`{field}`")), "{row}: {field}");
            }
        }
    }
}
