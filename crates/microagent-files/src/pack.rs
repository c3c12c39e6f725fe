//! Packing a tree of this system into a tar stream.
//!
//! Whoever changes the tree meanwhile cannot lead the walk elsewhere: directories are opened one
//! below the other and no link on the way is followed. Memory is bounded, whatever is in the tree.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, OsStr},
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Path, PathBuf},
};

use microagent_protocol::{CopyReport, CopyWhat};
use rustix::{
    fs::{
        AtFlags, CWD, Dev, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fstat, major, minor,
        openat, readlinkat, seek, statat,
    },
    io::Errno,
};

use crate::{
    MAX_DEPTH, attributes,
    error::{Context, CopyError},
    system,
    tar::{Entry, EntryKind, Segment, TarWriter},
};

/// The most names of directories held at a time, to go through them in order.
const MAX_HELD: usize = 1 << 16;

/// The most files with several names that are known again; further ones are packed anew.
const MAX_LINKED: usize = 1 << 16;

/// The most segments of one file; a file with more holes is packed with its zeros.
const MAX_SEGMENTS: usize = 8192;

const PIECE: usize = 64 * 1024;

/// Packs what is at `path` and gives the stream back.
///
/// # Errors
/// [`CopyError::Missing`] if nothing is there, and whatever keeps a file from being read.
pub fn pack<W: Write>(
    path: &Path,
    what: CopyWhat,
    output: W,
) -> Result<(W, CopyReport), CopyError> {
    let flags = match what {
        CopyWhat {
            contents: false,
            follow: false,
        } => AtFlags::SYMLINK_NOFOLLOW,
        _ => AtFlags::empty(),
    };
    let stat = match statat(CWD, path, flags) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => {
            let path = path.to_owned();
            return Err(CopyError::Missing { path });
        }
        Err(error) => return Err(error).context("look at", path),
    };
    let name = match path.file_name() {
        Some(name) if !what.contents => name.as_bytes().to_vec(),
        _ => Vec::new(),
    };
    let mut packer = Packer {
        writer: TarWriter::new(output),
        root: path.to_owned(),
        top: name.clone(),
        device: stat.st_dev,
        linked: HashMap::new(),
        held: 0,
        buffer: vec![0; PIECE],
        report: CopyReport::default(),
    };
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if name.is_empty() && !is_directory {
        return Err(CopyError::Conflict {
            path: path.to_owned(),
            reason: "is not a directory",
        });
    }
    if is_directory {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, path, flags, Mode::empty()).context("open", path)?;
        packer.tree(root, name)?;
    } else {
        let target = if what.follow {
            path.canonicalize().context("look at", path)?
        } else {
            path.to_owned()
        };
        let (Some(parent), Some(leaf)) = (target.parent(), target.file_name()) else {
            return Err(CopyError::Missing { path: target });
        };
        let parent = match parent.as_os_str() {
            empty if empty.is_empty() => Path::new("."),
            _ => parent,
        };
        let flags = system::PASS | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, parent, flags, Mode::empty()).context("open", parent)?;
        let leaf = CString::new(leaf.as_bytes())
            .map_err(io::Error::from)
            .context("look at", path)?;
        packer.node(&folder, &leaf, &name)?;
    }
    packer.finish()
}

struct Packer<W> {
    writer: TarWriter<W>,
    /// Where the walk began, and what that is called in the stream; for messages.
    root: PathBuf,
    top: Vec<u8>,
    device: Dev,
    /// Where in the stream a file with several names is.
    linked: HashMap<(Dev, u64), Vec<u8>>,
    held: usize,
    buffer: Vec<u8>,
    report: CopyReport,
}

/// A directory being gone through.
struct Level {
    folder: OwnedFd,
    listing: Option<Dir>,
    /// The next names, last first.
    names: Vec<CString>,
    /// The length of its path in the stream.
    path: usize,
}

impl<W: Write> Packer<W> {
    fn finish(self) -> Result<(W, CopyReport), CopyError> {
        let output = self.writer.finish().map_err(CopyError::Output)?;
        Ok((output, self.report))
    }

    fn tree(&mut self, root: OwnedFd, name: Vec<u8>) -> Result<(), CopyError> {
        let mut path = name;
        self.directory(&root, &path)?;
        let mut levels = vec![self.enter(root, &path)?];
        while let Some(mut level) = levels.pop() {
            path.truncate(level.path);
            let Some(name) = self.next_name(&mut level, &path)? else {
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            let inner = self.node(&level.folder, &name, &path)?;
            levels.push(level);
            if let Some(inner) = inner {
                if levels.len() >= MAX_DEPTH {
                    return Err(CopyError::TooMuch {
                        path: self.shown(&path),
                        reason: format!("is more than {MAX_DEPTH} directories deep"),
                    });
                }
                let level = self.enter(inner, &path)?;
                levels.push(level);
            }
        }
        Ok(())
    }

    fn enter(&self, folder: OwnedFd, path: &[u8]) -> Result<Level, CopyError> {
        let listing = Dir::read_from(&folder).context("list", &self.shown(path))?;
        Ok(Level {
            folder,
            listing: Some(listing),
            names: Vec::new(),
            path: path.len(),
        })
    }

    /// The next name of a directory, in order as far as the names can be held.
    fn next_name(&mut self, level: &mut Level, path: &[u8]) -> Result<Option<CString>, CopyError> {
        if level.names.is_empty()
            && let Some(listing) = &mut level.listing
        {
            // At least one at a time, whoever else holds names.
            let room = MAX_HELD.saturating_sub(self.held).max(1);
            while level.names.len() < room {
                let Some(entry) = listing.read() else {
                    level.listing = None;
                    break;
                };
                let entry = entry.context("list", &self.shown(path))?;
                let name = entry.file_name();
                if name != c"." && name != c".." {
                    level.names.push(name.to_owned());
                }
            }
            self.held += level.names.len();
            level.names.sort_by(|a, b| b.cmp(a));
        }
        let name = level.names.pop();
        self.held -= usize::from(name.is_some());
        Ok(name)
    }

    /// Packs one thing; gives a directory that is to be gone through.
    fn node(
        &mut self,
        folder: &OwnedFd,
        name: &CStr,
        path: &[u8],
    ) -> Result<Option<OwnedFd>, CopyError> {
        let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                let shown = self.shown(path);
                self.report
                    .skip(|| format!("{}: it went away meanwhile", shown.display()));
                return Ok(None);
            }
            Err(error) => return Err(error).context("look at", &self.shown(path)),
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => return self.file(folder, name, path).map(|()| None),
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = openat(folder, name, flags, Mode::empty())
                    .context("open", &self.shown(path))?;
                let stat = self.directory(&inner, path)?;
                if stat.st_dev == self.device {
                    return Ok(Some(inner));
                }
                let shown = self.shown(path);
                self.report
                    .skip(|| format!("what is in {}: it is another file system", shown.display()));
                return Ok(None);
            }
            FileType::Symlink => {
                let target =
                    readlinkat(folder, name, Vec::new()).context("read", &self.shown(path))?;
                EntryKind::Symlink(target.into_bytes())
            }
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice => {
                EntryKind::Character(major(stat.st_rdev), minor(stat.st_rdev))
            }
            FileType::BlockDevice => EntryKind::Block(major(stat.st_rdev), minor(stat.st_rdev)),
            FileType::Socket | FileType::Unknown => {
                let shown = self.shown(path);
                self.report
                    .skip(|| format!("{}: a socket belongs to its process", shown.display()));
                return Ok(None);
            }
        };
        let kind = self.or_link(&stat, kind, path);
        self.report.files += 1;
        self.put(&entry(path, kind, &stat), None)?;
        Ok(None)
    }

    fn directory(&mut self, folder: &OwnedFd, path: &[u8]) -> Result<Stat, CopyError> {
        let shown = self.shown(path);
        let stat = fstat(folder).context("look at", &shown)?;
        let path = if path.is_empty() { b"." } else { path };
        let mut entry = entry(path, EntryKind::Directory, &stat);
        entry.xattrs = attributes::read(folder, &shown)?;
        self.report.directories += 1;
        self.put(&entry, None)?;
        Ok(stat)
    }

    fn file(&mut self, folder: &OwnedFd, name: &CStr, path: &[u8]) -> Result<(), CopyError> {
        let shown = self.shown(path);
        // It may have become a pipe or a device meanwhile: these must not block.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(folder, name, flags, Mode::empty()).context("open", &shown)?;
        let stat = fstat(&file).context("look at", &shown)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(CopyError::Changed { path: shown });
        }
        self.report.files += 1;
        let kind = self.or_link(&stat, EntryKind::File, path);
        let mut entry = entry(path, kind, &stat);
        if entry.kind != EntryKind::File {
            return self.put(&entry, None);
        }
        entry.size = stat.st_size.unsigned_abs();
        entry.xattrs = attributes::read(&file, &shown)?;
        self.report.bytes = self.report.bytes.saturating_add(entry.size);
        let segments = segments(&file, &stat);
        self.put(&entry, segments.as_deref())?;
        let whole = [(0, entry.size)];
        let file = File::from(file);
        for (offset, length) in segments.as_deref().unwrap_or(&whole) {
            self.content(&file, *offset, *length, &shown)?;
        }
        Ok(())
    }

    fn content(
        &mut self,
        file: &File,
        mut offset: u64,
        mut left: u64,
        shown: &Path,
    ) -> Result<(), CopyError> {
        while left > 0 {
            let most = self
                .buffer
                .len()
                .min(usize::try_from(left).unwrap_or(PIECE));
            let count = match file.read_at(&mut self.buffer[..most], offset) {
                Ok(0) => {
                    let path = shown.to_owned();
                    return Err(CopyError::Changed { path });
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("read", shown),
            };
            self.writer
                .content(&self.buffer[..count])
                .map_err(CopyError::Output)?;
            offset += count as u64;
            left -= count as u64;
        }
        Ok(())
    }

    /// The same file by another name is a link to the first.
    fn or_link(&mut self, stat: &Stat, kind: EntryKind, path: &[u8]) -> EntryKind {
        if stat.st_nlink < 2 {
            return kind;
        }
        let id = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.linked.get(&id) {
            return EntryKind::HardLink(first.clone());
        }
        if self.linked.len() < MAX_LINKED {
            self.linked.insert(id, path.to_vec());
        }
        kind
    }

    fn put(&mut self, entry: &Entry, segments: Option<&[Segment]>) -> Result<(), CopyError> {
        self.writer
            .entry(entry, segments)
            .map_err(CopyError::Output)
    }

    /// Where on this system something is that is called `path` in the stream.
    fn shown(&self, path: &[u8]) -> PathBuf {
        let below = path.strip_prefix(&self.top[..]).unwrap_or(path);
        let below = below.strip_prefix(b"/").unwrap_or(below);
        if below.is_empty() {
            return self.root.clone();
        }
        self.root.join(OsStr::from_bytes(below))
    }
}

fn entry(path: &[u8], kind: EntryKind, stat: &Stat) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (
            stat.st_mtime,
            // Nanoseconds are below a billion.
            u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
        size: 0,
        xattrs: Vec::new(),
    }
}

/// Where the data of a file with holes is; `None` if it has none, or too many.
fn segments(file: impl AsFd, stat: &Stat) -> Option<Vec<Segment>> {
    let size = stat.st_size.unsigned_abs();
    if stat.st_blocks.unsigned_abs().saturating_mul(512) >= size {
        return None;
    }
    let mut segments = Vec::new();
    let mut position = 0;
    while position < size {
        let start = match seek(&file, SeekFrom::Data(position)) {
            Ok(start) => start,
            // Nothing but a hole until the end.
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let end = seek(&file, SeekFrom::Hole(start)).ok()?.min(size);
        if start >= end {
            break;
        }
        if segments.len() == MAX_SEGMENTS {
            return None;
        }
        segments.push((start, end - start));
        position = end;
    }
    Some(segments)
}
