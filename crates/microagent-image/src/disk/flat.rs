//! One disk in one file: layers are inflated, merged and written in one pass.

use std::path::Path;

use super::content::{Appender, BLOCK, BlockFile, ContentError, Extents};
use super::ext4::{self, FIRST_CONTENT_BLOCK, Headroom, LayoutError, Room};
use super::layer::{Entries, apply_layer, settle};
use super::limits::Limits;
use super::output::{FileBlocks, Output, Unsynced};
use super::source::{self, LayerSource};
use super::sums::ChunkSums;
use super::tree::{Target, Tree};
use super::{BuildOptions, BuildProgress, DiskError, LayerFault, identity};
use microagent_files::tar::Entry;

/// A disk that is complete and in place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuiltDisk {
    /// Apparent size in bytes.
    pub size_bytes: u64,
    /// Bytes the host's file system allocated for it.
    pub allocated_bytes: u64,
    /// The sums of its chunks, and so its digest.
    pub sums: ChunkSums,
    /// Inodes in the merged tree, the root included.
    pub entries: u64,
    /// Uncompressed bytes of all layers.
    pub stream_bytes: u64,
    /// SHA-256 of each layer's uncompressed bytes, computed on the way.
    pub diff_ids: Vec<[u8; 32]>,
    /// The file system's UUID, derived from the layers.
    pub uuid: [u8; 16],
}

/// Merges `layers` (lowest first) into a read-only ext4 disk at `output`, replacing what is there.
///
/// The file is written as `.<name>.<random>.partial` beside `output`, synced, given mode 0444 and renamed; on any
/// error nothing stays. `progress` is called on the caller's thread.
///
/// # Errors
/// [`DiskError::Layer`] names the layer and what is wrong with it, [`DiskError::DiffId`] a layer whose content is not
/// what `diff_id` promises; [`DiskError::Output`] is the host's trouble. A reader that blocks for ever blocks `build`.
///
/// # Example
/// ```no_run
/// use microagent_image::disk::{BuildOptions, Compression, LayerSource, build};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layer = LayerSource {
///     label: "rootfs.tar.gz".to_owned(),
///     reader: Box::new(std::fs::File::open("rootfs.tar.gz")?),
///     compression: Compression::Detect,
///     diff_id: None,
/// };
/// let disk = build(vec![layer], "base.ext4".as_ref(), &BuildOptions::default(), &mut |_| {})?;
/// println!("{} files in {} bytes", disk.entries, disk.size_bytes);
/// # Ok(()) }
/// ```
pub fn build(
    layers: Vec<LayerSource>,
    output: &Path,
    options: &BuildOptions,
    progress: &mut dyn FnMut(BuildProgress<'_>),
) -> Result<BuiltDisk, DiskError> {
    let output = Output::create(output)?;
    let (merged, size_bytes, mut unsynced) = lay_out(layers, &output, options, None, progress)?;
    let sums = unsynced
        .sums(output.file(), size_bytes)
        .map_err(output.error("read back"))?;
    unsynced.finish().map_err(output.error("sync"))?;
    let metadata = output.file().metadata().map_err(output.error("inspect"))?;
    output.publish(0o444)?;
    Ok(BuiltDisk {
        size_bytes,
        allocated_bytes: microagent_host::fs::allocated_bytes(&metadata),
        sums,
        entries: merged.entries,
        stream_bytes: merged.stream_bytes,
        diff_ids: merged.diff_ids,
        uuid: merged.uuid,
    })
}

/// Like [`build`], for a disk that is written to: with a journal and room, of mode 0600, and so without a digest.
///
/// # Errors
/// As [`build`].
pub fn build_writable(
    layers: Vec<LayerSource>,
    output: &Path,
    headroom: Headroom,
    options: &BuildOptions,
    progress: &mut dyn FnMut(BuildProgress<'_>),
) -> Result<(), DiskError> {
    write_room(layers, output, Room::Free(headroom), options, progress)
}

/// Like [`build_writable`], for a disk of exactly `size_bytes` (whole blocks of 4096 bytes).
///
/// # Errors
/// As [`build`]; [`DiskError::Layout`] where that is too little, with how much it takes.
pub fn build_sized(
    layers: Vec<LayerSource>,
    output: &Path,
    size_bytes: u64,
    options: &BuildOptions,
    progress: &mut dyn FnMut(BuildProgress<'_>),
) -> Result<(), DiskError> {
    write_room(layers, output, Room::Total(size_bytes), options, progress)
}

fn write_room(
    layers: Vec<LayerSource>,
    output: &Path,
    room: Room,
    options: &BuildOptions,
    progress: &mut dyn FnMut(BuildProgress<'_>),
) -> Result<(), DiskError> {
    let output = Output::create(output)?;
    let (_, _, unsynced) = lay_out(layers, &output, options, Some(room), progress)?;
    unsynced.finish().map_err(output.error("sync"))?;
    output.publish(0o600)
}

/// Merges the layers and writes the file system; gives it, its size in bytes, and the sync that is under way.
fn lay_out(
    layers: Vec<LayerSource>,
    output: &Output,
    options: &BuildOptions,
    room: Option<Room>,
    progress: &mut dyn FnMut(BuildProgress<'_>),
) -> Result<(Merged, u64, Unsynced), DiskError> {
    let hashed = room.is_none();
    let mut blocks = FileBlocks::new(output.file(), hashed, true).map_err(output.error("open"))?;
    let merged = merge(layers, &mut blocks, options, room, progress, output)?;
    let size_bytes = u64::from(merged.blocks) * BLOCK as u64;
    output
        .file()
        .set_len(size_bytes)
        .map_err(output.error("size"))?;
    let unsynced = blocks
        .finish(&merged.freed)
        .map_err(output.error("write"))?;
    Ok((merged, size_bytes, unsynced))
}

struct Merged {
    blocks: u32,
    entries: u64,
    stream_bytes: u64,
    freed: Vec<(u32, u32)>,
    diff_ids: Vec<[u8; 32]>,
    uuid: [u8; 16],
}

fn merge(
    layers: Vec<LayerSource>,
    blocks: &mut dyn BlockFile,
    options: &BuildOptions,
    room: Option<Room>,
    progress: &mut dyn FnMut(BuildProgress<'_>),
    output: &Output,
) -> Result<Merged, DiskError> {
    let limits = &options.limits;
    if layers.len() as u64 > limits.max_layers {
        let label = layers
            .last()
            .map_or_else(String::new, |layer| layer.label.clone());
        let (limit, entry) = (limits.max_layers, String::new());
        return Err(DiskError::Layer {
            layer: label,
            fault: LayerFault::Limit {
                what: "layers",
                field: "max_layers",
                limit,
                entry,
            },
        });
    }
    let mut described = Vec::with_capacity(layers.len());
    let mut sources = Vec::with_capacity(layers.len());
    for layer in layers {
        described.push((layer.label, layer.diff_id));
        sources.push((layer.reader, layer.compression));
    }
    let mut tree = Tree::new(limits);
    let mut appender = Appender::new(
        blocks,
        FIRST_CONTENT_BLOCK,
        limits.max_disk_bytes.min(ext4::MAX_DISK_BYTES),
    );
    let (mut entries, mut stream_bytes, mut diff_ids) = (0, 0, Vec::with_capacity(described.len()));
    std::thread::scope(|scope| {
        // Dropping the pieces on an early return lets the thread end; the scope then waits for it.
        let (mut pieces, _thread) =
            source::start(scope, sources).map_err(output.error("start a thread for"))?;
        for (index, (label, promised)) in described.iter().enumerate() {
            progress(BuildProgress::Layer {
                index,
                count: described.len(),
                label,
            });
            tree.begin_layer();
            let before = stream_bytes;
            let result = apply_layer(
                &mut pieces,
                limits,
                before,
                promised.is_some(),
                &mut OntoTree::new(&mut tree),
                &mut appender,
                &mut entries,
                &mut |bytes| progress(BuildProgress::Bytes(before + bytes)),
            );
            let (digest, bytes) = settle(result, label, *promised, limits, output)?;
            stream_bytes += bytes;
            diff_ids.push(digest);
        }
        Ok(())
    })?;
    progress(BuildProgress::Finishing);
    let identity = identity(&diff_ids);
    let written = ext4::write(&mut tree, &mut appender, &identity, room)
        .map_err(|error| layout_error(error, output, limits))?;
    tracing::debug!(
        blocks = written.blocks,
        inodes = written.inodes,
        "base disk laid out"
    );
    Ok(Merged {
        blocks: written.blocks,
        entries: tree.len(),
        stream_bytes,
        freed: std::mem::take(&mut tree.freed),
        diff_ids,
        uuid: identity.uuid,
    })
}

/// Why a disk could not be laid out, in words.
pub(super) fn layout_error(error: LayoutError, output: &Output, limits: &Limits) -> DiskError {
    match error {
        LayoutError::Output(source) => output.error("write")(source),
        LayoutError::Full => DiskError::Layout(format!(
            "its metadata exceeds the limit of {} bytes on the disk; raise `Limits::max_disk_bytes` if you trust the image",
            limits.max_disk_bytes
        )),
        LayoutError::Impossible(why) => DiskError::Layout(why),
    }
}

/// Applies entries to the tree as they come.
pub(super) struct OntoTree<'t, 'l> {
    tree: &'t mut Tree<'l>,
    target: Option<Target>,
}

impl<'t, 'l> OntoTree<'t, 'l> {
    pub(super) fn new(tree: &'t mut Tree<'l>) -> Self {
        OntoTree { tree, target: None }
    }
}

impl Entries for OntoTree<'_, '_> {
    fn begin(&mut self, entry: &Entry) -> Result<bool, LayerFault> {
        let target = self.tree.locate(&entry.path)?;
        let wanted = matches!(target, Target::Place(_));
        self.target = Some(target);
        Ok(wanted)
    }

    fn end(&mut self, entry: &Entry, extents: Extents) -> Result<(), ContentError> {
        if let Some(target) = self.target.take() {
            self.tree.insert(target, entry, extents)?;
        }
        Ok(())
    }
}
