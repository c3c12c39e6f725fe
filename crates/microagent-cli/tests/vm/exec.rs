//! What is done in a workspace that runs: commands, a shell, lines of it, the serial console.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use testkit::{Invocation, Running, Sandbox, eventually, sha256};

use crate::sandbox;

/// A workspace that runs until it is dropped.
struct Workspace {
    sandbox: Sandbox,
    name: String,
    run: Option<Running>,
}

impl Workspace {
    fn start() -> Self {
        let sandbox = sandbox();
        let name = format!("exec-{}", std::process::id());
        let name = format!("{name}-{:x}", std::ptr::from_ref(&sandbox) as usize);
        let run = sandbox
            .run_as(
                &name,
                [
                    "-e",
                    "GIVEN=at the start",
                    "-w",
                    "/home/agent",
                    Sandbox::BUSYBOX,
                    "sleep",
                    "3600",
                ],
            )
            .start();
        let mut workspace = Self {
            sandbox,
            name,
            run: Some(run),
        };
        let Self { sandbox, name, run } = &mut workspace;
        // The first one waits for the machine; before it there is no workspace to wait for.
        run.as_mut()
            .unwrap()
            .until(Duration::from_secs(120), "the workspace", || {
                let asked = sandbox.microagent(["exec", name, "true"]).run();
                (asked.code() == 0).then_some(()).ok_or(asked.to_string())
            });
        workspace
    }

    fn microagent<const N: usize>(&self, words: [&str; N]) -> Invocation {
        self.sandbox.microagent(words)
    }

    /// `exec NAME -- COMMAND`.
    fn exec<const N: usize>(&self, command: [&str; N]) -> Invocation {
        self.microagent(["exec", &self.name, "--"]).args(command)
    }

    /// `exec OPTIONS NAME sh -c SCRIPT`.
    fn script<const N: usize>(&self, options: [&str; N], script: &str) -> Invocation {
        self.microagent(["exec"])
            .args(options)
            .args([&self.name, "sh", "-c", script])
    }

    /// `connect NAME --send LINE`.
    fn line(&self, line: &str) -> Invocation {
        self.microagent(["connect", &self.name, "--timeout", "60", "--send", line])
    }

    fn connect<const N: usize>(&self, options: [&str; N]) -> Invocation {
        self.microagent(["connect", &self.name]).args(options)
    }

    /// Whether the guest has a process of these words.
    fn has_process(&self, words: &str) -> bool {
        let list = self.exec(["ps", "-o", "args"]).run().success();
        list.out().lines().any(|line| line == words)
    }

    fn end(mut self) {
        if let Some(run) = self.run.take() {
            run.signal(Signal::TERM);
            run.signal(Signal::TERM);
            let _ended = run.finish();
        }
        self.sandbox.leftovers().none(&[&self.name]);
    }
}

#[test]
fn commands_run_in_a_workspace_beside_each_other() {
    let workspace = Workspace::start();

    streams_are_exact_and_apart(&workspace);
    settings_are_the_workspaces_unless_given(&workspace);
    nothing_after_the_first_word_is_ours(&workspace);
    ends_have_the_codes_of_a_shell(&workspace);
    json_tells_what_became_of_it(&workspace);
    a_time_limit_ends_the_command_and_keeps_what_it_wrote(&workspace);
    signals_reach_it_and_a_killed_client_ends_it(&workspace);
    twenty_at_a_time(&workspace);
    a_terminal_is_a_real_one(&workspace);
    colours_are_for_terminals_that_want_them(&workspace);

    let name = workspace.name.clone();
    let sandbox = sandbox();
    workspace.end();
    let finished = sandbox
        .microagent(["exec", &name, "true"])
        .run()
        .exited(125);
    assert!(finished.err().contains(&name), "{finished}");
}

fn streams_are_exact_and_apart(workspace: &Workspace) {
    let input: Vec<u8> = (0..4_u32 << 20).map(|n| (n ^ (n >> 9)) as u8).collect();
    let finished = workspace
        .script(["-i"], "tee /dev/stderr | cat; exit 7")
        .stdin(input.clone())
        .run()
        .exited(7);
    assert!(finished.stdout == input && finished.stderr == input);
    let none = workspace.script([], "wc -c").stdin("not read").run();
    assert_eq!(none.success().out().trim(), "0");
    let bytes = workspace.exec(["printf", r"\033[2J\000\377"]).run();
    assert_eq!(bytes.success().stdout, b"\x1b[2J\0\xff");
}

fn settings_are_the_workspaces_unless_given(workspace: &Workspace) {
    let script = "echo $GIVEN, $OTHER, $(id -un):$(id -gn), $PWD, $HOSTNAME";
    let plain = workspace.script([], script).run().success();
    assert_eq!(
        plain.out(),
        format!(
            "at the start, , root:root, /home/agent, {}\n",
            workspace.name
        )
    );
    let options = [
        "-e",
        "OTHER=x=y",
        "-e",
        "GIVEN=",
        "-w",
        "/tmp/new",
        "-u",
        "agent",
    ];
    let changed = workspace.script(options, script).run().success();
    assert!(
        changed.out().starts_with(", x=y, agent:agent, /tmp/new, "),
        "{changed}"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "GIVEN=by a file\nOTHER=gone over\n").unwrap();
    let file = ["--env-file", file.path().to_str().unwrap(), "-e", "OTHER="];
    let changed = workspace.script(file, script).run().success();
    assert!(
        changed.out().starts_with("by a file, , root:root, "),
        "{changed}"
    );
}

fn nothing_after_the_first_word_is_ours(workspace: &Workspace) {
    let words = ["-h", "--json", "-it", "--", "x"];
    let finished = workspace
        .exec(["printf", "%s,"])
        .args(words)
        .run()
        .success();
    assert_eq!(finished.out(), "-h,--json,-it,--,x,");
    let plain = workspace
        .microagent(["exec", &workspace.name, "echo", "--help", "-h"])
        .run();
    assert_eq!(plain.success().out(), "--help -h\n");
    let wrong = workspace
        .microagent(["exec", &workspace.name, "--iteractive", "sh"])
        .run()
        .exited(2);
    assert!(wrong.err().contains("--iteractive"), "{wrong}");
}

fn ends_have_the_codes_of_a_shell(workspace: &Workspace) {
    workspace.script([], "kill -9 $$").run().exited(137);
    let missing = workspace.exec(["no-such"]).run().exited(127);
    assert!(missing.err().contains("no-such"), "{missing}");
    workspace.exec(["/etc/passwd"]).run().exited(126);
    let user = workspace.script(["-u", "nobody-here"], "true").run();
    assert!(user.exited(126).err().contains("nobody-here"));
    workspace
        .script(["-w", "/etc/passwd"], "true")
        .run()
        .exited(126);
    let absent = workspace.microagent(["exec", "no-such-one", "true"]).run();
    let absent = absent.exited(125);
    assert!(absent.err().contains("no-such-one"), "{absent}");
}

fn json_tells_what_became_of_it(workspace: &Workspace) {
    let result = workspace
        .script([], r"echo out; printf '\377' >&2; exit 3")
        .json()
        .run()
        .exited(3)
        .parsed();
    assert_eq!(result["workspace"], workspace.name.as_str());
    assert_eq!(result["exit"]["status"], "exited");
    assert_eq!(
        (&result["exit_code"], &result["timed_out"]),
        (&3.into(), &false.into())
    );
    assert_eq!(result["stdout"]["data"], "out\n");
    assert_eq!(result["stderr"]["encoding"], "base64");
    let refused = workspace
        .microagent(["exec", "no-such-one", "true"])
        .json()
        .run()
        .exited(125);
    let report: serde_json::Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(report["kind"], "not_found");
    let terminal = workspace.script(["-it"], "true").json().run().exited(2);
    assert!(terminal.err().contains("terminal"), "{terminal}");
}

fn a_time_limit_ends_the_command_and_keeps_what_it_wrote(workspace: &Workspace) {
    let finished = workspace
        .script(
            ["--timeout", "3"],
            "trap '' TERM; echo begun; sleep 600; sleep 600",
        )
        .json()
        .run()
        .exited(124);
    let result = finished.parsed();
    assert_eq!(result["stdout"]["data"], "begun\n");
    assert_eq!(result["timed_out"], true);
    assert_eq!(result["exit"]["status"], "signaled");
    assert!(finished.took < Duration::from_secs(60));
    let text = workspace.script(["--timeout", "3s"], "echo begun; sleep 600");
    let text = text.run().exited(124);
    assert!(
        text.out() == "begun\n" && text.err().contains("--timeout"),
        "{text}"
    );
}

fn signals_reach_it_and_a_killed_client_ends_it(workspace: &Workspace) {
    let script = "trap 'echo got it; exit 9' INT; echo begun; while :; do sleep 0.1; done";
    let running = workspace.script([], script).start();
    eventually(Duration::from_secs(60), "the command", || {
        (running.output_so_far() == b"begun\n").then_some(())
    });
    running.signal(Signal::INT);
    assert_eq!(running.finish().exited(9).out(), "begun\ngot it\n");

    let running = workspace.exec(["sleep", "7777"]).start();
    eventually(Duration::from_secs(60), "the command", || {
        workspace.has_process("sleep 7777").then_some(())
    });
    running.signal(Signal::KILL);
    assert!(running.finish().was_signaled());
    eventually(Duration::from_secs(60), "its end", || {
        (!workspace.has_process("sleep 7777")).then_some(())
    });
}

fn twenty_at_a_time(workspace: &Workspace) {
    // Each waits for all the others, so they do run at a time.
    let script = "touch /tmp/here.$0; while [ $(ls /tmp/here.* | wc -l) -lt 20 ]; do sleep 0.05; done; echo $0";
    let all: Vec<_> = (0..20)
        .map(|number| {
            let number = number.to_string();
            workspace.script([], script).args([&number]).start()
        })
        .collect();
    for (number, running) in all.into_iter().enumerate() {
        assert_eq!(running.finish().success().out(), format!("{number}\n"));
    }
}

fn colours_are_for_terminals_that_want_them(workspace: &Workspace) {
    let row = |words: &[&str], variable: &str| {
        let list = workspace.microagent([]).words(words).env(variable, "1");
        let mut terminal = list.on_terminal(24, 200);
        let screen = terminal.wait_for("running");
        assert_eq!(terminal.finish(), Some(0));
        screen
    };
    let coloured = row(&["list"], "UNUSED");
    assert!(coloured.contains("\x1b[32mrunning"), "{coloured:?}");
    for (words, variable) in [
        (&["--no-color", "list"][..], "UNUSED"),
        (&["list"], "NO_COLOR"),
    ] {
        let plain = row(words, variable);
        assert!(!plain.contains('\x1b'), "{words:?} {variable}: {plain:?}");
    }
    let piped = workspace.microagent(["list"]).run().success().out();
    assert!(
        piped.contains("running") && !piped.contains('\x1b'),
        "{piped}"
    );
}

fn a_terminal_is_a_real_one(workspace: &Workspace) {
    let mut terminal = workspace
        .microagent(["exec", "-it", &workspace.name, "sh"])
        .on_terminal(33, 101);
    terminal.type_text("stty size; tty; echo re''ady\n");
    let screen = terminal.wait_for("ready");
    assert!(
        screen.contains("33 101") && screen.contains("/dev/pts/"),
        "{screen:?}"
    );
    terminal.resize(44, 122);
    terminal.type_text("while ! stty size | grep -q '44 122'; do :; done; echo res''ized\n");
    terminal.wait_for("resized");
    terminal.type_text("exit 3\n");
    assert_eq!(terminal.finish(), Some(3));
    assert!(terminal.is_restored());
}

#[test]
fn a_workspace_has_a_shell_to_connect_to_and_a_console() {
    let workspace = Workspace::start();

    a_shell_is_left_by_a_key_and_by_its_end(&workspace);
    lines_go_to_one_shell(&workspace);
    lines_are_printed_exactly(&workspace);
    an_end_of_the_shell_is_told(&workspace);
    lines_have_limits(&workspace);
    the_serial_console_is_read_and_typed_into(&workspace);

    workspace.end();
}

fn a_shell_is_left_by_a_key_and_by_its_end(workspace: &Workspace) {
    let mut terminal = workspace.connect([]).on_terminal(30, 90);
    terminal.wait_for_last("# ");
    terminal.type_text("stty size; echo $GIVEN; pwd; (sleep 5555; :) & echo re''ady\n");
    let screen = terminal.wait_for("ready");
    assert!(
        screen.contains("30 90") && screen.contains("at the start"),
        "{screen:?}"
    );
    assert!(screen.contains("/home/agent") && !terminal.is_restored());
    terminal.resize(31, 91);
    terminal.type_text("while ! stty size | grep -q '31 91'; do :; done; echo res''ized\n");
    terminal.wait_for("resized");
    // Ctrl-] lets go of it, whatever runs.
    terminal.type_text("echo wai''ting; sleep 6666\n");
    terminal.wait_for("waiting");
    terminal.type_text("\x1d");
    assert_eq!(terminal.finish(), Some(0));
    assert!(terminal.is_restored());
    eventually(Duration::from_secs(60), "the shell's end", || {
        (!workspace.has_process("sleep 6666")).then_some(())
    });

    let mut terminal = workspace
        .connect(["--shell", "/bin/ash"])
        .on_terminal(24, 80);
    terminal.wait_for_last("# ");
    terminal.type_text("exit 5\n");
    assert_eq!(terminal.finish(), Some(5));
    assert!(terminal.is_restored());

    // Told to end, it detaches and gives the terminal back.
    let mut terminal = workspace.connect([]).on_terminal(24, 80);
    terminal.wait_for_last("# ");
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.finish(), Some(143));
    assert!(terminal.is_restored());

    for refused in [workspace.connect([]), workspace.connect([]).json()] {
        let refused = refused.run().exited(2);
        assert!(refused.err().contains("terminal"), "{refused}");
    }
    workspace.exec(["true"]).run().success();
}

fn lines_go_to_one_shell(workspace: &Workspace) {
    let first = workspace.line("cd /tmp; X='a  b'; f() { echo \"f $X $1\"; }");
    assert_eq!(first.run().success().err(), "");
    let second = workspace
        .line("f 1; pwd; echo $GIVEN; (exit 7)")
        .run()
        .exited(7);
    assert_eq!(second.out(), "f a  b 1\n/tmp\nat the start\n");
    assert_eq!(workspace.line("echo $?").run().success().out(), "7\n");
    let count: Vec<_> = (0..8)
        .map(|_| workspace.line("n=$N; sleep 0.05; N=$((n + 1))").start())
        .collect();
    for running in count {
        let _ended = running.finish().success();
    }
    assert_eq!(workspace.line("echo $N").run().success().out(), "8\n");
}

fn lines_are_printed_exactly(workspace: &Workspace) {
    let tricky = r#"$? DONE "$?" __MARKER__ \command echo 7.end"#;
    for (line, stdout) in [
        ("printf 'no newline'".to_owned(), "no newline".to_owned()),
        (format!("echo '{tricky}'"), format!("{tricky}\n")),
        ("cat <<E\nx\nE\necho y".to_owned(), "x\ny\n".to_owned()),
        ("-x 2>/dev/null; echo $?".to_owned(), "127\n".to_owned()),
        (String::new(), String::new()),
    ] {
        let finished = workspace.line(&line).run().success();
        assert_eq!(
            (finished.out(), finished.err()),
            (stdout, String::new()),
            "{line}"
        );
    }
    let script =
        "head -c 1048576 /dev/urandom >/tmp/noise; sha256sum </tmp/noise >&2; cat /tmp/noise";
    let bulk = workspace.line(script).run().success();
    assert_eq!(bulk.stdout.len(), 1 << 20);
    assert!(bulk.err().starts_with(&sha256(&bulk.stdout)));
    let wrong = workspace.line("echo 'open").run();
    assert!(
        wrong.code() != 0 && wrong.err().contains("quote"),
        "{wrong}"
    );
    // A job of an earlier line does not write into a later one.
    workspace
        .line("while :; do echo noise; sleep 0.05; done &")
        .run()
        .success();
    assert_eq!(
        workspace
            .line("sleep 0.3; echo quiet")
            .run()
            .success()
            .out(),
        "quiet\n"
    );
    workspace.line("kill $!").run().success();
}

fn an_end_of_the_shell_is_told(workspace: &Workspace) {
    let ended = workspace.line("echo bye; exit 4").run().exited(4);
    assert_eq!(ended.out(), "bye\n");
    assert!(ended.err().contains("ended"), "{ended}");
    let next = workspace
        .line("echo ${X-unset}")
        .json()
        .run()
        .success()
        .parsed();
    assert_eq!(next["stdout"]["data"], "unset\n");
    assert_eq!(
        (&next["shell"], &next["shell_after"]),
        (&"restarted".into(), &"kept".into())
    );
    let other = workspace
        .connect(["--shell", "/bin/ash", "--send", "true"])
        .run()
        .exited(126);
    assert!(other.err().contains("/bin/sh"), "{other}");
}

fn lines_have_limits(workspace: &Workspace) {
    let line = |line| workspace.connect(["--timeout", "3", "--send", line]);
    let late = line("X=kept; echo begun; sleep 600; echo never")
        .run()
        .exited(124);
    assert_eq!(late.out(), "begun\n");
    assert!(late.err().contains("interrupted"), "{late}");
    assert_eq!(workspace.line("echo $X").run().success().out(), "kept\n");

    let begun = Instant::now();
    let stubborn = line("trap '' INT; sleep 600")
        .json()
        .run()
        .exited(124)
        .parsed();
    assert_eq!(stubborn["shell_after"], "killed");
    assert!(
        stubborn["error"]["message"]
            .as_str()
            .unwrap()
            .contains("ended")
    );
    assert!(begun.elapsed() < Duration::from_secs(60));

    let holding = workspace.line("echo begun; until test -e /tmp/go; do sleep 0.1; done");
    let holding = holding.start();
    eventually(Duration::from_secs(60), "the line", || {
        (holding.output_so_far() == b"begun\n").then_some(())
    });
    let busy = workspace
        .connect([
            "--ready-timeout",
            "500ms",
            "--send",
            "echo not run >/tmp/ran",
        ])
        .run()
        .exited(125);
    assert!(busy.err().contains("busy"), "{busy}");
    workspace.exec(["touch", "/tmp/go"]).run().success();
    let _ended = holding.finish().success();
    workspace.exec(["test", "-e", "/tmp/ran"]).run().exited(1);

    let running = workspace.line("echo begun; sleep 600").start();
    eventually(Duration::from_secs(60), "the line", || {
        (running.output_so_far() == b"begun\n").then_some(())
    });
    running.signal(Signal::INT);
    assert_eq!(running.finish().exited(130).out(), "begun\n");
}

fn the_serial_console_is_read_and_typed_into(workspace: &Workspace) {
    let mut console = workspace.connect(["--serial"]).on_terminal(24, 80);
    console.wait_for("Attached");
    // Held open: what is typed into a terminal that nobody has open is nobody's. By a child: a
    // session leader makes it its own terminal, whose last output the kernel drops when it ends.
    let script =
        "{ exec 3<>/dev/ttyS0; echo rea''dy >&3; read l <&3; echo \"got-$l.\" >&3; } & wait $!";
    let reader = workspace.script([], script).start();
    console.wait_for("ready");
    console.type_text("some words\r");
    console.wait_for("got-some words.");
    let _ended = reader.finish().success();
    console.type_text("\x1d");
    assert_eq!(console.finish(), Some(0));
    assert!(console.is_restored());
    let mut idle = workspace.exec(["cat"]).start();
    // Nothing of the terminal is left open in the guest.
    idle.stdin.take().unwrap().flush().unwrap();
    let _ended = idle.finish().success();
}
