//! Patience with processes that write in small pieces.

/// Lets a process that writes in small pieces go on instead of preempting it at
/// each, so that a frame carries what has gathered. An idle processor still
/// passes every piece on at once. For a process that writes a lot, as it takes its time; ends when
/// dropped, as the next process would inherit it.
pub(super) struct FullPipes;

impl FullPipes {
    pub(super) fn awaited() -> Self {
        schedule(libc::SCHED_BATCH);
        Self
    }
}

impl Drop for FullPipes {
    fn drop(&mut self) {
        schedule(libc::SCHED_OTHER);
    }
}

/// Makes this thread one of `policy`. A kernel that refuses only makes bulk output slower.
fn schedule(policy: i32) {
    // SAFETY: the parameter lives through the call; 0 is the calling thread.
    unsafe {
        let none: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, policy, &raw const none);
    }
}
