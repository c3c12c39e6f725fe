//! What becomes of an artifact's stream: a file as it is, or a directory as one tar, hashed on the way
//! and written beside its place, if it has one.
//!
//! The stream is the guest's. A tar is therefore written anew, entry by entry: each name once, below
//! a directory that came before it, with no way through a link, and with what gives rights left out.

use std::{
    collections::HashMap,
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{self, BufRead, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use microagent_files::{
    CopyError, FolderHandle, Incoming, Item, Kind, Place, Policy, Temporary, open_folder, show,
    sync_folder,
    tar::{Content, Entry, EntryKind, TarWriter},
};
use microagent_host::fs::set_mode;
use microagent_image::Hasher;
use microagent_protocol::{CopyPath, ItemName, Landing, Shipment};

use super::{ArtifactKind, ArtifactState};
use crate::error::{IoContext as _, Result};

/// What stands behind the name of a directory's tar.
pub(super) const TAR: &str = ".tar";

/// The most entries of a directory's tar.
const MAX_ENTRIES: u64 = 1 << 20;

/// The least of a tar that an entry takes beside its content, names and attributes.
const HEADERS: u64 = 3 * 512;

/// Zeros shorter than this are written: holes of files are not smaller.
const HOLE: usize = 4096;

/// How much is looked at for zeros at a time.
const PIECE: usize = 64 << 10;

/// A directory of the host that artifacts are put into.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    open: FolderHandle,
}

impl Folder {
    /// Opens the directory; it is made if it is missing.
    pub(super) fn make(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).context("make", path)?;
        let open = open_folder(path).context("open", path)?;
        Ok(Self {
            path: path.to_owned(),
            open,
        })
    }

    /// Sees that files can be made in it.
    pub(super) fn try_out(&self) -> Result<()> {
        Temporary::file(&self.open)
            .map(drop)
            .context("write to", &self.path)
    }
}

/// An artifact that was read to its end.
pub(super) struct Taken<'f> {
    kind: ArtifactKind,
    size: u64,
    sha256: String,
    skipped: u64,
    file: Option<(&'f Folder, Temporary)>,
}

impl Taken<'_> {
    /// Gives the file that was written its name, in place of an older one.
    pub(super) fn publish(self, name: &ItemName, skipped: u64) -> Result<ArtifactState> {
        let mut saved_as = None;
        if let Some((folder, temporary)) = self.file {
            let name = match self.kind {
                ArtifactKind::File => name.to_string(),
                ArtifactKind::Directory => format!("{name}{TAR}"),
            };
            let path = folder.path.join(&name);
            temporary.publish(&folder.open, name.as_bytes(), &path)?;
            sync_folder(&folder.open).context("sync", &folder.path)?;
            saved_as = Some(path);
        }
        Ok(ArtifactState::Present {
            kind: self.kind,
            size_bytes: self.size,
            sha256: self.sha256,
            skipped: self.skipped.saturating_add(skipped),
            saved_as,
        })
    }
}

/// Reads what `input` brings of the artifact at `path`, of at most `room` bytes.
pub(super) fn take<'f>(
    input: impl BufRead,
    path: &CopyPath,
    room: u64,
    into: Option<&'f Folder>,
) -> Result<Taken<'f>, CopyError> {
    let policy = Policy {
        expected: path.name().map(|name| name.as_bytes().to_vec()),
        max_bytes: room,
        max_entries: MAX_ENTRIES,
        ..Policy::wary()
    };
    let mut incoming = Incoming::new(input, &Landing::new(Shipment::Named), &policy, None);
    let neither = || CopyError::Conflict {
        path: path.as_str().into(),
        reason: "is neither a file nor a directory",
    };
    // A device or pipe is left out by now.
    let first = incoming.item()?.ok_or_else(neither)?;
    let sink = Sink::new(into)?;
    match first.kind {
        _ if first.place.len() != 1 => Err(neither()),
        Kind::File => file(sink, &first, path, room, &mut incoming),
        Kind::Directory => tree(sink, first, path, room, &mut incoming),
        _ => Err(neither()),
    }
}

/// Writes a file.
fn file<'f>(
    mut sink: Sink<'f>,
    item: &Item,
    path: &CopyPath,
    room: u64,
    incoming: &mut Incoming<impl BufRead>,
) -> Result<Taken<'f>, CopyError> {
    if item.size > room {
        return Err(too_large(path, item.size, room));
    }
    let shown = sink.shown.clone();
    sink.mode(item.mode)?;
    incoming.content(|piece| {
        match piece {
            Content::Data(bytes) => sink.write_all(bytes),
            Content::Hole(length) => zeros(length, |zeros| sink.write_all(zeros)),
        }
        .map_err(|error| written(&shown, error))
    })?;
    if let Some(more) = incoming.item()? {
        return Err(refused(&more, "is one too many: one file was asked for"));
    }
    sink.finish(ArtifactKind::File, incoming.report.skipped)
}

/// Writes a tree as a tar.
fn tree<'f>(
    sink: Sink<'f>,
    first: Item,
    path: &CopyPath,
    room: u64,
    incoming: &mut Incoming<impl BufRead>,
) -> Result<Taken<'f>, CopyError> {
    let shown = sink.shown.clone();
    let failed = |error| written(&shown, error);
    sink.mode(first.mode & 0o666)?;
    let mut tar = TarWriter::new(sink);
    let mut order = Order::default();
    let (mut next, mut claimed) = (Some(first), 0_u64);
    while let Some(item) = next {
        if order.takes(&item)? {
            claimed = claimed.saturating_add(extent(&item));
            if claimed > room {
                return Err(too_large(path, claimed, room));
            }
            let is_file = item.kind == Kind::File;
            tar.entry(&entry(item), None).map_err(failed)?;
            if is_file {
                incoming.content(|piece| {
                    match piece {
                        Content::Data(bytes) => tar.content(bytes),
                        Content::Hole(length) => zeros(length, |zeros| tar.content(zeros)),
                    }
                    .map_err(failed)
                })?;
            }
        } else {
            let name = item.place.join(&b'/');
            let notice = || format!("{}: a link to what was left out", show(&name));
            incoming.report.skip(notice);
        }
        next = incoming.item()?;
    }
    let sink = tar.finish().map_err(failed)?;
    sink.finish(ArtifactKind::Directory, incoming.report.skipped)
}

/// What of a tar an item takes, at most.
fn extent(item: &Item) -> u64 {
    let name: usize = item.place.iter().map(|part| part.len() + 1).sum();
    let link = match &item.kind {
        Kind::Symlink(target) => target.len(),
        Kind::HardLink(target) => target.iter().map(|part| part.len() + 1).sum(),
        _ => 0,
    };
    let xattrs: usize = item
        .xattrs
        .iter()
        .map(|(name, value)| name.len() + value.len() + 64)
        .sum();
    // A long name stands there twice.
    let names = 2 * (name + link) as u64 + xattrs as u64;
    HEADERS.saturating_add(names).saturating_add(item.size)
}

fn entry(item: Item) -> Entry {
    let kind = match item.kind {
        Kind::File => EntryKind::File,
        Kind::Directory => EntryKind::Directory,
        Kind::Symlink(target) => EntryKind::Symlink(target),
        Kind::HardLink(target) => EntryKind::HardLink(target.join(&b'/')),
        Kind::Character(major, minor) => EntryKind::Character(major, minor),
        Kind::Block(major, minor) => EntryKind::Block(major, minor),
        Kind::Fifo => EntryKind::Fifo,
    };
    Entry {
        path: item.place.join(&b'/'),
        kind,
        mode: item.mode,
        uid: item.uid,
        gid: item.gid,
        mtime: item.mtime,
        size: item.size,
        xattrs: item.xattrs,
    }
}

/// Holds a stream to the order of a tree, so that whoever unpacks the tar is led nowhere: nothing comes
/// twice, and everything below a directory that came right before it.
#[derive(Default)]
struct Order {
    /// The directory that things come below now, from the top.
    folder: Place,
    /// The places that came, by a hash with a key nobody knows, and whether they may get further names.
    seen: HashMap<u64, bool>,
    key: RandomState,
}

impl Order {
    /// Whether the item belongs into the tar; not so a further name of something that does not.
    fn takes(&mut self, item: &Item) -> Result<bool, CopyError> {
        let above = item.place.len().saturating_sub(1);
        if !self.folder.starts_with(&item.place[..above]) {
            return Err(refused(item, "does not come below its directory"));
        }
        if let Kind::HardLink(target) = &item.kind
            && self.seen.get(&self.key.hash_one(target)) != Some(&true)
        {
            return Ok(false);
        }
        let has_names = item.kind != Kind::Directory;
        let place = self.key.hash_one(&item.place);
        if self.seen.insert(place, has_names).is_some() {
            return Err(refused(item, "comes twice"));
        }
        self.folder.truncate(above);
        if item.kind == Kind::Directory {
            self.folder.clone_from(&item.place);
        }
        Ok(true)
    }
}

/// Where an artifact's bytes go: into a sum, and into a file without a name yet.
struct Sink<'f> {
    file: Option<(&'f Folder, Temporary, File)>,
    /// What the file is called in messages.
    shown: PathBuf,
    hasher: Hasher,
    size: u64,
}

impl<'f> Sink<'f> {
    fn new(into: Option<&'f Folder>) -> Result<Self, CopyError> {
        let shown = into.map_or_else(PathBuf::new, |folder| folder.path.clone());
        let file = match into {
            Some(folder) => {
                let made = Temporary::file(&folder.open);
                let mut temporary = made.map_err(|error| written(&shown, error))?;
                let file = temporary.file_mut(&shown)?;
                Some((folder, temporary, file))
            }
            None => None,
        };
        Ok(Self {
            file,
            shown,
            hasher: Hasher::default(),
            size: 0,
        })
    }

    /// The file's permissions; its owner may always read and write it.
    fn mode(&self, mode: u16) -> Result<(), CopyError> {
        let Some((.., file)) = &self.file else {
            return Ok(());
        };
        let mode = u32::from(mode & 0o777 | 0o600);
        set_mode(file, mode).map_err(|error| written(&self.shown, error))
    }

    fn finish(self, kind: ArtifactKind, skipped: u64) -> Result<Taken<'f>, CopyError> {
        let file = match self.file {
            Some((folder, temporary, file)) => {
                // A hole at the end is only there once the size is.
                file.set_len(self.size)
                    .and_then(|()| file.sync_all())
                    .map_err(|error| written(&self.shown, error))?;
                Some((folder, temporary))
            }
            None => None,
        };
        Ok(Taken {
            kind,
            size: self.size,
            sha256: self.hasher.finish().hex(),
            skipped,
            file,
        })
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        let Some((.., file)) = &mut self.file else {
            return Ok(());
        };
        for piece in bytes.chunks(PIECE) {
            if piece.len() >= HOLE && piece.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(piece.len() as i64))?;
            } else {
                file.write_all(piece)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives that many zeros to `write`, in pieces.
fn zeros(length: u64, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    static ZEROS: [u8; PIECE] = [0; PIECE];
    let mut left = length;
    while left > 0 {
        let count = usize::try_from(left)
            .unwrap_or(ZEROS.len())
            .min(ZEROS.len());
        write(&ZEROS[..count])?;
        left -= count as u64;
    }
    Ok(())
}

fn written(path: &Path, source: io::Error) -> CopyError {
    CopyError::System {
        doing: "write to",
        path: path.to_owned(),
        source,
    }
}

fn refused(item: &Item, reason: &str) -> CopyError {
    CopyError::Refused {
        entry: show(&item.place.join(&b'/')),
        reason: reason.to_owned(),
    }
}

fn too_large(path: &CopyPath, size: u64, room: u64) -> CopyError {
    CopyError::TooMuch {
        path: path.as_str().into(),
        reason: format!(
            "takes {size} bytes with its holes filled, and its machine has room for {room}; \
             `microagent cp` takes files with holes"
        ),
    }
}
