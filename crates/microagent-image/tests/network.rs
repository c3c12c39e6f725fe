//! What stands between us and a registry: token services, mirrors, other servers, limits, broken wires.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use microagent_image::{
    Credential, Credentials, Freshness, HostOptions, ImageError, ImageEvent, ImageRecord,
    ImageStore, PullOptions, PullPolicy, Reference, RegistryOptions, RegistryScope,
};
use testkit::registry::{
    Layout, Nginx, Packing, Registry, Setup, TinyImage, TokenSetup, Tokens, Wire, damage,
    digest_of, noise, tar_of,
};

const BIG: usize = 4 << 20;

/// A store, a layout to push from, and a record of events, in one directory.
struct Bench {
    directory: tempfile::TempDir,
    store: ImageStore,
    events: Mutex<Vec<ImageEvent>>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("images")).unwrap();
        Self {
            directory,
            store,
            events: Mutex::default(),
        }
    }

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

    fn hear(&self, event: ImageEvent) {
        self.events.lock().unwrap().push(event);
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

/// A registry that wants tokens, filled with these images of one small layer each.
fn with_tokens(
    bench: &Bench,
    setup: TokenSetup,
    images: &[(&str, &[Vec<u8>])],
) -> (Registry, Tokens) {
    let tokens = Tokens::start(bench.directory.path(), setup).unwrap();
    let mut registry = Registry::start().unwrap();
    for (name, layers) in images {
        bench.push(&registry, name, layers);
    }
    registry
        .reconfigure(Setup {
            tokens: Some(tokens.clone()),
            ..Setup::default()
        })
        .unwrap();
    (registry, tokens)
}

#[test]
fn tokens_for_nobody_for_users_and_for_identity_tokens() {
    let bench = Bench::new();
    let small = [layer(1, 1000)];
    let images = [("public/a:1", &small[..]), ("team/b:1", &small[..])];
    let (registry, tokens) = with_tokens(&bench, TokenSetup::default(), &images);
    bench
        .pull(&registry.reference("public/a:1"), &options())
        .unwrap();
    let asked = tokens.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        (asked[0].who.as_deref(), asked[0].scope.as_str()),
        (None, "repository:public/a:pull")
    );

    let private = registry.reference("team/b:1");
    let error = bench.pull(&private, &options()).unwrap_err();
    assert!(
        matches!(error, ImageError::Unauthorized { .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("microagent login 127.0.0.1"),
        "{error}"
    );
    let error = bench
        .pull(&private, &options().credentials(alice("wr0ng")))
        .unwrap_err();
    assert!(error.to_string().contains("were not accepted"), "{error}");
    bench
        .pull(&private, &options().credentials(alice("s3cret")))
        .unwrap();
    assert_eq!(tokens.asked().last().unwrap().who.as_deref(), Some("alice"));

    let identity =
        |token: &str| options().credentials(Arc::new(Credential::Identity(token.into())));
    let error = bench.pull(&private, &identity("stolen")).unwrap_err();
    assert!(
        matches!(error, ImageError::Unauthorized { .. }),
        "{error:?}"
    );
    bench
        .pull(&private, &identity("an identity token"))
        .unwrap();
    let last = tokens.asked().pop().unwrap();
    assert_eq!(
        (last.method.as_str(), last.who.as_deref()),
        ("POST", Some("(identity)"))
    );
}

#[test]
fn a_token_that_expires_during_a_pull_is_had_again() {
    let bench = Bench::new();
    let setup = TokenSetup {
        good_for: 2,
        ..TokenSetup::default()
    };
    let layers: Vec<Vec<u8>> = (0..3).map(|seed| layer(seed, BIG)).collect();
    let (registry, tokens) = with_tokens(&bench, setup, &[("team/b:1", &layers)]);
    let wire = Wire::to(registry.port()).unwrap();
    wire.slow(3 << 20);
    let mut slowly = registry_options();
    slowly.parallel = 1;
    let options = options().registry(slowly).credentials(alice("s3cret"));
    bench
        .pull(&format!("127.0.0.1:{}/team/b:1", wire.port()), &options)
        .unwrap();
    let asked = tokens.asked();
    assert!((2..=4).contains(&asked.len()), "{asked:?}");
    assert!(
        asked
            .iter()
            .all(|asked| asked.who.as_deref() == Some("alice")),
        "{asked:?}"
    );
}

#[test]
fn who_cannot_say_who_asks_is_asked_for_public_images_anyway() {
    struct Broken;
    impl Credentials for Broken {
        fn credential(&self, _: &RegistryScope) -> Result<Option<Credential>, String> {
            Err("the keychain is locked".into())
        }
    }
    let bench = Bench::new();
    let small = [layer(1, 1000)];
    let images = [("public/a:1", &small[..]), ("team/b:1", &small[..])];
    let (registry, _tokens) = with_tokens(&bench, TokenSetup::default(), &images);
    let broken = options().credentials(Arc::new(Broken));
    bench
        .pull(&registry.reference("public/a:1"), &broken)
        .unwrap();
    let told = bench.events.lock().unwrap().iter().any(
        |event| matches!(event, ImageEvent::NoCredentials { reason, .. } if reason.contains("locked")),
    );
    assert!(told);
    let error = bench
        .pull(&registry.reference("team/b:1"), &broken)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("anonymously, because the keychain is locked"),
        "{error}"
    );
}

#[test]
fn blobs_of_another_server_come_without_our_credentials() {
    let bench = Bench::new();
    let login = ("alice".to_owned(), "s3cret".to_owned());
    let registry = Registry::start_with(Setup {
        login: Some(login),
        ..Setup::default()
    })
    .unwrap();
    bench.push(&registry, "a:1", &[layer(1, 1000), layer(2, 1000)]);
    // The other server has its own way to the content, as a storage service would.
    let own = base64::engine::general_purpose::STANDARD.encode("alice:s3cret");
    let upstream = registry.port();
    let nginx = Nginx::start(2, |ports| {
        format!(
            r#"server {{
    listen 127.0.0.1:{front};
    location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
    location ~ /blobs/ {{
        if ($http_authorization = "") {{ return 401; }}
        return 307 http://127.0.0.1:{other}$request_uri;
    }}
}}
server {{
    listen 127.0.0.1:{other};
    location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_set_header Authorization "Basic {own}"; }}
}}"#,
            front = ports[0],
            other = ports[1],
        )
    })
    .unwrap();
    bench
        .pull(
            &nginx.reference(0, "a:1"),
            &options().credentials(alice("s3cret")),
        )
        .unwrap();
    let (front, other) = (nginx.seen(0), nginx.seen(1));
    assert!(
        front.iter().any(|line| line.contains("Basic ")),
        "{front:?}"
    );
    assert_eq!(other.len(), 3, "{other:?}");
    assert!(
        other.iter().all(|line| line.contains(" 200 \"-\"")),
        "{other:?}"
    );
}

#[test]
fn an_interrupted_pull_goes_on_where_it_ended() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    bench.push(&registry, "a:1", &[layer(1, BIG), layer(2, BIG)]);
    let upstream = registry.port();
    let nginx = Nginx::start(1, |ports| {
        format!("server {{ listen 127.0.0.1:{}; location / {{ proxy_pass http://127.0.0.1:{upstream}; }} }}", ports[0])
    })
    .unwrap();
    let wire = Wire::to(nginx.port(0)).unwrap();
    let reference = format!("127.0.0.1:{}/a:1", wire.port());
    let mut hurried = registry_options();
    hurried.attempts = 1;
    hurried.parallel = 1;
    wire.cut(3 << 20, 9);
    let error = bench
        .pull(&reference, &options().registry(hurried))
        .unwrap_err();
    assert!(matches!(error, ImageError::Connection { .. }), "{error:?}");
    assert_eq!(bench.store.list().unwrap(), []);
    assert_eq!(bench.partials().len(), 1);
    let before = wire.carried();
    wire.cut(0, 0);
    bench.events.lock().unwrap().clear();
    bench.pull(&reference, &options()).unwrap();
    let resumed =
        bench.events.lock().unwrap().iter().any(
            |event| matches!(event, ImageEvent::LayerResumed { bytes, .. } if *bytes > 2 << 20),
        );
    assert!(resumed);
    let came = wire.carried() - before;
    assert!(came < (2 * BIG - (2 << 20)) as u64, "{came}");
    let seen = nginx.seen(0);
    assert!(
        seen.iter()
            .any(|line| line.contains(" 206 ") && line.contains("bytes=")),
        "{seen:?}"
    );
    assert_eq!(bench.partials(), Vec::<String>::new());
}

#[test]
fn what_was_left_is_not_trusted_and_not_kept_for_ever() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let tar = layer(1, BIG);
    bench.push(&registry, "a:1", std::slice::from_ref(&tar));
    let left = bench
        .store
        .root()
        .join("partial")
        .join(&digest_of(&tar)["sha256:".len()..]);
    // Whole but damaged, too long, and all of it.
    fs::write(&left, &tar).unwrap();
    damage(&left).unwrap();
    let record = bench.pull(&registry.reference("a:1"), &options()).unwrap();
    bench
        .store
        .remove(&record.digest.to_string(), &BTreeSet::new())
        .unwrap();
    fs::write(&left, noise(BIG * 2, 3)).unwrap();
    let record = bench.pull(&registry.reference("a:1"), &options()).unwrap();
    bench
        .store
        .remove(&record.digest.to_string(), &BTreeSet::new())
        .unwrap();
    fs::write(&left, &tar).unwrap();
    damage(&registry.blob_file(&digest_of(&tar))).unwrap();
    let record = bench.pull(&registry.reference("a:1"), &options()).unwrap();
    bench.store.base_disk(&record, &|_| {}).unwrap();
    bench
        .store
        .remove(&record.digest.to_string(), &BTreeSet::new())
        .unwrap();

    // A lie is not kept; what is old goes with the next operation, the rest with the next removal.
    bench
        .pull(&registry.reference("a:1"), &options())
        .unwrap_err();
    assert_eq!(bench.partials(), Vec::<String>::new());
    fs::write(&left, b"young").unwrap();
    let old = left.with_file_name("0".repeat(64));
    let file = fs::File::create(&old).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(30 * 24 * 3600))
        .unwrap();
    bench
        .pull(&registry.reference("none:1"), &options())
        .unwrap_err();
    assert!(left.exists() && !old.exists());
    assert_eq!(bench.store.reclaim(&BTreeSet::new()).unwrap().files, 1);
    assert_eq!(bench.partials(), Vec::<String>::new());
}

#[test]
fn a_server_without_ranges_is_asked_from_the_start() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    bench.push(&registry, "a:1", &[layer(1, BIG)]);
    let upstream = registry.port();
    let nginx = Nginx::start(1, |ports| {
        format!(
            "server {{ listen 127.0.0.1:{}; location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_set_header Range ''; }} }}",
            ports[0]
        )
    })
    .unwrap();
    let wire = Wire::to(nginx.port(0)).unwrap();
    wire.cut(2 << 20, 1);
    bench
        .pull(&format!("127.0.0.1:{}/a:1", wire.port()), &options())
        .unwrap();
    assert_eq!(bench.retries(), 1);
    assert!(
        wire.carried() > BIG as u64 + (1 << 20),
        "{}",
        wire.carried()
    );
}

#[test]
fn limits_are_waited_out_or_told() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    bench.push(&registry, "a:1", &[layer(1, 1000)]);
    let upstream = registry.port();
    let nginx = Nginx::start(2, |ports| {
        let server = |port: u16, wait: &str| {
            format!(
                r#"server {{
    listen 127.0.0.1:{port};
    limit_req_status 429;
    location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
    location ~ /manifests/ {{
        limit_req zone=asked;
        proxy_pass http://127.0.0.1:{upstream};
        error_page 429 @limited;
    }}
    location @limited {{ add_header Retry-After {wait} always; return 429; }}
}}
"#
            )
        };
        server(ports[0], "1") + &server(ports[1], "7200")
    })
    .unwrap();
    // The limit is one request a second.
    let begun = Instant::now();
    for _ in 0..2 {
        bench.pull(&nginx.reference(0, "a:1"), &options()).unwrap();
    }
    assert!(bench.retries() >= 1 && begun.elapsed() >= Duration::from_secs(1));
    // Two hours are not waited for.
    let begun = Instant::now();
    bench.pull(&nginx.reference(1, "a:1"), &options()).unwrap();
    let error = bench
        .pull(&nginx.reference(1, "a:1"), &options())
        .unwrap_err();
    assert!(matches!(error, ImageError::RateLimited { .. }), "{error:?}");
    assert!(error.to_string().contains("again in 2h"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_broken_front_is_tried_again_and_given_up() {
    let bench = Bench::new();
    let nginx = Nginx::start(2, |ports| {
        format!(
            "server {{ listen 127.0.0.1:{}; location / {{ proxy_pass http://127.0.0.1:1; }} }}
             server {{ listen 127.0.0.1:{}; location / {{ return 444; }} }}",
            ports[0], ports[1]
        )
    })
    .unwrap();
    let error = bench
        .pull(&nginx.reference(0, "a:1"), &options())
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Connection { attempts: 3, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("502"), "{error}");
    let error = bench
        .pull(&nginx.reference(1, "a:1"), &options())
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Connection { attempts: 3, .. }),
        "{error:?}"
    );
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

#[test]
fn a_registry_that_repeats_a_secret_is_not_quoted() {
    use testkit::registry::{Answer, Scripted};
    let bench = Bench::new();
    let registry = Scripted::start(|request| match request.header("authorization") {
        None => Answer::new("401 Unauthorized").header("WWW-Authenticate", "Basic realm=x"),
        Some(header) => Answer::new("418 I'm a teapot").body(format!(
            r#"{{"errors":[{{"message":"what is {header} or hunter2?"}}]}}"#
        )),
    });
    let options = options().credentials(alice("hunter2"));
    let error = bench
        .pull(&format!("{}/a:1", registry.name()), &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("what is Basic … or …?"), "{error}");
}
