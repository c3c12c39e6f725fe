//! Wires that break, servers that limit or give no ranges.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use microagent_image::{ImageError, ImageEvent};
use testkit::registry::{Nginx, Registry, Wire, damage, digest_of, noise};

use crate::{BIG, Bench, layer, options, registry_options};

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
