//! What a VMM says, on its console and of itself, carried to where it is kept until it is gone.

use std::{
    collections::VecDeque,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Mutex, PoisonError},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use crate::console::Record;

/// The most of the VMM's own words that are kept: the last ones.
const WORDS_LIMIT: usize = 8 * 1024;

/// Copies the console to its record and keeps the VMM's last words until it is gone.
pub(super) fn pump(
    console: &UnixStream,
    mut record: Record<'_>,
    stderr: &OwnedFd,
    pidfd: &OwnedFd,
    words: &Mutex<VecDeque<u8>>,
) {
    let mut buffer = vec![0; 32 * 1024];
    let (mut console_open, mut stderr_open) = (true, true);
    loop {
        let watched = [
            Some(pidfd.as_fd()),
            console_open.then_some(console.as_fd()),
            stderr_open.then_some(stderr.as_fd()),
        ];
        let [gone, console_ready, stderr_ready] = match wait_for_any(watched) {
            Ok(ready) => ready,
            Err(error) => {
                // This thread's end is the VMM's too: better no machine than one nobody watches.
                tracing::error!(%error, "the VMM cannot be watched");
                return;
            }
        };
        let console_read = console_ready.then(|| read_some(console, &mut buffer));
        if let Some(Some(n)) = console_read {
            record.take(&buffer[..n]);
        }
        let stderr_read = stderr_ready.then(|| read_some(stderr, &mut buffer));
        if let Some(Some(n)) = stderr_read {
            let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
            words.extend(&buffer[..n]);
            let surplus = words.len().saturating_sub(WORDS_LIMIT);
            words.drain(..surplus);
        }
        console_open &= console_read != Some(None);
        stderr_open &= stderr_read != Some(None);
        let idle = !matches!(console_read, Some(Some(_))) && !matches!(stderr_read, Some(Some(_)));
        if gone && idle {
            break;
        }
    }
    record.end();
}

/// Reads what is there; `None` at the end, which an error is as well.
fn read_some(fd: impl AsFd, buffer: &mut [u8]) -> Option<usize> {
    match rustix::io::read(fd, buffer) {
        Ok(0) => None,
        Ok(n) => Some(n),
        Err(Errno::INTR | Errno::AGAIN) => Some(0),
        Err(_) => None,
    }
}

/// Waits until one of these is readable or at its end; says which are.
fn wait_for_any(fds: [Option<BorrowedFd<'_>>; 3]) -> io::Result<[bool; 3]> {
    loop {
        let mut places = Vec::with_capacity(fds.len());
        let mut polled = Vec::with_capacity(fds.len());
        for (place, fd) in fds.iter().enumerate() {
            if let Some(fd) = fd {
                places.push(place);
                polled.push(PollFd::from_borrowed_fd(*fd, PollFlags::IN));
            }
        }
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let mut ready = [false; 3];
        for (place, fd) in places.into_iter().zip(&polled) {
            ready[place] = !fd.revents().is_empty();
        }
        return Ok(ready);
    }
}
