//! The image configuration: what to run by default, and what each layer is once unpacked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{ImageError, Result, clip};
use crate::manifest::Manifest;
use crate::platform::Platform;

/// The largest configuration accepted, in bytes.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;

/// An image's configuration, reduced to what running it needs and what people ask about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImageConfig {
    /// What the image is built for.
    pub platform: Platform,
    /// When it was built, as written (RFC 3339).
    pub created: Option<String>,
    /// `KEY=value` entries.
    pub env: Vec<String>,
    /// What is always run; a given command comes after it.
    pub entrypoint: Vec<String>,
    /// The default command or arguments.
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; `None` is root.
    pub user: Option<String>,
    /// The directory to run in; `None` is `/`.
    pub working_dir: Option<String>,
    /// The signal that asks the workload to end, by name or number.
    pub stop_signal: Option<String>,
    /// `port[/protocol]`, only shown.
    pub exposed_ports: Vec<String>,
    /// Paths meant to be volumes, only shown.
    pub volumes: Vec<String>,
    /// Free-form notes.
    pub labels: BTreeMap<String, String>,
    /// The digest of each layer once unpacked, bottom first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Serialize, Default)]
struct Raw {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(default)]
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

#[derive(Deserialize, Serialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    env: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
}

#[derive(Deserialize, Serialize, Default)]
struct RawRootfs {
    #[serde(rename = "type", default)]
    kind: String,
    diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Reads an OCI or Docker image configuration.
    ///
    /// # Errors
    /// [`ImageError::BadManifest`] with the reason: too large, no JSON, no `rootfs`, NUL bytes where
    /// the kernel will want C strings.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let refuse = |reason: String| ImageError::BadManifest {
            what: "image configuration".into(),
            reason,
        };
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(refuse(format!("it is larger than {MAX_CONFIG} bytes")));
        }
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|error| refuse(format!("it cannot be read: {}", clip(&error.to_string()))))?;
        if !matches!(raw.rootfs.kind.as_str(), "layers" | "") {
            return Err(refuse(format!(
                "its rootfs type `{}` is unknown",
                clip(&raw.rootfs.kind)
            )));
        }
        if raw.rootfs.diff_ids.len() > crate::manifest::MAX_LAYERS {
            return Err(refuse("it lists too many layers".into()));
        }
        let run = raw.config.unwrap_or_default();
        let text = |value: Option<String>| value.filter(|value| !value.is_empty());
        let keys = |map: Option<BTreeMap<String, serde_json::Value>>| -> Vec<String> {
            map.unwrap_or_default().into_keys().collect()
        };
        let config = Self {
            platform: Platform::new(
                if raw.os.is_empty() { "linux" } else { &raw.os },
                &raw.architecture,
                raw.variant.as_deref(),
            ),
            created: text(raw.created).map(|created| clip(&created)),
            env: run.env.unwrap_or_default(),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            user: text(run.user),
            working_dir: text(run.working_dir),
            stop_signal: text(run.stop_signal),
            exposed_ports: keys(run.exposed_ports),
            volumes: keys(run.volumes),
            labels: run.labels.unwrap_or_default(),
            diff_ids: raw.rootfs.diff_ids,
        };
        config.check().map_err(refuse)?;
        Ok(config)
    }

    /// That the configuration and the manifest speak of the same layers.
    pub(crate) fn check_layers(&self, manifest: &Manifest, image: &str) -> Result<()> {
        if self.diff_ids.len() == manifest.layers.len() {
            return Ok(());
        }
        Err(ImageError::BadManifest {
            what: format!("configuration of {image}"),
            reason: format!(
                "it speaks of {} layers and the manifest of {}",
                self.diff_ids.len(),
                manifest.layers.len()
            ),
        })
    }

    fn check(&self) -> std::result::Result<(), String> {
        for (field, values) in [
            ("Env", &self.env),
            ("Entrypoint", &self.entrypoint),
            ("Cmd", &self.cmd),
        ] {
            if values.iter().any(|value| value.contains('\0')) {
                return Err(format!("{field} has a NUL byte"));
            }
        }
        for (field, value) in [
            ("User", &self.user),
            ("WorkingDir", &self.working_dir),
            ("StopSignal", &self.stop_signal),
        ] {
            if value.as_ref().is_some_and(|value| value.contains('\0')) {
                return Err(format!("{field} has a NUL byte"));
            }
        }
        Ok(())
    }

    /// Writes it as an OCI image configuration.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let list = |values: &[String]| (!values.is_empty()).then(|| values.to_vec());
        let set = |values: &[String]| {
            (!values.is_empty()).then(|| {
                values
                    .iter()
                    .map(|key| (key.clone(), serde_json::json!({})))
                    .collect()
            })
        };
        let raw = Raw {
            architecture: self.platform.architecture.clone(),
            os: self.platform.os.clone(),
            variant: self.platform.variant.clone(),
            created: self.created.clone(),
            config: Some(RawRun {
                user: self.user.clone(),
                exposed_ports: set(&self.exposed_ports),
                env: list(&self.env),
                entrypoint: list(&self.entrypoint),
                cmd: list(&self.cmd),
                volumes: set(&self.volumes),
                working_dir: self.working_dir.clone(),
                labels: (!self.labels.is_empty()).then(|| self.labels.clone()),
                stop_signal: self.stop_signal.clone(),
            }),
            rootfs: RawRootfs {
                kind: "layers".into(),
                diff_ids: self.diff_ids.clone(),
            },
        };
        // Strings, lists and maps with string keys: there is nothing here JSON cannot hold.
        serde_json::to_vec(&raw).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn docker_nulls_and_missing_fields_are_empty() {
        let config = ImageConfig::parse(
            br#"{"architecture":"x86_64","os":"linux","config":{"Cmd":null,"Env":["A=1"],"User":"","Entrypoint":["/x"],"ExposedPorts":{"80/tcp":{}},"OnBuild":null},"rootfs":{"type":"layers","diff_ids":[]}}"#,
        )
        .unwrap();
        assert_eq!(config.platform.to_string(), "linux/amd64");
        assert_eq!((config.cmd.len(), config.user.clone()), (0, None));
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(ImageConfig::parse(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn faults_are_named() {
        for (json, reason) in [
            ("{}", "rootfs"),
            (r#"{"rootfs":{"type":"squash","diff_ids":[]}}"#, "squash"),
            (
                r#"{"config":{"Env":["A=\u0000"]},"rootfs":{"diff_ids":[]}}"#,
                "NUL",
            ),
            (r#"{"rootfs":{"diff_ids":["md5:00"]}}"#, "only sha256"),
        ] {
            let error = ImageConfig::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }

    proptest! {
        #[test]
        fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = ImageConfig::parse(&bytes);
        }
    }
}
