//! One output stream of the command: handed on as it comes, and its beginning kept.

use std::io::{self, Write};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use microagent_protocol::{CapturedOutput, output::OutputEncoding};

/// A writer and the kept beginning of what went through it.
pub(crate) struct Output {
    writer: Box<dyn Write + Send>,
    broken: bool,
    kept: Vec<u8>,
    limit: usize,
    total: u64,
}

impl Output {
    /// Hands bytes on to `writer` and keeps the first `limit`.
    pub(crate) fn new(writer: Box<dyn Write + Send>, limit: u32) -> Self {
        Self {
            writer,
            broken: false,
            kept: Vec::new(),
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            total: 0,
        }
    }

    /// Takes bytes of the command. After an error the writer gets no more, but the result does.
    ///
    /// # Errors
    /// The writer's, once.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = self.limit.saturating_sub(self.kept.len()).min(bytes.len());
        self.kept.extend_from_slice(&bytes[..room]);
        self.total += bytes.len() as u64;
        self.pass(bytes)
    }

    /// Hands bytes on that are not the command's own.
    ///
    /// # Errors
    /// The writer's, once.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.broken {
            return Ok(());
        }
        let written = self
            .writer
            .write_all(bytes)
            .and_then(|()| self.writer.flush());
        self.broken = written.is_err();
        written
    }

    /// What was kept.
    pub(crate) fn captured(&self) -> CapturedOutput {
        capture(&self.kept, self.total)
    }
}

fn capture(kept: &[u8], total: u64) -> CapturedOutput {
    let truncated = total > kept.len() as u64;
    let text = match std::str::from_utf8(kept) {
        Ok(text) => Some(text),
        // The limit may have cut the last character in two.
        Err(error) if truncated && error.error_len().is_none() => {
            std::str::from_utf8(&kept[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    let (encoding, data) = match text {
        Some(text) => (OutputEncoding::Utf8, text.to_owned()),
        None => (OutputEncoding::Base64, STANDARD.encode(kept)),
    };
    CapturedOutput {
        encoding,
        data,
        total_bytes: total,
        truncated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(limit: u32, chunks: &[&[u8]]) -> CapturedOutput {
        let mut output = Output::new(Box::new(io::sink()), limit);
        for chunk in chunks {
            output.take(chunk).unwrap();
        }
        output.captured()
    }

    #[test]
    fn the_beginning_is_kept_exactly() {
        let captured = run(5, &[b"abc", b"def"]);
        assert_eq!(captured.data, "abcde");
        assert_eq!((captured.total_bytes, captured.truncated), (6, true));
        let captured = run(6, &[b"abc", b"def"]);
        assert_eq!(
            (captured.data.as_str(), captured.truncated),
            ("abcdef", false)
        );
    }

    #[test]
    fn a_character_cut_by_the_limit_is_left_out_and_other_bytes_become_base64() {
        let captured = run(2, &["aé".as_bytes()]);
        assert_eq!(
            (captured.encoding, captured.data.as_str()),
            (OutputEncoding::Utf8, "a")
        );
        let captured = run(10, &[b"\xff\0"]);
        assert_eq!(
            (captured.encoding, captured.data.as_str()),
            (OutputEncoding::Base64, "/wA=")
        );
        let captured = run(10, &[&"é".as_bytes()[..1]]);
        assert_eq!(captured.encoding, OutputEncoding::Base64);
    }

    #[test]
    fn a_broken_writer_is_told_of_once_and_left_alone() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut output = Output::new(Box::new(Broken), 10);
        assert!(output.take(b"a").is_err());
        assert!(output.take(b"b").is_ok());
        assert_eq!(output.captured().data, "ab");
    }
}
