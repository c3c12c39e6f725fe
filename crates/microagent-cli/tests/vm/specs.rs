//! A workspace written down in a file is what comes up.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use testkit::{Sandbox, eventually};

use crate::sandbox;

const SOON: Duration = Duration::from_secs(30);

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

#[test]
fn what_is_applied_is_in_force_at_the_next_start() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("microagent.yaml");
    let text = |memory: u32, rest: &str| {
        format!(
            "name: app\nimage: {}\nprofile: tiny\nresources: {{memoryMiB: {memory}}}\n{rest}",
            Sandbox::BUSYBOX
        )
    };
    let write = |memory: u32, rest: &str| fs::write(&path, text(memory, rest)).unwrap();
    let spec = path.to_str().unwrap();
    write(256, "env: {COLOUR: red}\nnetwork: {mode: isolated}\n");
    sandbox
        .microagent(["create", "--file", spec])
        .run()
        .success();
    let same = sandbox
        .microagent(["apply", "--file", spec])
        .run()
        .success();
    assert_eq!(same.out(), "app is so already\n");

    let changed = "env: {COLOUR: blue}\nhostname: applied\nworkdir: /srv/applied\n\
                   network: {mode: user, forwards: [{hostPort: 0, guestPort: 80}]}\n";
    write(320, changed);
    let plan = sandbox.microagent(["apply", "--file", spec, "--dry-run"]);
    let plan = plan.json().run().success().parsed();
    assert_eq!(plan["refused"].as_array().unwrap().len(), 0, "{plan}");
    let applied = sandbox
        .microagent(["apply", "--file", spec, "app"])
        .run()
        .success();
    assert_eq!(
        applied.out(),
        "app: hostname from app to applied, at its next start\n\
         app: workdir from none to /srv/applied, at its next start\n\
         app: env.COLOUR from (not shown) to (not shown), at its next start\n\
         app: resources.memoryMiB from 256 MiB to 320 MiB, at its next start\n\
         app: network.mode from isolated to user, at its next start\n\
         app: network.forwards from none to 127.0.0.1:0:80/tcp, at its next start\n"
    );
    assert_eq!(plan["changes"].as_array().unwrap().len(), 6, "{plan}");

    sandbox.microagent(["start", "app"]).run().success();
    let script = "echo $COLOUR; hostname; pwd; ls /sys/class/net | grep -c eth; \
                  grep -E 'MemTotal: +(2[6-9]|3[0-2])[0-9]{4} kB' /proc/meminfo | wc -l";
    let seen = sandbox.microagent(["exec", "app", "--", "sh", "-c", script]);
    let seen = seen.run().success();
    assert_eq!(seen.out(), "blue\napplied\n/srv/applied\n1\n1\n", "{seen}");
    let network = sandbox.microagent(["network", "app"]).json();
    let network = network.run().success().parsed();
    let port = &network["network"]["runtime"]["ports"][0];
    assert!(port["host_port"].as_u64().unwrap() > 0, "{network}");

    // A port of the host moves while it runs; what is connected stays so.
    let port = u16::try_from(port["host_port"].as_u64().unwrap()).unwrap();
    let server = sandbox.microagent(["exec", "app", "--", "nc", "-ll", "-p", "80", "-e", "cat"]);
    let server = server.start();
    let echoes = |mut stream: &TcpStream| {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut back = [0; 4];
        let said = stream.write_all(b"word");
        said.and_then(|()| stream.read_exact(&mut back)).is_ok() && back == *b"word"
    };
    let connect = |host: &str| TcpStream::connect((host, port));
    let held = eventually(SOON, "the guest's server", || {
        connect("127.0.0.1").ok().filter(echoes)
    });
    let at = |host: &str| changed.replace("guestPort", &format!("host: {host}, guestPort"));
    let listed = |host: &str| {
        let network = sandbox.microagent(["network", "app"]).json();
        let network = network.run().success().parsed();
        let port = &network["network"]["runtime"]["ports"][0];
        assert_eq!(port["host"], host, "{network}");
    };
    write(320, &at("127.0.0.2"));
    let applied = sandbox.microagent(["apply", "--file", spec]).run();
    let applied = applied.success().out();
    let told = "app: network.forwards from 127.0.0.1:0:80/tcp to 127.0.0.2:0:80/tcp, now\n";
    assert_eq!(applied, told);
    assert!(echoes(&connect("127.0.0.2").unwrap()) && echoes(&held));
    assert!(connect("127.0.0.1").is_err());
    listed("127.0.0.2");
    let theirs = TcpListener::bind(("127.0.0.3", port)).unwrap();
    write(320, &at("127.0.0.3"));
    let refused = sandbox.microagent(["apply", "--file", spec]).json();
    let refused = refused.run().exited(1);
    assert!(refused.err().contains("in use"), "{refused}");
    drop(theirs);
    assert!(echoes(&connect("127.0.0.2").unwrap()) && echoes(&held));
    listed("127.0.0.2");
    write(320, changed);
    let applied = sandbox.microagent(["apply", "--file", spec]).run();
    applied.success();
    assert!(echoes(&connect("127.0.0.1").unwrap()) && echoes(&held));

    // What the machine was told stays; what waits for the next start does not mind.
    write(320, &changed.replace("blue", "green"));
    let refused = sandbox.microagent(["apply", "--file", spec]).json().run();
    assert_eq!(refused.code(), 1, "{refused}");
    for words in ["conflict", "env.COLOUR", "microagent halt app"] {
        assert!(refused.err().contains(words), "{refused}");
    }
    let plan = sandbox.microagent(["apply", "--file", spec, "--dry-run"]);
    let plan = plan.json().run();
    assert_eq!(plan.code(), 1, "{plan}");
    assert_eq!(plan.parsed()["refused"][0]["field"], "env.COLOUR");
    write(384, &format!("{changed}restart: on-failure\n"));
    let applied = sandbox.microagent(["apply", "--file", spec]).json();
    let applied = applied.run().success().parsed();
    let effects: Vec<_> = applied["changes"].as_array().unwrap().iter().collect();
    assert_eq!(
        (effects[0]["field"].as_str(), effects[0]["effect"].as_str()),
        (Some("restart"), Some("now"))
    );
    assert_eq!(effects[1]["effect"], "next_start", "{applied}");
    let status = sandbox.microagent(["status", "app"]).json();
    let status = status.run().success().parsed();
    assert_eq!(status["verification"]["ok"], true, "{status}");
    assert_eq!(status["resources"]["memory_mib"], 384);
    sandbox
        .microagent(["delete", "--force", "app"])
        .run()
        .success();
    drop(server.finish());
    sandbox.leftovers().none(&[]);
}

#[test]
fn the_example_hands_out_what_it_declares() {
    let sandbox = sandbox();
    let host = tempfile::tempdir().unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/agent.yaml");
    let finished = sandbox
        .run(["--json", "--file", example, "--artifacts-dir"])
        .arg(host.path())
        .run()
        .success();
    let result = finished.parsed();
    let statuses: Vec<_> = result["artifacts"].as_array().unwrap().iter().collect();
    assert!(
        statuses.len() == 2 && statuses.iter().all(|one| one["status"] == "present"),
        "{finished}"
    );
    let report = fs::read_to_string(host.path().join("report.txt")).unwrap();
    assert!(report.contains("round 3 on kernels, Linux"), "{report}");
    assert!(host.path().join("everything.tar").is_file());
}
