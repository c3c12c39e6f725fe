//! What a registry may answer beyond what Debian's does: tokens, redirects, back-pressure, lies.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fronts;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use microagent_image::{
    Credential, ImageError, ImageEvent, ImageRecord, ImageStore, PullOptions, Reference,
    RegistryOptions,
};
use serde_json::json;
use testkit::registry::{Answer, Packing, Request, Scripted, digest_of, pack, tar_of};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn ok(content_type: &str, body: &[u8]) -> Answer {
    Answer::new("200 OK")
        .header("Content-Type", content_type)
        .body(body)
}

fn status(status: &'static str) -> Answer {
    Answer::new(status)
}

/// The three parts of a small image.
struct Parts {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Parts {
    fn new() -> Self {
        Self::of(&tar_of(&[("f", 0o644, b"content")]))
    }

    fn of(tar: &[u8]) -> Self {
        let layer = pack(tar, Packing::Gzip);
        let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(tar)]}});
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(&config), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest_of(&layer), "size": layer.len()}],
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        Self {
            layer,
            config,
            manifest,
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        let last = request.target.rsplit('/').next().unwrap();
        if request.target.contains("/manifests/") {
            ok(MANIFEST, &self.manifest)
        } else if last == digest_of(&self.config) {
            ok("application/octet-stream", &self.config)
        } else if last == digest_of(&self.layer) {
            ok("application/octet-stream", &self.layer)
        } else {
            status("404 Not Found")
        }
    }
}

fn options() -> PullOptions {
    let mut registry = RegistryOptions::default();
    registry.backoff = Duration::from_millis(10);
    registry.attempts = 3;
    registry.stall_timeout = Duration::from_secs(2);
    PullOptions::new()
        .platform("linux/amd64".parse().unwrap())
        .registry(registry)
}

fn pull(
    reference: &str,
    options: &PullOptions,
) -> (Result<ImageRecord, ImageError>, Vec<ImageEvent>) {
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open(directory.path()).unwrap();
    let reference: Reference = reference.parse().unwrap();
    let events = Mutex::new(Vec::new());
    let result = store.pull(&reference, options, &|event| {
        events.lock().unwrap().push(event);
    });
    if result.is_err() {
        for folder in ["blobs/sha256", "tmp"] {
            assert_eq!(
                std::fs::read_dir(directory.path().join(folder))
                    .unwrap()
                    .count(),
                0
            );
        }
    }
    (result, events.into_inner().unwrap())
}

#[test]
fn a_token_is_fetched_once_and_only_the_token_service_sees_the_password() {
    let parts = Parts::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&seen);
    let tokens = Scripted::start(move |request| {
        asked.lock().unwrap().push((
            request.target.clone(),
            request.header("authorization").map(str::to_owned),
        ));
        ok(
            "application/json",
            br#"{"token": "", "access_token": "t0ken", "expires_in": "soon"}"#,
        )
    });
    let realm = tokens.name();
    let registry = Scripted::start(move |request| match request.header("authorization") {
        Some("Bearer t0ken") => parts.answer(request),
        Some(other) => panic!("the registry was sent {other}"),
        None => Answer::of(
            "401 Unauthorized",
            vec![(
                "WWW-Authenticate",
                format!(
                    r#"Bearer realm="http://{realm}/token",service="the service",scope="repository:a/b:pull""#
                ),
            )],
            Vec::new(),
        ),
    });
    let image = format!("{}/a/b:1", registry.name());
    pull(&image, &options()).0.unwrap();
    let expect = "/token?service=the%20service&scope=repository%3Aa%2Fb%3Apull".to_owned();
    assert_eq!(*seen.lock().unwrap(), [(expect.clone(), None)]);
    let with = options().credentials(Arc::new(Credential::Basic {
        username: "u".into(),
        password: "p".into(),
    }));
    pull(&image, &with).0.unwrap();
    assert_eq!(
        seen.lock().unwrap()[1..],
        [(expect, Some("Basic dTpw".to_owned()))]
    );
}

#[test]
fn a_redirect_to_another_host_gets_no_credentials() {
    let parts = Arc::new(Parts::new());
    let blobs = Arc::clone(&parts);
    let elsewhere = Scripted::start(move |request| {
        assert_eq!(request.header("authorization"), None);
        blobs.answer(request)
    });
    let target = elsewhere.name();
    let registry = Scripted::start(move |request| {
        assert_eq!(
            request.header("authorization").unwrap_or("Bearer fixed"),
            "Bearer fixed"
        );
        if request.header("authorization").is_none() {
            return Answer::of(
                "401 Unauthorized",
                vec![("WWW-Authenticate", "Basic realm=x".into())],
                Vec::new(),
            );
        }
        if request.target.contains("/blobs/") {
            return Answer::of(
                "307 Temporary Redirect",
                vec![("Location", format!("http://{target}{}", request.target))],
                Vec::new(),
            );
        }
        parts.answer(request)
    });
    let with = options().credentials(Arc::new(Credential::Bearer("fixed".into())));
    pull(&format!("{}/a:1", registry.name()), &with).0.unwrap();
}

#[test]
fn redirects_that_lead_astray() {
    for (location, reason) in [
        ("http://registry.example/x", "not HTTPS"),
        ("ftp://127.0.0.1/x", "not HTTPS"),
        ("/again", "too often"),
        ("http://u:p@127.0.0.1/", "one with a password"),
    ] {
        let registry = Scripted::start(move |_| {
            Answer::of("302 Found", vec![("Location", location.into())], Vec::new())
        });
        let error = pull(&format!("{}/a:1", registry.name()), &options())
            .0
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{location}: {error}");
    }
}

#[test]
fn back_pressure_is_waited_out_and_ends() {
    let parts = Parts::new();
    let refusals = Mutex::new(2);
    let registry = Scripted::start(move |request| {
        let mut left = refusals.lock().unwrap();
        if request.target.contains("/manifests/") && *left > 0 {
            *left -= 1;
            let body =
                br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow \u001b[31mdown"}]}"#
                    .to_vec();
            return Answer::of(
                "429 Too Many Requests",
                vec![("Retry-After", "0".into())],
                body,
            );
        }
        parts.answer(request)
    });
    let (result, events) = pull(&format!("{}/a:1", registry.name()), &options());
    result.unwrap();
    let (reasons, waits): (Vec<&str>, Vec<u64>) = events
        .iter()
        .filter_map(|event| match event {
            ImageEvent::Retrying {
                reason, delay_ms, ..
            } => Some((reason.as_str(), *delay_ms)),
            _ => None,
        })
        .unzip();
    // "At once" is no reason to wait less than is our own way.
    assert_eq!(waits, [10, 20]);
    assert!(
        reasons[0].contains("429") && reasons[0].contains("slow") && !reasons[0].contains('\u{1b}'),
        "{reasons:?}"
    );

    let never = Scripted::start(|_| status("503 Service Unavailable"));
    let error = pull(&format!("{}/a:1", never.name()), &options())
        .0
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Connection { attempts: 3, .. }),
        "{error:?}"
    );
}

/// Each answer differs from a good one in one way.
#[test]
fn lies_are_found() {
    type Lie = fn(&Parts, &Request) -> Option<Answer>;
    let lies: [(&str, Lie); 9] = [
        ("does not match", |parts, request| {
            let wrong = vec![
                ("Content-Type", MANIFEST.into()),
                ("Docker-Content-Digest", digest_of(b"other")),
            ];
            request
                .target
                .contains("/manifests/")
                .then(|| Answer::of("200 OK", wrong, parts.manifest.clone()))
        }),
        ("larger than", |_, request| {
            request
                .target
                .contains("/manifests/")
                .then(|| ok(MANIFEST, &vec![b' '; 5 << 20]))
        }),
        ("schema 1", |_, request| {
            request.target.contains("/manifests/").then(|| {
                ok(
                    "application/vnd.docker.distribution.manifest.v1+prettyjws",
                    br#"{"schemaVersion":1,"fsLayers":[]}"#,
                )
            })
        }),
        ("cannot be read: what came is a web page", |_, request| {
            request
                .target
                .contains("/manifests/")
                .then(|| ok("text/html", b"<html>Log in to the hotel network</html>"))
        }),
        ("the content encoding `gzip`", |parts, request| {
            assert_eq!(request.header("accept-encoding"), Some("identity"));
            request.target.contains("/manifests/").then(|| {
                let packed = pack(&parts.manifest, Packing::Gzip);
                ok(MANIFEST, &packed).header("Content-Encoding", "gzip")
            })
        }),
        // Longer than declared, by length and without one.
        ("The size of layer 1", |parts, request| {
            request
                .target
                .ends_with(&digest_of(&parts.layer))
                .then(|| ok("", &[parts.layer.clone(), vec![0; 9]].concat()))
        }),
        ("The size of layer 1", |parts, request| {
            let endless = format!("{:x}\r\n", parts.layer.len() + 4).into_bytes();
            let body = [endless, parts.layer.clone(), b"more\r\n0\r\n\r\n".to_vec()].concat();
            request.target.ends_with(&digest_of(&parts.layer)).then(|| {
                Answer::of(
                    "200 OK",
                    vec![("Transfer-Encoding", "chunked".into())],
                    body,
                )
            })
        }),
        ("Connection", |parts, request| {
            request.target.ends_with(&digest_of(&parts.layer)).then(|| {
                Answer::of(
                    "200 OK",
                    vec![("Content-Length", parts.layer.len().to_string())],
                    parts.layer[..20].to_vec(),
                )
            })
        }),
        ("404", |parts, request| {
            request
                .target
                .ends_with(&digest_of(&parts.layer))
                .then(|| status("404 Not Found"))
        }),
    ];
    for (reason, lie) in lies {
        let parts = Parts::new();
        let registry = Scripted::start(move |request| {
            lie(&parts, request).unwrap_or_else(|| parts.answer(request))
        });
        let error = pull(&format!("{}/a:1", registry.name()), &options())
            .0
            .unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains(reason), "{reason}: {text}");
    }
}

#[test]
fn a_silent_registry_is_given_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut registry = RegistryOptions::default();
    registry.attempts = 2;
    registry.backoff = Duration::from_millis(10);
    registry.connect_timeout = Duration::from_secs(1);
    registry.stall_timeout = Duration::from_millis(200);
    let begun = std::time::Instant::now();
    let error = pull(
        &format!("127.0.0.1:{port}/a:1"),
        &options().registry(registry),
    )
    .0
    .unwrap_err();
    assert!(matches!(error, ImageError::Connection { .. }), "{error:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(12),
        "{:?}",
        begun.elapsed()
    );
    drop(listener);
}

/// A byte now and then is no silence, and would never end.
#[test]
fn a_registry_that_trickles_is_given_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    // It ends with this process: whoever gives up closes the connection.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let asked = stream.read(&mut [0; 4096]).unwrap();
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n";
            let mut sent = stream.write_all(head);
            while asked > 0 && sent.is_ok() {
                thread::sleep(Duration::from_millis(20));
                sent = stream.write_all(b" ");
            }
        }
    });
    let mut registry = RegistryOptions::default();
    registry.attempts = 2;
    registry.backoff = Duration::from_millis(10);
    registry.stall_timeout = Duration::from_millis(500);
    let error = pull(
        &format!("127.0.0.1:{port}/a:1"),
        &options().registry(registry),
    )
    .0
    .unwrap_err();
    assert!(error.to_string().contains("bytes came in"), "{error}");
}

#[test]
fn nobody_there() {
    let nobody = testkit::Port::free();
    let error = pull(&format!("{}/a:1", nobody.address()), &options())
        .0
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Connection { attempts: 3, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("Check the network"), "{error}");
}

/// 0.0.0.0 reaches this machine, but is no loopback name: what holds for it holds for any host.
#[test]
fn plain_http_only_where_it_is_named() {
    let parts = Parts::new();
    let registry = Scripted::start(move |request| parts.answer(request));
    let host = format!("0.0.0.0:{}", registry.port());
    let image = format!("{host}/a:1");
    let error = pull(&image, &options()).0.unwrap_err();
    assert!(matches!(error, ImageError::PlainHttp { .. }), "{error:?}");
    assert!(error.to_string().contains("insecure registry"), "{error}");
    let mut named = RegistryOptions::default();
    named.insecure_registries.push(host);
    pull(&image, &options().registry(named)).0.unwrap();
}
