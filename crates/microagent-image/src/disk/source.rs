//! Layers as one stream of uncompressed pieces: read and inflated on a thread of its own, hashed where it is parsed.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use sha2::{Digest, Sha256};

/// Bytes that travel between the threads at once.
const PIECE: usize = 256 << 10;
/// Compressed bytes that are read at once.
const INPUT: usize = 128 << 10;
/// Pieces in flight.
const PIECES: usize = 12;
/// zstd frames may ask for this much memory (2^26 = 64 MiB), more than the 8 MiB every decoder must grant.
const ZSTD_WINDOW_LOG: u32 = 26;

/// What reading a layer takes at most: what is in flight and at both ends, and what its decompressor may ask for.
pub(super) fn memory(compression: Compression) -> u64 {
    let decompressor = match compression {
        Compression::None => 0,
        Compression::Gzip => 128 << 10,
        // What is not known yet may be zstd.
        Compression::Zstd | Compression::Detect => (1 << ZSTD_WINDOW_LOG) + (512 << 10),
    };
    ((PIECES + 2) * PIECE + INPUT) as u64 + decompressor
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Found out from the first bytes.
    #[default]
    Detect,
    /// A plain tar.
    None,
    /// gzip, any number of members.
    Gzip,
    /// zstd, any number of frames.
    Zstd,
}

impl Compression {
    /// Recognises gzip and zstd (its skippable frames too) by their magic numbers; all else counts as plain.
    pub fn detect(prefix: &[u8]) -> Self {
        match prefix {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// One layer, lowest first.
pub struct LayerSource {
    /// Names the layer in errors and progress, usually by its digest.
    pub label: String,
    /// Its bytes as stored; read on another thread, to the end.
    pub reader: Box<dyn Read + Send>,
    /// How they are compressed.
    pub compression: Compression,
    /// SHA-256 of the uncompressed bytes, where the image config states it.
    pub diff_id: Option<[u8; 32]>,
}

impl std::fmt::Debug for LayerSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerSource")
            .field("label", &self.label)
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

enum Message {
    Piece(Vec<u8>),
    EndOfLayer,
    Failed(io::Error),
}

/// The parsing side.
pub(crate) struct Pieces {
    messages: Receiver<Message>,
    used: std::sync::mpsc::Sender<Vec<u8>>,
    compressed: Arc<AtomicU64>,
}

/// Starts reading the layers, one after the other.
///
/// The thread ends when all is read, at the first error, or at the next piece after `Pieces` was dropped.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    layers: Vec<(Box<dyn Read + Send>, Compression)>,
) -> io::Result<(Pieces, ScopedJoinHandle<'scope, ()>)> {
    let (sender, messages) = sync_channel(PIECES);
    let (used, recycled) = channel();
    let compressed = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&compressed);
    let thread = std::thread::Builder::new()
        .name("layer-inflate".to_owned())
        .spawn_scoped(scope, move || {
            for (reader, compression) in layers {
                counter.store(0, Ordering::Relaxed);
                match inflate(reader, compression, &sender, &recycled, &counter) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => {
                        // Nobody hears it who listens no more.
                        let _ = sender.send(Message::Failed(error));
                        return;
                    }
                }
            }
        })?;
    Ok((
        Pieces {
            messages,
            used,
            compressed,
        },
        thread,
    ))
}

/// `false` when nobody listens any more.
fn inflate(
    reader: Box<dyn Read + Send>,
    compression: Compression,
    sender: &SyncSender<Message>,
    recycled: &Receiver<Vec<u8>>,
    counter: &Arc<AtomicU64>,
) -> io::Result<bool> {
    let mut input = BufReader::with_capacity(
        INPUT,
        Counting {
            reader,
            counter: Arc::clone(counter),
        },
    );
    let compression = match compression {
        Compression::Detect => Compression::detect(input.fill_buf()?),
        known => known,
    };
    let mut plain: Box<dyn Read> = match compression {
        Compression::None | Compression::Detect => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    };
    loop {
        let mut piece = recycled.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let mut filled = 0;
        while filled < PIECE {
            match plain.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            // Said before the reader is put away, which nobody has to wait for.
            return Ok(sender.send(Message::EndOfLayer).is_ok());
        }
        piece.truncate(filled);
        if sender.send(Message::Piece(piece)).is_err() {
            return Ok(false);
        }
    }
}

struct Counting {
    reader: Box<dyn Read + Send>,
    counter: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.counter.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// How much one stream, and one stream for its compressed size, may yield.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) stream: u64,
    pub(crate) ratio: u64,
    pub(crate) grace: u64,
}

/// One layer's uncompressed bytes; hashes whatever passes.
pub(crate) struct LayerStream<'p> {
    pieces: &'p mut Pieces,
    piece: Vec<u8>,
    position: usize,
    hasher: Sha256,
    ended: bool,
    budget: Budget,
    /// Bytes that came out so far.
    pub(crate) total: u64,
}

impl<'p> LayerStream<'p> {
    pub(crate) fn new(pieces: &'p mut Pieces, budget: Budget) -> Self {
        LayerStream {
            pieces,
            piece: Vec::new(),
            position: 0,
            hasher: Sha256::new(),
            ended: false,
            budget,
            total: 0,
        }
    }

    /// The digest; meaningful once everything was read.
    pub(crate) fn digest(self) -> [u8; 32] {
        self.hasher.finalize().into()
    }
}

/// Carried through `io::Error` from the stream to where it becomes a limit error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OverBudget {
    #[error("too many uncompressed bytes")]
    Stream,
    #[error("too many uncompressed bytes for its compressed size")]
    Ratio,
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for LayerStream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.piece.len() && !self.ended {
            let empty = std::mem::take(&mut self.piece);
            if empty.capacity() > 0 {
                // Nobody takes it back once the other side is done.
                let _ = self.pieces.used.send(empty);
            }
            self.position = 0;
            match self.pieces.messages.recv() {
                Ok(Message::Piece(piece)) => {
                    self.total += piece.len() as u64;
                    if self.total > self.budget.stream {
                        return Err(io::Error::other(OverBudget::Stream));
                    }
                    let compressed = self.pieces.compressed.load(Ordering::Relaxed).max(1);
                    if self.total > self.budget.grace && self.total / compressed > self.budget.ratio
                    {
                        return Err(io::Error::other(OverBudget::Ratio));
                    }
                    self.hasher.update(&piece);
                    self.piece = piece;
                }
                Ok(Message::EndOfLayer) => self.ended = true,
                Ok(Message::Failed(error)) => return Err(error),
                Err(_) => return Err(io::Error::other("the thread that reads layers ended early")),
            }
        }
        Ok(&self.piece[self.position..])
    }

    fn consume(&mut self, count: usize) {
        self.position = (self.position + count).min(self.piece.len());
    }
}
