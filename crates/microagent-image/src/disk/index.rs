//! What a layer's entries say, without their content: written when the layer is converted, read whenever it is merged.
//!
//! A record is an entry as the archive has it, and where in the layer's piece its content lies. Numbers are little
//! endian, byte strings have their length in front. Who reads it trusts nothing: it is a file.

use std::io::{self, BufRead, Read, Write};

use microagent_files::tar::{Entry, EntryKind};

use super::content::{Extent, Extents};
use super::limits::Limits;

/// Of an index, read or written at once.
pub(super) const INDEX_BUFFER: usize = 256 << 10;
/// What an index begins with; the format is part of the file's name.
const MAGIC: &[u8; 8] = b"uagtidx\n";
const END: u8 = 0;
const ENTRY: u8 = 1;
/// More attributes than an inode could hold.
const MAX_XATTRS: u32 = 4096;
const MAX_XATTR_BYTES: u64 = 1 << 20;

/// Writes an index.
pub(super) struct IndexWriter<W> {
    out: W,
}

impl<W: Write> IndexWriter<W> {
    pub(super) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        Ok(Self { out })
    }

    pub(super) fn entry(&mut self, entry: &Entry, extents: &Extents) -> io::Result<()> {
        let out = &mut self.out;
        out.write_all(&[ENTRY])?;
        let (kind, (a, b), link): (u8, (u32, u32), &[u8]) = match &entry.kind {
            EntryKind::File => (0, (0, 0), &[]),
            EntryKind::Directory => (1, (0, 0), &[]),
            EntryKind::Symlink(target) => (2, (0, 0), target),
            EntryKind::HardLink(target) => (3, (0, 0), target),
            EntryKind::Character(major, minor) => (4, (*major, *minor), &[]),
            EntryKind::Block(major, minor) => (5, (*major, *minor), &[]),
            EntryKind::Fifo => (6, (0, 0), &[]),
        };
        out.write_all(&[kind])?;
        bytes(out, &entry.path)?;
        for number in [a, b, u32::from(entry.mode), entry.uid, entry.gid] {
            out.write_all(&number.to_le_bytes())?;
        }
        out.write_all(&entry.mtime.0.to_le_bytes())?;
        out.write_all(&entry.mtime.1.to_le_bytes())?;
        out.write_all(&entry.size.to_le_bytes())?;
        bytes(out, link)?;
        count(out, entry.xattrs.len())?;
        for (name, value) in &entry.xattrs {
            bytes(out, name)?;
            bytes(out, value)?;
        }
        let extents = extents.as_slice();
        count(out, extents.len())?;
        for extent in extents {
            for number in [extent.logical, extent.start, extent.length] {
                out.write_all(&number.to_le_bytes())?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[END])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn count(out: &mut impl Write, count: usize) -> io::Result<()> {
    let count = u32::try_from(count).map_err(|_| damaged("too much of something"))?;
    out.write_all(&count.to_le_bytes())
}

fn bytes(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    count(out, bytes.len())?;
    out.write_all(bytes)
}

/// Reads an index.
pub(super) struct IndexReader<'l, R> {
    input: R,
    limits: &'l Limits,
    /// Blocks of the piece: no content lies beyond.
    blocks: u32,
}

impl<'l, R: BufRead> IndexReader<'l, R> {
    pub(super) fn new(mut input: R, limits: &'l Limits, blocks: u32) -> io::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(damaged("another beginning"));
        }
        Ok(Self {
            input,
            limits,
            blocks,
        })
    }

    /// The next entry, and where its content lies in the piece.
    pub(super) fn next_entry(&mut self) -> io::Result<Option<(Entry, Extents)>> {
        match self.byte()? {
            END if self.input.fill_buf()?.is_empty() => return Ok(None),
            ENTRY => {}
            _ => return Err(damaged("a record of no known kind")),
        }
        let kind = self.byte()?;
        let path = self.bytes(self.limits.max_path_bytes)?;
        let [a, b, mode, uid, gid] = [
            self.number()?,
            self.number()?,
            self.number()?,
            self.number()?,
            self.number()?,
        ];
        let mtime = (i64::from_le_bytes(self.array()?), self.number()?);
        let size = u64::from_le_bytes(self.array()?);
        let link = self.bytes(self.limits.max_path_bytes)?;
        let mut xattrs = Vec::new();
        for _ in 0..self.bounded(MAX_XATTRS)? {
            xattrs.push((self.bytes(MAX_XATTR_BYTES)?, self.bytes(MAX_XATTR_BYTES)?));
        }
        let entry = Entry {
            path,
            kind: match kind {
                0 => EntryKind::File,
                1 => EntryKind::Directory,
                2 => EntryKind::Symlink(link),
                3 => EntryKind::HardLink(link),
                4 => EntryKind::Character(a, b),
                5 => EntryKind::Block(a, b),
                6 => EntryKind::Fifo,
                _ => return Err(damaged("an entry of no known kind")),
            },
            mode: u16::try_from(mode)
                .ok()
                .filter(|mode| *mode <= 0o7777)
                .ok_or_else(|| damaged("a mode that is none"))?,
            uid,
            gid,
            mtime,
            size,
            xattrs,
        };
        let extents = self.extents()?;
        Ok(Some((entry, extents)))
    }

    fn extents(&mut self) -> io::Result<Extents> {
        let most = self.limits.max_tree_bytes / size_of::<Extent>() as u64;
        let count = self.bounded(u32::try_from(most).unwrap_or(u32::MAX))?;
        let mut extents: Vec<Extent> = Vec::new();
        for _ in 0..count {
            let extent = Extent {
                logical: self.number()?,
                start: self.number()?,
                length: self.number()?,
            };
            let behind = extents
                .last()
                .map_or(0, |last| u64::from(last.logical) + u64::from(last.length));
            if extent.length == 0
                || u64::from(extent.logical) < behind
                || u64::from(extent.start) + u64::from(extent.length) > u64::from(self.blocks)
            {
                return Err(damaged("content where none can be"));
            }
            extents.push(extent);
        }
        Ok(Extents::of(extents))
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn number(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn bounded(&mut self, most: u32) -> io::Result<u32> {
        let count = self.number()?;
        if count > most {
            return Err(damaged("more of something than can be"));
        }
        Ok(count)
    }

    fn bytes(&mut self, most: u64) -> io::Result<Vec<u8>> {
        let length = self.bounded(u32::try_from(most).unwrap_or(u32::MAX))?;
        let mut bytes = Vec::new();
        // Grows as bytes come, so that a length alone takes no memory.
        let read = self
            .input
            .by_ref()
            .take(length.into())
            .read_to_end(&mut bytes)?;
        if read as u64 != u64::from(length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it has {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(kind: EntryKind, path: &[u8], n: u32, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Entry {
        Entry {
            path: path.to_vec(),
            kind,
            mode: (n % 0o10000) as u16,
            uid: n,
            gid: n.rotate_left(3),
            mtime: (-i64::from(n), n % 1_000_000_000),
            size: u64::from(n) << 3,
            xattrs,
        }
    }

    fn kinds() -> impl Strategy<Value = EntryKind> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            Just(EntryKind::File),
            Just(EntryKind::Directory),
            bytes().prop_map(EntryKind::Symlink),
            bytes().prop_map(EntryKind::HardLink),
            any::<(u32, u32)>().prop_map(|(a, b)| EntryKind::Character(a, b)),
            any::<(u32, u32)>().prop_map(|(a, b)| EntryKind::Block(a, b)),
            Just(EntryKind::Fifo),
        ]
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<(Entry, Extents)>> {
        let limits = Limits::tight();
        let mut reader = IndexReader::new(bytes, &limits, 1000)?;
        let mut all = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            all.push(entry);
        }
        Ok(all)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_a_part_of_it_is_not(
            entries in prop::collection::vec((
                kinds(),
                prop::collection::vec(any::<u8>(), 0..60),
                any::<u32>(),
                prop::collection::vec((prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 0..20)), 0..3),
                prop::collection::vec(1u32..20, 0..4),
            ), 0..8),
            cut in any::<prop::sample::Index>(),
            noise in prop::collection::vec(any::<u8>(), 1..64),
        ) {
            let mut writer = IndexWriter::new(Vec::new())?;
            let mut all = Vec::new();
            for (kind, path, n, xattrs, lengths) in entries {
                let mut at = 0;
                let extents = lengths.iter().map(|length| {
                    let extent = Extent { logical: at + 3, start: 7 * length, length: *length };
                    at += 3 + length;
                    extent
                });
                let entry = entry(kind, &path, n, xattrs);
                let extents = Extents::of(extents.collect());
                writer.entry(&entry, &extents)?;
                all.push((entry, extents));
            }
            let bytes = writer.finish()?;
            let found = read(&bytes)?;
            prop_assert_eq!(format!("{found:?}"), format!("{all:?}"));
            prop_assert!(read(&bytes[..cut.index(bytes.len())]).is_err());
            // Whatever the bytes are, it returns.
            let mut strange = bytes.clone();
            let at = cut.index(bytes.len());
            strange.splice(at.., noise);
            let _ = read(&strange);
        }
    }

    #[test]
    fn content_lies_in_the_piece_and_in_order() {
        let write = |extents: Vec<Extent>| {
            let mut writer = IndexWriter::new(Vec::new())?;
            writer.entry(
                &entry(EntryKind::File, b"a", 1, vec![]),
                &Extents::of(extents),
            )?;
            read(&writer.finish()?)
        };
        let extent = |logical, start, length| Extent {
            logical,
            start,
            length,
        };
        assert!(write(vec![extent(0, 990, 10), extent(10, 0, 5)]).is_ok());
        for bad in [
            vec![extent(0, 991, 10)],
            vec![extent(0, u32::MAX, 2)],
            vec![extent(0, 0, 0)],
            vec![extent(5, 0, 5), extent(9, 9, 1)],
        ] {
            assert!(write(bad).is_err());
        }
    }
}
