//! What stands before a registry, or answers in its place: storage, token services, file servers, lists in pages.

use microagent_image::{Freshness, HostOptions};

use super::*;

fn found(location: String) -> Answer {
    status("307 Temporary Redirect").header("Location", location)
}

/// A part may end before the whole does.
#[test]
fn a_server_that_sends_parts_as_it_likes_is_asked_for_the_next_one() {
    const PART: usize = 1_200_000;
    let noise = testkit::registry::noise(4 << 20, 1);
    let parts = Parts::of(&tar_of(&[("f", 0o644, &noise)]));
    let layer = parts.layer.clone();
    let registry = Scripted::start(move |request| {
        if !request.target.ends_with(&digest_of(&layer)) {
            return parts.answer(request);
        }
        let from = request
            .header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'))
            .map_or(0, |from| from.parse().unwrap());
        let to = (from + PART).min(layer.len());
        status("206 Partial Content")
            .header(
                "Content-Range",
                format!("bytes {from}-{}/{}", to - 1, layer.len()),
            )
            .body(&layer[from..to])
    });
    let (result, events) = pull(&format!("{}/a:1", registry.name()), &options());
    result.unwrap();
    let is_retry = |event: &&ImageEvent| matches!(event, ImageEvent::Retrying { .. });
    assert_eq!(events.iter().filter(is_retry).count(), 3);
}

/// Whoever keeps the content does not know us, and a login would not help.
#[test]
fn a_storage_that_refuses_is_named_and_no_login_is_asked_for() {
    let storage = Scripted::start(|_| status("403 Forbidden").body("<Code>AccessDenied</Code>"));
    let place = storage.name();
    let parts = Parts::new();
    let registry = Scripted::start(move |request| match request.target.contains("/blobs/") {
        true => found(format!("http://{place}/x?signature=hunter2")),
        false => parts.answer(request),
    });
    let error = pull(&format!("{}/a:1", registry.name()), &options())
        .0
        .unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ImageError::Registry { .. }), "{error:?}");
    assert!(
        text.contains(&format!(
            "it sends for that to {}, which answered 403",
            storage.name()
        )) && !text.contains("hunter2"),
        "{text}"
    );
}

#[test]
fn a_blocked_token_service_is_sent_nothing() {
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let tokens = Scripted::start(move |_| {
        *count.lock().unwrap() += 1;
        ok("application/json", br#"{"token": "t0ken"}"#)
    });
    let challenge = format!("Bearer realm=\"http://LOCALHOST:{}/token\"", tokens.port());
    let parts = Parts::new();
    let registry = Scripted::start(move |request| match request.header("authorization") {
        Some(_) => parts.answer(request),
        None => status("401 Unauthorized").header("WWW-Authenticate", challenge.clone()),
    });
    let image = format!("{}/a:1", registry.name());
    let mut options = options().credentials(Arc::new(Credential::Basic {
        username: "u".into(),
        password: "hunter2".into(),
    }));
    let mut blocked = HostOptions::default();
    blocked.blocked = true;
    options.registry.hosts.insert("localhost".into(), blocked);
    let error = pull(&image, &options).0.unwrap_err();
    assert!(matches!(error, ImageError::Blocked { .. }), "{error:?}");
    assert_eq!(*asked.lock().unwrap(), 0);
    options.registry.hosts.clear();
    pull(&image, &options).0.unwrap();
    assert_eq!(*asked.lock().unwrap(), 1);
}

#[test]
fn whether_a_tag_moved_is_asked_without_head_too() {
    let parts = Parts::new();
    let registry = Scripted::start(move |request| match request.method.as_str() {
        "HEAD" => status("405 Method Not Allowed"),
        _ => parts.answer(request),
    });
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open(directory.path()).unwrap();
    let reference: Reference = format!("{}/a:1", registry.name()).parse().unwrap();
    let record = store.pull(&reference, &options(), &|_| {}).unwrap();
    let fresh = store.freshness(&record, &options(), &|_| {}).unwrap();
    assert_eq!(fresh, Freshness::Current);
}

/// Not every server without TLS has an answer to who speaks it.
#[test]
fn a_server_that_hangs_up_on_tls_is_spoken_to_in_plain_http() {
    let parts = Parts::new();
    let behind = Scripted::start(move |request| parts.answer(request));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let mut first = [0; 1];
            if client.peek(&mut first).is_ok_and(|_| first != [0x16])
                && let Ok(server) =
                    std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, behind.port()))
            {
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                let (mut from, mut to) = (server, client);
                // Whoever went away is no fault of this.
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Both);
            }
        }
    });
    pull(&format!("127.0.0.1:{port}/a:1"), &options())
        .0
        .unwrap();
}

/// What is guessed from is the whole list, but not another server's.
#[test]
fn typos_are_guessed_from_lists_in_pages() {
    let stranger = Scripted::start(|request| panic!("{} went to a stranger", request.target));
    for (next, hint) in [
        (
            "</v2/a/tags/list?n=2&last=t1>; rel=\"next\"".to_owned(),
            "Did you mean ",
        ),
        ("<?n=2&last=t1>; rel=next".to_owned(), "Did you mean "),
        (
            format!("<http://{}/v2/a/tags/list>; rel=\"next\"", stranger.name()),
            "It has the tags t0 and t1.",
        ),
        // It goes on for ever.
        (
            "</v2/a/tags/list?n=2>; rel=\"next\"".to_owned(),
            "It has the tags t0, t1 and many more.",
        ),
    ] {
        let registry = Scripted::start(move |request| {
            if !request.target.contains("/tags/list") {
                return status("404 Not Found");
            }
            if request.target.contains("last=") {
                return ok("application/json", br#"{"tags": ["zebra"]}"#);
            }
            ok("application/json", br#"{"tags": ["t0", "t1"]}"#).header("Link", next.clone())
        });
        let error = pull(&format!("{}/a:zbera", registry.name()), &options())
            .0
            .unwrap_err()
            .to_string();
        assert!(error.contains(hint), "{error}");
    }
}
