//! What stays of a history that has grown long.
//!
//! Of a full one the first event stays, which says when the workspace first ran, the beginning of the
//! boot that runs, which says what runs it and how, and the newest ones. What goes was older than
//! half a MiB of events. Lines are moved as they are, and each event keeps its number.

use std::{fs::File, io, os::unix::fs::FileExt};

/// How much is kept, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    /// A longer history is made shorter.
    pub(super) longest: u64,
    /// How much of its newest events stays.
    pub(super) newest: u64,
    /// The most that stays of the first event, and of the beginning of the boot.
    pub(super) oldest: u64,
}

pub(super) const BOUND: Bound = Bound {
    longest: 1 << 20,
    newest: 512 << 10,
    oldest: 16 << 10,
};

/// A history without its middle.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shorter {
    pub(super) bytes: Vec<u8>,
    /// Where the boot begins in it.
    pub(super) boot: u64,
}

/// Makes the history of `length` bytes in `file` shorter, whose boot that runs begins at `boot`: both
/// are ends of lines. `None` if it cannot be made shorter now, since its last line is too long.
pub(super) fn shorten(
    file: &File,
    length: u64,
    boot: u64,
    bound: &Bound,
) -> io::Result<Option<Shorter>> {
    // One byte more, to see whether a line begins just there.
    let from = length.saturating_sub(bound.newest + 1);
    let newest = read(file, from, length)?;
    let Some(start) = newest.iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    let newest = &newest[start + 1..];
    if from == 0 || newest.is_empty() {
        return Ok(None);
    }
    let from = length - newest.len() as u64;
    let mut bytes = Vec::new();
    if boot > 0 {
        let first = read(file, 0, bound.oldest.min(from))?;
        let end = first.iter().position(|byte| *byte == b'\n');
        bytes.extend_from_slice(&first[..end.map_or(0, |end| end + 1)]);
    }
    let boots = match boot.checked_sub(from) {
        Some(after) => bytes.len() as u64 + after,
        None => {
            let boots = bytes.len() as u64;
            let begins = read(file, boot, (boot + bound.oldest).min(from))?;
            let end = begins.iter().rposition(|byte| *byte == b'\n');
            bytes.extend_from_slice(&begins[..end.map_or(0, |end| end + 1)]);
            boots
        }
    };
    bytes.extend_from_slice(newest);
    Ok(Some(Shorter { bytes, boot: boots }))
}

fn read(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}
