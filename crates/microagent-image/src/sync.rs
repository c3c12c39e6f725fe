//! Files on their way to stable storage while they are still being written.

use std::fs::File;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

/// Syncs one file on a thread of its own: a sync that begins only at the end would take as long as everything
/// before it. [`finish`](Self::finish) must be asked for the outcome: the host reports a write error only once.
pub(crate) struct Syncer {
    file: File,
    thread: Option<Thread>,
    unsynced: usize,
}

struct Thread {
    requests: SyncSender<()>,
    handle: JoinHandle<io::Result<()>>,
}

impl Syncer {
    const EVERY: usize = 32 << 20;

    /// For what is written to `file` from now on; a small file never costs a thread.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        Ok(Self {
            file: file.try_clone()?,
            thread: None,
            unsynced: 0,
        })
    }

    /// So many bytes more were written.
    pub(crate) fn wrote(&mut self, bytes: usize) -> io::Result<()> {
        self.unsynced += bytes;
        if self.unsynced >= Self::EVERY {
            self.request()?;
        }
        Ok(())
    }

    /// Has what was written so far synced, without waiting for that.
    pub(crate) fn request(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => Thread::start(self.file.try_clone()?)?,
        };
        // Full: a sync is waiting to begin and will cover this too. Gone: `finish` tells its error.
        let _ = thread.requests.try_send(());
        self.thread = Some(thread);
        Ok(())
    }

    /// Waits until all that was written is on stable storage.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let Some(Thread { requests, handle }) = self.thread.take() else {
            return self.file.sync_data();
        };
        drop(requests);
        handle
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the syncing thread panicked")))?;
        if self.unsynced > 0 {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

impl Thread {
    fn start(file: File) -> io::Result<Self> {
        let (requests, receiver) = sync_channel(1);
        let handle = Builder::new()
            .name("sync".to_owned())
            .spawn(move || receiver.iter().try_for_each(|()| file.sync_data()))?;
        Ok(Self { requests, handle })
    }
}
