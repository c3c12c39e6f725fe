//! Small kernels and modules for tests: real formats, no code inside.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(crate) const RELEASE: &str = "6.1.0-test";

/// An ELF file with the given program headers' note segment and sections; only what the parsers look at is filled in.
fn elf(notes: &[u8], sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut names = vec![0];
    let mut body = Vec::new();
    let data_start = 64 + 2 * 56;
    body.extend_from_slice(notes);
    let mut headers = vec![[0_u8; 64]];
    let mut section =
        |name: &str, kind: u32, content: &[u8], names: &mut Vec<u8>, body: &mut Vec<u8>| {
            let mut header = [0; 64];
            header[0..4].copy_from_slice(&(names.len() as u32).to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&((data_start + body.len()) as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            body.extend_from_slice(content);
            headers.push(header);
        };
    for (name, content) in sections {
        section(name, 1, content, &mut names, &mut body);
    }
    let table = [names.clone(), b".shstrtab\0".to_vec()].concat();
    section(".shstrtab", 3, &table, &mut names, &mut body);

    let mut file = vec![0; 64];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[18..20].copy_from_slice(&62_u16.to_le_bytes());
    file[0x20..0x28].copy_from_slice(&64_u64.to_le_bytes());
    file[0x28..0x30].copy_from_slice(&((data_start + body.len()) as u64).to_le_bytes());
    for (at, value) in [
        (0x36, 56_u16),
        (0x38, 2),
        (0x3a, 64),
        (0x3c, headers.len() as u16),
        (0x3e, headers.len() as u16 - 1),
    ] {
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    for (kind, size) in [(1_u32, body.len()), (4, notes.len())] {
        let mut segment = [0; 56];
        segment[0..4].copy_from_slice(&kind.to_le_bytes());
        segment[8..16].copy_from_slice(&(data_start as u64).to_le_bytes());
        segment[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        segment[48..56].copy_from_slice(&4_u64.to_le_bytes());
        file.extend_from_slice(&segment);
    }
    file.extend_from_slice(&body);
    file.extend(headers.concat());
    file
}

/// A note as the linker writes it.
fn note(owner: &str, kind: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(owner.len() as u32 + 1).to_le_bytes());
    bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(owner.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An ELF kernel; `config` is embedded as `CONFIG_IKCONFIG` does.
pub(crate) fn vmlinux(pvh: bool, config: Option<&str>) -> Vec<u8> {
    let mut notes = note("Linux", 257, b"x");
    if pvh {
        notes.extend(note("Xen", 18, &0x0100_0000_u32.to_le_bytes()));
    }
    let banner = format!("Linux version %s\0Linux version {RELEASE} (tester@test) #1 SMP\n\0");
    let mut data = banner.into_bytes();
    if let Some(config) = config {
        data.extend_from_slice(b"IKCFG_ST");
        data.extend(gzip(config.as_bytes()));
        data.extend_from_slice(b"IKCFG_ED");
    }
    elf(&notes, &[(".rodata", &data)])
}

/// A bzImage around a compressed payload.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let setup_sectors = 3;
    let mut image = vec![0; 512 * (setup_sectors + 1)];
    image[0x1f1] = setup_sectors as u8;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let version = format!("{RELEASE} (tester@test) #1 SMP\0");
    image[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
    image.extend_from_slice(&[0x90; 16]);
    image.extend_from_slice(payload);
    image.extend_from_slice(&[0x90; 32]);
    image
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(1);
    // As the kernel's own scripts/xz_wrap.sh does on x86.
    options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// LZ4 legacy framing around one block of literals.
pub(crate) fn lz4_legacy(bytes: &[u8]) -> Vec<u8> {
    let mut block = vec![0xf0];
    let mut rest = bytes.len() - 15;
    while rest >= 255 {
        block.push(255);
        rest -= 255;
    }
    block.push(rest as u8);
    block.extend_from_slice(bytes);
    let mut file = b"\x02\x21\x4c\x18".to_vec();
    file.extend_from_slice(&(block.len() as u32).to_le_bytes());
    file.extend(block);
    file
}

/// A module that depends on others.
pub(crate) fn module(name: &str, depends: &[&str], extra: &str) -> Vec<u8> {
    let info = format!(
        "license=GPL\0depends={}\0name={name}\0{extra}\0vermagic={RELEASE} SMP preempt mod_unload \0",
        depends.join(",")
    );
    elf(
        &[],
        &[(".text", name.as_bytes()), (".modinfo", info.as_bytes())],
    )
}

/// A module with a signature appended, as `scripts/sign-file` does.
pub(crate) fn signed(mut module: Vec<u8>) -> Vec<u8> {
    let signature = [0xab; 300];
    module.extend_from_slice(&signature);
    let mut trailer = [0; 12];
    trailer[2] = 2;
    trailer[8..].copy_from_slice(&(signature.len() as u32).to_be_bytes());
    module.extend_from_slice(&trailer);
    module.extend_from_slice(b"~Module signature appended~\n");
    module
}

/// A module directory with everything a microVM needs but the modules named in `without`, each compressed another way.
pub(crate) fn module_tree(root: &Path, without: &[&str]) -> PathBuf {
    let root = root.join("modules");
    fs::create_dir_all(root.join("kernel/drivers/net")).unwrap();
    let files = [
        (
            "virtio_ring",
            "virtio_ring.ko",
            module("virtio_ring", &[], ""),
        ),
        (
            "virtio",
            "virtio.ko.xz",
            xz(&module("virtio", &["virtio_ring"], "")),
        ),
        (
            "virtio_mmio",
            "virtio_mmio.ko.gz",
            gzip(&module("virtio_mmio", &["virtio", "virtio_ring"], "")),
        ),
        (
            "virtio_blk",
            "virtio_blk.ko.zst",
            zstd::encode_all(&module("virtio_blk", &["virtio"], "")[..], 1).unwrap(),
        ),
        ("overlay", "overlay.ko", signed(module("overlay", &[], ""))),
        (
            "vmw_vsock_virtio_transport",
            "vmw_vsock_virtio_transport.ko",
            module("vmw_vsock_virtio_transport", &["virtio", "vsock"], ""),
        ),
        (
            "vsock",
            "vsock.ko",
            module("vsock", &[], "softdep=pre: there-is-no-such post: later"),
        ),
        (
            "virtio_rng",
            "drivers/net/virtio-rng.ko",
            module("virtio_rng", &["virtio"], "softdep=pre: virtio-ring"),
        ),
    ];
    for (name, file, bytes) in files {
        if !without.contains(&name) {
            fs::write(root.join("kernel").join(file), bytes).unwrap();
        }
    }
    fs::write(
        root.join("modules.builtin"),
        "kernel/fs/ext4/ext4.ko\nkernel/drivers/char/hw_random/rng-core.ko\n",
    )
    .unwrap();
    root
}
