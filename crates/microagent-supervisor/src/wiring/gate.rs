//! Where connections into the guest wait until it can take them.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use crate::crew::lock;

#[derive(Debug, Default)]
enum State {
    #[default]
    Waiting,
    /// The vsock leads to a guest that is ready.
    Open(Way),
    /// There is none, and will be none.
    Closed,
}

/// The way to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) vsock: PathBuf,
    /// Whether each direction of its connections ends on its own.
    pub(crate) half_close: bool,
}

/// Opened once, closed once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<(Mutex<State>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self, vsock: &Path, half_close: bool) {
        let (state, changed) = &*self.0;
        let mut state = lock(state);
        if matches!(*state, State::Waiting) {
            *state = State::Open(Way {
                vsock: vsock.to_owned(),
                half_close,
            });
            changed.notify_all();
        }
    }

    pub(crate) fn close(&self) {
        let (state, changed) = &*self.0;
        *lock(state) = State::Closed;
        changed.notify_all();
    }

    /// The way to the guest. Waits for it as long as the boot may take, which is bounded: a
    /// machine that does not boot ends, and its gate is closed.
    pub(crate) fn pass(&self) -> Option<Way> {
        let (state, changed) = &*self.0;
        let mut state = lock(state);
        loop {
            match &*state {
                State::Open(way) => return Some(way.clone()),
                State::Closed => return None,
                State::Waiting => {
                    state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_let_in_or_turned_away() {
        let way = Way {
            vsock: "/v".into(),
            half_close: true,
        };
        for (open, expected) in [(true, Some(way)), (false, None)] {
            let gate = Gate::default();
            let waiting = std::thread::spawn({
                let gate = gate.clone();
                move || gate.pass()
            });
            if open {
                gate.open(Path::new("/v"), true);
            } else {
                gate.close();
            }
            assert_eq!(waiting.join().unwrap(), expected);
            gate.close();
            gate.open(Path::new("/w"), true);
            assert_eq!(gate.pass(), None, "closed is closed");
        }
    }
}
