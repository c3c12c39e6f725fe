//! Against repositories made by hand: documents and signatures are written without the client's crate.

use std::fs;
use std::io::ErrorKind::{TimedOut, WouldBlock};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::kernels::{Published, Recipe, at, kernel, root, signed};

use crate::hash::sha256;
use crate::{KernelError, KernelRecord, KernelSource, KernelStore, Patience, RepositorySource};

/// Enough for a server of this host.
const HASTE: Patience = Patience {
    silence: Duration::from_secs(1),
    least: 1024,
    lists: Duration::from_secs(5),
    kernel: Duration::from_secs(5),
};

/// A published repository and a client's store.
struct World {
    directory: tempfile::TempDir,
    repository: Published,
    store: KernelStore,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            store: KernelStore::open(&directory.path().join("state")).unwrap(),
            repository: Published::new(&directory.path().join("published")),
            directory,
        }
    }

    fn published(&self) -> PathBuf {
        self.repository.directory().to_owned()
    }

    fn put(&self, name: &str, value: &Value) {
        self.repository.put(name, value);
    }

    fn publish(&self, recipe: &Recipe) {
        self.repository.publish(recipe);
    }

    fn install(&self, channel: &str) -> Result<KernelRecord, KernelError> {
        self.install_from(channel, &self.repository.url())
    }

    fn install_from(&self, channel: &str, url: &str) -> Result<KernelRecord, KernelError> {
        let source = RepositorySource::new(channel)
            .url(url)
            .root(self.repository.trusted())
            .patience(HASTE);
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

#[test]
fn a_repository_is_read_over_http() {
    let world = World::new();
    world.publish(&Recipe::version(1));
    world.put("2.root.json", &root(2, 2, false, &[1], 24));
    let url = world.repository.serve();
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
    let target = world.repository.kernel();
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
fn files_without_an_end_are_refused() {
    for part in [
        "2.root.json",
        "timestamp.json",
        "snapshot.json",
        "targets.json",
        "",
    ] {
        let world = World::new();
        world.publish(&Recipe::version(1));
        let file = match part {
            "" => world.repository.kernel(),
            part => world.published().join(part),
        };
        // The next root is only there if it is asked for.
        let _ = fs::remove_file(&file);
        std::os::unix::fs::symlink("/dev/zero", file).unwrap();
        let why = world.refusal();
        println!("{part}: {why}");
    }
}

/// A server that begins with `begin` for the first file that is asked for, and goes on with so many bytes again
/// and again until the client hangs up: why it was given up, and after how long.
fn given_up(begin: &str, bytes: usize, pause: Duration) -> (String, Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let begin = begin.to_owned();
    let server = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        connection.set_nodelay(true).unwrap();
        connection.write_all(begin.as_bytes()).unwrap();
        connection.set_read_timeout(Some(pause)).unwrap();
        loop {
            // The client says no more, so this is the pause.
            match connection.read(&mut [0; 4096]) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), WouldBlock | TimedOut) => {
                    if connection.write_all(&vec![b'x'; bytes]).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    });
    let start = Instant::now();
    let world = World::new();
    let error = world.install_from("stable", &url).unwrap_err();
    let took = start.elapsed();
    let KernelError::RepositoryUnreachable { reason, .. } = error else {
        panic!("{error:?}");
    };
    server.join().unwrap();
    (reason, took)
}

const LIST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n{";
const TENTH: Duration = Duration::from_millis(100);

#[test]
fn a_server_that_says_nothing_more_is_given_up() {
    let (reason, took) = given_up(LIST, 0, HASTE.silence * 60);
    assert!(reason.contains("timeout"), "{reason}");
    assert!(took < HASTE.lists, "{took:?}");
}

#[test]
fn a_server_that_trickles_is_given_up() {
    // Never silent for long, and never done.
    let (reason, took) = given_up(LIST, 1, TENTH);
    assert!(
        reason.contains("too slow") && reason.contains("1024 were the least"),
        "{reason}"
    );
    assert!(took >= HASTE.silence && took < HASTE.lists, "{took:?}");
    // The beginning of an answer is no place to hide in either.
    let (reason, took) = given_up("HTTP/1.1 200 OK\r\nX: ", 1, TENTH);
    assert!(reason.contains("timeout"), "{reason}");
    assert!(took < HASTE.lists, "{took:?}");
    // Fast enough at each look, and too slow for the whole.
    let (reason, took) = given_up(LIST, 1024, TENTH);
    assert!(
        reason.contains("timeout") || reason.contains("did not end in time"),
        "{reason}"
    );
    assert!(took >= HASTE.lists && took < HASTE.lists * 2, "{took:?}");
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
