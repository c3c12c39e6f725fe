//! Changing a file system as one step: everything of a [`Change`] is there after its commit, or
//! nothing is, whenever the program or the host dies.
//!
//! New content and new metadata go to blocks that are free and stay free until the commit. What
//! takes their place in blocks that are in use (bitmaps, descriptors, inodes) goes through the file
//! system's own journal, so that whoever opens it next, a kernel included, sees all of it or none.
//! A directory that changes is written anew elsewhere, without an index; the kernel takes it so.

mod attributes;
mod blocks;
mod commit;
mod content;
mod folder;
mod groups;
mod inodes;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    time::{SystemTime, UNIX_EPOCH},
};

pub use self::content::NewFile;
use self::{folder::Folder, groups::Groups};
use crate::{
    attributes::Attributes,
    error::{Error, Result},
    extent::Map,
    inode::{FileKind, Inode},
    superblock::{compat, incompat, ro_compat},
    volume::Volume,
};

/// The block size of the file systems that are changed here.
const BLOCK: usize = 4096;

/// The longest target of a symbolic link.
const MAX_TARGET: usize = 4095;

/// What a file is besides its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits (`0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
}

/// A change of a file system that is not in use.
#[derive(Debug)]
pub struct Change {
    volume: Volume,
    groups: Groups,
    /// Inodes as they are to be.
    inodes: BTreeMap<u32, Vec<u8>>,
    folders: HashMap<u32, Folder>,
    /// Blocks in use that change by themselves: those of attributes that files share.
    shared: BTreeMap<u64, Vec<u8>>,
    now: (i64, u32),
}

impl Change {
    /// Begins to change the file system in `file`, which is open for reading and writing and which
    /// nobody else uses. What its journal holds is put in its place first.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a file system of a kind that is only read here, [`Error::Damaged`].
    pub fn begin(file: File) -> Result<Self> {
        let mut volume = Volume::open(file)?;
        let superblock = volume.superblock();
        let strange = [
            superblock.incompat & (incompat::EA_INODE | incompat::CSUM_SEED | incompat::LARGEDIR),
            superblock.ro_compat & !ro_compat::KNOWN,
            superblock.compat & !compat::KNOWN,
        ];
        let suits = strange == [0; 3]
            && superblock.ro_compat & ro_compat::METADATA_CSUM != 0
            && superblock.compat & compat::HAS_JOURNAL != 0
            && superblock.block_size == BLOCK
            && superblock.inode_size == 256;
        if !suits {
            return Err(Error::unknown(format!(
                "a layout that is only read (features {strange:x?})"
            )));
        }
        if superblock.has_errors() {
            return Err(Error::damaged("its kernel found errors in it"));
        }
        if superblock.needs_recovery() {
            volume = commit::recover(volume)?;
        }
        let groups = Groups::read(&volume)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Self {
            groups,
            volume,
            inodes: BTreeMap::new(),
            folders: HashMap::new(),
            shared: BTreeMap::new(),
            now: (
                i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
                now.subsec_nanos(),
            ),
        })
    }

    /// The file system as it is without the change.
    #[must_use]
    pub fn before(&self) -> &Volume {
        &self.volume
    }

    /// The present time, which new files get where nothing else is said.
    #[must_use]
    pub fn now(&self) -> (i64, u32) {
        self.now
    }

    /// An inode as it is to be.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is no such inode.
    pub fn inode(&self, number: u32) -> Result<Inode> {
        match self.inodes.get(&number) {
            Some(raw) => Inode::parse(number, raw.clone()),
            None => self.volume.inode(number),
        }
    }

    /// The extended attributes that an inode had before the change; those of a new one are what
    /// they were set to.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn attributes(&self, number: u32) -> Result<Attributes> {
        match self.groups.fresh_attributes(number) {
            Some(attributes) => Ok(attributes.clone()),
            None => self.volume.attributes(&self.inode(number)?),
        }
    }

    /// What a name in a directory is to stand for.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn lookup(&mut self, folder: u32, name: &[u8]) -> Result<Option<u32>> {
        Ok(self.folder(folder)?.get(name))
    }

    /// Makes an empty directory.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Impossible`].
    pub fn make_directory(
        &mut self,
        parent: u32,
        name: &[u8],
        meta: Meta,
        attributes: &Attributes,
    ) -> Result<u32> {
        let number = self.new_inode(FileKind::Directory, meta, parent)?;
        self.groups.count_directory(number, 1);
        self.folders.insert(number, Folder::new(parent));
        self.set_attributes(number, attributes)?;
        self.link(parent, name, number)?;
        self.adjust_links(parent, 1)?;
        // Its own `.` and its name.
        self.adjust_links(number, 1)?;
        Ok(number)
    }

    /// Makes a symbolic link, which has no name yet.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Impossible`].
    pub fn make_symlink(&mut self, target: &[u8], meta: Meta, near: u32) -> Result<u32> {
        if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
            return Err(Error::Impossible {
                what: "a symbolic link cannot lead to nothing, or to so long a name".to_owned(),
            });
        }
        let number = self.new_inode(FileKind::Symlink, meta, near)?;
        self.set_target(number, target)?;
        Ok(number)
    }

    /// Makes a device, pipe or socket, which has no name yet.
    ///
    /// # Errors
    /// [`Error::Full`].
    pub fn make_special(&mut self, kind: FileKind, meta: Meta, near: u32) -> Result<u32> {
        let number = self.new_inode(kind, meta, near)?;
        self.set_device(number, kind);
        Ok(number)
    }

    /// Gives a file a name, and takes it from what has it.
    ///
    /// # Errors
    /// [`Error::Impossible`] if a directory has the name, or the file has too many.
    pub fn link(&mut self, folder: u32, name: &[u8], number: u32) -> Result<()> {
        if name.is_empty() || name.len() > 255 || name.contains(&b'/') || name.contains(&0) {
            return Err(Error::Impossible {
                what: "a name must have 1 to 255 bytes, none of them a slash or NUL".to_owned(),
            });
        }
        let kind = self.inode(number)?.kind();
        if let Some(old) = self.folder(folder)?.get(name) {
            if old == number {
                return Ok(());
            }
            if self.inode(old)?.kind() == FileKind::Directory {
                return Err(Error::Impossible {
                    what: "a directory does not give its name to something else".to_owned(),
                });
            }
            self.unlink(old)?;
        }
        self.folder(folder)?.put(name, number, kind);
        self.adjust_links(number, 1)
    }

    /// Sets owner, mode and time of a file. Its time stays, whatever else changes about it.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is no such inode.
    pub fn set_meta(&mut self, number: u32, meta: Meta) -> Result<()> {
        self.write_meta(number, meta)?;
        if self.inode(number)?.kind() == FileKind::Directory {
            self.folder(number)?.keep_time();
        }
        Ok(())
    }

    /// The entries of a directory, read when they are needed first.
    fn folder(&mut self, number: u32) -> Result<&mut Folder> {
        if !self.folders.contains_key(&number) {
            let inode = self.inode(number)?;
            let folder = Folder::read(&self.volume, &inode)?;
            self.folders.insert(number, folder);
        }
        self.folders
            .get_mut(&number)
            .ok_or_else(|| Error::damaged("a directory is not there"))
    }

    /// Takes a name from a file; the last one takes the file with it.
    fn unlink(&mut self, number: u32) -> Result<()> {
        if self.inode(number)?.links() > 1 {
            return self.adjust_links(number, -1);
        }
        let inode = self.inode(number)?;
        if !matches!(inode.kind(), FileKind::Symlink) || inode.short_target().is_none() {
            let map = Map::read(&self.volume, &inode)?;
            self.groups.free_map(&map);
        }
        self.drop_attributes(&inode)?;
        self.remove_inode(number)
    }
}
