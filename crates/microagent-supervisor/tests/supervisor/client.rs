//! The other side: a program that launches a supervisor and talks to it.

use std::{
    cell::RefCell,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use microagent_host::process::ProcessHandle;
use microagent_protocol::{
    BackendChoice, EndCause, ExecRequest, ExecRole, FrameKind, FrameReader, LaunchSpec, LineReport,
    Mebibytes, NetworkMode, ShellLine, ShellStart, State,
    exec::ExitReport,
    frame::{write_frame, write_json},
    supervisor::{
        Answer, Command as Ask, ErrorReport, Event, EventKind, Launched, Request, Response,
        WorkloadResult,
    },
};

/// A workspace on disk, and a spec to launch it by. Nothing that was launched by it outlives it,
/// however its test goes on after the launch.
pub(crate) struct Workspace {
    // Before the directory, in which its supervisors may write.
    launched: Swept,
    pub(crate) root: tempfile::TempDir,
    pub(crate) spec: LaunchSpec,
    /// What the supervisor is called.
    pub(crate) program: &'static str,
}

/// Supervisors that a test must not leave behind; their VMMs die with them.
#[derive(Default)]
struct Swept(RefCell<Vec<ProcessHandle>>);

impl Swept {
    fn add(&self, launched: &Launched) {
        // One that has ended already has no handle.
        let handle = ProcessHandle::open(launched.supervisor.pid);
        self.0.borrow_mut().extend(handle);
    }
}

impl Drop for Swept {
    fn drop(&mut self) {
        for handle in self.0.get_mut().drain(..) {
            // As a rule it has ended by itself.
            let _ = handle.kill();
            let _ = handle.ended_by(Instant::now() + SWEEP_LIMIT);
        }
    }
}

/// How long the kernel may take to end a killed supervisor.
const SWEEP_LIMIT: Duration = Duration::from_secs(10);

impl Workspace {
    /// A machine that does what `script` says.
    pub(crate) fn new(script: &str) -> Self {
        let workspace = Self::empty();
        std::fs::write(&workspace.spec.kernel, script).unwrap();
        workspace
    }

    pub(crate) fn empty() -> Self {
        let root = tempfile::Builder::new()
            .prefix("sv")
            .tempdir_in("/tmp")
            .unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["directory", "run"] {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        for name in ["kernel", "initramfs", "base", "scratch"] {
            std::fs::write(at(name), "").unwrap();
        }
        let spec = LaunchSpec {
            confinement: microagent_protocol::ConfinementMode::Auto,
            workspace: "test".parse().unwrap(),
            directory: at("directory"),
            runtime_dir: at("run"),
            backend: BackendChoice::Auto,
            host_cache: None,
            probe_limit_ms: None,
            memory: Mebibytes(128),
            vcpus: 1.try_into().unwrap(),
            kernel: at("kernel"),
            initramfs: at("initramfs"),
            base_disk: at("base"),
            scratch_disk: at("scratch"),
            disks: Vec::new(),
            network: NetworkMode::User,
            publish: Vec::new(),
            mediation: Vec::new(),
            workload: None,
            artifacts: Vec::new(),
            hostname: "fake".to_owned(),
            boot_timeout_ms: 15_000,
            time_limit_ms: None,
            owned: false,
            ephemeral: false,
            capture_limit: 1024,
            console_limit: 65_536,
            log: None,
        };
        Self {
            launched: Swept::default(),
            root,
            spec,
            program: PROGRAM,
        }
    }

    pub(crate) fn launch(&self) -> Launched {
        let request = Request::new(Ask::Launch(Box::new(self.spec.clone())));
        match one_shot_by(self.program, &serde_json::to_vec(&request).unwrap()) {
            (Ok(Answer::Launched(launched)), true) => {
                self.launched.add(&launched);
                launched
            }
            other => panic!("{other:?}"),
        }
    }

    /// Launches and subscribes.
    pub(crate) fn boot(&self, owner: bool) -> Machine {
        let launched = self.launch();
        let mut client = Client::connect(&launched.socket);
        assert_eq!(
            client.ask(Ask::Subscribe { owner }).unwrap(),
            Answer::Subscribed
        );
        Machine::new(launched, client)
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        let text = std::fs::read_to_string(self.spec.directory.join("events.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub(crate) fn result(&self) -> WorkloadResult {
        let path = self.spec.directory.join("result.json");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.spec.directory.join("supervisor.log")).unwrap_or_default()
    }
}

/// One request on a new supervisor's standard input: the answer, and whether
/// the process ended with 0.
pub(crate) fn one_shot(command: Ask) -> (Result<Answer, ErrorReport>, bool) {
    one_shot_json(&serde_json::to_vec(&Request::new(command)).unwrap())
}

pub(crate) fn one_shot_json(json: &[u8]) -> (Result<Answer, ErrorReport>, bool) {
    one_shot_by(PROGRAM, json)
}

/// What a supervisor is called as a rule.
const PROGRAM: &str = "/some/where/microagent-supervisor";

pub(crate) fn one_shot_by(program: &str, json: &[u8]) -> (Result<Answer, ErrorReport>, bool) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg0(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The input stays open: one value is all that is read.
    let mut input = child.stdin.take().unwrap();
    let _ = input.write_all(json);
    if json.is_empty() {
        drop(input);
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "one line: {text:?}");
    let response: Response = serde_json::from_str(&text).unwrap();
    (response.into_result(), output.status.success())
}

/// A connection to a control socket.
pub(crate) struct Client(pub(crate) FrameReader<UnixStream>);

impl Client {
    pub(crate) fn connect(socket: &PathBuf) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        Self(FrameReader::new(stream))
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        self.0.get_ref()
    }

    pub(crate) fn ask(&mut self, command: Ask) -> Result<Answer, ErrorReport> {
        let mut request = Request::new(command);
        request.id = "7".to_owned();
        write_json(&mut self.stream(), FrameKind::Request, &request).unwrap();
        let response: Response = self
            .0
            .require()
            .unwrap()
            .expect_json(FrameKind::Response, "a response")
            .unwrap();
        assert_eq!(response.id, "7");
        response.into_result()
    }

    /// Sends a line to the shell, and gives what it is answered.
    pub(crate) fn line(&mut self, line: &str) -> Result<Answer, ErrorReport> {
        self.ask(Ask::Shell(ShellLine {
            line: line.to_owned(),
            shell: ShellStart {
                program: "/bin/sh".to_owned(),
                env: vec!["PATH=/bin".parse().unwrap()],
                cwd: None,
                user: None,
            },
            turn_limit_ms: Some(10_000),
        }))
    }

    /// Everything until a line's end.
    pub(crate) fn finish_line(&mut self) -> (String, String, LineReport) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        loop {
            let frame = self.0.require().unwrap();
            match frame.kind {
                FrameKind::Stdout => stdout += std::str::from_utf8(frame.payload).unwrap(),
                FrameKind::Stderr => stderr += std::str::from_utf8(frame.payload).unwrap(),
                FrameKind::Exit => return (stdout, stderr, frame.json().unwrap()),
                other => panic!("a {other:?} frame in a session"),
            }
        }
    }

    pub(crate) fn send(&self, kind: FrameKind, payload: &[u8]) {
        write_frame(&mut self.stream(), kind, payload).unwrap();
    }

    /// Everything until the session's end.
    pub(crate) fn finish(&mut self) -> (Vec<u8>, Vec<u8>, Option<ExitReport>) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let Ok(Some(frame)) = self.0.read() else {
                return (stdout, stderr, None);
            };
            match frame.kind {
                FrameKind::Stdout => stdout.extend_from_slice(frame.payload),
                FrameKind::Stderr => stderr.extend_from_slice(frame.payload),
                FrameKind::StdinCredit => {}
                FrameKind::Exit => return (stdout, stderr, Some(frame.json().unwrap())),
                other => panic!("a {other:?} frame in a session"),
            }
        }
    }
}

pub(crate) struct Machine {
    pub(crate) launched: Launched,
    pub(crate) events: Client,
}

impl Machine {
    pub(crate) fn new(launched: Launched, events: Client) -> Self {
        Self { launched, events }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.launched.socket)
    }

    pub(crate) fn event(&mut self) -> Option<Event> {
        let frame = self.events.0.read().unwrap()?;
        Some(frame.expect_json(FrameKind::Event, "an event").unwrap())
    }

    /// The first event that `wanted` says yes to.
    pub(crate) fn until(&mut self, wanted: impl Fn(&EventKind) -> bool) -> Event {
        loop {
            let event = self.event().expect("the events ended");
            if wanted(&event.kind) {
                return event;
            }
        }
    }

    pub(crate) fn ready(&mut self) {
        self.until(|kind| matches!(kind, EventKind::GuestReady { .. }));
    }

    /// The end: its state, cause and detail.
    pub(crate) fn end(&mut self) -> (State, EndCause, String) {
        let event = self.until(|kind| matches!(kind, EventKind::Ended { .. }));
        assert!(self.event().is_none(), "an event after the end");
        let EventKind::Ended { cause, detail, .. } = event.kind else {
            unreachable!();
        };
        (event.state, cause, detail.unwrap_or_default())
    }

    pub(crate) fn exec(&self, role: ExecRole, stdin: bool, argv: &[&str]) -> Client {
        let mut client = self.client();
        match client.ask(Ask::Exec(request(role, stdin, argv))) {
            Ok(Answer::Started { .. }) => client,
            other => panic!("{argv:?}: {other:?}"),
        }
    }
}

pub(crate) fn request(role: ExecRole, stdin: bool, argv: &[&str]) -> ExecRequest {
    ExecRequest {
        role,
        argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
        env: Vec::new(),
        cwd: None,
        user: None,
        tty: None,
        stdin,
        stop_signal: None,
    }
}

/// Whether a process is there and no zombie.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}
