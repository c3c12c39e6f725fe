//! `-t` is a real terminal.

use rustix::process::Signal;
use testkit::Sandbox;

use crate::sandbox;

#[test]
fn the_guest_sees_the_size_and_its_changes() {
    let sandbox = sandbox();
    let mut terminal = sandbox
        .run(["-it", Sandbox::BUSYBOX, "sh"])
        .on_terminal(33, 101);
    terminal.type_text("stty size; echo re''ady\n");
    let screen = terminal.wait_for("ready");
    assert!(screen.contains("33 101"), "{screen:?}");

    terminal.resize(44, 122);
    terminal.type_text("while ! stty size | grep -q '44 122'; do :; done; echo res''ized\n");
    terminal.wait_for("resized");

    terminal.type_text("tty; exit 3\n");
    terminal.wait_for("/dev/pts/");
    assert_eq!(terminal.finish(), Some(3));
    assert!(terminal.is_restored());
    sandbox.leftovers().none(&[]);
}

#[test]
fn ctrl_c_interrupts_what_runs_in_the_guest_only() {
    let sandbox = sandbox();
    let mut terminal = sandbox
        .run(["-it", Sandbox::BUSYBOX, "sh"])
        .on_terminal(24, 80);
    terminal.type_text("echo be''gun; sleep 600\n");
    terminal.wait_for("begun");
    terminal.type_text("\x03");
    // Whoever types ahead of the prompt loses it: the interrupt flushes the terminal's input.
    terminal.wait_for("^C");
    terminal.wait_for_last("# ");
    terminal.type_text("echo code $?\n");
    terminal.wait_for("code 130");
    terminal.type_text("\x04");
    assert_eq!(terminal.finish(), Some(0));
    assert!(terminal.is_restored());
}

#[test]
fn the_terminal_is_restored_when_we_are_told_to_end() {
    let sandbox = sandbox();
    let mut terminal = sandbox
        .run([
            "-it",
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            "echo be''gun; exec sleep 600",
        ])
        .on_terminal(24, 80);
    terminal.wait_for("begun");
    assert!(!terminal.is_restored());
    terminal.signal(Signal::TERM);
    terminal.signal(Signal::TERM);
    let code = terminal.finish();
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    assert!(terminal.is_restored());
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_terminal_is_refused_where_there_is_none() {
    let sandbox = sandbox();
    let finished = sandbox.run(["-it", Sandbox::BUSYBOX, "true"]).run();
    assert_ne!(finished.code(), 0);
    assert!(finished.err().contains("terminal"), "{finished}");
}
