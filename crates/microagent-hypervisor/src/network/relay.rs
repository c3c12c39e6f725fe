//! Two threads between a VMM's wire and passt's: outwards frame by frame, as the policy allows;
//! inwards as it comes, or frame by frame where the wire is a tap's. Both sleep while nothing is sent. A wire takes no more while its reader is
//! behind, so that the buffers here are all there is.
//!
//! passt is started by the first frame that may go out: a machine that never speaks to the outside
//! neither waits for one nor has one.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread::JoinHandle,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

use super::{
    passt::{Passt, Process},
    policy,
};
use crate::Error;

/// A frame's length stands before it in this many bytes.
const LENGTH: usize = 4;
/// The longest frame that is read; QEMU's own limit is the same.
const FRAME_LIMIT: usize = 4096 + 65536;
/// What is read at once.
const BUFFER: usize = 2 * (LENGTH + FRAME_LIMIT);

/// The wires, and the threads between them.
pub(super) struct Relay {
    wires: Arc<Wires>,
    outwards: Option<JoinHandle<String>>,
    inwards: Option<JoinHandle<()>>,
}

/// The side of the VMM.
pub(super) enum Wire {
    /// Frames with their lengths, as passt has them, too.
    Stream(UnixStream),
    /// A packet socket: a frame a message.
    Packets(OwnedFd),
}

struct Wires {
    vmm: Wire,
    passt: UnixStream,
}

impl Wires {
    /// Nothing passes any more. A tap's wire has no switch; but who carries from it watches passt's.
    fn cut(&self) {
        // One whose other end is gone is cut already.
        let _ = self.passt.shutdown(Shutdown::Both);
        if let Wire::Stream(vmm) = &self.vmm {
            let _ = vmm.shutdown(Shutdown::Both);
        }
    }
}

impl Relay {
    /// Carries frames, by a passt that the first of them starts.
    pub(super) fn start(passt: &Passt, vmm: Wire) -> Result<Self, Error> {
        let fail = |source| Error::Io {
            context: "start the relay of the network".to_owned(),
            source,
        };
        let (here, there) = UnixStream::pair().map_err(fail)?;
        let wires = Arc::new(Wires { vmm, passt: here });
        let (ours, passt) = (Arc::clone(&wires), passt.clone());
        let outwards = thread("net-out", move || carry_out(&ours, passt, there)).map_err(fail)?;
        let ours = Arc::clone(&wires);
        // Made before the next step, so that a failure of it ends the first thread.
        let mut relay = Self {
            wires,
            outwards: Some(outwards),
            inwards: None,
        };
        relay.inwards = Some(
            thread("net-in", move || {
                if let Err(error) = carry_in(&ours) {
                    tracing::debug!(%error, "nothing comes from the network any more");
                }
                ours.cut();
            })
            .map_err(fail)?,
        );
        Ok(relay)
    }

    /// Nothing passes any more once this returns.
    pub(super) fn sever(&self) {
        self.wires.cut();
    }

    /// Ends it, and gives what passt said.
    pub(super) fn end(mut self) -> String {
        self.join()
    }

    fn join(&mut self) -> String {
        self.sever();
        if let Some(inwards) = self.inwards.take()
            && inwards.join().is_err()
        {
            tracing::error!("the thread that reads from the network panicked");
        }
        match self.outwards.take().map(JoinHandle::join) {
            Some(Ok(words)) => words,
            Some(Err(_)) => {
                tracing::error!("the thread that writes to the network panicked");
                String::new()
            }
            None => String::new(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.join();
    }
}

fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(128 * 1024)
        .spawn(work)
}

/// passt's wire, for whoever writes to it. Nobody is at its other end until something is written.
struct Outside<'a> {
    wire: &'a UnixStream,
    waiting: Option<(Passt, UnixStream)>,
    passt: Option<Process>,
    /// Why there is none, where it could not be started.
    failure: String,
}

impl Outside<'_> {
    /// Starts passt, unless that was done. It is a child of the calling thread.
    fn wake(&mut self) -> io::Result<()> {
        let Some((passt, end)) = self.waiting.take() else {
            return Ok(());
        };
        match passt.spawn(end) {
            Ok(process) => self.passt = Some(process),
            Err(error) => {
                tracing::error!("the machine has no network any more: {error}");
                self.failure = error.to_string();
                return Err(io::Error::other(error));
            }
        }
        Ok(())
    }

    /// Ends it, and gives what it said.
    fn end(self) -> String {
        self.passt.map_or(self.failure, Process::end)
    }
}

impl Write for Outside<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wake()?;
        self.wire.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.wire.flush()
    }
}

/// Carries until a wire ends, then ends passt and says what it said.
fn carry_out(wires: &Wires, passt: Passt, end: UnixStream) -> String {
    let mut filter = Filter::default();
    let mut outside = Outside {
        wire: &wires.passt,
        waiting: Some((passt, end)),
        passt: None,
        failure: String::new(),
    };
    let done = match &wires.vmm {
        Wire::Stream(vmm) => carry_stream(vmm, &mut filter, &mut outside),
        Wire::Packets(vmm) => carry_packets(vmm.as_fd(), &mut filter, &mut outside),
    };
    if let Err(error) = done {
        tracing::debug!(%error, "nothing goes to the network any more");
    }
    wires.cut();
    if filter.refused > 0 {
        tracing::debug!(frames = filter.refused, "frames were not let out");
    }
    let words = outside.end();
    if !words.is_empty() {
        tracing::debug!(%words, "passt ended");
    }
    words
}

fn carry_stream(
    mut vmm: &UnixStream,
    filter: &mut Filter,
    outside: &mut Outside<'_>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut have = 0;
    loop {
        match vmm.read(&mut buffer[have..]) {
            Ok(0) => return Ok(()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let left = filter.pass(&buffer[..have], outside)?;
        // What is left is the beginning of a frame.
        buffer.copy_within(have - left..have, 0);
        have = left;
    }
}

/// Sleeps until the tap has a frame, or passt's wire is cut.
fn carry_packets(
    vmm: BorrowedFd<'_>,
    filter: &mut Filter,
    outside: &mut Outside<'_>,
) -> io::Result<()> {
    let mut buffer = vec![0; LENGTH + FRAME_LIMIT];
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(vmm, PollFlags::IN),
            PollFd::from_borrowed_fd(outside.wire.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if !ready[1].revents().is_empty() {
            return Ok(());
        }
        // All there are, before the next sleep.
        loop {
            let count = match recv(vmm, &mut buffer[LENGTH..], RecvFlags::DONTWAIT) {
                Ok((count, _)) => count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            // At most FRAME_LIMIT.
            buffer[..LENGTH].copy_from_slice(&(count as u32).to_be_bytes());
            filter.pass(&buffer[..LENGTH + count], outside)?;
        }
    }
}

fn carry_in(wires: &Wires) -> io::Result<()> {
    let mut passt = &wires.passt;
    let mut buffer = vec![0; BUFFER];
    let mut have = 0;
    loop {
        match passt.read(&mut buffer[have..]) {
            Ok(0) => return Ok(()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        match &wires.vmm {
            Wire::Stream(vmm) => {
                (&*vmm).write_all(&buffer[..have])?;
                have = 0;
            }
            Wire::Packets(vmm) => {
                let left = deliver(&buffer[..have], vmm.as_fd())?;
                buffer.copy_within(have - left..have, 0);
                have = left;
            }
        }
    }
}

/// Sends each whole frame as a message; gives how many bytes at the end belong to another.
fn deliver(bytes: &[u8], vmm: BorrowedFd<'_>) -> io::Result<usize> {
    let mut at = 0;
    while let Some((frame, end)) = frame_at(bytes, at)? {
        match send(vmm, frame, SendFlags::empty()) {
            // A frame that the card does not take, or has no room for, is lost, as on any wire.
            Ok(_) | Err(Errno::MSGSIZE | Errno::NOBUFS | Errno::INTR | Errno::NETDOWN) => at = end,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(bytes.len() - at)
}

/// The whole frame that begins here after its length, and where it ends.
fn frame_at(bytes: &[u8], at: usize) -> io::Result<Option<(&[u8], usize)>> {
    let Some(length) = bytes[at..].first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > FRAME_LIMIT {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    let end = at + LENGTH + length;
    Ok(bytes.get(at + LENGTH..end).map(|frame| (frame, end)))
}

#[derive(Default)]
struct Filter {
    refused: u64,
}

impl Filter {
    /// Writes the whole frames that may pass, as few times as it can; gives how many bytes at the
    /// end belong to a frame that is not whole yet.
    fn pass(&mut self, bytes: &[u8], to: &mut impl Write) -> io::Result<usize> {
        let (mut at, mut start) = (0, 0);
        while let Some((frame, end)) = frame_at(bytes, at)? {
            if !policy::allows(frame) {
                self.refused += 1;
                to.write_all(&bytes[start..at])?;
                start = end;
            }
            at = end;
        }
        to.write_all(&bytes[start..at])?;
        Ok(bytes.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
    }

    /// A frame that may pass, and one that may not.
    fn frame(good: bool, size: usize) -> Vec<u8> {
        let mut frame = vec![7; size.max(14)];
        frame[12..14].copy_from_slice(if good { &[8, 6] } else { &[0x81, 0] });
        frame
    }

    proptest! {
        /// However the stream is cut into reads, exactly the good frames come out, in order.
        #[test]
        fn good_frames_pass_whole(
            frames in proptest::collection::vec((any::<bool>(), 14_usize..2000), 0..20),
            reads in proptest::collection::vec(1_usize..3000, 1..60),
        ) {
            let made: Vec<_> = frames.iter().map(|(good, size)| framed(&frame(*good, *size))).collect();
            let stream = made.concat();
            let wanted: Vec<u8> = frames.iter().zip(&made)
                .filter(|((good, _), _)| *good).flat_map(|(_, made)| made.clone()).collect();
            let (mut filter, mut out, mut kept) = (Filter::default(), Vec::new(), Vec::new());
            let mut rest = &stream[..];
            for size in reads.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*size).min(rest.len()));
                kept.extend_from_slice(now);
                let left = filter.pass(&kept, &mut out).unwrap();
                kept.drain(..kept.len() - left);
                rest = later;
            }
            prop_assert!(kept.is_empty());
            prop_assert_eq!(out, wanted);
        }
    }

    #[test]
    fn a_length_that_no_frame_has_ends_it() {
        let mut filter = Filter::default();
        let mut out = Vec::new();
        let bytes = (FRAME_LIMIT as u32 + 1).to_be_bytes();
        assert!(filter.pass(&bytes, &mut out).is_err());
        let longest = framed(&vec![0; FRAME_LIMIT]);
        assert!(longest.len() <= BUFFER);
        assert_eq!(filter.pass(&longest, &mut out).unwrap(), 0);
        assert!(out.is_empty());
    }
}
