//! Who asks, and who must not be told: token services, identity tokens, other servers.

use std::sync::Arc;

use base64::Engine as _;
use microagent_image::{Credential, Credentials, ImageError, ImageEvent, RegistryScope};
use testkit::registry::{Nginx, Registry, Setup, TokenSetup, Tokens, Wire};

use crate::{BIG, Bench, alice, layer, options, registry_options};

/// A registry that wants tokens, filled with these images of one small layer each.
fn with_tokens(
    bench: &Bench,
    setup: TokenSetup,
    images: &[(&str, &[Vec<u8>])],
) -> (Registry, Tokens) {
    let tokens = Tokens::start(bench.directory.path(), setup).unwrap();
    let mut registry = Registry::start().unwrap();
    for (name, layers) in images {
        bench.push(&registry, name, layers);
    }
    registry
        .reconfigure(Setup {
            tokens: Some(tokens.clone()),
            ..Setup::default()
        })
        .unwrap();
    (registry, tokens)
}

#[test]
fn tokens_for_nobody_for_users_and_for_identity_tokens() {
    let bench = Bench::new();
    let small = [layer(1, 1000)];
    let images = [("public/a:1", &small[..]), ("team/b:1", &small[..])];
    let (registry, tokens) = with_tokens(&bench, TokenSetup::default(), &images);
    bench
        .pull(&registry.reference("public/a:1"), &options())
        .unwrap();
    let asked = tokens.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        (asked[0].who.as_deref(), asked[0].scope.as_str()),
        (None, "repository:public/a:pull")
    );

    let private = registry.reference("team/b:1");
    let error = bench.pull(&private, &options()).unwrap_err();
    assert!(
        matches!(error, ImageError::Unauthorized { .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("microagent login 127.0.0.1"),
        "{error}"
    );
    let error = bench
        .pull(&private, &options().credentials(alice("wr0ng")))
        .unwrap_err();
    assert!(error.to_string().contains("were not accepted"), "{error}");
    bench
        .pull(&private, &options().credentials(alice("s3cret")))
        .unwrap();
    assert_eq!(tokens.asked().last().unwrap().who.as_deref(), Some("alice"));

    let identity =
        |token: &str| options().credentials(Arc::new(Credential::Identity(token.into())));
    let error = bench.pull(&private, &identity("stolen")).unwrap_err();
    assert!(
        matches!(error, ImageError::Unauthorized { .. }),
        "{error:?}"
    );
    bench
        .pull(&private, &identity("an identity token"))
        .unwrap();
    let last = tokens.asked().pop().unwrap();
    assert_eq!(
        (last.method.as_str(), last.who.as_deref()),
        ("POST", Some("(identity)"))
    );
}

#[test]
fn a_token_that_expires_during_a_pull_is_had_again() {
    let bench = Bench::new();
    let setup = TokenSetup {
        good_for: 2,
        ..TokenSetup::default()
    };
    let layers: Vec<Vec<u8>> = (0..3).map(|seed| layer(seed, BIG)).collect();
    let (registry, tokens) = with_tokens(&bench, setup, &[("team/b:1", &layers)]);
    let wire = Wire::to(registry.port()).unwrap();
    wire.slow(3 << 20);
    let mut slowly = registry_options();
    slowly.parallel = 1;
    let options = options().registry(slowly).credentials(alice("s3cret"));
    bench
        .pull(&format!("127.0.0.1:{}/team/b:1", wire.port()), &options)
        .unwrap();
    let asked = tokens.asked();
    assert!((2..=4).contains(&asked.len()), "{asked:?}");
    assert!(
        asked
            .iter()
            .all(|asked| asked.who.as_deref() == Some("alice")),
        "{asked:?}"
    );
}

#[test]
fn who_cannot_say_who_asks_is_asked_for_public_images_anyway() {
    struct Broken;
    impl Credentials for Broken {
        fn credential(&self, _: &RegistryScope) -> Result<Option<Credential>, String> {
            Err("the keychain is locked".into())
        }
    }
    let bench = Bench::new();
    let small = [layer(1, 1000)];
    let images = [("public/a:1", &small[..]), ("team/b:1", &small[..])];
    let (registry, _tokens) = with_tokens(&bench, TokenSetup::default(), &images);
    let broken = options().credentials(Arc::new(Broken));
    bench
        .pull(&registry.reference("public/a:1"), &broken)
        .unwrap();
    let told = bench.events.lock().unwrap().iter().any(
        |event| matches!(event, ImageEvent::NoCredentials { reason, .. } if reason.contains("locked")),
    );
    assert!(told);
    let error = bench
        .pull(&registry.reference("team/b:1"), &broken)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("anonymously, because the keychain is locked"),
        "{error}"
    );
}

#[test]
fn blobs_of_another_server_come_without_our_credentials() {
    let bench = Bench::new();
    let login = ("alice".to_owned(), "s3cret".to_owned());
    let registry = Registry::start_with(Setup {
        login: Some(login),
        ..Setup::default()
    })
    .unwrap();
    bench.push(&registry, "a:1", &[layer(1, 1000), layer(2, 1000)]);
    // The other server has its own way to the content, as a storage service would.
    let own = base64::engine::general_purpose::STANDARD.encode("alice:s3cret");
    let upstream = registry.port();
    let nginx = Nginx::start(2, |ports| {
        format!(
            r#"server {{
    listen 127.0.0.1:{front};
    location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
    location ~ /blobs/ {{
        if ($http_authorization = "") {{ return 401; }}
        return 307 http://127.0.0.1:{other}$request_uri;
    }}
}}
server {{
    listen 127.0.0.1:{other};
    location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_set_header Authorization "Basic {own}"; }}
}}"#,
            front = ports[0],
            other = ports[1],
        )
    })
    .unwrap();
    bench
        .pull(
            &nginx.reference(0, "a:1"),
            &options().credentials(alice("s3cret")),
        )
        .unwrap();
    let (front, other) = (nginx.seen(0), nginx.seen(1));
    assert!(
        front.iter().any(|line| line.contains("Basic ")),
        "{front:?}"
    );
    assert_eq!(other.len(), 3, "{other:?}");
    assert!(
        other.iter().all(|line| line.contains(" 200 \"-\"")),
        "{other:?}"
    );
}

#[test]
fn a_registry_that_repeats_a_secret_is_not_quoted() {
    use testkit::registry::{Answer, Scripted};
    let bench = Bench::new();
    let registry = Scripted::start(|request| match request.header("authorization") {
        None => Answer::new("401 Unauthorized").header("WWW-Authenticate", "Basic realm=x"),
        Some(header) => Answer::new("418 I'm a teapot").body(format!(
            r#"{{"errors":[{{"message":"what is {header} or hunter2?"}}]}}"#
        )),
    });
    let options = options().credentials(alice("hunter2"));
    let error = bench
        .pull(&format!("{}/a:1", registry.name()), &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("what is Basic … or …?"), "{error}");
}
