//! Images small enough to read, as OCI layouts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use super::bytes::{Packing, digest_of, pack};

/// An image for one platform, described in a few lines.
#[derive(Clone, Debug)]
pub struct TinyImage {
    architecture: String,
    config: Value,
    history: Option<Value>,
    layers: Vec<Content>,
}

/// A layer: the digest of its tar stream, and the blob that holds it.
#[derive(Clone, Debug)]
struct Content {
    diff_id: String,
    blob: Vec<u8>,
    /// What its media type ends with.
    suffix: String,
}

impl TinyImage {
    /// An image without layers for `architecture` (`amd64`, `arm64`).
    #[must_use]
    pub fn new(architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            config: json!({}),
            history: None,
            layers: Vec::new(),
        }
    }

    /// Adds a layer: a tar stream and how it is packed.
    #[must_use]
    #[allow(clippy::needless_pass_by_value, reason = "tests make it in place")]
    pub fn layer(self, tar: Vec<u8>, packing: Packing) -> Self {
        let suffix = match packing {
            Packing::Plain => "",
            Packing::Gzip => "+gzip",
            Packing::Zstd => "+zstd",
        };
        self.packed(&digest_of(&tar), &pack(&tar, packing), suffix)
    }

    /// Adds a layer that was packed in some other way; `suffix` ends its media type (`+gzip`).
    #[must_use]
    pub fn packed(mut self, diff_id: &str, blob: &[u8], suffix: &str) -> Self {
        self.layers.push(Content {
            diff_id: diff_id.to_owned(),
            blob: blob.to_vec(),
            suffix: suffix.to_owned(),
        });
        self
    }

    /// Sets the `config` object (`{"Cmd": ["/x"], "Env": [...]}`).
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Sets the `history` (`[{"created_by": "RUN x", "empty_layer": true}]`).
    #[must_use]
    pub fn history(mut self, history: Value) -> Self {
        self.history = Some(history);
        self
    }

    /// Writes the blobs and returns the manifest's descriptor.
    fn write(&self, layout: &Layout) -> Result<Value> {
        let mut diff_ids = Vec::new();
        let mut layers = Vec::new();
        for layer in &self.layers {
            diff_ids.push(&layer.diff_id);
            layers.push(layout.blob(
                &format!("application/vnd.oci.image.layer.v1.tar{}", layer.suffix),
                &layer.blob,
            )?);
        }
        let mut config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        if let Some(history) = &self.history {
            config["history"] = history.clone();
        }
        let config = layout.blob(
            "application/vnd.oci.image.config.v1+json",
            &serde_json::to_vec(&config)?,
        )?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        });
        let mut descriptor = layout.blob(
            "application/vnd.oci.image.manifest.v1+json",
            &serde_json::to_vec(&manifest)?,
        )?;
        descriptor["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        Ok(descriptor)
    }
}

/// An OCI layout being written.
#[derive(Debug)]
pub struct Layout {
    directory: PathBuf,
    names: BTreeMap<String, Value>,
}

impl Layout {
    /// Starts a layout in `directory`, which is created.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory.join("blobs/sha256"))?;
        fs::write(
            directory.join("oci-layout"),
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        Ok(Self {
            directory: directory.to_owned(),
            names: BTreeMap::new(),
        })
    }

    /// The layout's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Writes a blob and returns its descriptor.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Result<Value> {
        let digest = digest_of(bytes);
        fs::write(self.blob_file(&digest), bytes)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    }

    /// The file of a blob.
    #[must_use]
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        self.directory.join("blobs").join(digest.replace(':', "/"))
    }

    /// Adds an image under `name`: one platform as a manifest, several as an index. Returns the digest
    /// that `name` stands for, then that of each platform's manifest.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn add(&mut self, name: &str, images: &[TinyImage]) -> Result<(String, Vec<String>)> {
        let manifests: Vec<Value> = images
            .iter()
            .map(|image| image.write(self))
            .collect::<Result<_>>()?;
        let digest =
            |descriptor: &Value| descriptor["digest"].as_str().unwrap_or_default().to_owned();
        let each = manifests.iter().map(digest).collect();
        let mut top = match &manifests[..] {
            [only] => only.clone(),
            _ => {
                let index = json!({
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.oci.image.index.v1+json",
                    "manifests": manifests,
                });
                self.blob(
                    "application/vnd.oci.image.index.v1+json",
                    &serde_json::to_vec(&index)?,
                )?
            }
        };
        let named = digest(&top);
        self.name(name, &mut top)?;
        Ok((named, each))
    }

    /// Adds a manifest that is no image under `name`, and returns its digest.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn add_manifest(&mut self, name: &str, manifest: &Value) -> Result<String> {
        let mut top = self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            &serde_json::to_vec(manifest)?,
        )?;
        self.name(name, &mut top)?;
        Ok(top["digest"].as_str().unwrap_or_default().to_owned())
    }

    fn name(&mut self, name: &str, top: &mut Value) -> Result<()> {
        top["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        self.names.insert(name.to_owned(), top.clone());
        let index = json!({
            "schemaVersion": 2,
            "manifests": self.names.values().collect::<Vec<_>>(),
        });
        fs::write(
            self.directory.join("index.json"),
            serde_json::to_vec(&index)?,
        )?;
        Ok(())
    }
}
