//! Streams to the agent whose session is over, for the next one: a new stream takes both sides as long
//! as a small program.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
};

use microagent_protocol::{Frame, FrameError, FrameKind, FrameReader, LineReport};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvFlags, recv},
};

use super::exit;

/// The most that are kept.
pub(super) const MOST_KEPT: usize = 4;

/// What is looked at of a session that may be over already; the agent says this much at once.
const SETTLED: usize = 6 * 1024;

/// Whether nothing was said over a stream that should be silent, not even its end.
pub(super) fn is_silent(stream: &UnixStream) -> bool {
    // An end can be read, too.
    let mut ready = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)];
    matches!(poll(&mut ready, Some(&Timespec::default())), Ok(0))
}

/// A session that was over before it was relayed.
#[derive(Debug)]
pub(crate) struct Settled {
    /// The frames of its output.
    pub(crate) output: Vec<u8>,
    pub(crate) report: LineReport,
}

/// The rest of a session, if all of it is there. What is not is left for whoever relays it.
pub(crate) fn settled(guest: &mut FrameReader<UnixStream>) -> Result<Option<Settled>, FrameError> {
    match look(guest, &mut [0])? {
        Some(1..) => all_of_it(guest),
        _ => Ok(None),
    }
}

/// What can be read now, without taking it; `None` if there is nothing yet.
fn look(guest: &FrameReader<UnixStream>, bytes: &mut [u8]) -> Result<Option<usize>, FrameError> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match recv(guest.get_ref(), bytes, flags) {
        Ok((there, _)) => Ok(Some(there)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// By itself, so that only a session that has said something has this much of a thread's stack.
#[inline(never)]
fn all_of_it(guest: &mut FrameReader<UnixStream>) -> Result<Option<Settled>, FrameError> {
    let mut bytes = [0; SETTLED];
    let there = look(guest, &mut bytes)?.unwrap_or(0);
    let mut rest = &bytes[..there];
    let mut frames = 0;
    while let Ok(Some((frame, after))) = Frame::split(rest) {
        frames += 1;
        match frame.kind {
            FrameKind::Stdout | FrameKind::Stderr => rest = after,
            FrameKind::Exit if after.is_empty() => {
                let Some(settled) = last(frame, &bytes[..there - rest.len()]) else {
                    break;
                };
                for _ in 0..frames {
                    guest.require()?;
                }
                return Ok(Some(settled));
            }
            _ => break,
        }
    }
    Ok(None)
}

fn last(frame: Frame<'_>, output: &[u8]) -> Option<Settled> {
    Some(Settled {
        output: output.to_vec(),
        report: exit(frame).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use microagent_protocol::{
        ExitStatus,
        exec::ExitReport,
        frame::{write_frame, write_json},
    };

    use super::*;

    fn ended() -> LineReport {
        LineReport {
            exit: ExitReport {
                status: ExitStatus::Exited { code: 3 },
                oom_kills: 0,
            },
            shell: None,
        }
    }

    #[test]
    fn a_session_that_is_all_there_is_taken_and_any_other_is_left() {
        let mut whole = Vec::new();
        write_frame(&mut whole, FrameKind::Stdout, b"hello").unwrap();
        let output = whole.len();
        write_json(&mut whole, FrameKind::Exit, &ended()).unwrap();
        for cut in 0..=whole.len() {
            let (mut agent, ours) = UnixStream::pair().unwrap();
            agent.write_all(&whole[..cut]).unwrap();
            let mut guest = FrameReader::new(ours);
            let settled = settled(&mut guest).unwrap();
            if cut == whole.len() {
                let settled = settled.unwrap();
                assert_eq!(settled.output, whole[..output]);
                assert_eq!(settled.report.exit, ended().exit);
                assert!(is_silent(guest.get_ref()));
                continue;
            }
            assert!(settled.is_none(), "{cut}");
            agent.write_all(&whole[cut..]).unwrap();
            assert_eq!(guest.require().unwrap().payload, b"hello");
            assert_eq!(guest.require().unwrap().kind, FrameKind::Exit);
        }
    }

    #[test]
    fn what_must_not_come_is_left_for_the_relay() {
        for kind in [FrameKind::Request, FrameKind::Header] {
            let (mut agent, ours) = UnixStream::pair().unwrap();
            write_frame(&mut agent, kind, b"{}").unwrap();
            write_json(&mut agent, FrameKind::Exit, &ended()).unwrap();
            assert!(settled(&mut FrameReader::new(ours)).unwrap().is_none());
        }
        let (mut agent, ours) = UnixStream::pair().unwrap();
        write_json(&mut agent, FrameKind::Exit, &ended()).unwrap();
        write_frame(&mut agent, FrameKind::Stdout, b"late").unwrap();
        assert!(settled(&mut FrameReader::new(ours)).unwrap().is_none());
    }

    #[test]
    fn a_stream_that_said_something_or_ended_is_not_silent() {
        let (mut agent, ours) = UnixStream::pair().unwrap();
        assert!(is_silent(&ours));
        agent.write_all(b"x").unwrap();
        assert!(!is_silent(&ours));
        let (agent, ours) = UnixStream::pair().unwrap();
        drop(agent);
        assert!(!is_silent(&ours));
    }
}
