//! Signatures of images, as `cosign` makes them with a key pair, checked with the public key alone.
//!
//! A signature is an image of its own beside the signed one, under the tag `sha256-<hex>.sig`: each layer
//! is a statement that names the signed digest, and an annotation of the layer is the signature of the
//! statement's bytes. Nothing but the registry is asked: no transparency log, no authority.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use webpki::RawPublicKeyEntity;

use crate::digest::Digest;
use crate::error::{ImageError, Result, clip};
use crate::event::ImageEvent;
use crate::pull::PullOptions;
use crate::reference::Reference;
use crate::registry::{Client, RegistryScope};
use crate::store::{self, ImageRecord, ImageStore};

/// The largest file that is read as a key, in bytes.
const MAX_KEY: u64 = 64 << 10;
/// The largest statement that is read, in bytes.
pub(crate) const MAX_STATEMENT: u64 = 64 << 10;
/// The most signatures of one image that are looked at.
const MAX_SIGNATURES: usize = 64;
/// What a layer that is a statement is called.
const STATEMENT: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation that holds the signature of a statement, in base64.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// What a statement says it is.
const KIND: &str = "cosign container image signature";

/// What keys may be of, each with SHA-256 where it does not bring its own hash.
static ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 4] = [
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ED25519,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
];

/// A public key that images are to be signed with: ECDSA over P-256 (what `cosign` makes) or P-384,
/// Ed25519, or RSA of 2048 bits or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyKey {
    der: Arc<[u8]>,
    fingerprint: Digest,
}

impl VerifyKey {
    /// Reads a public key in PEM (`-----BEGIN PUBLIC KEY-----`).
    ///
    /// # Errors
    /// [`ImageError::BadKey`] when there is none in it, or one of a kind that is not supported.
    pub fn from_pem(pem: &[u8]) -> Result<Self> {
        let bad = |reason: String| ImageError::BadKey {
            key: "the key".into(),
            reason,
        };
        if pem.len() as u64 > MAX_KEY {
            return Err(bad(format!("it is larger than {MAX_KEY} bytes")));
        }
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| {
            bad("it holds no PEM section `PUBLIC KEY`; `cosign public-key` and `openssl pkey -pubout` write one".into())
        })?;
        let entity = RawPublicKeyEntity::try_from(&der)
            .map_err(|error| bad(format!("its public key cannot be read ({error})")))?;
        // An algorithm of another kind of key says so, whatever the signature is.
        let is_known = ALGORITHMS.iter().any(|algorithm| {
            matches!(
                entity.verify_signature(*algorithm, b"", b""),
                Ok(()) | Err(webpki::Error::InvalidSignatureForPublicKey)
            )
        });
        if !is_known {
            return Err(bad(
                "it is none of ECDSA (P-256 or P-384), Ed25519 and RSA".into()
            ));
        }
        Ok(Self {
            fingerprint: Digest::of(&der),
            der: der.as_ref().into(),
        })
    }

    /// Reads the public key in the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, and those of [`from_pem`](Self::from_pem).
    pub fn read(path: &Path) -> Result<Self> {
        let key = path.display().to_string();
        let bad = |reason: String| ImageError::BadKey {
            key: key.clone(),
            reason,
        };
        let pem = store::files::read_bounded(path, MAX_KEY)?
            .ok_or_else(|| bad("there is no such file".into()))?;
        Self::from_pem(&pem).map_err(|error| match error {
            ImageError::BadKey { reason, .. } => bad(reason),
            other => other,
        })
    }

    /// The SHA-256 of the key's DER form: what records call it.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    fn signed(&self, statement: &[u8], signature: &[u8]) -> bool {
        let der = SubjectPublicKeyInfoDer::from(&*self.der);
        RawPublicKeyEntity::try_from(&der).is_ok_and(|key| {
            ALGORITHMS.iter().any(|algorithm| {
                key.verify_signature(*algorithm, statement, signature)
                    .is_ok()
            })
        })
    }
}

/// A signature that was checked and holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedSignature {
    /// The key it was checked with: the SHA-256 of its DER form.
    pub key: Digest,
    /// What is signed: the image, or the index that it was chosen from.
    pub signed: Digest,
    /// When it was checked.
    #[serde(with = "seconds")]
    pub checked_at: SystemTime,
}

/// An instant as RFC 3339, to the second.
mod seconds {
    use super::{Deserialize, SystemTime};

    pub(super) fn serialize<S: serde::Serializer>(
        time: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)
    }
}

/// A statement and its signature, as a registry lists them.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    statement: Digest,
    size: u64,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct RawManifest {
    #[serde(default)]
    layers: Vec<crate::manifest::Descriptor>,
}

#[derive(Deserialize)]
struct Statement {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Signed,
}

#[derive(Deserialize)]
struct Signed {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// The signatures that a manifest lists. What is none of ours to read is left out.
fn listed(manifest: &[u8]) -> std::result::Result<Vec<Listed>, String> {
    let raw: RawManifest = serde_json::from_slice(manifest)
        .map_err(|error| format!("its manifest cannot be read: {}", clip(&error.to_string())))?;
    Ok(raw
        .layers
        .into_iter()
        .filter(|layer| layer.media_type == STATEMENT && layer.size <= MAX_STATEMENT)
        .filter_map(|layer| {
            let text = layer.annotations.as_ref()?.get(SIGNATURE)?;
            Some(Listed {
                statement: layer.digest,
                size: layer.size,
                signature: base64::engine::general_purpose::STANDARD
                    .decode(text.trim())
                    .ok()?,
            })
        })
        .take(MAX_SIGNATURES)
        .collect())
}

/// Whether the statement, signed by `key`, is about `digest`; or why not.
fn judge(
    key: &VerifyKey,
    digest: Digest,
    statement: &[u8],
    signature: &[u8],
) -> std::result::Result<(), String> {
    if !key.signed(statement, signature) {
        return Err("was not made with this key".into());
    }
    let said: Statement = serde_json::from_slice(statement).map_err(|error| {
        format!(
            "holds, but what it signs cannot be read: {}",
            clip(&error.to_string())
        )
    })?;
    if said.critical.kind != KIND {
        return Err(format!(
            "holds, but is one of a `{}`",
            clip(&said.critical.kind)
        ));
    }
    if said.critical.image.digest != digest.to_string() {
        return Err(format!(
            "holds, but for another image: {}",
            clip(&said.critical.image.digest)
        ));
    }
    Ok(())
}

/// Finds a signature by `key` of one of `digests`: the image, or the index it was chosen from.
///
/// # Errors
/// [`ImageError::Unsigned`] where there is none, [`ImageError::BadSignature`] where none holds.
pub(crate) fn check(
    client: &Client<'_>,
    key: &VerifyKey,
    image: &str,
    digests: &[Digest],
) -> Result<CheckedSignature> {
    let mut faults = Vec::new();
    for digest in digests {
        let tag = format!("sha256-{}.sig", digest.hex());
        let Some(manifest) = client.signatures(&tag)? else {
            continue;
        };
        let all = match listed(&manifest) {
            Ok(all) => all,
            Err(reason) => {
                faults.push(reason);
                continue;
            }
        };
        if all.is_empty() {
            faults.push(format!(
                "{tag} holds no signature of the kind that cosign makes"
            ));
        }
        for Listed {
            statement,
            size,
            signature,
        } in all
        {
            let bytes = client.statement(statement, size)?;
            match judge(key, *digest, &bytes, &signature) {
                Ok(()) => {
                    return Ok(CheckedSignature {
                        key: key.fingerprint(),
                        signed: *digest,
                        checked_at: store::now(),
                    });
                }
                Err(reason) => faults.push(format!("the signature of {} {reason}", digest.short())),
            }
        }
    }
    let digest = digests.first().map(ToString::to_string).unwrap_or_default();
    let image = image.to_owned();
    let key = key.fingerprint().short();
    if faults.is_empty() {
        return Err(ImageError::Unsigned { image, digest });
    }
    faults.dedup();
    faults.truncate(4);
    Err(ImageError::BadSignature {
        image,
        key,
        reason: faults.join("; "),
    })
}

impl ImageStore {
    /// Checks the signature of an image that is in the store already, unless it was checked with this key
    /// before; the registry is asked for nothing else.
    pub(crate) fn check_stored(
        &self,
        record: ImageRecord,
        key: &VerifyKey,
        options: &PullOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<ImageRecord> {
        if is_checked(&record, key) {
            return Ok(record);
        }
        let reference: &Reference = record.tagged_from.as_ref().unwrap_or(&record.reference);
        let name = reference.to_string();
        let place = RegistryScope::of(reference);
        let client = Client::new(
            reference,
            &place,
            &options.registry,
            options.credentials.as_deref(),
            events,
        )?;
        let checked = check(
            &client,
            key,
            &name,
            &signed_digests(record.index_digest, record.digest),
        )?;
        events(ImageEvent::SignatureVerified {
            reference: name,
            digest: checked.signed,
            key: checked.key,
        });
        self.note_signature(record, checked)
    }
}

/// What may be signed for an image to count as signed.
pub(crate) fn signed_digests(index: Option<Digest>, image: Digest) -> Vec<Digest> {
    index.into_iter().chain([image]).collect()
}

/// Whether the image was checked with this key.
pub(crate) fn is_checked(record: &ImageRecord, key: &VerifyKey) -> bool {
    let checked = record.signature.as_ref();
    checked.is_some_and(|signature| signature.key == key.fingerprint())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An Ed25519 key of RFC 8410, which signs nothing here.
    const ED25519: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn what_is_no_key_is_refused_with_a_reason() {
        let key = VerifyKey::from_pem(ED25519.as_bytes()).unwrap();
        assert_eq!(key, VerifyKey::from_pem(ED25519.as_bytes()).unwrap());
        // X25519 agrees on secrets and signs nothing.
        let x25519 = ED25519.replace("MCowBQYDK2Vw", "MCowBQYDK2Vu");
        let cut = ED25519.replace("MCow", "MCkw");
        let large = "x".repeat(70 << 10);
        for (pem, reason) in [
            ("", "no PEM section"),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "no PEM section",
            ),
            (x25519.as_str(), "none of"),
            (cut.as_str(), "cannot be read"),
            (large.as_str(), "larger than"),
        ] {
            let error = VerifyKey::from_pem(pem.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{pem}: {error}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic_and_never_verify(
            manifest in prop::collection::vec(any::<u8>(), 0..200),
            statement in prop::collection::vec(any::<u8>(), 0..100),
            signature in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let key = VerifyKey::from_pem(ED25519.as_bytes()).unwrap();
            let _ = listed(&manifest);
            let _ = VerifyKey::from_pem(&manifest);
            prop_assert!(judge(&key, Digest::of(b""), &statement, &signature).is_err());
        }
    }

    #[test]
    fn only_statements_of_a_bounded_size_are_listed() {
        let digest = Digest::of(b"x");
        let layer = |kind: &str, size: u64, notes: serde_json::Value| serde_json::json!({ "mediaType": kind, "digest": digest, "size": size, "annotations": notes });
        let good = serde_json::json!({ SIGNATURE: "AAEC" });
        let manifest = serde_json::json!({ "layers": [
            layer(STATEMENT, 5, good.clone()),
            layer(STATEMENT, MAX_STATEMENT + 1, good.clone()),
            layer("text/plain", 5, good),
            layer(STATEMENT, 5, serde_json::json!({ SIGNATURE: "not base64!" })),
            layer(STATEMENT, 5, serde_json::json!({})),
        ]});
        let found = listed(manifest.to_string().as_bytes()).unwrap();
        let one = Listed {
            statement: digest,
            size: 5,
            signature: vec![0, 1, 2],
        };
        assert_eq!(found, [one]);
        assert!(listed(b"[").unwrap_err().contains("cannot be read"));
    }
}
