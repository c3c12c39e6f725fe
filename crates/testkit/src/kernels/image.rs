//! A small kernel: a real format, no code inside.

use std::io::Write as _;

/// The release of [`vmlinux`].
pub const RELEASE: &str = "6.1.0-test";

/// An ELF file with the given program headers' note segment and sections; only what the parsers look at is filled in.
#[must_use]
pub fn elf(notes: &[u8], sections: &[(&str, &[u8])]) -> Vec<u8> {
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
#[must_use]
pub fn vmlinux(pvh: bool, config: Option<&str>) -> Vec<u8> {
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

/// `bytes` as a gzip stream.
#[must_use]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
