//! The least that a pull could take: fetches layers side by side, a thread for each, and does so much with them and
//! nothing else. `cargo xtask bench pull-floor` holds a pull against it, step by step.
//!
//! `floor STEP DIRECTORY HOST:PORT PATH…`, where each step does what those before it do, too:
//! `inflate`, `digest` (the two SHA-256 that an image prescribes), `keep` (the layers, synced), `write` (the content,
//! with a digest of our own, by the page cache), `direct` (the same past the page cache). Tells the seconds it took and
//! those of processors.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::Instant;

use flate2::read::MultiGzDecoder;
use microagent_host::fs::{Positioned, let_go, reopen_direct};
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest as _, Sha256};

/// Read at once.
const PIECE: usize = 256 << 10;
/// Written at once.
const BUFFER: usize = 1 << 20;
/// What memory and offsets of direct writes are multiples of.
const PAGE: usize = 4096;
/// After so much the host may have the memory of a file back.
const STEP: u64 = 8 << 20;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Inflate,
    Digest,
    Keep,
    Write,
    Direct,
}

fn main() -> io::Result<()> {
    let usage = || io::Error::other("usage: floor STEP DIRECTORY HOST:PORT PATH…");
    let mut words = std::env::args().skip(1);
    let step = match words.next().as_deref() {
        Some("inflate") => Step::Inflate,
        Some("digest") => Step::Digest,
        Some("keep") => Step::Keep,
        Some("write") => Step::Write,
        Some("direct") => Step::Direct,
        _ => return Err(usage()),
    };
    let directory = words.next().ok_or_else(usage)?;
    let host = words.next().ok_or_else(usage)?;
    let paths: Vec<String> = words.collect();
    let begun = Instant::now();
    thread::scope(|scope| {
        let running: Vec<_> = (0..)
            .zip(&paths)
            .map(|(number, path)| {
                let (host, directory) = (&host, Path::new(&directory));
                scope.spawn(move || layer(step, directory, number, host, path))
            })
            .collect();
        running.into_iter().try_for_each(|one| {
            one.join()
                .unwrap_or_else(|_| Err(io::Error::other("a layer's thread panicked")))
        })
    })?;
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let spent = spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9;
    writeln!(io::stdout(), "{} {spent}", begun.elapsed().as_secs_f64())
}

fn layer(step: Step, directory: &Path, number: u32, host: &str, path: &str) -> io::Result<()> {
    let at = |what: &str| directory.join(format!("{number}.{what}"));
    let coming = Coming {
        body: get(host, path)?,
        hasher: (step >= Step::Digest).then(Sha256::new),
        kept: (step >= Step::Keep)
            .then(|| File::create(at("layer")).map(Kept::new))
            .transpose()?,
    };
    let mut decoder = MultiGzDecoder::new(io::BufReader::with_capacity(PIECE, coming));
    let mut hasher = (step >= Step::Digest).then(Sha256::new);
    let mut content = (step >= Step::Write)
        .then(|| Content::create(&at("content"), step == Step::Direct))
        .transpose()?;
    let mut piece = vec![0; PIECE];
    loop {
        let count = decoder.read(&mut piece)?;
        if count == 0 {
            break;
        }
        if let Some(hasher) = &mut hasher {
            hasher.update(&piece[..count]);
        }
        if let Some(content) = &mut content {
            content.add(&piece[..count])?;
        }
    }
    let coming = decoder.into_inner().into_inner();
    for hasher in [coming.hasher, hasher].into_iter().flatten() {
        std::hint::black_box(hasher.finalize());
    }
    if let Some(kept) = coming.kept {
        kept.file.sync_data()?;
    }
    content.map_or(Ok(()), Content::finish)
}

/// A body that ends with its connection.
fn get(host: &str, path: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(host)?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    match head.starts_with(b"HTTP/1.") && head[8..].starts_with(b" 200 ") {
        true => Ok(stream),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&head).into_owned(),
        )),
    }
}

/// Compressed bytes on their way to the decompressor.
struct Coming {
    body: TcpStream,
    hasher: Option<Sha256>,
    kept: Option<Kept>,
}

impl Read for Coming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        if let Some(kept) = &mut self.kept {
            kept.write(&buffer[..count])?;
        }
        Ok(count)
    }
}

/// A file that is written by the page cache, and leaves nothing there.
struct Kept {
    file: File,
    end: u64,
    gone: u64,
}

impl Kept {
    fn new(file: File) -> Self {
        let (end, gone) = (0, 0);
        Self { file, end, gone }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.end += bytes.len() as u64;
        if self.end >= self.gone + 2 * STEP {
            // The older half has reached the disk by now, the younger begins its way there.
            let_go(&self.file, self.gone, 2 * STEP);
            self.gone += STEP;
        }
        Ok(())
    }
}

/// A layer's content as one file, with a digest of our own.
struct Content {
    file: Kept,
    direct: Option<File>,
    buffer: Vec<u8>,
    /// Where the first page of the buffer begins.
    start: usize,
    hasher: blake3::Hasher,
}

impl Content {
    fn create(path: &Path, direct: bool) -> io::Result<Self> {
        let file = File::create(path)?;
        let direct = direct.then(|| reopen_direct(&file)).transpose()?;
        let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER + PAGE);
        let start = buffer.as_ptr().align_offset(PAGE);
        buffer.resize(start, 0);
        Ok(Self {
            file: Kept::new(file),
            direct,
            buffer,
            start,
            hasher: blake3::Hasher::new(),
        })
    }

    fn add(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.start + BUFFER - self.buffer.len();
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = rest;
            if self.buffer.len() == self.start + BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let full = &self.buffer[self.start..];
        self.hasher.update(full);
        match &self.direct {
            Some(direct) if full.len() == BUFFER => {
                direct.write_all_at(full, self.file.end)?;
                self.file.end += BUFFER as u64;
            }
            // The last one is no whole page.
            Some(_) => self.file.file.write_all_at(full, self.file.end)?,
            None => self.file.write(full)?,
        }
        self.buffer.truncate(self.start);
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        std::hint::black_box(self.hasher.finalize());
        Ok(())
    }
}
