//! What goes wrong most, made for real: each time the message says what to do.

use std::fs;

use serde_json::Value;
use testkit::{
    Finished, Sandbox,
    registry::{
        Answer, Certificates, Layout, Nginx, Packing, Proxy, Registry, Scripted, Setup, TinyImage,
        damage, digest_of, noise, tar_of,
    },
};

use crate::{guarded, layout, registry, sandbox, write};

/// Pulls `reference`, which must fail.
fn refused(sandbox: &Sandbox, reference: &str) -> Finished {
    sandbox
        .microagent(["images", "pull", reference])
        .run()
        .exited(1)
}

/// Panics unless the message has all of these.
fn says(finished: &Finished, words: &[&str]) {
    let text = finished.err();
    for word in words {
        assert!(text.contains(word), "{word:?}: {finished}");
    }
}

#[test]
fn a_typo() {
    let registry = registry(Setup::default(), &["debian:bookworm", "debian:12"]);
    let sandbox = sandbox();
    let near = registry.reference("debian:bookworm");
    says(
        &refused(&sandbox, &registry.reference("debian:bookwrom")),
        &["was not found", &format!("Did you mean {near}?")],
    );
    says(
        &refused(&sandbox, &registry.reference("debain:bookworm")),
        &[&format!("Did you mean {near}?")],
    );
    says(
        &refused(&sandbox, &registry.reference("debian:sid")),
        &["It has the tags 12 and bookworm."],
    );
}

#[test]
fn a_private_image_without_a_login() {
    let registry = registry(guarded(), &["tiny:1"]);
    let host = format!("127.0.0.1:{}", registry.port());
    let refused = refused(&sandbox(), &registry.reference("tiny:1"));
    says(
        &refused,
        &[
            "user name and a password",
            &format!("`microagent login {host}`"),
            &format!("microagent whoami {host}"),
        ],
    );
}

#[test]
fn an_image_for_another_machine() {
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(&directory.path().join("layout")).unwrap();
    let other = |architecture: &str| {
        TinyImage::new(architecture).layer(tar_of(&[("a", 0o644, b"")]), Packing::Gzip)
    };
    layout
        .add("other:1", &[other("s390x"), other("riscv64")])
        .unwrap();
    let registry = Registry::start().unwrap();
    registry.push(layout.path(), "other:1").unwrap();
    let refused = refused(&sandbox(), &registry.reference("other:1"));
    says(
        &refused,
        &["it has only: linux/riscv64, linux/s390x", "--platform"],
    );
    // An image of another kind can be had, and is not run.
    let sandbox = sandbox();
    let reference = registry.reference("other:1");
    let pull = ["images", "pull", "--platform", "s390x", &reference];
    let _pulled = sandbox.microagent(pull).run().success();
    let run = ["run", "--platform", "linux/s390x", &reference];
    let foreign = sandbox.microagent(run).run().exited(125);
    says(&foreign, &["cannot run here", "Leave --platform out"]);
}

#[test]
fn too_many_requests() {
    let registry = registry(Setup::default(), &["tiny:1"]);
    let upstream = registry.port();
    let nginx = Nginx::start(1, |ports| {
        format!(
            r#"server {{
    listen 127.0.0.1:{};
    location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
    location ~ /manifests/ {{ limit_req zone=asked; limit_req_status 429; error_page 429 @limited; proxy_pass http://127.0.0.1:{upstream}; }}
    location @limited {{ default_type application/json; add_header Retry-After 21600 always; return 429 '{{"errors":[{{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}}]}}'; }}
}}"#,
            ports[0]
        )
    })
    .unwrap();
    let (sandbox, reference) = (sandbox(), nginx.reference(0, "tiny:1"));
    let _first = sandbox
        .microagent(["images", "pull", &reference])
        .run()
        .success();
    let refused = refused(&sandbox, &reference);
    says(
        &refused,
        &[
            "You have reached your pull rate limit",
            "again in 6h",
            "microagent login",
            "mirror",
        ],
    );
    let report: Value = {
        let json = sandbox
            .microagent(["--json", "--quiet", "images", "pull", &reference])
            .run()
            .exited(1);
        serde_json::from_slice(&json.stderr).unwrap()
    };
    assert_eq!(report["kind"], "transient");
}

#[test]
fn tls_where_there_is_none() {
    let registry = registry(Setup::default(), &["tiny:1"]);
    let sandbox = sandbox();
    // 0.0.0.0 reaches this machine, and is no loopback name.
    let host = format!("0.0.0.0:{}", registry.port());
    says(
        &refused(&sandbox, &format!("{host}/tiny:1")),
        &[
            "does not speak TLS",
            "--insecure-registry",
            "registries.toml",
        ],
    );
    write(
        sandbox.state(),
        "registries.toml",
        &format!("[registry.\"{host}\"]\ninsecure = true\n"),
    );
    let _pulled = sandbox
        .microagent(["images", "pull", &format!("{host}/tiny:1")])
        .run()
        .success();
}

#[test]
fn no_tls_where_it_is_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(directory.path()).unwrap();
    let secure = registry(
        Setup {
            tls: Some((certificates.certificate.clone(), certificates.key.clone())),
            ..Setup::default()
        },
        &["tiny:1"],
    );
    let sandbox = sandbox();
    // A registry that speaks TLS is never spoken to without, even where that would be allowed.
    let named = sandbox
        .microagent([
            "images",
            "pull",
            "--insecure-registry",
            &format!("127.0.0.1:{}", secure.port()),
            &secure.reference("tiny:1"),
        ])
        .run()
        .exited(1);
    says(&named, &["TLS", "`ca` in registries.toml"]);
    // A registry that sends us to its token service with the wrong scheme.
    let realm = format!(
        "Bearer realm=\"http://127.0.0.1:{}/token\",service=\"x\"",
        secure.port()
    );
    let front = Scripted::start(move |_| {
        Answer::new("401 Unauthorized").header("WWW-Authenticate", realm.clone())
    });
    says(
        &refused(&sandbox, &format!("{}/tiny:1", front.name())),
        &[
            "a server that speaks TLS was asked in plain HTTP",
            "https:// belongs",
        ],
    );
}

/// Pulls `reference` into a state directory on a file system of `size`.
fn pull_into(size: &str, sandbox: &Sandbox, reference: &str) -> Finished {
    fs::create_dir_all(sandbox.state()).unwrap();
    let script = format!(
        "mount -t tmpfs -o size={size} tmpfs {state} && exec {program} images pull {reference}",
        state = sandbox.state().display(),
        program = env!("CARGO_BIN_EXE_microagent"),
    );
    sandbox
        .program("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &script])
        .run()
}

#[test]
fn a_full_disk() {
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(&directory.path().join("layout")).unwrap();
    let big = tar_of(&[("big", 0o644, &noise(8 << 20, 1))]);
    layout
        .add(
            "big:1",
            &[TinyImage::new(crate::ARCHITECTURE).layer(big, Packing::Gzip)],
        )
        .unwrap();
    // Small on the way, large when unpacked.
    let text: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let dense = tar_of(&[("dense", 0o644, &text)]);
    layout
        .add(
            "dense:1",
            &[TinyImage::new(crate::ARCHITECTURE).layer(dense, Packing::Zstd)],
        )
        .unwrap();
    let registry = Registry::start().unwrap();
    for name in ["big:1", "dense:1"] {
        registry.push(layout.path(), name).unwrap();
    }
    let early = pull_into("4m", &sandbox(), &registry.reference("big:1")).exited(1);
    says(
        &early,
        &[
            "no space",
            "9 MiB are needed and 3 MiB are free",
            "microagent images rm",
            "--state-dir",
        ],
    );
    let late = pull_into("10m", &sandbox(), &registry.reference("dense:1")).exited(1);
    says(&late, &["space", "microagent images rm", "--state-dir"]);
}

#[test]
fn a_clock_that_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(directory.path()).unwrap();
    let setup = Setup {
        tls: Some((certificates.certificate.clone(), certificates.key.clone())),
        ..Setup::default()
    };
    let registry = registry(setup, &["tiny:1"]);
    let sandbox = sandbox();
    let settings = format!(
        "[registry.\"127.0.0.1\"]\nca = [\"{}\"]\n",
        certificates.authority.display()
    );
    write(sandbox.state(), "registries.toml", &settings);
    let reference = registry.reference("tiny:1");
    let pull_at = |shift: &str| {
        let command = [
            "-f",
            shift,
            env!("CARGO_BIN_EXE_microagent"),
            "images",
            "pull",
            &reference,
        ];
        sandbox.program("faketime").args(command).run()
    };
    says(
        &pull_at("-400d").exited(1),
        &[
            "is valid from",
            "this host's clock shows",
            "Check the clock",
        ],
    );
    says(
        &pull_at("+400d").exited(1),
        &[
            "was valid until",
            "this host's clock shows",
            "Check the clock",
        ],
    );
    let _right = pull_at("+1m").success();
}

#[test]
fn a_proxy_that_refuses_and_one_that_serves() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(directory.path()).unwrap();
    let setup = Setup {
        tls: Some((certificates.certificate.clone(), certificates.key.clone())),
        ..Setup::default()
    };
    let registry = registry(setup, &["tiny:1"]);
    let sandbox = sandbox();
    let settings = format!(
        "[registry.\"0.0.0.0\"]\nca = [\"{}\"]\n",
        certificates.authority.display()
    );
    write(sandbox.state(), "registries.toml", &settings);
    let reference = format!("0.0.0.0:{}/tiny:1", registry.port());
    let pull = |name: &str, proxy: &str| {
        sandbox
            .microagent(["--verbose", "images", "pull", &reference])
            .env(name, proxy)
            .run()
    };
    let nobody = pull("HTTPS_PROXY", "http://127.0.0.1:1").exited(1);
    says(
        &nobody,
        &[
            "The proxy 127.0.0.1:1 did not connect",
            "refused",
            "NO_PROXY",
        ],
    );
    let odd = pull("https_proxy", "socks5://127.0.0.1:1").exited(1);
    says(&odd, &["not of the form http://host:port"]);

    let strict = Proxy::start("BasicAuth agent pr0xy-pass\nConnectPort 443").unwrap();
    let bare = pull(
        "HTTPS_PROXY",
        &format!("http://127.0.0.1:{}", strict.port()),
    )
    .exited(1);
    says(&bare, &["it wants a user name and a password"]);
    let with = format!("http://agent:pr0xy-pass@127.0.0.1:{}", strict.port());
    let forbidden = pull("HTTPS_PROXY", &with).exited(1);
    says(&forbidden, &["it does not allow this host or port"]);
    assert!(!forbidden.err().contains("pr0xy-pass"), "{forbidden}");

    let proxy = Proxy::start("BasicAuth agent pr0xy-pass").unwrap();
    let with = format!("http://agent:pr0xy-pass@127.0.0.1:{}", proxy.port());
    let served = pull("https_proxy", &with).success();
    assert!(!served.err().contains("pr0xy-pass"), "{served}");
    assert!(
        proxy
            .log()
            .contains(&format!("0.0.0.0:{}", registry.port())),
        "{}",
        proxy.log()
    );
    // What is excepted is asked directly, however broken the proxy is.
    let direct = sandbox
        .microagent(["images", "pull", &reference])
        .env("HTTPS_PROXY", "http://127.0.0.1:1")
        .env("no_proxy", "example.org,0.0.0.0/8")
        .run();
    drop(direct.success());
}

#[test]
fn a_host_that_is_not_there() {
    let missing = refused(&sandbox(), "no-such-registry.invalid/tiny:1");
    says(
        &missing,
        &[
            "There is no host `no-such-registry.invalid`",
            "DNS and proxy settings",
        ],
    );
}

#[test]
fn content_that_is_not_what_it_is_called() {
    let registry = registry(Setup::default(), &["tiny:1"]);
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), &["tiny:1"]);
    let layer = largest_blob(&layout);
    damage(&registry.blob_file(&layer)).unwrap();
    let sandbox = sandbox();
    let refused = refused(&sandbox, &registry.reference("tiny:1"));
    says(
        &refused,
        &["The digest of layer 1 of 1", &layer, "Nothing was stored"],
    );
    let list = sandbox
        .microagent(["--json", "images", "list"])
        .run()
        .success()
        .parsed();
    assert_eq!(list["images"], serde_json::json!([]));
}

fn largest_blob(layout: &Layout) -> String {
    fs::read_dir(layout.path().join("blobs/sha256"))
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .filter(|bytes| bytes.starts_with(&[0x1f, 0x8b]))
        .map(|bytes| digest_of(&bytes))
        .next()
        .unwrap()
}
