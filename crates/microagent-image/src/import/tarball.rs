//! The members of an image archive by name: headers only, content stays where it is in the file.
//!
//! Names are looked up, never written to: a member called `../../etc/passwd` is merely one nobody asks for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::{ImageError, Result, clip};

const BLOCK: u64 = 512;
/// The largest PAX or GNU long-name header accepted, in bytes.
const MAX_EXTENSION: u64 = 1 << 20;
/// The most members of an image archive: a few per layer.
const MAX_MEMBERS: usize = 65_536;
const MAX_LINKS: usize = 8;

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// A symbolic or hard link, as old `docker save` writes for repeated layers.
    Symlink,
    Hardlink,
    Other,
}

/// One member: a header with its extensions applied.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) size: u64,
    link: String,
}

/// Steps over content without reading it where that is possible.
pub(super) trait Skip: Read {
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// A decompressor's output: skipping means reading.
pub(super) struct Streamed<R>(pub(super) R);

impl<R: Read> Read for Streamed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Skip for Streamed<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.0.by_ref().take(bytes), &mut io::sink())?;
        if skipped == bytes {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// A file: skipping means seeking, within the file's length.
struct Seekable<'f> {
    file: &'f File,
    length: u64,
    at: u64,
}

impl Read for Seekable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Skip for Seekable<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let target = self
            .at
            .checked_add(bytes)
            .filter(|target| *target <= self.length);
        let target = target.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.at = self.file.seek(SeekFrom::Start(target))?;
        Ok(())
    }
}

/// The next member, its content not yet read; `None` at the end of the archive.
pub(super) fn next_member(reader: &mut dyn Skip) -> io::Result<Option<Member>> {
    let mut long_name = None;
    let mut long_link = None;
    let mut pax = Pax::default();
    // Extensions pile up before one header; more than a few are an attack on patience.
    for _ in 0..16 {
        let mut header = [0u8; BLOCK as usize];
        match read_block(reader, &mut header)? {
            Some(()) if header.iter().any(|byte| *byte != 0) => {}
            _ => return Ok(None),
        }
        check_sum(&header)?;
        let size = number(&header[124..136])?;
        match header[156] {
            b'L' => long_name = Some(c_string(&extension(reader, size)?)),
            b'K' => long_link = Some(c_string(&extension(reader, size)?)),
            b'x' => pax = Pax::read(&extension(reader, size)?)?,
            b'g' => {
                extension(reader, size)?;
            }
            flag => {
                let kind = match flag {
                    0 | b'0' | b'7' => Kind::File,
                    b'1' => Kind::Hardlink,
                    b'2' => Kind::Symlink,
                    b'5' => Kind::Directory,
                    _ => Kind::Other,
                };
                return Ok(Some(Member {
                    name: clean(
                        &pax.path
                            .or(long_name)
                            .unwrap_or_else(|| short_name(&header)),
                    ),
                    kind,
                    size: match kind {
                        Kind::File | Kind::Other => pax.size.unwrap_or(size),
                        _ => 0,
                    },
                    link: pax
                        .link
                        .or(long_link)
                        .unwrap_or_else(|| c_string(&header[157..257])),
                }));
            }
        }
    }
    Err(bad("it has too many extension headers in a row"))
}

/// Content and the padding after it.
pub(super) fn padded(size: u64) -> u64 {
    size.saturating_add(BLOCK - 1) / BLOCK * BLOCK
}

/// Where the members of an archive file are.
#[derive(Debug)]
pub(super) struct Members {
    parts: HashMap<String, (u64, u64)>,
    links: HashMap<String, String>,
}

impl Members {
    /// Reads the headers of the tar archive `file`.
    pub(super) fn index(file: &File, path: &Path) -> Result<Self> {
        let refuse = |error: io::Error| ImageError::BadArchive {
            path: path.to_owned(),
            reason: match error.kind() {
                io::ErrorKind::UnexpectedEof => "it ends in the middle of a member".into(),
                _ => error.to_string(),
            },
        };
        let length = file.metadata().map_err(refuse)?.len();
        let mut start = file;
        let at = start.seek(SeekFrom::Start(0)).map_err(refuse)?;
        let mut reader = Seekable { file, length, at };
        let mut members = Self {
            parts: HashMap::new(),
            links: HashMap::new(),
        };
        while let Some(member) = next_member(&mut reader).map_err(refuse)? {
            if members.parts.len() + members.links.len() >= MAX_MEMBERS {
                return Err(refuse(bad("it has too many members for an image archive")));
            }
            let offset = reader.at;
            if length - offset.min(length) < member.size {
                return Err(refuse(bad(&format!(
                    "its member `{}` claims {} bytes, more than the archive has",
                    clip(&member.name),
                    member.size
                ))));
            }
            match member.kind {
                Kind::File => {
                    members.parts.insert(member.name, (offset, member.size));
                }
                Kind::Symlink => {
                    let folder = member
                        .name
                        .rsplit_once('/')
                        .map_or("", |(folder, _)| folder);
                    let target = clean(&format!("{folder}/{}", member.link));
                    members.links.insert(member.name, target);
                }
                Kind::Hardlink => {
                    members.links.insert(member.name, clean(&member.link));
                }
                Kind::Directory | Kind::Other => {}
            }
            // The padding of the last member may be cut off.
            let padding = padded(member.size).min(length - offset.min(length));
            reader.skip(padding).map_err(refuse)?;
        }
        Ok(members)
    }

    /// Offset and size of a member; links are followed.
    pub(super) fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = clean(name);
        for _ in 0..MAX_LINKS {
            if let Some(part) = self.parts.get(&name) {
                return Some(*part);
            }
            name.clone_from(self.links.get(&name)?);
        }
        None
    }
}

#[derive(Default)]
struct Pax {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Pax {
    /// `<length> <key>=<value>\n`, repeated.
    fn read(mut records: &[u8]) -> io::Result<Self> {
        let mut pax = Self::default();
        while !records.is_empty() && records[0] != 0 {
            let space = records
                .iter()
                .take(8)
                .position(|byte| *byte == b' ')
                .ok_or_else(|| bad("it has a malformed PAX record"))?;
            let length: usize = std::str::from_utf8(&records[..space])
                .ok()
                .and_then(|text| text.parse().ok())
                .filter(|length| *length > space + 1 && *length <= records.len())
                .ok_or_else(|| bad("it has a PAX record of impossible length"))?;
            let record = String::from_utf8_lossy(&records[space + 1..length - 1]);
            if let Some((key, value)) = record.split_once('=') {
                match key {
                    "path" => pax.path = Some(value.to_owned()),
                    "linkpath" => pax.link = Some(value.to_owned()),
                    "size" => {
                        let size = value
                            .parse()
                            .map_err(|_| bad("it has a PAX size that is no number"))?;
                        pax.size = Some(size);
                    }
                    _ => {}
                }
            }
            records = &records[length..];
        }
        Ok(pax)
    }
}

fn bad(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

/// Reads a whole block; `None` where the stream ends before it.
fn read_block(reader: &mut dyn Skip, block: &mut [u8; BLOCK as usize]) -> io::Result<Option<()>> {
    let mut filled = 0;
    while filled < block.len() {
        match reader.read(&mut block[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(()))
}

fn extension(reader: &mut dyn Skip, size: u64) -> io::Result<Vec<u8>> {
    if size > MAX_EXTENSION {
        return Err(bad("it has an extension header that is too large"));
    }
    let mut content = Vec::new();
    let taken = Read::take(&mut *reader, size).read_to_end(&mut content)?;
    if taken as u64 != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    reader.skip(padded(size) - size)?;
    Ok(content)
}

fn check_sum(header: &[u8; BLOCK as usize]) -> io::Result<()> {
    let declared = number(&header[148..156])?;
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    if sum == declared {
        Ok(())
    } else {
        Err(bad(
            "it is not a tar archive, or damaged (a header's checksum is wrong)",
        ))
    }
}

/// An octal field, or GNU's base 256 for what does not fit.
fn number(field: &[u8]) -> io::Result<u64> {
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x3f);
        if field[0] & 0x40 != 0 {
            return Err(bad("it has a negative number in a header"));
        }
        for byte in &field[1..] {
            value = value
                .checked_mul(256)
                .and_then(|value| value.checked_add(u64::from(*byte)))
                .ok_or_else(|| bad("it has an impossibly large number in a header"))?;
        }
        return Ok(value);
    }
    let mut value = 0u64;
    for byte in field {
        match byte {
            b'0'..=b'7' => {
                value = value
                    .checked_mul(8)
                    .and_then(|value| value.checked_add(u64::from(byte - b'0')))
                    .ok_or_else(|| bad("it has an impossibly large number in a header"))?;
            }
            b' ' | 0 if value == 0 => {}
            b' ' | 0 => break,
            _ => {
                return Err(bad(
                    "it is not a tar archive, or damaged (a header has a malformed number)",
                ));
            }
        }
    }
    Ok(value)
}

fn short_name(header: &[u8; BLOCK as usize]) -> String {
    let name = c_string(&header[..100]);
    let prefix = c_string(&header[345..500]);
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        format!("{prefix}/{name}")
    } else {
        name
    }
}

fn c_string(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// `./a//b/../c/` is `a/c`; nothing climbs above the archive.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn header(name: &str, size: &str, kind: u8, link: &str) -> Vec<u8> {
        let mut block = vec![0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..124 + size.len()].copy_from_slice(size.as_bytes());
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum::<u64>() + 8 * 32;
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn indexed(content: &[u8]) -> Result<Members> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Members::index(&file, Path::new("x.tar"))
    }

    #[test]
    fn members_and_links_are_found() {
        let mut tar = header("./a/layer.tar", "00000000003", b'0', "");
        tar.extend_from_slice(b"abc");
        tar.resize(1024, 0);
        tar.extend(header("b/layer.tar", "0", b'2', "../a/layer.tar"));
        tar.extend(header("loop", "0", b'2', "loop"));
        tar.extend(header("../../up", "0", b'0', ""));
        tar.extend([0; 1024]);
        let members = indexed(&tar).unwrap();
        assert_eq!(members.find("a/layer.tar"), Some((512, 3)));
        assert_eq!(members.find("b/layer.tar"), Some((512, 3)));
        assert_eq!(members.find("loop"), None);
        assert_eq!(members.find("up"), Some((1024 + 1536, 0)));
    }

    #[test]
    fn lies_are_named() {
        for (tar, reason) in [
            (
                header("a", "00000000777", b'0', ""),
                "more than the archive has",
            ),
            (header("a", "77777777777", b'x', ""), "extension header"),
            (header("a", "0000000zzzz", b'0', ""), "malformed number"),
            (vec![b'x'; 512], "malformed number"),
            (header("a", "0", b'0', "")[..300].to_vec(), "in the middle"),
            (header("a", "00000000010", b'x', ""), "in the middle"),
        ] {
            let error = indexed(&tar).unwrap_err().to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
        let mut huge = header("a", "", b'0', "");
        huge[124..136].copy_from_slice(&[0xbf; 12]);
        assert!(indexed(&huge).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_end(mut bytes in proptest::collection::vec(any::<u8>(), 0..3000), kind in any::<u8>()) {
            // A right checksum lets the rest of the header be read.
            if bytes.len() >= 512 {
                bytes[156] = kind;
                bytes[124] = b'0';
                let sum: u64 = bytes[..512].iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) }).sum();
                bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            let _ = indexed(&bytes);
        }
    }
}
