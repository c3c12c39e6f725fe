//! By what a VMM could hold the device's thread, and how the thread is freed. Knows no ring and no packet.
//!
//! Whatever a VMM hands over stays its own as well: it can make a descriptor block again that was made not to, and it
//! can leave a request half sent. Nothing on the thread can rule that out, so whoever waits for the thread undoes it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::ReadWriteFlags;

/// Receive, transmit, event. The event ring is QEMU's; a frontend may still describe it to us.
pub(crate) const RINGS: usize = 3;

/// What the device's thread and those who command it share past the commands.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    severed: AtomicBool,
    /// The connected VMM.
    frontend: Mutex<Option<UnixStream>>,
    /// What the guest is interrupted by.
    calls: Mutex<[Option<File>; RINGS]>,
}

impl Hold {
    /// Nothing may pass any more. Before the command: a thread that is freed moves nothing on its way to it.
    pub(crate) fn sever(&self) {
        self.severed.store(true, Ordering::Release);
    }

    pub(crate) fn is_severed(&self) -> bool {
        self.severed.load(Ordering::Acquire)
    }

    /// The VMM whose requests are read from now on, or none.
    pub(crate) fn attach(&self, frontend: Option<UnixStream>) {
        *lock(&self.frontend) = frontend;
    }

    /// What ring `index` is notified by from now on, or nothing.
    pub(crate) fn notified_by(&self, index: usize, call: Option<File>) {
        if let Some(place) = lock(&self.calls).get_mut(index) {
            *place = call;
        }
    }

    /// Lets go of the thread: a request that was left half sent ends, and a full counter becomes an empty one. A VMM
    /// that lives may fill it again, so this is for as often as the thread is held.
    pub(crate) fn free(&self) {
        if let Some(stream) = &*lock(&self.frontend) {
            // Fails only when the VMM is gone.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        for call in lock(&self.calls).iter().flatten() {
            let mut count = [0; 8];
            let mut buffer = [std::io::IoSliceMut::new(&mut count)];
            // Waits for nothing, whatever the descriptor says of itself. An empty one holds nobody.
            let _ = rustix::io::preadv2(call, &mut buffer, u64::MAX, ReadWriteFlags::NOWAIT);
        }
    }
}

/// Whether a descriptor is an event counter, which is all that [`Hold::free`] can empty.
pub(crate) fn is_eventfd(file: &File) -> bool {
    let name = Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
    std::fs::read_link(name).is_ok_and(|target| target == Path::new("anon_inode:[eventfd]"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
