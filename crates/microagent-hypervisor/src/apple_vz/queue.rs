//! Objects that belong to a serial queue.

use std::{
    mem::ManuallyDrop,
    sync::{Arc, mpsc},
    time::Duration,
};

use dispatch2::{DispatchQueue, DispatchRetained};
use objc2::rc::autoreleasepool;

/// A value that nothing but work on one serial queue looks at, from when it is put here until it is dropped.
pub(super) struct OnQueue<T: 'static> {
    queue: DispatchRetained<DispatchQueue>,
    value: ManuallyDrop<Confined<T>>,
}

/// A value on its way to its queue.
pub(super) struct Confined<T>(T);

// SAFETY: whoever has one can only put it into an `OnQueue` (the field is private to this module), which hands
// references to it to work on its serial queue alone and drops it there: one thread at a time, in an order.
unsafe impl<T> Send for Confined<T> {}
// SAFETY: as above; a shared reference to it gives no other thread a reference to what is in it.
unsafe impl<T> Sync for Confined<T> {}

impl<T> Confined<T> {
    /// To be called on the queue that the value is for, or before anybody else has the value.
    pub(super) const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T: 'static> OnQueue<T> {
    pub(super) fn new(queue: DispatchRetained<DispatchQueue>, value: Confined<T>) -> Self {
        Self {
            queue,
            value: ManuallyDrop::new(value),
        }
    }

    /// Has the queue do this, and does not wait for it.
    pub(super) fn tell(self: &Arc<Self>, work: impl FnOnce(&T) + Send + 'static) {
        let this = Arc::clone(self);
        self.queue
            .exec_async(move || autoreleasepool(|_| work(&this.value.0)));
    }

    /// The same, and waits at most `limit` for an answer; `None` if there was none in time. What the queue does
    /// may pass the sender on to what answers later.
    pub(super) fn ask<A: Send + 'static>(
        self: &Arc<Self>,
        limit: Duration,
        work: impl FnOnce(&T, Answer<A>) + Send + 'static,
    ) -> Option<A> {
        // One answer has room without anybody waiting for it: the queue never blocks here.
        let (answer, answered) = mpsc::sync_channel(1);
        self.tell(move |value| work(value, Answer(answer)));
        answered.recv_timeout(limit).ok()
    }
}

impl<T: 'static> Drop for OnQueue<T> {
    fn drop(&mut self) {
        // SAFETY: taken once, as this is dropped once, and not touched afterwards.
        let value = unsafe { ManuallyDrop::take(&mut self.value) };
        self.queue
            .exec_async(move || autoreleasepool(|_| drop(value)));
    }
}

/// Where one answer goes.
pub(super) struct Answer<A>(mpsc::SyncSender<A>);

impl<A> Answer<A> {
    /// Never waits. Gives nothing back: whoever asked may have lost patience, and then it is dropped.
    pub(super) fn give(&self, answer: A) {
        let _ = self.0.try_send(answer);
    }
}
