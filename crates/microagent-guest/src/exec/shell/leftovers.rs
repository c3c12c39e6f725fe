//! What background jobs write after their line is over: read and dropped, so that they
//! neither block nor die of it.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::{
    event::{PollFd, PollFlags},
    io::{Errno, read},
};

use crate::{THREAD_STACK, console, exec::pump::wait};

/// The most lines whose jobs are listened to. A job beyond that gets `SIGPIPE` when it writes.
const MOST_LINES: usize = 32;

/// The lines with something left of them.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(Arc<AtomicUsize>);

impl Leftovers {
    /// Reads `outputs` to their end, on a thread of their own if that is not there yet.
    pub(crate) fn drain(&self, mut outputs: Vec<OwnedFd>) {
        outputs.retain(is_open);
        if outputs.is_empty() {
            return;
        }
        let place = Place::take(&self.0);
        if self.0.load(Ordering::Acquire) > MOST_LINES {
            return;
        }
        let started = thread::Builder::new()
            .name("leftovers".to_owned())
            .stack_size(THREAD_STACK)
            .spawn(move || {
                let _place = place;
                while !outputs.is_empty() {
                    let mut fds: Vec<_> = outputs
                        .iter()
                        .map(|fd| PollFd::new(fd, PollFlags::IN))
                        .collect();
                    if wait(&mut fds, None).is_err() {
                        return;
                    }
                    drop(fds);
                    outputs.retain(is_open);
                }
            });
        if let Err(error) = started {
            console::say(format_args!("listen to a background job: {error}"));
        }
    }
}

/// Drops some of what is there to read; false at the end.
fn is_open(output: &OwnedFd) -> bool {
    let mut buffer = [0_u8; 4096];
    match read(output, &mut buffer) {
        Ok(count) => count > 0,
        Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
    }
}

struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
