//! A workspace that stays, by the library: made, started, ended, started again, removed.

use std::time::Duration;

use microagent::{
    Config, CreateOptions, EndCause, Error, Microagent, Profile, RunIo, RunOptions, StartOptions,
    State, SupervisorProgram, Verify,
};
use testkit::Sandbox;

/// How long a guest may take to end, also where the host is busy.
const GRACE: Duration = Duration::from_secs(60);

fn microagent(sandbox: &Sandbox) -> Microagent {
    let supervisor = SupervisorProgram::At(env!("CARGO_BIN_EXE_microagent").into());
    Microagent::new(Config::new(sandbox.state(), sandbox.runtime(), supervisor))
}

fn options(name: &str) -> RunOptions {
    RunOptions::new(Sandbox::BUSYBOX)
        .name(name)
        .profile(Profile::Tiny)
}

#[test]
fn what_is_written_stays_from_start_to_start() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let microagent = microagent(&sandbox);
    let workspaces = microagent.workspaces();
    let plan = workspaces
        .plan(&CreateOptions::new(options("kept")))
        .unwrap();
    assert!(!plan.directory.exists(), "a plan touches nothing");

    let counts = options("kept").shell("echo start >>/root/starts; wc -l </root/starts; exit 3");
    let created = workspaces
        .create(
            &CreateOptions::new(counts.setup("touch /root/set-up")),
            RunIo::captured(),
        )
        .unwrap();
    assert!(created.set_up && created.directory.is_dir());
    let taken = workspaces.create(&CreateOptions::new(options("kept")), RunIo::captured());
    assert!(matches!(taken, Err(Error::NameTaken { .. })));

    let mut workspace = workspaces.open("kept").unwrap();
    assert_eq!(workspace.state().unwrap(), State::Halted, "after its setup");
    for starts in ["1\n", "2\n"] {
        let started = workspace
            .start(&StartOptions::new(), RunIo::captured())
            .unwrap();
        assert!(started.ms > 0);
        assert_eq!(workspace.wait(Some(GRACE)).unwrap(), State::Failed);
        let result = workspace.result().unwrap().unwrap();
        assert_eq!(
            (result.exit_code, result.stdout.data.as_str()),
            (Some(3), starts)
        );
    }
    let status = workspace.status(Verify::Everything).unwrap();
    assert!(
        status.verification.ok && !status.setup_pending,
        "{status:?}"
    );
    let history = workspace.history().unwrap();
    let numbers: Vec<u64> = history.events.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());

    assert!(workspaces.remove("kept", false).unwrap().deleted);
    assert!(!workspaces.remove("kept", false).unwrap().deleted);
    assert!(matches!(
        workspaces.open("kept"),
        Err(Error::NoWorkspace { .. })
    ));
    sandbox.leftovers().none(&[]);
}

#[test]
fn an_idle_workspace_is_steered_through_its_states() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let microagent = microagent(&sandbox);
    let workspaces = microagent.workspaces();
    workspaces
        .create(&CreateOptions::new(options("idle")), RunIo::captured())
        .unwrap();
    let mut workspace = workspaces.open("idle").unwrap();
    assert!(!workspace.halt(GRACE).unwrap().changed, "it is not live");
    assert!(matches!(workspace.pause(), Err(Error::State { .. })));

    workspace
        .start(&StartOptions::new(), RunIo::captured())
        .unwrap();
    let again = workspace.start(&StartOptions::new(), RunIo::captured());
    assert!(
        matches!(
            again,
            Err(Error::State {
                state: State::Running,
                ..
            })
        ),
        "{again:?}"
    );
    assert_eq!(workspace.pause().unwrap().state, State::Paused);
    assert!(!workspace.pause().unwrap().changed);
    assert_eq!(workspace.resume().unwrap().state, State::Running);
    let halted = workspace.halt(GRACE).unwrap();
    assert_eq!(
        (halted.state, halted.cause),
        (State::Halted, Some(EndCause::Requested))
    );

    workspace
        .start(&StartOptions::new(), RunIo::captured())
        .unwrap();
    let refused = workspaces.remove("idle", false);
    assert!(matches!(refused, Err(Error::State { .. })), "{refused:?}");
    assert_eq!(workspace.quarantine().unwrap().state, State::Quarantined);
    let contained = workspace.start(&StartOptions::new(), RunIo::captured());
    assert!(matches!(
        contained,
        Err(Error::State {
            state: State::Quarantined,
            ..
        })
    ));
    assert!(matches!(workspace.resume(), Err(Error::Supervisor(_))));
    assert_eq!(workspace.kill().unwrap().state, State::Stopped);

    let copy = workspace.clone_as("copy").unwrap();
    assert_eq!(workspaces.list().unwrap().len(), 2);
    workspaces.open(copy.as_str()).unwrap();
    for name in ["idle", "copy"] {
        assert!(workspaces.remove(name, true).unwrap().deleted);
    }
    assert!(workspaces.collect_garbage(false).unwrap().is_empty());
    sandbox.leftovers().none(&[]);
}
