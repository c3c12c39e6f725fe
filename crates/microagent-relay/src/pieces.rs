//! Two directions over a stream whose directions end together: bytes in pieces, and an empty piece for
//! the end of one. Whoever joins the other end takes the pieces apart again.

use std::{io, thread};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::Shutdown,
};

use crate::{Socket, flow::End};

/// The longest piece. Its length is told in two bytes.
const LONGEST: usize = 32 * 1024;

/// The stack of the second direction's thread, which holds no buffer.
const STACK: usize = 64 * 1024;

/// Both directions between a plain socket and one that carries pieces; gives when both are over.
pub(crate) fn join(plain: &Socket<'_>, pieces: &Socket<'_>) -> io::Result<()> {
    let cut = |done: io::Result<()>| {
        if done.is_err() {
            // So that the other direction does not wait for what cannot come.
            plain.end(Shutdown::Both);
            pieces.end(Shutdown::Both);
        }
        done
    };
    thread::scope(|scope| {
        let there = thread::Builder::new()
            .name("relay".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || cut(cut_up(plain, pieces)))?;
        let back = cut(put_together(pieces, plain));
        let there = there.join();
        back.and(there.unwrap_or_else(|_| Err(io::Error::other("a relay's thread panicked"))))
    })
}

/// Sends what comes, piece by piece, and its end.
fn cut_up(plain: &Socket<'_>, pieces: &Socket<'_>) -> io::Result<()> {
    let mut buffer = vec![0; 2 + LONGEST];
    loop {
        let count = receive(plain, &mut buffer[2..])?;
        let length = u16::try_from(count).map_err(io::Error::other)?;
        buffer[..2].copy_from_slice(&length.to_be_bytes());
        send_all(pieces, &buffer[..2 + count])?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// Passes on what is in the pieces, and the end.
fn put_together(pieces: &Socket<'_>, plain: &Socket<'_>) -> io::Result<()> {
    let mut buffer = vec![0; LONGEST];
    let mut taken = true;
    loop {
        let mut length = [0; 2];
        receive_all(pieces, &mut length)?;
        let length = usize::from(u16::from_be_bytes(length));
        let Some(piece) = buffer.get_mut(..length) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if piece.is_empty() {
            plain.end_sending();
            return Ok(());
        }
        receive_all(pieces, piece)?;
        if taken {
            match send_all(plain, piece) {
                // It reads no more, but it may still have something to say.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => taken = false,
                sent => sent?,
            }
        }
    }
}

fn receive_all(socket: &Socket<'_>, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        match receive(socket, into)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => into = into.split_at_mut(count).1,
        }
    }
    Ok(())
}

fn receive(socket: &Socket<'_>, into: &mut [u8]) -> io::Result<usize> {
    waiting(socket, PollFlags::IN, || socket.recv(into))
}

fn send_all(socket: &Socket<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = waiting(socket, PollFlags::OUT, || socket.send(bytes))?;
        bytes = bytes.split_at(count).1;
    }
    Ok(())
}

/// What a call gives that does not block, once it would not have to.
fn waiting(
    socket: &Socket<'_>,
    wanted: PollFlags,
    mut call: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::from_borrowed_fd(socket.0, wanted)];
                match poll(&mut fds, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
        thread,
        time::Duration,
    };

    use super::*;

    /// A client and a server with two relays between them, over a stream that has no half-closes.
    fn joined() -> (
        UnixStream,
        UnixStream,
        [thread::JoinHandle<io::Result<()>>; 2],
    ) {
        let pair = || UnixStream::pair().unwrap();
        let ((client, near), (here, there), (far, server)) = (pair(), pair(), pair());
        let limit = Some(Duration::from_secs(20));
        client.set_read_timeout(limit).unwrap();
        server.set_read_timeout(limit).unwrap();
        let relays = [
            thread::spawn(move || crate::join_pieces(&near, &here)),
            thread::spawn(move || crate::join_pieces(&far, &there)),
        ];
        (client, server, relays)
    }

    #[test]
    fn an_answer_comes_after_the_question_has_ended() {
        let (mut client, mut server, relays) = joined();
        let question: Vec<u8> = (0..300_000_u32).map(|at| (at ^ (at >> 9)) as u8).collect();
        let asked = question.clone();
        let asking = thread::spawn(move || {
            client.write_all(&asked).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            answer
        });
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).unwrap();
        assert!(heard == question);
        heard.reverse();
        server.write_all(&heard).unwrap();
        drop(server);
        assert!(asking.join().unwrap() == heard);
        for relay in relays {
            relay.join().unwrap().unwrap();
        }
    }

    #[test]
    fn what_ends_in_the_middle_ends_both_and_nobody_waits() {
        let (mut client, mut server, relays) = joined();
        client.write_all(b"half a question").unwrap();
        let mut heard = [0; 15];
        server.read_exact(&mut heard).unwrap();
        // Neither end closed: the stream between them did.
        let (plain, _kept) = UnixStream::pair().unwrap();
        let (pieces, mut other) = UnixStream::pair().unwrap();
        let relay = thread::spawn(move || crate::join_pieces(&plain, &pieces));
        other.write_all(&[0, 9, 1, 2, 3]).unwrap();
        drop(other);
        assert!(relay.join().unwrap().is_err());
        // And a piece that is longer than any is none.
        let (plain, _kept) = UnixStream::pair().unwrap();
        let (pieces, mut other) = UnixStream::pair().unwrap();
        let relay = thread::spawn(move || crate::join_pieces(&plain, &pieces));
        other.write_all(&[0xff, 0xff]).unwrap();
        let error = relay.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop((client, server));
        for relay in relays {
            relay.join().unwrap().unwrap();
        }
    }
}
