use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::{Duration, Instant},
};

use microagent_image::Secret;

use super::*;
use crate::{Error, Registries, SupervisorProgram};

/// A state directory, a directory of helpers, and other programs' files.
struct Home {
    directory: tempfile::TempDir,
    config: Config,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("bin")).unwrap();
        let mut config = Config::new(
            root.join("state"),
            "/nowhere",
            SupervisorProgram::ThisProgram,
        )
        .helper_path(root.join("bin"));
        config.helper_timeout = Duration::from_secs(20);
        Self { directory, config }
    }

    fn file(mut self, name: &str, json: &str) -> Self {
        let path = self.directory.path().join(name);
        fs::write(&path, json).unwrap();
        self.config = self.config.auth_file(path);
        self
    }

    fn own(&self, json: &str) {
        fs::create_dir_all(&self.config.state_dir).unwrap();
        fs::write(self.config.own_auth_file(), json).unwrap();
    }

    /// A helper that is a shell script; `$1` is the verb.
    fn helper(&self, name: &str, script: &str) {
        let path = self
            .directory
            .path()
            .join("bin")
            .join(format!("docker-credential-{name}"));
        testkit::executable(&path, format!("#!/bin/sh\n{script}\n").as_bytes());
    }

    fn find(&self, scope: &str) -> Result<Option<Found>, String> {
        find(&self.config, &RegistryScope::from_key(scope).unwrap())
    }

    fn user(&self, scope: &str) -> Option<String> {
        let found = self.find(scope).unwrap()?;
        Some(found.credential.username().unwrap_or("(token)").to_owned())
    }
}

#[test]
fn the_first_file_that_has_one_wins_and_the_own_is_first() {
    let home = Home::new()
        .file("docker.json", r#"{"auths":{"r.example":{"auth":"ZG9ja2VyOnA="},"https://index.docker.io/v1/":{"auth":"aHViOmI6Yw=="}}}"#)
        .file("empty.json", "\n")
        .file("containers.json", r#"{"auths":{"r.example":{"auth":"b3RoZXI6cA=="},"c.example/team":{"auth":"dGVhbTpw"}}}"#);
    assert_eq!(home.user("r.example/x").as_deref(), Some("docker"));
    assert_eq!(home.user("c.example/team/x").as_deref(), Some("team"));
    assert_eq!(home.user("c.example/x"), None);
    let hub = home.find("docker.io/library/debian").unwrap().unwrap();
    assert_eq!(
        hub.credential,
        Credential::Basic {
            username: "hub".into(),
            password: "b:c".into()
        }
    );
    home.own(r#"{"auths":{"r.example":{"auth":"b3duOnA="}}}"#);
    assert_eq!(home.user("r.example/x").as_deref(), Some("own"));
}

#[test]
fn what_is_broken_is_passed_over_and_told_if_nothing_is_found() {
    let home = Home::new()
        .file("broken.json", r#"{"auths":{"r.example": hunter2"#)
        .file(
            "docker.json",
            r#"{"auths":{"r.example":{"auth":"%%hunter2"},"a.example":{"auth":"YTpi"}}}"#,
        );
    assert_eq!(home.user("a.example/x").as_deref(), Some("a"));
    let error = home.find("r.example/x").unwrap_err();
    assert!(
        error.contains("broken.json") && !error.contains("hunter2"),
        "{error}"
    );
}

#[test]
fn helpers_are_asked_by_the_name_of_the_registry() {
    let home = Home::new().file(
        "docker.json",
        r#"{"auths":{"r.example":{}}, "credsStore":"store", "credHelpers":{"h.example/team":"team"}}"#,
    );
    let asked = home.directory.path().join("asked");
    home.helper(
        "store",
        &format!(
            r#"read server; echo "$1 $server" >> {}
case "$server" in
  r.example) echo '{{"ServerURL":"r.example","Username":"kept","Secret":"s"}}' ;;
  t.example) echo '{{"username":"<token>","secret":"id"}}' ;;
  https://index.docker.io/v1/) echo '{{"Username":"hub","Secret":"s"}}' ;;
  *) echo 'credentials not found in native keychain'; exit 1 ;;
esac"#,
            asked.display()
        ),
    );
    home.helper("team", r#"echo '{"Username":"team","Secret":"s"}'"#);
    assert_eq!(home.user("r.example/a/b").as_deref(), Some("kept"));
    assert_eq!(home.user("docker.io/library/x").as_deref(), Some("hub"));
    assert_eq!(home.user("none.example/x"), None);
    assert_eq!(home.user("h.example/team/x").as_deref(), Some("team"));
    assert_eq!(home.user("h.example/x"), None);
    let token = home.find("t.example/x").unwrap().unwrap();
    assert_eq!(token.credential, Credential::Identity("id".into()));
    assert_eq!(token.helper.as_deref(), Some("store"));
    let asked = fs::read_to_string(asked).unwrap();
    assert!(
        asked.starts_with("get r.example\nget https://index.docker.io/v1/\n"),
        "{asked}"
    );
}

#[test]
fn a_helper_that_fails_is_told_by_what_it_said_on_standard_error_only() {
    let home = Home::new().file(
        "docker.json",
        r#"{"credHelpers":{"f.example":"fails","m.example":"missing","g.example":"garbles","b.example":"../bad","s.example":"sleeps","q.example":"quiet"}}"#,
    );
    home.helper(
        "fails",
        "echo hunter2; printf 'the keychain is \\033[31mlocked\\n' >&2; exit 3",
    );
    home.helper("garbles", "echo hunter2");
    // Where Docker's own say why.
    home.helper("quiet", "echo 'hunter2 is locked'; exit 1");
    home.helper("sleeps", "sleep 60 & sleep 60");
    for (scope, reason) in [
        ("f.example/x", "the keychain is \u{fffd}[31mlocked"),
        (
            "m.example/x",
            "`docker-credential-missing` is not on the PATH",
        ),
        ("g.example/x", "cannot be read"),
        ("b.example/x", "no name of a credential helper"),
        (
            "q.example/x",
            "said nothing on standard error; its standard output is not shown, as it may hold secrets: `echo q.example | docker-credential-quiet get` shows",
        ),
    ] {
        let error = home.find(scope).unwrap_err();
        assert!(
            error.contains(reason) && error.contains("docker.json"),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }
    let mut hurried = home.config.clone();
    hurried.helper_timeout = Duration::from_millis(300);
    let begun = Instant::now();
    let error = find(&hurried, &RegistryScope::from_key("s.example/x").unwrap()).unwrap_err();
    assert!(error.contains("did not answer within 300ms"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_is_kept_is_private_whole_and_leaves_the_rest_alone() {
    let home = Home::new();
    let path = home.config.own_auth_file();
    let scope = |text: &str| text.parse::<RegistryScope>().unwrap();
    let secret = Secret::from("p:w");
    keep::password(&path, &scope("r.example"), "u", &secret).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert!(!fs::read_to_string(&path).unwrap().contains("p:w"));

    home.own(r#"{"auths":{"https://r.example/v1/":{"auth":"eDp4"},"o.example":{"auth":"YTpi"}},"psFormat":"x","credHelpers":{"o.example":"h"}}"#);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    keep::password(&path, &scope("r.example"), "u", &secret).unwrap();
    keep::password(&path, &scope("docker.io"), "hub", &secret).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(
        (&written["psFormat"], &written["credHelpers"]["o.example"]),
        (&"x".into(), &"h".into())
    );
    assert_eq!(written["auths"].as_object().unwrap().len(), 3);
    assert_eq!(home.user("r.example/x").as_deref(), Some("u"));
    assert_eq!(home.user("docker.io/library/x").as_deref(), Some("hub"));

    assert!(keep::forget(&path, &scope("r.example")).unwrap());
    assert!(!keep::forget(&path, &scope("r.example")).unwrap());
    assert_eq!(home.user("r.example/x"), None);

    home.own("[hunter2");
    let error = keep::password(&path, &scope("r.example"), "u", &secret)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("auth.json") && !error.contains("hunter2"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "[hunter2");
}

#[test]
fn many_writers_lose_nothing() {
    let home = Home::new();
    let path = home.config.own_auth_file();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let path = &path;
            scope.spawn(move || {
                let registry: RegistryScope = format!("r{writer}.example").parse().unwrap();
                keep::password(path, &registry, &format!("u{writer}"), &Secret::from("p")).unwrap();
            });
        }
    });
    for writer in 0..8 {
        assert_eq!(
            home.user(&format!("r{writer}.example/x")),
            Some(format!("u{writer}"))
        );
    }
}

#[test]
fn words_no_registry_could_accept_are_refused_before_it_is_asked() {
    let home = Home::new();
    let registries = Registries::new(&home.config);
    let scope: RegistryScope = "r.example".parse().unwrap();
    for (username, password, named) in [
        ("", "p", "user name"),
        ("a:b", "p", "user name"),
        ("u", "", "password"),
        ("u", "hunter2\0", "password"),
        ("u", "hunter2\u{1b}", "password"),
    ] {
        let error = registries
            .login(
                &scope,
                username,
                &Secret::from(password),
                &Default::default(),
            )
            .unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        assert!(error.to_string().contains(named) && !error.to_string().contains("hunter2"));
    }
}
