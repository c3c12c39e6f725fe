//! Logging in and out, and whose credentials are used.

use std::{fs, io::Write as _, os::unix::fs::MetadataExt, path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use testkit::{
    Finished, Sandbox,
    registry::{Certificates, Setup},
};

use crate::{guarded, registry, sandbox, write};

const PASSWORD: &str = "s3cret-pass";

/// Panics if the password, in any form it is sent or stored in, was shown.
fn shows_no_secret(finished: Finished) -> Finished {
    let shown = finished.out() + &finished.err();
    for secret in [
        PASSWORD.to_owned(),
        STANDARD.encode(format!("alice:{PASSWORD}")),
    ] {
        assert!(!shown.contains(&secret), "{finished}");
    }
    finished
}

fn login(sandbox: &Sandbox, name: &str, password: &str) -> Finished {
    let command = [
        "--verbose",
        "login",
        "--username",
        "alice",
        "--password-stdin",
        name,
    ];
    shows_no_secret(sandbox.microagent(command).stdin(password).run())
}

fn pull(sandbox: &Sandbox, reference: &str) -> Finished {
    shows_no_secret(
        sandbox
            .microagent(["--verbose", "images", "pull", reference])
            .run(),
    )
}

#[test]
fn a_login_is_checked_kept_privately_used_and_forgotten() {
    let registry = registry(guarded(), &["tiny:1"]);
    let (name, reference) = (registry.reference(""), registry.reference("tiny:1"));
    let name = name.trim_end_matches('/');
    let sandbox = sandbox();
    let file = sandbox.state().join("auth.json");

    let refused = pull(&sandbox, &reference).exited(1);
    assert!(
        refused
            .err()
            .contains(&format!("`microagent login {name}`")),
        "{refused}"
    );
    let unknown = sandbox.microagent(["whoami", name]).run().exited(1);
    assert!(unknown.err().contains("No credentials"), "{unknown}");

    let wrong = login(&sandbox, name, "s3cret-pas").exited(1);
    assert!(wrong.err().contains("does not accept"), "{wrong}");
    assert!(!file.exists());

    // `echo` ends a password with a line break.
    login(&sandbox, name, &format!("{PASSWORD}\n")).success();
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    assert!(!fs::read_to_string(&file).unwrap().contains(PASSWORD));
    pull(&sandbox, &reference).success();

    let who = sandbox
        .microagent(["--json", "whoami", "--check", name])
        .run()
        .success()
        .parsed();
    assert_eq!(
        (&who["username"], &who["kind"], &who["accepted"]),
        (&"alice".into(), &"password".into(), &true.into())
    );
    assert_eq!(who["file"], file.to_str().unwrap());

    let out = sandbox
        .microagent(["--json", "logout", name])
        .run()
        .success()
        .parsed();
    assert_eq!(
        (&out["removed"], &out["remains_in"]),
        (&true.into(), &serde_json::Value::Null)
    );
    let again = sandbox.microagent(["logout", name]).run().success();
    assert!(again.out().contains("There was no login"), "{again}");
    pull(&sandbox, &reference).exited(1);
    assert!(!fs::read_to_string(&file).unwrap().contains(name));
}

/// The password, in no form, is anywhere but in the one file: not in events, records, notes or logs.
#[test]
fn a_password_is_kept_in_one_place_and_said_nowhere() {
    let registry = registry(guarded(), &["team/tiny:1", "other/tiny:1"]);
    let host = format!("127.0.0.1:{}", registry.port());
    let sandbox = sandbox();
    // For one namespace: the rest of the registry is not told who we are.
    let team = format!("{host}/team");
    login(&sandbox, &team, PASSWORD).success();
    let who = |scope: &str| sandbox.microagent(["whoami", scope]).run();
    assert!(
        who(&format!("{team}/tiny"))
            .success()
            .out()
            .contains("alice")
    );
    who(&host).exited(1);
    pull(&sandbox, &registry.reference("other/tiny:1")).exited(1);
    let told = sandbox
        .microagent(["--json", "--verbose", "images", "pull"])
        .args([&registry.reference("team/tiny:1")])
        .env("MICROAGENT_LOG", "trace")
        .run();
    let told = shows_no_secret(told.success());
    assert!(told.err().contains("\"event\""), "{told}");

    let secrets = [
        PASSWORD.to_owned(),
        STANDARD.encode(format!("alice:{PASSWORD}")),
    ];
    let mut with = Vec::new();
    let mut pending = vec![sandbox.state().to_owned(), sandbox.runtime().to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()));
        } else if let Ok(bytes) = fs::read(&path) {
            let text = String::from_utf8_lossy(&bytes);
            if secrets.iter().any(|secret| text.contains(secret)) {
                with.push(path);
            }
        }
    }
    assert_eq!(with, [sandbox.state().join("auth.json")]);
}

#[test]
fn a_password_is_typed_unseen() {
    let registry = registry(guarded(), &[]);
    let name = registry.reference("");
    let name = name.trim_end_matches('/');
    let sandbox = sandbox();
    let mut terminal = sandbox.microagent(["login", name]).on_terminal(24, 100);
    terminal.wait_for("User name");
    terminal.type_text("alice\n");
    terminal.wait_for_last("(not shown): ");
    terminal.type_text(&format!("{PASSWORD}x\x7f\r"));
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.screen());
    let screen = terminal.screen();
    assert!(
        screen.contains("Logged in") && !screen.contains(PASSWORD),
        "{screen}"
    );
    assert!(terminal.is_restored());

    let mut terminal = sandbox
        .microagent(["login", "-u", "alice", name])
        .on_terminal(24, 100);
    terminal.wait_for_last("(not shown): ");
    terminal.type_text("half\x03");
    assert_eq!(terminal.finish(), Some(130));
    assert!(terminal.is_restored());
}

#[test]
fn a_password_on_the_command_line_is_refused_and_one_in_a_pipe_is_named() {
    let sandbox = sandbox();
    for arguments in [
        ["login", "-u", "alice", "-p", PASSWORD, "r.example"],
        ["login", "-u", "alice", "r.example", "--password", PASSWORD],
    ] {
        let refused = shows_no_secret(sandbox.microagent(arguments).run().exited(2));
        assert!(refused.err().contains("--password-stdin"), "{refused}");
    }
    let piped = sandbox
        .microagent(["login", "-u", "alice", "r.example"])
        .run()
        .exited(2);
    assert!(piped.err().contains("--password-stdin"), "{piped}");
    let bare = sandbox.microagent(["login", "lab"]).run().exited(2);
    assert!(
        bare.err().contains("write the full host name or a port"),
        "{bare}"
    );
}

/// A helper that keeps what it is given in a directory, as a keychain would.
fn keychain(directory: &Path) -> String {
    let bin = directory.join("bin");
    let kept = directory.join("kept");
    fs::create_dir_all(&kept).unwrap();
    let script = format!(
        r#"#!/bin/sh
echo "$@" >> "{asked}"
name() {{ printf %s "$1" | tr -c 'a-z0-9.' _; }}
case "$1" in
  store) read -r all; server=$(printf %s "$all" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/'); printf %s "$all" > "{kept}/$(name "$server")" ;;
  get) read -r server; cat "{kept}/$(name "$server")" 2>/dev/null || {{ echo 'credentials not found in native keychain'; exit 1; }} ;;
  erase) read -r server; rm "{kept}/$(name "$server")" ;;
esac
"#,
        kept = kept.display(),
        asked = directory.join("asked").display()
    );
    testkit::executable(&bin.join("docker-credential-keychain"), script.as_bytes());
    let path = std::env::var("PATH").unwrap();
    format!("{}:{path}", bin.display())
}

#[test]
fn a_helper_keeps_the_login_instead_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = keychain(directory.path());
    let registry = registry(guarded(), &["tiny:1"]);
    let (name, reference) = (registry.reference(""), registry.reference("tiny:1"));
    let name = name.trim_end_matches('/');
    let sandbox = sandbox();
    let with = |command: testkit::Invocation| shows_no_secret(command.env("PATH", &path).run());

    let missing = with(
        sandbox
            .microagent([
                "login",
                "-u",
                "alice",
                "--password-stdin",
                "--helper",
                "none",
                name,
            ])
            .stdin(PASSWORD),
    )
    .exited(1);
    assert!(
        missing.err().contains("docker-credential-none"),
        "{missing}"
    );

    let command = [
        "login",
        "-u",
        "alice",
        "--password-stdin",
        "--helper",
        "keychain",
        name,
    ];
    with(sandbox.microagent(command).stdin(PASSWORD)).success();
    let file = fs::read_to_string(sandbox.state().join("auth.json")).unwrap();
    assert!(
        !file.contains(&STANDARD.encode(format!("alice:{PASSWORD}"))),
        "{file}"
    );
    assert_eq!(
        fs::read_dir(directory.path().join("kept")).unwrap().count(),
        1
    );
    with(sandbox.microagent(["images", "pull", &reference])).success();
    let who = with(sandbox.microagent(["whoami", name])).success();
    assert!(
        who.out()
            .contains("alice  (from docker-credential-keychain"),
        "{who}"
    );
    // From now on it is the one that is asked, without saying so.
    with(
        sandbox
            .microagent(["login", "-u", "alice", "--password-stdin", name])
            .stdin(PASSWORD),
    )
    .success();
    with(sandbox.microagent(["logout", name])).success();
    assert_eq!(
        fs::read_dir(directory.path().join("kept")).unwrap().count(),
        0
    );
    let refused = with(sandbox.microagent(["images", "pull", &reference])).exited(1);
    assert!(
        refused.err().contains("user name and a password"),
        "{refused}"
    );
    // Others see the arguments of programs: they are a verb, each time.
    let asked = fs::read_to_string(directory.path().join("asked")).unwrap();
    assert!(
        asked
            .lines()
            .all(|line| ["store", "get", "erase"].contains(&line)),
        "{asked}"
    );
}

#[test]
fn a_helper_that_fails_is_shown_and_public_images_do_not_need_it() {
    let directory = tempfile::tempdir().unwrap();
    let private = registry(guarded(), &["tiny:1"]);
    let public = registry(Setup::default(), &["tiny:1"]);
    let sandbox = sandbox();
    let config = write(
        directory.path(),
        "config.json",
        r#"{"credsStore": "locked"}"#,
    );
    testkit::executable(
        &directory.path().join("docker-credential-locked"),
        b"#!/bin/sh\necho s3cret-pass\necho the keychain is locked >&2\nexit 1\n",
    );
    let path = format!(
        "{}:{}",
        directory.path().display(),
        std::env::var("PATH").unwrap()
    );
    let pull = |reference: &str| {
        let command = sandbox.microagent(["--verbose", "images", "pull", reference]);
        shows_no_secret(
            command
                .env("PATH", &path)
                .env("DOCKER_CONFIG", config.parent().unwrap().to_str().unwrap())
                .run(),
        )
    };
    pull(&public.reference("tiny:1")).success();
    let refused = pull(&private.reference("tiny:1")).exited(1);
    assert!(
        refused.err().contains("the keychain is locked"),
        "{refused}"
    );
}

#[test]
fn the_files_of_docker_and_the_containers_tools_are_read_in_order() {
    let registry = registry(guarded(), &["team/tiny:1"]);
    let (host, reference) = (registry.reference(""), registry.reference("team/tiny:1"));
    let host = host.trim_end_matches('/');
    let entry = |key: &str, user: &str, password: &str| {
        let auth = STANDARD.encode(format!("{user}:{password}"));
        format!(r#"{{"auths": {{"{key}": {{"auth": "{auth}"}}}}}}"#)
    };
    let good = |key: &str| entry(key, "alice", PASSWORD);
    let home = tempfile::tempdir().unwrap();
    let at = |path: &str| home.path().join(path).display().to_string();
    // Each of these alone lets a pull through.
    for (file, key, variable) in [
        (".docker/config.json", format!("https://{host}/v1/"), None),
        (
            "elsewhere/config.json",
            host.to_owned(),
            Some(("DOCKER_CONFIG", at("elsewhere"))),
        ),
        (
            "some.json",
            host.to_owned(),
            Some(("REGISTRY_AUTH_FILE", at("some.json"))),
        ),
        (
            "run/containers/auth.json",
            format!("{host}/team"),
            Some(("XDG_RUNTIME_DIR", at("run"))),
        ),
        (
            ".config/containers/auth.json",
            format!("{host}/team/tiny"),
            None,
        ),
    ] {
        let sandbox = sandbox();
        let path = write(home.path(), file, &good(&key));
        let mut command = sandbox
            .microagent(["images", "pull", &reference])
            .env("HOME", home.path().to_str().unwrap());
        if let Some((name, value)) = &variable {
            command = command.env(name, value);
        }
        shows_no_secret(command.run()).success();
        fs::remove_file(path).unwrap();
    }
    // The own file comes first, and the longest key of a file is meant.
    let sandbox = sandbox();
    write(home.path(), ".docker/config.json", &good(host));
    let who = |scope: &str| {
        let command = sandbox.microagent(["--json", "whoami", scope]);
        command
            .env("HOME", home.path().to_str().unwrap())
            .run()
            .success()
            .parsed()
    };
    write(
        sandbox.state(),
        "auth.json",
        &entry(&format!("{host}/team"), "bob", "x"),
    );
    assert_eq!(who(&format!("{host}/team/tiny"))["username"], "bob");
    assert_eq!(who(host)["username"], "alice");
    let out = sandbox
        .microagent(["logout", host])
        .env("HOME", home.path().to_str().unwrap())
        .run()
        .success();
    assert!(
        out.out()
            .contains(".docker/config.json still has credentials"),
        "{out}"
    );
}

#[test]
fn a_registry_with_a_private_authority_that_knows_its_clients() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(directory.path()).unwrap();
    let setup = Setup {
        tls: Some((certificates.certificate.clone(), certificates.key.clone())),
        clients: Some(certificates.authority.clone()),
        ..guarded()
    };
    let registry = registry(setup, &["tiny:1"]);
    let (host, reference) = (registry.reference(""), registry.reference("tiny:1"));
    let host = host.trim_end_matches('/');
    let sandbox = sandbox();
    let refused = login(&sandbox, host, PASSWORD).exited(1);
    assert!(
        refused.err().contains("`ca` in registries.toml"),
        "{refused}"
    );

    // The certificates stand beside the file.
    let settings = |text: &str| {
        fs::create_dir_all(sandbox.state()).unwrap();
        for name in ["ca.pem", "client.pem", "client.key"] {
            fs::copy(directory.path().join(name), sandbox.state().join(name)).unwrap();
        }
        write(
            sandbox.state(),
            "registries.toml",
            &format!("[registry.\"{host}\"]\n{text}"),
        );
    };
    settings("ca = [\"ca.pem\"]\n");
    let refused = login(&sandbox, host, PASSWORD).exited(1);
    assert!(
        refused.err().to_lowercase().contains("certificate"),
        "{refused}"
    );
    settings("ca = [\"ca.pem\"]\nclient_cert = \"client.pem\"\nclient_key = \"client.key\"\n");
    login(&sandbox, host, PASSWORD).success();
    pull(&sandbox, &reference).success();

    settings("ca = [\"ca.pem\"]\ncleint_cert = \"client.pem\"\n");
    let refused = pull(&sandbox, &reference).exited(1);
    assert!(
        refused.err().contains("unknown field `cleint_cert`"),
        "{refused}"
    );
}

#[test]
fn a_crash_leaves_no_core_with_a_password_in_it() {
    let sandbox = sandbox();
    let directory = tempfile::tempdir().unwrap();
    // What this host does with a program that crashes and may leave a core.
    let script = |program: &str| {
        format!(
            "cd {} && ulimit -c unlimited && exec {program}",
            directory.path().display()
        )
    };
    let crash = script("sh -c 'kill -ABRT $$'");
    let control = sandbox.program("sh").args(["-c", &crash]).run();
    let program = format!(
        "{} login -u alice --password-stdin r.example",
        env!("CARGO_BIN_EXE_microagent")
    );
    let mut running = sandbox
        .program("sh")
        .args(["-c", &script(&program)])
        .start();
    running
        .stdin
        .as_mut()
        .unwrap()
        .write_all(PASSWORD.as_bytes())
        .unwrap();
    testkit::eventually(
        Duration::from_secs(20),
        "the command reads the password",
        || {
            let unread = rustix::io::ioctl_fionread(running.stdin.as_ref().unwrap()).unwrap();
            (unread == 0).then_some(())
        },
    );
    running.signal(rustix::process::Signal::ABORT);
    let ended = running.finish();
    assert!(ended.was_signaled(), "{ended}");
    assert!(!ended.core_dumped(), "{ended}");
    if !control.core_dumped() {
        testkit::skip_test("this host leaves no core of any program");
    }
}
