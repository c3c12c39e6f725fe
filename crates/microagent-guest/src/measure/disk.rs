//! How fast the disks are, past the guest's page cache.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    time::Instant,
};

use microagent_protocol::{guest::BASE_SERIAL, measure::DiskTimes};

use crate::boot::disks;

const MIB: u64 = 1 << 20;
/// The most that is read and written from end to end.
const MOST_MIB: u64 = 64 * 1024;
const SMALL: usize = 4096;
/// How many small pieces are read or written.
const PIECES: u32 = 256;
/// How many small pieces are written one by one to stable storage.
const SYNCS: usize = 32;
/// The base disk is the first one where disks have no serials.
const BASE_POSITION: usize = 0;
/// It has this name only until it is open.
const FILE: &str = "/.microagent-measure";

pub(super) fn measure(mib: u64) -> io::Result<DiskTimes> {
    if !(1..=MOST_MIB).contains(&mib) {
        return Err(super::wrong("a size out of bounds"));
    }
    let mut buffer = Buffer::new();
    let scratch = scratch(Path::new(FILE))?;
    let bytes = mib * MIB;
    let scratch_write = timed(|| {
        for at in 0..mib {
            scratch.write_all_at(buffer.whole(), at * MIB)?;
        }
        scratch.sync_all()
    })?;
    let mut places = Places::new(bytes);
    let scratch_random_write = timed(|| {
        for _ in 0..PIECES {
            scratch.write_all_at(buffer.small(), places.next())?;
        }
        scratch.sync_data()
    })?;
    let mut syncs = [0; SYNCS];
    for sync in &mut syncs {
        *sync = timed(|| {
            scratch.write_all_at(buffer.small(), places.next())?;
            scratch.sync_data()
        })?;
    }
    syncs.sort_unstable();
    let scratch_read = read(&scratch, bytes, &mut buffer)?;
    let scratch_random_read = read_pieces(&scratch, bytes, &mut buffer)?;

    let (base, base_size) = base()?;
    // An image may be smaller than that.
    let base_bytes = bytes.min(base_size / SMALL as u64 * SMALL as u64);
    Ok(DiskTimes {
        bytes,
        scratch_write,
        scratch_read,
        scratch_random_write: scratch_random_write / u64::from(PIECES),
        scratch_random_read,
        scratch_sync: syncs[SYNCS / 2],
        base_bytes,
        base_read: read(&base, base_bytes, &mut buffer)?,
        base_random_read: read_pieces(&base, base_size, &mut buffer)?,
    })
}

/// A new file that goes when it is closed.
fn scratch(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    fs::remove_file(path)?;
    Ok(file)
}

/// The base disk, and its size.
fn base() -> io::Result<(File, u64)> {
    let path = disks::wait_for(BASE_SERIAL, Some(BASE_POSITION)).map_err(io::Error::other)?;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    Ok((file, size))
}

fn read(file: &File, bytes: u64, buffer: &mut Buffer) -> io::Result<u64> {
    timed(|| {
        let mut at = 0;
        while at < bytes {
            let part = (bytes - at).min(MIB);
            file.read_exact_at(&mut buffer.whole()[..part as usize], at)?;
            at += part;
        }
        Ok(())
    })
}

fn read_pieces(file: &File, size: u64, buffer: &mut Buffer) -> io::Result<u64> {
    let mut places = Places::new(size);
    let all =
        timed(|| (0..PIECES).try_for_each(|_| file.read_exact_at(buffer.small(), places.next())))?;
    Ok(all / u64::from(PIECES))
}

fn timed(work: impl FnOnce() -> io::Result<()>) -> io::Result<u64> {
    let begun = Instant::now();
    work()?;
    Ok(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// Bytes that begin where a disk wants them to.
struct Buffer {
    bytes: Vec<u8>,
    skip: usize,
}

impl Buffer {
    fn new() -> Self {
        // What is all zero may be left out by what lies below.
        let bytes: Vec<u8> = (0..MIB as usize + SMALL)
            .map(|at| (at % 251) as u8)
            .collect();
        let skip = bytes.as_ptr().align_offset(SMALL);
        Self { bytes, skip }
    }

    fn whole(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + MIB as usize]
    }

    fn small(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + SMALL]
    }
}

/// Places of small pieces, the same ones in the same order each time.
struct Places {
    state: u64,
    count: u64,
}

impl Places {
    fn new(bytes: u64) -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15,
            count: (bytes / SMALL as u64).max(1),
        }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % self.count * SMALL as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_inside_and_many() {
        let mut places = Places::new(64 * MIB);
        let mut all: Vec<u64> = (0..PIECES).map(|_| places.next()).collect();
        assert!(all.iter().all(|at| at % 4096 == 0 && *at < 64 * MIB));
        all.sort_unstable();
        all.dedup();
        assert!(all.len() > 200);
        assert_eq!(Places::new(1).next(), 0);
    }

    #[test]
    fn a_buffer_is_where_disks_want_it_and_the_file_is_gone_at_once() {
        let mut buffer = Buffer::new();
        assert_eq!(buffer.whole().as_ptr().align_offset(SMALL), 0);
        assert_eq!(buffer.small().len(), SMALL);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        // Not every file system has direct access.
        if let Ok(file) = scratch(&path) {
            assert!(!path.exists());
            file.write_all_at(buffer.whole(), 0).unwrap();
            assert!(read(&file, MIB, &mut buffer).unwrap() > 0);
            assert!(read_pieces(&file, MIB, &mut buffer).unwrap() > 0);
        }
        assert!(measure(0).is_err() && measure(MOST_MIB + 1).is_err());
    }
}
