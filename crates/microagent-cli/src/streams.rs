//! The standard streams as the guest's: without a buffer of ours, and with the keys that are ours.

use std::{
    fs::File,
    io::{self, Read, Write},
};

use microagent::{Error, RunController};
use microagent_host::stdio::{Ready, Stream, duplicate, wait};

use crate::signals;

/// Ctrl-], which lets go of a terminal.
const DETACH: u8 = 0x1d;

/// The stream without a buffer of ours: what the guest writes goes out at once, byte for byte.
pub(crate) fn unbuffered(stream: impl Stream) -> Result<Unbuffered, Error> {
    let copy = duplicate(stream).map_err(|source| Error::Io {
        doing: "use",
        path: "a standard stream".into(),
        source,
    })?;
    Ok(Unbuffered(copy))
}

/// A standard stream, read and written directly.
pub(crate) struct Unbuffered(File);

impl Read for Unbuffered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&self.0, Ready::Read)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                // Somebody else made the shared terminal or pipe non-blocking: wait, lose nothing.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&self.0, Ready::Write)?;
                }
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A terminal as input: it has no end but a hang-up, and the command hears of that as it would
/// from a terminal of its own.
pub(crate) struct TerminalInput {
    input: Unbuffered,
    controller: RunController,
}

impl TerminalInput {
    pub(crate) fn new(input: Unbuffered, controller: RunController) -> Self {
        Self { input, controller }
    }
}

impl Read for TerminalInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer);
        if !matches!(read, Ok(1..)) {
            self.controller.signal(signals::HANG_UP);
        }
        read
    }
}

/// A terminal as input that can be let go of with Ctrl-].
pub(crate) struct DetachableInput<R> {
    input: R,
    controller: RunController,
    /// The key was seen, or the terminal hung up.
    over: bool,
}

impl<R> DetachableInput<R> {
    pub(crate) fn new(input: R, controller: RunController) -> Self {
        Self {
            input,
            controller,
            over: false,
        }
    }
}

impl<R: Read> Read for DetachableInput<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.over {
            let count = self.input.read(buffer)?;
            let typed = buffer[..count]
                .iter()
                .position(|byte| *byte == DETACH)
                .unwrap_or(count);
            self.over = typed < count || count == 0;
            if typed > 0 {
                return Ok(typed);
            }
        }
        self.controller.detach();
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use microagent::RunIo;

    use super::*;

    #[test]
    fn what_is_typed_before_the_key_arrives_and_nothing_after_it() {
        for (typed, arrives) in [
            (&b"ls\n\x1dnot this"[..], &b"ls\n"[..]),
            (b"\x1d", b""),
            (b"all of it", b"all of it"),
        ] {
            let io = RunIo::captured();
            let mut input = DetachableInput::new(typed, io.controller());
            let mut got = Vec::new();
            input.read_to_end(&mut got).unwrap();
            assert_eq!(got, arrives);
        }
    }
}
