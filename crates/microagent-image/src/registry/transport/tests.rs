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
        ("?c=d", Some("https://r.example:5000/v2/a/blobs/x?c=d")),
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

#[test]
fn the_next_of_all_links_is_found() {
    for (value, expect) in [
        (
            r#"</v2/a/tags/list?last=b,c&n=2>; rel="next""#,
            Some("/v2/a/tags/list?last=b,c&n=2"),
        ),
        (r#"<?last=b>;title="x";REL=next"#, Some("?last=b")),
        (
            r#"</first>; rel="first", </next>; rel="next""#,
            Some("/next"),
        ),
        ("</v2/a/tags/list?last=b>", None),
        (r#"</p>; rel="prev""#, None),
        ("<", None),
        ("", None),
    ] {
        assert_eq!(next_link(value), expect, "{value}");
    }
}
