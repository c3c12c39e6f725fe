//! Small kernels and modules for tests: real formats, no code inside.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(crate) use testkit::kernels::{RELEASE, elf, gzip, vmlinux};

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
