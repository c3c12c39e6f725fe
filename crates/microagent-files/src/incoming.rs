//! What comes out of a stream, checked: names stay below the destination, numbers are bounded, and
//! what the receiving side does not want is left out.

use std::io::BufRead;

use microagent_protocol::{CopyReport, Landing, Shipment};

use crate::{
    MAX_DEPTH, attributes,
    attributes::Attributes,
    error::CopyError,
    show,
    tar::{Content, EntryKind, TarFault, TarLimits, TarReader},
};

/// The most bytes behind the end of an archive.
const MAX_TRAILER: u64 = 1 << 20;

/// The longest target of a symbolic link.
const MAX_TARGET: usize = 4095;

/// How much of what a stream says is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// What gives rights beyond those of a file's owner is left out: set-user-ID and set-group-ID
    /// bits, capabilities, devices and pipes.
    Plain,
    /// All of it is taken.
    Full,
}

/// What a stream may bring.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How much is believed.
    pub trust: Trust,
    /// The one name at the top of the stream, where it is known beforehand.
    pub expected: Option<Vec<u8>>,
    /// The most bytes of file content.
    pub max_bytes: u64,
    /// The most entries.
    pub max_entries: u64,
}

impl Policy {
    /// For streams of somebody who may do anything where they land.
    #[must_use]
    pub fn trusting() -> Self {
        Self {
            trust: Trust::Full,
            expected: None,
            max_bytes: u64::MAX,
            max_entries: 4_000_000,
        }
    }

    /// For streams of a guest.
    #[must_use]
    pub fn wary() -> Self {
        Self {
            trust: Trust::Plain,
            ..Self::trusting()
        }
    }
}

/// The components of a path below the destination; none for the destination itself.
pub type Place = Vec<Vec<u8>>;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file; its content follows.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target, verbatim.
    Symlink(Vec<u8>),
    /// Another name for a file that came before.
    HardLink(Place),
    /// A character device: major and minor number.
    Character(u32, u32),
    /// A block device: major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One thing to land.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where.
    pub place: Place,
    /// What.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// A file's size, holes included.
    pub size: u64,
    /// Extended attributes that travel.
    pub xattrs: Attributes,
}

/// A stream being landed.
#[derive(Debug)]
pub struct Incoming<R> {
    reader: TarReader<R>,
    landing: Landing,
    policy: Policy,
    /// The name at the top, once it is known.
    top: Option<Vec<u8>>,
    /// What the top is called where it lands.
    rename: Option<Vec<u8>>,
    entries: u64,
    bytes: u64,
    /// What was done and left out so far.
    pub report: CopyReport,
}

impl<R: BufRead> Incoming<R> {
    /// Reads `input` for a landing. With `rename` the top of the stream gets another name.
    pub fn new(input: R, landing: &Landing, policy: &Policy, rename: Option<Vec<u8>>) -> Self {
        Self {
            reader: TarReader::new(input, TarLimits::default()),
            landing: landing.clone(),
            policy: policy.clone(),
            top: policy.expected.clone(),
            rename,
            entries: 0,
            bytes: 0,
            report: CopyReport::default(),
        }
    }

    /// The next thing to land; `None` at the sound end of the stream.
    ///
    /// # Errors
    /// [`CopyError::Stream`] and [`CopyError::Refused`].
    pub fn item(&mut self) -> Result<Option<Item>, CopyError> {
        loop {
            let Some(entry) = self.reader.next_entry()? else {
                return self.end().map(|()| None);
            };
            self.entries += 1;
            if self.entries > self.policy.max_entries {
                let limit = self.policy.max_entries;
                let reason = format!("is one too many; at most {limit} are taken");
                return Err(CopyError::refused(&entry.path, reason));
            }
            let place = self.place(&entry.path, &entry.path)?;
            let kind = match entry.kind {
                EntryKind::File => Kind::File,
                EntryKind::Directory => Kind::Directory,
                EntryKind::Symlink(target) => {
                    if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                        let reason = "is a symbolic link to nothing, or to too long a name";
                        return Err(CopyError::refused(&entry.path, reason));
                    }
                    Kind::Symlink(target)
                }
                EntryKind::HardLink(target) => Kind::HardLink(self.place(&target, &entry.path)?),
                EntryKind::Character(major, minor) => Kind::Character(major, minor),
                EntryKind::Block(major, minor) => Kind::Block(major, minor),
                EntryKind::Fifo => Kind::Fifo,
            };
            if place.is_empty() && kind != Kind::Directory {
                let reason = "would replace the destination itself";
                return Err(CopyError::refused(&entry.path, reason));
            }
            let is_special = matches!(kind, Kind::Character(..) | Kind::Block(..) | Kind::Fifo);
            if is_special && self.policy.trust == Trust::Plain {
                self.report
                    .skip(|| format!("{}: a device or pipe", show(&entry.path)));
                continue;
            }
            let (uid, gid) = match self.landing.owner {
                Some(owner) => (owner.uid, owner.gid),
                None => (entry.uid, entry.gid),
            };
            return Ok(Some(Item {
                mode: self.mode(&kind, entry.mode),
                place,
                kind,
                uid,
                gid,
                mtime: entry.mtime,
                size: entry.size,
                xattrs: self.attributes(entry.xattrs),
            }));
        }
    }

    /// Hands the present file's content to `sink`, holes as holes.
    ///
    /// # Errors
    /// The stream's, and whatever `sink` returns.
    pub fn content(
        &mut self,
        mut sink: impl FnMut(Content<'_>) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let (bytes, most) = (&mut self.bytes, self.policy.max_bytes);
        self.reader.read_content(|piece| {
            if let Content::Data(data) = piece {
                *bytes = bytes.saturating_add(data.len() as u64);
                if *bytes > most {
                    return Err(CopyError::Refused {
                        entry: "this one".to_owned(),
                        reason: format!("brings more than {most} bytes, which is the most"),
                    });
                }
            }
            sink(piece)
        })
    }

    fn end(&mut self) -> Result<(), CopyError> {
        if !self.reader.saw_end_marker() {
            return Err(CopyError::Stream(TarFault::Truncated {
                offset: self.reader.offset(),
                what: "the archive (it has no end marker)",
            }));
        }
        self.reader.drain(MAX_TRAILER)?;
        if self.entries == 0 && self.landing.shipment != Shipment::Archive {
            return Err(CopyError::refused(b"", "is missing: the stream is empty"));
        }
        Ok(())
    }

    /// Where an entry of the stream belongs.
    fn place(&mut self, path: &[u8], entry: &[u8]) -> Result<Place, CopyError> {
        let mut place = components(path).map_err(|reason| CopyError::refused(entry, reason))?;
        if self.landing.shipment != Shipment::Named {
            return Ok(place);
        }
        let Some(first) = place.first_mut() else {
            let reason = "stands for no file";
            return Err(CopyError::refused(entry, reason));
        };
        let top = self.top.get_or_insert_with(|| first.clone());
        if first != top {
            let reason = format!("is not below {:?}, which was asked for", show(top));
            return Err(CopyError::refused(entry, reason));
        }
        if let Some(name) = &self.rename {
            first.clone_from(name);
        }
        Ok(place)
    }

    fn mode(&self, kind: &Kind, mode: u16) -> u16 {
        let mode = match (self.landing.mode, kind) {
            (Some(mode), Kind::File) => return mode.file(),
            (Some(mode), Kind::Directory) => return mode.directory(),
            _ => mode & 0o7777,
        };
        match self.policy.trust {
            Trust::Full => mode,
            // On a directory the group bit only says whose new files are.
            Trust::Plain if *kind == Kind::Directory => mode & !0o4000,
            Trust::Plain => mode & !0o6000,
        }
    }

    fn attributes(&self, xattrs: Attributes) -> Attributes {
        let wanted = |name: &[u8]| {
            attributes::travels(name)
                && (self.policy.trust == Trust::Full || !attributes::is_privilege(name))
        };
        xattrs
            .into_iter()
            .filter(|(name, _)| wanted(name))
            .collect()
    }
}

/// The components of a name in a stream; none for `.`.
fn components(path: &[u8]) -> Result<Place, &'static str> {
    if path.starts_with(b"/") {
        return Err("has an absolute name");
    }
    if path.contains(&0) {
        return Err("has a NUL byte in its name");
    }
    let mut place = Place::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("climbs with .. in its name"),
            _ if part.len() > 255 => return Err("has a name component of more than 255 bytes"),
            _ if place.len() == MAX_DEPTH => return Err("is too many directories deep"),
            _ => place.push(part.to_vec()),
        }
    }
    if path.is_empty() {
        return Err("has no name");
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{Entry, TarWriter};

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0o6755,
            uid: 7,
            gid: 8,
            mtime: (1, 2),
            size: 0,
            xattrs: vec![
                (b"security.capability".to_vec(), vec![1]),
                (b"trusted.overlay.opaque".to_vec(), vec![b'y']),
                (b"user.note".to_vec(), vec![2]),
            ],
        }
    }

    fn archive(entries: &[Entry]) -> Vec<u8> {
        let mut writer = TarWriter::new(Vec::new());
        for entry in entries {
            writer.entry(entry, None).unwrap();
        }
        writer.finish().unwrap()
    }

    fn items(
        entries: &[Entry],
        shipment: Shipment,
        policy: &Policy,
    ) -> Result<(Vec<Item>, CopyReport), CopyError> {
        let bytes = archive(entries);
        let landing = Landing::new(shipment);
        let mut incoming = Incoming::new(&bytes[..], &landing, policy, None);
        let mut items = Vec::new();
        while let Some(item) = incoming.item()? {
            items.push(item);
        }
        Ok((items, incoming.report))
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let long = "x".repeat(256);
        for path in ["/etc/passwd", "../x", "a/../../x", "a/..", "..", &long] {
            for kind in [EntryKind::File, EntryKind::HardLink(b"a".to_vec())] {
                let entries = [entry(path, kind)];
                let error = items(&entries, Shipment::Archive, &Policy::wary()).unwrap_err();
                assert!(
                    matches!(error, CopyError::Refused { .. }),
                    "{path}: {error}"
                );
            }
            let link = EntryKind::HardLink(path.into());
            let entries = [entry("a", EntryKind::File), entry("b", link)];
            let error = items(&entries, Shipment::Archive, &Policy::wary()).unwrap_err();
            assert!(
                matches!(error, CopyError::Refused { .. }),
                "{path}: {error}"
            );
        }
        for path in [".", "./.", "a/.."] {
            let entries = [entry(path, EntryKind::File)];
            assert!(items(&entries, Shipment::Archive, &Policy::wary()).is_err());
        }
    }

    #[test]
    fn only_what_was_asked_for_comes() {
        let policy = Policy {
            expected: Some(b"out".to_vec()),
            ..Policy::wary()
        };
        let fine = [
            entry("out", EntryKind::Directory),
            entry("out/a", EntryKind::File),
        ];
        assert_eq!(items(&fine, Shipment::Named, &policy).unwrap().0.len(), 2);
        for other in ["outer", ".bashrc", "."] {
            let entries = [
                entry("out", EntryKind::Directory),
                entry(other, EntryKind::Directory),
            ];
            assert!(
                items(&entries, Shipment::Named, &policy).is_err(),
                "{other}"
            );
        }
        assert!(items(&[], Shipment::Named, &policy).is_err());
        assert!(items(&[], Shipment::Archive, &Policy::wary()).is_ok());
    }

    #[test]
    fn what_gives_rights_is_left_out_unless_it_is_trusted() {
        let entries = [
            entry("f", EntryKind::File),
            entry("d", EntryKind::Directory),
            entry("null", EntryKind::Character(1, 3)),
            entry("sda", EntryKind::Block(8, 0)),
            entry("pipe", EntryKind::Fifo),
        ];
        let (plain, report) = items(&entries, Shipment::Archive, &Policy::wary()).unwrap();
        let shown: Vec<_> = plain
            .iter()
            .map(|item| (item.mode, item.xattrs.len()))
            .collect();
        assert_eq!(shown, [(0o755, 1), (0o2755, 1)]);
        assert_eq!((report.skipped, report.notices.len()), (3, 3));
        let (full, report) = items(&entries, Shipment::Archive, &Policy::trusting()).unwrap();
        assert_eq!((full.len(), report.skipped), (5, 0));
        assert_eq!((full[0].mode, full[0].xattrs.len()), (0o6755, 2));
    }

    #[test]
    fn streams_are_bounded_and_must_end() {
        let entries: Vec<_> = (0..10)
            .map(|n| entry(&n.to_string(), EntryKind::Directory))
            .collect();
        let policy = Policy {
            max_entries: 9,
            ..Policy::wary()
        };
        assert!(items(&entries, Shipment::Archive, &policy).is_err());
        let bytes = archive(&entries);
        let landing = Landing::new(Shipment::Archive);
        for cut in (0..bytes.len()).step_by(256) {
            let mut incoming = Incoming::new(&bytes[..cut], &landing, &Policy::wary(), None);
            let end = loop {
                match incoming.item() {
                    Ok(Some(_)) => {}
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            // One zero block at the very end is as good as two.
            assert_eq!(end.is_ok(), cut == bytes.len() - 512, "{cut}");
        }
        let endless = std::io::Read::chain(&bytes[..], std::io::repeat(0));
        let endless = std::io::BufReader::new(endless);
        let mut incoming = Incoming::new(endless, &landing, &Policy::wary(), None);
        let error = loop {
            match incoming.item() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it never ends"),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("behind"), "{error}");
    }
}
