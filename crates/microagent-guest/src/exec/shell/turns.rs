//! Something that many want and one at a time has, in the order they came.

use std::{
    collections::VecDeque,
    ops::{Deref, DerefMut},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A value that is handed round.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    waiting: Mutex<Waiting>,
    next: Condvar,
    value: Mutex<T>,
}

#[derive(Debug, Default)]
struct Waiting {
    tickets: u64,
    /// The first one has its turn.
    queue: VecDeque<u64>,
}

/// A poisoned lock only means that a session's thread died between two steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Turns<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            waiting: Mutex::default(),
            next: Condvar::new(),
            value: Mutex::new(value),
        }
    }

    /// The value, when everybody who came before is done; `None` if that takes longer than
    /// `limit`.
    pub(crate) fn take(&self, limit: Option<Duration>) -> Option<Turn<'_, T>> {
        // A limit beyond the clock's end is none.
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut waiting = lock(&self.waiting);
        let ticket = waiting.tickets;
        waiting.tickets += 1;
        waiting.queue.push_back(ticket);
        while waiting.queue.front() != Some(&ticket) {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            waiting = match left {
                Some(left) if left.is_zero() => {
                    waiting.queue.retain(|waiting| *waiting != ticket);
                    return None;
                }
                Some(left) => {
                    self.next
                        .wait_timeout(waiting, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self
                    .next
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
        drop(waiting);
        Some(Turn {
            turns: self,
            value: lock(&self.value),
        })
    }
}

/// The value, until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a, T> {
    turns: &'a Turns<T>,
    value: MutexGuard<'a, T>,
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        // The next one waits for the value's own lock the moment longer that this takes.
        lock(&self.turns.waiting).queue.pop_front();
        self.turns.next.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn turns_come_in_order_and_one_at_a_time() {
        let turns = Arc::new(Turns::new(Vec::new()));
        let first = turns.take(None).unwrap();
        let mut waiting = Vec::new();
        for number in 0..20 {
            let other = Arc::clone(&turns);
            waiting.push(thread::spawn(move || {
                other.take(None).unwrap().push(number);
            }));
            while lock(&turns.waiting).queue.len() < number + 2 {
                thread::yield_now();
            }
        }
        drop(first);
        waiting
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(*turns.take(None).unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn who_gives_up_holds_nobody_up() {
        let turns = Turns::new(());
        let first = turns.take(Some(Duration::ZERO)).unwrap();
        assert!(turns.take(Some(Duration::from_millis(5))).is_none());
        drop(first);
        assert!(turns.take(Some(Duration::from_secs(5))).is_some());
    }
}
