use super::*;

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
        (
            "http://r.example:5000/v2/a?b=c",
            Some("https://r.example:5000/v2/a?b=c"),
        ),
        ("http://r.example/v2/a", Some("http://r.example/v2/a")),
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
