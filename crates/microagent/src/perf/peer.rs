//! The host's end of a connection that is measured.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use microagent_protocol::measure::{Drill, DrillKind, TOKEN_LEN};

use super::{millis, stats::Summary};
use crate::error::{Error, Result};

/// How long each step of a measurement may take.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// How long a guest may take to come, and how often is looked.
const COMING: Duration = Duration::from_secs(20);
const PACE: Duration = Duration::from_millis(5);

/// How long whoever comes may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// Round trips of one measurement, and the size of what goes.
const TRIPS: u32 = 100;
const MESSAGE: u32 = 64;

/// Bytes one way: so many messages of this size.
const BULK: u32 = 64 * 1024;
const BULKS: u32 = 256;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trip {
    /// Of a small message, in milliseconds; the median.
    pub(super) round_trip: f64,
    /// MiB a second.
    pub(super) into_guest: f64,
    /// MiB a second.
    pub(super) out_of_guest: f64,
}

/// What a connection begins with, so that nobody else's is measured.
pub(super) fn token() -> Result<String> {
    let mut bytes = [0; TOKEN_LEN / 2];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The connection of whoever knows the token.
pub(super) fn accept(listener: &TcpListener, token: &str) -> io::Result<TcpStream> {
    let deadline = Instant::now() + COMING;
    listener.set_nonblocking(true)?;
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    let late = "the guest did not come";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, late));
                }
                thread::sleep(PACE);
                continue;
            }
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(INTRODUCTION))?;
        let mut told = [0; TOKEN_LEN];
        if stream.read_exact(&mut told).is_ok() && told == token.as_bytes() {
            return Ok(stream);
        }
    }
}

/// A guest that does what it is told on a connection.
pub(super) struct Peer(TcpStream);

impl Peer {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self(stream))
    }

    /// Measures once.
    pub(super) fn trip(&mut self) -> io::Result<Trip> {
        Ok(Trip {
            round_trip: self.round_trip()?,
            into_guest: rate(self.send()?),
            out_of_guest: rate(self.receive()?),
        })
    }

    fn tell(&mut self, what: DrillKind, size: u32, count: u32) -> io::Result<()> {
        let drill = Drill { what, size, count };
        self.0.write_all(&drill.to_bytes())
    }

    fn round_trip(&mut self) -> io::Result<f64> {
        self.tell(DrillKind::Echo, MESSAGE, TRIPS)?;
        let mut message = [7; MESSAGE as usize];
        let mut times = Vec::with_capacity(TRIPS as usize);
        for _ in 0..TRIPS {
            let begun = Instant::now();
            self.0.write_all(&message)?;
            self.0.read_exact(&mut message)?;
            times.push(millis(begun.elapsed()));
        }
        let summary = Summary::of(&times).ok_or(io::ErrorKind::InvalidData)?;
        Ok(summary.p50)
    }

    fn send(&mut self) -> io::Result<Duration> {
        let message = vec![7; BULK as usize];
        let begun = Instant::now();
        self.tell(DrillKind::Take, BULK, BULKS)?;
        for _ in 0..BULKS {
            self.0.write_all(&message)?;
        }
        // It says so when it has all of it.
        self.0.read_exact(&mut [0])?;
        Ok(begun.elapsed())
    }

    fn receive(&mut self) -> io::Result<Duration> {
        let mut message = vec![0; BULK as usize];
        let begun = Instant::now();
        self.tell(DrillKind::Give, BULK, BULKS)?;
        for _ in 0..BULKS {
            self.0.read_exact(&mut message)?;
        }
        Ok(begun.elapsed())
    }
}

fn rate(took: Duration) -> f64 {
    let mib = f64::from(BULK) * f64::from(BULKS) / f64::from(1 << 20);
    mib / took.as_secs_f64().max(f64::EPSILON)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// What the agent does in a guest.
    fn answer(mut stream: TcpStream) -> io::Result<()> {
        loop {
            let mut bytes = [0; Drill::LEN];
            stream.read_exact(&mut bytes)?;
            let drill = Drill::from_bytes(bytes).unwrap();
            let mut message = vec![0; drill.size as usize];
            for _ in 0..drill.count {
                if drill.what != DrillKind::Give {
                    stream.read_exact(&mut message)?;
                }
                if drill.what != DrillKind::Take {
                    stream.write_all(&message)?;
                }
            }
            if drill.what == DrillKind::Take {
                stream.write_all(&[0])?;
            }
        }
    }

    #[test]
    fn only_who_knows_the_token_is_measured() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let token = token().unwrap();
        assert_eq!(token.len(), TOKEN_LEN);
        // One that goes at once, and one that says something else.
        drop(TcpStream::connect(address).unwrap());
        let mut other = TcpStream::connect(address).unwrap();
        other.write_all(&[b'x'; TOKEN_LEN]).unwrap();
        let guest = {
            let token = token.clone();
            thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.write_all(token.as_bytes()).unwrap();
                answer(stream)
            })
        };
        let mut peer = Peer::new(accept(&listener, &token).unwrap()).unwrap();
        let trip = peer.trip().unwrap();
        assert!(trip.round_trip > 0.0 && trip.into_guest > 0.0 && trip.out_of_guest > 0.0);
        drop(peer);
        assert!(guest.join().unwrap().is_err(), "it ends with the host");
    }
}
