//! Ends that nobody asked for: from inside the guest, and by kills from outside.

use std::{
    io::Write,
    net::Shutdown,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::Duration,
};

use microagent_protocol::{
    EndCause, ExecRole, State,
    supervisor::{Answer, Command as Ask, ErrorKind, EventKind},
};

use crate::{
    SOON,
    client::{Client, Machine, Workspace, alive, request},
    gone,
    vmm::{ANEW, wait_for},
};

pub(crate) fn ends_from_inside_are_told_apart() {
    for (program, state, cause) in [
        ("poweroff", State::Halted, EndCause::GuestPoweredOff),
        ("panic", State::Failed, EndCause::GuestPanicked),
        ("violate", State::Failed, EndCause::GuestPanicked),
        ("vanish", State::Failed, EndCause::GuestPanicked),
        ("oom", State::Failed, EndCause::OutOfMemory),
    ] {
        let workspace = Workspace::new("normal");
        let mut machine = workspace.boot(false);
        let mut client = machine.client();
        let started = client.ask(Ask::Exec(request(ExecRole::Workload, false, &[program])));
        if started.is_ok() {
            client.finish();
        }
        let (seen, why, detail) = machine.end();
        assert_eq!((seen, why), (state, cause), "{program}: {detail}");
        if program == "violate" {
            assert!(detail.contains("Stdin frame"), "{detail}");
        }
        gone(&workspace, &machine);
    }
}

pub(crate) fn a_vmm_killed_by_another_hand_is_noticed() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    let event = machine.until(|kind| matches!(kind, EventKind::VmmStarted { .. }));
    machine.ready();
    let EventKind::VmmStarted { vmm, .. } = event.kind else {
        unreachable!();
    };
    kill(vmm.pid);
    let (state, cause, detail) = machine.end();
    assert_eq!((state, cause), (State::Failed, EndCause::VmmDied));
    assert!(detail.contains("signal 9"), "{detail}");
    gone(&workspace, &machine);
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

pub(crate) fn a_killed_supervisor_takes_the_vmm_along_and_the_next_boot_records_it() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    let Ok(Answer::Status(status)) = machine.client().ask(Ask::Inspect) else {
        panic!("no status");
    };
    let vmm = status.vmm.unwrap();
    kill(machine.launched.supervisor.pid);
    wait_for(SOON, || !alive(vmm.pid));
    std::fs::remove_dir_all(&workspace.spec.runtime_dir).unwrap();
    std::fs::create_dir(&workspace.spec.runtime_dir).unwrap();
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&workspace.spec.runtime_dir, private).unwrap();
    let path = workspace.spec.directory.join("events.jsonl");
    let mut torn = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    torn.write_all(b"{\"sequence\":99,\"at\":\"20").unwrap();
    let mut machine = workspace.boot(false);
    machine.ready();
    let states: Vec<_> = workspace.events().iter().map(|event| event.state).collect();
    assert!(
        states
            .windows(2)
            .all(|pair| pair[0] == pair[1] || pair[0].may_become(pair[1])),
        "{states:?}"
    );
    machine.client().ask(Ask::Kill).unwrap();
    gone(&workspace, &machine);
}

/// A program that launches an owned machine and is killed.
pub(crate) fn launcher(how: &str) -> ! {
    let mut workspace = Workspace::new("normal");
    workspace.spec.owned = true;
    workspace.spec.ephemeral = how == "ephemeral";
    if how == "anew" {
        workspace.program = ANEW;
    }
    let mut held = None;
    let launched = if how == "before" || how == "anew" {
        workspace.launch()
    } else {
        let mut machine = workspace.boot(true);
        machine.ready();
        held = Some(machine.exec(ExecRole::Workload, false, &["sleep", "600"]));
        let launched = machine.launched.clone();
        std::mem::forget(machine);
        launched
    };
    println!(
        "{} {}",
        launched.supervisor.pid,
        workspace.root.path().display()
    );
    std::mem::forget((workspace, held));
    std::thread::sleep(Duration::from_secs(600));
    std::process::exit(1);
}

/// A test that fails after it has told which supervisor it launched.
pub(crate) fn failing(when: &str) -> ! {
    let test = std::thread::spawn({
        let when = when.to_owned();
        move || {
            let workspace = Workspace::new("normal");
            let launched = workspace.launch();
            println!("{}", launched.supervisor.pid);
            assert_ne!(when, "launched");
            let mut watcher = Client::connect(&launched.socket);
            watcher.ask(Ask::Subscribe { owner: false }).unwrap();
            let mut machine = Machine::new(launched, watcher);
            machine.ready();
            assert_ne!(when, "ready");
            // One that has only forgotten about it.
            drop(machine);
        }
    });
    std::process::exit(i32::from(test.join().is_err()));
}

pub(crate) fn a_test_that_fails_leaves_no_supervisor() {
    for (when, failed) in [("launched", true), ("ready", true), ("never", false)] {
        let test = Command::new(std::env::current_exe().unwrap())
            .args(["__failing", when])
            .output()
            .unwrap();
        assert_eq!(test.status.success(), !failed, "{when}: {test:?}");
        let pid = String::from_utf8(test.stdout).unwrap();
        let pid: u32 = pid.trim().parse().unwrap();
        wait_for(SOON, || !alive(pid));
    }
}

pub(crate) fn an_owned_machine_dies_with_the_program_that_launched_it() {
    for how in ["before", "after", "ephemeral", "anew"] {
        let mut program = Command::new(std::env::current_exe().unwrap())
            .args(["__launcher", how])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(program.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let (pid, root) = line.trim().split_once(' ').unwrap();
        let pid = pid.parse().unwrap();
        assert!(alive(pid));
        program.kill().unwrap();
        program.wait().unwrap();
        let root = std::path::PathBuf::from(root);
        wait_for(SOON, || !alive(pid) && !root.join("run").exists());
        if how == "ephemeral" {
            assert!(!root.join("directory").exists(), "it goes with its machine");
            std::fs::remove_dir_all(root).unwrap();
            continue;
        }
        let events = std::fs::read_to_string(root.join("directory/events.jsonl")).unwrap();
        assert!(
            events.lines().last().unwrap().contains("owner_gone"),
            "{how}: {events}"
        );
        std::fs::remove_dir_all(root).unwrap();
    }
}

pub(crate) fn an_owner_that_lets_go_ends_the_machine_and_a_second_one_is_refused() {
    let mut workspace = Workspace::new("normal");
    workspace.spec.owned = true;
    let mut machine = workspace.boot(true);
    machine.ready();
    let second = machine.client().ask(Ask::Subscribe { owner: true });
    assert_eq!(second.unwrap_err().kind, ErrorKind::Conflict);
    let mut watcher = machine.client();
    watcher.ask(Ask::Subscribe { owner: false }).unwrap();
    machine.events.stream().shutdown(Shutdown::Both).unwrap();
    let mut watching = crate::client::Machine::new(machine.launched.clone(), watcher);
    let (state, cause, _) = watching.end();
    assert_eq!((state, cause), (State::Stopped, EndCause::OwnerGone));
    gone(&workspace, &machine);
}

pub(crate) fn a_terminated_supervisor_ends_its_machine() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    let pid = rustix::process::Pid::from_raw(machine.launched.supervisor.pid.cast_signed());
    let signal = |signal| rustix::process::kill_process(pid.unwrap(), signal).unwrap();
    signal(rustix::process::Signal::HUP);
    machine.client().ask(Ask::Inspect).unwrap();
    signal(rustix::process::Signal::TERM);
    let (state, cause, _) = machine.end();
    assert_eq!((state, cause), (State::Stopped, EndCause::Requested));
    gone(&workspace, &machine);
    assert!(
        workspace.log().contains("the machine ended"),
        "{}",
        workspace.log()
    );
}
