//! One layer, whatever is below it, to a *piece*: its content in blocks, and an index of its entries.
//!
//! This needs no other layer, so layers are converted side by side, and each once for all images that have it.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};

use microagent_files::tar::Entry;

use super::content::{Appender, BLOCK, ContentError, Extents};
use super::ext4;
use super::index::{INDEX_BUFFER, IndexWriter};
use super::layer::{Entries, apply_layer, settle};
use super::output::{FileBlocks, Output};
use super::source::{self, Compression, LayerSource};
use super::sums::ChunkSums;
use super::xattr::XattrSet;
use super::{BuildOptions, DiskError, LayerFault};
use crate::digest::Digest;

/// A layer that was converted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// The file with the content: whole blocks, many or none.
    pub path: PathBuf,
    /// The file that says which entries the layer has, and where in `path` their content lies.
    pub index: PathBuf,
    /// The length of `path`.
    pub size_bytes: u64,
    /// The sums of `path`.
    pub sums: Digest,
    /// The digest of `index`.
    pub index_digest: Digest,
    /// The digest of the layer's uncompressed bytes.
    pub diff_id: Digest,
    /// How many these were.
    pub stream_bytes: u64,
}

/// Converts a layer into the files `piece` and `index`, replacing what is there; gives the piece, and the sums that
/// its digest is of.
///
/// Each file gets its name once it is whole, and mode 0400. Neither is synced: they can be made again, and the
/// piece tells by its digests what a crash of the host took. `progress` hears of
/// uncompressed bytes, about every 16 MiB.
///
/// # Errors
/// As [`build`](super::build).
pub fn convert(
    layer: LayerSource,
    piece: &Path,
    index: &Path,
    options: &BuildOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<(Piece, ChunkSums), DiskError> {
    let limits = &options.limits;
    let (output, index_output) = (Output::create(piece)?, Output::create(index)?);
    let mut blocks = FileBlocks::new(output.file(), true, false).map_err(output.error("open"))?;
    let most = limits.max_disk_bytes.min(ext4::MAX_DISK_BYTES);
    let mut appender = Appender::new(&mut blocks, 0, most);
    let promised = layer.diff_id;
    let label = layer.label;
    let out = index_output
        .file()
        .try_clone()
        .map_err(index_output.error("open"))?;
    let out = BufWriter::with_capacity(INDEX_BUFFER, out);
    let mut taker = IntoIndex {
        writer: IndexWriter::new(out).map_err(index_output.error("write"))?,
    };
    let (digest, stream_bytes) = std::thread::scope(|scope| {
        // Dropping the pieces on an early return lets the thread end; the scope then waits for it.
        let sources = vec![(layer.reader, layer.compression)];
        let (mut pieces, _thread) =
            source::start(scope, sources).map_err(output.error("start a thread for"))?;
        let applied = apply_layer(
            &mut pieces,
            limits,
            0,
            promised.is_some(),
            &mut taker,
            &mut appender,
            &mut 0,
            progress,
        );
        settle(applied, &label, promised, limits, &output)
    })?;
    appender.flush().map_err(output.error("write"))?;
    let size_bytes = u64::from(appender.next_block()) * BLOCK as u64;
    drop(appender);
    taker
        .writer
        .finish()
        .map(drop)
        .map_err(index_output.error("write"))?;
    let mut unsynced = blocks.finish(&[]).map_err(output.error("write"))?;
    let sums = unsynced
        .sums(output.file(), size_bytes)
        .map_err(output.error("read back"))?;
    index_output.publish_unsynced(0o400)?;
    output.publish_unsynced(0o400)?;
    let index_digest = digest_of(index)?;
    let converted = Piece {
        path: piece.to_owned(),
        index: index.to_owned(),
        size_bytes,
        sums: sums.digest(),
        index_digest,
        diff_id: Digest::from_bytes(digest),
        stream_bytes,
    };
    Ok((converted, sums))
}

/// What converting a layer takes at most.
pub(crate) fn conversion_memory(compression: Compression) -> u64 {
    source::memory(compression) + FileBlocks::MEMORY + INDEX_BUFFER as u64
}

fn digest_of(index: &Path) -> Result<Digest, DiskError> {
    File::open(index)
        .and_then(|file| Digest::of_reader(BufReader::new(file)))
        .map_err(|source| DiskError::Output {
            action: "read back",
            path: index.to_owned(),
            source,
        })
}

/// Writes entries down as they come.
struct IntoIndex<W> {
    writer: IndexWriter<W>,
}

impl<W: std::io::Write> Entries for IntoIndex<W> {
    fn begin(&mut self, entry: &Entry) -> Result<bool, LayerFault> {
        if !entry.xattrs.is_empty() {
            // What no inode holds need not be kept until somebody merges it.
            XattrSet::new(&entry.xattrs).map_err(|fault| LayerFault::entry(&entry.path, fault))?;
        }
        let name = entry
            .path
            .rsplit(|byte| *byte == b'/')
            .find(|name| !name.is_empty());
        // A whiteout has no content, whatever it claims.
        Ok(!name.is_some_and(|name| name.starts_with(b".wh.")))
    }

    fn end(&mut self, entry: &Entry, extents: Extents) -> Result<(), ContentError> {
        Ok(self.writer.entry(entry, &extents)?)
    }
}
