//! A workspace's root as its guest sees it: the scratch disk's upper directory over the base disk,
//! by the rules of the kernel's overlay file system.

use std::{collections::BTreeMap, fs::File, path::PathBuf};

use microagent_disk::JoinedFile;
use microagent_ext4::{Attributes, Content, FileKind, Inode, ROOT, Volume};
use microagent_files::CopyError;

/// Where the guest keeps what it changed.
pub(crate) const UPPER: &[u8] = b"upper";

/// What hides everything below a directory.
pub(super) const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// The most symbolic links on one way.
const MAX_LINKS: u32 = 40;

/// Which disk something is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Layer {
    Upper,
    Lower,
}

/// One or two disks, seen as one tree.
#[derive(Debug)]
pub(super) struct Overlay {
    lower: Disk,
    upper: Option<Disk>,
}

/// A disk and where it is, for messages.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) path: PathBuf,
    pub(super) volume: Volume,
}

impl Disk {
    pub(super) fn open(path: PathBuf) -> Result<Self, DiskError> {
        let failed = |error| DiskError::Disk {
            path: path.clone(),
            error,
        };
        let file = File::open(&path).map_err(|source| failed(unopened(source)))?;
        let volume = Volume::open(file).map_err(failed)?;
        Ok(Self { path, volume })
    }

    /// A base disk, which may be in several files.
    pub(super) fn open_base(path: PathBuf) -> Result<Self, DiskError> {
        if !microagent_disk::is_list(&path) {
            return Self::open(path);
        }
        let opened = JoinedFile::open(&path)
            .map_err(unopened)
            .and_then(Volume::open_joined);
        match opened {
            Ok(volume) => Ok(Self { path, volume }),
            Err(error) => Err(DiskError::Disk { path, error }),
        }
    }
}

fn unopened(source: std::io::Error) -> microagent_ext4::Error {
    microagent_ext4::Error::Io {
        doing: "open",
        source,
    }
}

/// Something in the tree.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// It is on the upper disk, and nothing of the lower one shows.
    Upper(Inode),
    /// It is on the lower disk alone.
    Lower(Inode),
    /// A directory on both: what it is says the upper one, what is in it both.
    Merged {
        /// On the upper disk.
        upper: Inode,
        /// On the lower disk.
        lower: Inode,
    },
}

/// What a path leads to. Places are components from the root, without any links.
#[derive(Debug)]
pub(super) enum Found {
    /// Something.
    There {
        /// Where it is.
        place: Vec<Vec<u8>>,
        /// What it is.
        node: Node,
    },
    /// Nothing.
    Missing {
        /// The last directory on the way that is there.
        place: Vec<Vec<u8>>,
        /// The rest of the way.
        rest: Vec<Vec<u8>>,
    },
}

/// What can be wrong with a way through the tree.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    #[error("{}: {error}", .path.display())]
    Disk {
        path: PathBuf,
        error: microagent_ext4::Error,
    },
    #[error(transparent)]
    Copy(#[from] CopyError),
}

impl Overlay {
    pub(super) fn new(lower: Disk, upper: Option<Disk>) -> Self {
        Self { lower, upper }
    }

    fn disk(&self, layer: Layer) -> &Disk {
        match (layer, &self.upper) {
            (Layer::Upper, Some(upper)) => upper,
            _ => &self.lower,
        }
    }

    /// The root directory.
    pub(super) fn root(&self) -> Result<Node, DiskError> {
        let lower = on(&self.lower, |volume| volume.inode(ROOT))?;
        let upper = match &self.upper {
            // Before the first boot there is none.
            Some(disk) => on(disk, |volume| volume.lookup(&volume.inode(ROOT)?, UPPER))?,
            None => None,
        };
        self.join(upper, Some(lower.clone()))
            .map(|node| node.unwrap_or(Node::Lower(lower)))
    }

    /// What shows of the same name on both disks; nothing if it was removed.
    fn join(&self, upper: Option<Inode>, lower: Option<Inode>) -> Result<Option<Node>, DiskError> {
        let Some(upper) = upper else {
            return Ok(lower.map(Node::Lower));
        };
        if upper.kind() == FileKind::Character(0, 0) {
            return Ok(None);
        }
        let is_directory = |inode: &Inode| inode.kind() == FileKind::Directory;
        Ok(Some(match lower {
            Some(lower)
                if is_directory(&upper) && is_directory(&lower) && !self.is_opaque(&upper)? =>
            {
                Node::Merged { upper, lower }
            }
            _ => Node::Upper(upper),
        }))
    }

    fn is_opaque(&self, upper: &Inode) -> Result<bool, DiskError> {
        let attributes = on(self.disk(Layer::Upper), |volume| volume.attributes(upper))?;
        Ok(attributes
            .iter()
            .any(|(name, value)| name == OPAQUE && value == b"y"))
    }

    /// What a name in a directory stands for.
    pub(super) fn child(&self, folder: &Node, name: &[u8]) -> Result<Option<Node>, DiskError> {
        let find = |layer, folder: Option<&Inode>| match folder {
            Some(folder) => on(self.disk(layer), |volume| volume.lookup(folder, name)),
            None => Ok(None),
        };
        let upper = find(Layer::Upper, folder.upper())?;
        let lower = find(Layer::Lower, folder.lower())?;
        self.join(upper, lower)
    }

    /// Everything in a directory, by name.
    pub(super) fn children(&self, folder: &Node) -> Result<Vec<(Vec<u8>, Node)>, DiskError> {
        let mut names: BTreeMap<Vec<u8>, (Option<u32>, Option<u32>)> = BTreeMap::new();
        if let Some(lower) = folder.lower() {
            for entry in on(&self.lower, |volume| volume.entries(lower))? {
                names.entry(entry.name).or_default().1 = Some(entry.inode);
            }
        }
        if let Some(upper) = folder.upper() {
            for entry in on(self.disk(Layer::Upper), |volume| volume.entries(upper))? {
                names.entry(entry.name).or_default().0 = Some(entry.inode);
            }
        }
        let inode = |layer, number: Option<u32>| {
            number
                .map(|number| on(self.disk(layer), |volume| volume.inode(number)))
                .transpose()
        };
        let mut children = Vec::new();
        for (name, (upper, lower)) in names {
            let node = self.join(inode(Layer::Upper, upper)?, inode(Layer::Lower, lower)?)?;
            if let Some(node) = node {
                children.push((name, node));
            }
        }
        Ok(children)
    }

    /// What is at an absolute path. Links on the way lead inside the tree; the last one is followed
    /// if `follow` says so.
    pub(super) fn resolve(&self, path: &str, follow: bool) -> Result<Found, DiskError> {
        let conflict = |reason| CopyError::Conflict {
            path: path.into(),
            reason,
        };
        let mut left = parts(path.as_bytes());
        let mut way = vec![(Vec::new(), self.root()?)];
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                // The root's parent is the root.
                way.truncate((way.len() - 1).max(1));
                continue;
            }
            let Some((_, folder)) = way.last() else {
                break;
            };
            if folder.kind() != FileKind::Directory {
                let reason = "cannot be reached: something on the way is not a directory";
                return Err(conflict(reason).into());
            }
            let Some(node) = self.child(folder, &name)? else {
                let place = way.into_iter().skip(1).map(|(name, _)| name).collect();
                left.push(name);
                left.reverse();
                return Ok(Found::Missing { place, rest: left });
            };
            if node.kind() != FileKind::Symlink || (left.is_empty() && !follow) {
                way.push((name, node));
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                let reason = "cannot be reached: there are too many symbolic links on the way";
                return Err(conflict(reason).into());
            }
            let target = self.target(&node)?;
            if target.starts_with(b"/") {
                way.truncate(1);
            }
            left.extend(parts(&target));
        }
        let (mut place, mut nodes): (Vec<_>, Vec<_>) = way.into_iter().unzip();
        place.remove(0);
        match nodes.pop() {
            Some(node) => Ok(Found::There { place, node }),
            None => Ok(Found::Missing {
                place,
                rest: Vec::new(),
            }),
        }
    }

    /// The disks.
    pub(super) fn into_parts(self) -> (Disk, Option<Disk>) {
        (self.lower, self.upper)
    }

    /// Where a symbolic link leads.
    pub(super) fn target(&self, link: &Node) -> Result<Vec<u8>, DiskError> {
        let (layer, inode) = link.top();
        on(self.disk(layer), |volume| volume.target(inode))
    }

    /// The extended attributes of a file.
    pub(super) fn attributes(&self, node: &Node) -> Result<Attributes, DiskError> {
        let (layer, inode) = node.top();
        on(self.disk(layer), |volume| volume.attributes(inode))
    }

    /// The content of a file.
    pub(super) fn content(&self, node: &Node) -> Result<Content<'_>, DiskError> {
        let (layer, inode) = node.top();
        let disk = self.disk(layer);
        disk.volume
            .content(inode)
            .map_err(|error| failed(disk, error))
    }

    /// Reads from a file, naming the disk where that fails.
    pub(super) fn read(
        &self,
        node: &Node,
        content: &Content<'_>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), DiskError> {
        let (layer, _) = node.top();
        on(self.disk(layer), |_| content.read_at(offset, buffer))
    }
}

impl Node {
    /// What it is on the upper disk.
    pub(super) fn upper(&self) -> Option<&Inode> {
        match self {
            Self::Upper(upper) | Self::Merged { upper, .. } => Some(upper),
            Self::Lower(_) => None,
        }
    }

    /// What it is on the lower disk, as far as that shows.
    pub(super) fn lower(&self) -> Option<&Inode> {
        match self {
            Self::Lower(lower) | Self::Merged { lower, .. } => Some(lower),
            Self::Upper(_) => None,
        }
    }

    /// What it is, and on which disk: the upper one wins.
    pub(super) fn top(&self) -> (Layer, &Inode) {
        match self {
            Self::Upper(inode) | Self::Merged { upper: inode, .. } => (Layer::Upper, inode),
            Self::Lower(inode) => (Layer::Lower, inode),
        }
    }

    pub(super) fn kind(&self) -> FileKind {
        self.top().1.kind()
    }
}

fn on<T>(
    disk: &Disk,
    doing: impl FnOnce(&Volume) -> microagent_ext4::Result<T>,
) -> Result<T, DiskError> {
    doing(&disk.volume).map_err(|error| failed(disk, error))
}

fn failed(disk: &Disk, error: microagent_ext4::Error) -> DiskError {
    let path = disk.path.clone();
    DiskError::Disk { path, error }
}

/// The components of a path, last first.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .rev()
        .collect()
}
