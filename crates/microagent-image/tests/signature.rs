//! Signatures in the form of `cosign`, made with `openssl`, beside images on a real registry.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use microagent_image::{
    ImageError, ImageEvent, ImageRecord, ImageStore, PullOptions, PullPolicy, Reference, VerifyKey,
};
use serde_json::{Value, json};
use testkit::registry::{Layout, Packing, Registry, SigningKey, TinyImage, tar_of};

struct Bench {
    directory: tempfile::TempDir,
    registry: Registry,
    layout: Layout,
    store: ImageStore,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            registry: Registry::start().unwrap(),
            layout: Layout::create(&directory.path().join("layout")).unwrap(),
            store: ImageStore::open(directory.path().join("images")).unwrap(),
            directory,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn key(&self, name: &str) -> SigningKey {
        SigningKey::p256(self.path(), name).unwrap()
    }

    /// Pushes an image for these platforms; gives what its name stands for, and each manifest.
    fn push(&mut self, name: &str, platforms: &[&str]) -> (String, Vec<String>) {
        let images: Vec<_> = platforms
            .iter()
            .map(|platform| {
                let content = format!("{name} {platform}");
                let layer = tar_of(&[("what", 0o644, content.as_bytes())]);
                TinyImage::new(platform).layer(layer, Packing::Gzip)
            })
            .collect();
        let digests = self.layout.add(name, &images).unwrap();
        self.registry.push(self.layout.path(), name).unwrap();
        digests
    }

    fn sign(&mut self, digest: &str, statements: &[(&SigningKey, Value)]) {
        let name = SigningKey::sign_into(&mut self.layout, "app", digest, statements).unwrap();
        self.registry.push(self.layout.path(), &name).unwrap();
    }

    fn ensure(
        &self,
        name: &str,
        policy: PullPolicy,
        key: Option<&SigningKey>,
    ) -> Result<(ImageRecord, Vec<ImageEvent>), ImageError> {
        let events = std::sync::Mutex::new(Vec::new());
        let reference: Reference = self.registry.reference(name).parse().unwrap();
        let mut options = PullOptions::new().platform("linux/amd64".parse().unwrap());
        if let Some(key) = key {
            options = options.verify_key(VerifyKey::read(&key.public).unwrap());
        }
        let record = self.store.ensure(&reference, policy, &options, &|event| {
            events.lock().unwrap().push(event);
        })?;
        Ok((record, events.into_inner().unwrap()))
    }

    fn refused(&self, name: &str, key: &SigningKey, words: &str) {
        let error = self
            .ensure(name, PullPolicy::Missing, Some(key))
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains(words) && text.contains(name), "{text}");
        assert_eq!(self.store.list().unwrap(), []);
        for folder in ["blobs/sha256", "partial", "tmp"] {
            let left = std::fs::read_dir(self.store.root().join(folder)).unwrap();
            assert_eq!(left.count(), 0, "{folder}");
        }
    }
}

#[test]
fn what_is_signed_with_the_key_is_pulled_and_recorded() {
    let mut bench = Bench::new();
    let (digest, _) = bench.push("app:1", &["amd64"]);
    let (mine, other) = (bench.key("mine"), bench.key("other"));
    // Among others' signatures.
    let good = SigningKey::statement(&digest);
    bench.sign(&digest, &[(&other, good.clone()), (&mine, good)]);
    let (record, events) = bench
        .ensure("app:1", PullPolicy::Always, Some(&mine))
        .unwrap();
    let signature = record.signature.clone().unwrap();
    let key = VerifyKey::read(&mine.public).unwrap();
    assert_eq!(
        (signature.key, signature.signed.to_string()),
        (key.fingerprint(), digest)
    );
    let verified = events
        .iter()
        .position(|it| matches!(it, ImageEvent::SignatureVerified { .. }));
    let layer = events
        .iter()
        .position(|it| matches!(it, ImageEvent::LayerProgress { .. }));
    assert!(
        verified.unwrap() < layer.unwrap(),
        "before any content comes"
    );

    // It is remembered, under every name, also when it is pulled again without a key.
    let reference = bench.registry.reference("app:1");
    let again = "mine:1".parse().unwrap();
    bench.store.tag(&reference, &again).unwrap();
    bench.ensure("app:1", PullPolicy::Always, None).unwrap();
    for record in bench.store.list().unwrap() {
        assert_eq!(
            record.signature.as_ref(),
            Some(&signature),
            "{}",
            record.reference
        );
    }
    let shown = bench.store.inspect(&reference).unwrap().provenance;
    assert_eq!(shown.signature, Some(signature));

    // What was checked needs no network any more; another key was not checked.
    bench.registry.kill();
    bench
        .ensure("app:1", PullPolicy::Never, Some(&mine))
        .unwrap();
    bench
        .ensure("app:1", PullPolicy::Missing, Some(&mine))
        .unwrap();
    let error = bench
        .ensure("app:1", PullPolicy::Never, Some(&other))
        .unwrap_err();
    assert!(matches!(error, ImageError::NotVerified { .. }), "{error}");
    bench.registry.restart().unwrap();
    let (record, _) = bench
        .ensure("app:1", PullPolicy::Missing, Some(&other))
        .unwrap();
    let checked = record.signature.unwrap().key;
    assert_eq!(
        checked,
        VerifyKey::read(&other.public).unwrap().fingerprint()
    );
}

#[test]
fn an_index_or_the_image_chosen_from_it_may_be_signed() {
    let mut bench = Bench::new();
    let key = bench.key("mine");
    let (index, _) = bench.push("app:1", &["amd64", "arm64"]);
    bench.sign(&index, &[(&key, SigningKey::statement(&index))]);
    let (record, _) = bench
        .ensure("app:1", PullPolicy::Missing, Some(&key))
        .unwrap();
    assert_eq!(record.signature.unwrap().signed.to_string(), index);

    let (_, each) = bench.push("app:2", &["amd64", "arm64"]);
    bench.sign(&each[0], &[(&key, SigningKey::statement(&each[0]))]);
    let (record, _) = bench
        .ensure("app:2", PullPolicy::Missing, Some(&key))
        .unwrap();
    assert_eq!(record.signature.unwrap().signed.to_string(), each[0]);
}

#[test]
fn other_keys_of_the_kinds_there_are() {
    let mut bench = Bench::new();
    let kinds: [(&str, &[&str]); 3] = [
        (
            "p384",
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        ),
        ("ed25519", &["-algorithm", "ed25519"]),
        (
            "rsa",
            &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        ),
    ];
    for (name, kind) in kinds {
        let key = SigningKey::make(bench.path(), name, kind).unwrap();
        let image = format!("app:{name}");
        let (digest, _) = bench.push(&image, &["amd64"]);
        bench.sign(&digest, &[(&key, SigningKey::statement(&digest))]);
        let (record, _) = bench
            .ensure(&image, PullPolicy::Missing, Some(&key))
            .unwrap();
        assert!(record.signature.is_some(), "{name}");
    }
}

#[test]
fn what_is_not_signed_with_the_key_leaves_nothing() {
    let mut bench = Bench::new();
    let (mine, other) = (bench.key("mine"), bench.key("other"));
    let (digest, _) = bench.push("app:1", &["amd64"]);
    bench.refused(
        "app:1",
        &mine,
        "is not signed: its registry has no signature",
    );

    bench.sign(&digest, &[(&other, SigningKey::statement(&digest))]);
    bench.refused("app:1", &mine, "was not made with this key");

    // A true signature of something else, moved here.
    let elsewhere = format!("sha256:{}", "1".repeat(64));
    bench.sign(&digest, &[(&mine, SigningKey::statement(&elsewhere))]);
    bench.refused("app:1", &mine, &format!("for another image: {elsewhere}"));

    let mut kind = SigningKey::statement(&digest);
    kind["critical"]["type"] = json!("something else");
    bench.sign(&digest, &[(&mine, kind)]);
    bench.refused("app:1", &mine, "is one of a `something else`");

    bench.sign(&digest, &[(&mine, json!({"a": 1}))]);
    bench.refused("app:1", &mine, "cannot be read");

    bench.sign(&digest, &[]);
    bench.refused("app:1", &mine, "holds no signature of the kind");

    // A statement that was changed after it was signed does not even arrive.
    let good = SigningKey::statement(&digest);
    bench.sign(&digest, &[(&mine, good.clone())]);
    let statement = testkit::registry::digest_of(&serde_json::to_vec(&good).unwrap());
    let file = bench.registry.blob_file(&statement);
    let sound = std::fs::read(&file).unwrap();
    testkit::registry::damage(&file).unwrap();
    bench.refused("app:1", &mine, "does not match");
    std::fs::write(&file, sound).unwrap();

    // Without a key nothing is asked, and the record says so.
    let (record, _) = bench.ensure("app:1", PullPolicy::Missing, None).unwrap();
    assert_eq!(record.signature, None);
    let (record, _) = bench
        .ensure("app:1", PullPolicy::Missing, Some(&mine))
        .unwrap();
    assert!(record.signature.is_some(), "checked afterwards");

    let error = VerifyKey::read(&bench.path().join("none.pub"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no such file") && error.contains("none.pub"),
        "{error}"
    );
}
