//! Signals that reach this process, as a container user expects: the first goes to the command,
//! a second Ctrl-C or SIGTERM tears everything down.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use microagent::{Error, RunController};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH},
    iterator::Signals,
};

use crate::terminal;

/// The Linux signal of a terminal that hung up.
pub(crate) const HANG_UP: u8 = SIGHUP as u8;

/// Whether a signal tore the run down.
#[derive(Clone, Debug, Default)]
pub(crate) struct TornDown(Arc<AtomicI32>);

impl TornDown {
    /// The signal that did.
    pub(crate) fn signal(&self) -> Option<u8> {
        u8::try_from(self.0.load(Ordering::Acquire))
            .ok()
            .filter(|signal| *signal != 0)
    }
}

/// The exit code of something that `signal` ended.
pub(crate) fn exit_code(signal: u8) -> u8 {
    128_u8.saturating_add(signal)
}

/// Lets go of a terminal when this process is told to end; its sizes are handed on.
pub(crate) fn detach(controller: RunController) -> Result<TornDown, Error> {
    let mut signals = handle(&[SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH])?;
    let told = TornDown::default();
    let shared = told.clone();
    thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGWINCH {
                resize(&controller);
            } else {
                shared.0.store(signal, Ordering::Release);
                controller.detach();
            }
        }
    });
    Ok(told)
}

fn handle(wanted: &[i32]) -> Result<Signals, Error> {
    Signals::new(wanted).map_err(|source| Error::Io {
        doing: "handle",
        path: "signals".into(),
        source,
    })
}

fn resize(controller: &RunController) {
    if let Some(size) = terminal::size() {
        controller.resize(size);
    }
}

/// Hands signals on to the run from now on.
pub(crate) fn forward(controller: RunController) -> Result<TornDown, Error> {
    let wanted = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH];
    let mut signals = handle(&wanted)?;
    let torn_down = TornDown::default();
    let shared = torn_down.clone();
    thread::spawn(move || {
        let mut ends = 0;
        for signal in signals.forever() {
            if signal == SIGWINCH {
                resize(&controller);
                continue;
            }
            if matches!(signal, SIGINT | SIGTERM) {
                ends += 1;
            }
            if ends > 1 && matches!(signal, SIGINT | SIGTERM) {
                shared.0.store(signal, Ordering::Release);
                controller.kill();
            } else if let Ok(signal) = u8::try_from(signal) {
                controller.signal(signal);
            }
        }
    });
    Ok(torn_down)
}
