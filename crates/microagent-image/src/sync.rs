//! Files on their way to stable storage while they are still being written or read.

use std::fs::File;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use microagent_host::fs::let_go;

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

/// Lets go of what was gone through in a file: it is on its way to stable storage at once, and out of memory when it
/// is there. A gigabyte of an image then leaves what the host keeps in memory alone; and where the host is a virtual
/// machine itself, memory that was used before is ten times faster than such that its own host must first give it.
#[derive(Default)]
pub(crate) struct Behind {
    /// Up to where the way to stable storage has begun.
    begun: u64,
    /// Up to where memory was let go.
    gone: u64,
}

impl Behind {
    /// How much is let go at once.
    pub(crate) const STEP: u64 = 8 << 20;
    /// What is on its way meanwhile.
    const LAG: u64 = 32 << 20;

    /// All before `offset` was gone through.
    pub(crate) fn reached(&mut self, file: &File, offset: u64) {
        if offset >= self.begun + Self::STEP {
            let_go(file, self.begun, offset - self.begun);
            self.begun = offset;
            let gone = offset.saturating_sub(Self::LAG);
            if gone > self.gone {
                let_go(file, self.gone, gone - self.gone);
                self.gone = gone;
            }
        }
    }

    /// Nothing more comes.
    pub(crate) fn finish(&mut self, file: &File, end: u64) {
        let_go(file, self.gone, end.saturating_sub(self.gone));
        self.gone = self.gone.max(end);
        self.begun = self.begun.max(end);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn what_was_let_go_is_still_there() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..(20 << 20) + 7).map(|at| (at / 5 % 251) as u8).collect();
        let (mut behind, mut end) = (Behind::default(), 0);
        for part in content.chunks(1 << 20) {
            file.write_all(part).unwrap();
            end += part.len() as u64;
            behind.reached(&file, end);
        }
        behind.finish(&file, end);
        file.rewind().unwrap();
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert!(read == content);
    }
}
