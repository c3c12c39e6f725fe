//! Framing: one frame is a 4-byte big-endian body length, one kind byte, and
//! the payload. The length counts the kind byte.
//!
//! Both protocols use it. Data frames carry at most [`MAX_DATA`] bytes, JSON
//! frames at most [`MAX_JSON`]; a longer one is refused before it is read.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// The most payload bytes of a data frame (stdin, stdout, stderr).
pub const MAX_DATA: usize = 64 * 1024;

/// The most payload bytes of a JSON frame.
pub const MAX_JSON: usize = 4 * 1024 * 1024;

/// How many stdin bytes may be on their way to a process before it took some.
///
/// The sender starts with this much credit and gets more by
/// [`FrameKind::StdinCredit`]; so a process that does not read its input never
/// blocks the signals that follow it in the same stream.
pub const STDIN_WINDOW: u32 = 256 * 1024;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// JSON: opens a session, or answers that opening.
    Header = 1,
    /// Bytes for the process's standard input.
    Stdin = 2,
    /// Empty: the end of standard input.
    StdinEof = 3,
    /// Bytes the process wrote to standard output (or its terminal).
    Stdout = 4,
    /// Bytes the process wrote to standard error.
    Stderr = 5,
    /// One byte: a Linux signal number for the process's group.
    Signal = 6,
    /// Four bytes: rows and columns, each a big-endian `u16`.
    Resize = 7,
    /// JSON: how the process ended. Always the last frame of a session.
    Exit = 8,
    /// Four bytes, big-endian: stdin bytes the process took since the last one.
    StdinCredit = 9,
    /// JSON: a message of the guest's control connection, either way.
    Control = 10,
    /// JSON: a request to a supervisor.
    Request = 16,
    /// JSON: a supervisor's answer to a request.
    Response = 17,
    /// JSON: a supervisor's event.
    Event = 18,
}

impl FrameKind {
    /// Every kind.
    pub const ALL: [Self; 13] = [
        Self::Header,
        Self::Stdin,
        Self::StdinEof,
        Self::Stdout,
        Self::Stderr,
        Self::Signal,
        Self::Resize,
        Self::Exit,
        Self::StdinCredit,
        Self::Control,
        Self::Request,
        Self::Response,
        Self::Event,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// The most payload bytes a frame of this kind may have.
    #[must_use]
    pub const fn max_payload(self) -> usize {
        match self {
            Self::Stdin | Self::Stdout | Self::Stderr => MAX_DATA,
            Self::StdinEof => 0,
            Self::Signal => 1,
            Self::Resize | Self::StdinCredit => 4,
            _ => MAX_JSON,
        }
    }
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The stream ended inside a frame.
    #[error("the connection ended inside a frame")]
    Truncated,
    /// The kind byte is none of ours.
    #[error("a frame has the unknown kind {0}")]
    UnknownKind(u8),
    /// The length does not fit the kind.
    #[error("a {kind:?} frame of {length} payload bytes is not allowed (at most {max})")]
    BadLength {
        /// The frame's kind.
        kind: FrameKind,
        /// The payload length it claimed.
        length: usize,
        /// The most that is allowed.
        max: usize,
    },
    /// The payload is not the JSON that was expected.
    #[error("a {kind:?} frame is not understood: {source}")]
    Json {
        /// The frame's kind.
        kind: FrameKind,
        /// What the JSON reader said.
        source: serde_json::Error,
    },
    /// Another kind of frame was due.
    #[error("a {got:?} frame came where {wanted} was due")]
    Unexpected {
        /// The kind that came.
        got: FrameKind,
        /// What was due.
        wanted: &'static str,
    },
}

/// One frame as read: its kind and its payload, borrowed from the reader's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it carries.
    pub kind: FrameKind,
    /// Its payload.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame of `bytes` and what follows it, or `None` if it is not
    /// complete yet: for non-blocking streams. A bad one is refused as soon as
    /// its header is there.
    ///
    /// # Errors
    /// [`FrameError::UnknownKind`], [`FrameError::BadLength`].
    pub fn split(bytes: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, FrameError> {
        let Some((header, rest)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        let (kind, length) = decode_header(*header)?;
        Ok(rest
            .split_at_checked(length)
            .map(|(payload, rest)| (Self { kind, payload }, rest)))
    }
}

impl Frame<'_> {
    /// The payload as JSON.
    ///
    /// # Errors
    /// [`FrameError::Json`] if it is not a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        serde_json::from_slice(self.payload).map_err(|source| FrameError::Json {
            kind: self.kind,
            source,
        })
    }

    /// The payload as JSON, if this frame is of `kind`.
    ///
    /// # Errors
    /// [`FrameError::Unexpected`] for another kind, [`FrameError::Json`] for a bad payload.
    pub fn expect_json<T: DeserializeOwned>(
        &self,
        kind: FrameKind,
        wanted: &'static str,
    ) -> Result<T, FrameError> {
        if self.kind == kind {
            self.json()
        } else {
            Err(FrameError::Unexpected {
                got: self.kind,
                wanted,
            })
        }
    }

    /// The payload as a big-endian `u32` (stdin credit).
    #[must_use]
    pub fn as_u32(&self) -> Option<u32> {
        self.payload.try_into().ok().map(u32::from_be_bytes)
    }
}

/// Reads frames from a blocking stream, reusing one buffer.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    buffer: Vec<u8>,
}

impl<R: Read> FrameReader<R> {
    /// Reads frames from `stream`.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// The stream inside.
    pub fn get_ref(&self) -> &R {
        &self.stream
    }

    /// Gives the stream back; between frames nothing is buffered.
    pub fn into_inner(self) -> R {
        self.stream
    }

    /// The next frame, or `None` when the stream ended between two frames.
    ///
    /// # Errors
    /// Any [`FrameError`] but `Unexpected` and `Json`; the stream is then out of step and useless.
    pub fn read(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let mut header = [0_u8; 5];
        if !self.fill_header(&mut header)? {
            return Ok(None);
        }
        let (kind, length) = decode_header(header)?;
        let mut got = 0;
        while got < length {
            // Grow as bytes arrive, not by the claimed length. What was grown once stays.
            let end = length.min(got + MAX_DATA);
            if self.buffer.len() < end {
                self.buffer.resize(end, 0);
            }
            match self.stream.read(&mut self.buffer[got..end]) {
                Ok(0) => return Err(FrameError::Truncated),
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(Frame {
            kind,
            payload: &self.buffer[..length],
        }))
    }

    /// Like [`Self::read`], where the stream must not end yet.
    ///
    /// # Errors
    /// As [`Self::read`]; [`FrameError::Truncated`] at the end of the stream.
    pub fn require(&mut self) -> Result<Frame<'_>, FrameError> {
        self.read()?.ok_or(FrameError::Truncated)
    }

    fn fill_header(&mut self, header: &mut [u8; 5]) -> Result<bool, FrameError> {
        let mut filled = 0;
        while filled < header.len() {
            match self.stream.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(FrameError::Truncated),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// The bytes of a frame before its payload.
pub const HEADER: usize = 5;

/// The header of a frame with `length` payload bytes.
///
/// # Errors
/// [`FrameError::BadLength`] if that is too long for the kind.
pub fn encode_header(kind: FrameKind, length: usize) -> Result<[u8; HEADER], FrameError> {
    let max = kind.max_payload();
    if length > max {
        return Err(FrameError::BadLength { kind, length, max });
    }
    // A payload is at most MAX_JSON, so the sum fits 32 bits.
    let [a, b, c, d] = (length as u32 + 1).to_be_bytes();
    Ok([a, b, c, d, kind as u8])
}

fn decode_header(header: [u8; HEADER]) -> Result<(FrameKind, usize), FrameError> {
    let [a, b, c, d, kind] = header;
    let kind = FrameKind::from_byte(kind).ok_or(FrameError::UnknownKind(kind))?;
    let body = u32::from_be_bytes([a, b, c, d]) as usize;
    let max = kind.max_payload();
    let length = body.wrapping_sub(1);
    if length > max {
        return Err(FrameError::BadLength { kind, length, max });
    }
    Ok((kind, length))
}

/// Writes one frame with a single `write_all`.
///
/// # Errors
/// [`FrameError::BadLength`] if the payload is too long for its kind, or the stream's error.
pub fn write_frame(
    stream: &mut impl Write,
    kind: FrameKind,
    payload: &[u8],
) -> Result<(), FrameError> {
    let header = encode_header(kind, payload.len())?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(payload);
    stream.write_all(&bytes)?;
    Ok(())
}

/// Writes one JSON frame.
///
/// # Errors
/// As [`write_frame`]; [`FrameError::Json`] if `message` cannot be written as JSON.
pub fn write_json(
    stream: &mut impl Write,
    kind: FrameKind,
    message: &impl Serialize,
) -> Result<(), FrameError> {
    let payload =
        serde_json::to_vec(message).map_err(|source| FrameError::Json { kind, source })?;
    write_frame(stream, kind, &payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kinds_round_trip_and_others_are_refused() {
        for kind in FrameKind::ALL {
            let mut bytes = Vec::new();
            write_frame(&mut bytes, kind, &vec![b'1'; kind.max_payload().min(4)]).unwrap();
            assert_eq!(
                FrameReader::new(&bytes[..]).read().unwrap().unwrap().kind,
                kind
            );
        }
        let unknown = [0, 0, 0, 1, 99];
        assert!(matches!(
            FrameReader::new(&unknown[..]).read(),
            Err(FrameError::UnknownKind(99))
        ));
    }

    #[test]
    fn lengths_are_checked_before_the_payload_is_read() {
        for length in [0_u32, 2 + MAX_DATA as u32, u32::MAX] {
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.push(FrameKind::Stdout as u8);
            assert!(
                matches!(
                    FrameReader::new(&bytes[..]).read(),
                    Err(FrameError::BadLength { .. })
                ),
                "{length}"
            );
        }
    }

    #[test]
    fn a_clean_end_is_told_from_a_torn_one() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, FrameKind::Stdout, b"hello").unwrap();
        for cut in 0..bytes.len() {
            let mut reader = FrameReader::new(&bytes[..cut]);
            match reader.read() {
                Ok(None) => assert_eq!(cut, 0),
                Err(FrameError::Truncated) => assert_ne!(cut, 0),
                other => panic!("cut at {cut}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let mut reader = FrameReader::new(&bytes[..]);
            while let Ok(Some(frame)) = reader.read() {
                prop_assert!(frame.payload.len() <= frame.kind.max_payload());
            }
        }

        #[test]
        fn splitting_agrees_with_reading(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = FrameReader::new(&bytes[..]);
            match (Frame::split(&bytes), reader.read()) {
                (Ok(Some((split, _))), Ok(Some(read))) => prop_assert_eq!(split, read),
                (Ok(None), Ok(None) | Err(FrameError::Truncated)) => {}
                (Err(split), Err(read)) => prop_assert_eq!(split.to_string(), read.to_string()),
                (split, read) => prop_assert!(false, "{split:?} {read:?}"),
            }
        }

        #[test]
        fn frames_survive_any_chunking(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8)) {
            let mut bytes = Vec::new();
            for payload in &payloads {
                write_frame(&mut bytes, FrameKind::Stderr, payload).unwrap();
            }
            let mut reader = FrameReader::new(OneByte(&bytes));
            for payload in &payloads {
                prop_assert_eq!(reader.require().unwrap().payload, &payload[..]);
            }
            prop_assert!(reader.read().unwrap().is_none());
        }
    }

    struct OneByte<'a>(&'a [u8]);

    impl Read for OneByte<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(1);
            self.0.read(&mut buffer[..count])
        }
    }
}
