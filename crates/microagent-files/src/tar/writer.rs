//! Writing tar streams: ustar headers, with PAX records for what those cannot hold.
//!
//! Equal entries give equal bytes. Every tar program reads the result; the sparse files in it need
//! one that knows GNU's format 1.0, as most do.

use std::io::{self, Write};

use super::header::BLOCK;
use super::reader::{Entry, EntryKind};

/// A run of a file that is stored: its offset and length. The rest of the file is holes.
pub type Segment = (u64, u64);

/// The largest number in a ustar size field, and one more.
const USTAR_SIZE: u64 = 1 << 33;

/// The largest user or group id in a ustar field, and one more.
const USTAR_ID: u32 = 1 << 21;

/// Writes entries to a stream.
#[derive(Debug)]
pub struct TarWriter<W> {
    output: W,
    /// Content bytes the present entry still owes.
    owed: u64,
    padding: usize,
}

impl<W: Write> TarWriter<W> {
    /// Begins an archive.
    pub fn new(output: W) -> Self {
        Self {
            output,
            owed: 0,
            padding: 0,
        }
    }

    /// Begins an entry. A file's content follows by [`Self::content`], exactly as many bytes as its
    /// size, or, where `segments` are given, as these add up to.
    ///
    /// # Errors
    /// The stream's, and one for the previous entry's content if it is not complete.
    pub fn entry(&mut self, entry: &Entry, segments: Option<&[Segment]>) -> io::Result<()> {
        self.end_entry()?;
        let mut records = Vec::new();
        let map = segments.map(|segments| sparse_map(segments, entry.size));
        let (name, stored) = match (&map, segments) {
            (Some(map), Some(segments)) => {
                for (key, value) in [("major", 1), ("minor", 0), ("realsize", entry.size)] {
                    let key = format!("GNU.sparse.{key}");
                    record(&mut records, key.as_bytes(), value.to_string().as_bytes());
                }
                record(&mut records, b"GNU.sparse.name", &entry.path);
                let data: u64 = segments.iter().map(|(_, length)| length).sum();
                (b"GNUSparseFile.0/sparse".to_vec(), data + map.len() as u64)
            }
            _ if entry.kind == EntryKind::File => (entry.path.clone(), entry.size),
            _ => (entry.path.clone(), 0),
        };
        let header = self.header(entry, name, stored, &mut records);
        if !records.is_empty() {
            self.extension(&records)?;
        }
        self.output.write_all(&header)?;
        self.owed = stored;
        self.padding = padding(stored);
        match map {
            Some(map) => self.content(&map),
            None => Ok(()),
        }
    }

    /// More of the present entry's content.
    ///
    /// # Errors
    /// The stream's, and one if it is more than the entry's size.
    pub fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.owed = self
            .owed
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("more content than the entry's size"))?;
        self.output.write_all(bytes)
    }

    /// The stream.
    pub fn get_ref(&self) -> &W {
        &self.output
    }

    /// Ends the archive and gives the stream back.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn finish(mut self) -> io::Result<W> {
        self.end_entry()?;
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn end_entry(&mut self) -> io::Result<()> {
        if self.owed > 0 {
            return Err(io::Error::other("less content than the entry's size"));
        }
        let padding = std::mem::take(&mut self.padding);
        self.output.write_all(&[0; BLOCK][..padding])
    }

    /// The header, with what does not fit into it among the `records`.
    fn header(
        &self,
        entry: &Entry,
        mut name: Vec<u8>,
        stored: u64,
        records: &mut Vec<u8>,
    ) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        let (kind, link, device) = match &entry.kind {
            EntryKind::File => (b'0', None, None),
            EntryKind::HardLink(target) => (b'1', Some(target), None),
            EntryKind::Symlink(target) => (b'2', Some(target), None),
            EntryKind::Character(major, minor) => (b'3', None, Some((*major, *minor))),
            EntryKind::Block(major, minor) => (b'4', None, Some((*major, *minor))),
            EntryKind::Directory => (b'5', None, None),
            EntryKind::Fifo => (b'6', None, None),
        };
        if kind == b'5' && !name.ends_with(b"/") {
            name.push(b'/');
        }
        if name.len() > 100 {
            record(records, b"path", &name);
        }
        put(&mut header[..100], &name);
        if let Some(link) = link {
            if link.len() > 100 {
                record(records, b"linkpath", link);
            }
            put(&mut header[157..257], link);
        }
        octal(&mut header[100..108], u64::from(entry.mode & 0o7777));
        for (key, field, id) in [("uid", 108..116, entry.uid), ("gid", 116..124, entry.gid)] {
            if id >= USTAR_ID {
                record(records, key.as_bytes(), id.to_string().as_bytes());
            } else {
                octal(&mut header[field], u64::from(id));
            }
        }
        if stored >= USTAR_SIZE {
            record(records, b"size", stored.to_string().as_bytes());
        } else {
            octal(&mut header[124..136], stored);
        }
        let (seconds, nanos) = entry.mtime;
        match u64::try_from(seconds) {
            Ok(seconds) if nanos == 0 && seconds < USTAR_SIZE => {
                octal(&mut header[136..148], seconds);
            }
            _ => record(records, b"mtime", time(seconds, nanos).as_bytes()),
        }
        for (name, value) in &entry.xattrs {
            record(records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        if let Some((major, minor)) = device {
            octal(&mut header[329..337], u64::from(major));
            octal(&mut header[337..345], u64::from(minor));
        }
        seal(&mut header);
        header
    }

    fn extension(&mut self, records: &[u8]) -> io::Result<()> {
        let mut header = [0; BLOCK];
        put(&mut header[..100], b"PaxHeaders/entry");
        octal(&mut header[100..108], 0o644);
        octal(&mut header[108..116], 0);
        octal(&mut header[116..124], 0);
        octal(&mut header[124..136], records.len() as u64);
        octal(&mut header[136..148], 0);
        header[156] = b'x';
        header[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut header);
        self.output.write_all(&header)?;
        self.output.write_all(records)?;
        self.output
            .write_all(&[0; BLOCK][..padding(records.len() as u64)])
    }
}

fn padding(length: u64) -> usize {
    // Less than a block.
    (BLOCK - (length % BLOCK as u64) as usize) % BLOCK
}

/// The map of GNU's sparse format 1.0, padded to whole blocks.
fn sparse_map(segments: &[Segment], size: u64) -> Vec<u8> {
    // GNU tar takes the end of the last segment for the end of the file.
    let end = [(size, 0)];
    let mut map = format!("{}\n", segments.len() + 1);
    for (offset, length) in segments.iter().chain(&end) {
        map.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len() + padding(map.len() as u64), 0);
    map
}

/// As much of `text` as fits.
fn put(field: &mut [u8], text: &[u8]) {
    let length = field.len().min(text.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// A number that fits, as octal digits and a NUL.
fn octal(field: &mut [u8], mut number: u64) {
    for byte in field.iter_mut().rev().skip(1) {
        *byte = b'0' + (number % 8) as u8;
        number /= 8;
    }
}

fn seal(header: &mut [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum = header.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut header[148..155], sum);
}

/// A PAX record, whose length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn time(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanos:09}"),
        // Nanoseconds count forwards, digits backwards.
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::super::{Content, TarLimits, TarReader};
    use super::*;

    fn entry(path: &[u8], kind: EntryKind) -> Entry {
        Entry {
            path: path.to_vec(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            xattrs: Vec::new(),
        }
    }

    fn kinds() -> impl Strategy<Value = EntryKind> {
        let target = prop::collection::vec(1_u8.., 1..200);
        prop_oneof![
            Just(EntryKind::File),
            Just(EntryKind::Directory),
            target.clone().prop_map(EntryKind::Symlink),
            target.prop_map(EntryKind::HardLink),
            (0_u32..4096, 0_u32..(1 << 20))
                .prop_map(|(major, minor)| EntryKind::Character(major, minor)),
            (0_u32..4096, 0_u32..(1 << 20))
                .prop_map(|(major, minor)| EntryKind::Block(major, minor)),
            Just(EntryKind::Fifo),
        ]
    }

    prop_compose! {
        fn entries()(
            path in prop::collection::vec(prop_oneof![Just(b'a'), Just(b'/'), 1_u8..], 1..150),
            kind in kinds(),
            mode in 0_u16..0o10000,
            uid: u32, gid: u32,
            mtime in (any::<i32>().prop_map(i64::from), 0_u32..1_000_000_000),
            content in prop::collection::vec(any::<u8>(), 0..2000),
            value in prop::collection::vec(any::<u8>(), 0..100),
        ) -> (Entry, Vec<u8>) {
            // A trailing slash is a directory's.
            let mut path = path;
            while path.last() == Some(&b'/') && path.len() > 1 { path.pop(); }
            if path == b"/" { path = b"x".to_vec(); }
            let content = if kind == EntryKind::File { content } else { Vec::new() };
            let size = content.len() as u64;
            let xattrs = vec![(b"user.note".to_vec(), value)];
            (Entry { path, kind, mode, uid, gid, mtime, size, xattrs }, content)
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in prop::collection::vec(entries(), 0..8)) {
            let mut writer = TarWriter::new(Vec::new());
            for (entry, content) in &entries {
                writer.entry(entry, None).unwrap();
                writer.content(content).unwrap();
            }
            let bytes = writer.finish().unwrap();
            let mut reader = TarReader::new(&bytes[..], TarLimits::default());
            for (entry, content) in &entries {
                let mut read = reader.next_entry().unwrap().unwrap();
                if read.kind == EntryKind::Directory && read.path.last() == Some(&b'/') {
                    read.path.pop();
                }
                prop_assert_eq!(&read, entry);
                let mut bytes = Vec::new();
                reader.read_content(|piece| {
                    if let Content::Data(data) = piece { bytes.extend_from_slice(data); }
                    Ok::<_, crate::tar::TarFault>(())
                }).unwrap();
                prop_assert_eq!(&bytes, content);
            }
            prop_assert!(reader.next_entry().unwrap().is_none());
            prop_assert!(reader.saw_end_marker());
        }
    }

    #[test]
    fn holes_are_kept() {
        let mut writer = TarWriter::new(Vec::new());
        let sparse = Entry {
            size: 1 << 40,
            ..entry(b"disk", EntryKind::File)
        };
        let segments = [(4096, 3), (1 << 39, 2)];
        writer.entry(&sparse, Some(&segments)).unwrap();
        writer.content(b"abcde").unwrap();
        let bytes = writer.finish().unwrap();
        let mut reader = TarReader::new(&bytes[..], TarLimits::default());
        let read = reader.next_entry().unwrap().unwrap();
        assert_eq!((&read.path[..], read.size), (&b"disk"[..], 1 << 40));
        let mut seen = Vec::new();
        reader
            .read_content(|piece| {
                seen.push(match piece {
                    Content::Data(data) => data.len() as u64,
                    Content::Hole(length) => length,
                });
                Ok::<_, crate::tar::TarFault>(())
            })
            .unwrap();
        assert_eq!(
            seen,
            [4096, 3, (1 << 39) - 4099, 2, (1 << 40) - (1 << 39) - 2]
        );
    }

    #[test]
    fn content_must_be_what_was_announced() {
        let mut writer = TarWriter::new(Vec::new());
        let file = Entry {
            size: 3,
            ..entry(b"a", EntryKind::File)
        };
        writer.entry(&file, None).unwrap();
        assert!(writer.content(b"abcd").is_err());
        writer.content(b"ab").unwrap();
        assert!(writer.finish().is_err());
    }

    #[test]
    fn the_systems_tar_agrees() {
        let mut writer = TarWriter::new(Vec::new());
        let name = "n".repeat(150);
        writer
            .entry(&entry(b"d", EntryKind::Directory), None)
            .unwrap();
        let file = Entry {
            size: 5,
            mtime: (1_600_000_000, 500_000_000),
            uid: 3_000_000,
            ..entry(format!("d/{name}").as_bytes(), EntryKind::File)
        };
        writer.entry(&file, None).unwrap();
        writer.content(b"hello").unwrap();
        let sparse = Entry {
            size: 1 << 20,
            ..entry(b"d/sparse", EntryKind::File)
        };
        writer.entry(&sparse, Some(&[(1 << 19, 4)])).unwrap();
        writer.content(b"data").unwrap();
        let bytes = writer.finish().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("x.tar");
        std::fs::write(&archive, bytes).unwrap();
        let done = std::process::Command::new("tar")
            .arg("-xf")
            .arg(&archive)
            .arg("-C")
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
        let mut text = String::new();
        let mut read = std::fs::File::open(folder.path().join("d").join(name)).unwrap();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        let sparse = std::fs::read(folder.path().join("d/sparse")).unwrap();
        assert_eq!(
            (sparse.len(), &sparse[1 << 19..][..4]),
            (1 << 20, &b"data"[..])
        );
    }
}
