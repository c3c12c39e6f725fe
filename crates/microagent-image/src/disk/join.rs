//! Pieces to one file system: the entries of their indexes are merged in order, and what is not content is written
//! to a file of the disk's own, its *front*.
//!
//! On the disk come the first blocks of the front, the pieces' content, and the rest of the front with names, inodes
//! and bitmaps. A layer that comes twice has its piece there twice. Content that no name stands for any more stays in
//! its piece, and is free on the disk.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use microagent_disk::DiskList;

use super::buffer::PageBuffer;
use super::content::{Appender, BLOCK, BlockFile, Extents};
use super::convert::Piece;
use super::ext4::{self, FIRST_CONTENT_BLOCK};
use super::flat::layout_error;
use super::index::{INDEX_BUFFER, IndexReader};
use super::limits::Limits;
use super::output::{FileBlocks, Output};
use super::sums::ChunkSums;
use super::tree::{Target, Tree};
use super::{BuildOptions, DiskError, LayerFault, identity};
use crate::digest::Digest;

/// A disk of several files.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JoinedDisk {
    /// The files, which are to lie in one directory with the list.
    pub list: DiskList,
    /// The sums of the front.
    pub sums: ChunkSums,
    /// Inodes in the merged tree, the root included.
    pub entries: u64,
    /// The file system's UUID, derived from the layers.
    pub uuid: [u8; 16],
}

/// Merges the converted layers (lowest first, each with its label) and writes the disk's `front`, as [`Join`] does.
///
/// # Errors
/// As [`build`](super::build), and [`DiskError::Piece`] for an index that is damaged.
pub fn join(
    layers: &[(String, Piece)],
    front: &Path,
    options: &BuildOptions,
) -> Result<JoinedDisk, DiskError> {
    let mut join = Join::new(&options.limits);
    for (label, piece) in layers {
        join.add(label, piece)?;
    }
    join.finish(front)
}

/// Converted layers that become one disk: each is merged as soon as it and all below it are there.
pub struct Join<'l> {
    limits: &'l Limits,
    tree: Tree<'l>,
    layers: Vec<Piece>,
    /// The first block behind the content so far.
    base: u32,
    entries: u64,
    stream_bytes: u64,
}

impl std::fmt::Debug for Join<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join")
            .field("layers", &self.layers)
            .finish_non_exhaustive()
    }
}

impl<'l> Join<'l> {
    /// No layer yet.
    #[must_use]
    pub fn new(limits: &'l Limits) -> Self {
        Self {
            limits,
            tree: Tree::new(limits),
            layers: Vec::new(),
            base: FIRST_CONTENT_BLOCK,
            entries: 0,
            stream_bytes: 0,
        }
    }

    /// Uncompressed bytes of the layers so far.
    #[must_use]
    pub fn stream_bytes(&self) -> u64 {
        self.stream_bytes
    }

    /// Merges the next layer over those so far.
    ///
    /// # Errors
    /// As [`join`].
    pub fn add(&mut self, label: &str, piece: &Piece) -> Result<(), DiskError> {
        let limits = self.limits;
        let refuse = |fault| DiskError::Layer {
            layer: label.to_owned(),
            fault,
        };
        let limit = |what, field, limit| refuse(over(what, field, limit));
        self.stream_bytes = self.stream_bytes.saturating_add(piece.stream_bytes);
        if self.stream_bytes > limits.max_stream_bytes {
            let most = limits.max_stream_bytes;
            return Err(limit("uncompressed bytes", "max_stream_bytes", most));
        }
        let blocks = u32::try_from(piece.size_bytes / BLOCK as u64).unwrap_or(u32::MAX);
        let next = self.base.checked_add(blocks);
        let most = most_bytes(limits);
        let Some(next) = next.filter(|next| u64::from(*next) * BLOCK as u64 <= most) else {
            let most = limits.max_disk_bytes;
            return Err(limit("bytes on the disk", "max_disk_bytes", most));
        };
        let unreadable = |source| DiskError::Piece {
            path: piece.index.clone(),
            source,
        };
        let index = File::open(&piece.index).map_err(unreadable)?;
        let index = BufReader::with_capacity(INDEX_BUFFER, index);
        let mut reader = IndexReader::new(index, limits, blocks).map_err(unreadable)?;
        let (tree, entries) = (&mut self.tree, &mut self.entries);
        match merge(&mut reader, tree, self.base, entries, limits) {
            Ok(()) => self.base = next,
            Err(MergeError::Index(source)) => return Err(unreadable(source)),
            Err(MergeError::Fault(fault)) => return Err(refuse(fault)),
        }
        self.layers.push(piece.clone());
        Ok(())
    }

    /// Writes the disk's `front`, replacing what is there, without a sync. All files keep their names in the list:
    /// the front's and the pieces'.
    ///
    /// # Errors
    /// As [`join`].
    pub fn finish(self, front: &Path) -> Result<JoinedDisk, DiskError> {
        let Self {
            limits,
            mut tree,
            layers,
            base,
            ..
        } = self;
        let output = Output::create(front)?;
        let diff_ids: Vec<[u8; 32]> = layers
            .iter()
            .map(|piece| *piece.diff_id.as_bytes())
            .collect();
        let identity = identity(&diff_ids);
        let mut blocks = Front {
            inner: FileBlocks::new(output.file(), true, false).map_err(output.error("open"))?,
            behind: base,
        };
        let mut appender = Appender::new(&mut blocks, base, most_bytes(limits));
        let written = ext4::write(&mut tree, &mut appender, &identity, None)
            .map_err(|error| layout_error(error, &output, limits))?;
        drop(appender);
        let entries = tree.len();
        let head = u64::from(FIRST_CONTENT_BLOCK) * BLOCK as u64;
        let rest = u64::from(written.blocks - base) * BLOCK as u64;
        output
            .file()
            .set_len(head + rest)
            .map_err(output.error("size"))?;
        let sums = std::thread::scope(|scope| {
            // A tree is freed name by name, which takes as long as what is left to do.
            scope.spawn(move || drop(tree));
            let mut unsynced = blocks.inner.finish(&[]).map_err(output.error("write"))?;
            unsynced
                .sums(output.file(), head + rest)
                .map_err(output.error("read back"))
        })?;
        output.publish_unsynced(0o400)?;
        let mut list = DiskList::new();
        let mut add = |path: &Path, digest: Digest, offset, length| {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if list.push(name, &digest.hex(), offset, length) {
                Ok(())
            } else {
                let path: PathBuf = path.to_owned();
                Err(DiskError::Layout(format!(
                    "{} cannot be named in the list of a disk",
                    path.display()
                )))
            }
        };
        add(front, sums.digest(), 0, head)?;
        for piece in &layers {
            add(&piece.path, piece.sums, 0, piece.size_bytes)?;
        }
        add(front, sums.digest(), head, rest)?;
        Ok(JoinedDisk {
            list,
            sums,
            entries,
            uuid: identity.uuid,
        })
    }
}

/// What merging takes at most.
pub(crate) fn join_memory(limits: &Limits) -> u64 {
    limits.max_tree_bytes + FileBlocks::MEMORY + INDEX_BUFFER as u64
}

fn most_bytes(limits: &Limits) -> u64 {
    limits.max_disk_bytes.min(ext4::MAX_DISK_BYTES)
}

/// What keeps a layer from being merged.
pub(super) enum MergeError {
    /// Its index cannot be read.
    Index(io::Error),
    /// It is no layer that could lie there.
    Fault(LayerFault),
}

impl From<LayerFault> for MergeError {
    fn from(fault: LayerFault) -> Self {
        Self::Fault(fault)
    }
}

/// Puts a layer's entries over what is in the tree; its content begins at block `base`, and ends at a block number.
pub(super) fn merge<R: BufRead>(
    index: &mut IndexReader<'_, R>,
    tree: &mut Tree<'_>,
    base: u32,
    entries: &mut u64,
    limits: &Limits,
) -> Result<(), MergeError> {
    tree.begin_layer();
    while let Some((entry, extents)) = index.next_entry().map_err(MergeError::Index)? {
        *entries += 1;
        if *entries > limits.max_entries {
            return Err(over("entries", "max_entries", limits.max_entries).into());
        }
        let extents = extents.moved(base).unwrap_or(Extents::None);
        let target = tree.locate(&entry.path)?;
        if !matches!(target, Target::Place(_)) {
            tree.release(&extents);
        }
        tree.insert(target, &entry, extents)?;
    }
    Ok(())
}

fn over(what: &'static str, field: &'static str, limit: u64) -> LayerFault {
    let entry = String::new();
    LayerFault::Limit {
        what,
        field,
        limit,
        entry,
    }
}

/// The front's file: what comes behind the pieces on the disk comes behind the first blocks here.
struct Front {
    inner: FileBlocks,
    /// The disk's first block behind the pieces.
    behind: u32,
}

impl Front {
    fn place(&self, block: u32) -> u32 {
        match block.checked_sub(self.behind) {
            Some(rest) => FIRST_CONTENT_BLOCK + rest,
            None => block,
        }
    }
}

impl BlockFile for Front {
    fn write_blocks(&mut self, block: u32, bytes: &[u8]) -> io::Result<()> {
        let at = self.place(block);
        self.inner.write_blocks(at, bytes)
    }

    fn write_buffer(&mut self, block: u32, buffer: &mut PageBuffer) -> io::Result<()> {
        let at = self.place(block);
        self.inner.write_buffer(at, buffer)
    }
}
