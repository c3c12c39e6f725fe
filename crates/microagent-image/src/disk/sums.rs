//! A disk's digest, of which parts can be computed side by side, and while the disk is still being written.
//!
//! The file is hashed in chunks of 4 MiB. Their BLAKE3 sums stand in a list, as text, and the SHA-256 of that list
//! is the disk's digest. So every processor can help, and a change is found with its place. The list is
//!
//! ```text
//! microagent-disk-sums 2 <bytes of a chunk> <bytes of the disk>
//! <hex BLAKE3 of the first chunk>
//! …
//! ```
//! and anybody can make it with `split --filter=b3sum`; see `docs/concepts.md`. Lists that begin with
//! `microagent-disk-sums 1` have SHA-256 sums: files that were hashed before keep theirs.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::num::NonZero;
use std::path::Path;
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
/// As many as a list has lines for: 512 GiB.
const MAX_CHUNKS: u64 = MAX_TEXT / 64;
/// Read at once while hashing.
const PIECE: usize = 256 << 10;

type Sum = [u8; 32];

/// What a chunk is hashed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChunkHash {
    /// SHA-256: of files that were hashed before.
    Sha256,
    /// BLAKE3: five times as fast where the processor has instructions for SHA-256, and more where it has none.
    Blake3,
}

impl ChunkHash {
    /// The version of the list.
    fn version(self) -> u32 {
        match self {
            Self::Sha256 => 1,
            Self::Blake3 => 2,
        }
    }

    fn hasher(self) -> Hasher {
        match self {
            Self::Sha256 => Hasher::Sha256(Sha256::new()),
            Self::Blake3 => Hasher::Blake3(Box::default()),
        }
    }
}

enum Hasher {
    Sha256(Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The sum, after which it is as new.
    fn finish(&mut self) -> Sum {
        match self {
            Self::Sha256(hasher) => hasher.finalize_reset().into(),
            Self::Blake3(hasher) => {
                let sum = hasher.finalize().into();
                hasher.reset();
                sum
            }
        }
    }
}

/// The sums of a disk's chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSums {
    hash: ChunkHash,
    size_bytes: u64,
    sums: Vec<Sum>,
}

impl ChunkSums {
    /// Hashes a file as new ones are, on all processors.
    ///
    /// # Errors
    /// When the file cannot be read, or changes its size meanwhile.
    pub fn of_file(file: &File) -> io::Result<Self> {
        Self::by(ChunkHash::Blake3, file)
    }

    /// Hashes a file by `hash`, on all processors.
    ///
    /// # Errors
    /// As [`of_file`](Self::of_file).
    pub fn by(hash: ChunkHash, file: &File) -> io::Result<Self> {
        let size_bytes = file.metadata()?.len();
        if count(size_bytes) > MAX_CHUNKS {
            // A hole of exabytes costs nobody anything, but whoever hashes it.
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it is larger than any disk",
            ));
        }
        let none = vec![None; count(size_bytes) as usize];
        Self::complete(hash, file, size_bytes, none)
    }

    /// Hashes `file`, which is at `path`, by what it was hashed by when its digest was `recorded`. The list beside
    /// it tells, if it is the recorded one; without it every way is tried, so that a file that was changed is read
    /// twice before it is refused, and never more.
    ///
    /// # Errors
    /// As [`of_file`](Self::of_file).
    pub fn against(recorded: &Digest, file: &File, path: &Path) -> io::Result<Self> {
        if let Some(beside) = Self::beside(path).filter(|sums| sums.digest() == *recorded) {
            return Self::by(beside.hash, file);
        }
        let sums = Self::of_file(file)?;
        if sums.digest() != *recorded {
            let before = Self::by(ChunkHash::Sha256, file)?;
            if before.digest() == *recorded {
                return Ok(before);
            }
        }
        Ok(sums)
    }

    /// The list that stands beside the file at `path`, whether or not it is the right one.
    #[must_use]
    pub fn beside(path: &Path) -> Option<Self> {
        let mut text = String::new();
        let file = File::open(path.with_extension("sums")).ok()?;
        file.take(MAX_TEXT + 1).read_to_string(&mut text).ok()?;
        Self::parse(&text)
    }

    /// Hashes those chunks of a file whose sums are not known.
    pub(crate) fn complete(
        hash: ChunkHash,
        file: &File,
        size_bytes: u64,
        known: Vec<Option<Sum>>,
    ) -> io::Result<Self> {
        let missing: Vec<u64> = (0..count(size_bytes))
            .filter(|chunk| known.get(*chunk as usize).copied().flatten().is_none())
            .collect();
        let mut sums: Vec<Sum> = known.into_iter().map(Option::unwrap_or_default).collect();
        sums.resize(count(size_bytes) as usize, Sum::default());
        for (chunk, sum) in sums_of(hash, file, size_bytes, &missing)? {
            sums[chunk as usize] = sum;
        }
        Ok(Self {
            hash,
            size_bytes,
            sums,
        })
    }

    /// Reads the text form back; `None` if it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() as u64 > MAX_TEXT {
            return None;
        }
        let mut lines = text.lines();
        let header = lines.next()?;
        let (hash, size) = [ChunkHash::Blake3, ChunkHash::Sha256]
            .into_iter()
            .find_map(|hash| Some((hash, header.strip_prefix(&header_of(hash))?)))?;
        let size_bytes: u64 = size.parse().ok()?;
        let sums: Vec<Sum> = lines
            .map(|line| Some(*Digest::from_hex(line)?.as_bytes()))
            .collect::<Option<_>>()?;
        let sums = Self {
            hash,
            size_bytes,
            sums,
        };
        (sums.sums.len() as u64 == count(size_bytes) && sums.text() == text).then_some(sums)
    }

    /// The list as text: what the digest is of.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}{}\n", header_of(self.hash), self.size_bytes);
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

    /// What the chunks were hashed by.
    #[must_use]
    pub fn hash(&self) -> ChunkHash {
        self.hash
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

/// The list's first line, but for the size.
fn header_of(hash: ChunkHash) -> String {
    format!("microagent-disk-sums {} {CHUNK_BYTES} ", hash.version())
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
fn sums_of(
    hash: ChunkHash,
    file: &File,
    size_bytes: u64,
    chunks: &[u64],
) -> io::Result<Vec<(u64, Sum)>> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut done = Vec::new();
        let mut buffer = vec![0; PIECE];
        let mut hasher = hash.hasher();
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let (mut at, mut left) = (chunk * CHUNK_BYTES, chunk_length(size_bytes, *chunk));
            while left > 0 {
                let piece = &mut buffer[..left.min(PIECE as u64) as usize];
                file.read_exact_at(piece, at)?;
                hasher.update(piece);
                at += piece.len() as u64;
                left -= piece.len() as u64;
            }
            // A disk is read whole once, and a guest reads little of it: the host's memory is for other things.
            let_go(file, chunk * CHUNK_BYTES, at - chunk * CHUNK_BYTES);
            done.push((*chunk, hasher.finish()));
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
    hasher: blake3::Hasher,
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
                self.hasher.reset();
                self.next = Some(at);
            }
            if self.next == Some(at) {
                self.hasher.update(&bytes[..take]);
                self.next = Some(at + take as u64);
                if inside + take as u64 == CHUNK_BYTES {
                    self.sums[chunk] = Some(self.hasher.finalize().into());
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
        self.next = self
            .next
            .filter(|next| !(first..end).contains(&((next / CHUNK_BYTES) as usize)));
    }

    /// The sums of the whole file, which has its final size: what is not known is read back.
    pub(crate) fn complete(mut self, file: &File, size_bytes: u64) -> io::Result<ChunkSums> {
        if self.next == Some(size_bytes) && !size_bytes.is_multiple_of(CHUNK_BYTES) {
            self.sums.resize(count(size_bytes) as usize, None);
            if let Some(last) = self.sums.last_mut() {
                *last = Some(self.hasher.finalize().into());
            }
        }
        ChunkSums::complete(ChunkHash::Blake3, file, size_bytes, self.sums)
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
        let known = sums.sums.iter().map(Option::is_some);
        assert_eq!(known.collect::<Vec<_>>(), [false, true, false, false]);
        let file = file(&bytes);
        assert_eq!(
            sums.complete(&file, size as u64).unwrap(),
            ChunkSums::of_file(&file).unwrap()
        );
    }

    #[test]
    fn what_is_written_in_order_is_not_read_again() {
        let nothing = file(&[]);
        for size in [1, 1 << 20, CHUNK_BYTES as usize, CHUNK_BYTES as usize + 99] {
            let bytes = noise(size);
            let of = |changed: &[(u64, u64)]| {
                let mut sums = SumsInOrder::default();
                for (at, part) in bytes.chunks(1 << 20).enumerate() {
                    sums.wrote((at << 20) as u64, part);
                }
                for (at, length) in changed {
                    sums.changed(*at, *length);
                }
                sums.complete(&nothing, size as u64)
            };
            assert_eq!(of(&[]).unwrap(), ChunkSums::of_file(&file(&bytes)).unwrap());
            assert!(of(&[(size as u64 - 1, 1)]).is_err());
        }
    }

    #[test]
    fn what_is_written_twice_or_discarded_is_read_again() {
        let size = 2 * CHUNK_BYTES as usize;
        let mut sums = SumsInOrder::default();
        sums.wrote(0, &noise(size));
        sums.wrote(CHUNK_BYTES + 7, b"again");
        assert_eq!(sums.sums.iter().filter(|sum| sum.is_some()).count(), 1);
        sums.changed(CHUNK_BYTES - 1, 1);
        assert!(sums.sums.iter().all(Option::is_none));
    }

    #[test]
    fn the_text_is_read_back_and_nothing_else_is() {
        for size in [0, 1, CHUNK_BYTES as usize, CHUNK_BYTES as usize + 1] {
            for hash in [ChunkHash::Sha256, ChunkHash::Blake3] {
                let sums = ChunkSums::by(hash, &file(&noise(size))).unwrap();
                let text = sums.text();
                assert_eq!(ChunkSums::parse(&text), Some(sums));
                for bad in [
                    text.trim_end().to_owned(),
                    format!("{text}\n"),
                    text.replacen(&format!(" {} ", hash.version()), " 3 ", 1),
                    format!("{text}{}\n", "0".repeat(64)),
                ] {
                    assert_eq!(ChunkSums::parse(&bad), None, "{bad}");
                }
            }
        }
    }

    #[test]
    fn a_file_is_held_against_what_it_was_hashed_by() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("layer.3.piece");
        let beside = path.with_extension("sums");
        let mut bytes = noise(CHUNK_BYTES as usize + 10);
        std::fs::write(&path, &bytes).unwrap();
        let open = || File::open(&path).unwrap();
        for hash in [ChunkHash::Sha256, ChunkHash::Blake3] {
            let recorded = ChunkSums::by(hash, &open()).unwrap();
            let found = || ChunkSums::against(&recorded.digest(), &open(), &path).unwrap();
            std::fs::write(&beside, recorded.text()).unwrap();
            assert_eq!(found(), recorded);
            // A list that is not the recorded one says nothing, nor does one that is not there.
            std::fs::write(&beside, recorded.text().replace("sums ", "sums 1")).unwrap();
            assert_eq!(found(), recorded);
            std::fs::remove_file(&beside).unwrap();
            assert_eq!(found(), recorded);
            bytes[3] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert_ne!(found().digest(), recorded.digest());
            std::fs::write(&beside, recorded.text()).unwrap();
            assert_eq!(recorded.first_difference(&found()), Some((0, CHUNK_BYTES)));
            std::fs::remove_file(&beside).unwrap();
        }
    }

    #[test]
    fn what_is_larger_than_any_disk_is_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len((MAX_CHUNKS + 1) * CHUNK_BYTES).unwrap();
        for hash in [ChunkHash::Blake3, ChunkHash::Sha256] {
            let error = ChunkSums::by(hash, &file).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
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
