//! From the kernel image a distribution ships to the image a VMM loads: on x86-64 an ELF `vmlinux` with a PVH entry,
//! on arm64 a flat `Image`.
//!
//! Layouts: Linux `Documentation/arch/x86/boot.rst` (setup header), `Documentation/arch/arm64/booting.rst` (image
//! header), `drivers/firmware/efi/libstub/zboot-header.S` (EFI zboot).

use crate::compression::{Compression, decompress};
use crate::elf::{self, EM_X86_64, Elf};
use crate::error::{KernelError, Result};

/// Largest kernel accepted once decompressed; distribution kernels are 40 to 90 MB.
const MAX_KERNEL: usize = 256 * 1024 * 1024;
/// Largest length of the banner that names the kernel.
const MAX_BANNER: usize = 512;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit entry point of the PVH boot protocol.
const PHYS32_ENTRY: u32 = 18;

/// An architecture a guest can have: that of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Architecture {
    /// x86-64.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Architecture {
    /// This host's.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::X86_64
    };
}

/// A kernel ready to be loaded by a VMM.
#[derive(Debug)]
pub(crate) struct KernelImage {
    pub(crate) bytes: Vec<u8>,
    pub(crate) architecture: Architecture,
    /// As `uname -r` prints it.
    pub(crate) release: String,
    /// Release, builder and build date, as the kernel prints them first thing.
    pub(crate) version: String,
    /// Configuration, if the kernel carries it (`CONFIG_IKCONFIG`) or a file beside it does.
    pub(crate) config: Option<String>,
}

/// Turns a bzImage, an EFI zboot image, a compressed or plain arm64 `Image`, or an ELF `vmlinux` into a [`KernelImage`].
/// `name` is for messages.
pub(crate) fn extract(name: &str, input: Vec<u8>) -> Result<KernelImage> {
    extract_within(MAX_KERNEL, name, input)
}

/// [`extract`] with a limit of the caller's, in bytes, on what the kernel may unpack to.
pub(crate) fn extract_within(limit: usize, name: &str, input: Vec<u8>) -> Result<KernelImage> {
    let invalid = |reason: &str| KernelError::InvalidImage {
        name: name.to_owned(),
        reason: reason.to_owned(),
    };
    let unpack = |payload: &[u8]| {
        let compression = Compression::detect(payload)
            .ok_or_else(|| invalid("its payload is in no compression Linux uses"))?;
        decompress(payload, compression, limit).map_err(|e| KernelError::Decompress {
            name: name.to_owned(),
            reason: e.to_string(),
        })
    };

    let mut header_version = None;
    let mut bytes = if let Some(setup) = SetupHeader::parse(&input) {
        header_version = setup.version(&input);
        unpack(
            setup
                .payload(&input)
                .ok_or_else(|| invalid("its setup header points outside the file"))?,
        )?
    } else if let Some(payload) = zboot_payload(&input) {
        unpack(payload.ok_or_else(|| invalid("its EFI header points outside the file"))?)?
    } else if Compression::detect(&input).is_some() {
        unpack(&input)?
    } else {
        input
    };

    let architecture = if let Some(elf) = Elf::parse(&bytes) {
        let end = check_vmlinux(&elf).map_err(|reason| invalid(&reason))?;
        // Behind the ELF file Linux keeps relocations, for its own decompressor only.
        bytes.truncate(end);
        Architecture::X86_64
    } else if elf::range(&bytes, 0x38, 4) == Some(b"ARM\x64") {
        Architecture::Aarch64
    } else {
        return Err(invalid(
            "it is neither an x86 bzImage (setup header 2.08 or later), an ELF vmlinux nor an arm64 Image",
        ));
    };
    let version = header_version
        .or_else(|| banner(&bytes))
        .ok_or_else(|| invalid("it does not name its version"))?;
    let release = version.split(' ').next().unwrap_or_default().to_owned();
    if release.is_empty() || release.len() > 64 || !release.bytes().all(is_release_byte) {
        return Err(invalid("its release is no plausible `uname -r`"));
    }
    let config = embedded_config(&bytes);
    Ok(KernelImage {
        bytes,
        architecture,
        release,
        version,
        config,
    })
}

/// Bytes a kernel release may have; it becomes a file name.
fn is_release_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._+-~".contains(&byte)
}

/// The fields of the x86 setup header this crate needs.
struct SetupHeader {
    setup_sectors: usize,
    version_offset: usize,
    payload_offset: usize,
    payload_length: usize,
}

impl SetupHeader {
    /// `None` when this is no bzImage, or one older than protocol 2.08 (Linux 2.6.26), which names no payload.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let magic = elf::range(bytes, 0x202, 4)? == b"HdrS";
        if !magic || elf::u16_at(bytes, 0x206)? < 0x208 {
            return None;
        }
        let setup_sectors = match *bytes.get(0x1f1)? {
            0 => 4,
            count => usize::from(count),
        };
        Some(Self {
            setup_sectors,
            version_offset: usize::from(elf::u16_at(bytes, 0x20e)?),
            payload_offset: elf::u32_at(bytes, 0x248)? as usize,
            payload_length: elf::u32_at(bytes, 0x24c)? as usize,
        })
    }

    fn payload<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let protected_mode_code = (self.setup_sectors + 1) * 512;
        elf::range(
            bytes,
            protected_mode_code.checked_add(self.payload_offset)?,
            self.payload_length,
        )
    }

    fn version(&self, bytes: &[u8]) -> Option<String> {
        if self.version_offset == 0 {
            return None;
        }
        text(bytes.get(self.version_offset + 0x200..)?, b'\0')
    }
}

/// The payload of an EFI zboot image (arm64 since Linux 6.1); the inner `None` when it lies outside the file.
fn zboot_payload(bytes: &[u8]) -> Option<Option<&[u8]>> {
    if !bytes.starts_with(b"MZ") || elf::range(bytes, 4, 4)? != b"zimg" {
        return None;
    }
    let offset = elf::u32_at(bytes, 8)? as usize;
    let size = elf::u32_at(bytes, 12)? as usize;
    Some(elf::range(bytes, offset, size))
}

/// Checks that a VMM can boot this ELF file directly; returns where the file really ends.
fn check_vmlinux(elf: &Elf<'_>) -> Result<usize, String> {
    if elf.machine() != Some(EM_X86_64) {
        return Err("it is an ELF file, but not for x86-64".to_owned());
    }
    if !elf.has_load_segment() {
        return Err("its ELF file has nothing to load".to_owned());
    }
    match elf.note(b"Xen", PHYS32_ENTRY) {
        Some(entry) if entry.len() == 4 || entry.len() == 8 => {}
        Some(_) => return Err("its PVH entry point is damaged".to_owned()),
        None => return Err("it has no PVH entry point; it needs CONFIG_PVH=y".to_owned()),
    }
    elf.extent()
        .ok_or_else(|| "its ELF file is cut short".to_owned())
}

/// What follows "Linux version " in the kernel's own banner: the longest of several, for there is one without a date.
fn banner(bytes: &[u8]) -> Option<String> {
    const PREFIX: &[u8] = b"Linux version ";
    occurrences(bytes, PREFIX)
        .filter_map(|at| bytes.get(at + PREFIX.len()..))
        .filter(|rest| rest.first().is_some_and(u8::is_ascii_digit))
        .filter_map(|rest| text(rest, b'\n'))
        .max_by_key(String::len)
}

/// The gzip-compressed configuration between the markers of `kernel/configs.c`.
fn embedded_config(bytes: &[u8]) -> Option<String> {
    const MAX_CONFIG: usize = 4 * 1024 * 1024;
    let start = occurrences(bytes, b"IKCFG_ST\x1f\x8b").next()? + 8;
    let config = decompress(bytes.get(start..)?, Compression::Gzip, MAX_CONFIG).ok()?;
    String::from_utf8(config).ok()
}

/// A printable string that ends with `end`.
fn text(bytes: &[u8], end: u8) -> Option<String> {
    let length = bytes
        .iter()
        .take(MAX_BANNER)
        .position(|byte| *byte == end)?;
    let text = std::str::from_utf8(bytes.get(..length)?).ok()?;
    (!text.chars().any(char::is_control)).then(|| text.to_owned())
}

/// Offsets at which `needle` begins.
fn occurrences<'a>(bytes: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let first = needle.first().copied().unwrap_or_default();
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            let at = from + bytes.get(from..)?.iter().position(|byte| *byte == first)?;
            from = at + 1;
            if bytes.get(at..)?.starts_with(needle) {
                return Some(at);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::{RELEASE, bzimage, gzip, lz4_legacy, vmlinux, xz};

    /// What Linux puts behind the ELF file before it compresses both, and behind the compressed stream.
    const RELOCATIONS: &[u8] = &[7; 64];

    #[test]
    fn every_supported_compression_gives_the_same_vmlinux() {
        let expected = vmlinux(true, None);
        let payload = [&expected, RELOCATIONS].concat();
        let zstd = zstd::encode_all(&payload[..], 1).unwrap();
        for (name, mut packed) in [
            ("gzip", gzip(&payload)),
            ("xz", xz(&payload)),
            ("lz4", lz4_legacy(&payload)),
            ("zstd", zstd),
        ] {
            packed.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            let image = extract(name, bzimage(&packed)).unwrap();
            assert_eq!(image.bytes, expected, "{name}");
            assert_eq!(
                (image.release.as_str(), image.architecture),
                (RELEASE, Architecture::X86_64),
                "{name}"
            );
        }
    }

    #[test]
    fn an_elf_kernel_is_taken_as_it_is() {
        let image = extract("vmlinux", vmlinux(true, Some("CONFIG_EXT4_FS=y\n"))).unwrap();
        assert_eq!(image.bytes, vmlinux(true, Some("CONFIG_EXT4_FS=y\n")));
        assert_eq!(image.version, format!("{RELEASE} (tester@test) #1 SMP"));
        assert_eq!(image.config.as_deref(), Some("CONFIG_EXT4_FS=y\n"));
    }

    #[test]
    fn an_arm64_image_is_found_in_gzip_and_in_zboot() {
        let mut flat = vec![0; 64];
        flat[0x38..0x3c].copy_from_slice(b"ARM\x64");
        flat.extend_from_slice(format!("Linux version {RELEASE} (x)\n").as_bytes());
        let packed = gzip(&flat);
        let mut zboot = b"MZ\0\0zimg".to_vec();
        zboot.extend_from_slice(&64_u32.to_le_bytes());
        zboot.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        zboot.resize(64, 0);
        zboot.extend_from_slice(&packed);
        for input in [flat.clone(), packed, zboot] {
            let image = extract("Image", input).unwrap();
            assert_eq!(
                (image.bytes, image.architecture),
                (flat.clone(), Architecture::Aarch64)
            );
        }
    }

    #[test]
    fn what_cannot_boot_is_refused_with_the_reason() {
        let mut cut = bzimage(&gzip(&vmlinux(true, None)));
        cut.truncate(600);
        for (input, reason) in [
            (vmlinux(false, None), "CONFIG_PVH"),
            (bzimage(b"BZh91AY&SY"), "Bzip2 compression is not supported"),
            (
                bzimage(b"\x89LZO\0\r\n"),
                "Lzo compression is not supported",
            ),
            (bzimage(b"what is this"), "no compression"),
            (cut, "outside the file"),
            (b"#!/bin/sh\n".to_vec(), "neither"),
            (Vec::new(), "neither"),
        ] {
            let error = extract("candidate", input).unwrap_err().to_string();
            assert!(
                error.contains(reason) && error.contains("candidate"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let packed = zstd::encode_all(std::io::repeat(0).take(8 << 20), 1).unwrap();
        let error = decompress(&packed, Compression::Zstd, 1 << 20).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
    }

    use std::io::Read as _;

    proptest! {
        #[test]
        fn damaged_images_never_panic(at in 0_usize..4096, flip in 1_u8.., length in 0_usize..4096) {
            for whole in [bzimage(&gzip(&vmlinux(true, None))), bzimage(&lz4_legacy(&vmlinux(true, None))), vmlinux(true, Some("CONFIG_X=y\n"))] {
                let mut image = whole.clone();
                let index = at % image.len();
                image[index] ^= flip;
                let flipped = extract("flipped", image);
                let cut = extract("cut", whole[..length.min(whole.len())].to_vec());
                for found in [flipped, cut].into_iter().flatten() {
                    prop_assert!(found.bytes.len() <= MAX_KERNEL && found.release.len() <= 64);
                }
            }
        }

        #[test]
        fn arbitrary_notes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), offset in any::<u64>(), size in any::<u64>()) {
            let mut image = vmlinux(true, None);
            image.extend_from_slice(&bytes);
            // The second program header is the note segment.
            image[64 + 56 + 8..64 + 56 + 16].copy_from_slice(&offset.to_le_bytes());
            image[64 + 56 + 32..64 + 56 + 40].copy_from_slice(&size.to_le_bytes());
            let elf = Elf::parse(&image).unwrap();
            if let Some(note) = elf.note(b"Xen", PHYS32_ENTRY) {
                prop_assert!(note.len() <= image.len());
            }
            prop_assert!(elf.extent().is_none_or(|end| end <= image.len()));
        }
    }
}
