use super::*;

#[test]
fn only_loopback_and_named_hosts_may_be_plain() {
    let options = RegistryOptions {
        insecure_registries: vec!["lab:5000".into(), "box".into()],
        ..RegistryOptions::default()
    };
    for good in [
        "localhost",
        "localhost:5000",
        "127.0.0.1:1",
        "127.9.9.9",
        "[::1]:5",
        "lab:5000",
        "box:77",
    ] {
        assert!(options.may_be_plain(good), "{good}");
    }
    for bad in [
        "lab",
        "lab:5001",
        "localhost.example",
        "127.0.0.1.example",
        "example",
        "[::2]:5",
    ] {
        assert!(!options.may_be_plain(bad), "{bad}");
    }
}

#[test]
fn locations_resolve() {
    let from: Uri = "https://r.example:5000/v2/a/blobs/x".parse().unwrap();
    for (location, expect) in [
        (
            "https://cdn.example/b?c=d#e",
            Some("https://cdn.example/b?c=d"),
        ),
        ("//cdn.example/b", Some("https://cdn.example/b")),
        ("/b", Some("https://r.example:5000/b")),
        ("b", Some("https://r.example:5000/v2/a/blobs/b")),
        ("https://u:p@evil.example/", None),
    ] {
        assert_eq!(
            resolve(&from, location)
                .map(|uri| uri.to_string())
                .as_deref(),
            expect,
            "{location}"
        );
    }
    let home: Uri = "https://r.example/".parse().unwrap();
    assert!(same_origin(
        &"https://r.example:443/x".parse().unwrap(),
        &home
    ));
    assert!(!same_origin(
        &"https://r.example:444/x".parse().unwrap(),
        &home
    ));
    assert!(!same_origin(&"http://r.example/x".parse().unwrap(), &home));
}

#[test]
fn waits_double_and_are_bounded() {
    let options = RegistryOptions::default();
    assert_eq!(options.delay_after(1), Duration::from_millis(500));
    assert_eq!(options.delay_after(3), Duration::from_secs(2));
    assert_eq!(options.delay_after(40), Duration::from_secs(20));
}
