//! The end: every path leads to a machine that is off, as clean as it can be.

use std::{
    panic,
    sync::mpsc::{Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use microagent_protocol::guest::GuestMessage;
use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, reboot},
};

use crate::{
    boot::{Failure, WritableDisks},
    cgroup::Workloads,
    console,
    control::{self, Event},
    copy::Copies,
    reaper::Processes,
};

/// How long a workload may take when somebody inside asked for power-off.
const INSIDE_GRACE: Duration = Duration::from_secs(2);
/// How long a session may take to hand over its last output.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(3);

/// What the end of the machine needs to know of it.
pub(crate) struct Machine<'a> {
    /// The processes.
    pub(crate) processes: &'a Processes,
    /// Their control group.
    pub(crate) group: Option<&'a Workloads>,
    /// How many sessions are open.
    pub(crate) sessions: &'a dyn Fn() -> usize,
    /// Copies under way.
    pub(crate) copies: &'a Copies,
    /// The disks to leave clean.
    pub(crate) disks: &'a WritableDisks,
}

/// Waits until somebody wants the machine to end, and ends it.
pub(crate) fn wait_and_end(events: &Receiver<Event>, machine: &Machine<'_>) -> ! {
    let (requested, grace) = loop {
        match events.recv() {
            Ok(Event::Shutdown { grace }) => break (true, grace),
            Ok(Event::PowerSignal) => break (false, INSIDE_GRACE),
            Ok(Event::HostGone(error)) => {
                console::say(format_args!("powering off: {error}"));
                break (false, Duration::ZERO);
            }
            // It is configured already.
            Ok(Event::Configure(_)) => {}
            Err(_) => break (false, Duration::ZERO),
        }
    };
    if !requested {
        // Before any process dies of it, so that nobody takes its end for a failure.
        let announcement = GuestMessage::GoingDown {
            requested,
            clean: false,
        };
        // If nobody hears it, it does not matter.
        let _ = control::send(&announcement);
    }
    end_workload(events, machine, grace);
    machine.copies.end();
    let clean = kill_everything(machine);
    rustix::fs::sync();
    let clean = match machine.disks.close() {
        Ok(()) => clean,
        Err(error) => {
            console::say(format_args!("{error}"));
            false
        }
    };
    control::send_last(&GuestMessage::GoingDown { requested, clean });
    power_off()
}

/// Asks the workload to end, and gives it and its session the time to.
fn end_workload(events: &Receiver<Event>, machine: &Machine<'_>, grace: Duration) {
    let Some(workload) = machine.processes.workload() else {
        return;
    };
    if grace.is_zero() {
        return;
    }
    let mut deadline = Instant::now() + grace;
    let signal = workload.stop_signal;
    if !machine
        .processes
        .signal_by(deadline, &workload.child, signal)
    {
        // What hangs is killed with everything else.
        console::say(format_args!("a process is still being started"));
        return;
    }
    while workload.child.exit.status().is_none() {
        let pause =
            Duration::from_millis(5).min(deadline.saturating_duration_since(Instant::now()));
        if pause.is_zero() {
            return;
        }
        match events.recv_timeout(pause) {
            // Changed its mind: shorter, or longer.
            Ok(Event::Shutdown { grace }) => deadline = Instant::now() + grace,
            Ok(Event::HostGone(_)) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
        }
    }
    let deadline = Instant::now() + DRAIN_LIMIT.min(grace);
    while (machine.sessions)() > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Kills every process but this one; the answer is whether all are gone.
fn kill_everything(machine: &Machine<'_>) -> bool {
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        if let Some(group) = machine.group {
            group.kill();
        }
        // SAFETY: no pointers. It reaches every process but PID 1, which this is.
        unsafe { libc::kill(-1, libc::SIGKILL) };
        if !machine.processes.reap() {
            return true;
        }
        if Instant::now() >= deadline {
            console::say(format_args!("some processes do not die"));
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Ends a boot that cannot go on, with a word to whoever can hear it.
pub(crate) fn give_up(failure: &Failure) -> ! {
    console::say(format_args!(
        "cannot boot: {}: {}",
        failure.stage, failure.error
    ));
    control::send_last(&GuestMessage::BootFailed {
        stage: failure.stage.to_owned(),
        message: failure.error.to_string(),
    });
    rustix::fs::sync();
    power_off()
}

/// A defect of the agent ends the machine too; nothing may hang.
pub(crate) fn end_on_panic() {
    panic::set_hook(Box::new(|info| {
        console::say(format_args!("the guest agent failed: {info}"));
        rustix::fs::sync();
        power_off()
    }));
}

/// Ends the machine. The host says by `reboot=` on the kernel command line
/// that a restart ends it (the VMM exits instead); otherwise it is powered off.
fn power_off() -> ! {
    let command = if restart_ends_machine() {
        RebootCommand::Restart
    } else {
        RebootCommand::PowerOff
    };
    loop {
        for command in [command, RebootCommand::Restart] {
            // It returns only if it failed, and then the other way is all that is left.
            let _ = reboot(command);
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn restart_ends_machine() -> bool {
    let read = || std::fs::read_to_string("/proc/cmdline");
    let line = read().or_else(|_| {
        // The boot did not come this far, or somebody inside unmounted it.
        let _ = std::fs::create_dir("/proc");
        let _ = mount("proc", "/proc", "proc", MountFlags::empty(), None);
        read()
    });
    line.is_ok_and(|line| {
        line.split_ascii_whitespace()
            .any(|word| word.starts_with("reboot="))
    })
}
