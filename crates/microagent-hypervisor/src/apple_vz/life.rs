//! Whether a machine lives, how it ended, and who waits for that.
//!
//! The framework tells its delegate, on a queue that must not be kept waiting; threads wait here, and whoever
//! polls has a descriptor.

use std::{
    io::{self, PipeReader, PipeWriter, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::Exit;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The guest powered it off.
    ByGuest,
    /// It was stopped from outside.
    Killed,
    /// It failed, in the framework's words.
    Failed(String),
}

#[derive(Debug, Default)]
struct State {
    end: Option<End>,
    /// Dropped at the end, which is what the reader sees.
    alarm: Option<PipeWriter>,
}

/// The life of one machine.
#[derive(Debug)]
pub(super) struct Life {
    state: Mutex<State>,
    ended: Condvar,
    exit: PipeReader,
}

impl Life {
    pub(super) fn new() -> io::Result<Self> {
        let (exit, alarm) = io::pipe()?;
        Ok(Self {
            state: Mutex::new(State {
                end: None,
                alarm: Some(alarm),
            }),
            ended: Condvar::new(),
            exit,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It ended. Whoever tells first is believed.
    pub(super) fn end(&self, end: End) {
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        state.end = Some(end);
        if let Some(mut alarm) = state.alarm.take() {
            // A byte is readable everywhere, an end of file with some calls only. The pipe is empty.
            let _ = alarm.write_all(&[1]);
        }
        drop(state);
        self.ended.notify_all();
    }

    /// Readable once it ended.
    pub(super) fn exit_fd(&self) -> BorrowedFd<'_> {
        self.exit.as_fd()
    }

    /// How it ended, so far.
    pub(super) fn how(&self) -> Option<End> {
        self.state().end.clone()
    }

    /// Waits at most `limit` for its end.
    pub(super) fn wait(&self, limit: Duration) -> Option<Exit> {
        let deadline = Instant::now().checked_add(limit);
        let mut state = self.state();
        while state.end.is_none() {
            state = match deadline {
                // Longer than clocks count.
                None => self
                    .ended
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.ended
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        // As a monitor's process would have ended.
        state.end.as_ref().map(|end| match end {
            End::ByGuest => Exit::Code(0),
            End::Killed => Exit::Signal(9),
            End::Failed(_) => Exit::Code(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use microagent_host::process::readable_by;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn all_who_wait_learn_of_the_end_and_the_first_word_counts() {
        for (end, exit) in [
            (End::ByGuest, Exit::Code(0)),
            (End::Killed, Exit::Signal(9)),
            (End::Failed("it broke".to_owned()), Exit::Code(1)),
        ] {
            let life = Arc::new(Life::new().unwrap());
            assert_eq!(life.wait(Duration::ZERO), None);
            assert!(!readable_by(&life.exit_fd(), Instant::now()).unwrap());
            let waiting: Vec<_> = [SOON, Duration::MAX]
                .map(|limit| {
                    let life = Arc::clone(&life);
                    thread::spawn(move || life.wait(limit))
                })
                .into();
            life.end(end.clone());
            life.end(End::Killed);
            for waiter in waiting {
                assert_eq!(waiter.join().unwrap(), Some(exit));
            }
            assert!(readable_by(&life.exit_fd(), Instant::now() + SOON).unwrap());
            assert_eq!(life.wait(Duration::ZERO), Some(exit));
            assert_eq!(life.how(), Some(end));
        }
    }

    #[test]
    fn a_wait_has_its_limit() {
        let life = Life::new().unwrap();
        let start = Instant::now();
        assert_eq!(life.wait(Duration::from_millis(20)), None);
        assert!(start.elapsed() >= Duration::from_millis(20));
    }
}
