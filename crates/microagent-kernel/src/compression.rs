//! The compressions Linux kernels, modules and Debian packages come in, told apart by their first bytes.
//!
//! Read: gzip, xz (with its x86 filter), LZMA, zstd, and the legacy LZ4 framing the kernel uses. Not read: bzip2 and
//! LZO, which no supported distribution uses. Output is always bounded: a few bytes can claim to be terabytes.

use std::borrow::Cow;
use std::io::{self, Read};

use crate::elf;

/// Memory a decoder's dictionary may take, in KiB. The largest in use is zstd's 128 MiB window.
const DICTIONARY_LIMIT_KIB: u32 = 160 * 1024;
/// Uncompressed size of an LZ4 legacy block, all but the last (LZ4 frame format, "Legacy frame").
const LZ4_BLOCK: usize = 8 * 1024 * 1024;

/// A way of compressing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Xz,
    Lzma,
    Zstd,
    Lz4Legacy,
    Bzip2,
    Lzo,
}

impl Compression {
    /// By the first bytes; `None` when they belong to no compression known here.
    pub(crate) fn detect(bytes: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Compression); 7] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x5d\0\0", Compression::Lzma),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x02\x21\x4c\x18", Compression::Lz4Legacy),
            (b"BZh", Compression::Bzip2),
            (b"\x89LZO", Compression::Lzo),
        ];
        MAGIC
            .iter()
            .find(|(magic, _)| bytes.starts_with(magic))
            .map(|(_, compression)| *compression)
    }

    /// A decoder over `input`, for the formats that stream.
    pub(crate) fn reader<'a>(self, input: &'a [u8]) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::GzDecoder::new(input)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
                input,
                false,
                DICTIONARY_LIMIT_KIB,
            )),
            Self::Lzma => Box::new(lzma_rust2::LzmaReader::new_mem_limit(
                input,
                DICTIONARY_LIMIT_KIB,
                None,
            )?),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?.single_frame()),
            Self::Lz4Legacy => Box::new(Lz4Legacy {
                input,
                block: io::Cursor::new(Vec::new()),
            }),
            Self::Bzip2 | Self::Lzo => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!(
                        "{self:?} compression is not supported; gzip, xz, LZMA, zstd and LZ4 are"
                    ),
                ));
            }
        })
    }
}

/// All of `input` decompressed, at most `limit` bytes. Bytes after the compressed stream are ignored: the kernel keeps
/// the uncompressed size there.
pub(crate) fn decompress(
    input: &[u8],
    compression: Compression,
    limit: usize,
) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    // Linux's size_append; only a hint for the allocation, hence bounded and not believed.
    if let Some(hint) = input
        .len()
        .checked_sub(4)
        .and_then(|at| elf::u32_at(input, at))
    {
        let hint = hint as usize;
        if hint <= limit && hint / 64 <= input.len() {
            output.reserve_exact(hint.saturating_add(1));
        }
    }
    compression
        .reader(input)?
        .take(limit as u64 + 1)
        .read_to_end(&mut output)?;
    if output.len() > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it expands to more than {limit} bytes"),
        ));
    }
    Ok(output)
}

/// As [`decompress`], or the input itself when it is not compressed.
pub(crate) fn decompress_if_needed(input: &[u8], limit: usize) -> io::Result<Cow<'_, [u8]>> {
    Compression::detect(input).map_or(Ok(Cow::Borrowed(input)), |compression| {
        decompress(input, compression, limit).map(Cow::Owned)
    })
}

/// LZ4 as `lz4 -l` writes it: a magic number, then blocks that each carry their compressed size and nothing else.
struct Lz4Legacy<'a> {
    input: &'a [u8],
    block: io::Cursor<Vec<u8>>,
}

impl Lz4Legacy<'_> {
    /// Decodes the next block; false at the end. Linux appends four bytes of total size, so a rest too short to hold
    /// a block is the end.
    fn next_block(&mut self) -> io::Result<bool> {
        while Compression::detect(self.input) == Some(Compression::Lz4Legacy) {
            self.input = &self.input[4..];
        }
        if self.input.len() <= 4 {
            return Ok(false);
        }
        let size = elf::u32_at(self.input, 0).unwrap_or(0) as usize;
        let compressed = elf::range(self.input, 4, size).ok_or_else(|| {
            io::Error::new(io::ErrorKind::UnexpectedEof, "an LZ4 block is cut short")
        })?;
        let mut output = std::mem::take(&mut self.block).into_inner();
        // A byte of LZ4 stands for 255 bytes at most.
        output.resize(compressed.len().saturating_mul(255).min(LZ4_BLOCK), 0);
        let written = lz4_flex::block::decompress_into(compressed, &mut output).map_err(|e| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("an LZ4 block is damaged: {e}"),
            )
        })?;
        output.truncate(written);
        self.block = io::Cursor::new(output);
        self.input = self.input.get(4 + size..).unwrap_or_default();
        Ok(true)
    }
}

impl Read for Lz4Legacy<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.block.read(buffer)?;
            if count > 0 || buffer.is_empty() || !self.next_block()? {
                return Ok(count);
            }
        }
    }
}
