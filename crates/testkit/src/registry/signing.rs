//! Signatures of images in the form that `cosign` gives them, made with `openssl`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use base64::Engine as _;
use serde_json::{Value, json};

use super::Layout;
use super::tool::run_tool;

/// A key pair.
#[derive(Clone, Debug)]
pub struct SigningKey {
    secret: PathBuf,
    /// The public key (PEM file).
    pub public: PathBuf,
}

impl SigningKey {
    /// Makes a key pair in `directory`, by the arguments of `openssl genpkey`: `-algorithm ed25519`.
    ///
    /// # Errors
    /// When `openssl` is missing or fails.
    pub fn make(directory: &Path, name: &str, kind: &[&str]) -> Result<Self> {
        let key = Self {
            secret: directory.join(format!("{name}.key")),
            public: directory.join(format!("{name}.pub")),
        };
        let mut command = Command::new("openssl");
        command
            .arg("genpkey")
            .args(kind)
            .arg("-out")
            .arg(&key.secret);
        run_tool("openssl", &mut command)?;
        let mut command = Command::new("openssl");
        command.args(["pkey", "-pubout", "-in"]).arg(&key.secret);
        command.arg("-out").arg(&key.public);
        run_tool("openssl", &mut command)?;
        Ok(key)
    }

    /// The kind of key that `cosign generate-key-pair` makes.
    ///
    /// # Errors
    /// As [`make`](Self::make).
    pub fn p256(directory: &Path, name: &str) -> Result<Self> {
        let kind = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
        Self::make(directory, name, &kind)
    }

    /// The signature of `bytes`.
    fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let message = self.secret.with_extension("message");
        std::fs::write(&message, bytes)?;
        let text = std::fs::read_to_string(&self.public)?;
        // Ed25519 hashes by itself.
        let hash: &[&str] = if text.len() < 120 {
            &[]
        } else {
            &["-digest", "sha256"]
        };
        let mut command = Command::new("openssl");
        command.args(["pkeyutl", "-sign", "-rawin"]).args(hash);
        command
            .arg("-inkey")
            .arg(&self.secret)
            .arg("-in")
            .arg(&message);
        run_tool("openssl", &mut command)
    }

    /// What `cosign` states of `digest`.
    #[must_use]
    pub fn statement(digest: &str) -> Value {
        json!({
            "critical": {
                "identity": {"docker-reference": "registry.example.com/app"},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": null,
        })
    }

    /// Puts `statements`, each signed by the key beside it, into `layout` as the signatures of `digest`.
    /// Returns the tag they have.
    ///
    /// # Errors
    /// When `openssl` fails or files cannot be written.
    pub fn sign_into(
        layout: &mut Layout,
        repository: &str,
        digest: &str,
        statements: &[(&Self, Value)],
    ) -> Result<String> {
        let mut layers = Vec::new();
        for (key, statement) in statements {
            let bytes = serde_json::to_vec(statement)?;
            let signature = base64::engine::general_purpose::STANDARD.encode(key.sign(&bytes)?);
            let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
            let mut layer = layout.blob(kind, &bytes)?;
            layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
            layers.push(layer);
        }
        let config = json!({
            "architecture": "", "os": "", "config": {},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|it| &it["digest"]).collect::<Vec<_>>()},
        });
        let config = layout.blob(
            "application/vnd.oci.image.config.v1+json",
            &serde_json::to_vec(&config)?,
        )?;
        let name = format!("{repository}:{}.sig", digest.replace(':', "-"));
        layout.add_manifest(
            &name,
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config,
                "layers": layers,
            }),
        )?;
        Ok(name)
    }

    /// Signs `digest` in `layout` as it ought to be.
    ///
    /// # Errors
    /// As [`sign_into`](Self::sign_into).
    pub fn sign_image(
        &self,
        layout: &mut Layout,
        repository: &str,
        digest: &str,
    ) -> Result<String> {
        Self::sign_into(
            layout,
            repository,
            digest,
            &[(self, Self::statement(digest))],
        )
    }
}
