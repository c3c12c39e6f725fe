//! The files of a disk, read as one.

use std::fs::File;
use std::io;
use std::path::Path;

use microagent_host::fs::Positioned;

use crate::list::{DiskList, Run};

/// A disk whose files are open.
#[derive(Debug)]
pub struct JoinedFile {
    list: DiskList,
    files: Vec<File>,
    /// Where each run begins on the disk.
    starts: Vec<u64>,
    size: u64,
}

impl JoinedFile {
    /// Opens the disk whose list is at `path`, with all its files.
    ///
    /// # Errors
    /// When a file cannot be opened or is shorter than the list wants, and `InvalidData` for what is no list.
    pub fn open(path: &Path) -> io::Result<Self> {
        let list = DiskList::read(path)?;
        let files = list
            .files()
            .iter()
            .map(|file| {
                let at = path.with_file_name(&file.name);
                let opened = File::open(&at).map_err(|error| {
                    io::Error::new(error.kind(), format!("{}: {error}", at.display()))
                })?;
                Ok(opened)
            })
            .collect::<io::Result<Vec<File>>>()?;
        let mut starts = Vec::with_capacity(list.runs().len());
        let mut size = 0;
        for run in list.runs() {
            if files[run.file].metadata()?.len() < run.offset + run.length {
                let name = &list.files()[run.file].name;
                return Err(invalid(format!(
                    "{name} is shorter than the disk's list says"
                )));
            }
            starts.push(size);
            size += run.length;
        }
        Ok(Self {
            list,
            files,
            starts,
            size,
        })
    }

    /// What it is made of.
    #[must_use]
    pub fn list(&self) -> &DiskList {
        &self.list
    }

    /// The open files alone, in the list's order.
    #[must_use]
    pub fn into_files(self) -> Vec<File> {
        self.files
    }

    /// The size of the disk.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` with what is at `offset` of the disk.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond its end, and when a file cannot be read.
    pub fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let next = self.starts.partition_point(|start| *start <= offset);
            let found = next
                .checked_sub(1)
                .map(|at| (self.list.runs()[at], offset - self.starts[at]))
                .filter(|(run, within)| *within < run.length);
            let Some((run, within)) = found else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let room = usize::try_from(run.length - within).unwrap_or(usize::MAX);
            let (part, rest) = buffer.split_at_mut(room.min(buffer.len()));
            self.files[run.file].read_exact_at(part, run.offset + within)?;
            offset += part.len() as u64;
            buffer = rest;
        }
        Ok(())
    }

    pub(crate) fn runs(&self) -> impl Iterator<Item = (&File, Run)> {
        self.list
            .runs()
            .iter()
            .map(|run| (&self.files[run.file], *run))
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// Two files of different bytes, one of them there twice.
    fn disk() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let bytes = |count: usize, by: usize| -> Vec<u8> {
            (0..count).map(|at| (at * by % 251) as u8).collect()
        };
        let (a, b) = (bytes(4096, 7), bytes(1536, 13));
        fs::write(at("a"), &a).unwrap();
        fs::write(at("b"), &b).unwrap();
        let mut list = DiskList::new();
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        for (name, digest, offset, length) in [
            ("a", &one, 0, 1024),
            ("b", &two, 0, 1536),
            ("b", &two, 512, 512),
            ("a", &one, 1024, 3072),
        ] {
            assert!(list.push(name, digest, offset, length));
        }
        let whole = [&a[..1024], &b, &b[512..1024], &a[1024..]].concat();
        fs::write(at("d.vmdk"), list.text()).unwrap();
        let path = at("d.vmdk");
        (directory, path, whole)
    }

    #[test]
    fn every_range_is_what_the_files_say() {
        let (_directory, path, whole) = disk();
        let joined = JoinedFile::open(&path).unwrap();
        assert_eq!(joined.size_bytes(), whole.len() as u64);
        for start in (0..whole.len()).step_by(97) {
            for end in (start..=whole.len()).step_by(211) {
                let mut buffer = vec![0; end - start];
                joined.read_exact_at(&mut buffer, start as u64).unwrap();
                assert!(buffer == whole[start..end], "{start}..{end}");
            }
        }
        let beyond = joined.read_exact_at(&mut [0; 2], whole.len() as u64 - 1);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let flat = joined.flat(&path).unwrap();
        assert!(fs::read(&flat).unwrap() == whole);
        assert_eq!(joined.flat(&path).unwrap(), flat);
    }

    #[test]
    fn a_disk_that_is_not_whole_is_not_opened() {
        let (_directory, path, _) = disk();
        let b = path.with_file_name("b");
        let kind = || JoinedFile::open(&path).unwrap_err().kind();
        fs::write(&b, [0; 1024]).unwrap();
        assert_eq!(kind(), io::ErrorKind::InvalidData);
        fs::remove_file(&b).unwrap();
        assert_eq!(kind(), io::ErrorKind::NotFound);
        fs::write(&path, "RW 1 FLAT \"/etc/shadow\" 0\n").unwrap();
        assert_eq!(kind(), io::ErrorKind::InvalidData);
    }
}
