//! The guest agent: PID 1 inside every microVM. It makes the root, serves
//! sessions, and ends the machine. It knows the guest protocol and Linux; it
//! must not know images, workspaces, or which VMM it runs on.

mod boot;
mod bridge;
mod cgroup;
mod clock;
mod console;
mod control;
mod copy;
mod error;
mod exec;
mod measure;
mod power;
mod reaper;
mod vsock;

use std::{
    io::{self, Write as _},
    process::{ExitCode, id},
    sync::{Arc, mpsc},
    thread,
};

use microagent_protocol::guest::GuestMessage;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{
    boot::Failure,
    error::{Context, Error},
};

/// The agent's threads are shallow; the deepest thing they do is read bounded JSON.
const THREAD_STACK: usize = 128 * 1024;
/// Open files of the agent and the hard limit of what it starts.
const MOST_FILES: u64 = 512 * 1024;

fn main() -> ExitCode {
    let kernel_ms = clock::uptime_ms();
    if id() != 1 {
        return beside_the_agent();
    }
    power::end_on_panic();
    reaper::hold_signals();
    match run(kernel_ms) {
        Ok(never) => match never {},
        Err(failure) => power::give_up(&failure),
    }
}

/// What this program does when it is not the agent itself.
fn beside_the_agent() -> ExitCode {
    let arguments = std::env::args_os().skip(1);
    let arguments = arguments.map(|it| it.to_string_lossy().into_owned());
    match measure::run(arguments) {
        Some(Ok(())) => return ExitCode::SUCCESS,
        // There is nowhere else to tell it.
        Some(Err(error)) => drop(writeln!(io::stderr(), "{error}")),
        None => console::say(format_args!(
            "this is the guest agent; it runs as PID 1 of a microVM"
        )),
    }
    ExitCode::FAILURE
}

fn run(kernel_ms: u64) -> Result<std::convert::Infallible, Failure> {
    let (sender, events) = mpsc::channel();
    let failed = |stage| move |error| Failure { stage, error };
    let mut booted = boot::boot(kernel_ms, sender.clone(), &events)?;
    protect().map_err(failed("protect the agent"))?;
    // Neither needs the other, and each waits for the kernel.
    let hostname = booted.config.hostname.clone();
    let (server, applied) = thread::scope(|scope| {
        let server = thread::Builder::new()
            .name("server".to_owned())
            .stack_size(THREAD_STACK)
            .spawn_scoped(scope, || exec::Server::start(&hostname))
            .context("start a thread");
        let applied = booted.apply();
        // A panic ends the machine.
        let server = server.and_then(|thread| thread.join().unwrap_or(Err(Error::HostGone)));
        (server, applied)
    });
    let server = server.map_err(failed("serve sessions"))?;
    applied?;
    let processes = Arc::clone(server.processes());
    reaper::start(Arc::clone(&processes), sender).map_err(failed("start the reaper"))?;
    bridge::serve(&booted.config.mediation).map_err(failed("listen for mediation"))?;
    let ready = GuestMessage::Ready {
        uptime_ms: clock::uptime_ms(),
    };
    control::send(&ready).map_err(failed("report to the host"))?;
    booted.old_root.empty_later(booted.modules);
    boot::timer::stop_unused();
    power::wait_and_end(
        &events,
        &power::Machine {
            processes: &processes,
            group: server.group(),
            sessions: &|| server.sessions(),
            copies: server.copies(),
            disks: &booted.disks,
        },
    )
}

/// Keeps the agent able to report, whatever its workloads do. The kernel itself spares the first
/// process when memory runs out.
fn protect() -> Result<(), Error> {
    let limit = Some(MOST_FILES);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit,
            maximum: limit,
        },
    )
    .context("raise the limit of open files")?;
    // One arena is enough for small threads, and each costs memory.
    // SAFETY: no pointers; it only sets a parameter of the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    Ok(())
}
