//! Workspaces that stay, by the command line: made, started, ended, looked at, removed.

use std::{os::unix::fs::MetadataExt as _, time::Duration};

use rustix::process::Signal;
use serde_json::Value;
use testkit::{Finished, Sandbox, eventually};

/// How long a guest may take to do a little thing.
const SOON: Duration = Duration::from_secs(30);

/// A sandbox with no other workspaces in it.
fn own() -> Sandbox {
    Sandbox::own(env!("CARGO_BIN_EXE_microagent"))
}

/// Runs a command and takes its JSON.
fn json<const N: usize>(sandbox: &Sandbox, words: [&str; N]) -> Value {
    sandbox.microagent(words).json().run().success().parsed()
}

/// The one error of a command that failed, as a program sees it.
fn error(finished: &Finished) -> Value {
    assert_eq!(finished.out(), "", "{finished}");
    serde_json::from_slice(&finished.stderr).unwrap_or_else(|why| panic!("{why}: {finished}"))
}

/// The names of fields of an object.
fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn a_workspace_is_made_started_ended_and_started_again() {
    let sandbox = own();
    let directory = sandbox.state().join("workspaces/life-one");
    // Each start counts; the workload goes on until it is told to end, and says that it was told.
    let script = "echo x >>/root/starts; trap 'echo told; sync; exit 7' TERM; \
                  wc -l </root/starts; echo ready $(cat /root/starts | wc -l) >/dev/console; while :; do sleep 0.1; done";
    let words = |dry_run: &'static str| {
        [
            "create",
            "life-one",
            Sandbox::BUSYBOX,
            "--profile",
            "tiny",
            "-e",
            "A=1",
            dry_run,
        ]
    };
    let create = |dry_run| {
        sandbox
            .microagent(words(dry_run))
            .args(["--", "sh", "-c", script])
            .json()
            .run()
    };
    let plan = create("--dry-run").success().parsed();
    assert_eq!(
        (&plan["name"], &plan["resources"]["memory_mib"]),
        (&"life-one".into(), &256.into())
    );
    assert!(!directory.exists(), "a plan touches nothing");

    let created = create("--quiet").success().parsed();
    assert_eq!(
        (&created["workspace"], &created["set_up"]),
        (&"life-one".into(), &false.into())
    );
    let on_disk: u64 = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512)
        .sum();
    assert!(on_disk <= 2 << 20, "{on_disk} bytes");
    let taken = create("--quiet").exited(1);
    assert_eq!(error(&taken)["kind"], "conflict", "{taken}");
    let none = error(&sandbox.microagent(["start", "none"]).json().run().exited(1)).clone();
    assert_eq!(none["kind"], "not_found");
    assert!(none["message"].as_str().unwrap().contains("none"), "{none}");

    let prepared = json(&sandbox, ["status", "life-one"]);
    assert_eq!(
        (&prepared["state"], &prepared["event"]),
        (&"prepared".into(), &Value::Null)
    );
    assert_eq!(prepared["verification"]["ok"], true);
    for (start, count) in ["1\n", "2\n"].iter().enumerate() {
        let started = json(&sandbox, ["start", "life-one", "--memory", "300"]);
        assert_eq!(
            (&started["state"], &started["resources"]["memory_mib"]),
            (&"running".into(), &300.into())
        );
        let readiness = &started["readiness"];
        for signal in ["guestReady", "shellReady", "execReady", "mediationReady"] {
            assert_eq!(readiness[signal]["ready"], true, "{signal}: {readiness}");
        }
        assert_eq!(readiness["resultReady"]["ready"], false, "{readiness}");
        let again = sandbox
            .microagent(["start", "life-one"])
            .json()
            .run()
            .exited(1);
        assert_eq!(error(&again)["kind"], "conflict", "{again}");

        let status = json(&sandbox, ["inspect", "life-one"]);
        for block in [
            "event",
            "verification",
            "readiness",
            "network",
            "artifacts",
            "mediation",
            "disk_use",
            "resources",
            "restart",
            "processes",
        ] {
            assert!(keys(&status).contains(&block), "{block}: {status}");
        }
        assert_eq!(
            status["network"]["runtime"]["interface"]["address"],
            "10.0.2.15"
        );
        let early = sandbox
            .microagent(["result", "life-one"])
            .json()
            .run()
            .exited(1);
        assert_eq!(error(&early)["kind"], "not_found", "{early}");

        eventually(SOON, "the workload's word on the console", || {
            let logs = json(&sandbox, ["logs", "life-one"]);
            let ready = format!("ready {}", start + 1);
            logs["logs"]
                .as_str()
                .unwrap()
                .contains(&ready)
                .then_some(())
        });
        let halted = json(&sandbox, ["halt", "life-one"]);
        assert_eq!(
            (&halted["state"], &halted["changed"], &halted["cause"]),
            (&"halted".into(), &true.into(), &"requested".into())
        );
        let result = json(&sandbox, ["result", "life-one"]);
        assert_eq!(
            (&result["exit_code"], &result["stdout"]["data"]),
            (&7.into(), &format!("{count}told\n").into()),
            "start {start}: {result}"
        );
    }
    let again = json(&sandbox, ["halt", "life-one"]);
    assert_eq!(
        (&again["state"], &again["changed"]),
        (&"halted".into(), &false.into())
    );
    let status = json(&sandbox, ["status", "life-one"]);
    assert_eq!(status["readiness"]["resultReady"]["ready"], true);
    assert_eq!(status["readiness"]["guestReady"]["ready"], false);

    // A clone goes on where the old one was, under its own name, and leaves that alone.
    let cloned = json(&sandbox, ["clone", "life-one", "life-two"]);
    assert_eq!(
        (&cloned["workspace"], &cloned["cloned_from"]),
        (&"life-two".into(), &"life-one".into())
    );
    assert_eq!(json(&sandbox, ["status", "life-two"])["state"], "prepared");
    json(&sandbox, ["start", "life-two"]);
    eventually(SOON, "the clone's word on the console", || {
        let logs = json(&sandbox, ["logs", "life-two"]);
        logs["logs"]
            .as_str()
            .unwrap()
            .contains("ready 3")
            .then_some(())
    });
    let stopped = json(&sandbox, ["stop", "life-two", "--grace", "20s"]);
    assert_eq!(
        (&stopped["state"], &stopped["cause"]),
        (&"stopped".into(), &"requested".into())
    );
    let result = json(&sandbox, ["result", "life-two"]);
    assert_eq!(result["stdout"]["data"], "3\ntold\n", "{result}");

    let events = json(&sandbox, ["events", "life-one"]);
    let sequences: Vec<u64> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    let tail = json(&sandbox, ["events", "life-one", "--tail", "1"]);
    assert_eq!(tail["events"][0]["event"], "ended");
    assert_eq!(
        json(
            &sandbox,
            ["events", "life-one", "--since", "2999-01-01T00:00:00Z"]
        )["events"],
        Value::Array(vec![])
    );

    let deleted = sandbox
        .microagent(["delete", "life-one", "life-two", "life-three"])
        .run()
        .success();
    assert_eq!(
        deleted.out(),
        "life-one deleted\nlife-two deleted\nlife-three did not exist\n"
    );
    assert_eq!(json(&sandbox, ["rm", "life-one"])["deleted"], false);
    sandbox.leftovers().none(&["life-one", "life-two"]);
}

#[test]
fn several_are_steered_at_once_and_one_that_cannot_be_stops_no_other() {
    let sandbox = own();
    for name in ["steer-a", "steer-b"] {
        let made = sandbox
            .microagent(["create", name, Sandbox::BUSYBOX, "--profile", "tiny"])
            .run()
            .success();
        assert_eq!(made.out(), format!("{name}\n"));
    }
    let names = |words: [&'static str; 3]| sandbox.microagent(words).run().success();
    assert_eq!(names(["ps", "--all", "-q"]).out(), "steer-a\nsteer-b\n");
    assert_eq!(names(["ps", "--sort=name", "-q"]).out(), "");
    let table = sandbox.microagent(["list"]).run().success();
    assert!(
        table.out().contains("  busybox:") && !table.out().contains("library/"),
        "{table}"
    );
    let refused = sandbox
        .microagent(["pause", "steer-a"])
        .json()
        .run()
        .exited(1);
    assert_eq!(error(&refused)["kind"], "conflict", "{refused}");
    let started = sandbox
        .microagent(["start", "steer-a", "none", "steer-b"])
        .run()
        .exited(1);
    assert_eq!(
        started.out(),
        "steer-a running\nsteer-b running\n",
        "{started}"
    );
    assert!(started.err().contains("none"), "{started}");

    let paused = sandbox
        .microagent(["pause", "steer-a", "steer-b"])
        .json()
        .run()
        .success()
        .parsed();
    let states: Vec<_> = paused["workspaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            (
                row["workspace"].as_str().unwrap(),
                row["state"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(states, [("steer-a", "paused"), ("steer-b", "paused")]);
    let again = sandbox.microagent(["pause", "steer-a"]).run().success();
    assert_eq!(again.out(), "steer-a paused already\n");
    assert_eq!(
        sandbox
            .microagent(["resume", "steer-a"])
            .run()
            .success()
            .out(),
        "steer-a running\n"
    );

    let rows = json(&sandbox, ["ps", "--sort", "state"]);
    assert_eq!(
        (
            &rows["workspaces"][0]["name"],
            &rows["workspaces"][1]["name"]
        ),
        (&"steer-a".into(), &"steer-b".into())
    );
    let listed = sandbox
        .microagent([
            "list",
            "--filter",
            "state=paused",
            "--format",
            "{{name}}\\t{{state}}",
        ])
        .run()
        .success();
    assert_eq!(listed.out(), "steer-b\tpaused\n");
    let wrong = sandbox
        .microagent(["list", "--format", "{{nmae}}"])
        .run()
        .exited(1);
    assert!(wrong.err().contains("name"), "{wrong}");

    let stats = json(&sandbox, ["stats", "steer-a"]);
    assert!(stats["memory_bytes"].as_u64().unwrap() > 1 << 20, "{stats}");
    assert!(stats["cpu_percent"].is_number(), "{stats}");
    let network = json(&sandbox, ["network", "steer-a"]);
    assert_eq!(
        network["network"]["runtime"]["interface"]["gateway"],
        "10.0.2.2"
    );
    let network = sandbox
        .microagent(["network", "steer-a"])
        .run()
        .success()
        .out();
    assert!(
        network.contains("steer-a") && network.contains("10.0.2.15"),
        "{network}"
    );

    let contained = sandbox
        .microagent(["quarantine", "steer-b"])
        .run()
        .success();
    assert_eq!(contained.out(), "steer-b quarantined\n");
    for words in [
        ["start", "steer-b"],
        ["resume", "steer-b"],
        ["delete", "steer-b"],
        ["clone", "steer-b"],
    ] {
        let mut refused = sandbox.microagent(words).json();
        if words[0] == "clone" {
            refused = refused.args(["steer-c"]);
        }
        let refused = refused.run().exited(1);
        assert_eq!(error(&refused)["kind"], "conflict", "{words:?}: {refused}");
    }
    assert_eq!(
        sandbox
            .microagent(["wait", "steer-b"])
            .run()
            .exited(1)
            .out(),
        "steer-b quarantined\n"
    );
    let busy = sandbox
        .microagent(["delete", "steer-a"])
        .json()
        .run()
        .exited(1);
    assert!(busy.err().contains("--force"), "{busy}");
    let too_long = sandbox
        .microagent(["wait", "steer-a", "--timeout", "200ms"])
        .json()
        .run()
        .exited(1);
    assert_eq!(error(&too_long)["kind"], "transient", "{too_long}");

    // Following ends with the machine; killing is told with its cause.
    let following = sandbox
        .microagent(["events", "steer-a", "--follow"])
        .start();
    let logs = sandbox.microagent(["logs", "steer-a", "--follow"]).start();
    let waiting = sandbox.microagent(["wait", "steer-a"]).json().start();
    let costs = sandbox.microagent(["stats", "steer-a", "--follow"]).start();
    eventually(SOON, "the first events", || {
        String::from_utf8_lossy(&following.output_so_far())
            .contains("resumed")
            .then_some(())
    });
    eventually(SOON, "the first costs", || {
        let seen = String::from_utf8_lossy(&costs.output_so_far()).into_owned();
        seen.starts_with("steer-a  cpu ").then_some(())
    });
    let killed = sandbox
        .microagent(["kill", "steer-a", "steer-b"])
        .json()
        .run()
        .success()
        .parsed();
    for row in killed["workspaces"].as_array().unwrap() {
        assert_eq!(
            (&row["state"], &row["cause"]),
            (&"stopped".into(), &"killed".into())
        );
    }
    let followed = following.finish().success();
    assert!(
        followed
            .out()
            .trim_end()
            .lines()
            .last()
            .unwrap()
            .contains("killed"),
        "{followed}"
    );
    let costs = costs.finish().success();
    for line in costs.out().lines() {
        assert!(
            line.contains("  memory ") && line.contains("  sessions "),
            "{costs}"
        );
    }
    let waited = waiting.finish().success().parsed();
    assert_eq!(
        (&waited["state"], &waited["ok"]),
        (&"stopped".into(), &true.into())
    );
    let console = logs.finish().success();
    assert!(console.out().contains("[ "), "{console}");
    let last = json(&sandbox, ["logs", "steer-a", "--tail", "1"]);
    assert_eq!(last["logs"].as_str().unwrap().lines().count(), 1, "{last}");
    for words in [
        &["--json", "logs", "-f", "steer-a"][..],
        &["--json", "stats", "-f", "steer-a"],
        &["stats", "-f", "steer-a", "steer-b"],
    ] {
        let endless = sandbox.microagent([]).words(words).run().exited(2);
        assert!(endless.err().contains("--follow"), "{endless}");
    }

    // A live one goes with --force alone.
    sandbox.microagent(["start", "steer-a"]).run().success();
    let deleted = sandbox
        .microagent(["delete", "--force", "steer-a", "steer-b"])
        .json()
        .run()
        .success();
    assert_eq!(
        deleted.parsed()["workspaces"][0]["deleted"],
        true,
        "{deleted}"
    );
    assert_eq!(json(&sandbox, ["list"])["workspaces"], Value::Array(vec![]));
    sandbox.leftovers().none(&["steer-a", "steer-b"]);
}

#[test]
fn a_run_can_stay_behind() {
    let sandbox = own();
    let launched = sandbox
        .microagent([
            "run",
            "-d",
            "--name",
            "stay-behind",
            "--profile",
            "tiny",
            Sandbox::BUSYBOX,
        ])
        .args(["sh", "-c", "echo out; echo err >&2; exit 3"])
        .run()
        .success();
    assert_eq!(launched.out(), "stay-behind\n", "{launched}");
    assert_eq!(
        sandbox
            .microagent(["wait", "stay-behind"])
            .run()
            .exited(1)
            .out(),
        "stay-behind failed\n"
    );
    let code = sandbox
        .microagent([
            "result",
            "stay-behind",
            "--format",
            "{{exit_code}} {{stderr.data}}",
        ])
        .run()
        .success();
    assert_eq!(code.out(), "3 err\n\n");
    let text = sandbox
        .microagent(["result", "stay-behind"])
        .run()
        .success()
        .out();
    assert!(
        text.starts_with("exit code  3\n") && text.contains("\nout\n"),
        "{text}"
    );

    // A run that was kept starts again like any other.
    let kept = sandbox
        .run_as(
            "stay-kept",
            ["--keep", "--profile", "tiny", Sandbox::BUSYBOX],
        )
        .args(["sh", "-c", "echo x >>/root/n; wc -l </root/n"])
        .run()
        .success();
    assert_eq!(kept.out(), "1\n");
    let again = json(&sandbox, ["start", "stay-kept", "--wait"]);
    assert_eq!(
        (&again["ended"]["state"], &again["ended"]["ok"]),
        (&"halted".into(), &true.into())
    );
    assert_eq!(
        json(&sandbox, ["result", "stay-kept"])["stdout"]["data"],
        "2\n"
    );

    // A setup that failed is tried again by the next start.
    let script = "test -e /root/once || { touch /root/once; sync; echo not yet; exit 4; }";
    let failed = sandbox
        .microagent([
            "create",
            "stay-set",
            Sandbox::BUSYBOX,
            "--profile",
            "tiny",
            "--setup",
            script,
        ])
        .args(["--", "cat", "/root/once"])
        .run()
        .exited(1);
    assert!(
        failed.err().contains("code 4") && failed.err().contains("not yet"),
        "{failed}"
    );
    assert_eq!(
        json(&sandbox, ["status", "stay-set"])["setup_pending"],
        true
    );
    let started = json(&sandbox, ["start", "stay-set", "--wait"]);
    assert_eq!(started["ended"]["state"], "halted");
    assert_eq!(
        json(&sandbox, ["status", "stay-set"])["setup_pending"],
        false
    );

    // A setup ends with the program that asked for it, and the workspace is there.
    let setting_up = sandbox
        .microagent(["create", "stay-cut", Sandbox::BUSYBOX, "--profile", "tiny"])
        .args(["--setup", "sleep 1000"])
        .start();
    eventually(SOON, "the setup's machine", || {
        let events = sandbox.microagent(["events", "stay-cut"]).run();
        events.out().contains("guest_ready").then_some(())
    });
    setting_up.signal(Signal::KILL);
    assert!(setting_up.finish().was_signaled());
    json(&sandbox, ["wait", "stay-cut"]);
    let status = json(&sandbox, ["status", "stay-cut"]);
    assert_eq!(
        (&status["event"]["cause"], &status["setup_pending"]),
        (&"owner_gone".into(), &true.into())
    );

    assert_eq!(
        sandbox
            .microagent(["delete", "stay-behind", "stay-kept", "stay-set", "stay-cut"])
            .run()
            .code(),
        0
    );
    sandbox
        .leftovers()
        .none(&["stay-behind", "stay-kept", "stay-set", "stay-cut"]);
}

#[test]
fn what_programs_may_rely_on_is_printed() {
    let sandbox = own();
    let contract = json(&sandbox, ["contract"]);
    assert_eq!(contract["states"].as_array().unwrap().len(), 8);
    let profiles = json(&sandbox, ["profiles"]);
    assert_eq!(profiles["profiles"][0]["name"], "tiny");
    assert_eq!(profiles["profiles"][3]["memory_mib"], 4096);
    let host = json(&sandbox, ["host"]);
    assert!(
        host["chosen"].is_string() && host["checks"].is_array(),
        "{host}"
    );
    let collected = json(&sandbox, ["gc", "--dry-run"]);
    assert_eq!(
        (&collected["dry_run"], &collected["reclaimed_bytes"]),
        (&true.into(), &0.into())
    );
    assert_eq!(json(&sandbox, ["ps"])["workspaces"], Value::Array(vec![]));
    for words in [&["profiles"][..], &["contract"], &["list"], &["gc"]] {
        let printed = sandbox.microagent([]).words(words).run().success();
        assert!(!printed.out().is_empty(), "{words:?}: {printed}");
    }
    sandbox.leftovers().none(&[]);
}
