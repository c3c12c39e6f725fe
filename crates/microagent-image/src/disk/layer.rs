//! One layer's entries, from its compressed bytes to whoever takes them.

use std::io;

use microagent_files::tar::{Content, Entry, EntryKind, TarReader};

use super::content::{Appender, BLOCK, ContentError, Extents, FileWriter};
use super::error::{self, DiskError, EntryFault, LayerFault};
use super::hex;
use super::limits::Limits;
use super::output::Output;
use super::source::{Budget, LayerStream, OverBudget, Pieces};

/// Who takes a layer's entries.
pub(super) trait Entries {
    /// An entry comes: whether the content of a file is wanted.
    fn begin(&mut self, entry: &Entry) -> Result<bool, LayerFault>;

    /// It is complete, its content written where it says.
    fn end(&mut self, entry: &Entry, extents: Extents) -> Result<(), ContentError>;
}

#[expect(
    clippy::too_many_arguments,
    reason = "one caller; a struct would only rename them"
)]
pub(super) fn apply_layer(
    pieces: &mut Pieces,
    limits: &Limits,
    before: u64,
    promised: bool,
    taker: &mut dyn Entries,
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
    apply(&mut reader, limits, taker, appender, entries, progress)?;
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

/// Hands a layer's entries over, and writes their content.
pub(super) fn apply<R: io::BufRead>(
    reader: &mut TarReader<R>,
    limits: &Limits,
    taker: &mut dyn Entries,
    appender: &mut Appender<'_>,
    entries: &mut u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ContentError> {
    const REPORT_EVERY: u64 = 16 << 20;
    /// Block numbers inside a file have 32 bits.
    const MAX_FILE_BYTES: u64 = (u32::MAX as u64 - 1) * BLOCK as u64;
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
            let fault = EntryFault::Size("the disk holds files of up to 8 TiB");
            return Err(LayerFault::entry(&entry.path, fault).into());
        }
        let wanted = taker.begin(&entry)?;
        let mut extents = Extents::None;
        if wanted && entry.kind == EntryKind::File && entry.size > 0 {
            let mut file = FileWriter::new(appender, limits);
            reader.read_content(|content| match content {
                Content::Data(bytes) => file.data(bytes),
                Content::Hole(length) => file.hole(length),
            })?;
            extents = file.finish()?;
        }
        taker.end(&entry, extents)?;
        if reader.offset() - reported >= REPORT_EVERY {
            reported = reader.offset();
            progress(reported);
        }
    }
    Ok(())
}

/// What [`apply_layer`] came to, as the disk's error where it failed or the layer is not the promised one.
pub(super) fn settle(
    applied: Result<([u8; 32], u64), ContentError>,
    label: &str,
    promised: Option<[u8; 32]>,
    limits: &Limits,
    output: &Output,
) -> Result<([u8; 32], u64), DiskError> {
    let (digest, bytes) = applied.map_err(|error| match error {
        ContentError::Output(source) => output.error("write")(source),
        ContentError::Fault(fault) => DiskError::Layer {
            layer: label.to_owned(),
            fault: over_budget(fault, limits),
        },
    })?;
    match promised {
        Some(promised) if promised != digest => Err(DiskError::DiffId {
            layer: label.to_owned(),
            expected: hex(&promised),
            actual: hex(&digest),
        }),
        _ => Ok((digest, bytes)),
    }
}

/// Puts the limit's name to what the stream could only say as an I/O error.
pub(super) fn over_budget(fault: LayerFault, limits: &Limits) -> LayerFault {
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
