//! A disk's digest, of which parts can be computed side by side, and while the disk is still being written.
//!
//! The file is hashed in chunks of 4 MiB. Their SHA-256 sums stand in a list, as text, and the SHA-256 of that list
//! is the disk's digest. So every processor can help, and a change is found with its place. The list is
//!
//! ```text
//! microagent-disk-sums 1 <bytes of a chunk> <bytes of the disk>
//! <hex SHA-256 of the first chunk>
//! …
//! ```
//! and anybody can make it with `split --filter=sha256sum`; see `docs/concepts.md`.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use microagent_host::fs::{Positioned, let_go};
use sha2::{Digest as _, Sha256};

use super::hex;
use crate::digest::Digest;

/// Bytes that are hashed together; the last chunk is what is left.
pub const CHUNK_BYTES: u64 = 4 << 20;
/// Of the text form: more than the list of the largest disk.
const MAX_TEXT: u64 = 8 << 20;
/// Read at once while hashing.
const PIECE: usize = 256 << 10;

type Sum = [u8; 32];

/// The sums of a disk's chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSums {
    size_bytes: u64,
    sums: Vec<Sum>,
}

impl ChunkSums {
    /// Hashes a file, on all processors.
    ///
    /// # Errors
    /// When the file cannot be read, or changes its size meanwhile.
    pub fn of_file(file: &File) -> io::Result<Self> {
        let size_bytes = file.metadata()?.len();
        let none = vec![None; count(size_bytes) as usize];
        Self::complete(file, size_bytes, none)
    }

    /// Hashes those chunks of a file whose sums are not known.
    pub(crate) fn complete(
        file: &File,
        size_bytes: u64,
        known: Vec<Option<Sum>>,
    ) -> io::Result<Self> {
        let missing: Vec<u64> = (0..count(size_bytes))
            .filter(|chunk| known.get(*chunk as usize).copied().flatten().is_none())
            .collect();
        let mut sums: Vec<Sum> = known.into_iter().map(Option::unwrap_or_default).collect();
        sums.resize(count(size_bytes) as usize, Sum::default());
        for (chunk, sum) in hash(file, size_bytes, &missing)? {
            sums[chunk as usize] = sum;
        }
        Ok(Self { size_bytes, sums })
    }

    /// Reads the text form back; `None` if it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() as u64 > MAX_TEXT {
            return None;
        }
        let mut lines = text.lines();
        let header = lines
            .next()?
            .strip_prefix(&format!("microagent-disk-sums 1 {CHUNK_BYTES} "))?;
        let size_bytes: u64 = header.parse().ok()?;
        let sums: Vec<Sum> = lines
            .map(|line| Some(*Digest::from_hex(line)?.as_bytes()))
            .collect::<Option<_>>()?;
        let sums = Self { size_bytes, sums };
        (sums.sums.len() as u64 == count(size_bytes) && sums.text() == text).then_some(sums)
    }

    /// The list as text: what the digest is of.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("microagent-disk-sums 1 {CHUNK_BYTES} {}\n", self.size_bytes);
        for sum in &self.sums {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", hex(sum));
        }
        text
    }

    /// The disk's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.text().as_bytes())
    }

    /// Where the first chunk is that has another sum in `other`: its first byte and the one behind its last.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<(u64, u64)> {
        let end = self.size_bytes.max(other.size_bytes);
        (0..count(end))
            .find(|chunk| {
                let at = *chunk as usize;
                let length = |sums: &Self| chunk_length(sums.size_bytes, *chunk);
                self.sums.get(at) != other.sums.get(at) || length(self) != length(other)
            })
            .map(|chunk| (chunk * CHUNK_BYTES, ((chunk + 1) * CHUNK_BYTES).min(end)))
    }
}

fn count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(CHUNK_BYTES)
}

fn chunk_length(size_bytes: u64, chunk: u64) -> u64 {
    size_bytes
        .saturating_sub(chunk * CHUNK_BYTES)
        .min(CHUNK_BYTES)
}

/// Hashes some chunks, on as many threads as there are processors.
fn hash(file: &File, size_bytes: u64, chunks: &[u64]) -> io::Result<Vec<(u64, Sum)>> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut done = Vec::new();
        let mut buffer = vec![0; PIECE];
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let mut hasher = Sha256::new();
            let (mut at, mut left) = (chunk * CHUNK_BYTES, chunk_length(size_bytes, *chunk));
            while left > 0 {
                let piece = &mut buffer[..left.min(PIECE as u64) as usize];
                file.read_exact_at(piece, at)?;
                hasher.update(&*piece);
                at += piece.len() as u64;
                left -= piece.len() as u64;
            }
            // A disk is read whole once, and a guest reads little of it: the host's memory is for other things.
            let_go(file, chunk * CHUNK_BYTES, at - chunk * CHUNK_BYTES);
            done.push((*chunk, hasher.finalize().into()));
        }
        Ok::<_, io::Error>(done)
    };
    let threads = thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(chunks.len())
        .min(16);
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            let found = other
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a hashing thread panicked")));
            all = all.and_then(|mut all| {
                all.extend(found?);
                Ok(all)
            });
        }
        all
    })
}

/// Sums of what is written in order; what was not, or was written twice, has none and is to be read back.
#[derive(Default)]
pub(crate) struct SumsInOrder {
    sums: Vec<Option<Sum>>,
    hasher: Sha256,
    /// The next byte the hasher takes; `None` where the chunk there has a gap.
    next: Option<u64>,
}

impl SumsInOrder {
    pub(crate) fn wrote(&mut self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let chunk = (at / CHUNK_BYTES) as usize;
            let inside = at % CHUNK_BYTES;
            let take = ((CHUNK_BYTES - inside) as usize).min(bytes.len());
            if self.sums.len() <= chunk {
                self.sums.resize(chunk + 1, None);
            }
            if self.sums[chunk].take().is_some() {
                self.next = None;
            } else if inside == 0 {
                self.hasher = Sha256::new();
                self.next = Some(at);
            }
            if self.next == Some(at) {
                self.hasher.update(&bytes[..take]);
                self.next = Some(at + take as u64);
                if inside + take as u64 == CHUNK_BYTES {
                    self.sums[chunk] = Some(self.hasher.finalize_reset().into());
                }
            } else {
                self.next = None;
            }
            at += take as u64;
            bytes = &bytes[take..];
        }
    }

    /// Bytes that are not what was written any more.
    pub(crate) fn changed(&mut self, at: u64, length: u64) {
        let first = (at / CHUNK_BYTES) as usize;
        let end = count(at + length) as usize;
        for sum in self.sums.iter_mut().take(end).skip(first) {
            *sum = None;
        }
    }

    /// Those that are known.
    pub(crate) fn known(self) -> Vec<Option<Sum>> {
        self.sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn noise(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at / 7 * 31 % 251) as u8).collect()
    }

    #[test]
    fn writing_in_order_gives_what_reading_gives() {
        let size = 3 * CHUNK_BYTES as usize + 12345;
        let mut bytes = noise(size);
        let mut sums = SumsInOrder::default();
        // As a disk is written: from behind its front, in large steps, then a gap, then the front.
        let front = 17 * 4096;
        let gap = (2 * CHUNK_BYTES as usize + 99)..(2 * CHUNK_BYTES as usize + 999);
        for step in [front..gap.start, gap.end..size] {
            for start in step.clone().step_by(1 << 20) {
                let end = (start + (1 << 20)).min(step.end);
                sums.wrote(start as u64, &bytes[start..end]);
            }
        }
        sums.wrote(0, &bytes[..front]);
        bytes[gap].fill(0);
        let known = sums.known();
        assert_eq!(
            known.iter().map(Option::is_some).collect::<Vec<_>>(),
            [false, true, false, false]
        );
        let file = file(&bytes);
        assert_eq!(
            ChunkSums::complete(&file, size as u64, known).unwrap(),
            ChunkSums::of_file(&file).unwrap()
        );
    }

    #[test]
    fn what_is_written_twice_or_discarded_is_read_again() {
        let size = 2 * CHUNK_BYTES as usize;
        let mut sums = SumsInOrder::default();
        sums.wrote(0, &noise(size));
        sums.wrote(CHUNK_BYTES + 7, b"again");
        assert_eq!(sums.sums.iter().filter(|sum| sum.is_some()).count(), 1);
        sums.changed(CHUNK_BYTES - 1, 1);
        assert!(sums.known().iter().all(Option::is_none));
    }

    #[test]
    fn the_text_is_read_back_and_nothing_else_is() {
        for size in [0, 1, CHUNK_BYTES as usize, CHUNK_BYTES as usize + 1] {
            let sums = ChunkSums::of_file(&file(&noise(size))).unwrap();
            let text = sums.text();
            assert_eq!(ChunkSums::parse(&text), Some(sums));
            for bad in [
                text.trim_end().to_owned(),
                format!("{text}\n"),
                text.replacen(" 1 ", " 2 ", 1),
                format!("{text}{}\n", "0".repeat(64)),
            ] {
                assert_eq!(ChunkSums::parse(&bad), None, "{bad}");
            }
        }
    }

    #[test]
    fn the_first_difference_has_a_place() {
        let mut bytes = noise(2 * CHUNK_BYTES as usize + 10);
        let sums = ChunkSums::of_file(&file(&bytes)).unwrap();
        assert_eq!(sums.first_difference(&sums), None);
        bytes[CHUNK_BYTES as usize + 5] ^= 1;
        let other = ChunkSums::of_file(&file(&bytes)).unwrap();
        let middle = Some((CHUNK_BYTES, 2 * CHUNK_BYTES));
        assert_eq!(sums.first_difference(&other), middle);
        let longer = ChunkSums::of_file(&file(&noise(bytes.len() + 1))).unwrap();
        let last = Some((2 * CHUNK_BYTES, bytes.len() as u64 + 1));
        assert_eq!(longer.first_difference(&sums), last);
        assert_eq!(sums.first_difference(&longer), last);
    }
}
