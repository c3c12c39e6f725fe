//! What a guest can leave on its disk, as a layer: the ext4 reader and the archive writer. The input changes a sound
//! disk: where (a line of 64 bytes that is not empty, a place in it), and what is there then. What is packed must be
//! an archive that a layer's reader understands.
#![no_main]
#![allow(dead_code, reason = "the tests' module holds more than is needed here")]

#[path = "../../crates/microagent-image/tests/disk/archive.rs"]
mod archive;

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::LazyLock,
};

use archive::{DIR, FILE, Tar};
use libfuzzer_sys::fuzz_target;
use microagent_image::{
    disk::{BuildOptions, Compression, LayerFault, LayerSource, build, fuzz_layer},
    fuzz_pack,
};

/// Bytes of a line.
const LINE: usize = 64;
/// More is cut off.
const MOST: usize = 2 << 20;

struct Bench {
    path: PathBuf,
    disk: Vec<u8>,
    /// Where lines begin that are not empty.
    lines: Vec<usize>,
}

static BENCH: LazyLock<Bench> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("pack-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("disk");
    let layer = LayerSource {
        label: "fuzz".to_owned(),
        reader: Box::new(std::io::Cursor::new(tree())),
        compression: Compression::None,
        diff_id: None,
    };
    build(vec![layer], &path, &BuildOptions::default(), &mut |_| {}).unwrap();
    let disk = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let starts = (0..disk.len()).step_by(LINE);
    let lines = starts
        .filter(|at| disk[*at..*at + LINE].iter().any(|byte| *byte != 0))
        .collect();
    Bench { path, disk, lines }
});

/// One of everything, at the root and in what is an overlay's upper directory.
fn tree() -> Vec<u8> {
    let mut sparse = vec![0; 200_000];
    sparse[100_000] = 1;
    let mut tar = Tar::default();
    for at in ["", "upper/"] {
        let name = |name: &str| format!("{at}{name}");
        if !at.is_empty() {
            tar = tar.dir(at, DIR);
        }
        let opaque: &[(&str, &[u8])] = &[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.long", &[b'x'; 300]),
        ];
        let capable: &[(&str, &[u8])] = &[(
            "SCHILY.xattr.security.capability",
            b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        )];
        tar = tar
            .pax(opaque)
            .dir(&name("d/"), DIR)
            .pax(capable)
            .file(&name("d/f"), b"content", FILE)
            .hard_link(&name("d/g"), &name("d/f"))
            .symlink(&name("short"), "d/f")
            .symlink(&name("long"), &"a".repeat(90))
            .file(&name("large"), &[b'z'; 9000], FILE)
            .file(&name("holes"), &sparse, FILE)
            .node(b'3', &name("whiteout"), (0, 0), FILE)
            .node(b'4', &name("disk"), (259, 7000), FILE)
            .node(b'6', &name("pipe"), (0, 0), FILE)
            .dir(&name("many/"), DIR);
        for number in 0..40 {
            tar = tar.file(&name(&format!("many/{number}")), b"", FILE);
        }
    }
    tar.end()
}

fuzz_target!(|data: &[u8]| {
    let bench = &*BENCH;
    let Some((shape, mut data)) = data.split_first() else {
        return;
    };
    let mut disk = bench.disk.clone();
    while let [low, high, place, rest @ ..] = data {
        let line = usize::from(u16::from_le_bytes([*low, *high])) % bench.lines.len();
        let (within, length) = (usize::from(place % 64), usize::from(place / 64) * 2 + 1);
        let length = length.min(rest.len());
        let at = bench.lines[line] + within;
        let end = (at + length).min(disk.len());
        disk[at..end].copy_from_slice(&rest[..end - at]);
        data = &rest[length..];
    }
    fs::write(&bench.path, &disk).unwrap();
    let file = File::open(&bench.path).unwrap();
    let Some(layer) = fuzz_pack(file, shape % 2 == 1, MOST) else {
        return;
    };
    match fuzz_layer(&layer) {
        // A layer has limits, and rules of what may lie where.
        Ok(()) | Err(LayerFault::Limit { .. } | LayerFault::Entry { .. }) => {}
        Err(fault) => panic!("what was packed cannot be read: {fault}"),
    }
});
