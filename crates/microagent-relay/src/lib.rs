//! Joins two sockets: bytes, half-closes and back-pressure pass through, and nothing else.
//!
//! The supervisor and the guest agent both stand between a socket of one world and one of the
//! other: a published port and a vsock, a vsock and a server. This crate is that standing between.
//! It knows no protocol, no address and no limit but its own buffers.
#![forbid(unsafe_code)]
// Its sockets are descriptors; a system without them has no supervisor that would use this yet.
#![cfg(unix)]

mod flow;
mod pieces;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{RecvFlags, Shutdown, recv, send, shutdown},
};

use self::flow::{End, Flow, Wait};

/// Passes bytes between two stream sockets, either way, until both directions are over.
///
/// The end of one's stream becomes the end of the other's, so half-closes pass through; whoever
/// reads slowly slows the one who writes to it, and no one else. At most 64 KiB of each direction
/// are held here, and nothing while the sockets idle. The sockets become non-blocking. To end it
/// from outside, shut one of them down.
///
/// # Errors
/// When a socket is reset or fails; what was under way is lost then, as it is with a reset.
pub fn join(here: impl AsFd, there: impl AsFd) -> io::Result<()> {
    let ends = [Socket::new(here.as_fd())?, Socket::new(there.as_fd())?];
    let mut flows = [Flow::default(), Flow::default()];
    let mut hung_up = [false; 2];
    loop {
        let (mut wants, mut open) = ([PollFlags::empty(); 2], false);
        for (from, flow) in flows.iter().enumerate() {
            match flow.waits_for() {
                Wait::Source => wants[from] |= PollFlags::IN,
                Wait::Sink => wants[1 - from] |= PollFlags::OUT,
                Wait::Over => continue,
            }
            open = true;
        }
        if !open {
            return Ok(());
        }
        let ready = wait(&ends, wants, &mut hung_up)?;
        for (from, flow) in flows.iter_mut().enumerate() {
            flow.pass_if(ready, from, &ends)?;
            // A peer that only ended its half is no hang-up: this one takes nothing any more.
            if hung_up[1 - from] {
                flow.refuse(&ends[from]);
            }
        }
    }
}

impl Flow {
    fn pass_if(
        &mut self,
        ready: [PollFlags; 2],
        from: usize,
        ends: &[Socket<'_>; 2],
    ) -> io::Result<()> {
        // A hang-up is found out by reading, or by writing.
        let any = |wanted| wanted | PollFlags::HUP;
        let go = match self.waits_for() {
            Wait::Source => ready[from].intersects(any(PollFlags::IN)),
            Wait::Sink => ready[1 - from].intersects(any(PollFlags::OUT)),
            Wait::Over => false,
        };
        if go {
            self.pass(&ends[from], &ends[1 - from])
        } else {
            Ok(())
        }
    }
}

/// As [`join`], where `there` is a stream whose two directions can only end together, and leads to
/// another such call: what passes is in pieces there, so that half-closes pass through all the same.
/// It takes a second thread and a buffer of 32 KiB for each direction.
///
/// # Errors
/// As [`join`]; when `there` ends before both directions have, or carries something else.
pub fn join_pieces(here: impl AsFd, there: impl AsFd) -> io::Result<()> {
    let (here, there) = (Socket::new(here.as_fd())?, Socket::new(there.as_fd())?);
    pieces::join(&here, &there)
}

/// Waits until one of them has what is wanted of it; gives what each has.
fn wait(
    ends: &[Socket<'_>; 2],
    wants: [PollFlags; 2],
    hung_up: &mut [bool; 2],
) -> io::Result<[PollFlags; 2]> {
    // A socket that hung up says so at each poll, wanted or not: it is asked once.
    let watched: Vec<usize> = (0..2)
        .filter(|at| !wants[*at].is_empty() || !hung_up[*at])
        .collect();
    let mut fds: Vec<_> = watched
        .iter()
        .map(|at| PollFd::from_borrowed_fd(ends[*at].0, wants[*at]))
        .collect();
    loop {
        match poll(&mut fds, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut ready = [PollFlags::empty(); 2];
    for (at, fd) in watched.into_iter().zip(&fds) {
        ready[at] = fd.revents();
        hung_up[at] |= ready[at].contains(PollFlags::HUP);
        if ready[at].intersects(PollFlags::ERR | PollFlags::NVAL) {
            return Err(failure(ends[at].0));
        }
    }
    Ok(ready)
}

/// What broke a socket.
fn failure(socket: BorrowedFd<'_>) -> io::Error {
    match rustix::net::sockopt::socket_error(socket) {
        Ok(Err(errno)) | Err(errno) => errno.into(),
        Ok(Ok(())) => io::ErrorKind::ConnectionReset.into(),
    }
}

/// A peer that is gone is an error, and no signal. (Apple's sockets are told once, when they are made ours.)
#[cfg(not(target_vendor = "apple"))]
const QUIETLY: rustix::net::SendFlags = rustix::net::SendFlags::NOSIGNAL;
#[cfg(target_vendor = "apple")]
const QUIETLY: rustix::net::SendFlags = rustix::net::SendFlags::empty();

/// A stream socket of any family.
struct Socket<'fd>(BorrowedFd<'fd>);

impl<'fd> Socket<'fd> {
    fn new(fd: BorrowedFd<'fd>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(fd, true)?;
        #[cfg(target_vendor = "apple")]
        rustix::net::sockopt::set_socket_nosigpipe(fd, true)?;
        Ok(Self(fd))
    }

    fn end(&self, how: Shutdown) {
        // Fails only where the peer is gone, and then reading or writing says so.
        let _ = shutdown(self.0, how);
    }
}

impl End for Socket<'_> {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0, buffer, RecvFlags::empty())?.0)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, QUIETLY)?)
    }

    fn end_sending(&self) {
        self.end(Shutdown::Write);
    }

    fn end_receiving(&self) {
        self.end(Shutdown::Read);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Shutdown, TcpListener, TcpStream},
        os::unix::net::UnixStream,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// The thread between the two, which tells what processor time it took.
    type Between = thread::JoinHandle<io::Result<Duration>>;

    /// A client, a server, and what stands between them.
    fn joined() -> (TcpStream, UnixStream, Between) {
        let (client, here) = tcp_pair();
        let (there, server) = UnixStream::pair().unwrap();
        let limit = Some(Duration::from_secs(20));
        client.set_read_timeout(limit).unwrap();
        server.set_read_timeout(limit).unwrap();
        let between = thread::spawn(move || {
            join(&here, &there)?;
            let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Ok(Duration::new(used.tv_sec as u64, used.tv_nsec as u32))
        });
        (client, server, between)
    }

    fn bytes(count: u32) -> Vec<u8> {
        (0..count).map(|at| (at ^ (at >> 9)) as u8).collect()
    }

    #[test]
    fn bulk_passes_both_ways_at_once_and_half_closes_end_each() {
        let (mut client, mut server, between) = joined();
        let sent = bytes(8 << 20);
        let (up, down) = (sent.clone(), sent.clone());
        let mut answering = server.try_clone().unwrap();
        let writers = [
            thread::spawn({
                let mut client = client.try_clone().unwrap();
                move || {
                    client.write_all(&up).unwrap();
                    client.shutdown(Shutdown::Write).unwrap();
                }
            }),
            thread::spawn(move || {
                answering.write_all(&down).unwrap();
                answering.shutdown(Shutdown::Write).unwrap();
            }),
        ];
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            server.read_to_end(&mut got).unwrap();
            got
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert!(got == sent && reader.join().unwrap() == sent);
        for writer in writers {
            writer.join().unwrap();
        }
        between.join().unwrap().unwrap();
    }

    #[test]
    fn an_answer_comes_after_the_question_has_ended() {
        let (mut client, mut server, between) = joined();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
        server.write_all(b"answer").unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
        between.join().unwrap().unwrap();
    }

    #[test]
    fn a_reset_ends_both() {
        let (client, mut server, between) = joined();
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        assert!(between.join().unwrap().is_err());
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_peer_that_is_gone_ends_what_only_the_other_could_end() {
        let (mut client, server, between) = joined();
        drop(server);
        between.join().unwrap().unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_writer_waits_for_its_reader_and_a_closed_half_costs_no_processor_time() {
        let (mut client, server, between) = joined();
        // The server ends its half; then its reader stops while the client writes.
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        client.set_nonblocking(true).unwrap();
        let (chunk, mut accepted) = ([7; 64 * 1024], 0);
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut idle = 0;
        while idle < 20 {
            assert!(Instant::now() < deadline && accepted < 64 << 20);
            match client.write(&chunk) {
                Ok(count) => (accepted, idle) = (accepted + count, 0),
                Err(_) => {
                    idle += 1;
                    thread::sleep(Duration::from_millis(5));
                }
            }
        }
        assert!(!between.is_finished());
        client.set_nonblocking(false).unwrap();
        let reader = thread::spawn(move || io::copy(&mut &server, &mut io::sink()).unwrap());
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reader.join().unwrap(), accepted as u64);
        let used = between.join().unwrap().unwrap();
        assert!(
            used < Duration::from_millis(60),
            "{used:?} while idle for 100 ms"
        );
    }
}
