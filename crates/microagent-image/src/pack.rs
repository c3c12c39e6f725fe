//! A tree on an ext4 disk as a tar stream: the merged root of an image, or what an overlay's upper directory
//! says about the layers below it.
//!
//! Names come sorted, so equal trees give equal bytes. Who wrote the disk may mean harm: the walk is bounded, and
//! nothing is written that a layer could not say.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use microagent_ext4::{FileKind, Inode, Volume};
use microagent_files::show;
use microagent_files::tar::{Entry, EntryKind, Segment, TarWriter};

use crate::disk::acl_from_disk;

/// Content is moved in pieces of this size.
const PIECE: usize = 256 << 10;
/// A file of more runs is packed with its zeros.
const MAX_SEGMENTS: usize = 8192;
/// More than any disk of ours has inodes.
const MAX_ENTRIES: u64 = 1 << 27;
/// As many directories above an entry as a layer may have.
const MAX_DEPTH: usize = 1024;
/// The most names that are held of all directories on the way to one place: a guest can fill each of them.
const MOST_HELD: usize = 4_194_304;
/// As long as a path in a layer may be.
const MAX_PATH: usize = 4096;
/// What a layer may hold (`Limits::max_stream_bytes`), zeros that had to be written included.
const MAX_BYTES: u64 = 128 << 30;
/// What overlayfs keeps beside files for itself.
const OVERLAY: &[u8] = b"trusted.overlay.";
/// What a layer's names begin with that hide others.
const WHITEOUT: &[u8] = b".wh.";

/// What the tree is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape<'a> {
    /// A whole root file system.
    Root,
    /// An overlay's upper directory, to be written as a layer. These paths are left out of it.
    Upper { without: &'a [&'a [u8]] },
}

/// What was packed.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    /// Entries, whiteouts included.
    pub(crate) entries: u64,
    /// Sockets that were left out: no archive holds them.
    pub(crate) sockets: u64,
    /// The newest change of anything, in seconds.
    pub(crate) newest: Option<i64>,
}

/// Why a tree cannot be packed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    #[error(transparent)]
    Disk(#[from] microagent_ext4::Error),
    #[error("{0}")]
    Output(#[from] io::Error),
    #[error("`{}` {reason}", show(.path))]
    Refused { path: Vec<u8>, reason: &'static str },
}

/// Writes what is in the directory `root` of `volume`, and the directory itself as `./`. `progress` hears how many
/// bytes of content were written.
pub(crate) fn pack(
    volume: &Volume,
    root: &Inode,
    shape: Shape<'_>,
    output: impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<Packed, PackError> {
    let mut packer = Packer {
        volume,
        shape,
        writer: TarWriter::new(output),
        linked: HashMap::new(),
        entered: HashSet::new(),
        buffer: vec![0; PIECE],
        written: 0,
        found: 0,
        progress,
        packed: Packed::default(),
    };
    packer.tree(root)?;
    packer.writer.finish()?;
    Ok(packer.packed)
}

/// The tar of an upper directory that was never made.
pub(crate) fn empty(output: impl Write) -> io::Result<Packed> {
    TarWriter::new(output).finish()?;
    Ok(Packed::default())
}

struct Packer<'a, W> {
    volume: &'a Volume,
    shape: Shape<'a>,
    writer: TarWriter<W>,
    /// Where in the archive a file with several names is.
    linked: HashMap<u32, Vec<u8>>,
    /// Directories that were gone through; none has two places in a sound file system.
    entered: HashSet<u32>,
    buffer: Vec<u8>,
    written: u64,
    /// Bytes of content that lie in blocks of the disk.
    found: u64,
    progress: &'a mut dyn FnMut(u64),
    packed: Packed,
}

/// A directory being gone through: its path's length, and what is left in it, last first.
struct Level(usize, Vec<(Vec<u8>, u32)>);

fn held(levels: &[Level]) -> usize {
    levels.iter().map(|Level(_, left)| left.len()).sum()
}

impl<W: Write> Packer<'_, W> {
    fn tree(&mut self, root: &Inode) -> Result<(), PackError> {
        let mut path = Vec::new();
        let mut levels = vec![self.directory(root, &path)?];
        while let Some(Level(length, left)) = levels.last_mut() {
            path.truncate(*length);
            let Some((name, number)) = left.pop() else {
                levels.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            if path.len() > MAX_PATH {
                return Err(refused(&path, "has a path of more than 4096 bytes"));
            }
            if self.is_left_out(&path) {
                continue;
            }
            let inode = self.volume.inode(number)?;
            if inode.kind() == FileKind::Directory {
                if levels.len() > MAX_DEPTH {
                    return Err(refused(&path, "is more than 1024 directories deep"));
                }
                self.check_name(&path, &name)?;
                let level = self.directory(&inode, &path)?;
                if held(&levels).saturating_add(level.1.len()) > MOST_HELD {
                    return Err(refused(
                        &path,
                        "and the directories above it have more than 4194304 entries together",
                    ));
                }
                levels.push(level);
            } else {
                self.other(&inode, &path, &name)?;
            }
        }
        Ok(())
    }

    fn is_left_out(&self, path: &[u8]) -> bool {
        matches!(self.shape, Shape::Upper { without } if without.contains(&path))
    }

    /// In a layer, some names mean something.
    fn check_name(&self, path: &[u8], name: &[u8]) -> Result<(), PackError> {
        match self.shape {
            Shape::Upper { .. } if name.starts_with(WHITEOUT) => Err(refused(
                path,
                "cannot be in a layer, where names that begin with `.wh.` hide others; rename or remove it",
            )),
            _ => Ok(()),
        }
    }

    fn directory(&mut self, inode: &Inode, path: &[u8]) -> Result<Level, PackError> {
        if !self.entered.insert(inode.number()) {
            return Err(refused(path, "has no end: its disk is damaged"));
        }
        let name = if path.is_empty() { &b"."[..] } else { path };
        let (entry, opaque) = self.entry(inode, name, EntryKind::Directory)?;
        self.put(&entry, None)?;
        if opaque {
            // Overlayfs marks so what it made anew, too: there it hides nothing.
            self.whiteout(path, b".wh..opq")?;
        }
        let mut children: Vec<(Vec<u8>, u32)> = self
            .volume
            .entries(inode)?
            .into_iter()
            .map(|entry| (entry.name, entry.inode))
            .collect();
        children.sort_unstable_by(|a, b| b.cmp(a));
        if children.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(refused(path, "holds one name twice: its disk is damaged"));
        }
        Ok(Level(path.len(), children))
    }

    fn other(&mut self, inode: &Inode, path: &[u8], name: &[u8]) -> Result<(), PackError> {
        let is_upper = matches!(self.shape, Shape::Upper { .. });
        let kind = match inode.kind() {
            FileKind::Character(0, 0) if is_upper => {
                let parent = &path[..path.len() - name.len()];
                let parent = parent.strip_suffix(b"/").unwrap_or(parent);
                return self.whiteout(parent, name);
            }
            FileKind::Socket => {
                self.packed.sockets += 1;
                return Ok(());
            }
            FileKind::Symlink => EntryKind::Symlink(self.volume.target(inode)?),
            FileKind::Character(major, minor) => EntryKind::Character(major, minor),
            FileKind::Block(major, minor) => EntryKind::Block(major, minor),
            FileKind::Fifo => EntryKind::Fifo,
            FileKind::File | FileKind::Directory => EntryKind::File,
        };
        self.check_name(path, name)?;
        if let Some(first) = self.linked.get(&inode.number()) {
            let entry = bare(path, EntryKind::HardLink(first.clone()), inode);
            return self.put(&entry, None);
        }
        if inode.links() > 1 {
            self.linked.insert(inode.number(), path.to_vec());
        }
        let (mut entry, _) = self.entry(inode, path, kind)?;
        if entry.kind != EntryKind::File {
            return self.put(&entry, None);
        }
        entry.size = inode.size();
        self.file(inode, &entry)
    }

    fn file(&mut self, inode: &Inode, entry: &Entry) -> Result<(), PackError> {
        let content = self.volume.content(inode)?;
        let segments = content.segments();
        let data: u64 = segments.iter().map(|(_, length)| length).sum();
        let whole = [(0, entry.size)];
        // A block belongs to one file, in a sound file system.
        self.found = self.found.saturating_add(data);
        if self.found > self.volume.size_bytes() {
            return Err(refused(
                &entry.path,
                "would be content that is elsewhere, too: its disk is damaged",
            ));
        }
        let is_sparse = data < entry.size && segments.len() <= MAX_SEGMENTS;
        let comes = if is_sparse { data } else { entry.size };
        if comes > MAX_BYTES.saturating_sub(self.written) {
            return Err(refused(&entry.path, "does not fit: a layer holds 128 GiB"));
        }
        self.put(entry, is_sparse.then_some(&segments[..]))?;
        for (offset, length) in if is_sparse { &segments[..] } else { &whole } {
            let (mut offset, mut left) = (*offset, *length);
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                let piece = &mut self.buffer[..count];
                content.read_at(offset, piece)?;
                self.writer.content(piece)?;
                offset += count as u64;
                left -= count as u64;
                self.written += count as u64;
                (self.progress)(self.written);
            }
        }
        Ok(())
    }

    /// Hides `name` of the layers below in the directory `parent`.
    fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<(), PackError> {
        let mut path = parent.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(WHITEOUT);
        path.extend_from_slice(name);
        let entry = Entry {
            path,
            kind: EntryKind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            xattrs: Vec::new(),
        };
        self.put(&entry, None)
    }

    /// What an archive says of a file, and whether overlayfs says that it hides what is below it.
    fn entry(
        &mut self,
        inode: &Inode,
        path: &[u8],
        kind: EntryKind,
    ) -> Result<(Entry, bool), PackError> {
        let (mut opaque, mut xattrs) = (false, Vec::new());
        for (name, value) in self.volume.attributes(inode)? {
            if let Some(own) = name.strip_prefix(OVERLAY)
                && matches!(self.shape, Shape::Upper { .. })
            {
                match own {
                    b"opaque" => opaque = opaque || value == b"y",
                    b"metacopy" | b"redirect" => {
                        return Err(refused(
                            path,
                            "is on the disk only in part: whoever mounted it used other features of overlayfs than microagent does",
                        ));
                    }
                    _ => {}
                }
                continue;
            }
            if name.starts_with(b"system.posix_acl_") {
                let value = acl_from_disk(&value)
                    .ok_or_else(|| refused(path, "has an access control list that is damaged"))?;
                xattrs.push((name, value));
            } else if !name.starts_with(b"system.") {
                xattrs.push((name, value));
            }
        }
        xattrs.sort();
        let mut entry = bare(path, kind, inode);
        entry.xattrs = xattrs;
        self.packed.newest = self.packed.newest.max(Some(entry.mtime.0));
        Ok((entry, opaque && inode.kind() == FileKind::Directory))
    }

    fn put(&mut self, entry: &Entry, segments: Option<&[Segment]>) -> Result<(), PackError> {
        self.packed.entries += 1;
        if self.packed.entries > MAX_ENTRIES {
            return Err(refused(
                &entry.path,
                "is one of too many: the disk is damaged",
            ));
        }
        Ok(self.writer.entry(entry, segments)?)
    }
}

fn bare(path: &[u8], kind: EntryKind, inode: &Inode) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        mode: inode.mode(),
        uid: inode.uid(),
        gid: inode.gid(),
        mtime: inode.mtime(),
        size: 0,
        xattrs: Vec::new(),
    }
}

fn refused(path: &[u8], reason: &'static str) -> PackError {
    PackError::Refused {
        path: if path.is_empty() {
            b"/".to_vec()
        } else {
            path.to_vec()
        },
        reason,
    }
}

/// Packs the root of a disk, or its directory `upper` as a layer, for fuzzing: whatever the disk says, it returns;
/// what was packed, unless the disk is refused or it is more than `most` bytes.
#[doc(hidden)]
#[must_use]
pub fn fuzz_pack(disk: std::fs::File, upper: bool, most: usize) -> Option<Vec<u8>> {
    let volume = Volume::open(disk).ok()?;
    let root = volume.inode(microagent_ext4::ROOT).ok()?;
    let mut packed = vec![0; most];
    let mut left = &mut packed[..];
    if upper {
        let without: &[&[u8]] = &[b"etc/hosts"];
        let upper = volume.lookup(&root, b"upper").ok()??;
        pack(
            &volume,
            &upper,
            Shape::Upper { without },
            &mut left,
            &mut |_| {},
        )
        .ok()?;
    } else {
        pack(&volume, &root, Shape::Root, &mut left, &mut |_| {}).ok()?;
    }
    let length = most - left.len();
    packed.truncate(length);
    Some(packed)
}
