//! Commands that need no machine.

use std::fs;

use testkit::Sandbox;

use crate::sandbox;

#[test]
fn what_was_left_behind_is_counted_and_removed() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    sandbox
        .microagent(["create", "stays", Sandbox::BUSYBOX])
        .run()
        .success();
    let workspaces = sandbox.state().join("workspaces");
    // Half deleted, and half made: a workspace is none before its manifest is written.
    for name in [".trash-0a1b2c3d", "half-made"] {
        fs::create_dir(workspaces.join(name)).unwrap();
        fs::write(workspaces.join(name).join("scratch.ext4"), [1; 100_000]).unwrap();
    }
    // The last machine takes the directory for sockets along, unless it is killed just then.
    let sockets = sandbox.runtime().join("microagent");
    fs::create_dir(&sockets).unwrap();
    let look = sandbox.microagent(["prune", "--dry-run"]).json();
    let look = look.run().success().parsed();
    assert_eq!(look["dry_run"], true);
    let kinds: Vec<_> = look["leftovers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|leftover| leftover["what"].as_str().unwrap())
        .collect();
    let all = ["deleted", "abandoned", "sockets"];
    assert!(
        kinds.len() == all.len() && all.iter().all(|kind| kinds.contains(kind)),
        "{look}"
    );
    let bytes = |leftover: &serde_json::Value| leftover["bytes"].as_u64().unwrap();
    let of_leftovers: u64 = look["leftovers"]
        .as_array()
        .unwrap()
        .iter()
        .map(bytes)
        .sum();
    assert!(of_leftovers >= 200_000, "{look}");
    let is_there = || [&workspaces.join("half-made"), &sockets].map(|path| path.exists());
    assert_eq!(is_there(), [true, true], "it only looked");

    let done = sandbox.microagent(["gc"]).json().run().success().parsed();
    // `prune` looks at images, too; `gc` leaves them alone.
    assert_eq!(done["reclaimed_bytes"], of_leftovers, "{done}");
    assert_eq!(done["dry_run"], false);
    let listed = sandbox.microagent(["list"]).json().run().success().parsed();
    assert_eq!(listed["workspaces"][0]["name"], "stays", "{listed}");
    let text = sandbox.microagent(["gc"]).run().success();
    assert_eq!(text.out(), "0 B reclaimed\n");
    assert_eq!(is_there(), [false, false]);
    // On a terminal one is asked, unless one has said it already.
    for (answer, words) in [("n\n", "Nothing was deleted"), ("y\n", "stays deleted")] {
        let mut asked = sandbox.microagent(["delete", "stays"]).on_terminal(24, 80);
        let question = asked.wait_for("[y/N]");
        assert!(question.contains("Delete stays"), "{question:?}");
        asked.type_text(answer);
        asked.wait_for(words);
        assert_eq!(asked.finish(), Some(i32::from(answer == "n\n")));
    }
    for option in ["--yes", "--force"] {
        let again = ["create", "stays", Sandbox::BUSYBOX];
        sandbox.microagent(again).run().success();
        let mut told = sandbox
            .microagent(["delete", option, "stays"])
            .on_terminal(24, 80);
        let screen = told.wait_for("stays deleted");
        assert!(!screen.contains("[y/N]"), "{screen:?}");
        assert_eq!(told.finish(), Some(0));
    }
    let gone = sandbox.microagent(["delete", "stays"]).run().success();
    assert_eq!(gone.out(), "stays did not exist\n");
}

#[test]
fn the_program_tells_of_itself() {
    let sandbox = sandbox();
    let version = sandbox.microagent(["version"]).json().run().success();
    let version = version.parsed();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["guest_sha256"], microagent::GUEST_SHA256);
    let text = sandbox.microagent(["version"]).run().success().out();
    assert!(
        text.contains(env!("CARGO_PKG_VERSION")) && text.contains("guest agent"),
        "{text}"
    );

    for (shell, sign) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef microagent"),
        ("fish", "complete --command microagent"),
    ] {
        let script = sandbox.microagent(["completions", shell]).run().success();
        for word in [sign, "__complete"] {
            assert!(script.out().contains(word), "{shell}: {word}");
        }
    }
    // What the scripts ask the program: every command, and no option that is only there to be refused.
    let offered = |command: &str, word: &str| {
        let question = ["__complete", "--", "microagent", command, word];
        sandbox.microagent(question).run().success().out()
    };
    assert!(offered("help", "qua").contains("quarantine"));
    assert!(offered("run", "--mediation-o").starts_with("--mediation-optional"));
    assert_eq!(offered("run", "--privi"), "");

    let pages = tempfile::tempdir().unwrap();
    let directory = pages.path().join("man1");
    sandbox
        .microagent(["man", directory.to_str().unwrap()])
        .run()
        .success();
    let page = fs::read_to_string(directory.join("microagent-apply.1")).unwrap();
    assert!(page.contains("dry") && page.contains(".TH"), "{page}");
    let main = sandbox.microagent(["man"]).run().success();
    assert!(main.out().contains(".TH MICROAGENT 1"), "{main}");
}
