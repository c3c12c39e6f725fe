//! Archives that mean harm: each is refused, with the reason that fits, leaving nothing behind.

use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use microagent_image::disk::{
    BuildOptions, Compression, DiskError, EntryFault, LayerFault, LayerSource, Limits, build,
    fuzz_layer,
};

use crate::archive::{DIR, FILE, Meta, Tar, checksum, header, octal};
use crate::oracle::{directory, gzip, source};

fn refused_with(layers: Vec<LayerSource>, limits: Limits) -> LayerFault {
    let work = directory();
    let disk = work.path().join("disk");
    let mut options = BuildOptions::default();
    options.limits = limits;
    let error = build(layers, &disk, &options, &mut |_| {}).unwrap_err();
    assert_eq!(
        fs::read_dir(work.path()).unwrap().count(),
        0,
        "nothing is left behind by {error}"
    );
    match error {
        DiskError::Layer { layer, fault } => {
            assert!(layer.starts_with("layer-"), "{layer}");
            fault
        }
        other => panic!("{other}"),
    }
}

fn refused(layers: &[Vec<u8>]) -> LayerFault {
    let layers = layers
        .iter()
        .map(|bytes| source("layer-x", bytes.clone(), Compression::Detect, None))
        .collect();
    refused_with(layers, Limits::default())
}

fn entry_fault(layers: &[Vec<u8>]) -> EntryFault {
    match refused(layers) {
        LayerFault::Entry { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

fn alone(tar: Tar) -> EntryFault {
    entry_fault(&[tar.end()])
}

#[test]
fn names_that_leave_the_root() {
    for name in ["../etc/passwd", "/../etc/passwd", "a/../../b", "a/..", ".."] {
        assert_eq!(
            alone(Tar::default().file(name, b"", FILE)),
            EntryFault::Traversal,
            "{name}"
        );
    }
    assert_eq!(
        alone(Tar::default().file("", b"", FILE)),
        EntryFault::EmptyName
    );
    assert_eq!(
        alone(
            Tar::default()
                .pax(&[("path", b"a\0b")])
                .file("x", b"", FILE)
        ),
        EntryFault::NulInName
    );
    assert_eq!(
        alone(Tar::default().file(&"n".repeat(256), b"", FILE)),
        EntryFault::NameTooLong(256)
    );
    assert_eq!(
        alone(Tar::default().file(".", b"", FILE)),
        EntryFault::RootType
    );
    assert_eq!(
        alone(Tar::default().symlink("./", "/etc")),
        EntryFault::RootType
    );
    assert_eq!(
        alone(Tar::default().whiteout("../.wh.x")),
        EntryFault::Traversal
    );
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.", ".wh.x/y"] {
        assert_eq!(
            alone(Tar::default().dir("a/", DIR).whiteout(name)),
            EntryFault::Whiteout,
            "{name}"
        );
    }
}

#[test]
fn hard_links_that_leave_the_root_or_lead_nowhere() {
    for target in ["../../etc/shadow", "/../etc/shadow", "a/../../b"] {
        assert!(
            matches!(alone(Tar::default().hard_link("x", target)), EntryFault::LinkEscapes(t) if t == target)
        );
    }
    assert!(matches!(
        alone(Tar::default().hard_link("x", "/etc/shadow")),
        EntryFault::LinkMissing(_)
    ));
    assert!(matches!(
        alone(Tar::default().hard_link("x", "missing")),
        EntryFault::LinkMissing(_)
    ));
    assert!(matches!(
        alone(Tar::default().hard_link("x", "")),
        EntryFault::LinkMissing(_)
    ));
    assert!(matches!(
        alone(Tar::default().file("f", b"", FILE).hard_link("x", "f/g")),
        EntryFault::LinkMissing(_)
    ));
    assert!(matches!(
        alone(Tar::default().dir("d/", DIR).hard_link("x", "d")),
        EntryFault::LinkToDirectory(_)
    ));
    assert!(matches!(
        alone(Tar::default().hard_link("x", ".")),
        EntryFault::LinkToDirectory(_)
    ));
    assert_eq!(
        alone(Tar::default().file("f", b"", FILE).hard_link("f", "./f")),
        EntryFault::LinkToItself
    );
    let lower = Tar::default().file("f", b"", FILE).end();
    let upper = Tar::default().whiteout(".wh.f").hard_link("x", "f").end();
    assert!(matches!(
        entry_fault(&[lower, upper]),
        EntryFault::LinkMissing(_)
    ));
}

#[test]
fn parents_that_are_no_directories() {
    assert!(matches!(
        alone(Tar::default().file("f", b"", FILE).file("f/g", b"", FILE)),
        EntryFault::ParentNotDirectory(_)
    ));
    let looped = Tar::default()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", b"", FILE);
    assert_eq!(alone(looped), EntryFault::SymlinkLoop);
    assert_eq!(
        alone(Tar::default().symlink("s", "s/s").file("s/x", b"", FILE)),
        EntryFault::SymlinkLoop
    );
}

#[test]
fn entries_that_are_not_what_tar_knows() {
    assert_eq!(
        alone(Tar::default().node(b'Z', "x", (0, 0), FILE)),
        EntryFault::Type(b'Z')
    );
    assert_eq!(
        alone(Tar::default().node(b'D', "x", (0, 0), FILE)),
        EntryFault::Type(b'D')
    );
    assert!(matches!(
        alone(Tar::default().node(b'3', "x", (4096, 0), FILE)),
        EntryFault::Device { major: 4096, .. }
    ));
    assert!(matches!(
        alone(Tar::default().node(b'4', "x", (0, 1 << 20), FILE)),
        EntryFault::Device { .. }
    ));
    assert!(matches!(
        alone(Tar::default().file("x", b"", FILE.owner(1 << 32, 0))),
        EntryFault::Owner(_)
    ));
    assert_eq!(
        alone(Tar::default().symlink("x", "")),
        EntryFault::SymlinkTarget
    );
    assert_eq!(
        alone(
            Tar::default()
                .pax(&[("linkpath", b"a\0b")])
                .symlink("x", "y")
        ),
        EntryFault::SymlinkTarget
    );
    for (key, value) in [
        ("SCHILY.xattr.user.big", vec![0u8; 5000]),
        ("SCHILY.xattr.system.unknown", vec![0]),
        ("SCHILY.xattr.system.posix_acl_access", vec![1, 2, 3]),
    ] {
        let fault = alone(Tar::default().pax(&[(key, &value)]).file("x", b"", FILE));
        assert!(
            matches!(&fault, EntryFault::Xattr { name, .. } if key.ends_with(name.as_str())),
            "{fault}"
        );
    }
    let mut negative = header(b'0', b"x", b"", 0, FILE, (0, 0));
    negative[124..136].fill(0xff);
    checksum(&mut negative);
    assert!(matches!(
        alone(Tar::default().raw(&negative)),
        EntryFault::Size(_)
    ));
}

#[test]
fn sparse_maps_that_lie() {
    for map in [
        "0,3,2,3",
        "8,3,0,3",
        "0,6,9990,11",
        "0,5",
        "0,18446744073709551615",
        "1,18446744073709551615,3,6",
    ] {
        let tar = Tar::default()
            .pax(&[
                ("GNU.sparse.map", map.as_bytes()),
                ("GNU.sparse.size", b"10000"),
            ])
            .file("x", b"abcdef", FILE);
        assert!(matches!(alone(tar), EntryFault::Sparse(_)), "{map}");
    }
    let no_size = Tar::default()
        .pax(&[("GNU.sparse.map", b"0,6")])
        .file("x", b"abcdef", FILE);
    assert!(matches!(alone(no_size), EntryFault::Sparse(_)));
    let in_data = |content: &[u8]| {
        let records: [(&str, &[u8]); 3] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"10000"),
        ];
        refused(&[Tar::default().pax(&records).file("x", content, FILE).end()])
    };
    assert!(matches!(
        in_data(b"1\n0\n"),
        LayerFault::Entry {
            fault: EntryFault::Sparse(_),
            ..
        }
    ));
    assert!(matches!(in_data(&[b'1'; 512]), LayerFault::Header { .. }));
    assert!(matches!(
        in_data(&[b"99999999\n", &[0; 503][..]].concat()),
        LayerFault::Limit {
            field: "max_sparse_segments",
            ..
        }
    ));
}

#[test]
fn bytes_that_are_no_archive() {
    assert!(matches!(
        refused(&[vec![7; 512]]),
        LayerFault::Header { offset: 0, .. }
    ));
    assert!(matches!(
        refused(&[vec![7; 100]]),
        LayerFault::Truncated { .. }
    ));
    assert!(matches!(
        refused(&[b"\x1f\x8bnot gzip at all".to_vec()]),
        LayerFault::Read(_)
    ));
    assert!(matches!(
        refused(&[vec![0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4, 5]]),
        LayerFault::Read(_)
    ));
    let whole = Tar::default().file("x", &[1; 5000], FILE).end();
    assert!(matches!(
        refused(&[whole[..3000].to_vec()]),
        LayerFault::Truncated {
            what: "a file's content",
            ..
        }
    ));
    let no_marker = whole[..whole.len() - 1024].to_vec();
    assert!(matches!(
        refused(&[no_marker]),
        LayerFault::Truncated { .. }
    ));
    let mut huge = header(b'0', b"x", b"", u64::MAX / 4, FILE, (0, 0));
    octal(&mut huge[124..136], u64::MAX / 4);
    checksum(&mut huge);
    let fault = refused(&[Tar::default().raw(&huge).end()]);
    assert!(
        matches!(
            fault,
            LayerFault::Limit {
                field: "max_file_bytes",
                ..
            }
        ),
        "{fault}"
    );
    let lone = Tar::default().raw(&[0; 512]).file("x", b"", FILE).end();
    assert!(matches!(refused(&[lone]), LayerFault::Header { .. }));
    let dangling = Tar::default().pax(&[("path", b"x")]).end();
    assert!(matches!(refused(&[dangling]), LayerFault::Truncated { .. }));
    let bad_gzip = {
        let mut bytes = gzip(&whole);
        let last = bytes.len() - 6;
        bytes[last] ^= 1;
        bytes
    };
    assert!(
        matches!(refused(&[bad_gzip]), LayerFault::Read(_)),
        "gzip's own checksum"
    );
}

#[test]
fn bombs_are_defused() {
    let started = Instant::now();
    // An endless stream that costs nothing to make.
    struct Endless(Vec<u8>, usize);
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            for byte in buffer.iter_mut() {
                *byte = self.0[self.1 % self.0.len()];
                self.1 += 1;
            }
            Ok(buffer.len())
        }
    }
    let endless = |block: Vec<u8>| {
        vec![LayerSource {
            label: "layer-endless".to_owned(),
            reader: Box::new(Endless(block, 0)),
            compression: Compression::None,
            diff_id: None,
        }]
    };
    let limits = || Limits::tight();
    let limit = |fault: LayerFault| match fault {
        LayerFault::Limit { field, .. } => field,
        other => panic!("{other}"),
    };
    // Millions of entries; an endless extension header; endless headers without an entry.
    let file = header(b'0', b"same", b"", 0, FILE, (0, 0)).to_vec();
    assert_eq!(limit(refused_with(endless(file), limits())), "max_entries");
    let extension = header(b'x', b"pax", b"", 1 << 30, FILE, (0, 0)).to_vec();
    assert_eq!(
        limit(refused_with(endless(extension), limits())),
        "max_extension_bytes"
    );
    let label = header(b'V', b"label", b"", 0, FILE, (0, 0)).to_vec();
    assert_eq!(
        limit(refused_with(endless(label), limits())),
        "max_stream_bytes"
    );
    // Trailing bytes behind the archive count too.
    assert_eq!(
        limit(refused_with(endless(vec![0; 512]), limits())),
        "max_stream_bytes"
    );
    // Content.
    let zeros = vec![0u8; 15 << 20];
    let ones = vec![1u8; 15 << 20];
    let plain = |bytes: Vec<u8>| vec![source("layer-x", bytes, Compression::Detect, None)];
    let bomb = gzip(&Tar::default().file("zeros", &zeros, FILE).end());
    let mut strict = limits();
    strict.max_expansion_ratio = 100;
    assert_eq!(
        limit(refused_with(plain(bomb), strict)),
        "max_expansion_ratio"
    );
    let mut small_disk = limits();
    small_disk.max_disk_bytes = 8 << 20;
    assert_eq!(
        limit(refused_with(
            plain(Tar::default().file("ones", &ones, FILE).end()),
            small_disk
        )),
        "max_disk_bytes"
    );
    // Names.
    let deep = "d/".repeat(300) + "x";
    assert_eq!(
        limit(refused_with(
            plain(Tar::default().file(&deep, b"", FILE).end()),
            limits()
        )),
        "max_depth"
    );
    let long = "long/".repeat(1000);
    assert_eq!(
        limit(refused_with(
            plain(Tar::default().file(&long, b"", FILE).end()),
            limits()
        )),
        "max_path_bytes"
    );
    let mut memory = Tar::default();
    for index in 0..4000 {
        memory = memory.symlink(&format!("s{index}"), &"t".repeat(2000));
    }
    assert_eq!(
        limit(refused_with(plain(memory.end()), limits())),
        "max_tree_bytes"
    );
    let mut walks = Tar::default().dir("d/", DIR).symlink("d/s0", ".");
    for index in 1..30 {
        walks = walks.symlink(
            &format!("d/s{index}"),
            &format!("s{}/", index - 1).repeat(4),
        );
    }
    for index in 0..100 {
        walks = walks.file(&format!("d/s29/{index}"), b"", FILE);
    }
    let fault = refused_with(plain(walks.end()), limits());
    assert!(
        matches!(
            fault,
            LayerFault::Entry {
                fault: EntryFault::SymlinkLoop,
                ..
            } | LayerFault::Limit {
                field: "max_lookups",
                ..
            }
        ),
        "{fault}"
    );
    let many = (0..10)
        .map(|_| source("layer-x", Vec::new(), Compression::None, None))
        .collect();
    assert_eq!(limit(refused_with(many, limits())), "max_layers");
    let mut links = Tar::default().file("f", b"", Meta { ..FILE });
    for index in 0..65_000 {
        links = links.hard_link(&format!("l{index}"), "f");
    }
    assert_eq!(alone(links), EntryFault::TooManyLinks);
    assert!(
        started.elapsed() < Duration::from_secs(120),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn errors_name_layer_entry_and_remedy() {
    let work = directory();
    let layer = source(
        "sha256:abc",
        Tar::default().file("../x", b"", FILE).end(),
        Compression::None,
        None,
    );
    let error = build(
        vec![layer],
        &work.path().join("disk"),
        &BuildOptions::default(),
        &mut |_| {},
    )
    .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("sha256:abc") && text.contains("\"../x\""),
        "{text}"
    );
    let missing = work.path().join("no/such/disk");
    let error = build(Vec::new(), &missing, &BuildOptions::default(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("no/such/disk"), "{error}");
}

/// A layer with one of everything, small enough to cut at every byte.
fn sampler() -> Vec<u8> {
    Tar::default()
        .dir("d/", DIR)
        .pax(&[("SCHILY.xattr.user.a", b"value"), ("mtime", b"1.5")])
        .file("d/f", &[3; 700], FILE)
        .gnu_long(b'L', b"d/long")
        .file("cut", b"x", FILE)
        .hard_link("h", "d/f")
        .symlink("s", "d")
        .file("s/through", b"y", FILE)
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"9000"),
        ])
        .file(
            "sp",
            &[&b"1\n4096\n3\n"[..], &[0; 503], b"abc"].concat(),
            FILE,
        )
        .whiteout("d/.wh.gone")
        .node(b'3', "null", (1, 3), FILE)
        .end()
}

#[test]
fn a_layer_cut_or_damaged_anywhere_is_refused_or_read_but_never_a_panic() {
    let whole = sampler();
    fuzz_layer(&whole).unwrap();
    for cut in 0..whole.len() {
        // Errors are the point; only a panic would fail here.
        let _ = fuzz_layer(&whole[..cut]);
        let mut damaged = whole.clone();
        damaged[cut] ^= 1 << (cut % 8);
        let _ = fuzz_layer(&damaged);
    }
    let end = whole.len() - 1024;
    for cut in (0..=end).step_by(256) {
        refused(&[whole[..cut].to_vec()]);
    }
    for packed in [
        gzip(&whole),
        zstd::stream::encode_all(&whole[..], 3).unwrap(),
    ] {
        for cut in 1..packed.len() {
            refused(&[packed[..cut].to_vec()]);
        }
    }
}
