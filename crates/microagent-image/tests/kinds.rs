//! Images of every kind that people ship: indexes in indexes, attestations, variants, layers that are kept
//! elsewhere, and what is no image at all. A server that answers by content stands for the registry, since
//! Debian's and the tools that fill it do not take all of these.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microagent_image::{
    Credential, HostOptions, ImageError, ImageRecord, ImageStore, PullOptions, Reference,
    RegistryOptions,
};
use serde_json::{Value, json};
use testkit::registry::{Answer, Packing, Proxy, Request, Scripted, digest_of, pack, tar_of};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Everything a server has, by digest and by tag: media type and bytes.
#[derive(Clone, Default)]
struct Content {
    kept: BTreeMap<String, (String, Vec<u8>)>,
}

impl Content {
    fn keep(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest_of(&bytes);
        let size = bytes.len();
        self.kept
            .insert(digest.clone(), (media_type.to_owned(), bytes));
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    fn document(&mut self, media_type: &str, document: &Value) -> Value {
        self.keep(media_type, document.to_string().into_bytes())
    }

    /// An image of one small layer; returns its descriptor.
    fn image(&mut self, architecture: &str, variant: Option<&str>, layer_type: &str) -> Value {
        let mark = format!("{architecture}{}", variant.unwrap_or_default());
        let tar = tar_of(&[("mark", 0o644, mark.as_bytes())]);
        let mut config = json!({"architecture": architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest_of(&tar)]}});
        if let Some(variant) = variant {
            config["variant"] = json!(variant);
        }
        let config = self.document("application/vnd.oci.image.config.v1+json", &config);
        let layer = self.keep(layer_type, pack(&tar, Packing::Gzip));
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        let mut described = self.document(MANIFEST, &manifest);
        described["platform"] = json!({"architecture": architecture, "os": "linux"});
        if let Some(variant) = variant {
            described["platform"]["variant"] = json!(variant);
        }
        described
    }

    fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.document(INDEX, &index)
    }

    fn tag(&mut self, tag: &str, descriptor: &Value) {
        let digest = descriptor["digest"].as_str().unwrap();
        let content = self.kept[digest].clone();
        self.kept.insert(tag.to_owned(), content);
    }

    fn answer(&self, request: &Request) -> Answer {
        let name = request.target.rsplit('/').next().unwrap();
        match self.kept.get(name) {
            Some((media_type, bytes)) => Answer::new("200 OK")
                .header("Content-Type", media_type.clone())
                .body(bytes.clone()),
            None => Answer::new("404 Not Found"),
        }
    }

    fn serve(self) -> Scripted {
        Scripted::start(move |request| self.answer(request))
    }
}

fn options(platform: &str) -> PullOptions {
    let mut registry = RegistryOptions::default();
    registry.backoff = Duration::from_millis(10);
    registry.attempts = 2;
    PullOptions::new()
        .platform(platform.parse().unwrap())
        .registry(registry)
}

struct Bench {
    _directory: tempfile::TempDir,
    store: ImageStore,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("images")).unwrap();
        Self {
            _directory: directory,
            store,
        }
    }

    fn pull(&self, reference: &str, options: &PullOptions) -> Result<ImageRecord, ImageError> {
        let reference: Reference = reference.parse().unwrap();
        self.store.pull(&reference, options, &|_| {})
    }

    /// What the one file of a disk says.
    fn mark(&self, record: &ImageRecord) -> String {
        let disk = self.store.base_disk(record, &|_| {}).unwrap();
        let mut command = std::process::Command::new("/sbin/debugfs");
        command.args(["-R", "cat /mark"]).arg(disk.flat().unwrap());
        let content = testkit::registry::run_tool("e2fsprogs", &mut command).unwrap();
        String::from_utf8(content).unwrap()
    }
}

#[test]
fn through_indexes_past_attestations_to_the_variant() {
    let mut content = Content::default();
    let mut attestation = content.image("unknown", None, LAYER);
    attestation["platform"]["os"] = json!("unknown");
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    // What a signer puts beside images, under the platform of one of them.
    let mut signature = content.image("amd64", Some("v9"), LAYER);
    signature["artifactType"] = json!("application/vnd.dev.cosign.artifact.sig.v1+json");
    let arms: Vec<Value> = [Some("v6"), Some("v7")]
        .iter()
        .map(|variant| content.image("arm", *variant, LAYER))
        .collect();
    let arm64 = content.image("arm64", Some("v8"), LAYER);
    let amd64 = content.image("amd64", None, LAYER);
    let inner = content.index(&[attestation.clone(), amd64, arm64]);
    let middle = content.index(&[inner]);
    let outer = content.index(&[
        attestation.clone(),
        signature,
        middle,
        arms[0].clone(),
        arms[1].clone(),
    ]);
    content.tag("all", &outer);
    let only = content.index(&[attestation]);
    content.tag("attested", &only);
    let host = content.serve().name();

    let bench = Bench::new();
    for (wanted, mark) in [
        ("linux/amd64", "amd64"),
        ("linux/arm64", "arm64v8"),
        ("linux/arm64/v8", "arm64v8"),
        ("linux/arm/v6", "armv6"),
        ("linux/arm/v7", "armv7"),
        ("linux/arm/v8", "armv7"),
    ] {
        let record = bench
            .pull(&format!("{host}/a:all"), &options(wanted))
            .unwrap();
        assert_eq!(bench.mark(&record), mark, "{wanted}");
        assert_eq!(record.index_digest.unwrap().to_string(), outer["digest"]);
    }
    let error = bench
        .pull(&format!("{host}/a:all"), &options("linux/arm/v5"))
        .unwrap_err();
    assert!(
        error.to_string().contains(
            "no image for linux/arm/v5; it has only: linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64"
        ),
        "{error}"
    );
    let error = bench
        .pull(&format!("{host}/a:attested"), &options("linux/amd64"))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("lists no image, only attestations"),
        "{error}"
    );
}

#[test]
fn an_index_that_never_ends() {
    let mut content = Content::default();
    let mut nested = content.image("amd64", None, LAYER);
    for _ in 0..4 {
        nested = content.index(&[nested]);
    }
    content.tag("four", &nested);
    nested = content.index(&[nested]);
    content.tag("five", &nested);
    // Many candidates, none of which is what its index says.
    let lies: Vec<Value> = (0..40)
        .map(|at| {
            let mut lie = content.image("s390x", Some(&format!("v{at}")), LAYER);
            lie["platform"] = json!({"architecture": "amd64", "os": "linux"});
            lie
        })
        .collect();
    let lies = content.index(&lies);
    content.tag("lies", &lies);
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let host = Scripted::start(move |request| {
        *count.lock().unwrap() += 1;
        content.answer(request)
    })
    .name();
    let bench = Bench::new();
    let pull = |tag: &str| bench.pull(&format!("{host}/a:{tag}"), &options("linux/amd64"));
    pull("four").unwrap();
    let error = pull("five").unwrap_err().to_string();
    assert!(error.contains("nests more than 4 levels deep"), "{error}");
    *asked.lock().unwrap() = 0;
    let error = pull("lies").unwrap_err().to_string();
    assert!(error.contains("no image for linux/amd64"), "{error}");
    assert!(*asked.lock().unwrap() < 60, "{asked:?}");
}

#[test]
fn what_is_no_image_is_refused_by_what_it_is() {
    let mut content = Content::default();
    let empty = content.keep("application/vnd.oci.empty.v1+json", b"{}".to_vec());
    let chart = content.keep(
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        vec![1],
    );
    let helm_config = content.keep("application/vnd.cncf.helm.config.v1+json", b"{}".to_vec());
    let image = content.image("amd64", None, LAYER);
    let manifest = |config: &Value, more: Value| {
        let mut manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [chart]});
        for (key, value) in more.as_object().unwrap() {
            manifest[key] = value.clone();
        }
        manifest
    };
    let documents = [
        (
            "helm",
            MANIFEST,
            manifest(&helm_config, json!({})),
            "application/vnd.cncf.helm.config.v1+json",
        ),
        (
            "artifact",
            MANIFEST,
            manifest(&empty, json!({"artifactType": "application/x-model"})),
            "artifact of type `application/x-model`",
        ),
        (
            "old-artifact",
            "application/vnd.oci.artifact.manifest.v1+json",
            json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.artifact.manifest.v1+json", "artifactType": "application/x-sbom", "blobs": []}),
            "artifact of type `application/x-sbom`",
        ),
        (
            "referrers",
            INDEX,
            json!({"schemaVersion": 2, "mediaType": INDEX, "artifactType": "application/x-signatures", "manifests": [image]}),
            "artifact of type `application/x-signatures`",
        ),
        (
            "schema1",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            json!({"schemaVersion": 1, "name": "a", "tag": "schema1", "fsLayers": [{"blobSum": digest_of(b"x")}], "history": []}),
            "schema 1 manifest, a format that cannot be verified and was retired in 2017; push the image again",
        ),
    ];
    for (tag, media_type, document, _) in &documents {
        let described = content.document(media_type, document);
        content.tag(tag, &described);
    }
    let host = content.serve().name();
    let bench = Bench::new();
    for (tag, _, _, reason) in &documents {
        let error = bench
            .pull(&format!("{host}/a:{tag}"), &options("linux/amd64"))
            .unwrap_err();
        assert!(matches!(error, ImageError::BadManifest { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{tag}: {error}");
    }
}

/// The registry has the layer, or its maker does; nobody but the registry hears who asks.
#[test]
fn layers_that_registries_may_not_hand_on() {
    const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let mut content = Content::default();
    let image = content.image("amd64", None, FOREIGN);
    content.tag("kept", &image);
    let manifest: Value =
        serde_json::from_slice(&content.kept[image["digest"].as_str().unwrap()].1).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();

    let (_, blob) = content.kept[&layer].clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&seen);
    let maker = Scripted::start(move |request| {
        let mut asked = asked.lock().unwrap();
        asked.push(request.header("authorization").map(str::to_owned));
        match request.target.as_str() {
            "/layer" => Answer::new("200 OK").body(blob.clone()),
            _ => Answer::new("404 Not Found"),
        }
    });
    let elsewhere = |content: &mut Content, tag: &str, urls: &[String]| {
        let mut manifest = manifest.clone();
        manifest["layers"][0]["urls"] = json!(urls);
        let described = content.document(MANIFEST, &manifest);
        content.tag(tag, &described);
    };
    let mut without = content.clone();
    without.kept.remove(&layer);
    let (here, gone) = (
        format!("http://{}/layer", maker.name()),
        format!("http://{}/gone", maker.name()),
    );
    elsewhere(
        &mut without,
        "made",
        &["http://127.0.0.1:1/x".into(), gone.clone(), here],
    );
    elsewhere(&mut without, "lost", &[gone]);
    elsewhere(&mut without, "plain", &["http://maker.example/x".into()]);
    elsewhere(&mut without, "odd", &["http://u:p@127.0.0.1/x".into()]);
    let guarded = |content: Content| {
        Scripted::start(move |request| match request.header("authorization") {
            Some("Basic dTpw") => content.answer(request),
            _ => Answer::new("401 Unauthorized").header("WWW-Authenticate", "Basic realm=x"),
        })
        .name()
    };
    let (has, has_not) = (guarded(content), guarded(without));
    let options = options("linux/amd64").credentials(Arc::new(Credential::Basic {
        username: "u".into(),
        password: "p".into(),
    }));
    let bench = Bench::new();
    let record = bench.pull(&format!("{has}/a:kept"), &options).unwrap();
    assert_eq!(bench.mark(&record), "amd64");
    assert!(seen.lock().unwrap().is_empty());
    let bench = Bench::new();
    let record = bench.pull(&format!("{has_not}/a:made"), &options).unwrap();
    assert_eq!(bench.mark(&record), "amd64");
    assert_eq!(*seen.lock().unwrap(), [None, None]);
    for (tag, reason) in [
        ("kept", "404"),
        ("lost", "404"),
        (
            "plain",
            "names a place at `maker.example`, which is not HTTPS",
        ),
        ("odd", "names a place that is no URL"),
    ] {
        let error = Bench::new()
            .pull(&format!("{has_not}/a:{tag}"), &options)
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{tag}: {error}");
    }
}

#[test]
fn a_blocked_host_is_not_reached_by_a_redirect() {
    let mut content = Content::default();
    let image = content.image("amd64", None, LAYER);
    content.tag("1", &image);
    let storage = {
        let content = content.clone();
        Scripted::start(move |request| content.answer(request)).name()
    };
    let target = storage.clone();
    let registry = Scripted::start(move |request| match request.target.contains("/blobs/") {
        true => Answer::new("307 Temporary Redirect")
            .header("Location", format!("http://{target}{}", request.target)),
        false => content.answer(request),
    });
    let reference = format!("{}/a:1", registry.name());
    let mut options = options("linux/amd64");
    Bench::new().pull(&reference, &options).unwrap();
    let mut blocked = HostOptions::default();
    blocked.blocked = true;
    options.registry.hosts.insert(storage.clone(), blocked);
    let error = Bench::new().pull(&reference, &options).unwrap_err();
    assert!(
        matches!(&error, ImageError::Blocked { registry, .. } if *registry == storage),
        "{error:?}"
    );
}

/// A token service says back what it was sent, in the forms it was sent in.
#[test]
fn a_token_service_that_repeats_a_secret_is_not_quoted() {
    let tokens = Scripted::start(|request| {
        let says = match request.method.as_str() {
            "POST" => request.body.clone(),
            _ => request
                .header("authorization")
                .unwrap_or("nobody")
                .to_owned(),
        };
        // Also where a message ends before the secret does.
        let long = "x".repeat(160);
        let says = format!("no token for {says}, hunter+2 {long} {says}");
        let body = json!({"errors": [{"message": says}]});
        Answer::new("418 I'm a teapot").body(body.to_string())
    });
    let realm = format!("Bearer realm=\"http://{}/\"", tokens.name());
    let registry = Scripted::start(move |_| {
        Answer::new("401 Unauthorized").header("WWW-Authenticate", realm.clone())
    });
    let reference = format!("{}/a:1", registry.name());
    for credential in [
        Credential::Basic {
            username: "alice".into(),
            password: "hunter+2".into(),
        },
        Credential::Identity("hunter+2".into()),
    ] {
        let options = options("linux/amd64").credentials(Arc::new(credential));
        let error = Bench::new().pull(&reference, &options).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("no token for"), "{text}");
        for secret in ["hunter+2", "YWxpY2U6aHVudGVyKzI", "hunter%2B2"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

/// A registry without TLS is reached through a proxy too. 0.0.0.0 is this machine, and no loopback name.
#[test]
fn plain_http_goes_through_a_proxy() {
    let mut content = Content::default();
    let image = content.image("amd64", None, LAYER);
    content.tag("1", &image);
    let registry = content.serve();
    let host = format!("0.0.0.0:{}", registry.port());
    let proxy = Proxy::start("").unwrap();
    let address = format!("http://127.0.0.1:{}", proxy.port());
    let mut options = options("linux/amd64");
    options.registry.insecure_registries.push(host.clone());
    options.registry.proxy =
        microagent_image::ProxyOptions::new(Some(address.clone()), Some(address), "");
    Bench::new().pull(&format!("{host}/a:1"), &options).unwrap();
    assert!(proxy.log().contains(&host), "{}", proxy.log());
}
