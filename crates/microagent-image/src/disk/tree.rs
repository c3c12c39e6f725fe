//! The merged root directory in memory: layers are applied to it by the rules of the OCI image specification.
//!
//! Nothing here touches a file system, so a name can lead nowhere but into this tree. The rules, where the
//! specification leaves room, are those of umoci and containerd:
//!
//! - A name, and a hard link's target, begins at the root, with a leading slash or without one.
//! - A parent that an earlier entry made a symbolic link **is followed, inside the root**: absolute targets and `..`
//!   stop at the root as in a chroot (usrmerge images rely on it: `bin/x` lands in `usr/bin/x`). The last component
//!   is never followed. Parents that do not exist are made (0755, root, time 0), also behind a dangling link. A
//!   parent that is a file is an error.
//! - A directory entry over a directory replaces its metadata and keeps its children; anything else replaces whatever
//!   was there, a directory with all it held, a link without following it.
//! - Whiteouts hide what earlier *layers* left, whatever their place in their own layer.
//! - A hard link's metadata is that of the file it names.

mod listing;
mod path;
mod whiteout;

use std::collections::{BTreeMap, HashMap};

use self::path::{Walk, components};
use super::content::{BLOCK, Extents};
use super::error::{EntryFault, LayerFault, show};
use super::limits::Limits;
use super::xattr::XattrSet;
use microagent_files::tar::{Entry, EntryKind};

/// Index of a node.
pub(crate) type NodeId = u32;
/// The root directory.
pub(crate) const ROOT: NodeId = 0;
/// As many names as ext4 lets a file have.
const LINK_MAX: u32 = 65_000;
/// What a node, its directory entry and their allocations cost, roughly.
const NODE_COST: u64 = 160;

/// An inode to be.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) mtime: (i64, u32),
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u16,
    /// Names that point here (directories: always 1).
    pub(crate) links: u32,
    /// Index into [`Tree::xattrs`].
    pub(crate) xattrs: u32,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Directory(Box<Directory>),
    File {
        size: u64,
        extents: Extents,
    },
    Symlink(Box<[u8]>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
    /// A slot that may be used again.
    Free,
}

#[derive(Debug, Clone)]
pub(crate) struct Directory {
    pub(crate) children: BTreeMap<Box<[u8]>, Child>,
    pub(crate) parent: NodeId,
    depth: u32,
    /// The last layer that has an entry here or below.
    touched: u32,
    /// The last layer that hid what was here before it.
    pruned: u32,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    pub(crate) node: NodeId,
    /// The layer that made this name.
    layer: u32,
}

/// Where an entry goes.
pub(crate) struct Place {
    parent: NodeId,
    name: Box<[u8]>,
}

pub(crate) enum Target {
    /// The root itself.
    Root,
    /// A whiteout that was already applied.
    Whiteout,
    /// Somewhere below it.
    Place(Place),
}

/// The root directory of the image.
pub(crate) struct Tree<'l> {
    pub(crate) nodes: Vec<Node>,
    pub(crate) xattrs: Vec<XattrSet>,
    xattr_index: HashMap<XattrSet, u32>,
    free: Vec<NodeId>,
    /// Content that is on the disk but in no file any more: (first block, blocks).
    pub(crate) freed: Vec<(u32, u32)>,
    limits: &'l Limits,
    /// Counted from 1, so that the root made before any layer is older than all.
    layer: u32,
    memory: u64,
    lookups: u64,
    live: u64,
    /// The directory the last entry was in, by its path as written.
    last_parent: Option<(Vec<u8>, NodeId)>,
}

impl<'l> Tree<'l> {
    pub(crate) fn new(limits: &'l Limits) -> Self {
        let empty = XattrSet::default();
        Tree {
            nodes: vec![Node {
                kind: Kind::Directory(Box::new(Directory {
                    children: BTreeMap::new(),
                    parent: ROOT,
                    depth: 0,
                    touched: 0,
                    pruned: 0,
                })),
                mtime: (0, 0),
                uid: 0,
                gid: 0,
                mode: 0o755,
                links: 1,
                xattrs: 0,
            }],
            xattrs: vec![empty.clone()],
            xattr_index: HashMap::from([(empty, 0)]),
            free: Vec::new(),
            freed: Vec::new(),
            limits,
            layer: 0,
            memory: 0,
            lookups: 0,
            live: 1,
            last_parent: None,
        }
    }

    /// Entries of the next layer follow.
    pub(crate) fn begin_layer(&mut self) {
        self.layer += 1;
        self.last_parent = None;
    }

    /// Inodes in the tree.
    pub(crate) fn len(&self) -> u64 {
        self.live
    }

    pub(crate) fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.nodes[id as usize].kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match &mut self.nodes[id as usize].kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// Finds where an entry goes, making missing parents; whiteouts are applied at once.
    pub(crate) fn locate(&mut self, path: &[u8]) -> Result<Target, LayerFault> {
        let fail = |fault| LayerFault::entry(path, fault);
        let mut parts = components(path).map_err(fail)?;
        let Some(name) = parts.pop() else {
            return Ok(Target::Root);
        };
        if parts.iter().any(|part| part.starts_with(b".wh.")) {
            return Err(fail(EntryFault::Whiteout));
        }
        let hidden = name.strip_prefix(b".wh.");
        if matches!(hidden, Some(b"" | b"." | b"..")) {
            return Err(fail(EntryFault::Whiteout));
        }
        let parent = self.parent(path, &parts, hidden.is_none())?;
        match (hidden, parent) {
            (Some(_), None) => Ok(Target::Whiteout),
            (Some(b".wh..opq"), Some(parent)) => {
                self.prune(parent);
                Ok(Target::Whiteout)
            }
            (Some(hidden), Some(parent)) => {
                self.hide(parent, hidden);
                Ok(Target::Whiteout)
            }
            (None, Some(parent)) => Ok(Target::Place(Place {
                parent,
                name: name.into(),
            })),
            (None, None) => Err(fail(EntryFault::ParentNotDirectory(String::new()))),
        }
    }

    /// Puts an entry at its place; `extents` is a file's content, already on the disk.
    pub(crate) fn insert(
        &mut self,
        target: Target,
        entry: &Entry,
        extents: Extents,
    ) -> Result<(), LayerFault> {
        let fail = |fault| LayerFault::entry(&entry.path, fault);
        let place = match target {
            Target::Whiteout => return Ok(()),
            Target::Root if entry.kind == EntryKind::Directory => {
                let xattrs = self.intern(entry)?;
                return self.replace_metadata(ROOT, entry, xattrs);
            }
            Target::Root => return Err(fail(EntryFault::RootType)),
            Target::Place(place) => place,
        };
        if let EntryKind::HardLink(target) = &entry.kind {
            return self.hard_link(&place, entry, target);
        }
        let xattrs = self.intern(entry)?;
        let existing = self.child(place.parent, &place.name);
        if entry.kind == EntryKind::Directory
            && let Some(existing) = existing
            && self.directory(existing.node).is_some()
        {
            self.touch(existing.node);
            return self.replace_metadata(existing.node, entry, xattrs);
        }
        let depth = self.directory(place.parent).map_or(0, |d| d.depth) + 1;
        let kind = match entry.kind {
            EntryKind::Directory => self.new_directory(place.parent, depth, &entry.path)?,
            EntryKind::File => Kind::File {
                size: entry.size,
                extents,
            },
            EntryKind::Symlink(ref target) => {
                if target.is_empty() || target.len() >= BLOCK || target.contains(&0) {
                    return Err(fail(EntryFault::SymlinkTarget));
                }
                Kind::Symlink(target.as_slice().into())
            }
            EntryKind::Character(major, minor) => Kind::Character(major, minor),
            EntryKind::Block(major, minor) => Kind::Block(major, minor),
            EntryKind::Fifo | EntryKind::HardLink(_) => Kind::Fifo,
        };
        let node = Node {
            kind,
            mtime: entry.mtime,
            uid: entry.uid,
            gid: entry.gid,
            mode: entry.mode,
            links: 1,
            xattrs,
        };
        self.remove_child(place.parent, &place.name);
        let id = self.add_node(node, &entry.path)?;
        self.add_name(place.parent, place.name, id, &entry.path)
    }

    /// Frees content that no file got (its entry was refused or is not a file).
    pub(crate) fn release(&mut self, extents: &Extents) {
        self.freed
            .extend(extents.as_slice().iter().map(|e| (e.start, e.length)));
    }

    fn hard_link(&mut self, place: &Place, entry: &Entry, target: &[u8]) -> Result<(), LayerFault> {
        let fail = |fault| LayerFault::entry(&entry.path, fault);
        let mut parts = components(target).map_err(|fault| {
            fail(match fault {
                EntryFault::Traversal => EntryFault::LinkEscapes(show(target)),
                _ => EntryFault::LinkMissing(show(target)),
            })
        })?;
        let Some(name) = parts.pop() else {
            return Err(fail(EntryFault::LinkToDirectory(show(target))));
        };
        let found = match self.walk(&entry.path, &parts) {
            Ok(Walk { missing, .. }) if !missing.is_empty() => None,
            Ok(Walk { directory, .. }) => {
                self.child(directory, name).map(|child| (directory, child))
            }
            Err(LayerFault::Entry {
                fault: EntryFault::ParentNotDirectory(_),
                ..
            }) => None,
            Err(other) => return Err(other),
        };
        let Some((directory, child)) = found else {
            return Err(fail(EntryFault::LinkMissing(show(target))));
        };
        if directory == place.parent && name == &*place.name {
            return Err(fail(EntryFault::LinkToItself));
        }
        if self.directory(child.node).is_some() {
            return Err(fail(EntryFault::LinkToDirectory(show(target))));
        }
        if self.nodes[child.node as usize].links >= LINK_MAX {
            return Err(fail(EntryFault::TooManyLinks));
        }
        // The count rises first, so that replacing another name of the same file cannot free it.
        self.nodes[child.node as usize].links += 1;
        // Replacing a directory that holds the target is fine for the same reason.
        self.remove_child(place.parent, &place.name);
        self.charge(NODE_COST / 2, &entry.path)?;
        self.add_name(place.parent, place.name.clone(), child.node, &entry.path)
    }

    fn replace_metadata(
        &mut self,
        id: NodeId,
        entry: &Entry,
        xattrs: u32,
    ) -> Result<(), LayerFault> {
        let node = &mut self.nodes[id as usize];
        (node.mtime, node.uid, node.gid, node.mode, node.xattrs) =
            (entry.mtime, entry.uid, entry.gid, entry.mode, xattrs);
        Ok(())
    }

    fn intern(&mut self, entry: &Entry) -> Result<u32, LayerFault> {
        if entry.xattrs.is_empty() {
            return Ok(0);
        }
        let set =
            XattrSet::new(&entry.xattrs).map_err(|fault| LayerFault::entry(&entry.path, fault))?;
        if let Some(index) = self.xattr_index.get(&set) {
            return Ok(*index);
        }
        self.charge(2 * set.memory(), &entry.path)?;
        let index = self.xattrs.len() as u32;
        self.xattrs.push(set.clone());
        self.xattr_index.insert(set, index);
        Ok(index)
    }

    fn new_directory(&self, parent: NodeId, depth: u32, path: &[u8]) -> Result<Kind, LayerFault> {
        if u64::from(depth) > self.limits.max_depth {
            return Err(self.limit(
                path,
                "directories above an entry",
                "max_depth",
                self.limits.max_depth,
            ));
        }
        Ok(Kind::Directory(Box::new(Directory {
            children: BTreeMap::new(),
            parent,
            depth,
            touched: self.layer,
            pruned: self.layer,
        })))
    }

    fn add_node(&mut self, node: Node, path: &[u8]) -> Result<NodeId, LayerFault> {
        self.charge(node_cost(&node), path)?;
        self.live += 1;
        if let Some(id) = self.free.pop() {
            self.nodes[id as usize] = node;
            return Ok(id);
        }
        let id = NodeId::try_from(self.nodes.len())
            .map_err(|_| self.limit(path, "entries", "max_entries", self.limits.max_entries))?;
        self.nodes.push(node);
        Ok(id)
    }

    fn add_name(
        &mut self,
        parent: NodeId,
        name: Box<[u8]>,
        node: NodeId,
        path: &[u8],
    ) -> Result<(), LayerFault> {
        self.charge(name.len() as u64, path)?;
        let layer = self.layer;
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.insert(name, Child { node, layer });
        }
        self.touch(parent);
        Ok(())
    }

    /// Marks a directory and those above it as having something of this layer.
    fn touch(&mut self, mut id: NodeId) {
        let layer = self.layer;
        while let Some(directory) = self.directory_mut(id) {
            if directory.touched == layer {
                break;
            }
            directory.touched = layer;
            if id == ROOT {
                break;
            }
            id = directory.parent;
        }
    }

    fn child(&self, parent: NodeId, name: &[u8]) -> Option<Child> {
        self.directory(parent)?.children.get(name).copied()
    }

    fn remove_child(&mut self, parent: NodeId, name: &[u8]) {
        let Some(directory) = self.directory_mut(parent) else {
            return;
        };
        let Some((name, child)) = directory.children.remove_entry(name) else {
            return;
        };
        self.last_parent = None;
        self.memory = self.memory.saturating_sub(name.len() as u64);
        let mut doomed = vec![child.node];
        while let Some(id) = doomed.pop() {
            let node = &mut self.nodes[id as usize];
            node.links -= 1;
            if node.links > 0 {
                self.memory = self.memory.saturating_sub(NODE_COST / 2);
                continue;
            }
            self.memory = self.memory.saturating_sub(node_cost(node));
            self.live -= 1;
            match std::mem::replace(&mut node.kind, Kind::Free) {
                Kind::Directory(directory) => {
                    for (name, child) in directory.children {
                        self.memory = self.memory.saturating_sub(name.len() as u64);
                        doomed.push(child.node);
                    }
                }
                Kind::File { extents, .. } => self.release(&extents),
                _ => {}
            }
            self.free.push(id);
        }
    }

    fn charge(&mut self, bytes: u64, path: &[u8]) -> Result<(), LayerFault> {
        self.memory += bytes;
        if self.memory + 16 * self.freed.len() as u64 > self.limits.max_tree_bytes {
            return Err(self.limit(
                path,
                "bytes of memory for the tree",
                "max_tree_bytes",
                self.limits.max_tree_bytes,
            ));
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence at its callers")]
    fn limit(
        &self,
        path: &[u8],
        what: &'static str,
        field: &'static str,
        limit: u64,
    ) -> LayerFault {
        LayerFault::Limit {
            what,
            field,
            limit,
            entry: show(path),
        }
    }
}

fn node_cost(node: &Node) -> u64 {
    NODE_COST
        + match &node.kind {
            Kind::Directory(_) => 80,
            Kind::File {
                extents: Extents::Many(extents),
                ..
            } => size_of_val::<[_]>(extents) as u64,
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        }
}
