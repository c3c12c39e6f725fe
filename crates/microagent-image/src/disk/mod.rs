//! OCI layers to one read-only ext4 disk, in one pass, without root, staging directory or foreign tools.
//!
//! [`build`] inflates on one thread and hashes, parses, merges and writes on the caller's: a file's content goes from
//! the decompressor to its final blocks as it arrives, while names and metadata grow into a tree in memory; when the
//! last layer is through, the tree is written behind the content. It must not know where layers come from, what an
//! image config says, or where disks are kept.
//!
//! Everything a layer says is hostile until checked: see [`Limits`] and [`LayerFault`]. The merge rules are stated in
//! the module `tree`. The same layers give the same bytes, on every machine.

mod content;
mod error;
mod ext4;
mod limits;
mod output;
mod scratch;
mod source;
mod sums;
mod tree;
mod xattr;

use std::io;
use std::path::Path;

use microagent_files::tar::{Content, EntryKind, TarReader};
use sha2::{Digest, Sha256};

use self::content::{Appender, BLOCK, BlockFile, ContentError, Extents, FileWriter};
pub use self::error::{DiskError, EntryFault, LayerFault};
pub use self::ext4::Headroom;
use self::ext4::{FIRST_CONTENT_BLOCK, Identity, LayoutError, Room};
pub use self::limits::Limits;
use self::output::{FileBlocks, Output, Unsynced};
pub use self::scratch::create_scratch;
use self::source::{Budget, LayerStream, OverBudget, Pieces};
pub use self::source::{Compression, LayerSource};
pub use self::sums::{CHUNK_BYTES, ChunkSums};
use self::tree::{Target, Tree};
pub(crate) use self::xattr::acl_from_disk;

/// Raised whenever equal layers begin to give other bytes; part of a cached disk's name.
pub const FORMAT_VERSION: u32 = 1;

/// How to build a disk.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct BuildOptions {
    /// What layers may ask for.
    pub limits: Limits,
}

/// What is going on in [`build`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildProgress<'a> {
    /// A layer begins.
    Layer {
        /// Its place, from 0.
        index: usize,
        /// How many there are.
        count: usize,
        /// Its label.
        label: &'a str,
    },
    /// Uncompressed bytes of all layers read so far; about every 16 MiB.
    Bytes(u64),
    /// All layers are merged; metadata is written and the disk hashed.
    Finishing,
}

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
    unsynced.syncer.finish().map_err(output.error("sync"))?;
    let metadata = output.file().metadata().map_err(output.error("inspect"))?;
    output.publish(0o444)?;
    Ok(BuiltDisk {
        size_bytes,
        allocated_bytes: std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
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
    unsynced.syncer.finish().map_err(output.error("sync"))?;
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
    let mut blocks = FileBlocks::new(output.file(), hashed).map_err(output.error("open"))?;
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

/// Drives reader, merge and writer with one uncompressed layer under tight limits, for fuzzing: whatever the bytes
/// are, it returns.
///
/// # Errors
/// What [`build`] would say about the layer.
#[doc(hidden)]
pub fn fuzz_layer(data: &[u8]) -> Result<(), LayerFault> {
    // The same bytes twice: as a first layer, and over themselves.
    fuzz_layers(&[data, data]).map(drop)
}

/// Drives reader, merge and writer with uncompressed layers under tight limits, for fuzzing. Gives the names in
/// the merged tree, each with its kind (`d`, `f`, `l` or `?`) and a number that names of one file share.
///
/// # Errors
/// What [`build`] would say about a layer.
#[doc(hidden)]
pub fn fuzz_layers(layers: &[&[u8]]) -> Result<Vec<(Vec<u8>, char, u32)>, LayerFault> {
    struct Nowhere;
    impl BlockFile for Nowhere {
        fn write_blocks(&mut self, _block: u32, _bytes: &[u8]) -> io::Result<()> {
            Ok(())
        }
    }
    let limits = Limits::tight();
    let mut nowhere = Nowhere;
    let mut appender = Appender::new(&mut nowhere, FIRST_CONTENT_BLOCK, limits.max_disk_bytes);
    let mut tree = Tree::new(&limits);
    let mut entries = 0;
    for layer in layers {
        tree.begin_layer();
        let mut reader = TarReader::new(*layer, limits.tar());
        match apply(
            &mut reader,
            &mut tree,
            &mut appender,
            &mut entries,
            &mut |_| {},
        ) {
            Ok(()) => {}
            Err(ContentError::Fault(fault)) => return Err(fault),
            Err(ContentError::Output(error)) => return Err(error.into()),
        }
    }
    let names = tree.names();
    let identity = Identity {
        uuid: [1; 16],
        label: [0; 16],
    };
    match ext4::write(&mut tree, &mut appender, &identity, None) {
        Ok(_) | Err(LayoutError::Full | LayoutError::Impossible(_)) => Ok(names),
        Err(LayoutError::Output(error)) => Err(error.into()),
    }
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
                &mut tree,
                &mut appender,
                &mut entries,
                &mut |bytes| progress(BuildProgress::Bytes(before + bytes)),
            );
            let (digest, bytes) = result.map_err(|error| match error {
                ContentError::Output(source) => output.error("write")(source),
                ContentError::Fault(fault) => DiskError::Layer {
                    layer: label.clone(),
                    fault: over_budget(fault, limits),
                },
            })?;
            if let Some(promised) = promised
                && *promised != digest
            {
                return Err(DiskError::DiffId {
                    layer: label.clone(),
                    expected: hex(promised),
                    actual: hex(&digest),
                });
            }
            stream_bytes += bytes;
            diff_ids.push(digest);
        }
        Ok(())
    })?;
    progress(BuildProgress::Finishing);
    let identity = identity(&diff_ids);
    let written = ext4::write(&mut tree, &mut appender, &identity, room).map_err(|error| match error {
        LayoutError::Output(source) => output.error("write")(source),
        LayoutError::Full => DiskError::Layout(format!(
            "its metadata exceeds the limit of {} bytes on the disk; raise `Limits::max_disk_bytes` if you trust the image",
            limits.max_disk_bytes
        )),
        LayoutError::Impossible(why) => DiskError::Layout(why),
    })?;
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

#[expect(
    clippy::too_many_arguments,
    reason = "one caller; a struct would only rename them"
)]
fn apply_layer(
    pieces: &mut Pieces,
    limits: &Limits,
    before: u64,
    promised: bool,
    tree: &mut Tree<'_>,
    appender: &mut Appender<'_>,
    entries: &mut u64,
    progress: &mut dyn FnMut(u64),
) -> Result<([u8; 32], u64), ContentError> {
    let budget = Budget {
        stream: limits.max_stream_bytes.saturating_sub(before),
        ratio: limits.max_expansion_ratio,
        grace: limits.expansion_grace_bytes,
    };
    let mut stream = LayerStream::new(pieces, budget);
    let mut reader = TarReader::new(&mut stream, limits.tar());
    apply(&mut reader, tree, appender, entries, progress)?;
    // The digest covers all of it.
    reader.drain(u64::MAX)?;
    if !reader.saw_end_marker() && !promised {
        // With a promised digest a cut is found anyway, and some writers leave the marker out.
        return Err(LayerFault::Truncated {
            offset: reader.offset(),
            what: "the archive (no end-of-archive marker)",
        }
        .into());
    }
    let bytes = stream.total;
    Ok((stream.digest(), bytes))
}

/// Applies one layer's entries to the tree, content to the disk.
fn apply<R: io::BufRead>(
    reader: &mut TarReader<R>,
    tree: &mut Tree<'_>,
    appender: &mut Appender<'_>,
    entries: &mut u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ContentError> {
    const REPORT_EVERY: u64 = 16 << 20;
    /// Block numbers inside a file have 32 bits.
    const MAX_FILE_BYTES: u64 = (u32::MAX as u64 - 1) * BLOCK as u64;
    let limits = tree.limits();
    let mut reported = 0;
    while let Some(entry) = reader.next_entry()? {
        *entries += 1;
        if *entries > limits.max_entries {
            return Err(LayerFault::Limit {
                what: "entries",
                field: "max_entries",
                limit: limits.max_entries,
                entry: error::show(&entry.path),
            }
            .into());
        }
        if entry.size > MAX_FILE_BYTES {
            let fault = EntryFault::Size("ext4 holds files of up to 16 TiB");
            return Err(LayerFault::entry(&entry.path, fault).into());
        }
        let target = tree.locate(&entry.path)?;
        let mut extents = Extents::None;
        if entry.kind == EntryKind::File && matches!(target, Target::Place(_)) && entry.size > 0 {
            let mut file = FileWriter::new(appender, limits);
            reader.read_content(|content| match content {
                Content::Data(bytes) => file.data(bytes),
                Content::Hole(length) => file.hole(length),
            })?;
            extents = file.finish()?;
        }
        tree.insert(target, &entry, extents)?;
        if reader.offset() - reported >= REPORT_EVERY {
            reported = reader.offset();
            progress(reported);
        }
    }
    Ok(())
}

/// Puts the limit's name to what the stream could only say as an I/O error.
fn over_budget(fault: LayerFault, limits: &Limits) -> LayerFault {
    let LayerFault::Read(error) = &fault else {
        return fault;
    };
    let entry = String::new();
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<OverBudget>())
    {
        Some(OverBudget::Stream) => LayerFault::Limit {
            what: "uncompressed bytes",
            field: "max_stream_bytes",
            limit: limits.max_stream_bytes,
            entry,
        },
        Some(OverBudget::Ratio) => LayerFault::Limit {
            what: "uncompressed bytes per compressed byte",
            field: "max_expansion_ratio",
            limit: limits.max_expansion_ratio,
            entry,
        },
        None => fault,
    }
}

/// The file system's UUID is a digest of what is in it (RFC 9562 version 8).
fn identity(diff_ids: &[[u8; 32]]) -> Identity {
    let mut hasher = Sha256::new();
    hasher.update(b"microagent base disk\0");
    hasher.update(FORMAT_VERSION.to_le_bytes());
    for diff_id in diff_ids {
        hasher.update(diff_id);
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let mut label = [0; 16];
    label[..4].copy_from_slice(b"base");
    Identity { uuid, label }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
