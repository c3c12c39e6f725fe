//! One direction between two sockets, without the waiting: a buffer, and when it is over.

use std::io::{self, ErrorKind};

/// The most bytes of one direction that are on their way.
const BUFFER: usize = 64 * 1024;

/// How much is passed on before the other direction gets its turn, in buffers.
const TURN: usize = 16;

/// One end: a byte stream that does not block and whose two directions end separately.
pub(crate) trait End {
    /// Reads; `Ok(0)` is the end of the stream.
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes, without raising a signal.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Its peer sees the end of the stream after what was written.
    fn end_sending(&self);
    /// Its peer learns that nobody reads any more.
    fn end_receiving(&self);
}

/// What a direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Bytes from the source.
    Source,
    /// Room in the sink.
    Sink,
    /// Nothing any more.
    Over,
}

/// From a source to a sink.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Only there while something is in it: a connection that idles costs no memory.
    buffer: Vec<u8>,
    /// The part of the buffer that the sink has not taken.
    left: std::ops::Range<usize>,
    over: bool,
}

impl Flow {
    pub(crate) fn waits_for(&self) -> Wait {
        match (self.over, self.left.is_empty()) {
            (true, _) => Wait::Over,
            (false, true) => Wait::Source,
            (false, false) => Wait::Sink,
        }
    }

    /// Passes on what can be without waiting, for a turn.
    ///
    /// # Errors
    /// When one of the two is broken and not only closed: then both directions are over.
    pub(crate) fn pass(&mut self, source: &impl End, sink: &impl End) -> io::Result<()> {
        for _ in 0..TURN {
            match self.waits_for() {
                Wait::Over => return Ok(()),
                Wait::Source => {
                    self.buffer.resize(BUFFER, 0);
                    match retry(|| source.recv(&mut self.buffer)) {
                        Ok(0) => {
                            sink.end_sending();
                            self.end();
                        }
                        Ok(count) => self.left = 0..count,
                        Err(error) => {
                            self.buffer = Vec::new();
                            return blocked(error);
                        }
                    }
                }
                Wait::Sink => match retry(|| sink.send(&self.buffer[self.left.clone()])) {
                    Ok(count) => self.left.start += count,
                    // It reads no more, but it may still have something to say.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => self.refuse(source),
                    Err(error) => return blocked(error),
                },
            }
        }
        Ok(())
    }

    /// The sink's peer is gone: nobody takes what would come.
    pub(crate) fn refuse(&mut self, source: &impl End) {
        if !self.over {
            source.end_receiving();
            self.end();
        }
    }

    fn end(&mut self) {
        self.over = true;
        self.left = 0..0;
        self.buffer = Vec::new();
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn blocked(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::WouldBlock {
        Ok(())
    } else {
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::VecDeque};

    use proptest::prelude::*;

    use super::*;

    /// What an end does at a call: so many bytes, nothing for now, or its end.
    #[derive(Clone, Copy, Debug)]
    enum Does {
        Bytes(usize),
        Block,
        End,
    }

    #[derive(Default)]
    struct Scripted {
        does: RefCell<VecDeque<Does>>,
        next: RefCell<u8>,
        taken: RefCell<Vec<u8>>,
        sending_ended: RefCell<bool>,
        receiving_ended: RefCell<bool>,
    }

    impl End for Scripted {
        fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.does.borrow_mut().pop_front() {
                Some(Does::Bytes(count)) => {
                    let count = count.clamp(1, buffer.len());
                    for byte in &mut buffer[..count] {
                        *byte = *self.next.borrow();
                        let next = self.next.borrow().wrapping_add(1);
                        *self.next.borrow_mut() = next;
                    }
                    Ok(count)
                }
                Some(Does::Block) => Err(ErrorKind::WouldBlock.into()),
                Some(Does::End) | None => Ok(0),
            }
        }

        fn send(&self, bytes: &[u8]) -> io::Result<usize> {
            assert!(!bytes.is_empty() && !*self.sending_ended.borrow());
            match self.does.borrow_mut().pop_front() {
                Some(Does::Bytes(count)) => {
                    let count = count.clamp(1, bytes.len());
                    self.taken.borrow_mut().extend_from_slice(&bytes[..count]);
                    Ok(count)
                }
                Some(Does::Block) => Err(ErrorKind::WouldBlock.into()),
                Some(Does::End) => Err(ErrorKind::BrokenPipe.into()),
                None => {
                    self.taken.borrow_mut().extend_from_slice(bytes);
                    Ok(bytes.len())
                }
            }
        }

        fn end_sending(&self) {
            assert!(!self.sending_ended.replace(true));
        }

        fn end_receiving(&self) {
            assert!(!self.receiving_ended.replace(true));
        }
    }

    fn steps() -> impl Strategy<Value = VecDeque<Does>> {
        let step = prop_oneof![
            6 => (1..200_000_usize).prop_map(Does::Bytes),
            3 => Just(Does::Block),
            1 => Just(Does::End),
        ];
        prop::collection::vec(step, 0..60).prop_map(VecDeque::from)
    }

    proptest! {
        /// Whatever the two do, every byte arrives once and in order until one of them ends, and
        /// the end is told to the other.
        #[test]
        fn bytes_pass_in_order_until_an_end(source in steps(), sink in steps()) {
            let source = Scripted { does: source.into(), ..Scripted::default() };
            let sink = Scripted { does: sink.into(), ..Scripted::default() };
            let mut flow = Flow::default();
            let mut calls = 0;
            while flow.waits_for() != Wait::Over {
                flow.pass(&source, &sink).unwrap();
                prop_assert!(flow.buffer.len() <= BUFFER);
                calls += 1;
                prop_assert!(calls < 200, "it does not come to an end");
            }
            let taken = sink.taken.borrow();
            prop_assert!(taken.iter().enumerate().all(|(at, byte)| *byte == (at % 256) as u8));
            let (ended, refused) = (*sink.sending_ended.borrow(), *source.receiving_ended.borrow());
            prop_assert!(ended != refused, "exactly one of them is told");
            if ended {
                prop_assert_eq!((taken.len() % 256) as u8, *source.next.borrow());
            }
        }
    }
}
