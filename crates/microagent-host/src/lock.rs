//! Advisory locks on whole files, between processes and between the threads of one.
#![expect(clippy::disallowed_methods, reason = "all others take a lock here")]

use std::{
    fs::{File, TryLockError},
    io, thread,
    time::{Duration, Instant},
};

/// How often a lock is tried again that is only waited for so long.
const AGAIN: Duration = Duration::from_millis(5);

/// With whom a lock can be held at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// With nobody.
    Exclusive,
    /// With others who share it.
    Shared,
}

/// A lock on a file. It goes when the value is dropped, and with the process, however that ends.
///
/// The file is unlocked then and not just closed: a program that another thread starts has it open, too,
/// until its `exec`, and a lock lives for as long as anybody has the file that it was taken through.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes it, unless somebody has one that is in its way.
    ///
    /// # Errors
    /// When the file system has no locks.
    pub fn now(file: File, sharing: Sharing) -> io::Result<Option<Self>> {
        Ok(attempt(&file, sharing)?.then(|| Self(file)))
    }

    /// Takes it. Where others are in its way it says so, once, and waits for them.
    ///
    /// # Errors
    /// When the file system has no locks.
    pub fn wait(file: File, sharing: Sharing, waiting: impl FnOnce()) -> io::Result<Self> {
        if !attempt(&file, sharing)? {
            waiting();
            while let Err(error) = match sharing {
                Sharing::Exclusive => file.lock(),
                Sharing::Shared => file.lock_shared(),
            } {
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
        Ok(Self(file))
    }

    /// The same, but waits no longer than `limit`: `None` then.
    ///
    /// # Errors
    /// When the file system has no locks.
    pub fn within(
        file: File,
        sharing: Sharing,
        limit: Duration,
        waiting: impl FnOnce(),
    ) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + limit;
        let mut waiting = Some(waiting);
        while !attempt(&file, sharing)? {
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(AGAIN);
        }
        Ok(Some(Self(file)))
    }

    /// What is locked.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Where this fails, closing the file does it.
        let _closed_next = self.0.unlock();
    }
}

fn attempt(file: &File, sharing: Sharing) -> io::Result<bool> {
    loop {
        let tried = match sharing {
            Sharing::Exclusive => file.try_lock(),
            Sharing::Shared => file.try_lock_shared(),
        };
        match tried {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::mpsc};

    use super::{Sharing::*, *};

    fn file(at: &Path) -> File {
        let options = &mut File::options();
        let options = options.read(true).append(true).create(true);
        options.open(at).unwrap()
    }

    #[test]
    fn what_is_shared_and_what_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let open = || file(&directory.path().join("lock"));
        let alone = Lock::now(open(), Exclusive).unwrap().unwrap();
        assert!(Lock::now(open(), Exclusive).unwrap().is_none());
        assert!(Lock::now(open(), Shared).unwrap().is_none());
        drop(alone);
        let shared = [(); 2].map(|()| Lock::now(open(), Shared).unwrap().unwrap());
        assert!(Lock::now(open(), Exclusive).unwrap().is_none());
        drop(shared);
        assert!(Lock::now(open(), Exclusive).unwrap().is_some());
    }

    #[test]
    fn who_waits_says_so_once_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let open = || file(&directory.path().join("lock"));
        let unheard = || panic!("nobody is in the way");
        let held = Lock::wait(open(), Exclusive, unheard).unwrap();
        let mut said = 0;
        let late = Lock::within(open(), Shared, 4 * AGAIN, || said += 1);
        assert!(late.unwrap().is_none());
        assert_eq!(said, 1);

        let (says, heard) = mpsc::channel();
        thread::scope(|scope| {
            let open = &open;
            let waits = scope.spawn(move || {
                Lock::wait(open(), Shared, || says.send(()).unwrap()).unwrap();
            });
            heard.recv().unwrap();
            drop(held);
            waits.join().unwrap();
        });
        let free = Lock::within(open(), Exclusive, Duration::ZERO, unheard);
        assert!(free.unwrap().is_some());
    }

    #[test]
    fn it_goes_though_a_program_about_to_start_has_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let open = || file(&directory.path().join("lock"));
        let held = Lock::now(open(), Exclusive).unwrap().unwrap();
        // What a child has between fork and exec.
        let inherited = held.file().try_clone().unwrap();
        drop(held);
        assert!(Lock::now(open(), Exclusive).unwrap().is_some());
        drop(inherited);
    }
}
