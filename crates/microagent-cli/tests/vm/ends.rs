//! However the machine of a workspace ends, that is recorded with its cause.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::{Sandbox, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

fn json<const N: usize>(sandbox: &Sandbox, words: [&str; N]) -> Value {
    sandbox.microagent(words).json().run().success().parsed()
}

/// Starts it as `words` say, and gives what is said of that.
fn start(sandbox: &Sandbox, words: &[&str]) -> Value {
    let start = sandbox
        .microagent(["start", "kept-ends"])
        .words(words)
        .json();
    start.run().success().parsed()
}

/// Waits for the end, and gives its state, its cause and what else there is to say.
fn end(sandbox: &Sandbox) -> (String, String, String) {
    eventually(PATIENCE, "the end", || {
        let status = json(sandbox, ["status", "kept-ends"]);
        let event = &status["event"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (event["event"] == "ended").then(|| {
            assert_eq!(status["state"], event["state"], "{status}");
            (
                text(&event["state"]),
                text(&event["cause"]),
                text(&event["detail"]),
            )
        })
    })
}

/// Starts it, and holds its monitor meanwhile, so that it is not ready before it is let go.
fn commands_wait_for_a_start_as_long_as_they_may(sandbox: &Sandbox) {
    let starting = sandbox.microagent(["start", "kept-ends"]).json().start();
    let vmm = eventually(PATIENCE, "the monitor", || {
        let status = json(sandbox, ["status", "kept-ends"]);
        let pid = i32::try_from(status["processes"]["vmm"]["pid"].as_i64()?).ok()?;
        (status["state"] == "starting").then(|| Pid::from_raw(pid).unwrap())
    });
    kill_process(vmm, Signal::STOP).unwrap();
    let exec = ["exec", "--ready-timeout", "100ms", "kept-ends", "true"];
    let early = sandbox.microagent(exec).run();
    kill_process(vmm, Signal::CONT).unwrap();
    let early = early.exited(125);
    assert!(early.err().contains("not ready within 100ms"), "{early}");
    let exec = ["exec", "--ready-timeout", "60s", "kept-ends", "true"];
    sandbox.microagent(exec).run().success();
    let _ready = starting.finish().success();
}

#[test]
fn every_end_is_recorded_with_its_cause() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let create = ["create", "kept-ends", Sandbox::BUSYBOX, "--profile", "tiny"];
    sandbox.microagent(create).run().success();
    let run = |script: &str| {
        let exec = sandbox.microagent(["exec", "kept-ends", "--", "sh", "-c", script]);
        // Nobody is left to say how it ended.
        drop(exec.run());
    };

    // This start alone is larger, and everything is hashed for it.
    let started = start(&sandbox, &["--profile", "small", "--cpus", "1", "--verify"]);
    assert_eq!(
        (
            &started["resources"]["memory_mib"],
            &started["resources"]["cpu_count"]
        ),
        (&512.into(), &1.into())
    );
    let status = json(&sandbox, ["status", "kept-ends", "--verify"]);
    assert_eq!(
        status["resources"]["memory_mib"], 256,
        "what it was made with"
    );
    assert_eq!(status["verification"]["ok"], true);
    run("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger");
    let (state, cause, _) = end(&sandbox);
    assert_eq!((&*state, &*cause), ("failed", "guest_panicked"));
    let of_today = json(&sandbox, ["logs", "kept-ends", "--since", "1h"]);
    assert!(
        of_today["logs"].as_str().unwrap().contains("panic"),
        "{of_today}"
    );
    let none = json(
        &sandbox,
        ["logs", "kept-ends", "--since", "2999-01-01T00:00:00Z"],
    );
    assert_eq!(none["logs"], "");

    commands_wait_for_a_start_as_long_as_they_may(&sandbox);
    run("echo 2 >/proc/sys/vm/panic_on_oom; tail /dev/zero");
    let (state, cause, _) = end(&sandbox);
    assert_eq!((&*state, &*cause), ("failed", "out_of_memory"));

    // Waiting may take too long; the machine does not mind.
    let waiting = ["--wait", "--wait-timeout", "10ms"];
    let waited = sandbox
        .microagent(["start", "kept-ends"])
        .words(&waiting)
        .json();
    let waited = waited.run().exited(1);
    assert!(waited.err().contains("transient"), "{waited}");
    let status = json(&sandbox, ["status", "kept-ends"]);
    assert_eq!(status["state"], "running");
    let vmm = status["processes"]["vmm"]["pid"].as_i64().unwrap();
    let vmm = Pid::from_raw(i32::try_from(vmm).unwrap()).unwrap();
    kill_process(vmm, Signal::KILL).unwrap();
    let (state, cause, detail) = end(&sandbox);
    assert_eq!((&*state, &*cause), ("failed", "vmm_died"));
    assert!(detail.contains("signal 9"), "{detail}");

    // The time limit holds from the launch on, so that this one may not even get ready.
    let limited = ["--timeout", "4s", "--wait"];
    let limited = sandbox
        .microagent(["start", "kept-ends"])
        .words(&limited)
        .run();
    assert_eq!(limited.code(), 1, "{limited}");
    let (state, cause, _) = end(&sandbox);
    assert_eq!((&*state, &*cause), ("failed", "timed_out"));

    // By its agent's hand everything is written first; past it nothing is. Neither failed.
    for (word, state) in [("poweroff", "halted"), ("poweroff -f", "stopped")] {
        start(&sandbox, &[]);
        run(&format!("echo {state} >/root/{state}; {word}; sleep 1000"));
        let (ended, cause, _) = end(&sandbox);
        assert_eq!((&*ended, &*cause), (state, "guest_powered_off"), "{word}");
        let copied = sandbox.microagent(["cp", "kept-ends:/root/halted", "-"]);
        assert!(copied.run().success().out().contains("halted"), "{word}");
    }

    let kept = json(&sandbox, ["events", "kept-ends"]);
    let ends = kept["events"].as_array().unwrap().iter();
    let ends = ends.filter(|event| event["event"] == "ended").count();
    assert_eq!(ends, 6, "nothing of it is forgotten: {kept}");
    sandbox.microagent(["delete", "kept-ends"]).run().success();

    // A workload that does what an init does in the end.
    sandbox
        .microagent(create)
        .args(["--", "sh", "-c", "echo bye; poweroff; sleep 1000"])
        .run()
        .success();
    start(&sandbox, &[]);
    let (state, cause, _) = end(&sandbox);
    assert_eq!((&*state, &*cause), ("halted", "guest_powered_off"));
    let result = json(&sandbox, ["result", "kept-ends"]);
    assert_eq!(result["stdout"]["data"], "bye\n", "{result}");
    sandbox.microagent(["delete", "kept-ends"]).run().success();
    sandbox.leftovers().none(&["kept-ends"]);
}
