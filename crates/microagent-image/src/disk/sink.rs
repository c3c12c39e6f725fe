//! Where a disk's buffers go: past the host's page cache where the disk is fast enough, through it elsewhere.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use microagent_host::fs::{Positioned, reopen_direct};

use super::buffer::is_direct;
use crate::sync::Behind;

/// A small file is not worth another way.
const SMALL: u64 = 4 << 20;
/// Before so long a wait nothing is told of a disk.
const TELLING: Duration = Duration::from_millis(20);

/// Writes to a file what is only read again much later.
///
/// To copy a gigabyte into the page cache, and to find memory for it, takes the kernel more time than to hand it to
/// the disk. But then whoever writes waits for the disk: so that is done only as long as it is the lesser part of
/// its time.
pub(super) struct Sink {
    file: File,
    direct: Direct,
    behind: Behind,
}

enum Direct {
    /// Not tried yet.
    Untried,
    Open {
        file: File,
        since: Instant,
        waited: Duration,
    },
    /// The file system has no such thing, or the disk is too slow.
    Not,
}

impl Sink {
    pub(super) fn new(file: &File) -> io::Result<Self> {
        Ok(Self {
            file: file.try_clone()?,
            direct: Direct::Untried,
            behind: Behind::default(),
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        if at >= SMALL && is_direct(bytes, at) && self.written_directly(bytes, at) {
            return Ok(());
        }
        self.file.write_all_at(bytes, at)?;
        self.behind.reached(&self.file, at + bytes.len() as u64);
        Ok(())
    }

    /// Nothing comes behind `end`.
    pub(super) fn finish(&mut self, end: u64) {
        self.behind.finish(&self.file, end);
    }

    fn written_directly(&mut self, bytes: &[u8], at: u64) -> bool {
        if matches!(self.direct, Direct::Untried) {
            self.behind.finish(&self.file, at);
            self.direct = match reopen_direct(&self.file) {
                Ok(file) => Direct::Open {
                    file,
                    since: Instant::now(),
                    waited: Duration::ZERO,
                },
                Err(_) => Direct::Not,
            };
        }
        let Direct::Open {
            file,
            since,
            waited,
        } = &mut self.direct
        else {
            return false;
        };
        let begun = Instant::now();
        // What is wrong with the disk and not with this way to it is found by the other one.
        let written = file.write_all_at(bytes, at).is_ok();
        *waited += begun.elapsed();
        if !written || (*waited > TELLING && *waited > since.elapsed() / 2) {
            self.direct = Direct::Not;
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;
    use crate::disk::buffer::PageBuffer;

    const BUFFER: usize = 1 << 20;

    /// In the build directory, whose file system is a real one, as in the one for temporary files.
    #[test]
    fn whatever_way_it_takes_the_file_is_what_was_written() {
        for directory in [std::env::temp_dir(), std::env::current_dir().unwrap()] {
            for never in [false, true] {
                let mut file = tempfile::tempfile_in(&directory).unwrap();
                let mut sink = Sink::new(&file).unwrap();
                let (mut all, mut buffer) = (Vec::new(), PageBuffer::with_capacity(BUFFER));
                // The last ones are not whole pages, and the very last not a buffer.
                for (number, length) in [BUFFER; 12]
                    .into_iter()
                    .chain([2048, BUFFER, 99])
                    .enumerate()
                {
                    buffer.clear();
                    buffer.extend(&vec![number as u8 + 1; length]);
                    if never && number == 8 {
                        sink.direct = Direct::Not;
                    }
                    sink.write(&buffer, all.len() as u64).unwrap();
                    all.extend_from_slice(&buffer);
                }
                sink.finish(all.len() as u64);
                let mut found = Vec::new();
                file.rewind().unwrap();
                file.read_to_end(&mut found).unwrap();
                assert!(found == all);
            }
        }
    }
}
