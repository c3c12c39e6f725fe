//! The same supervisor with a real VMM, the distribution's kernel and the real guest agent.

use std::{
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use microagent_kernel::{GUEST_BINARY, KernelStore};
use microagent_protocol::{
    EndCause, EnvVar, ExecRole, ExitStatus, FrameKind, Mebibytes, ShellFate, ShellOrigin,
    StartFailure, State,
    frame::write_frame,
    supervisor::{Answer, Command as Ask, EventKind},
};

use crate::{
    client::{Client, Machine, Workspace, alive, request},
    protocol,
    vmm::wait_for,
};

/// The tests on real machines.
pub(crate) const TESTS: &[testkit::harness::Test] = &[
    ("a_real_machine_runs_a_workload_to_its_end", runs),
    ("a_real_machine_relays_bulk_both_ways", bulk),
    ("a_real_machine_is_paused_quarantined_and_killed", controls),
    (
        "a_real_machine_keeps_a_shell_and_has_a_console",
        shell_and_console,
    ),
    ("a_real_machine_halts_and_powers_off_cleanly", ends),
    (
        "a_real_machine_leaves_nothing_when_its_supervisor_is_killed",
        killed,
    ),
    ("a_real_machine_that_never_boots_fails_on_both_types", never),
    (
        "the_transcripts_of_the_protocol_are_true",
        protocol::transcripts,
    ),
    (
        "a_client_in_another_language_drives_a_machine",
        protocol::python,
    ),
];

/// What every machine here shares.
struct Parts {
    host_cache: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    base: PathBuf,
    scratch: PathBuf,
}

fn parts() -> &'static Parts {
    static PARTS: OnceLock<Parts> = OnceLock::new();
    PARTS.get_or_init(|| {
        let cache = std::env::var_os("MICROAGENT_TEST_CACHE").map_or_else(
            || Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"),
            PathBuf::from,
        );
        std::fs::create_dir_all(&cache).unwrap();
        let store = KernelStore::open(&cache).unwrap();
        let kernel = store.ensure_default(&mut |_| {}).unwrap();
        let initramfs = store.initramfs(&kernel, GUEST_BINARY).unwrap();
        let (base, scratch) = (
            cache.join("supervisor-base"),
            cache.join("supervisor-scratch"),
        );
        let root = tempfile::tempdir().unwrap();
        root_filesystem(root.path());
        make_ext4(&base, 64, Some(root.path()));
        make_ext4(&scratch, 64, None);
        Parts {
            host_cache: cache.join("host"),
            kernel: store.vmlinux(&kernel),
            initramfs: initramfs.path,
            base,
            scratch,
        }
    })
}

/// A shell and what it calls.
fn root_filesystem(root: &Path) {
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        std::fs::create_dir(root.join(name)).unwrap();
    }
    let busybox = ["/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("busybox is missing; install the package busybox");
    std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "sleep", "poweroff", "uname", "head", "true", "sync", "kill", "test",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let libraries = Command::new("ldd").arg(busybox).output().unwrap();
    for word in String::from_utf8(libraries.stdout)
        .unwrap()
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let copy = root.join(word.trim_start_matches('/'));
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(word, copy).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
}

fn make_ext4(path: &Path, mib: u32, content: Option<&Path>) {
    let mut command = Command::new("/sbin/mke2fs");
    command.args(["-q", "-F", "-t", "ext4"]);
    if let Some(content) = content {
        command.arg("-d").arg(content);
    }
    let made = command
        .arg(path)
        .arg(format!("{mib}M"))
        .status()
        .expect("mke2fs is missing; install the package e2fsprogs");
    assert!(made.success());
}

pub(crate) fn workspace() -> Workspace {
    let parts = parts();
    let mut workspace = Workspace::empty();
    let spec = &mut workspace.spec;
    spec.host_cache = Some(parts.host_cache.clone());
    spec.kernel.clone_from(&parts.kernel);
    spec.initramfs.clone_from(&parts.initramfs);
    spec.base_disk.clone_from(&parts.base);
    std::fs::copy(&parts.scratch, &spec.scratch_disk).unwrap();
    spec.memory = Mebibytes(256);
    spec.boot_timeout_ms = 60_000;
    workspace
}

fn boot(workspace: &Workspace, owner: bool) -> Machine {
    let machine = workspace.boot(owner);
    machine
        .events
        .stream()
        .set_read_timeout(Some(Duration::from_secs(150)))
        .unwrap();
    machine
}

/// A client that waits for as long as a boot on a busy host takes.
fn patient(machine: &Machine) -> Client {
    let client = machine.client();
    client
        .stream()
        .set_read_timeout(Some(Duration::from_secs(150)))
        .unwrap();
    client
}

fn exec(machine: &Machine, role: ExecRole, stdin: bool, argv: &[&str]) -> Client {
    let mut client = patient(machine);
    let mut request = request(role, stdin, argv);
    request.env = vec!["PATH=/bin".parse::<EnvVar>().unwrap()];
    match client.ask(Ask::Exec(request)) {
        Ok(Answer::Started { .. }) => client,
        other => panic!("{argv:?}: {other:?}"),
    }
}

fn gone(workspace: &Workspace, machine: &Machine) {
    wait_for(Duration::from_secs(10), || {
        !alive(machine.launched.supervisor.pid) && !workspace.spec.runtime_dir.exists()
    });
}

fn rss(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn runs() {
    let workspace = workspace();
    let started = Instant::now();
    let mut machine = boot(&workspace, true);
    let mut client = machine.client();
    let missing = request(ExecRole::Command, false, &["/no/such"]);
    client
        .stream()
        .set_read_timeout(Some(Duration::from_secs(150)))
        .unwrap();
    assert!(matches!(
        client.ask(Ask::Exec(missing)),
        Ok(Answer::FailedToStart {
            reason: StartFailure::NotFound,
            ..
        })
    ));
    let mut session = exec(
        &machine,
        ExecRole::Workload,
        true,
        &["sh", "-c", "cat; uname -n >&2; exit 42"],
    );
    println!(
        "     the workload started after {} ms; the supervisor's RSS is {} KiB",
        started.elapsed().as_millis(),
        rss(machine.launched.supervisor.pid, "VmRSS")
    );
    session.send(FrameKind::Stdin, b"hello\n");
    session.send(FrameKind::StdinEof, b"");
    let (stdout, stderr, exit) = session.finish();
    let exited = Instant::now();
    assert_eq!(
        (&stdout[..], &stderr[..]),
        (&b"hello\n"[..], &b"fake\n"[..])
    );
    assert_eq!(exit.unwrap().status, ExitStatus::Exited { code: 42 });
    let (state, cause, detail) = machine.end();
    assert_eq!(
        (state, cause),
        (State::Failed, EndCause::WorkloadFinished),
        "{detail}"
    );
    println!(
        "     ended {} ms after the exit",
        exited.elapsed().as_millis()
    );
    gone(&workspace, &machine);
    println!(
        "     gone {} ms after the exit",
        exited.elapsed().as_millis()
    );
    assert_eq!(workspace.result().exit_code, Some(42));
    for event in workspace.events() {
        println!("     {}", serde_json::to_string(&event).unwrap());
    }
}

fn bulk() {
    const BYTES: u32 = 16 << 20;
    let workspace = workspace();
    let mut machine = boot(&workspace, true);
    let mut session = exec(&machine, ExecRole::Workload, true, &["cat"]);
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at ^ (at >> 11)) as u8).collect();
    let (credit, more) = std::sync::mpsc::channel::<u32>();
    let mut writer = session.stream().try_clone().unwrap();
    let sent = bytes.clone();
    let sender = std::thread::spawn(move || {
        let mut window = microagent_protocol::frame::STDIN_WINDOW;
        for chunk in sent.chunks(32 * 1024) {
            while (window as usize) < chunk.len() {
                window += more.recv().unwrap();
            }
            window -= u32::try_from(chunk.len()).unwrap();
            write_frame(&mut writer, FrameKind::Stdin, chunk).unwrap();
        }
        write_frame(&mut writer, FrameKind::StdinEof, b"").unwrap();
        writer.flush().unwrap();
    });
    let started = Instant::now();
    let mut back = Vec::new();
    let exit = loop {
        let frame = session.0.require().unwrap();
        match frame.kind {
            FrameKind::Stdout => back.extend_from_slice(frame.payload),
            FrameKind::StdinCredit => {
                let _ = credit.send(frame.as_u32().unwrap());
            }
            FrameKind::Exit => {
                break frame
                    .json::<microagent_protocol::exec::ExitReport>()
                    .unwrap();
            }
            other => panic!("{other:?}"),
        }
    };
    println!(
        "     {} MiB in and out in {} ms",
        BYTES >> 20,
        started.elapsed().as_millis()
    );
    sender.join().unwrap();
    assert!(back == bytes, "{} bytes came back", back.len());
    assert_eq!(exit.status.code(), 0);
    assert_eq!(machine.end().0, State::Halted);
    gone(&workspace, &machine);
}

fn controls() {
    let workspace = workspace();
    let mut machine = boot(&workspace, false);
    let mut session = exec(&machine, ExecRole::Command, true, &["cat"]);
    let mut client = machine.client();
    let state = |answer| match answer {
        Ok(Answer::Status(status)) => status.state,
        other => panic!("{other:?}"),
    };
    assert_eq!(state(client.ask(Ask::Pause)), State::Paused);
    session.send(FrameKind::Stdin, b"x");
    session
        .stream()
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    assert!(session.0.read().is_err(), "a frozen guest answered");
    assert_eq!(state(client.ask(Ask::Resume)), State::Running);
    drop(session);
    let mut session = exec(&machine, ExecRole::Command, true, &["cat"]);
    assert_eq!(state(client.ask(Ask::Quarantine)), State::Quarantined);
    assert_eq!(session.finish().2, None, "sessions are cut");
    // Long enough for a link that was cut to be mistaken for one that broke.
    std::thread::sleep(Duration::from_millis(3_500));
    let Ok(Answer::Status(status)) = client.ask(Ask::Inspect) else {
        panic!("no status");
    };
    assert_eq!(status.state, State::Quarantined);
    let vmm = status.vmm.unwrap().pid;
    assert!(alive(vmm));
    assert_eq!(state(client.ask(Ask::Kill)), State::Stopped);
    assert!(!alive(vmm));
    machine.until(|kind| matches!(kind, EventKind::Ended { .. }));
    gone(&workspace, &machine);
}

fn shell_and_console() {
    let workspace = workspace();
    let machine = boot(&workspace, true);
    let line = |line: &str, origin: ShellOrigin| {
        let mut client = patient(&machine);
        match client.line(line) {
            Ok(Answer::Line { shell, .. }) => assert_eq!(shell, origin),
            other => panic!("{line}: {other:?}"),
        }
        client.finish_line()
    };
    let first = line("cd /tmp; X='a  b'; echo oops >&2", ShellOrigin::Started);
    assert_eq!((first.0.as_str(), first.1.as_str()), ("", "oops\n"));
    let second = line("echo \"$X\"; pwd; (exit 7)", ShellOrigin::Running);
    assert_eq!(second.0, "a  b\n/tmp\n");
    assert_eq!(second.2.exit.status.code(), 7);
    let started = Instant::now();
    let lines = 20;
    for _ in 0..lines {
        line("true", ShellOrigin::Running);
    }
    println!(
        "     a line takes {} ms",
        started.elapsed().as_millis() / lines
    );
    let bulk = line("head -c 1048576 /dev/zero", ShellOrigin::Running);
    assert_eq!(bulk.0.len(), 1 << 20);
    let mut client = patient(&machine);
    client.line("echo begun; sleep 600").unwrap();
    client.send(FrameKind::Signal, &[2]);
    assert_eq!(client.finish_line().2.shell, Some(ShellFate::Kept));
    let last = line("exit 4", ShellOrigin::Running);
    assert_eq!(last.2.shell, Some(ShellFate::Ended));
    line("test -z \"$X\"", ShellOrigin::Restarted);

    let mut console = patient(&machine);
    assert_eq!(console.ask(Ask::Console), Ok(Answer::Attached));
    let script = "echo ready >/dev/ttyS0; read l </dev/ttyS0; echo \"got-$l.\" >/dev/ttyS0";
    let mut session = exec(&machine, ExecRole::Command, false, &["sh", "-c", script]);
    let mut seen = String::new();
    let mut until = |console: &mut Client, words: &str| {
        while !seen.contains(words) {
            let frame = console.0.require().unwrap();
            assert_eq!(frame.kind, FrameKind::Stdout);
            seen.push_str(&String::from_utf8_lossy(frame.payload));
        }
    };
    until(&mut console, "ready");
    console.send(FrameKind::Stdin, b"some words\r");
    until(&mut console, "got-some words.");
    assert_eq!(session.finish().2.unwrap().status.code(), 0);
    // It ends with the machine.
    machine.client().ask(Ask::Kill).unwrap();
    while console.0.read().is_ok_and(|frame| frame.is_some()) {}
    gone(&workspace, &machine);
}

fn ends() {
    let workspace = workspace();
    let mut machine = boot(&workspace, false);
    machine.ready();
    let _workload = exec(&machine, ExecRole::Workload, false, &["sleep", "600"]);
    let asked = Instant::now();
    let answer = machine.client().ask(Ask::Halt { grace_ms: 30_000 });
    let Ok(Answer::Status(status)) = answer else {
        panic!("{answer:?}");
    };
    println!("     halted in {} ms", asked.elapsed().as_millis());
    assert_eq!(
        (status.state, status.end),
        (State::Halted, Some(EndCause::Requested))
    );
    gone(&workspace, &machine);
    check_clean(&workspace);
    let workspace = self::workspace();
    let mut machine = boot(&workspace, false);
    let mut workload = exec(
        &machine,
        ExecRole::Workload,
        false,
        &["sh", "-c", "poweroff; sleep 600"],
    );
    workload.finish();
    let (state, cause, detail) = machine.end();
    assert_eq!(
        (state, cause),
        (State::Halted, EndCause::GuestPoweredOff),
        "{detail}"
    );
    gone(&workspace, &machine);
    check_clean(&workspace);
}

/// The guest left no journal to replay.
fn check_clean(workspace: &Workspace) {
    let dump = Command::new("/sbin/dumpe2fs")
        .arg("-h")
        .arg(&workspace.spec.scratch_disk)
        .output()
        .expect("dumpe2fs is missing; install the package e2fsprogs");
    let text = String::from_utf8(dump.stdout).unwrap();
    assert!(!text.contains("needs_recovery"), "{text}");
}

fn killed() {
    let workspace = workspace();
    let mut machine = boot(&workspace, false);
    machine.ready();
    let Ok(Answer::Status(status)) = machine.client().ask(Ask::Inspect) else {
        panic!("no status");
    };
    let vmm = status.vmm.unwrap().pid;
    assert!(alive(vmm));
    crate::ends::kill(machine.launched.supervisor.pid);
    wait_for(Duration::from_secs(10), || !alive(vmm));
}

fn never() {
    let mut workspace = workspace();
    // A guest that is not there: the kernel panics for want of an init.
    let empty = workspace.root.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    workspace.spec.initramfs = empty;
    let mut machine = boot(&workspace, false);
    machine.until(|kind| matches!(kind, EventKind::BootRetried { .. }));
    let (state, cause, detail) = machine.end();
    assert_eq!((state, cause), (State::Failed, EndCause::BootFailed));
    assert!(detail.contains("panic"), "{detail}");
    gone(&workspace, &machine);
}
