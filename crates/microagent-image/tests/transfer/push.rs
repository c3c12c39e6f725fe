//! Pushes to Debian's `docker-registry`, with logins, tokens and TLS, and to servers that misbehave.

use std::fs;
use std::sync::{Arc, Mutex};

use microagent_image::{
    Credential, Credentials, ImageError, ImageEvent, ImageStore, PullOptions, PushOptions, Pushed,
    Reference, RegistryOptions,
};
use testkit::registry::{
    Answer, Certificates, Packing, Registry, Scripted, Setup, TokenSetup, Tokens, Wire, damage,
    noise, tar_of,
};

use super::{Bench, push_options, registry_options};

const BIG: usize = 8 << 20;

fn alice(password: &str) -> Arc<dyn Credentials> {
    Arc::new(Credential::Basic {
        username: "alice".into(),
        password: password.into(),
    })
}

fn layer(seed: u64, size: usize) -> Vec<u8> {
    tar_of(&[(&format!("file-{seed}"), 0o644, &noise(size, seed))])
}

/// One that a server can read that reads only text.
fn text_layer() -> Vec<u8> {
    tar_of(&[("file", 0o644, "some text\n".repeat(100).as_bytes())])
}

impl Bench {
    fn push(&self, name: &str, to: &str, options: &PushOptions) -> Result<Pushed, ImageError> {
        let to: Reference = to.parse().unwrap();
        self.store
            .push(name, Some(&to), options, &|event| self.hear(event))
    }

    fn retries(&self) -> usize {
        let events = self.events.lock().unwrap();
        let is_retry = |event: &&ImageEvent| matches!(event, ImageEvent::Retrying { .. });
        events.iter().filter(is_retry).count()
    }

    /// What another store pulls from there.
    fn pulled(&self, reference: &str, registry: RegistryOptions) -> microagent_image::ImageRecord {
        let other = ImageStore::open(self.path("puller")).unwrap();
        let options = PullOptions::new()
            .platform("linux/amd64".parse().unwrap())
            .registry(registry)
            .credentials(alice("s3cret"));
        other
            .pull(&reference.parse().unwrap(), &options, &|_| {})
            .unwrap()
    }
}

#[test]
fn with_a_login_over_tls() {
    let bench = Bench::new();
    let record = bench.image("app:1", &[layer(1, 1000), layer(2, BIG)], Packing::Gzip);
    let certificates = Certificates::make(bench.directory.path()).unwrap();
    let registry = Registry::start_with(Setup {
        login: Some(("alice".into(), "s3cret".into())),
        tls: Some((certificates.certificate.clone(), certificates.key.clone())),
        ..Setup::default()
    })
    .unwrap();
    let to = registry.reference("team/app:1");
    let mut known = registry_options();
    known.extra_roots = vec![fs::read(&certificates.authority).unwrap()];
    let options = PushOptions::new().registry(known.clone());

    let error = bench.push("app:1", &to, &push_options()).unwrap_err();
    assert!(matches!(error, ImageError::Tls { .. }), "{error:?}");
    let error = bench.push("app:1", &to, &options).unwrap_err();
    assert!(
        error.to_string().contains("microagent login 127.0.0.1"),
        "{error}"
    );
    let wrong = options.clone().credentials(alice("wr0ng"));
    let error = bench.push("app:1", &to, &wrong).unwrap_err();
    assert!(error.to_string().contains("were not accepted"), "{error}");

    let options = options.credentials(alice("s3cret"));
    bench.events.lock().unwrap().clear();
    let pushed = bench.push("app:1", &to, &options).unwrap();
    assert_eq!((pushed.layers_sent, pushed.digest), (2, record.digest));
    assert_eq!(
        pushed.bytes_sent,
        record.layers.iter().map(|l| l.size).sum::<u64>()
    );
    let events = bench.events.lock().unwrap().split_off(0);
    let ended = events.iter().filter(
        |event| matches!(event, ImageEvent::LayerProgress { bytes, total, .. } if bytes == total),
    );
    assert_eq!(ended.count(), 2);
    assert!(matches!(
        events.last(),
        Some(ImageEvent::Pushed { digest, .. }) if *digest == record.digest
    ));
    assert_eq!(bench.pulled(&to, known).digest, record.digest);

    // Once more, and under another tag: nothing is sent. Under its digest: that it must be.
    let again = bench.push("app:1", &to.replace(":1", ":2"), &options);
    let pushed = again.unwrap();
    assert_eq!((pushed.layers_existed, pushed.bytes_sent), (2, 0));
    let name = to.trim_end_matches(":1");
    bench
        .push("app:1", &format!("{name}@{}", record.digest), &options)
        .unwrap();
    let other = record.config;
    let error = bench
        .push("app:1", &format!("{name}@{other}"), &options)
        .unwrap_err();
    assert!(matches!(error, ImageError::CannotPush { .. }), "{error:?}");
}

#[test]
fn with_tokens_that_expire() {
    let bench = Bench::new();
    let layers: Vec<Vec<u8>> = (0..3).map(|seed| layer(seed, 4 << 20)).collect();
    let record = bench.image("app:1", &layers, Packing::Plain);
    let setup = TokenSetup {
        good_for: 2,
        ..TokenSetup::default()
    };
    let tokens = Tokens::start(bench.directory.path(), setup).unwrap();
    let registry = Registry::start_with(Setup {
        tokens: Some(tokens.clone()),
        ..Setup::default()
    })
    .unwrap();
    let wire = Wire::to(registry.port()).unwrap();
    wire.slow_up(3 << 20);
    let mut slowly = registry_options();
    slowly.parallel = 1;
    let to = format!("127.0.0.1:{}/team/app:1", wire.port());
    // Everybody may read what is public, and nobody write it.
    let public = to.replace("team/", "public/");
    for options in [push_options(), push_options().credentials(alice("s3cret"))] {
        let error = bench.push("app:1", &public, &options).unwrap_err();
        assert!(
            matches!(error, ImageError::Unauthorized { .. }),
            "{error:?}"
        );
    }
    let options = push_options()
        .registry(slowly.clone())
        .credentials(alice("s3cret"));
    let pushed = bench.push("app:1", &to, &options).unwrap();
    assert_eq!((pushed.layers_sent, pushed.digest), (3, record.digest));
    let asked = tokens.asked();
    let last = asked.last().unwrap();
    assert_eq!(last.who.as_deref(), Some("alice"));
    assert_eq!(last.scope, "repository:team/app:pull,push");
    assert_eq!(bench.pulled(&to, slowly).digest, record.digest);
}

/// What the registry has in another repository is not sent again.
#[test]
fn layers_of_another_repository_are_taken_over() {
    let bench = Bench::new();
    let tokens = Tokens::start(bench.directory.path(), TokenSetup::default()).unwrap();
    let registry = Registry::start_with(Setup {
        tokens: Some(tokens.clone()),
        ..Setup::default()
    })
    .unwrap();
    let options = push_options().credentials(alice("s3cret"));
    bench.image("base:1", &[layer(1, BIG)], Packing::Plain);
    let base = registry.reference("team/base:1");
    bench.push("base:1", &base, &options).unwrap();
    // Only what was pulled from there is known to be there.
    bench
        .store
        .remove("base:1", &std::collections::BTreeSet::new())
        .unwrap();
    let pull = PullOptions::new()
        .platform("linux/amd64".parse().unwrap())
        .registry(registry_options())
        .credentials(alice("s3cret"));
    bench
        .store
        .pull(&base.parse().unwrap(), &pull, &|_| {})
        .unwrap();
    bench.image("app:1", &[layer(1, BIG), layer(2, 100)], Packing::Plain);
    let pushed = bench
        .push("app:1", &registry.reference("other/app:1"), &options)
        .unwrap();
    assert_eq!((pushed.layers_mounted, pushed.layers_sent), (1, 1));
    assert!(pushed.bytes_sent < 10_000, "{pushed:?}");
    assert!(bench.events.lock().unwrap().iter().any(|event| matches!(
        event,
        ImageEvent::LayerMounted { from, .. } if from == "team/base"
    )));
    assert_eq!(
        tokens.asked().last().unwrap().scope,
        "repository:other/app:pull,push repository:team/base:pull"
    );
}

/// Debian's registry knows of a broken upload only that it is broken.
#[test]
fn a_broken_upload_is_made_again() {
    let bench = Bench::new();
    let record = bench.image("app:1", &[layer(1, BIG)], Packing::Plain);
    let registry = Registry::start().unwrap();
    let wire = Wire::to(registry.port()).unwrap();
    wire.cut_up(3 << 20, 2);
    let to = format!("127.0.0.1:{}/app:1", wire.port());
    bench.push("app:1", &to, &push_options()).unwrap();
    assert!(bench.retries() >= 2, "{} retries", bench.retries());
    assert_eq!(bench.pulled(&to, registry_options()).digest, record.digest);
}

/// A registry that says how far an upload came gets only the rest of it.
#[test]
fn a_broken_upload_goes_on_where_it_ended() {
    const TOOK: usize = 700;
    let bench = Bench::new();
    let record = bench.image("app:1", &[text_layer()], Packing::Plain);
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&log);
    let registry = Scripted::start(move |request| {
        let is_layer = request.body.contains("some text");
        let range = request.header("content-range").map(str::to_owned);
        let mut log = seen.lock().unwrap();
        match request.method.as_str() {
            "HEAD" => Answer::new("404 Not Found"),
            "POST" => Answer::new("202 Accepted").header("Location", "/upload?s=1"),
            "PATCH" if is_layer => {
                log.push((request.body.len(), range));
                if log.len() == 1 {
                    return Answer::new("502 Bad Gateway");
                }
                Answer::new("202 Accepted").header("Location", "/upload?s=3")
            }
            "PATCH" => Answer::new("202 Accepted").header("Location", "/upload?s=3"),
            "GET" => Answer::new("204 No Content")
                .header("Location", "/upload?s=2")
                .header("Range", format!("0-{}", TOOK - 1)),
            "PUT" if request.target.contains("/manifests/") => Answer::new("201 Created").header(
                "Docker-Content-Digest",
                testkit::registry::digest_of(request.body.as_bytes()),
            ),
            _ => Answer::new("201 Created"),
        }
    });
    let pushed = bench
        .push(
            "app:1",
            &format!("{}/app:1", registry.name()),
            &push_options(),
        )
        .unwrap();
    assert_eq!(pushed.digest, record.digest);
    let size = usize::try_from(record.layers[0].size).unwrap();
    assert_eq!(
        *log.lock().unwrap(),
        [
            (size, None),
            (size - TOOK, Some(format!("{TOOK}-{}", size - 1)))
        ]
    );
}

#[test]
fn a_registry_that_forgets_an_upload_gets_it_again() {
    let bench = Bench::new();
    bench.image("app:1", &[layer(1, BIG)], Packing::Plain);
    let mut registry = Registry::start().unwrap();
    let wire = Wire::to(registry.port()).unwrap();
    wire.slow_up(8 << 20);
    let to = format!("127.0.0.1:{}/app:1", wire.port());
    let mut patient = registry_options();
    patient.attempts = 50;
    let options = push_options().registry(patient);
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| bench.push("app:1", &to, &options));
        let begun = std::time::Instant::now();
        while wire.carried_up() < 2 << 20 {
            assert!(begun.elapsed().as_secs() < 30, "nothing is sent");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        registry.restart().unwrap();
        let pushed = pushing.join().unwrap().unwrap();
        assert_eq!(pushed.layers_sent, 1);
    });
    assert!(bench.retries() >= 1);
    bench.pulled(&to, registry_options());
}

/// A blob that is not what it is called is not published by anybody.
#[test]
fn a_damaged_layer_is_found_before_it_is_named() {
    let bench = Bench::new();
    let record = bench.image("app:1", &[layer(1, 100_000)], Packing::Plain);
    let blob = bench
        .store
        .root()
        .join("blobs/sha256")
        .join(record.layers[0].digest.hex());
    damage(&blob).unwrap();
    let registry = Registry::start().unwrap();
    let to = registry.reference("app:1");
    let error = bench.push("app:1", &to, &push_options()).unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error:?}");
    fs::remove_file(&blob).unwrap();
    let error = bench.push("app:1", &to, &push_options()).unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
    let pull = PullOptions::new().registry(registry_options());
    let other = ImageStore::open(bench.path("puller")).unwrap();
    let found = other.pull(&to.parse().unwrap(), &pull, &|_| {});
    assert!(
        matches!(found, Err(ImageError::NotFound { .. })),
        "{found:?}"
    );
}

/// Where a registry sends uploads to another server, that server is not told who we are.
#[test]
fn credentials_stay_with_their_registry() {
    let bench = Bench::new();
    bench.image("app:1", &[text_layer()], Packing::Plain);
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&log);
    let storage = Scripted::start(move |request| {
        let authorization = request.header("authorization").map(str::to_owned);
        seen.lock()
            .unwrap()
            .push((request.method.clone(), authorization));
        let status = match request.method.as_str() {
            "PATCH" => "202 Accepted",
            _ => "201 Created",
        };
        Answer::new(status).header("Location", "/upload?state=2")
    });
    let registry = Scripted::start(move |request| {
        if request.header("authorization").is_none() {
            return Answer::new("401 Unauthorized").header("WWW-Authenticate", "Basic realm=\"x\"");
        }
        match request.method.as_str() {
            "HEAD" => Answer::new("404 Not Found"),
            "POST" => Answer::new("202 Accepted").header(
                "Location",
                format!("http://{}/upload?state=1", storage.name()),
            ),
            // It lies about what it stored.
            _ => Answer::new("201 Created").header(
                "Docker-Content-Digest",
                format!("sha256:{}", "0".repeat(64)),
            ),
        }
    });
    let options = push_options().credentials(alice("s3cret"));
    let error = bench
        .push("app:1", &format!("{}/app:1", registry.name()), &options)
        .unwrap_err();
    assert!(
        matches!(&error, ImageError::DigestMismatch { what, .. } if what.contains("stored")),
        "{error:?}"
    );
    let log = log.lock().unwrap();
    let mut methods: Vec<&str> = log.iter().map(|(method, _)| method.as_str()).collect();
    // The layer and the configuration go at once.
    methods.sort_unstable();
    assert_eq!(methods, ["PATCH", "PATCH", "PUT", "PUT"]);
    assert!(log.iter().all(|(_, said)| said.is_none()), "{log:?}");
}

#[test]
fn what_takes_no_images_is_told() {
    let bench = Bench::new();
    bench.image("app:1", &[layer(1, 1000)], Packing::Plain);
    let push = |post: fn() -> Answer| {
        let server = Scripted::start(move |request| match request.method.as_str() {
            "POST" => post(),
            _ => Answer::new("404 Not Found"),
        });
        bench
            .push(
                "app:1",
                &format!("{}/app:1", server.name()),
                &push_options(),
            )
            .unwrap_err()
    };
    for post in [
        || Answer::new("404 Not Found").body("<html>"),
        || Answer::new("405 Method Not Allowed"),
    ] {
        let error = push(post);
        assert!(
            matches!(error, ImageError::TakesNoImages { .. }),
            "{error:?}"
        );
    }
    let says = |error: ImageError, what: &str| {
        assert!(error.to_string().contains(what), "{error}");
    };
    says(
        push(|| Answer::new("307 Temporary Redirect").header("Location", "/elsewhere")),
        "redirects what is sent",
    );
    says(
        push(|| Answer::new("202 Accepted").header("Location", "http://storage.example/upload")),
        "storage.example`, which is not HTTPS",
    );
    says(push(|| Answer::new("202 Accepted")), "to nowhere");
    says(
        push(|| Answer::new("413 Payload Too Large").body("too big")),
        "413",
    );
    let nobody = "127.0.0.1:1/app:1";
    let error = bench.push("app:1", nobody, &push_options()).unwrap_err();
    assert!(matches!(error, ImageError::Connection { .. }), "{error:?}");
    let error = bench
        .push("app:1", "docker.invalid/app:1", &push_options())
        .unwrap_err();
    assert!(matches!(error, ImageError::NoSuchHost { .. }), "{error:?}");
}
