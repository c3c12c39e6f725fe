//! What clouds give for a password: a key of several lines, by standard input.

use testkit::registry::{Registry, Setup};

use crate::sandbox;

/// As `login -u _json_key --password-stdin <key.json` of one of them.
const KEY: &str = "{\n  \"type\": \"account\",\n\t\"private_key\": \"-----BEGIN\"\n}";

#[test]
fn a_key_of_several_lines_is_a_password() {
    let login = Some(("_json_key".to_owned(), KEY.to_owned()));
    let registry = Registry::start_with(Setup {
        login,
        ..Setup::default()
    })
    .unwrap();
    let name = registry.reference("");
    let name = name.trim_end_matches('/');
    let sandbox = sandbox();
    let login = |key: &str| {
        sandbox
            .microagent(["login", "-u", "_json_key", "--password-stdin", name])
            .stdin(key)
            .run()
    };
    login(&KEY.replace("account", "other")).exited(1);
    // Files end with a line break.
    let done = login(&format!("{KEY}\n")).success();
    assert!(!done.out().contains("BEGIN"), "{done}");
    let who = sandbox
        .microagent(["--json", "whoami", "--check", name])
        .run()
        .success()
        .parsed();
    assert_eq!(who["accepted"], true);
    // Whoever is known is told that there is no such image.
    let missing = sandbox
        .microagent(["images", "pull", &registry.reference("none:1")])
        .run()
        .exited(1);
    assert!(missing.err().contains("was not found"), "{missing}");
}
