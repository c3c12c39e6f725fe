//! Against repositories made here by hand: documents and signatures are written without the client's crate.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use crate::fixtures;
use crate::hash::sha256;
use crate::{Architecture, KernelError, KernelRecord, KernelSource, KernelStore, RepositorySource};

const HOUR: Duration = Duration::from_secs(3600);
const CONFIG: &str = "CONFIG_VIRTIO_MMIO=y\nCONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=y\nCONFIG_OVERLAY_FS=y\n\
                      CONFIG_VIRTIO_VSOCKETS=y\n";

/// A signer.
struct Key(Ed25519KeyPair);

impl Key {
    fn new(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
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
struct Recipe {
    version: u32,
    timestamp_version: u32,
    snapshot_of_timestamp: u32,
    kernel: Vec<u8>,
    timestamp_expires: i64,
    targets_expires: i64,
    signers_of_targets: Vec<u8>,
    consistent: bool,
}

impl Recipe {
    fn version(version: u32) -> Self {
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

/// Kernels that differ.
fn kernel(version: u32) -> Vec<u8> {
    fixtures::vmlinux(true, Some(&format!("{CONFIG}# {version}\n")))
}

fn at(hours: i64) -> String {
    let offset = HOUR * u32::try_from(hours.abs()).unwrap();
    let time = match hours < 0 {
        true => SystemTime::now() - offset,
        false => SystemTime::now() + offset,
    };
    humantime::format_rfc3339_seconds(time).to_string()
}

fn signed(document: &Value, signers: &[u8]) -> Value {
    let signatures: Vec<_> = signers
        .iter()
        .map(|seed| Key::new(*seed).sign(document))
        .collect();
    json!({"signatures": signatures, "signed": document})
}

/// Root: key 1. Timestamp: key 2. Snapshot: key 3. Targets: two of keys 4, 5 and 6.
fn root(version: u32, timestamp_key: u8, consistent: bool, signers: &[u8], hours: i64) -> Value {
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

/// A published repository and a client's store.
struct World {
    directory: tempfile::TempDir,
    store: KernelStore,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = KernelStore::open(&directory.path().join("state")).unwrap();
        let world = Self { directory, store };
        world.put("trusted.json", &root(1, 2, false, &[1], 24));
        world
    }

    fn published(&self) -> PathBuf {
        self.directory.path().join("published")
    }

    fn put(&self, name: &str, value: &Value) {
        let path = self.published().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value.to_string()).unwrap();
    }

    fn publish(&self, recipe: &Recipe) {
        let machine = match Architecture::HOST {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "aarch64",
        };
        let digest = sha256(&recipe.kernel);
        let name = match recipe.consistent {
            true => format!("{digest}.kernel"),
            false => "kernel".to_owned(),
        };
        let path = self.published().join(machine).join("stable").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &recipe.kernel).unwrap();
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

    fn install(&self, channel: &str) -> Result<KernelRecord, KernelError> {
        self.install_from(channel, &format!("file://{}", self.published().display()))
    }

    fn install_from(&self, channel: &str, url: &str) -> Result<KernelRecord, KernelError> {
        let source = RepositorySource::new(channel)
            .url(url)
            .root(self.published().join("trusted.json"));
        self.store
            .install(&KernelSource::Repository(source), &mut |_| {})
    }

    /// Why it was refused; nothing new may be there.
    fn refusal(&self) -> String {
        let before = self.store.list().unwrap().kernels.len();
        let error = self.install("stable").unwrap_err();
        assert!(
            matches!(error, KernelError::RepositoryRefused { .. }),
            "{error:?}"
        );
        assert_eq!(self.store.list().unwrap().kernels.len(), before);
        error.to_string()
    }
}

/// Serves a directory for as long as the test runs; what ends with `broken` is an error of the server's.
fn serve(directory: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = String::new();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            lines.read_line(&mut request).unwrap();
            let mut header = String::new();
            while lines.read_line(&mut header).unwrap() > 2 {
                header.clear();
            }
            let path = request.split(' ').nth(1).unwrap();
            let (status, body) = match fs::read(directory.join(path.trim_start_matches('/'))) {
                _ if path.contains("broken") => ("500 Broken", Vec::new()),
                Ok(body) => ("200 OK", body),
                Err(_) => ("404 Not Found", Vec::new()),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).unwrap();
            // The client may have read all it wanted.
            let _ = stream.write_all(&body);
        }
    });
    format!("http://{address}")
}

#[test]
fn a_repository_is_read_over_http() {
    let world = World::new();
    world.publish(&Recipe::version(1));
    world.put("2.root.json", &root(2, 2, false, &[1], 24));
    let url = serve(world.published());
    let record = world.install_from("stable", &url).unwrap();
    assert_eq!(record.sha256, sha256(&kernel(1)));
    world.publish(&Recipe::version(2));
    world.install_from("stable", &format!("{url}/")).unwrap();
    let error = world
        .install_from("stable", &format!("{url}/broken"))
        .unwrap_err();
    assert!(
        matches!(&error, KernelError::RepositoryUnreachable { reason, .. } if reason.contains("500")),
        "{error}"
    );
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
}

#[test]
fn a_channel_is_followed() {
    for consistent in [false, true] {
        let world = World::new();
        world.put("trusted.json", &root(1, 2, consistent, &[1], 24));
        for version in [1, 2] {
            let recipe = Recipe {
                consistent,
                ..Recipe::version(version)
            };
            world.publish(&recipe);
            let record = world.install("stable").unwrap();
            let crate::Provenance::Repository {
                version: listed,
                sha256: digest,
                ..
            } = &record.provenance
            else {
                panic!("{record:?}");
            };
            assert_eq!((*listed, digest), (version, &sha256(&kernel(version))));
            assert!(record.provenance.is_vouched() && record.drivers_verified);
            // Again: nothing is newer, and that is no fault.
            assert_eq!(world.install("stable").unwrap().id, record.id);
        }
        let error = world.install("nightly").unwrap_err();
        assert!(
            matches!(error, KernelError::NoSuchChannel { .. }),
            "{error}"
        );
    }
}

#[test]
fn what_expired_is_refused() {
    let world = World::new();
    let old_timestamp = Recipe {
        timestamp_expires: -1,
        ..Recipe::version(1)
    };
    world.publish(&old_timestamp);
    assert!(world.refusal().contains("expired"));
    let old_targets = Recipe {
        targets_expires: -1,
        ..Recipe::version(1)
    };
    world.publish(&old_targets);
    assert!(world.refusal().contains("expired"));
    world.publish(&Recipe::version(1));
    world.put("trusted.json", &root(1, 2, false, &[1], -1));
    assert!(world.refusal().contains("expired"));
}

#[test]
fn a_repository_that_is_frozen_is_refused_when_what_is_known_of_it_expires() {
    let world = World::new();
    world.publish(&Recipe::version(1));
    world.install("stable").unwrap();
    // The same version, which the client need not read again, has expired by now.
    let frozen = Recipe {
        timestamp_expires: -1,
        ..Recipe::version(1)
    };
    world.publish(&frozen);
    let trust = world.directory.path().join("state/kernels/.trust");
    let trust = fs::read_dir(trust).unwrap().next().unwrap().unwrap().path();
    copy(
        &world.published().join("timestamp.json"),
        &trust.join("timestamp.json"),
    );
    let why = world.refusal();
    assert!(why.contains("timestamp expired"), "{why}");
}

#[test]
fn older_metadata_is_refused() {
    let world = World::new();
    world.publish(&Recipe::version(2));
    world.install("stable").unwrap();
    world.publish(&Recipe::version(1));
    let why = world.refusal();
    assert!(why.contains("roll back"), "{why}");

    // Whoever has the timestamp's key alone points to the snapshot from before: refused, however often.
    let older = Recipe {
        timestamp_version: 3,
        ..Recipe::version(1)
    };
    world.publish(&older);
    for _ in 0..2 {
        let why = world.refusal();
        assert!(why.contains("went back from version 2 to 1"), "{why}");
    }
    world.publish(&Recipe::version(4));
    world.install("stable").unwrap();
}

#[test]
fn too_few_signatures_are_refused() {
    // One, the same twice, and one with a key that signs for something else.
    for signers in [vec![4], vec![4, 4], vec![4, 3]] {
        let world = World::new();
        let recipe = Recipe {
            signers_of_targets: signers,
            ..Recipe::version(1)
        };
        world.publish(&recipe);
        let why = world.refusal();
        assert!(why.contains("threshold"), "{why}");
    }
    let world = World::new();
    world.put("trusted.json", &root(1, 2, false, &[6], 24));
    world.publish(&Recipe::version(1));
    assert!(world.refusal().contains("root of trust"));
}

#[test]
fn a_kernel_that_was_tampered_with_is_refused() {
    let world = World::new();
    world.publish(&Recipe::version(1));
    let target = world.published().join("x86_64/stable/kernel");
    let target = match Architecture::HOST {
        Architecture::X86_64 => target,
        Architecture::Aarch64 => world.published().join("aarch64/stable/kernel"),
    };
    let sound = fs::read(&target).unwrap();
    let mut other = sound.clone();
    other[100] ^= 1;
    let longer = [sound.as_slice(), b"more"].concat();
    let shorter = sound[..sound.len() - 1].to_vec();
    for bytes in [other, longer, shorter] {
        fs::write(&target, bytes).unwrap();
        world.refusal();
    }
    fs::write(&target, sound).unwrap();
    world.install("stable").unwrap();
}

#[test]
fn parts_of_different_times_do_not_mix() {
    let (old, new) = (World::new(), World::new());
    old.publish(&Recipe::version(1));
    for part in ["targets.json", "snapshot.json"] {
        new.publish(&Recipe::version(2));
        copy(&old.published().join(part), &new.published().join(part));
        let why = new.refusal();
        assert!(why.contains("expected"), "{part}: {why}");
    }
}

#[test]
fn keys_are_replaced_by_those_who_may() {
    let world = World::new();
    world.publish(&Recipe::version(5));
    world.install("stable").unwrap();
    // A second root that the first does not sign.
    world.put("2.root.json", &root(2, 7, false, &[6], 24));
    world.refusal();
    // Its owner replaces the timestamp's key; the versions begin anew.
    world.put("2.root.json", &root(2, 7, false, &[1], 24));
    let why = world.refusal();
    assert!(
        why.contains("threshold"),
        "the old key signs no more: {why}"
    );
    let timestamp = json!({
        "_type": "timestamp", "spec_version": "1.0.0", "version": 1, "expires": at(1),
        "meta": {"snapshot.json": {"version": 5}},
    });
    world.put("timestamp.json", &signed(&timestamp, &[7]));
    world.install("stable").unwrap();
    // The new root is known now, also where the repository hides it.
    fs::remove_file(world.published().join("2.root.json")).unwrap();
    world.publish(&Recipe::version(6));
    assert!(world.refusal().contains("threshold"));
}

#[test]
fn without_a_root_or_an_address_nothing_is_trusted() {
    let world = World::new();
    world.publish(&Recipe::version(1));
    let install = |source| {
        world
            .store
            .install(&KernelSource::Repository(source), &mut |_| {})
            .unwrap_err()
    };
    let here = format!("file://{}", world.published().display());
    if super::BUILT_IN_ROOT.is_empty() {
        let error = install(RepositorySource::new("stable").url(&here));
        assert!(matches!(error, KernelError::NoTrustedRoot), "{error}");
    }
    let root = world.published().join("trusted.json");
    for url in ["ftp://example.org", "file://relative", "example.org"] {
        let error = install(RepositorySource::new("stable").url(url).root(&root));
        assert!(
            matches!(error, KernelError::InvalidRepository { .. }),
            "{error}"
        );
    }
    for channel in ["", "../../x", ".hidden", "a/b"] {
        let error = install(RepositorySource::new(channel).url(&here).root(&root));
        assert!(
            matches!(error, KernelError::InvalidChannel { .. }),
            "{error}"
        );
    }
    let error = install(
        RepositorySource::new("stable")
            .url("http://127.0.0.1:1/kernels")
            .root(&root),
    );
    assert!(
        matches!(error, KernelError::RepositoryUnreachable { .. }),
        "{error}"
    );
}

#[test]
fn what_is_known_is_not_forgotten_when_it_is_damaged() {
    let world = World::new();
    world.publish(&Recipe::version(1));
    world.install("stable").unwrap();
    let trust = world.directory.path().join("state/kernels/.trust");
    let trust = fs::read_dir(trust).unwrap().next().unwrap().unwrap().path();
    fs::write(trust.join("timestamp.json"), "{").unwrap();
    let error = world.install("stable").unwrap_err();
    assert!(matches!(error, KernelError::TrustDamaged { .. }), "{error}");
}
