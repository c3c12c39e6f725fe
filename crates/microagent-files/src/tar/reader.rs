//! A streaming tar reader for hostile input: every length is checked before it is believed.
//!
//! It understands ustar, V7, star, GNU (long names, base-256 numbers, old sparse files) and PAX (global and local
//! records, `SCHILY.xattr.*`, `LIBARCHIVE.xattr.*`, sparse formats 0.0, 0.1 and 1.0). It knows nothing of layers'
//! whiteouts or of disks: it yields entries as the archive states them.

use std::io::BufRead;

use super::fault::{EntryFault, TarFault};
use super::header::{BLOCK, Header};
use super::pax::{Overrides, PaxSparse};

/// What global extension headers may say: a stream can be made of a million entries of 512 bytes.
const MAX_GLOBAL_BYTES: u64 = 16 << 10;

/// What a stream may ask of whoever reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarLimits {
    /// Apparent size of one file in bytes (holes counted).
    pub max_file_bytes: u64,
    /// Bytes of one entry's path or link target.
    pub max_path_bytes: u64,
    /// Bytes of one extension header (PAX records, GNU long name), and of what several of them say of one entry.
    pub max_extension_bytes: u64,
    /// Segments of one sparse map.
    pub max_sparse_segments: u64,
}

impl Default for TarLimits {
    fn default() -> Self {
        Self {
            max_file_bytes: 1 << 44,
            max_path_bytes: 4096,
            max_extension_bytes: 1 << 20,
            max_sparse_segments: 1 << 16,
        }
    }
}

/// What an archive entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; its content follows.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target, verbatim.
    Symlink(Vec<u8>),
    /// Another name for an earlier file: that file's name.
    HardLink(Vec<u8>),
    /// A character device: major and minor number.
    Character(u32, u32),
    /// A block device: major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One archive entry, extension headers applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as written, not normalised.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits (`0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Apparent size of a file in bytes, holes included.
    pub size: u64,
    /// Extended attributes by full name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A piece of a file's content, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// That many zero bytes which the archive does not store.
    Hole(u64),
}

/// Reads entries from an uncompressed tar stream.
#[derive(Debug)]
pub struct TarReader<R> {
    input: R,
    pub(super) limits: TarLimits,
    offset: u64,
    global: Overrides,
    /// Data segments of the current file in logical order, and its apparent size.
    pub(super) segments: Vec<(u64, u64)>,
    pub(super) logical_size: u64,
    /// Stored bytes of the current entry not read yet, and the padding behind them.
    pub(super) stored: u64,
    padding: u64,
    end_marker: bool,
    finished: bool,
}

impl<R: BufRead> TarReader<R> {
    /// Starts at the beginning of a stream.
    pub fn new(input: R, limits: TarLimits) -> Self {
        TarReader {
            input,
            limits,
            offset: 0,
            global: Overrides::default(),
            segments: Vec::new(),
            logical_size: 0,
            stored: 0,
            padding: 0,
            end_marker: false,
            finished: false,
        }
    }

    /// Whether the end-of-archive marker was seen (without it, a cut at an entry's end goes unnoticed).
    pub fn saw_end_marker(&self) -> bool {
        self.end_marker
    }

    /// Uncompressed bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads what follows the archive, at most `limit` bytes of it.
    ///
    /// # Errors
    /// The stream's own read error, and one if there is more.
    pub fn drain(&mut self, limit: u64) -> Result<(), TarFault> {
        let end = self.offset.saturating_add(limit);
        loop {
            let available = self.input.fill_buf()?.len();
            if available == 0 {
                return Ok(());
            }
            self.consume(available);
            if self.offset > end {
                return Err(TarFault::Header {
                    offset: self.offset,
                    reason: format!("more than {limit} bytes behind the end of the archive"),
                });
            }
        }
    }

    /// The next entry; unread content of the previous one is skipped. `None` at the end of the archive.
    ///
    /// # Errors
    /// [`TarFault`] for anything malformed, truncated or beyond the limits.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarFault> {
        self.skip_content()?;
        if self.finished {
            return Ok(None);
        }
        let mut overrides = self.global.clone();
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        let mut extended = false;
        loop {
            let start = self.offset;
            let Some(block) = self.header_block()? else {
                if extended {
                    return Err(self.truncated("an entry (an extension header without its entry)"));
                }
                self.finished = true;
                return Ok(None);
            };
            let bad = |reason: String| TarFault::Header {
                offset: start,
                reason,
            };
            let header = Header::parse(&block).map_err(bad)?;
            match header.kind() {
                b'x' | b'g' => {
                    let bytes = self.extension(header.size().map_err(bad)?, start)?;
                    let target = if header.kind() == b'g' {
                        &mut self.global
                    } else {
                        &mut overrides
                    };
                    let segments =
                        usize::try_from(self.limits.max_sparse_segments).unwrap_or(usize::MAX);
                    target.apply_all(&bytes, segments).map_err(bad)?;
                    // There may be any number of such headers before an entry.
                    if target.weight() > self.limits.max_extension_bytes {
                        return Err(self.limit(
                            b"",
                            "bytes in the extension headers of an entry",
                            "max_extension_bytes",
                            self.limits.max_extension_bytes,
                        ));
                    }
                    if header.kind() == b'g' {
                        // What it says is told again of each entry that follows.
                        self.global.sparse = PaxSparse::default();
                        if self.global.weight() > MAX_GLOBAL_BYTES {
                            return Err(bad(format!(
                                "more than {MAX_GLOBAL_BYTES} bytes are said of all entries"
                            )));
                        }
                        overrides = self.global.clone();
                    } else {
                        extended = true;
                    }
                }
                b'L' | b'K' => {
                    let mut bytes = self.extension(header.size().map_err(bad)?, start)?;
                    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
                    bytes.truncate(end);
                    if header.kind() == b'L' {
                        long_name = Some(bytes);
                    } else {
                        long_link = Some(bytes);
                    }
                    extended = true;
                }
                // A volume label names the archive, not a file.
                b'V' => {}
                _ => {
                    let path = overrides
                        .path
                        .take()
                        .or(long_name)
                        .unwrap_or_else(|| header.name());
                    let link = overrides
                        .link
                        .take()
                        .or(long_link)
                        .unwrap_or_else(|| header.link());
                    return self.entry(header, start, path, link, overrides).map(Some);
                }
            }
        }
    }

    /// Hands the current file's content to `sink`, in order, holes as holes.
    ///
    /// # Errors
    /// A [`TarFault`] of the stream, or whatever `sink` returns.
    pub fn read_content<E: From<TarFault>>(
        &mut self,
        mut sink: impl FnMut(Content<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut position = 0u64;
        for (offset, length) in std::mem::take(&mut self.segments) {
            if offset > position {
                sink(Content::Hole(offset - position))?;
            }
            let mut left = length;
            while left > 0 {
                let available = self.input.fill_buf().map_err(TarFault::from)?;
                if available.is_empty() {
                    return Err(self.truncated("a file's content").into());
                }
                let take = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(available.len());
                sink(Content::Data(&available[..take]))?;
                self.consume(take);
                left -= take as u64;
                self.stored -= take as u64;
            }
            position = offset + length;
        }
        if self.logical_size > position {
            sink(Content::Hole(self.logical_size - position))?;
        }
        self.logical_size = 0;
        Ok(())
    }

    fn entry(
        &mut self,
        header: Header<'_>,
        start: u64,
        mut path: Vec<u8>,
        link: Vec<u8>,
        overrides: Overrides,
    ) -> Result<Entry, TarFault> {
        let bad = |reason: String| TarFault::Header {
            offset: start,
            reason,
        };
        if let Some(name) = overrides.sparse.name.clone() {
            path = name;
        }
        for text in [&path, &link] {
            if text.len() as u64 > self.limits.max_path_bytes {
                return Err(self.limit(
                    &path,
                    "bytes of a path",
                    "max_path_bytes",
                    self.limits.max_path_bytes,
                ));
            }
        }
        let fail = |fault| TarFault::entry(&path, fault);
        let stored = match overrides.size {
            Some(size) => size,
            None => u64::try_from(header.size().map_err(bad)?)
                .map_err(|_| fail(EntryFault::Size("it is negative or too large")))?,
        };
        let owner =
            |from_pax: Option<u64>, from_header: Result<i128, String>| -> Result<u32, TarFault> {
                let id = match from_pax {
                    Some(id) => i128::from(id),
                    None => from_header.map_err(bad)?,
                };
                u32::try_from(id).map_err(|_| fail(EntryFault::Owner(id)))
            };
        let uid = owner(overrides.uid, header.uid())?;
        let gid = owner(overrides.gid, header.gid())?;
        let mtime = match overrides.mtime {
            Some(mtime) => mtime,
            None => {
                let seconds = header.mtime().map_err(bad)?;
                (seconds.clamp(i64::MIN.into(), i64::MAX.into()) as i64, 0)
            }
        };
        let mode = (header.mode().map_err(bad)? & 0o7777) as u16;
        let device = |block: bool| -> Result<EntryKind, TarFault> {
            let (major, minor) = header.device().map_err(bad)?;
            match (u32::try_from(major), u32::try_from(minor)) {
                (Ok(major @ 0..=0xfff), Ok(minor @ 0..=0xf_ffff)) if block => {
                    Ok(EntryKind::Block(major, minor))
                }
                (Ok(major @ 0..=0xfff), Ok(minor @ 0..=0xf_ffff)) => {
                    Ok(EntryKind::Character(major, minor))
                }
                _ => Err(fail(EntryFault::Device {
                    major: u64::try_from(major).unwrap_or(u64::MAX),
                    minor: u64::try_from(minor).unwrap_or(u64::MAX),
                })),
            }
        };
        let kind = match header.kind() {
            // Before ustar, a trailing slash was the only mark of a directory.
            b'0' | 0 if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => device(false)?,
            b'4' => device(true)?,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(fail(EntryFault::Type(other))),
        };
        if kind == EntryKind::File {
            self.begin_content(stored);
            if header.kind() == b'S' {
                self.old_gnu_sparse(&header, start, &path)?;
            } else {
                self.pax_sparse(&overrides, start, &path)?;
            }
            if self.logical_size > self.limits.max_file_bytes {
                return Err(self.limit(
                    &path,
                    "bytes in one file",
                    "max_file_bytes",
                    self.limits.max_file_bytes,
                ));
            }
        }
        Ok(Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            size: self.logical_size,
            xattrs: overrides.xattrs,
        })
    }

    fn begin_content(&mut self, stored: u64) {
        self.stored = stored;
        self.padding = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
        self.logical_size = stored;
        self.segments.clear();
        if stored > 0 {
            self.segments.push((0, stored));
        }
    }

    /// The next header block, or `None` at the end-of-archive marker or the end of the stream.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarFault> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let start = self.offset;
        let mut block = [0u8; BLOCK];
        self.read_exact(&mut block, "a header")?;
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        self.end_marker = true;
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.read_exact(&mut block, "the end-of-archive marker")?;
        if block == [0; BLOCK] {
            return Ok(None);
        }
        Err(TarFault::Header {
            offset: start,
            reason: "a lone zero block in the middle of the archive".to_owned(),
        })
    }

    fn extension(&mut self, size: i128, start: u64) -> Result<Vec<u8>, TarFault> {
        let limit = self.limits.max_extension_bytes;
        let size = u64::try_from(size).map_err(|_| TarFault::Header {
            offset: start,
            reason: "an extension header has an impossible size".to_owned(),
        })?;
        if size > limit {
            return Err(self.limit(
                b"",
                "bytes in an extension header",
                "max_extension_bytes",
                limit,
            ));
        }
        let size = usize::try_from(size).map_err(|_| TarFault::Header {
            offset: start,
            reason: "an extension header has an impossible size".to_owned(),
        })?;
        // The limit bounds the allocation; reading in pieces keeps a lying size from being paid for.
        let mut bytes = Vec::new();
        while bytes.len() < size {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                return Err(self.truncated("an extension header"));
            }
            let take = available.len().min(size - bytes.len());
            bytes.extend_from_slice(&available[..take]);
            self.consume(take);
        }
        self.skip(
            (BLOCK - size % BLOCK) as u64 % BLOCK as u64,
            "an extension header",
        )?;
        Ok(bytes)
    }

    fn skip_content(&mut self) -> Result<(), TarFault> {
        let (stored, padding) = (
            std::mem::take(&mut self.stored),
            std::mem::take(&mut self.padding),
        );
        self.segments.clear();
        self.logical_size = 0;
        self.skip(stored, "a file's content")?;
        // Some writers (`umoci insert`) leave out the last padding and with it the end marker, whose
        // absence the caller sees.
        match self.skip(padding, "a file's padding") {
            Err(TarFault::Truncated { .. }) => {
                self.finished = true;
                Ok(())
            }
            done => done,
        }
    }

    fn skip(&mut self, mut count: u64, what: &'static str) -> Result<(), TarFault> {
        while count > 0 {
            let available = self.input.fill_buf()?.len();
            if available == 0 {
                return Err(self.truncated(what));
            }
            let take = usize::try_from(count).unwrap_or(usize::MAX).min(available);
            self.consume(take);
            count -= take as u64;
        }
        Ok(())
    }

    pub(super) fn read_exact(
        &mut self,
        mut buffer: &mut [u8],
        what: &'static str,
    ) -> Result<(), TarFault> {
        while !buffer.is_empty() {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                return Err(self.truncated(what));
            }
            let take = available.len().min(buffer.len());
            buffer[..take].copy_from_slice(&available[..take]);
            self.consume(take);
            buffer = &mut buffer[take..];
        }
        Ok(())
    }

    fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.offset += count as u64;
    }

    fn truncated(&self, what: &'static str) -> TarFault {
        TarFault::Truncated {
            offset: self.offset,
            what,
        }
    }

    pub(super) fn limit(
        &self,
        path: &[u8],
        what: &'static str,
        field: &'static str,
        limit: u64,
    ) -> TarFault {
        TarFault::Limit {
            what,
            field,
            limit,
            path: path.to_vec(),
        }
    }
}
