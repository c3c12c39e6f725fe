//! Landing a tar stream on the disk of a workspace that does not run: as its guest would, and all of
//! it or nothing.

use std::{
    collections::{HashMap, HashSet},
    fs::OpenOptions,
    io::BufRead,
    path::PathBuf,
};

use microagent_ext4::{Attributes, Change, FileKind, Inode, Meta, ROOT, Volume};
use microagent_files::{CopyError, Incoming, Item, Kind, Place, Policy, tar::Content};
use microagent_host::fs::name_of;
use microagent_protocol::{CopyIn, CopyReport, Landing, Shipment};

use super::overlay::{Disk, DiskError, Found, OPAQUE, Overlay, UPPER};

/// Directories that are made on the way.
const DEFAULT_MODE: u16 = 0o755;

/// Lands `input` where the request says, on the disk at `scratch` over the one at `base`.
pub(super) fn land_overlay(
    base: PathBuf,
    scratch: PathBuf,
    input: impl BufRead,
    request: &CopyIn,
    policy: &Policy,
) -> Result<CopyReport, DiskError> {
    let overlay = Overlay::new(Disk::open_base(base)?, Some(Disk::open(scratch.clone())?));
    let destination = Destination::find(&overlay, request)?;
    let (base, _) = overlay.into_parts();
    let mut incoming = Incoming::new(input, &request.landing, policy, destination.rename);
    let mut lander = Lander::begin(base, scratch, destination.base.clone())?;
    for length in 0..destination.base.len() {
        lander.folder(&destination.base[..=length])?;
    }
    while let Some(item) = incoming.item()? {
        lander.one(&item, destination.made, &mut incoming)?;
    }
    lander.commit()?;
    Ok(incoming.report)
}

/// Where a copy lands.
struct Destination {
    /// The directory that everything goes below.
    base: Place,
    /// What the top of the stream is called there, if not as in the stream.
    rename: Option<Vec<u8>>,
    /// Whether `base` is made for this.
    made: bool,
}

impl Destination {
    fn find(overlay: &Overlay, request: &CopyIn) -> Result<Self, DiskError> {
        let CopyIn { path, landing } = request;
        let path = path.as_str();
        let found = overlay.resolve(path, true)?;
        let conflict = |reason| CopyError::Conflict {
            path: path.into(),
            reason,
        };
        match found {
            Found::There { place, node } if node.kind() == FileKind::Directory => Ok(Self {
                base: place,
                rename: None,
                made: false,
            }),
            Found::There { mut place, .. } => {
                if landing.shipment != Shipment::Named || landing.into_directory {
                    return Err(conflict("is there, but it is not a directory").into());
                }
                Ok(Self {
                    rename: place.pop(),
                    base: place,
                    made: false,
                })
            }
            Found::Missing { place, rest } => Self::missing(landing, place, rest, path),
        }
    }

    /// A destination of which `place` is there and `rest` is not.
    fn missing(
        landing: &Landing,
        mut place: Place,
        mut rest: Place,
        path: &str,
    ) -> Result<Self, DiskError> {
        let becomes = landing.shipment == Shipment::Named && !landing.into_directory;
        let rename = if becomes { rest.pop() } else { None };
        // What would have to be made on the way, and whether that was asked for.
        let on_the_way = match (landing.shipment, landing.parents) {
            (_, true) => 0,
            (Shipment::Contents, false) => rest.len().saturating_sub(1),
            (Shipment::Named | Shipment::Archive, false) => rest.len(),
        };
        if on_the_way > 0 {
            let mut wanted = place;
            wanted.extend(rest);
            if landing.shipment == Shipment::Contents {
                wanted.pop();
            }
            return Err(CopyError::NoDirectory {
                path: shown(&wanted),
            }
            .into());
        }
        if becomes && rename.is_none() {
            return Err(CopyError::NoDirectory { path: path.into() }.into());
        }
        place.extend(rest);
        Ok(Self {
            base: place,
            rename,
            made: !becomes,
        })
    }
}

/// A directory on the upper disk, and what of the lower one shows in it.
#[derive(Clone, Debug)]
struct Folder {
    upper: u32,
    lower: Option<Inode>,
}

struct Lander {
    base: Disk,
    scratch: PathBuf,
    change: Change,
    /// Where the destination is, from the root.
    destination: Place,
    folders: HashMap<Place, Folder>,
    /// The names in directories of the lower disk that were looked into.
    lower_names: HashMap<u32, HashMap<Vec<u8>, u32>>,
    /// Files of this stream, which alone may get further names from it.
    files: HashSet<u32>,
}

impl Lander {
    fn begin(base: Disk, scratch: PathBuf, destination: Place) -> Result<Self, DiskError> {
        let failed = |error| DiskError::Disk {
            path: scratch.clone(),
            error,
        };
        let file = OpenOptions::new().read(true).write(true).open(&scratch);
        let file = file.map_err(|source| {
            failed(microagent_ext4::Error::Io {
                doing: "open",
                source,
            })
        })?;
        let mut change = Change::begin(file).map_err(failed)?;
        let upper = root(&mut change).map_err(failed)?;
        let lower = base.volume.inode(ROOT).map_err(|error| DiskError::Disk {
            path: base.path.clone(),
            error,
        })?;
        let root = Folder {
            upper,
            lower: Some(lower),
        };
        Ok(Self {
            base,
            change,
            destination,
            folders: HashMap::from([(Place::new(), root)]),
            lower_names: HashMap::new(),
            files: HashSet::new(),
            scratch,
        })
    }

    fn commit(self) -> Result<(), DiskError> {
        let path = self.scratch;
        self.change
            .commit()
            .map_err(|error| DiskError::Disk { path, error })
    }

    fn one(
        &mut self,
        item: &Item,
        made: bool,
        incoming: &mut Incoming<impl BufRead>,
    ) -> Result<(), DiskError> {
        let place = [&self.destination[..], &item.place[..]].concat();
        if item.kind == Kind::Directory {
            let folder = self.folder(&place)?;
            // A destination that was there stays what it is.
            if !item.place.is_empty() || made {
                self.dress(folder.upper, item)?;
            }
            incoming.report.directories += u64::from(!item.place.is_empty());
            return Ok(());
        }
        let Some((name, above)) = place.split_last() else {
            return Ok(());
        };
        let folder = self.folder(above)?;
        if self.is_directory(&folder, name)? {
            return Err(CopyError::Conflict {
                path: shown(&place),
                reason: "is a directory; a file does not take its place",
            }
            .into());
        }
        let number = self.make(item, &folder, incoming)?;
        self.on_scratch(|change| change.link(folder.upper, name, number))?;
        incoming.report.files += 1;
        Ok(())
    }

    /// Makes what an item is; gives its inode, which may have other names.
    fn make(
        &mut self,
        item: &Item,
        folder: &Folder,
        incoming: &mut Incoming<impl BufRead>,
    ) -> Result<u32, DiskError> {
        let meta = meta(item);
        let near = folder.upper;
        let kind = match &item.kind {
            Kind::File => {
                incoming.report.bytes = incoming.report.bytes.saturating_add(item.size);
                return self.file(item, near, incoming);
            }
            Kind::HardLink(target) => return self.target(target, item),
            Kind::Symlink(target) => {
                let number = self.on_scratch(|change| change.make_symlink(target, meta, near))?;
                self.files.insert(number);
                return Ok(number);
            }
            Kind::Character(0, 0) => {
                // In a guest that would hide what is below it.
                let reason = "is a device that stands for a removed file";
                return Err(refused(item, reason).into());
            }
            Kind::Character(major, minor) => FileKind::Character(*major, *minor),
            Kind::Block(major, minor) => FileKind::Block(*major, *minor),
            Kind::Fifo => FileKind::Fifo,
            Kind::Directory => FileKind::Directory,
        };
        let number = self.on_scratch(|change| change.make_special(kind, meta, near))?;
        self.files.insert(number);
        Ok(number)
    }

    fn file(
        &mut self,
        item: &Item,
        near: u32,
        incoming: &mut Incoming<impl BufRead>,
    ) -> Result<u32, DiskError> {
        let mut file = self.on_scratch(|change| change.make_file(meta(item), near))?;
        let mut failed = None;
        let change = &mut self.change;
        let taken = incoming.content(|piece| {
            let done = match piece {
                Content::Data(bytes) => file.write(change, bytes),
                Content::Hole(length) => file.hole(change, length),
            };
            done.map_err(|error| {
                failed = Some(error);
                refused(item, "cannot be written")
            })
        });
        if let Some(error) = failed {
            return Err(self.failed(error));
        }
        taken?;
        let number = self.on_scratch(|change| file.finish(change))?;
        self.on_scratch(|change| change.set_attributes(number, &item.xattrs))?;
        self.files.insert(number);
        Ok(number)
    }

    /// The file of this stream that a link is another name for.
    fn target(&mut self, target: &Place, item: &Item) -> Result<u32, DiskError> {
        let place = [&self.destination[..], &target[..]].concat();
        let missing = || refused(item, "is a link to a file that did not come before it");
        let (name, above) = place.split_last().ok_or_else(missing)?;
        let folder = self.folders.get(above).cloned().ok_or_else(missing)?;
        let number = self
            .on_scratch(|change| change.lookup(folder.upper, name))?
            .filter(|number| self.files.contains(number))
            .ok_or_else(missing)?;
        Ok(number)
    }

    /// The directory at a place from the root, on the upper disk: copied up, or made.
    fn folder(&mut self, place: &[Vec<u8>]) -> Result<Folder, DiskError> {
        if let Some(folder) = self.folders.get(place) {
            return Ok(folder.clone());
        }
        let Some((name, above)) = place.split_last() else {
            return Err(CopyError::Missing { path: "/".into() }.into());
        };
        let parent = self.folder(above)?;
        let lower = self.lower(&parent, name)?;
        let lower = lower.filter(|lower| lower.kind() == FileKind::Directory);
        let blocked = || CopyError::Conflict {
            path: shown(place),
            reason: "cannot be a directory or below one: a file or a symbolic link is in the way, \
                     and links are not followed",
        };
        let folder = match self.upper(&parent, name)? {
            Upper::Directory(upper) => {
                let attributes = self.on_scratch(|change| change.attributes(upper))?;
                let lower = lower.filter(|_| !is_opaque(&attributes));
                Folder { upper, lower }
            }
            Upper::Other => return Err(blocked().into()),
            Upper::Removed => {
                // What was there before must not show again.
                let opaque = vec![(OPAQUE.to_vec(), b"y".to_vec())];
                let upper = self.make_folder(&parent, name, &opaque)?;
                Folder { upper, lower: None }
            }
            Upper::Nothing => match lower {
                Some(lower) => {
                    let upper = self.copy_up(&parent, name, &lower)?;
                    let lower = Some(lower);
                    Folder { upper, lower }
                }
                None if self.lower(&parent, name)?.is_some() => return Err(blocked().into()),
                None => {
                    let upper = self.make_folder(&parent, name, &Attributes::new())?;
                    Folder { upper, lower: None }
                }
            },
        };
        self.folders.insert(place.to_vec(), folder.clone());
        Ok(folder)
    }

    fn make_folder(
        &mut self,
        parent: &Folder,
        name: &[u8],
        attributes: &Attributes,
    ) -> Result<u32, DiskError> {
        let meta = Meta {
            mode: DEFAULT_MODE,
            uid: 0,
            gid: 0,
            mtime: self.change.now(),
        };
        self.on_scratch(|change| change.make_directory(parent.upper, name, meta, attributes))
    }

    /// Makes a directory of the lower disk one of the upper disk, too.
    fn copy_up(&mut self, parent: &Folder, name: &[u8], lower: &Inode) -> Result<u32, DiskError> {
        let mut attributes = self.on_base(|volume| volume.attributes(lower))?;
        // What made it part of another overlay is not for this one.
        attributes.retain(|(name, _)| !name.starts_with(b"trusted.overlay."));
        let meta = Meta {
            mode: lower.mode(),
            uid: lower.uid(),
            gid: lower.gid(),
            mtime: lower.mtime(),
        };
        self.on_scratch(|change| change.make_directory(parent.upper, name, meta, &attributes))
    }

    /// What a name in a directory is on the upper disk.
    fn upper(&mut self, folder: &Folder, name: &[u8]) -> Result<Upper, DiskError> {
        self.on_scratch(|change| {
            let Some(number) = change.lookup(folder.upper, name)? else {
                return Ok(Upper::Nothing);
            };
            Ok(match change.inode(number)?.kind() {
                FileKind::Directory => Upper::Directory(number),
                FileKind::Character(0, 0) => Upper::Removed,
                _ => Upper::Other,
            })
        })
    }

    /// What a name in a directory is on the lower disk, as far as that shows.
    fn lower(&mut self, folder: &Folder, name: &[u8]) -> Result<Option<Inode>, DiskError> {
        let Some(lower) = &folder.lower else {
            return Ok(None);
        };
        if !self.lower_names.contains_key(&lower.number()) {
            let entries = self.on_base(|volume| volume.entries(lower))?;
            let names = entries.into_iter().map(|entry| (entry.name, entry.inode));
            self.lower_names.insert(lower.number(), names.collect());
        }
        let number = self
            .lower_names
            .get(&lower.number())
            .and_then(|names| names.get(name));
        number
            .map(|number| self.on_base(|volume| volume.inode(*number)))
            .transpose()
    }

    fn on_base<T>(
        &self,
        doing: impl FnOnce(&Volume) -> microagent_ext4::Result<T>,
    ) -> Result<T, DiskError> {
        doing(&self.base.volume).map_err(|error| DiskError::Disk {
            path: self.base.path.clone(),
            error,
        })
    }

    fn is_directory(&mut self, folder: &Folder, name: &[u8]) -> Result<bool, DiskError> {
        Ok(match self.upper(folder, name)? {
            Upper::Directory(_) => true,
            Upper::Other | Upper::Removed => false,
            Upper::Nothing => self
                .lower(folder, name)?
                .is_some_and(|lower| lower.kind() == FileKind::Directory),
        })
    }

    /// Gives a directory what its entry says; what makes it part of an overlay stays.
    fn dress(&mut self, upper: u32, item: &Item) -> Result<(), DiskError> {
        let mut attributes = self.on_scratch(|change| change.attributes(upper))?;
        attributes.retain(|(name, _)| item.xattrs.iter().all(|(other, _)| other != name));
        attributes.extend(item.xattrs.iter().cloned());
        let meta = meta(item);
        self.on_scratch(|change| {
            change.set_attributes(upper, &attributes)?;
            change.set_meta(upper, meta)
        })
    }

    fn on_scratch<T>(
        &mut self,
        doing: impl FnOnce(&mut Change) -> microagent_ext4::Result<T>,
    ) -> Result<T, DiskError> {
        doing(&mut self.change).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: microagent_ext4::Error) -> DiskError {
        DiskError::Disk {
            path: self.scratch.clone(),
            error,
        }
    }
}

/// What a name is on the upper disk.
enum Upper {
    Nothing,
    Directory(u32),
    /// What the lower disk has of that name is removed.
    Removed,
    Other,
}

/// The upper directory, made as the guest makes it at its first boot.
fn root(change: &mut Change) -> microagent_ext4::Result<u32> {
    if let Some(upper) = change.lookup(ROOT, UPPER)? {
        return Ok(upper);
    }
    let meta = Meta {
        mode: DEFAULT_MODE,
        uid: 0,
        gid: 0,
        mtime: change.now(),
    };
    change.make_directory(ROOT, UPPER, meta, &Attributes::new())
}

fn is_opaque(attributes: &Attributes) -> bool {
    attributes
        .iter()
        .any(|(name, value)| name == OPAQUE && value == b"y")
}

fn meta(item: &Item) -> Meta {
    Meta {
        mode: item.mode,
        uid: item.uid,
        gid: item.gid,
        mtime: item.mtime,
    }
}

fn refused(item: &Item, reason: &str) -> CopyError {
    CopyError::Refused {
        entry: microagent_files::show(&item.place.join(&b'/')),
        reason: reason.to_owned(),
    }
}

fn shown(place: &[Vec<u8>]) -> PathBuf {
    let mut path = PathBuf::from("/");
    path.extend(place.iter().map(|part| name_of(part)));
    path
}
