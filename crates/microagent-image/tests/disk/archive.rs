//! Writes archives byte by byte, also those no honest tool would write.

/// Metadata of an entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
}

pub(crate) const FILE: Meta = Meta {
    mode: 0o644,
    uid: 0,
    gid: 0,
    mtime: 1_600_000_000,
};
pub(crate) const DIR: Meta = Meta {
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: 1_600_000_001,
};

impl Meta {
    pub(crate) fn mode(self, mode: u32) -> Self {
        Meta { mode, ..self }
    }
    pub(crate) fn owner(self, uid: u64, gid: u64) -> Self {
        Meta { uid, gid, ..self }
    }
}

/// A header with a right checksum; names longer than its field are cut (use PAX or GNU records).
pub(crate) fn header(
    kind: u8,
    name: &[u8],
    link: &[u8],
    size: u64,
    meta: Meta,
    device: (u32, u32),
) -> [u8; 512] {
    let mut h = [0u8; 512];
    h[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    octal(&mut h[100..108], u64::from(meta.mode));
    octal(&mut h[108..116], meta.uid);
    octal(&mut h[116..124], meta.gid);
    octal(&mut h[124..136], size);
    octal(&mut h[136..148], meta.mtime);
    h[156] = kind;
    h[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    h[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut h[329..337], u64::from(device.0));
    octal(&mut h[337..345], u64::from(device.1));
    checksum(&mut h);
    h
}

pub(crate) fn checksum(h: &mut [u8; 512]) {
    h[148..156].fill(b' ');
    let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
    h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Octal digits, or base-256 where they do not suffice.
pub(crate) fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let text = format!("{value:0width$o}");
    if text.len() == width {
        field[..width].copy_from_slice(text.as_bytes());
        field[width] = 0;
    } else {
        field.fill(0);
        let at = field.len() - 8.min(field.len());
        let bytes = value.to_be_bytes();
        let from = bytes.len() - (field.len() - at);
        field[at..].copy_from_slice(&bytes[from..]);
        field[0] |= 0x80;
    }
}

pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// An archive in the making.
#[derive(Default, Clone)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn body(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extension(b'x', records)
    }

    pub(crate) fn extension(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect();
        let size = body.len() as u64;
        self.raw(&header(kind, b"PaxHeaders/x", b"", size, FILE, (0, 0)))
            .body(&body)
    }

    pub(crate) fn gnu_long(self, kind: u8, text: &[u8]) -> Self {
        let body = [text, b"\0"].concat();
        self.raw(&header(
            kind,
            b"././@LongLink",
            b"",
            body.len() as u64,
            FILE,
            (0, 0),
        ))
        .body(&body)
    }

    pub(crate) fn file(self, name: &str, content: &[u8], meta: Meta) -> Self {
        let this = self.named(name);
        this.raw(&header(
            b'0',
            name.as_bytes(),
            b"",
            content.len() as u64,
            meta,
            (0, 0),
        ))
        .body(content)
    }

    pub(crate) fn dir(self, name: &str, meta: Meta) -> Self {
        self.named(name)
            .raw(&header(b'5', name.as_bytes(), b"", 0, meta, (0, 0)))
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(b'2', name, target)
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(b'1', name, target)
    }

    fn link(self, kind: u8, name: &str, target: &str) -> Self {
        let mut this = self.named(name);
        if target.len() > 100 {
            this = this.gnu_long(b'K', target.as_bytes());
        }
        this.raw(&header(
            kind,
            name.as_bytes(),
            target.as_bytes(),
            0,
            FILE.mode(0o777),
            (0, 0),
        ))
    }

    pub(crate) fn node(self, kind: u8, name: &str, device: (u32, u32), meta: Meta) -> Self {
        self.raw(&header(kind, name.as_bytes(), b"", 0, meta, device))
    }

    pub(crate) fn whiteout(self, name: &str) -> Self {
        self.file(name, b"", FILE)
    }

    fn named(self, name: &str) -> Self {
        if name.len() > 100 {
            self.pax(&[("path", name.as_bytes())])
        } else {
            self
        }
    }

    pub(crate) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}
