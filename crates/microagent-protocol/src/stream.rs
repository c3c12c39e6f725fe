//! A byte stream inside a session's data frames.

use std::io::{self, BufRead, Read, Write};

use crate::frame::{FrameError, FrameKind, FrameReader, HEADER, MAX_DATA, encode_header};

/// Sends bytes as data frames of one kind, as few as possible.
#[derive(Debug)]
pub struct DataWriter<W> {
    stream: W,
    kind: FrameKind,
    /// A frame's header, to be filled in, and its payload so far.
    buffer: Vec<u8>,
}

impl<W: Write> DataWriter<W> {
    /// Sends frames of `kind` over `stream`.
    pub fn new(stream: W, kind: FrameKind) -> Self {
        let mut buffer = Vec::with_capacity(HEADER + MAX_DATA);
        buffer.resize(HEADER, 0);
        Self {
            stream,
            kind,
            buffer,
        }
    }

    /// Sends what is left and gives the stream back.
    ///
    /// # Errors
    /// The stream's.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush()?;
        Ok(self.stream)
    }
}

impl<W: Write> Write for DataWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = HEADER + MAX_DATA - self.buffer.len();
        let count = room.min(bytes.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if count == room {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let length = self.buffer.len() - HEADER;
        if length > 0 {
            let header = encode_header(self.kind, length).map_err(io::Error::other)?;
            self.buffer[..HEADER].copy_from_slice(&header);
            self.stream.write_all(&self.buffer)?;
            self.buffer.truncate(HEADER);
        }
        self.stream.flush()
    }
}

/// Reads the bytes of data frames of one kind, up to a frame of another kind.
#[derive(Debug)]
pub struct DataReader<R> {
    frames: FrameReader<R>,
    data: FrameKind,
    end: FrameKind,
    buffer: Vec<u8>,
    position: usize,
    ended: bool,
}

impl<R: Read> DataReader<R> {
    /// Reads frames of the kind `data` up to one of the kind `end`. Anything else, and the end of
    /// the connection, is an error: a stream that was cut is no stream that ended.
    pub fn new(frames: FrameReader<R>, data: FrameKind, end: FrameKind) -> Self {
        Self {
            frames,
            data,
            end,
            buffer: Vec::new(),
            position: 0,
            ended: false,
        }
    }

    /// The payload of the last frame, and the connection.
    ///
    /// # Errors
    /// If the stream is not at its end.
    pub fn into_end(mut self) -> io::Result<(Vec<u8>, FrameReader<R>)> {
        if !self.fill_buf()?.is_empty() {
            return Err(io::Error::other("the stream is longer than expected"));
        }
        Ok((self.buffer, self.frames))
    }

    /// The connection, wherever the stream is.
    pub fn into_inner(self) -> FrameReader<R> {
        self.frames
    }
}

impl<R: Read> BufRead for DataReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while !self.ended && self.position == self.buffer.len() {
            let frame = self.frames.require().map_err(|error| match error {
                FrameError::Io(error) => error,
                FrameError::Truncated => io::ErrorKind::UnexpectedEof.into(),
                other => io::Error::new(io::ErrorKind::InvalidData, other),
            })?;
            if frame.kind != self.data && frame.kind != self.end {
                let kind = frame.kind;
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a {kind:?} frame came in the middle of a stream"),
                ));
            }
            self.ended = frame.kind == self.end;
            self.buffer.clear();
            self.buffer.extend_from_slice(frame.payload);
            self.position = 0;
        }
        Ok(if self.ended {
            &[]
        } else {
            &self.buffer[self.position..]
        })
    }

    fn consume(&mut self, count: usize) {
        self.position = self.buffer.len().min(self.position + count);
    }
}

impl<R: Read> Read for DataReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::write_frame;

    proptest! {
        #[test]
        fn streams_survive(pieces in prop::collection::vec(0_usize..100_000, 0..6)) {
            let mut writer = DataWriter::new(Vec::new(), FrameKind::Stdin);
            let mut expected = Vec::new();
            for (index, length) in pieces.into_iter().enumerate() {
                let piece = vec![index as u8; length];
                writer.write_all(&piece).unwrap();
                expected.extend(piece);
            }
            let mut bytes = writer.finish().unwrap();
            write_frame(&mut bytes, FrameKind::Exit, b"{}").unwrap();
            write_frame(&mut bytes, FrameKind::Stdin, b"more").unwrap();
            let mut reader = DataReader::new(FrameReader::new(&bytes[..]), FrameKind::Stdin, FrameKind::Exit);
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            prop_assert!(read == expected);
            prop_assert_eq!(reader.into_end().unwrap().0, b"{}".to_vec());
        }
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let mut bytes = DataWriter::new(Vec::new(), FrameKind::Stdin);
        bytes.write_all(b"abc").unwrap();
        let bytes = bytes.finish().unwrap();
        for cut in 0..=bytes.len() {
            let frames = FrameReader::new(&bytes[..cut]);
            let mut reader = DataReader::new(frames, FrameKind::Stdin, FrameKind::StdinEof);
            assert!(reader.read_to_end(&mut Vec::new()).is_err(), "{cut}");
        }
        let mut other = bytes.clone();
        write_frame(&mut other, FrameKind::Signal, &[9]).unwrap();
        let frames = FrameReader::new(&other[..]);
        let mut reader = DataReader::new(frames, FrameKind::Stdin, FrameKind::StdinEof);
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
    }
}
