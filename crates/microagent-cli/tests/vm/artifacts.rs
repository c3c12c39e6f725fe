//! Declared artifacts come out of guests: at the end of a run, while one runs, and after any end.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command, time::Duration};

use serde_json::Value;
use testkit::{Sandbox, eventually, sha256};

use crate::sandbox;

/// What a guest leaves behind: a report, a tree with traps in it, and what is no artifact.
const LEAVE: &str = "mkdir -p /out/site/sub; printf report > /out/report.txt; \
    printf page > /out/site/index.html; ln -s /etc /out/site/etc; ln -s ../../.. /out/site/up; \
    mkfifo /out/site/pipe; ln /out/site/index.html /out/site/sub/same; \
    ln -s site /out/latest; ln -s /etc/hostname /out/link; mknod /out/null c 1 3; \
    truncate -s 1099511627776 /out/huge; printf x >> /out/huge; mkdir -p /run/gone; \
    printf lost > /run/gone/file";

const OUTPUTS: [&str; 8] = [
    "report.txt=/out/report.txt",
    "site=/out/site",
    "latest=/out/latest",
    "link=/out/link",
    "none=/out/none/at/all",
    "null=/out/null",
    "huge=/out/huge",
    "gone=/run/gone/file",
];

fn find<'v>(artifacts: &'v Value, name: &str) -> &'v Value {
    let found = artifacts.as_array().unwrap().iter();
    found
        .into_iter()
        .find(|artifact| artifact["name"] == name)
        .unwrap_or_else(|| panic!("{name}: {artifacts}"))
}

/// The names in a tar, by another program.
fn listed(tar: &Path) -> Vec<String> {
    let output = Command::new("tar").arg("-tf").arg(tar).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The artifact's file is there, and is what was told of it.
fn as_told(artifact: &Value, file: &Path) {
    let bytes = fs::read(file).unwrap();
    assert_eq!(artifact["status"], "present", "{artifact}");
    assert_eq!(artifact["saved_as"], file.to_str().unwrap());
    assert_eq!(artifact["size_bytes"], bytes.len(), "{artifact}");
    assert_eq!(artifact["sha256"], sha256(&bytes), "{artifact}");
}

#[test]
fn a_run_hands_out_its_artifacts_and_keeps_nothing() {
    let sandbox = sandbox();
    let host = tempfile::tempdir().unwrap();
    let into = host.path().join("made/here");
    let mut run = sandbox
        .run(["--json", "--profile", "tiny", "--artifacts-dir"])
        .arg(&into);
    for output in OUTPUTS {
        run = run.arg("--output").arg(output);
    }
    let finished = run
        .arg(Sandbox::BUSYBOX)
        .args(["sh", "-c", &format!("{LEAVE}; exit 3")])
        .run()
        .exited(3);
    let result = finished.parsed();
    let artifacts = &result["artifacts"];
    assert_eq!(artifacts.as_array().unwrap().len(), OUTPUTS.len());

    as_told(find(artifacts, "report.txt"), &into.join("report.txt"));
    assert_eq!(fs::read(into.join("report.txt")).unwrap(), b"report");
    // A directory is a tar; links in it are links, and what gives rights or hangs stays out.
    let site = find(artifacts, "site");
    as_told(site, &into.join("site.tar"));
    assert_eq!(
        (&site["type"], &site["skipped"]),
        (&"directory".into(), &1.into())
    );
    assert_eq!(
        listed(&into.join("site.tar")),
        [
            "site/",
            "site/etc",
            "site/index.html",
            "site/sub/",
            "site/sub/same",
            "site/up"
        ]
    );
    // A link at the path itself leads within the guest: its files, not the host's.
    as_told(find(artifacts, "latest"), &into.join("latest.tar"));
    let link = find(artifacts, "link");
    let own = fs::read_to_string("/etc/hostname").unwrap_or_default();
    match link["status"].as_str().unwrap() {
        "present" => assert_ne!(fs::read_to_string(into.join("link")).unwrap(), own),
        missing => assert_eq!(missing, "missing", "{link}"),
    }
    for (name, kind, words) in [
        ("none", "not_found", "/out/none/at/all"),
        ("null", "conflict", "neither a file nor a directory"),
        ("huge", "invalid", "takes 1099511627777 bytes"),
        ("gone", "not_found", "/run/gone/file"),
    ] {
        let missing = find(artifacts, name);
        assert_eq!(missing["status"], "missing", "{missing}");
        assert_eq!(missing["error"]["kind"], kind, "{missing}");
        let message = missing["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    }
    assert!(
        result["phases"].to_string().contains("artifacts"),
        "{finished}"
    );
    let mut there: Vec<_> = fs::read_dir(&into)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "link")
        .collect();
    there.sort();
    assert_eq!(there, ["latest.tar", "report.txt", "site.tar"]);
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_run_says_what_is_missing_and_what_will_be_lost() {
    let sandbox = sandbox();
    let host = tempfile::tempdir().unwrap();
    // The time was up, and what the guest had not even written out by then is there all the same.
    let finished = sandbox
        .run([
            "--timeout",
            "20",
            "--output",
            "kept=/kept",
            "--output",
            "none=/none",
        ])
        .arg("--artifacts-dir")
        .arg(host.path())
        .arg(Sandbox::BUSYBOX)
        .args(["sh", "-c", "printf word > /kept; sleep 1000"])
        .run()
        .exited(124);
    let said = finished.err();
    assert!(
        said.contains("The artifact none (/none) is missing: ") && !said.contains("kept"),
        "{finished}"
    );
    assert_eq!(fs::read(host.path().join("kept")).unwrap(), b"word");

    // Artifacts that nobody will have are told before the run.
    let warned = sandbox
        .run(["--output", "a=/a", Sandbox::BUSYBOX, "true"])
        .run()
        .success();
    assert!(warned.err().contains("--artifacts-dir"), "{warned}");
    // Nothing is run where nothing can be put.
    let file = host.path().join("kept");
    let refused = sandbox
        .run(["--output", "a=/a", "--artifacts-dir"])
        .arg(&file)
        .args([Sandbox::BUSYBOX, "touch", "/a"])
        .run()
        .exited(125);
    assert!(refused.err().contains(file.to_str().unwrap()), "{refused}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn artifacts_of_a_workspace_that_stays_are_had_in_every_state() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name);
    let disk = at("data.ext4");
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4"])
        .arg(&disk)
        .arg("32M")
        .status();
    assert!(made.unwrap().success());
    fs::create_dir(at("tools")).unwrap();
    fs::write(at("tools/tool"), "tool").unwrap();
    let packed = Command::new("tar")
        .arg("-cf")
        .arg(at("tools.tar"))
        .arg("-C")
        .arg(at("tools"))
        .arg(".")
        .status();
    assert!(packed.unwrap().success());
    let spec = at("microagent.yaml");
    fs::write(
        &spec,
        format!(
            "name: art\nimage: {}\nprofile: tiny\noutputs:\n\
             - {{name: report, path: /out/report.txt}}\n- {{name: site, path: /out/site}}\n\
             - {{name: data, path: /data/inner/file}}\n\
             disks: [{{name: data, path: data.ext4, mountpoint: /data, mode: rw}}]\n\
             bundles: [{{name: tools, path: tools.tar, mountpoint: /opt/tools}}]\n",
            Sandbox::BUSYBOX
        ),
    )
    .unwrap();
    let create = [
        "create",
        "--file",
        spec.to_str().unwrap(),
        "--output",
        "tool=/opt/tools/tool",
    ];
    sandbox.microagent(create).run().success();
    let list = || {
        sandbox
            .microagent(["artifacts", "list", "art"])
            .json()
            .run()
            .success()
            .parsed()
    };
    let get = |words: &[&str]| {
        let mut get = sandbox
            .microagent(["--json", "artifact", "get", "art", "-o"])
            .arg(at("got"));
        for word in words {
            get = get.arg(*word);
        }
        get.run()
    };

    // Before it ever ran only what was put in is there.
    let status = sandbox
        .microagent(["status", "art"])
        .json()
        .run()
        .success()
        .parsed();
    let artifacts = &status["artifacts"];
    assert_eq!(artifacts["ingress"][0]["name"], "tools");
    assert_eq!(artifacts["ingress"][0]["mountpoint"], "/opt/tools");
    assert_eq!(
        (
            &artifacts["ingress"][0]["kind"],
            &artifacts["ingress"][0]["mode"]
        ),
        (&"bundle".into(), &"ro".into())
    );
    assert_eq!(
        artifacts["egress"][0],
        serde_json::json!({"name": "report", "path": "/out/report.txt", "kind": "output"})
    );
    assert_eq!(artifacts["egress"].as_array().unwrap().len(), 4);
    let prepared = list();
    assert_eq!(find(&prepared["egress"], "report")["status"], "missing");
    assert_eq!(find(&prepared["egress"], "tool")["sha256"], sha256(b"tool"));
    assert_eq!(find(&prepared["ingress"], "tools")["kind"], "bundle");

    // While it runs they come through its agent.
    sandbox.microagent(["start", "art"]).run().success();
    let script = format!("{LEAVE}; mkdir /data/inner; printf data > /data/inner/file; sync");
    sandbox
        .microagent(["exec", "art", "--", "sh", "-c", &script])
        .run()
        .success();
    let live = list();
    assert_eq!(live["state"], "running");
    assert_eq!(find(&live["egress"], "report")["sha256"], sha256(b"report"));
    assert_eq!(find(&live["egress"], "data")["sha256"], sha256(b"data"));
    assert_eq!(find(&live["egress"], "tool")["sha256"], sha256(b"tool"));
    symlink("/etc/passwd", at("trap")).unwrap();
    fs::create_dir(at("got")).unwrap();
    symlink(at("trap"), at("got/report")).unwrap();
    let got = get(&[]).success().parsed();
    for (name, file) in [
        ("report", "report"),
        ("site", "site.tar"),
        ("data", "data"),
        ("tool", "tool"),
    ] {
        as_told(find(&got["artifacts"], name), &at("got").join(file));
    }
    assert!(fs::symlink_metadata(at("got/report")).unwrap().is_file());
    // Names that are not declared, and workspaces that are not there, are told.
    let unknown = get(&["report", "other"]).exited(1);
    assert!(
        unknown.err().contains("declares report, site, data, tool")
            && unknown.err().contains("not_found"),
        "{unknown}"
    );
    let missing = sandbox
        .microagent(["artifacts", "list", "nobody"])
        .run()
        .exited(1);
    assert!(missing.err().contains("nobody"), "{missing}");
    sandbox.microagent(["pause", "art"]).run().success();
    let paused = get(&[]).exited(1);
    assert!(paused.err().contains("resume"), "{paused}");
    sandbox.microagent(["resume", "art"]).run().success();

    // After a clean end they are the same, from the disks.
    sandbox.microagent(["halt", "art"]).run().success();
    let halted = list();
    for name in ["report", "site", "data", "tool"] {
        assert_eq!(
            find(&halted["egress"], name),
            find(&live["egress"], name),
            "{name}"
        );
    }
    let site = fs::read(at("got/site.tar")).unwrap();
    fs::remove_dir_all(at("got")).unwrap();
    let got = get(&["site"]).success().parsed();
    as_told(find(&got["artifacts"], "site"), &at("got/site.tar"));
    assert_eq!(fs::read(at("got/site.tar")).unwrap(), site);
    assert_eq!(fs::read_dir(at("got")).unwrap().count(), 1);

    // A clone has them, too; a file that cannot be put in its place keeps none of the others.
    sandbox
        .microagent(["clone", "art", "art-too"])
        .run()
        .success();
    fs::create_dir(at("got/report")).unwrap();
    let got = sandbox
        .microagent(["artifacts", "get", "art-too", "-o"])
        .arg(at("got"))
        .run()
        .exited(1);
    assert!(got.err().contains("report (/out/report.txt)"), "{got}");
    let lines =
        ["site.tar", "data", "tool"].map(|name| format!("{}\n", at("got").join(name).display()));
    assert_eq!(got.out(), lines.concat());

    // After a kill: what the guest had written out.
    sandbox.microagent(["start", "art"]).run().success();
    let script = "printf again > /out/report.txt; rm -r /out/site; sync";
    sandbox
        .microagent(["exec", "art", "--", "sh", "-c", script])
        .run()
        .success();
    sandbox.microagent(["kill", "art"]).run().success();
    let killed = list();
    assert_eq!(
        find(&killed["egress"], "report")["sha256"],
        sha256(b"again")
    );
    assert_eq!(
        find(&killed["egress"], "site")["error"]["kind"],
        "not_found"
    );
    let text = sandbox
        .microagent(["artifacts", "list", "art"])
        .run()
        .success()
        .out();
    assert!(
        text.lines()
            .any(|line| line.starts_with("report") && line.ends_with(&sha256(b"again"))),
        "{text}"
    );
    assert!(
        text.contains("bundle, ro") && text.contains("missing"),
        "{text}"
    );

    // A directory that nobody can write to is told by its name.
    let nowhere = sandbox
        .microagent(["artifacts", "get", "art", "report", "-o", "/proc/self"])
        .run()
        .exited(1);
    assert!(nowhere.err().contains("/proc/self"), "{nowhere}");
    sandbox
        .microagent(["delete", "art", "art-too"])
        .run()
        .success();
    sandbox.leftovers().none(&[]);
}

#[test]
fn artifacts_of_a_run_are_had_while_it_runs() {
    let sandbox = sandbox();
    let host = tempfile::tempdir().unwrap();
    let running = sandbox
        .run_as(
            "e2e-art-live",
            [
                "-i",
                "--output",
                "r=/r",
                Sandbox::BUSYBOX,
                "sh",
                "-c",
                "printf word > /r; echo begun; cat",
            ],
        )
        .start();
    eventually(Duration::from_secs(90), "the guest's first word", || {
        running.output_so_far().ends_with(b"begun\n").then_some(())
    });
    let got = sandbox
        .microagent(["artifacts", "get", "e2e-art-live", "r", "-o"])
        .arg(host.path())
        .run()
        .success();
    assert_eq!(got.out(), format!("{}\n", host.path().join("r").display()));
    assert_eq!(fs::read(host.path().join("r")).unwrap(), b"word");
    drop(running.finish().success());
    sandbox.leftovers().none(&[]);
}
