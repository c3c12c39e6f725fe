//! What stands between us and a registry: token services, mirrors, other servers, limits, broken wires.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod tokens;
mod wires;

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microagent_image::{
    Credential, Credentials, Freshness, HostOptions, ImageError, ImageEvent, ImageRecord,
    PullOptions, PullPolicy, Reference, RegistryOptions, RegistryScope,
};
use testkit::registry::{
    Layout, Packing, Registry, Setup, TinyImage, Wire, digest_of, noise, tar_of,
};

use common::Bench;

const BIG: usize = 4 << 20;

impl Bench {
    /// Pushes an image of these layers.
    fn push(&self, registry: &Registry, name: &str, layers: &[Vec<u8>]) {
        let image = layers.iter().fold(TinyImage::new("amd64"), |image, layer| {
            image.layer(layer.clone(), Packing::Plain)
        });
        let place = self.directory.path().join(name.replace(['/', ':'], "-"));
        let mut layout = Layout::create(&place).unwrap();
        layout.add(name, &[image]).unwrap();
        registry.push(layout.path(), name).unwrap();
    }

    fn pull(&self, reference: &str, options: &PullOptions) -> Result<ImageRecord, ImageError> {
        let reference: Reference = reference.parse().unwrap();
        self.store
            .pull(&reference, options, &|event| self.hear(event))
    }

    fn retries(&self) -> usize {
        let events = self.events.lock().unwrap();
        let is_retry = |event: &&ImageEvent| matches!(event, ImageEvent::Retrying { .. });
        events.iter().filter(is_retry).count()
    }

    fn partials(&self) -> Vec<String> {
        fs::read_dir(self.store.root().join("partial"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn layer(seed: u64, size: usize) -> Vec<u8> {
    tar_of(&[("file", 0o644, &noise(size, seed))])
}

fn registry_options() -> RegistryOptions {
    let mut registry = RegistryOptions::default();
    registry.backoff = Duration::from_millis(20);
    registry.attempts = 3;
    registry
}

fn options() -> PullOptions {
    PullOptions::new()
        .platform("linux/amd64".parse().unwrap())
        .registry(registry_options())
}

fn alice(password: &str) -> Arc<dyn Credentials> {
    Arc::new(Credential::Basic {
        username: "alice".into(),
        password: password.into(),
    })
}

/// Options for `registry` with these mirrors before it.
fn mirrored(registry: &Registry, mirrors: &[String]) -> PullOptions {
    let mut host = HostOptions::default();
    host.mirrors = mirrors
        .iter()
        .map(|mirror| mirror.parse().unwrap())
        .collect();
    let mut options = registry_options();
    options
        .hosts
        .insert(format!("127.0.0.1:{}", registry.port()), host);
    self::options().registry(options)
}

#[test]
fn mirrors_come_first_and_the_registry_last() {
    let bench = Bench::new();
    let (origin, empty) = (Registry::start().unwrap(), Registry::start().unwrap());
    let guarded = Registry::start_with(Setup {
        login: Some(("alice".into(), "s3cret".into())),
        ..Setup::default()
    })
    .unwrap();
    let name = |registry: &Registry| format!("127.0.0.1:{}", registry.port());
    bench.push(&origin, "team/a:1", &[layer(1, 1000)]);
    bench.push(&guarded, "copies/team/a:1", &[layer(1, 1000)]);

    // Credentials are those of the mirror: its own name and path are what is asked for.
    struct Seen(Mutex<Vec<String>>);
    impl Credentials for Seen {
        fn credential(&self, scope: &RegistryScope) -> Result<Option<Credential>, String> {
            self.0.lock().unwrap().push(scope.to_string());
            Ok(Some(Credential::Basic {
                username: "alice".into(),
                password: "s3cret".into(),
            }))
        }
    }
    let seen = Arc::new(Seen(Mutex::default()));
    let copies = format!("{}/copies", name(&guarded));
    let mirrors = ["127.0.0.1:1".to_owned(), name(&empty), copies.clone()];
    let options = mirrored(&origin, &mirrors).credentials(Arc::<Seen>::clone(&seen));
    let record = bench.pull(&origin.reference("team/a:1"), &options).unwrap();
    assert_eq!(record.reference.canonical(), origin.reference("team/a:1"));
    assert_eq!(record.pulled_from, Some(name(&guarded)));
    assert_eq!(*seen.0.lock().unwrap(), [format!("{copies}/team/a")]);
    let failed: Vec<String> = bench
        .events
        .lock()
        .unwrap()
        .iter()
        .filter_map(|event| match event {
            ImageEvent::MirrorFailed { mirror, .. } => Some(mirror.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(failed, mirrors[..2]);

    let record = bench
        .pull(
            &origin.reference("team/a:1"),
            &mirrored(&origin, &mirrors[..2]),
        )
        .unwrap();
    assert_eq!(record.pulled_from, Some(name(&origin)));

    // What is blocked is blocked, mirrors or not.
    let mut blocked = mirrored(&origin, &mirrors);
    blocked
        .registry
        .hosts
        .get_mut(&name(&origin))
        .unwrap()
        .blocked = true;
    let error = bench
        .pull(&origin.reference("team/a:1"), &blocked)
        .unwrap_err();
    assert!(matches!(error, ImageError::Blocked { .. }), "{error:?}");
}

#[test]
fn a_shared_layer_comes_once_for_two_pulls_at_once() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let shared = layer(1, BIG);
    bench.push(&registry, "a:1", &[shared.clone(), layer(2, 1000)]);
    bench.push(&registry, "b:1", &[shared, layer(3, 1000)]);
    let wire = Wire::to(registry.port()).unwrap();
    wire.slow(8 << 20);
    let reference = |name: &str| format!("127.0.0.1:{}/{name}", wire.port());
    std::thread::scope(|scope| {
        for name in ["a:1", "b:1"] {
            scope.spawn(|| bench.pull(&reference(name), &options()).unwrap());
        }
    });
    assert_eq!(bench.store.list().unwrap().len(), 2);
    assert!(
        wire.carried() < (BIG + (1 << 20)) as u64,
        "{}",
        wire.carried()
    );
}

#[test]
fn a_tag_that_moved_is_noticed() {
    let bench = Bench::new();
    let mut registry = Registry::start().unwrap();
    bench.push(&registry, "a:1", &[layer(1, 1000)]);
    let reference = registry.reference("a:1");
    let first = bench.pull(&reference, &options()).unwrap();
    let fresh = |record: &ImageRecord| bench.store.freshness(record, &options(), &|_| {});
    assert_eq!(fresh(&first).unwrap(), Freshness::Current);
    bench.push(&registry, "a:1", &[layer(2, 1000)]);
    let Freshness::Outdated { remote_digest } = fresh(&first).unwrap() else {
        panic!("it is outdated");
    };
    let second = bench.pull(&reference, &options()).unwrap();
    assert_eq!(second.digest, remote_digest);
    let moved = ImageEvent::TagMoved {
        reference: reference.clone(),
        from: first.digest,
        to: second.digest,
    };
    assert!(bench.events.lock().unwrap().contains(&moved));
    assert_eq!(fresh(&second).unwrap(), Freshness::Current);

    // A digest cannot move, and what it names is not asked for again.
    let pinned = format!("{}@{}", registry.reference("a"), second.digest);
    registry.kill();
    let parsed: Reference = pinned.parse().unwrap();
    let ensured = bench
        .store
        .ensure(&parsed, PullPolicy::Always, &options(), &|_| {})
        .unwrap();
    assert_eq!(
        (ensured.digest, &ensured.reference),
        (second.digest, &parsed)
    );
    assert_eq!(fresh(&ensured).unwrap(), Freshness::Pinned);
    assert!(matches!(
        fresh(&second).unwrap_err(),
        ImageError::Connection { .. }
    ));
}

#[test]
fn typos_are_guessed_from_what_the_registry_has() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    for name in [
        "debian:bookworm",
        "debian:bookworm-slim",
        "debian:12",
        "busybox:1",
    ] {
        bench.push(&registry, name, &[layer(1, 100)]);
    }
    let host = format!("127.0.0.1:{}", registry.port());
    for (typed, hint) in [
        (
            "debian:bookwrom",
            format!("Did you mean {host}/debian:bookworm?"),
        ),
        ("debian:13", format!("Did you mean {host}/debian:12?")),
        (
            "debian:sid",
            "It has the tags 12, bookworm and bookworm-slim.".to_owned(),
        ),
        ("debain:12", format!("Did you mean {host}/debian:12?")),
        ("nothing:12", "Check the name and the tag.".to_owned()),
    ] {
        let error = bench
            .pull(&registry.reference(typed), &options())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("was not found") && error.contains(&hint),
            "{typed}: {error}"
        );
    }
}

/// eStargz is gzip in many members, `zstd:chunked` zstd in many frames with skippable ones between: both
/// are plain layers to who does not read their tables of content.
#[test]
fn layers_made_for_lazy_pulls_are_plain_layers() {
    use testkit::registry::pack;
    let bench = Bench::new();
    let tar = tar_of(&[("a", 0o644, b"first"), ("b", 0o644, b"second")]);
    let (head, tail) = tar.split_at(1024);
    let members = [pack(head, Packing::Gzip), pack(tail, Packing::Gzip)].concat();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"toc"].concat();
    let frames = [
        pack(head, Packing::Zstd),
        skippable.clone(),
        pack(tail, Packing::Zstd),
        skippable,
    ]
    .concat();
    let registry = Registry::start().unwrap();
    for (name, suffix, blob) in [("e:1", "+gzip", members), ("z:1", "+zstd", frames)] {
        let mut layout = Layout::create(&bench.directory.path().join(&name[..1])).unwrap();
        let image = TinyImage::new("amd64").packed(&digest_of(&tar), &blob, suffix);
        layout.add(name, &[image]).unwrap();
        registry.push(layout.path(), name).unwrap();
        let record = bench.pull(&registry.reference(name), &options()).unwrap();
        let disk = bench.store.base_disk(&record, &|_| {}).unwrap();
        let mut command = std::process::Command::new("/sbin/debugfs");
        command.args(["-R", "cat /b"]).arg(disk.flat().unwrap());
        let content = testkit::registry::run_tool("e2fsprogs", &mut command).unwrap();
        assert_eq!(content, b"second", "{name}");
    }
}
