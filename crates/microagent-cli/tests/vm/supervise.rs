//! Workspaces are kept up: started again when they fail, when they are killed, when they are not
//! well; and left alone when somebody says so.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use microagent::{
    Config, CreateOptions, EndCause, Event, EventKind, Microagent, Profile, RestartPolicy, RunIo,
    RunOptions, Spec, State, SupervisorProgram, Verify,
};
use rustix::process::{Pid, Signal, kill_process};
use testkit::{Sandbox, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

fn own() -> Sandbox {
    Sandbox::own(env!("CARGO_BIN_EXE_microagent"))
}

fn microagent(sandbox: &Sandbox) -> Microagent {
    let supervisor = SupervisorProgram::At(env!("CARGO_BIN_EXE_microagent").into());
    Microagent::new(Config::new(sandbox.state(), sandbox.runtime(), supervisor))
}

fn create(microagent: &Microagent, options: RunOptions, policy: RestartPolicy) {
    let options = CreateOptions::new(options.profile(Profile::Tiny)).restart(policy);
    microagent
        .workspaces()
        .create(&options, RunIo::captured())
        .unwrap();
}

fn history(microagent: &Microagent, name: &str) -> Vec<Event> {
    microagent
        .workspaces()
        .open(name)
        .unwrap()
        .history()
        .unwrap()
        .events
}

/// How each machine ended, and why in detail.
fn ends(events: &[Event]) -> Vec<(State, EndCause, String)> {
    events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Ended { cause, detail, .. } => {
                Some((event.state, *cause, detail.clone().unwrap_or_default()))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn what_fails_is_started_again_as_often_as_allowed() {
    let sandbox = own();
    let microagent = microagent(&sandbox);
    let failing = RunOptions::new(Sandbox::BUSYBOX)
        .name("failing")
        .shell("exit 3");
    create(&microagent, failing, RestartPolicy::OnFailure);
    let never = RunOptions::new(Sandbox::BUSYBOX)
        .name("never")
        .shell("exit 3");
    create(&microagent, never, RestartPolicy::Never);

    let report = sandbox
        .microagent(["--json", "supervise", "failing", "--max-restarts", "1"])
        .run()
        .success()
        .parsed();
    assert_eq!(report["end"], "restart_limit", "{report}");
    assert_eq!(
        (&report["restarts"], &report["state"]),
        (&1.into(), &"failed".into())
    );
    let ends = ends(&history(&microagent, "failing"));
    assert_eq!(ends.len(), 2, "{ends:?}");
    assert!(
        ends.iter().all(
            |(state, cause, _)| *state == State::Failed && *cause == EndCause::WorkloadFinished
        )
    );

    let report = sandbox
        .microagent(["--json", "supervise", "never"])
        .run()
        .success()
        .parsed();
    assert_eq!(
        (&report["end"], &report["state"]),
        (&"policy".into(), &"prepared".into())
    );
    assert!(history(&microagent, "never").is_empty());

    let missing = sandbox
        .microagent(["--json", "supervise", "missing"])
        .run()
        .exited(1);
    assert!(missing.err().contains("\"not_found\""), "{missing}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn what_is_not_well_is_killed_and_started_again() {
    let sandbox = own();
    let microagent = microagent(&sandbox);
    let text = "name: ill\nimage: busybox:test\nprofile: tiny\nrestart: on-failure\n\
                service: sleep 3; touch /root/ill; exec sleep 1000\n\
                health: {exec: test ! -e /root/ill, intervalSeconds: 1, retries: 2}\n";
    let spec = Spec::parse(text, "ill.yaml", "/").unwrap();
    microagent
        .workspaces()
        .create(&spec.options().unwrap(), RunIo::captured())
        .unwrap();

    let finished = sandbox
        .microagent(["supervise", "ill", "--max-restarts", "1"])
        .run()
        .success();
    let said = finished.err();
    for words in [
        "not well (1): the probe",
        "not well (2)",
        "failed: its health probes failed",
        "waiting 1 s",
    ] {
        assert!(said.contains(words), "{words} is not in {finished}");
    }
    assert!(
        finished
            .out()
            .contains("started again 1 times (it is failed)"),
        "{finished}"
    );
    let ends = ends(&history(&microagent, "ill"));
    assert_eq!(ends.len(), 2, "{ends:?}");
    for (state, cause, detail) in ends {
        assert_eq!((state, cause), (State::Failed, EndCause::Unhealthy));
        assert!(detail.starts_with("2 health probes failed"), "{detail}");
    }
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_web_server_is_well_as_long_as_it_says_so() {
    let sandbox = own();
    let microagent = microagent(&sandbox);
    // The first two answers are well and no other; each is counted.
    let answer = r#"
        #!/bin/sh
        read -r asked; echo "$asked" >>/root/asked; sync
        while read -r line && [ ${#line} -gt 1 ]; do :; done
        status="503 Not-Now"
        [ $(wc -l </root/asked) -gt 2 ] || status="200 OK"
        printf "HTTP/1.1 $status\r\nContent-Length: 0\r\n\r\n"
    "#;
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("answer"), answer.trim_start()).unwrap();
    let text = "name: web\nimage: busybox:test\nprofile: tiny\nrestart: on-failure\n\
                files: [{src: answer, dst: /srv/answer, mode: \"0755\"}]\n\
                service: exec nc -ll -p 8080 -e /srv/answer\n\
                network: {mode: isolated, forwards: [{hostPort: 0, guestPort: 8080}]}\n\
                health: {httpGet: /ready?now, port: 8080, intervalSeconds: 1, retries: 2, \
                startPeriodSeconds: 1}\n";
    let spec = Spec::parse(text, "web.yaml", directory.path()).unwrap();
    microagent
        .workspaces()
        .create(&spec.options().unwrap(), RunIo::captured())
        .unwrap();
    let finished = sandbox
        .microagent(["supervise", "web", "--max-restarts", "1", "--grace", "5"])
        .run()
        .success();
    let said = finished.err();
    for words in ["not well (1): ", "503", "failed: its health probes failed"] {
        assert!(said.contains(words), "{words} is not in {finished}");
    }
    let ends = ends(&history(&microagent, "web"));
    // Its files were put in by a boot of their own.
    assert_eq!(
        (ends.len(), ends[0].1),
        (3, EndCause::Requested),
        "{ends:?}"
    );
    let unwell = |end: &(State, EndCause, String)| end.1 == EndCause::Unhealthy;
    assert!(ends[1..].iter().all(unwell), "{ends:?}");
    let asked = sandbox
        .microagent(["cp", "web:/root/asked", "-"])
        .run()
        .success();
    let asked = asked.out();
    // Four times the first machine, two of them well, and twice the second, or once: it may not have listened
    // yet when the first probe came.
    let count = asked.matches("GET /ready?now HTTP/1.1").count();
    assert!((5..=6).contains(&count), "{asked}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_machine_that_dies_is_replaced_and_one_that_is_halted_is_left_alone() {
    let sandbox = own();
    let microagent = microagent(&sandbox);
    let idle = RunOptions::new(Sandbox::BUSYBOX).name("idle");
    create(&microagent, idle, RestartPolicy::Always);
    let workspace = || microagent.workspaces().open("idle").unwrap();

    let supervise = sandbox.microagent(["supervise", "idle"]).start();
    supervise.says("ready after");
    let processes = workspace()
        .status(Verify::default())
        .unwrap()
        .processes
        .unwrap();
    let vmm = i32::try_from(processes.vmm.unwrap().pid).unwrap();
    kill_process(Pid::from_raw(vmm).unwrap(), Signal::KILL).unwrap();
    supervise.says("failed: the virtual machine monitor ended unexpectedly");
    supervise.says("starting again (1)");
    eventually(PATIENCE, "the second machine", || {
        (workspace().state().unwrap() == State::Running).then_some(())
    });

    // Killed, it leaves the machine alone; the next one finds it.
    supervise.signal(Signal::KILL);
    assert!(supervise.finish().was_signaled());
    assert_eq!(workspace().state().unwrap(), State::Running);
    let supervise = sandbox.microagent(["supervise", "idle"]).start();
    supervise.says("it is running already; watching it");
    workspace().halt(PATIENCE).unwrap();
    let finished = supervise.finish().success();
    assert!(finished.out().contains("it was halted"), "{finished}");

    let supervise = sandbox.microagent(["supervise", "idle"]).start();
    supervise.says("ready after");
    supervise.signal(Signal::TERM);
    let finished = supervise.finish().success();
    assert!(
        finished
            .out()
            .contains("it was asked to end (it is halted)"),
        "{finished}"
    );
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_unit_is_written_and_removed_again() {
    let sandbox = own();
    let microagent = microagent(&sandbox);
    let idle = RunOptions::new(Sandbox::BUSYBOX).name("unit");
    create(&microagent, idle, RestartPolicy::Always);
    let home = tempfile::tempdir().unwrap();
    let programs = home.path().join("bin");
    fs::create_dir(&programs).unwrap();
    // A systemd that nobody can reach, as in a container.
    let systemctl = programs.join("systemctl");
    std::process::Command::new("sh")
        .args([
            "-c",
            "printf '#!/bin/sh\\necho no bus >&2; exit 1\\n' > \"$0\" && chmod 755 \"$0\"",
        ])
        .arg(&systemctl)
        .status()
        .unwrap();
    let path = format!("{}:/usr/bin:/bin", programs.display());
    let config = home.path().join("config");
    let supervise = |arguments: &[&str]| {
        sandbox
            .microagent(["supervise", "unit", "--json"])
            .words(arguments)
            .env("PATH", &path)
            .env("XDG_CONFIG_HOME", config.to_str().unwrap())
            .run()
            .success()
            .parsed()
    };
    let report = supervise(&["--install", "--max-restarts", "7"]);
    assert_eq!(
        (&report["changed"], &report["registered"]),
        (&true.into(), &false.into())
    );
    assert_eq!(report["reason"], "systemctl: no bus");
    assert_eq!(report["commands"][0], "systemctl --user daemon-reload");
    let unit = config.join("systemd/user/microagent-supervise-unit.service");
    assert_eq!(Path::new(report["path"].as_str().unwrap()), unit);
    assert_eq!(
        fs::metadata(&unit).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let text = fs::read_to_string(&unit).unwrap();
    let start = format!(
        "ExecStart=\"{}\" \"--state-dir\" \"{}\" \"supervise\" \"unit\" \"--grace\" \"10\" \"--max-restarts\" \"7\"",
        env!("CARGO_BIN_EXE_microagent"),
        sandbox.state().display()
    );
    assert!(text.contains(&start), "{text}");
    let report = supervise(&["--uninstall"]);
    assert_eq!(report["changed"], true);
    assert!(!unit.exists());
    assert_eq!(supervise(&["--uninstall"])["changed"], false);
}
