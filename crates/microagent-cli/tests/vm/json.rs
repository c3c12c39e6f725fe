//! `--json` is one document with everything in it.

use testkit::Sandbox;

use crate::sandbox;

#[test]
fn a_run_is_one_object() {
    let sandbox = sandbox();
    let finished = sandbox
        .microagent([
            "--json",
            "run",
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            r"echo out; printf 'err\302\2332J\n' >&2; exit 3",
        ])
        .run()
        .exited(3);
    let result = finished.parsed();
    assert_eq!(result["exit_code"], 3, "{finished}");
    assert_eq!(result["stdout"]["data"], "out\n");
    assert_eq!(result["stdout"]["truncated"], false);
    assert_eq!(result["stderr"]["data"], "err\u{9b}2J\n");
    // JSON may leave it as it is; a terminal would take it for an escape.
    assert!(!finished.out().contains('\u{9b}'), "{finished}");
    assert_eq!(result["resources"]["memory_mib"], 512);
    assert_eq!(result["resources"]["cpu_count"], 2);
    assert_eq!(result["resources"]["size_mib"], 1024);
    assert!(result["backend"].as_str().unwrap().starts_with("qemu-"));
    assert!(
        result["image"]["digest"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    assert!(
        result["kernel"]["release"]
            .as_str()
            .is_some_and(|release| !release.is_empty())
    );
    assert!(result["started_at"].as_str().unwrap().ends_with('Z'));
    assert!(result["exited_at"].as_str().unwrap() >= result["started_at"].as_str().unwrap());
    let phases = result["phases"].as_array().unwrap();
    assert!(
        phases
            .iter()
            .any(|phase| phase["name"] == "boot" && phase["ms"].as_u64().unwrap() > 0),
        "{finished}"
    );
}

#[test]
fn kept_output_is_bounded_and_says_so() {
    let sandbox = sandbox();
    let finished = sandbox
        .microagent([
            "--json",
            "run",
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            "head -c 5000000 /dev/zero",
        ])
        .run()
        .success();
    let stdout = &finished.parsed()["stdout"];
    assert_eq!(stdout["truncated"], true);
    assert_eq!(stdout["total_bytes"], 5_000_000);
    assert!(stdout["data"].as_str().unwrap().len() < 3_000_000);
}

#[test]
fn an_error_is_one_object_on_stderr() {
    let sandbox = sandbox();
    let finished = sandbox
        .microagent([
            "--json",
            "run",
            "--pull",
            "never",
            "no-such-image:1",
            "true",
        ])
        .run()
        .exited(125);
    let error: serde_json::Value = serde_json::from_slice(&finished.stderr)
        .unwrap_or_else(|error| panic!("{error}: {finished}"));
    assert_eq!(error["kind"], "not_found", "{finished}");
    assert!(error["message"].as_str().unwrap().contains("no-such-image"));
    assert!(
        error["remedy"]
            .as_str()
            .is_some_and(|remedy| !remedy.is_empty())
    );
}

#[test]
fn doctor_says_what_was_proved() {
    let sandbox = sandbox();
    let finished = sandbox.microagent(["--json", "doctor"]).run().success();
    let report = finished.parsed();
    assert_eq!(report["ok"], true, "{finished}");
    assert!(
        report["chosen"].as_str().unwrap().starts_with("qemu-"),
        "{finished}"
    );
    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        assert!(
            ["ready", "degraded", "unusable"].contains(&check["verdict"].as_str().unwrap()),
            "{finished}"
        );
        assert!(
            check["verdict"] == "ready"
                || check["remedy"]
                    .as_str()
                    .is_some_and(|remedy| !remedy.is_empty()),
            "{check}"
        );
    }
    let text = sandbox.microagent(["doctor"]).run().success();
    assert!(text.out().contains("ready"), "{text}");
}
