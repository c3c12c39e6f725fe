//! Threads that are counted, so that an end can wait for them, for a while.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Enough for JSON of the protocol's nesting; the pumps need far less.
const STACK: usize = 256 * 1024;

/// A lock whose data stays usable when a thread died holding it: no critical
/// section here leaves data half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A crew of threads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Crew {
    shared: Arc<(Mutex<usize>, Condvar)>,
}

impl Crew {
    /// Runs `work` on a thread of the crew.
    pub(crate) fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let member = Member::join(&self.shared);
        thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let _member = member;
                work();
            })?;
        Ok(())
    }

    /// Waits until no thread is left, at most `limit`; says whether none is.
    pub(crate) fn wait_idle(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let (count, changed) = &*self.shared;
        let mut count = lock(count);
        while *count > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            count = changed
                .wait_timeout(count, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

struct Member(Arc<(Mutex<usize>, Condvar)>);

impl Member {
    fn join(shared: &Arc<(Mutex<usize>, Condvar)>) -> Self {
        *lock(&shared.0) += 1;
        Self(Arc::clone(shared))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        *lock(&self.0.0) -= 1;
        self.0.1.notify_all();
    }
}
