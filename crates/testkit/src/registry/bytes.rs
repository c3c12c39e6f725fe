//! Layers and their bytes: archives, packings, noise, digests, damage.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// A plain tar.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// A tar stream with these files: path, mode, content. Directories above them come first; owner is root,
/// time is 0, so the same files give the same bytes.
#[must_use]
pub fn tar_of(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut made = std::collections::BTreeSet::new();
    for (path, mode, content) in files {
        let mut folder = String::new();
        let parts: Vec<&str> = path.split('/').collect();
        for part in &parts[..parts.len() - 1] {
            folder.push_str(part);
            folder.push('/');
            if made.insert(folder.clone()) {
                append(&mut archive, &folder, tar::EntryType::Directory, 0o755, &[]);
            }
        }
        append(&mut archive, path, tar::EntryType::Regular, *mode, content);
    }
    archive.into_inner().unwrap_or_default()
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    // A vector takes everything; only a path that is too long could fail, which the test would see.
    let _ = archive.append_data(&mut header, path, content);
}

/// Packs bytes.
#[must_use]
pub fn pack(plain: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => plain.to_vec(),
        Packing::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder
                .write_all(plain)
                .and_then(|()| encoder.finish())
                .unwrap_or_default()
        }
        Packing::Zstd => zstd::encode_all(plain, 1).unwrap_or_default(),
    }
}

/// Bytes that do not compress, the same for the same `seed`.
#[must_use]
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// `sha256:<hex>` of `bytes`.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// Changes one byte in the middle of a file.
///
/// # Errors
/// When the file cannot be read or written.
pub fn damage(path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    File::open(path)
        .with_context(|| format!("no file {}", path.display()))?
        .read_to_end(&mut bytes)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(path, bytes)?;
    Ok(())
}
