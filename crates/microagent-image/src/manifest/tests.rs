use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn descriptor(media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(b"x").to_string(), "size": 1})
}

fn manifest(layer: &str) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG), "layers": [descriptor(layer)]})
}

fn reason(document: &Value) -> String {
    parse(document.to_string().as_bytes())
        .unwrap_err()
        .to_string()
}

#[test]
fn layers_of_every_known_kind() {
    for (media_type, compression) in [
        (OCI_LAYER, Compression::None),
        (
            "application/vnd.oci.image.layer.v1.tar+zstd",
            Compression::Zstd,
        ),
        (
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            Compression::Gzip,
        ),
    ] {
        let Document::Manifest(read) = parse(manifest(media_type).to_string().as_bytes()).unwrap()
        else {
            panic!("not a manifest");
        };
        assert_eq!(read.layers[0].compression, compression);
    }
}

#[test]
fn layers_that_may_not_be_handed_on_are_layers_that_are_elsewhere_too() {
    for (media_type, compression) in [
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            Compression::Gzip,
        ),
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
            Compression::Zstd,
        ),
    ] {
        let mut document = manifest(media_type);
        document["layers"][0]["urls"] = json!(vec!["https://a.example/x"; 20]);
        let Document::Manifest(read) = parse(document.to_string().as_bytes()).unwrap() else {
            panic!("not a manifest");
        };
        assert_eq!(read.layers[0].compression, compression);
        assert_eq!(read.layers[0].urls.len(), MAX_URLS);
    }
    // What is in the registry by right is not looked for elsewhere.
    let mut document = manifest(OCI_LAYER);
    document["layers"][0]["urls"] = json!(["https://a.example/x"]);
    let Document::Manifest(read) = parse(document.to_string().as_bytes()).unwrap() else {
        panic!("not a manifest");
    };
    assert!(read.layers[0].urls.is_empty());
}

#[test]
fn what_is_no_image_is_refused_with_its_reason() {
    assert!(reason(&manifest("text/html")).contains("text/html"));
    assert!(reason(&json!({"schemaVersion": 1, "fsLayers": []})).contains("schema 1"));
    assert!(reason(&json!({"schemaVersion": 2})).contains("neither"));
    let mut both = manifest(OCI_LAYER);
    both["manifests"] = json!([]);
    assert!(reason(&both).contains("ambiguous"));
    let mut artifact = manifest(OCI_LAYER);
    artifact["artifactType"] = json!("application/x-helm");
    assert!(reason(&artifact).contains("application/x-helm"));
    let old = json!({"schemaVersion": 2, "mediaType": ARTIFACT_MANIFEST, "blobs": []});
    assert!(reason(&old).contains("artifact of type"));
    let mut index = json!({"schemaVersion": 2, "manifests": []});
    assert!(parse(index.to_string().as_bytes()).is_ok());
    index["artifactType"] = json!("application/x-signatures");
    assert!(reason(&index).contains("application/x-signatures"));
    let mut helm = manifest(OCI_LAYER);
    helm["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    assert!(reason(&helm).contains("artifact"));
    let mut huge = manifest(OCI_LAYER);
    huge["config"]["size"] = json!(1u64 << 40);
    assert!(reason(&huge).contains("config is larger"));
    let mut odd = manifest(OCI_LAYER);
    odd["layers"][0]["digest"] = json!("sha256:../../etc/passwd");
    assert!(reason(&odd).contains("64 lower-case"));
    assert!(
        parse(&vec![b' '; MAX_MANIFEST as usize + 1])
            .unwrap_err()
            .to_string()
            .contains("larger")
    );
    assert!(parse(&[b'['; 100_000]).is_err());
    let bytes = manifest(OCI_LAYER).to_string();
    assert!(
        parse_as(bytes.as_bytes(), Some(DOCKER_MANIFEST))
            .unwrap_err()
            .to_string()
            .contains("contradicts")
    );
    // What is said by who does not know.
    for generic in [
        "application/json; charset=utf-8",
        "binary/octet-stream",
        "text/html",
        "",
    ] {
        assert!(
            parse_as(bytes.as_bytes(), Some(generic)).is_ok(),
            "{generic}"
        );
    }
}

#[test]
fn an_index_leaves_out_attestations_and_ranks_platforms() {
    let entry = |os: &str, arch: &str, variant: Option<&str>| {
        let mut entry = descriptor(OCI_MANIFEST);
        entry["platform"] = json!({"os": os, "architecture": arch});
        if let Some(variant) = variant {
            entry["platform"]["variant"] = json!(variant);
        }
        entry
    };
    let index = json!({"schemaVersion": 2, "manifests": [
        entry("unknown", "unknown", None), entry("linux", "arm", Some("v6")), entry("linux", "arm", Some("v7")), entry("linux", "amd64", None)]});
    let Document::Index(index) = parse(index.to_string().as_bytes()).unwrap() else {
        panic!()
    };
    assert_eq!(index.manifests.len(), 3);
    let found = index.candidates(&"linux/arm/v7".parse().unwrap());
    assert_eq!(found.len(), 2, "a v7 runs what is for a v6, too");
    assert_eq!(
        found[0].platform.as_ref().unwrap().variant.as_deref(),
        Some("v7")
    );
    assert!(index.candidates(&"linux/s390x".parse().unwrap()).is_empty());
}

#[test]
fn entries_that_cannot_be_read_are_told_of_where_they_are_wanted() {
    let mut good = descriptor(OCI_MANIFEST);
    good["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let odd = json!({"digest": "sha512:00", "size": 1, "platform": {"os": "linux", "architecture": "arm64"}});
    let index = json!({"schemaVersion": 2, "manifests": [odd, good]});
    let Document::Index(index) = parse(index.to_string().as_bytes()).unwrap() else {
        panic!()
    };
    let [amd64, arm64] = ["linux/amd64", "linux/arm64"].map(|it| it.parse().unwrap());
    assert_eq!(index.candidates(&amd64).len(), 1);
    assert_eq!(index.unreadable(&amd64), None);
    let reason = &index.unreadable(&arm64).unwrap().reason;
    assert!(reason.contains("only sha256"), "{reason}");
    // What does not say what it is for may be anything.
    for other in [json!(1), json!({"size": "x"}), json!({"platform": []})] {
        let index = json!({"schemaVersion": 2, "manifests": [other]});
        let Document::Index(index) = parse(index.to_string().as_bytes()).unwrap() else {
            panic!()
        };
        assert!(index.manifests.is_empty() && index.unreadable(&amd64).is_some());
    }
}

proptest! {
    #[test]
    fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&bytes);
    }
}
