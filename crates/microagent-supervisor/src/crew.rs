//! Threads that are counted, so that an end can wait for them, for a while. A few of those that are done
//! stay for what comes next: making a thread takes longer than what most of them do.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Enough for JSON of the protocol's nesting; the pumps need far less.
const STACK: usize = 256 * 1024;

/// How many threads without work stay.
const MOST_IDLE: usize = 2;

/// A lock whose data stays usable when a thread died holding it: no critical
/// section here leaves data half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Work = Box<dyn FnOnce() + Send>;

/// A crew of threads.
#[derive(Clone, Debug)]
pub(crate) struct Crew {
    shared: Arc<Shared>,
    /// When the last of these goes, so do the idle threads.
    _open: Arc<Open>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is work, or there never will be any more.
    work: Condvar,
    /// A thread's work is done.
    done: Condvar,
}

#[derive(Default)]
struct State {
    /// How much work is under way.
    busy: usize,
    /// Threads that wait for work.
    idle: usize,
    /// Work for them, never more than there are of them.
    waiting: VecDeque<Work>,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("busy", &self.busy)
            .field("idle", &self.idle)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.0.state).closed = true;
        self.0.work.notify_all();
    }
}

impl Default for Crew {
    fn default() -> Self {
        let shared = Arc::<Shared>::default();
        Self {
            _open: Arc::new(Open(Arc::clone(&shared))),
            shared,
        }
    }
}

impl Crew {
    /// Runs `work` on a thread of the crew, which is called `name` if it is made for it.
    pub(crate) fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut state = lock(&self.shared.state);
        state.busy += 1;
        if state.idle > state.waiting.len() {
            state.waiting.push_back(Box::new(work));
            drop(state);
            self.shared.work.notify_one();
            return Ok(());
        }
        drop(state);
        let shared = Arc::clone(&self.shared);
        thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || shared.serve(Box::new(work)))
            .inspect_err(|_| self.shared.finish())?;
        Ok(())
    }

    /// Waits until no work is left, at most `limit`; says whether none is.
    pub(crate) fn wait_idle(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = lock(&self.shared.state);
        while state.busy > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .shared
                .done
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

impl Shared {
    fn serve(&self, first: Work) {
        let mut work = Some(first);
        while let Some(now) = work.take() {
            // A panic has told of itself; it ends its own work, and whoever waits must not wait for ever.
            let _ = catch_unwind(AssertUnwindSafe(now));
            self.finish();
            work = self.next();
        }
    }

    fn finish(&self) {
        lock(&self.state).busy -= 1;
        self.done.notify_all();
    }

    /// What comes next for a thread; `None` if it is not needed any more.
    fn next(&self) -> Option<Work> {
        let mut state = lock(&self.state);
        if state.idle >= MOST_IDLE {
            return None;
        }
        state.idle += 1;
        loop {
            if let Some(work) = state.waiting.pop_front() {
                state.idle -= 1;
                return Some(work);
            }
            if state.closed {
                state.idle -= 1;
                return None;
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn work_is_done_at_the_same_time_and_waited_for() {
        let crew = Crew::default();
        assert!(crew.wait_idle(Duration::ZERO));
        let (go, gate) = channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (told, tells) = channel();
        for _ in 0..3 {
            for number in 0..8 {
                let (gate, told) = (Arc::clone(&gate), told.clone());
                crew.spawn("test", move || {
                    told.send(number).unwrap();
                    gate.lock().unwrap().recv().unwrap();
                })
                .unwrap();
            }
            // All of them run before any may end.
            let mut running: Vec<_> = (0..8).map(|_| tells.recv_timeout(LONG).unwrap()).collect();
            running.sort_unstable();
            assert_eq!(running, [0, 1, 2, 3, 4, 5, 6, 7]);
            assert!(!crew.wait_idle(Duration::ZERO));
            for _ in 0..8 {
                go.send(()).unwrap();
            }
            assert!(crew.wait_idle(LONG));
        }
        assert!(lock(&crew.shared.state).idle <= MOST_IDLE);
    }

    #[test]
    fn a_panic_is_the_end_of_its_own_work_alone() {
        let crew = Crew::default();
        for _ in 0..3 {
            crew.spawn("test", || panic!("as it should")).unwrap();
        }
        assert!(crew.wait_idle(LONG));
        let (told, tells) = channel();
        crew.spawn("test", move || told.send(()).unwrap()).unwrap();
        tells.recv_timeout(LONG).unwrap();
    }

    #[test]
    fn idle_threads_go_with_the_crew() {
        let crew = Crew::default();
        crew.spawn("test", || ()).unwrap();
        assert!(crew.wait_idle(LONG));
        let shared = Arc::downgrade(&crew.shared);
        drop(crew);
        let begun = Instant::now();
        while shared.strong_count() > 0 {
            assert!(begun.elapsed() < LONG);
            thread::yield_now();
        }
    }
}
