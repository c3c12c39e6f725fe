//! Kernels to install, and who publishes them: small ones, and signed repositories (The Update Framework),
//! whose documents and signatures are written here by hand.

mod image;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use crate::sha256;
pub use image::{RELEASE, elf, gzip, vmlinux};

const HOUR: Duration = Duration::from_secs(3600);
/// Everything a microVM needs, built in.
const CONFIG: &str = "CONFIG_VIRTIO_MMIO=y\nCONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=y\nCONFIG_OVERLAY_FS=y\n\
                      CONFIG_VIRTIO_VSOCKETS=y\n";

/// Kernels that differ.
#[must_use]
pub fn kernel(version: u32) -> Vec<u8> {
    vmlinux(true, Some(&format!("{CONFIG}# {version}\n")))
}

/// A signer.
struct Key(Ed25519KeyPair);

impl Key {
    fn new(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("a key"))
    }

    fn public(&self) -> Value {
        let hex = hex(self.0.public_key().as_ref());
        json!({"keytype": "ed25519", "keyval": {"public": hex}, "scheme": "ed25519"})
    }

    fn id(&self) -> String {
        sha256(self.public().to_string().as_bytes())
    }

    fn sign(&self, document: &Value) -> Value {
        // Keys are sorted and nothing needs escaping, so this is the canonical form.
        let signature = self.0.sign(document.to_string().as_bytes());
        json!({"keyid": self.id(), "sig": hex(signature.as_ref())})
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What makes one repository differ from a sound one.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Of all documents, unless said otherwise.
    pub version: u32,
    /// Of the timestamp.
    pub timestamp_version: u32,
    /// What the timestamp says of the snapshot.
    pub snapshot_of_timestamp: u32,
    /// What is published.
    pub kernel: Vec<u8>,
    /// In how many hours.
    pub timestamp_expires: i64,
    /// In how many hours.
    pub targets_expires: i64,
    /// Whose signatures the list of kernels has; it needs two of keys 4, 5 and 6.
    pub signers_of_targets: Vec<u8>,
    /// Whether files have their version or digest in their names.
    pub consistent: bool,
}

impl Recipe {
    /// A sound repository of this version.
    #[must_use]
    pub fn version(version: u32) -> Self {
        Self {
            version,
            timestamp_version: version,
            snapshot_of_timestamp: version,
            kernel: kernel(version),
            timestamp_expires: 1,
            targets_expires: 1,
            signers_of_targets: vec![4, 5],
            consistent: false,
        }
    }
}

/// The instant so many hours from now.
#[must_use]
pub fn at(hours: i64) -> String {
    let offset = HOUR * u32::try_from(hours.abs()).expect("a few hours");
    let time = match hours < 0 {
        true => SystemTime::now() - offset,
        false => SystemTime::now() + offset,
    };
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A document with the signatures of these keys.
#[must_use]
pub fn signed(document: &Value, signers: &[u8]) -> Value {
    let signatures: Vec<_> = signers
        .iter()
        .map(|seed| Key::new(*seed).sign(document))
        .collect();
    json!({"signatures": signatures, "signed": document})
}

/// Root: key 1. Timestamp: `timestamp_key` (2 in a sound one). Snapshot: key 3. Targets: two of keys 4, 5 and 6.
#[must_use]
pub fn root(
    version: u32,
    timestamp_key: u8,
    consistent: bool,
    signers: &[u8],
    hours: i64,
) -> Value {
    let keys: serde_json::Map<_, _> = [1, timestamp_key, 3, 4, 5, 6]
        .map(|seed| (Key::new(seed).id(), Key::new(seed).public()))
        .into_iter()
        .collect();
    let role = |seeds: &[u8], threshold: u32| {
        let ids: Vec<_> = seeds.iter().map(|seed| Key::new(*seed).id()).collect();
        json!({"keyids": ids, "threshold": threshold})
    };
    let document = json!({
        "_type": "root", "spec_version": "1.0.0", "version": version, "expires": at(hours),
        "consistent_snapshot": consistent, "keys": keys,
        "roles": {
            "root": role(&[1], 1), "timestamp": role(&[timestamp_key], 1),
            "snapshot": role(&[3], 1), "targets": role(&[4, 5, 6], 2),
        },
    });
    signed(&document, signers)
}

/// A directory in which a channel `stable` is published.
#[derive(Clone, Debug)]
pub struct Published(PathBuf);

impl Published {
    /// Nothing but the first root, to be trusted first, in `directory`.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        let published = Self(directory.to_owned());
        published.put("trusted.json", &root(1, 2, false, &[1], 24));
        published
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The root to trust first.
    #[must_use]
    pub fn trusted(&self) -> PathBuf {
        self.0.join("trusted.json")
    }

    /// The address of the directory itself.
    #[must_use]
    pub fn url(&self) -> String {
        format!("file://{}", self.0.display())
    }

    /// The kernel of the channel, where files have their plain names.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.0.join(std::env::consts::ARCH).join("stable/kernel")
    }

    /// Writes one document.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn put(&self, name: &str, value: &Value) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, value.to_string()).expect("a document");
    }

    /// Publishes as `recipe` says, over what was there.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn publish(&self, recipe: &Recipe) {
        let machine = std::env::consts::ARCH;
        let digest = sha256(&recipe.kernel);
        let name = match recipe.consistent {
            true => format!("{digest}.kernel"),
            false => "kernel".to_owned(),
        };
        let path = self.0.join(machine).join("stable").join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, &recipe.kernel).expect("the kernel");
        let targets = json!({
            "_type": "targets", "spec_version": "1.0.0", "version": recipe.version,
            "expires": at(recipe.targets_expires),
            "targets": {
                format!("{machine}/stable/kernel"):
                    {"length": recipe.kernel.len(), "hashes": {"sha256": digest}},
            },
        });
        let targets = signed(&targets, &recipe.signers_of_targets);
        let snapshot = json!({
            "_type": "snapshot", "spec_version": "1.0.0", "version": recipe.version,
            "expires": at(1), "meta": {"targets.json": {"version": recipe.version}},
        });
        let timestamp = json!({
            "_type": "timestamp", "spec_version": "1.0.0", "version": recipe.timestamp_version,
            "expires": at(recipe.timestamp_expires),
            "meta": {"snapshot.json": {"version": recipe.snapshot_of_timestamp}},
        });
        let prefix = match recipe.consistent {
            true => format!("{}.", recipe.version),
            false => String::new(),
        };
        self.put(&format!("{prefix}targets.json"), &targets);
        self.put(&format!("{prefix}snapshot.json"), &signed(&snapshot, &[3]));
        self.put("timestamp.json", &signed(&timestamp, &[2]));
    }

    /// Serves it for as long as the test runs; what has `broken` in its path is an error of the server's.
    ///
    /// # Panics
    /// When no port can be had.
    #[must_use]
    pub fn serve(&self) -> String {
        let directory = self.0.clone();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away ends its own connection only.
                let _ = stream.and_then(|stream| answer(stream, &directory));
            }
        });
        format!("http://{address}")
    }
}

fn answer(mut stream: std::net::TcpStream, directory: &Path) -> std::io::Result<()> {
    let mut request = String::new();
    let mut lines = BufReader::new(stream.try_clone()?);
    lines.read_line(&mut request)?;
    let mut header = String::new();
    while lines.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, body) = match fs::read(directory.join(path.trim_start_matches('/'))) {
        _ if path.contains("broken") => ("500 Broken", Vec::new()),
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    // The client may have read all it wanted.
    stream.write_all(&body)
}
