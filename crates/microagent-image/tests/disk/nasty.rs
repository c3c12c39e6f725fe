//! An image of everything that is easy to get wrong.

use crate::archive::{DIR, FILE, Tar};

/// VFS capability revision 2, effective, cap_net_raw.
pub(crate) const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// Three layers with everything a layer can say; one of its directories holds `many` files.
pub(crate) fn nasty(many: u64) -> Vec<Vec<u8>> {
    let long = "n".repeat(255);
    let long_target = "t/".repeat(100);
    let mut first = Tar::default()
        .dir("./", DIR)
        .dir("usr/", DIR)
        .dir("usr/bin/", DIR)
        .symlink("bin", "usr/bin")
        .file("usr/bin/su", b"setuid", FILE.mode(0o4755))
        .file("usr/bin/wall", b"setgid", FILE.mode(0o2755).owner(0, 5))
        .dir("tmp/", DIR.mode(0o1777))
        .pax(&[
            ("SCHILY.xattr.security.capability", &CAPABILITY),
            ("mtime", b"1600000000.123456789"),
        ])
        .file("usr/bin/ping", &[7; 9000], FILE.mode(0o755))
        .pax(&[
            ("SCHILY.xattr.user.note", b"a\nb\0c"),
            ("SCHILY.xattr.user.big", &[b'x'; 3000]),
            // What macOS' tar writes.
            ("SCHILY.xattr.com.apple.provenance", &[1, 2, 0]),
            ("LIBARCHIVE.xattr.com.apple.provenance", b"AQIA"),
        ])
        .file("usr/noted", b"with attributes", FILE)
        .pax(&[("SCHILY.xattr.user.on-directory", b"yes")])
        .dir("usr/noted.d/", DIR.mode(0o2750).owner(1000, 1000))
        .file("secret", b"nobody may read this", FILE.mode(0))
        .file("high", b"70000", FILE.owner(70_000, 4_000_000_000))
        .file(&format!("usr/{long}"), b"long name", FILE)
        .file(r"usr/a\x2db", b"escaped", FILE)
        .file("usr/new\nline \u{e4}\u{1f980}", b"odd", FILE)
        .symlink("loop-a", "loop-b")
        .symlink("loop-b", "loop-a")
        .symlink("absolute", "/etc/shadow")
        .symlink("escape", "../../../../etc/passwd")
        .symlink("long-link", &long_target)
        .symlink("link59", &"5".repeat(59))
        .symlink("link60", &"6".repeat(60))
        .dir("dev/", DIR)
        .node(b'3', "dev/null", (1, 3), FILE.mode(0o666))
        .node(b'3', "dev/high", (511, 70_000), FILE)
        .node(b'4', "dev/loop", (7, 300), FILE.mode(0o660).owner(0, 6))
        .node(b'6', "dev/fifo", (0, 0), FILE.mode(0o600))
        .dir("links/", DIR)
        .file("links/one", b"one inode", FILE.mode(0o640))
        .hard_link("links/two", "links/one")
        .hard_link("usr/three", "./links/one")
        .symlink("links/sym", "one")
        .hard_link("links/sym2", "links/sym")
        .dir("gone/", DIR)
        .file("gone/a", b"a", FILE)
        .dir("gone/deep/", DIR)
        .file("gone/deep/b", b"b", FILE)
        .file("whited", &[1; 100_000], FILE)
        .dir("opaque/", DIR)
        .file("opaque/old", b"old", FILE)
        .dir("opaque/sub/", DIR)
        .file("opaque/sub/old", b"old", FILE)
        .file("morph", b"a file first", FILE)
        .dir("morph2/", DIR)
        .file("morph2/inside", b"x", FILE)
        .file("empty", b"", FILE)
        .file("zeros", &[0; 200_000], FILE)
        .dir("many/", DIR);
    for index in 0..many {
        first = first.file(
            &format!("many/file-{index:05}"),
            index.to_string().as_bytes(),
            FILE.owner(index % 7, 0),
        );
    }
    // PAX sparse 1.0: 1 GiB with data at 4 KiB (unaligned) and at the end.
    let map = format!("3\n5000\n3000\n{}\n512\n{}\n0\n", (1 << 30) - 512, 1 << 30);
    let mut stored = map.into_bytes();
    stored.resize(512, 0);
    stored.extend([9; 3000]);
    stored.extend([8; 512]);
    let size = (1u64 << 30).to_string();
    let first = first
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .file("GNUSparseFile.1/sparse", &stored, FILE);
    let second = Tar::default()
        .whiteout(".wh.whited")
        .whiteout(".wh.gone")
        .dir("opaque/", DIR.mode(0o700))
        .file("opaque/new", b"new", FILE)
        .whiteout("opaque/.wh..wh..opq")
        .dir("opaque/sub/", DIR)
        .file("opaque/sub/new", b"new", FILE)
        .dir("morph/", DIR)
        .file("morph/child", b"now a directory", FILE)
        .file("morph2", b"now a file", FILE)
        .file("bin/through-link", b"lands in usr/bin", FILE)
        .hard_link("links/four", "links/one")
        .hard_link("through", "bin/su")
        .file("links/two", b"no longer the same", FILE)
        // Names from the root on, as distroless and Paketo's images have them.
        .dir("/from/", DIR)
        .dir("/from/root/", DIR.owner(1, 1))
        .file("/from/root/file", b"absolute", FILE)
        .hard_link("/from/link", "/from/root/file")
        .hard_link("from/other", "/links/one")
        .whiteout("many/.wh.file-00007")
        .whiteout("many/.wh.not-there")
        .file("empty", b"not empty any more", FILE);
    let third = Tar::default()
        .file("morph", b"a file again", FILE)
        .dir("morph2/", DIR)
        .file("morph2/back", b"a directory again", FILE)
        .dir("gone/", DIR.owner(3, 3))
        .file("gone/c", b"back", FILE)
        .whiteout("links/.wh.one")
        .whiteout("/from/root/.wh.file")
        .dir("usr/noted.d/", DIR.mode(0o755));
    vec![first.end(), second.end(), third.end()]
}
