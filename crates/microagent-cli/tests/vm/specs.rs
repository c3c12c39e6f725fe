//! A workspace written down in a file is what comes up.

use std::fs;

use testkit::Sandbox;

use crate::sandbox;

#[test]
fn a_run_is_what_its_spec_says_and_options_go_over_it() {
    let sandbox = sandbox();
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("setup.sh"),
        "echo from-file >> /root/setup\n",
    )
    .unwrap();
    fs::write(directory.path().join("data.txt"), "from-file-in\n").unwrap();
    let spec = directory.path().join("microagent.yaml");
    fs::write(
        &spec,
        format!(
            "image: {}\nprofile: tiny\nhostname: from-spec\nuser: '0:0'\nworkdir: /srv/work\n\
             files: [{{src: data.txt, dst: /srv/in/data.txt, mode: \"0640\"}}]\n\
             setup: [cat /srv/in/data.txt > /root/setup, echo from-spec >> /root/setup]\n\
             setupFiles: [setup.sh]\nenv: {{PORT: 8080, SHARED: spec}}\n\
             resources: {{memoryMiB: 300, headroomMiB: 600}}\nnetwork: {{mode: isolated}}\n\
             entrypoint: [/bin/busybox, sh, -c]\n\
             command: ['hostname; pwd; echo $PORT $SHARED; ls /sys/class/net; stat -c %a-%u /srv/in/data.txt; cat /root/setup']\n",
            Sandbox::BUSYBOX
        )
    )
    .unwrap();
    let spec = spec.to_str().unwrap();
    let finished = sandbox
        .run([
            "--json",
            "--file",
            spec,
            "-e",
            "SHARED=line",
            "--hostname",
            "from-line",
        ])
        .run()
        .success();
    let result = finished.parsed();
    assert_eq!(
        result["stdout"]["data"],
        "from-line\n/srv/work\n8080 line\nlo\n640-0\nfrom-file-in\nfrom-spec\nfrom-file\n",
        "{finished}"
    );
    assert_eq!(result["resources"]["memory_mib"], 300);
    assert_eq!(result["resources"]["size_mib"], 600);
    assert_eq!(result["network"], "isolated");

    // Another command and another size, for once.
    let finished = sandbox
        .run([
            "--json",
            "--file",
            spec,
            "--exec",
            "echo $0 $PORT",
            "--memory",
            "256",
        ])
        .run()
        .success();
    let result = finished.parsed();
    assert_eq!(result["stdout"]["data"], "/bin/sh 8080\n", "{finished}");
    assert_eq!(result["resources"]["memory_mib"], 256);
}

#[test]
fn a_spec_that_is_wrong_is_told_before_anything_happens() {
    let sandbox = sandbox();
    let directory = tempfile::tempdir().unwrap();
    let spec = directory.path().join("bad.yaml");
    fs::write(&spec, "imgae: a\nresources:\n  memoryMiB: lots\n").unwrap();
    let spec = spec.to_str().unwrap();
    let finished = sandbox.run(["--file", spec]).run().exited(125);
    let said = finished.err();
    assert!(
        said.contains("bad.yaml:1:1: there is no imgae here; did you mean image?"),
        "{said}"
    );
    assert!(
        said.contains("bad.yaml:3:14: resources.memoryMiB: it is \"lots\""),
        "{said}"
    );
    let checked = sandbox
        .microagent(["--json", "spec", "check", spec])
        .run()
        .exited(1);
    assert!(checked.err().contains("\"invalid\""), "{checked}");

    fs::write(directory.path().join("none.yaml"), "{}").unwrap();
    let none = directory.path().join("none.yaml");
    let finished = sandbox
        .run(["--file", none.to_str().unwrap()])
        .run()
        .exited(125);
    assert!(finished.err().contains("none is named"), "{finished}");

    let schema = sandbox
        .microagent(["spec", "schema"])
        .run()
        .success()
        .parsed();
    assert_eq!(schema["properties"]["image"]["type"], "string");
    let good = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/agent.yaml");
    let checked = sandbox
        .microagent(["--json", "spec", "check", good])
        .run()
        .success()
        .parsed();
    assert_eq!(
        (&checked["ok"], &checked["name"]),
        (&true.into(), &"agent".into())
    );
}
