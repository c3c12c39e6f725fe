//! What the host asks of a connection, done.

use std::io::{self, Read, Write};

use microagent_protocol::measure::{Drill, DrillKind, TOKEN_LEN};

/// Whether whoever came begins with `token`.
pub(super) fn has_token(stream: &mut impl Read, token: &[u8]) -> bool {
    let mut told = [0; TOKEN_LEN];
    stream.read_exact(&mut told).is_ok() && told == token
}

/// Does what the peer asks for until it closes the connection.
pub(super) fn answer(mut stream: impl Read + Write) -> io::Result<()> {
    loop {
        let mut bytes = [0; Drill::LEN];
        match stream.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let drill = Drill::from_bytes(bytes).ok_or(io::ErrorKind::InvalidData)?;
        // Bounded where it is read.
        let mut message = vec![0; drill.size as usize];
        for _ in 0..drill.count {
            match drill.what {
                DrillKind::Echo => {
                    stream.read_exact(&mut message)?;
                    stream.write_all(&message)?;
                }
                DrillKind::Take => stream.read_exact(&mut message)?,
                DrillKind::Give => stream.write_all(&message)?,
            }
        }
        if drill.what == DrillKind::Take {
            stream.write_all(&[0])?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, thread};

    use super::*;

    #[test]
    fn each_drill_is_done_until_the_peer_goes() {
        let (mut host, mut guest) = UnixStream::pair().unwrap();
        let answering = thread::spawn(move || {
            assert!(has_token(&mut guest, &[b'a'; TOKEN_LEN]));
            answer(guest)
        });
        host.write_all(&[b'a'; TOKEN_LEN]).unwrap();
        let mut drill = |what, size: u32, count| {
            let drill = Drill { what, size, count };
            host.write_all(&drill.to_bytes()).unwrap();
            let mut message = vec![7; size as usize];
            for _ in 0..count {
                if what != DrillKind::Give {
                    host.write_all(&message).unwrap();
                }
                if what != DrillKind::Take {
                    host.read_exact(&mut message).unwrap();
                }
            }
            if what == DrillKind::Take {
                host.read_exact(&mut message[..1]).unwrap();
            }
            message[0]
        };
        assert_eq!(drill(DrillKind::Echo, 64, 10), 7);
        assert_eq!(drill(DrillKind::Take, 70_000, 3), 0);
        assert_eq!(drill(DrillKind::Give, 70_000, 3), 0);
        drop(host);
        answering.join().unwrap().unwrap();
    }

    #[test]
    fn nonsense_ends_it() {
        let (mut host, mut guest) = UnixStream::pair().unwrap();
        host.write_all(&[b'x'; TOKEN_LEN]).unwrap();
        assert!(!has_token(&mut guest, &[b'a'; TOKEN_LEN]));
        host.write_all(&[b'x'; Drill::LEN]).unwrap();
        assert!(answer(guest).is_err());
    }
}
