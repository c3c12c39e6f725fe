//! How an image came to be, as its builder wrote it down, beside the layers that are there.

use serde::{Deserialize, Serialize};

use super::{ImageStore, provenance};
use crate::config::{ImageConfig, MAX_CONFIG};
use crate::digest::Digest;
use crate::error::{ImageError, Result, clip};
use crate::reference::Reference;

/// The most steps that are read of a history.
const MAX_STEPS: usize = 4096;

/// How an image came to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageHistory {
    /// The image.
    pub reference: Reference,
    /// Its digest.
    pub digest: Digest,
    /// The steps, first ones first. A layer that no step speaks of is a step without a word.
    pub steps: Vec<HistoryStep>,
}

/// One step of a build.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HistoryStep {
    /// When, as written (RFC 3339).
    pub created: Option<String>,
    /// What was done.
    pub created_by: Option<String>,
    /// A word on it.
    pub comment: Option<String>,
    /// The layer that came of it, as stored; none where it changed only the configuration.
    pub layer: Option<Digest>,
    /// The layer unpacked.
    pub diff_id: Option<Digest>,
    /// The layer's size as stored, in bytes.
    pub size_bytes: u64,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    history: Option<Vec<RawStep>>,
}

#[derive(Deserialize)]
struct RawStep {
    created: Option<String>,
    created_by: Option<String>,
    comment: Option<String>,
    #[serde(default)]
    empty_layer: Option<bool>,
}

impl ImageStore {
    /// How the image `name` (as [`inspect`](Self::inspect) finds it) came to be.
    ///
    /// # Errors
    /// [`ImageError::Unknown`], [`ImageError::Ambiguous`], or when its files cannot be read.
    pub fn history(&self, name: &str) -> Result<ImageHistory> {
        let record = self.record(&self.meant(name, None, &self.entries()?)?)?;
        let bytes = self.blob_bytes(record.config, MAX_CONFIG)?;
        let config = ImageConfig::parse(&bytes)?;
        let refuse = |reason: String| ImageError::BadManifest {
            what: format!("history of {}", record.reference),
            reason,
        };
        let raw: Raw = serde_json::from_slice(&bytes)
            .map_err(|error| refuse(format!("it cannot be read: {}", clip(&error.to_string()))))?;
        let said = raw.history.unwrap_or_default();
        if said.len() > MAX_STEPS {
            return Err(refuse(format!("it has more than {MAX_STEPS} steps")));
        }
        let mut layers = provenance::layers(&record, &config).into_iter();
        let mut steps: Vec<HistoryStep> = said
            .into_iter()
            .map(|step| {
                let layer = match step.empty_layer {
                    Some(true) => None,
                    _ => layers.next(),
                };
                HistoryStep {
                    created: step.created,
                    created_by: step.created_by,
                    comment: step.comment,
                    layer: layer.as_ref().map(|layer| layer.digest),
                    diff_id: layer.as_ref().and_then(|layer| layer.diff_id),
                    size_bytes: layer.map_or(0, |layer| layer.size_bytes),
                }
            })
            .collect();
        steps.extend(layers.map(|layer| HistoryStep {
            layer: Some(layer.digest),
            diff_id: layer.diff_id,
            size_bytes: layer.size_bytes,
            ..HistoryStep::default()
        }));
        Ok(ImageHistory {
            reference: record.reference,
            digest: record.digest,
            steps,
        })
    }
}
