//! Streams that want to land elsewhere, break off, or never end.

use std::{
    fs,
    io::{self, BufRead, Read},
    os::unix::fs::symlink,
    path::Path,
};

use microagent_files::{
    CopyError, Policy, land,
    tar::{Entry, EntryKind, TarWriter},
};
use microagent_protocol::{Landing, Shipment};
use rustix::process::geteuid;

use crate::{CONTENTS, Mounted, PLAIN, directory, facts, packed};

/// A stream made by hand.
#[derive(Default)]
struct Hostile(Vec<(Entry, Vec<u8>)>);

impl Hostile {
    fn add(mut self, path: &str, kind: EntryKind, content: &[u8]) -> Self {
        let entry = Entry {
            path: path.into(),
            kind,
            mode: 0o755,
            uid: geteuid().as_raw(),
            gid: 0,
            mtime: (1, 0),
            size: content.len() as u64,
            xattrs: Vec::new(),
        };
        self.0.push((entry, content.to_vec()));
        self
    }
    fn dir(self, path: &str) -> Self {
        self.add(path, EntryKind::Directory, b"")
    }
    fn file(self, path: &str) -> Self {
        self.add(path, EntryKind::File, b"hostile")
    }
    fn link(self, path: &str, target: &str) -> Self {
        self.add(path, EntryKind::Symlink(target.into()), b"")
    }
    fn hard(self, path: &str, target: &str) -> Self {
        self.add(path, EntryKind::HardLink(target.into()), b"")
    }
    fn bytes(&self) -> Vec<u8> {
        let mut writer = TarWriter::new(Vec::new());
        for (entry, content) in &self.0 {
            writer.entry(entry, None).unwrap();
            writer.content(content).unwrap();
        }
        writer.finish().unwrap()
    }
}

#[test]
fn nothing_leads_out_of_the_destination() {
    let dir = directory();
    let outside = dir.path().join("outside");
    let inside = dir.path().join("inside");
    let out = outside.to_str().unwrap().to_owned();
    let streams = [
        Hostile::default().file("../outside/x"),
        Hostile::default().file(&format!("{out}/x")),
        Hostile::default().dir("t").file("t/../../outside/x"),
        Hostile::default().link("t", &out).file("t/x"),
        Hostile::default().link("t", "../outside").file("t/x"),
        Hostile::default()
            .link("t", "../outside")
            .dir("t")
            .file("t/x"),
        Hostile::default().link("t", "../outside").dir("t/new"),
        Hostile::default()
            .dir("t")
            .link("t/u", "../../outside")
            .link("v", "t/u")
            .file("v/x"),
        Hostile::default()
            .link("t", "../outside")
            .hard("t/canary2", "t/canary"),
        Hostile::default()
            .link("t", "../outside")
            .hard("stolen", "t/canary"),
        Hostile::default().hard("stolen", "../outside/canary"),
        Hostile::default().hard("stolen", &format!("{out}/canary")),
        Hostile::default().hard("stolen", "own").file("stolen"),
        Hostile::default().dir("t").hard("also", "t"),
        Hostile::default().file(".").dir("t"),
        Hostile::default()
            .link("planted", "../outside/canary")
            .file("planted/x"),
        Hostile::default().dir("own/x"),
        Hostile::default().dir("linked/x"),
    ];
    for (index, stream) in streams.iter().enumerate() {
        let _ = fs::remove_dir_all(&inside);
        let _ = fs::remove_dir_all(&outside);
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(&inside).unwrap();
        fs::write(outside.join("canary"), "canary").unwrap();
        fs::write(inside.join("own"), "own").unwrap();
        symlink("../outside", inside.join("linked")).unwrap();
        let before = facts(&outside);
        let landing = Landing::new(Shipment::Archive);
        for policy in [Policy::wary(), Policy::trusting()] {
            let error = land(&stream.bytes()[..], &inside, &landing, &policy).unwrap_err();
            assert!(
                matches!(
                    error,
                    CopyError::Refused { .. } | CopyError::Conflict { .. }
                ),
                "{index}: {error}"
            );
            assert_eq!(facts(&outside), before, "{index}");
            assert_eq!(fs::read(inside.join("own")).unwrap(), b"own", "{index}");
        }
    }
    // A file takes the place of a link, whatever it leads to.
    let stream = Hostile::default().link("t", "../outside/canary").file("t");
    land(
        &stream.bytes()[..],
        &inside,
        &Landing::new(Shipment::Archive),
        &Policy::wary(),
    )
    .unwrap();
    assert!(!inside.join("t").is_symlink());
    assert_eq!(fs::read(outside.join("canary")).unwrap(), b"canary");
}

#[test]
fn an_answer_to_another_question_is_refused() {
    let dir = directory();
    let policy = Policy {
        expected: Some(b"out".to_vec()),
        ..Policy::wary()
    };
    let stream = Hostile::default().dir("out").file("out/a").file(".bashrc");
    let named = Landing::new(Shipment::Named);
    let error = land(&stream.bytes()[..], dir.path(), &named, &policy).unwrap_err();
    assert!(error.to_string().contains("out"), "{error}");
    assert!(!dir.path().join(".bashrc").exists() && dir.path().join("out/a").exists());
}

/// Bytes, and then an error.
struct Broken<'a>(&'a [u8]);

impl Read for Broken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.0.read(buffer)
    }
}

#[test]
fn a_broken_stream_leaves_the_old_or_the_new() {
    let dir = directory();
    let at = dir.path().join("f");
    let src = dir.path().join("s/f");
    fs::create_dir(dir.path().join("s")).unwrap();
    fs::write(&src, vec![b'n'; 5000]).unwrap();
    let (bytes, _) = packed(&src, PLAIN);
    let named = Landing::new(Shipment::Named);
    let content = 3 * 512..3 * 512 + 5000;
    for cut in (0..bytes.len()).step_by(97) {
        for tear in [false, true] {
            fs::write(&at, "old").unwrap();
            let done = if tear {
                land(
                    io::BufReader::new(Broken(&bytes[..cut])),
                    &at,
                    &named,
                    &Policy::wary(),
                )
            } else {
                land(&bytes[..cut], &at, &named, &Policy::wary())
            };
            assert!(tear || done.is_err() || cut >= bytes.len() - 512, "{cut}");
            let now = fs::read(&at).unwrap();
            assert!(
                now == b"old" || now == [b'n'; 5000],
                "{cut}: {} bytes",
                now.len()
            );
            assert!(cut >= content.end || now == b"old", "{cut}");
            assert_eq!(
                fs::read_dir(dir.path()).unwrap().count(),
                2,
                "nothing else stays"
            );
        }
    }
}

#[test]
fn an_endless_stream_ends() {
    struct Endless(Vec<u8>);
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = (&self.0[..]).read(buffer)?;
            self.0.drain(..count);
            if count > 0 {
                return Ok(count);
            }
            buffer.fill(b'x');
            Ok(buffer.len())
        }
    }
    let dir = directory();
    let endless = Entry {
        path: b"t".to_vec(),
        kind: EntryKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        size: 1 << 43,
        xattrs: Vec::new(),
    };
    let header = header(&endless);
    let policy = Policy {
        max_bytes: 1 << 20,
        ..Policy::wary()
    };
    let error = land(
        io::BufReader::new(Endless(header)),
        &dir.path().join("t"),
        &Landing::new(Shipment::Named),
        &policy,
    )
    .unwrap_err();
    assert!(error.to_string().contains("1048576"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// An entry's header alone.
fn header(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::new();
    TarWriter::new(&mut bytes).entry(entry, None).unwrap();
    bytes
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    let dir = directory();
    let mounted = Mounted::tmpfs(dir.path(), "size=1m");
    let src = directory();
    fs::write(src.path().join("f"), vec![1; 2 << 20]).unwrap();
    fs::write(dir.path().join("f"), "old").unwrap();
    let (bytes, _) = packed(&src.path().join("f"), PLAIN);
    let error = land(
        &bytes[..],
        dir.path(),
        &Landing::new(Shipment::Named),
        &Policy::wary(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("space"), "{error}");
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    drop(mounted);
}

#[test]
fn the_whole_stream_is_read() {
    // Who sends it waits until somebody has taken all of it.
    let (bytes, _) = packed(Path::new(env!("CARGO_MANIFEST_DIR")), CONTENTS);
    let padded = [&bytes[..], &[0; 8192]].concat();
    let mut reader = &padded[..];
    let dir = directory();
    land(
        &mut reader,
        dir.path(),
        &Landing::new(Shipment::Archive),
        &Policy::wary(),
    )
    .unwrap();
    assert!(reader.fill_buf().unwrap().is_empty());
}

/// An extension header: records for the next entry (`x`), or for all that follow (`g`).
fn extension(kind: u8, records: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[0] = b'e';
    header[124..136].copy_from_slice(format!("{:011o}\0", records.len()).as_bytes());
    header[148..156].fill(b' ');
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = [&header[..], records].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A record of an extended attribute.
fn attribute(name: &str, size: usize) -> Vec<u8> {
    let rest = format!(" SCHILY.xattr.user.{name}={}\n", "v".repeat(size));
    let mut length = rest.len();
    while format!("{length}{rest}").len() != length {
        length += 1;
    }
    format!("{length}{rest}").into_bytes()
}

/// What a few bytes of a stream can say of many entries is not held for each of them, and what many headers
/// say of one entry is bounded.
#[test]
fn extension_headers_cannot_fill_the_memory() {
    let half = 500 << 10;
    let tree = || Hostile::default().dir("t").dir("t/a").file("t/a/f").bytes();
    let tell = |headers: &[Vec<u8>]| {
        let dir = directory();
        let stream = [headers.concat(), tree()].concat();
        let landing = Landing::new(Shipment::Named);
        let landed = land(
            &stream[..],
            &dir.path().join("t"),
            &landing,
            &Policy::wary(),
        );
        (landed.map_err(|error| error.to_string()), dir)
    };
    let (landed, _) = tell(&[extension(b'g', &attribute("big", half))]);
    assert!(landed.unwrap_err().contains("said of all entries"));
    let many: Vec<_> = (0..3)
        .map(|n| extension(b'x', &attribute(&n.to_string(), half)))
        .collect();
    let (landed, _) = tell(&many);
    assert!(
        landed
            .unwrap_err()
            .contains("1048576 bytes in the extension")
    );
    // One that a disk holds is there, on directories, too.
    let (landed, dir) = tell(&[extension(b'g', &attribute("small", 1000))]);
    assert_eq!(landed.unwrap().files, 1);
    for path in ["t", "t/a", "t/a/f"] {
        let mut value = [0_u8; 2000];
        let there = rustix::fs::getxattr(dir.path().join(path), "user.small", &mut value[..]);
        assert_eq!(there.unwrap(), 1000, "{path}");
    }
    let small: Vec<u8> = (0..5000)
        .flat_map(|n| attribute(&n.to_string(), 1))
        .collect();
    let (landed, _) = tell(&[extension(b'x', &small)]);
    assert!(landed.unwrap_err().contains("4096 extended attributes"));
}
