//! Landing a tar stream in a directory of this system.
//!
//! Nothing in the stream leads the landing out of the destination: each component of a name is
//! opened below the one before it, and none of them may be a symbolic link. A file appears under
//! its name when it is complete, in place of what was there; a stream that breaks off, or a disk
//! that is full, leaves the old one.

mod destination;
mod ground;
mod temporary;

use std::{
    collections::HashSet,
    ffi::OsStr,
    io::{BufRead, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use microagent_protocol::{CopyReport, Landing};
use rustix::{
    fs::{
        AtFlags, Dev, FileType, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat,
        fchmod, fchown, fstat, futimens, utimensat,
    },
    process::geteuid,
};

pub use self::temporary::Temporary;
use self::{destination::Destination, ground::Ground};
use crate::{
    attributes,
    error::{Context, CopyError},
    incoming::{Incoming, Item, Kind, Place, Policy},
    show,
    tar::Content,
};

/// The most directories of one landing, whose times and modes are set at its end.
const MAX_DIRECTORIES: usize = 1 << 18;
/// The most bytes of their names, which are held until then.
const MAX_NAMES: usize = 64 << 20;

/// Lands what `input` brings at `destination`.
///
/// # Errors
/// Whatever is wrong with the stream or the destination. What was complete by then stays.
pub fn land(
    input: impl BufRead,
    destination: &Path,
    landing: &Landing,
    policy: &Policy,
) -> Result<CopyReport, CopyError> {
    let Destination { base, rename, made } = Destination::find(destination, landing)?;
    let mut incoming = Incoming::new(input, landing, policy, rename);
    let mut lander = Lander {
        ground: Ground::new(&base)?,
        base,
        made,
        owns: geteuid().is_root(),
        directories: Later::default(),
        files: HashSet::new(),
    };
    let landed = lander.all(&mut incoming);
    // What came of a tree that broke off is to be usable, too.
    let settled = lander.settle();
    landed.and(settled)?;
    Ok(incoming.report)
}

struct Lander {
    ground: Ground,
    /// Where it is, for messages.
    base: PathBuf,
    /// Whether the destination is new, so that its own entry counts.
    made: bool,
    /// Whether files can be given away.
    owns: bool,
    /// Directories whose owners, modes and times are set last, when nothing in them changes any more.
    directories: Later,
    /// The files of this stream, which alone may get further names from it. A number alone says
    /// nothing: other file systems may be mounted below the destination.
    files: HashSet<(Dev, u64)>,
}

impl Lander {
    fn all<R: BufRead>(&mut self, incoming: &mut Incoming<R>) -> Result<(), CopyError> {
        while let Some(item) = incoming.item()? {
            self.one(item, incoming)?;
        }
        Ok(())
    }

    fn one<R: BufRead>(&mut self, item: Item, incoming: &mut Incoming<R>) -> Result<(), CopyError> {
        let shown = self.shown(&item.place);
        let Some((name, above)) = item.place.split_last() else {
            return match self.made {
                true => self.directory(item, &shown),
                false => Ok(()),
            };
        };
        let parent = self.ground.folder(above, &shown)?;
        if let Kind::Directory = item.kind {
            ground::make_directory(parent, name, &shown)?;
            incoming.report.directories += 1;
            return self.directory(item, &shown);
        }
        let temporary = match &item.kind {
            Kind::File => {
                incoming.report.bytes = incoming.report.bytes.saturating_add(item.size);
                self.file(&item, incoming, &shown)?
            }
            Kind::HardLink(target) => self.hard_link(target, &item.place, &shown)?,
            Kind::Symlink(target) => {
                let link = Temporary::symlink(parent, target).context("make", &shown)?;
                self.dress_link(&link, &item, &shown)?;
                link
            }
            Kind::Character(major, minor) => {
                let device = rustix::fs::makedev(*major, *minor);
                self.special(&item, FileType::CharacterDevice, device, &shown)?
            }
            Kind::Block(major, minor) => {
                let device = rustix::fs::makedev(*major, *minor);
                self.special(&item, FileType::BlockDevice, device, &shown)?
            }
            Kind::Fifo => self.special(&item, FileType::Fifo, 0, &shown)?,
            // Above.
            Kind::Directory => return Ok(()),
        };
        incoming.report.files += 1;
        let parent = self.ground.folder(above, &shown)?;
        temporary.publish(parent, name, &shown)
    }

    /// Sets a directory's attributes; what may change yet is for the end.
    fn directory(&mut self, mut item: Item, shown: &Path) -> Result<(), CopyError> {
        let xattrs = std::mem::take(&mut item.xattrs);
        if !xattrs.is_empty() {
            let folder = self.ground.open(&item.place, shown)?;
            for (name, value) in &xattrs {
                attributes::set(&folder, name, value).context("set an attribute of", shown)?;
            }
        }
        self.directories
            .push(item, MAX_NAMES)
            .map_err(|reason| CopyError::TooMuch {
                path: shown.to_owned(),
                reason,
            })
    }

    fn file<R: BufRead>(
        &mut self,
        item: &Item,
        incoming: &mut Incoming<R>,
        shown: &Path,
    ) -> Result<Temporary, CopyError> {
        let above = item.place.split_last().map_or(&[][..], |(_, above)| above);
        let parent = self.ground.folder(above, shown)?;
        let mut temporary = Temporary::file(parent).context("make", shown)?;
        let mut file = temporary.file_mut(shown)?;
        incoming.content(|piece| match piece {
            Content::Data(bytes) => file.write_all(bytes).context("write", shown),
            Content::Hole(length) => {
                let length = i64::try_from(length)
                    .map_err(|_| CopyError::refused(b"", "has too large a hole"))?;
                let moved = file.seek(SeekFrom::Current(length));
                moved.map(|_| ()).context("write", shown)
            }
        })?;
        // A hole at the end is only there once the size is.
        file.set_len(item.size).context("write", shown)?;
        if self.owns {
            let (owner, group) = owner(item);
            fchown(&file, owner, group).context("give away", shown)?;
        }
        fchmod(&file, mode(item)).context("set the mode of", shown)?;
        self.attributes(&file, item, incoming, shown)?;
        futimens(&file, &times(item)).context("set the time of", shown)?;
        let stat = fstat(&file).context("look at", shown)?;
        self.files.insert((stat.st_dev, stat.st_ino));
        Ok(temporary)
    }

    fn attributes<R: BufRead>(
        &self,
        file: impl AsFd,
        item: &Item,
        incoming: &mut Incoming<R>,
        shown: &Path,
    ) -> Result<(), CopyError> {
        for (name, value) in &item.xattrs {
            if !attributes::set(&file, name, value).context("set an attribute of", shown)? {
                incoming.report.skip(|| {
                    let name = show(name);
                    format!("attribute {name} of {}: not possible here", shown.display())
                });
            }
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        target: &Place,
        place: &Place,
        shown: &Path,
    ) -> Result<Temporary, CopyError> {
        let refused = |reason: &str| CopyError::refused(&place.join(&b'/'), reason);
        let Some((target_name, target_above)) = target.split_last() else {
            return Err(refused("is a link to the destination itself"));
        };
        let folder = self.ground.open(target_above, shown)?;
        let stat = rustix::fs::statat(
            &folder,
            OsStr::from_bytes(target_name),
            AtFlags::SYMLINK_NOFOLLOW,
        );
        let known = stat.is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) != FileType::Directory
                && self.files.contains(&(stat.st_dev, stat.st_ino))
        });
        if !known {
            return Err(refused("is a link to a file that did not come before it"));
        }
        let above = place.split_last().map_or(&[][..], |(_, above)| above);
        let parent = self.ground.folder(above, shown)?;
        Temporary::hard_link(parent, &folder, target_name).context("make", shown)
    }

    fn special(
        &mut self,
        item: &Item,
        kind: FileType,
        device: Dev,
        shown: &Path,
    ) -> Result<Temporary, CopyError> {
        let above = item.place.split_last().map_or(&[][..], |(_, above)| above);
        let parent = self.ground.folder(above, shown)?;
        let node = Temporary::node(parent, kind, device).context("make", shown)?;
        self.dress_link(&node, item, shown)?;
        if let Some((folder, name)) = node.place() {
            chmodat(folder, name, mode(item), AtFlags::empty())
                .context("set the mode of", shown)?;
        }
        Ok(node)
    }

    /// Owner and time of something that is not opened.
    fn dress_link(
        &mut self,
        thing: &Temporary,
        item: &Item,
        shown: &Path,
    ) -> Result<(), CopyError> {
        // A link is known by its own number, for further names of it.
        let Some((folder, name)) = thing.place() else {
            return Ok(());
        };
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statat(folder, name, flags).context("look at", shown)?;
        self.files.insert((stat.st_dev, stat.st_ino));
        if self.owns {
            let (owner, group) = owner(item);
            chownat(folder, name, owner, group, flags).context("give away", shown)?;
        }
        utimensat(folder, name, &times(item), flags).context("set the time of", shown)
    }

    /// Gives the directories their owners, modes and times, inner ones first.
    fn settle(&mut self) -> Result<(), CopyError> {
        let mut first = Ok(());
        for (place, item) in std::mem::take(&mut self.directories).last_first() {
            let shown = self.shown(&place);
            let done = self
                .ground
                .open(&place, &shown)
                .and_then(|folder| self.dress(&folder, &item, &shown));
            // Every directory gets its chance; the first failure is the one to report.
            first = first.and(done);
        }
        first
    }

    fn dress(&self, folder: &OwnedFd, item: &Item, shown: &Path) -> Result<(), CopyError> {
        if self.owns {
            let (owner, group) = owner(item);
            fchown(folder, owner, group).context("give away", shown)?;
        }
        fchmod(folder, mode(item)).context("set the mode of", shown)?;
        futimens(folder, &times(item)).context("set the time of", shown)
    }

    fn shown(&self, place: &Place) -> PathBuf {
        let mut path = self.base.clone();
        path.extend(place.iter().map(|part| OsStr::from_bytes(part)));
        path
    }
}

/// Directories of which something is done at the end. There may be many: of each no more is held than is needed.
#[derive(Default)]
struct Later {
    directories: Vec<(Box<[u8]>, Item)>,
    names: usize,
}

impl Later {
    /// One more; `most` bytes of names are held. Gives why not.
    fn push(&mut self, mut item: Item, most: usize) -> Result<(), String> {
        if self.directories.len() == MAX_DIRECTORIES {
            return Err(format!(
                "is one too many; at most {MAX_DIRECTORIES} are taken"
            ));
        }
        let name = std::mem::take(&mut item.place).join(&b'/');
        self.names += name.len();
        if self.names > most {
            return Err(format!(
                "is one too many; at most {most} bytes of names of directories are taken"
            ));
        }
        self.directories.push((name.into_boxed_slice(), item));
        Ok(())
    }

    fn last_first(self) -> impl Iterator<Item = (Place, Item)> {
        let place = |name: &[u8]| -> Place {
            let parts = name.split(|byte| *byte == b'/');
            parts
                .filter(|part| !part.is_empty())
                .map(<[u8]>::to_vec)
                .collect()
        };
        let directories = self.directories.into_iter().rev();
        directories.map(move |(name, item)| (place(&name), item))
    }
}

fn owner(item: &Item) -> (Option<Uid>, Option<Gid>) {
    // The last number would mean "leave it".
    let uid = (item.uid != u32::MAX).then(|| Uid::from_raw(item.uid));
    let gid = (item.gid != u32::MAX).then(|| Gid::from_raw(item.gid));
    (uid, gid)
}

fn mode(item: &Item) -> Mode {
    Mode::from_raw_mode(item.mode.into())
}

fn times(item: &Item) -> Timestamps {
    let (tv_sec, nanos) = item.mtime;
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec,
            tv_nsec: nanos.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_held_are_bounded_and_come_back_last_first() {
        let item = |place: &[&str]| Item {
            place: place.iter().map(|part| part.as_bytes().to_vec()).collect(),
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            xattrs: Vec::new(),
        };
        let places: [&[&str]; 3] = [&[], &["a"], &["a", "b"]];
        let mut later = Later::default();
        for place in places {
            later.push(item(place), 4).unwrap();
        }
        assert!(later.push(item(&["c"]), 4).unwrap_err().contains("4 bytes"));
        let back: Vec<_> = later.last_first().map(|(place, _)| place).collect();
        let wanted: Vec<_> = places.iter().rev().map(|place| item(place).place).collect();
        assert_eq!(back, wanted);
    }
}
