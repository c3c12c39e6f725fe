//! The standard streams as files: without a buffer, and waited for.

use std::{fs::File, io};

/// A stream this process has, such as [`std::io::Stdin`].
#[cfg(unix)]
pub trait Stream: std::os::fd::AsFd {}
#[cfg(unix)]
impl<T: std::os::fd::AsFd> Stream for T {}

/// A stream this process has, such as [`std::io::Stdin`].
#[cfg(windows)]
pub trait Stream: std::os::windows::io::AsHandle {}
#[cfg(windows)]
impl<T: std::os::windows::io::AsHandle> Stream for T {}

/// Another handle on the stream, without the buffer it may have.
///
/// # Errors
/// The system's.
pub fn duplicate(stream: impl Stream) -> io::Result<File> {
    #[cfg(unix)]
    let owned = stream.as_fd().try_clone_to_owned()?;
    #[cfg(windows)]
    let owned = stream.as_handle().try_clone_to_owned()?;
    Ok(File::from(owned))
}

/// What a stream is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// It can be read.
    Read,
    /// It can be written.
    Write,
}

/// Waits until a stream that was made non-blocking is ready. It may return before.
///
/// # Errors
/// The system's; [`io::ErrorKind::Unsupported`] where streams always block.
pub fn wait(stream: &File, ready: Ready) -> io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::event::{PollFd, PollFlags, poll};
        let flags = match ready {
            Ready::Read => PollFlags::IN,
            Ready::Write => PollFlags::OUT,
        };
        match poll(&mut [PollFd::new(stream, flags)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (stream, ready);
        Err(crate::unsupported("waiting for a stream"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_duplicate_is_the_same_stream() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut copy = duplicate(&reader).unwrap();
        writer.write_all(b"x").unwrap();
        wait(&copy, Ready::Read).unwrap();
        let mut read = [0];
        copy.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"x");
    }
}
