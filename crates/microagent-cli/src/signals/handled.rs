//! A thread of this process waits for its signals.

use std::{sync::atomic::Ordering, thread};

use microagent::{Error, RunController, SuperviseStop};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH},
    iterator::Signals,
};

use super::TornDown;
use crate::terminal;

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

/// Asks for the end of a supervision when this process is asked to end.
pub(crate) fn on_end(stop: SuperviseStop) -> Result<(), Error> {
    let mut signals = handle(&[SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        for _ in signals.forever() {
            stop.ask();
        }
    });
    Ok(())
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
