//! Which of all the images behind one name is meant: through indexes, down to a manifest whose own
//! configuration fits the platform. Where documents come from is not its business.

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::manifest::{Descriptor, Document, MAX_NESTING, Manifest};
use crate::platform::Platform;

/// The most manifests and indexes that are looked into for one name.
const MAX_LOOKS: usize = 16;

/// A manifest or index as it came, and what it says.
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) document: Document,
}

/// Where manifests and configurations are: a registry or an archive. Both give verified bytes.
pub(crate) trait Documents {
    fn document(&self, digest: Digest) -> Result<Fetched>;
    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>>;
}

/// The one image that was meant.
pub(crate) struct Chosen {
    pub(crate) manifest_bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) config: ImageConfig,
    pub(crate) config_bytes: Vec<u8>,
    /// What was asked for, where that was an index.
    pub(crate) index_digest: Option<Digest>,
}

/// Finds the image for `wanted` below `top`; `image` names it in messages.
pub(crate) fn choose(
    documents: &dyn Documents,
    top: Fetched,
    image: &str,
    wanted: &Platform,
) -> Result<Chosen> {
    let index_digest = match &top.document {
        Document::Index(_) => Some(top.digest),
        Document::Manifest(_) => None,
    };
    let mut platforms = Vec::new();
    let mut unreadable = None;
    // Depth first; of each index the best candidate is on top.
    let mut stack: Vec<(Digest, usize)> = Vec::new();
    let mut current = Some((top, 0));
    let mut looks = 0;
    while let Some((fetched, depth)) = current.take() {
        match fetched.document {
            Document::Manifest(manifest) => {
                let config_bytes = documents.config(&manifest.config)?;
                let config = ImageConfig::parse(&config_bytes)?;
                // The config, not the index, is what the image says of itself.
                if config.platform.fit(wanted).is_some() {
                    config.check_layers(&manifest, image)?;
                    return Ok(Chosen {
                        manifest_bytes: fetched.bytes,
                        digest: fetched.digest,
                        manifest,
                        config,
                        config_bytes,
                        index_digest,
                    });
                }
                platforms.push(config.platform);
            }
            Document::Index(index) => {
                if depth >= MAX_NESTING {
                    return Err(ImageError::BadManifest {
                        what: format!("index of {image}"),
                        reason: format!("it nests more than {MAX_NESTING} levels deep"),
                    });
                }
                platforms.extend(index.platforms());
                unreadable = unreadable
                    .or_else(|| index.unreadable(wanted).map(|entry| entry.reason.clone()));
                let candidates = index.candidates(wanted);
                stack.extend(
                    candidates
                        .iter()
                        .take(MAX_LOOKS)
                        .rev()
                        .map(|candidate| (candidate.digest, depth + 1)),
                );
            }
        }
        looks += 1;
        if looks < MAX_LOOKS
            && let Some((digest, depth)) = stack.pop()
        {
            current = Some((documents.document(digest)?, depth));
        }
    }
    if let Some(reason) = unreadable {
        return Err(ImageError::BadManifest {
            what: format!("index of {image}"),
            reason: format!("what it lists for {wanted} cannot be read: {reason}"),
        });
    }
    platforms.sort();
    platforms.dedup();
    if platforms.is_empty() {
        return Err(ImageError::BadManifest {
            what: format!("index of {image}"),
            reason: "it lists no image, only attestations or other artifacts, if anything".into(),
        });
    }
    let mut available: Vec<String> = platforms.iter().map(ToString::to_string).collect();
    available.truncate(32);
    Err(ImageError::NoSuchPlatform {
        image: image.to_owned(),
        wanted: wanted.clone(),
        available: available.join(", "),
    })
}
