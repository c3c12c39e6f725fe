//! Packing a tree of a workspace that does not run: the same stream as its guest's agent would send.

use std::{
    collections::{HashMap, HashSet},
    io::Write,
    path::PathBuf,
};

use microagent_ext4::FileKind;
use microagent_files::{
    CopyError, MAX_DEPTH, show,
    tar::{Entry, EntryKind, Segment, TarWriter},
    travels,
};
use microagent_host::fs::name_of;
use microagent_protocol::{CopyPath, CopyReport, CopyWhat};

use super::overlay::{DiskError, Found, Layer, Node, Overlay};
use crate::error::Result;

const PIECE: usize = 256 * 1024;

/// The most segments of one file; a file with more holes is packed with its zeros.
const MAX_SEGMENTS: usize = 8192;

/// The most names that are held of all directories on the way to one place: a guest can fill each of them.
const MOST_HELD: usize = 1 << 21;

/// The most entries of one copy: more than any disk of ours has inodes.
const MAX_ENTRIES: u64 = 1 << 27;

/// A path in a tree of disks.
#[derive(Debug)]
pub(super) struct View {
    pub(super) overlay: Overlay,
    /// The path on these disks.
    pub(super) path: CopyPath,
    /// The path in the workspace, for names and messages.
    pub(super) shown: CopyPath,
}

/// Packs what is at the view's path.
pub(super) fn pack_overlay(view: &View, what: CopyWhat, output: impl Write) -> Result<CopyReport> {
    Ok(pack_within(view, what, output, MOST_HELD)?)
}

/// The same, holding at most `most_held` names at a time.
pub(super) fn pack_within(
    view: &View,
    what: CopyWhat,
    output: impl Write,
    most_held: usize,
) -> std::result::Result<CopyReport, DiskError> {
    let overlay = &view.overlay;
    let found = overlay.resolve(view.path.as_str(), what.follow || what.contents)?;
    let Found::There { node, .. } = found else {
        return Err(CopyError::Missing {
            path: view.shown.as_str().into(),
        }
        .into());
    };
    let name = match view.shown.name() {
        Some(name) if !what.contents => name.as_bytes().to_vec(),
        _ => Vec::new(),
    };
    if name.is_empty() && node.kind() != FileKind::Directory {
        return Err(CopyError::Conflict {
            path: view.shown.as_str().into(),
            reason: "is not a directory",
        }
        .into());
    }
    let mut packer = Packer {
        overlay,
        shown: view.shown.as_str().into(),
        top: name.len(),
        writer: TarWriter::new(output),
        linked: HashMap::new(),
        entered: HashSet::new(),
        most_held,
        entries: 0,
        buffer: vec![0; PIECE],
        report: CopyReport::default(),
    };
    packer.tree(&node, name)?;
    packer
        .writer
        .finish()
        .map_err(CopyError::Output)?
        .flush()
        .map_err(CopyError::Output)?;
    Ok(packer.report)
}

struct Packer<'o, W> {
    overlay: &'o Overlay,
    shown: PathBuf,
    /// The length of the name at the top of the stream.
    top: usize,
    writer: TarWriter<W>,
    /// Where in the stream a file with several names is.
    linked: HashMap<(Layer, u32), Vec<u8>>,
    /// Directories that were gone through; none has two places in a sound file system.
    entered: HashSet<(Layer, u32)>,
    most_held: usize,
    entries: u64,
    buffer: Vec<u8>,
    report: CopyReport,
}

/// A directory being gone through: its path's length, and what is left, last first.
struct Level(usize, Vec<(Vec<u8>, Node)>);

fn held(levels: &[Level]) -> usize {
    levels.iter().map(|Level(_, left)| left.len()).sum()
}

impl<W: Write> Packer<'_, W> {
    fn tree(&mut self, root: &Node, name: Vec<u8>) -> std::result::Result<(), DiskError> {
        let mut path = name;
        let mut levels = Vec::new();
        levels.extend(self.node(root, &path)?);
        while let Some(Level(length, left)) = levels.last_mut() {
            path.truncate(*length);
            let Some((name, node)) = left.pop() else {
                levels.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            if let Some(level) = self.node(&node, &path)? {
                if levels.len() >= MAX_DEPTH {
                    return Err(CopyError::TooMuch {
                        path: self.shown(&path),
                        reason: format!("is more than {MAX_DEPTH} directories deep"),
                    }
                    .into());
                }
                let most = self.most_held;
                if held(&levels).saturating_add(level.1.len()) > most {
                    return Err(CopyError::TooMuch {
                        path: self.shown(&path),
                        reason: format!(
                            "and the directories above it have more than {most} entries together; \
                             copy it alone, or while its workspace runs"
                        ),
                    }
                    .into());
                }
                levels.push(level);
            }
        }
        Ok(())
    }

    /// Packs one thing; gives the content of a directory.
    fn node(&mut self, node: &Node, path: &[u8]) -> std::result::Result<Option<Level>, DiskError> {
        self.entries += 1;
        let (layer, inode) = node.top();
        let id = (layer, inode.number());
        let is_new = inode.kind() != FileKind::Directory || self.entered.insert(id);
        if !is_new || self.entries > MAX_ENTRIES {
            return Err(CopyError::TooMuch {
                path: self.shown(path),
                reason: "has no end: its disk is damaged".to_owned(),
            }
            .into());
        }
        let kind = match inode.kind() {
            FileKind::Directory => {
                let name = if path.is_empty() { b"." } else { path };
                self.report.directories += 1;
                let entry = self.entry(name, node, EntryKind::Directory)?;
                self.put(&entry, None)?;
                let mut children = self.overlay.children(node)?;
                children.reverse();
                return Ok(Some(Level(path.len(), children)));
            }
            FileKind::File => EntryKind::File,
            FileKind::Symlink => EntryKind::Symlink(self.overlay.target(node)?),
            FileKind::Character(major, minor) => EntryKind::Character(major, minor),
            FileKind::Block(major, minor) => EntryKind::Block(major, minor),
            FileKind::Fifo => EntryKind::Fifo,
            FileKind::Socket => {
                let shown = self.shown(path);
                self.report
                    .skip(|| format!("{}: a socket belongs to its process", shown.display()));
                return Ok(None);
            }
        };
        self.report.files += 1;
        let kind = match self.linked.get(&id) {
            Some(first) => EntryKind::HardLink(first.clone()),
            None => {
                if inode.links() > 1 {
                    self.linked.insert(id, path.to_vec());
                }
                kind
            }
        };
        let mut entry = self.entry(path, node, kind)?;
        if entry.kind != EntryKind::File {
            self.put(&entry, None)?;
            return Ok(None);
        }
        entry.size = inode.size();
        self.report.bytes = self.report.bytes.saturating_add(entry.size);
        self.file(node, &entry)?;
        Ok(None)
    }

    fn file(&mut self, node: &Node, entry: &Entry) -> std::result::Result<(), DiskError> {
        let content = self.overlay.content(node)?;
        let segments = content.segments();
        let data: u64 = segments.iter().map(|(_, length)| length).sum();
        let whole = [(0, entry.size)];
        let is_sparse = data < entry.size && segments.len() <= MAX_SEGMENTS;
        self.put(entry, is_sparse.then_some(&segments[..]))?;
        for (offset, length) in if is_sparse { &segments[..] } else { &whole } {
            let (mut offset, mut left) = (*offset, *length);
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                let piece = &mut self.buffer[..count];
                self.overlay.read(node, &content, offset, piece)?;
                self.writer.content(piece).map_err(CopyError::Output)?;
                offset += count as u64;
                left -= count as u64;
            }
        }
        Ok(())
    }

    fn entry(
        &self,
        path: &[u8],
        node: &Node,
        kind: EntryKind,
    ) -> std::result::Result<Entry, DiskError> {
        let (_, inode) = node.top();
        let mut xattrs = Vec::new();
        if matches!(kind, EntryKind::File | EntryKind::Directory) {
            xattrs = self.overlay.attributes(node)?;
            xattrs.retain(|(name, _)| travels(name));
            xattrs.sort();
        }
        Ok(Entry {
            path: path.to_vec(),
            kind,
            mode: inode.mode(),
            uid: inode.uid(),
            gid: inode.gid(),
            mtime: inode.mtime(),
            size: 0,
            xattrs,
        })
    }

    fn put(&mut self, entry: &Entry, segments: Option<&[Segment]>) -> Result<(), CopyError> {
        if entry.path.len() > 4096 {
            return Err(CopyError::TooMuch {
                path: show(&entry.path).into(),
                reason: "has a name of more than 4,096 bytes".to_owned(),
            });
        }
        self.writer
            .entry(entry, segments)
            .map_err(CopyError::Output)
    }

    /// Where in the workspace something is that is called `path` in the stream.
    fn shown(&self, path: &[u8]) -> PathBuf {
        let below = path.get(self.top..).unwrap_or_default();
        let below = below.strip_prefix(b"/").unwrap_or(below);
        if below.is_empty() {
            self.shown.clone()
        } else {
            self.shown.join(name_of(below))
        }
    }
}
