//! Names to places: a path's components, and where they lead inside the root.

use super::super::error::{EntryFault, LayerFault, show};
use super::{Kind, Node, NodeId, ROOT, Tree};

/// As many symbolic links as Linux follows in one path.
const MAX_SYMLINKS: u32 = 40;

/// How far a path leads, and the names behind the first that is missing.
pub(super) struct Walk {
    pub(super) directory: NodeId,
    pub(super) missing: Vec<Vec<u8>>,
}

impl Tree<'_> {
    /// The directory an entry goes into, made where it is missing and `make` is set.
    pub(super) fn parent(
        &mut self,
        path: &[u8],
        parts: &[&[u8]],
        make: bool,
    ) -> Result<Option<NodeId>, LayerFault> {
        let written = path
            .iter()
            .rposition(|b| *b == b'/')
            .map_or(&[][..], |at| &path[..at]);
        if let Some((last, id)) = &self.last_parent
            && last == written
            && !path.ends_with(b"/")
        {
            return Ok(Some(*id));
        }
        let walk = match self.walk(path, parts) {
            Err(LayerFault::Entry {
                fault: EntryFault::ParentNotDirectory(_),
                ..
            }) if !make => return Ok(None),
            other => other?,
        };
        let mut id = walk.directory;
        if !walk.missing.is_empty() && !make {
            return Ok(None);
        }
        for name in walk.missing {
            let depth = self.directory(id).map_or(0, |d| d.depth) + 1;
            let kind = self.new_directory(id, depth, path)?;
            let node = Node {
                kind,
                mtime: (0, 0),
                uid: 0,
                gid: 0,
                mode: 0o755,
                links: 1,
                xattrs: 0,
            };
            let made = self.add_node(node, path)?;
            self.add_name(id, name.into_boxed_slice(), made, path)?;
            id = made;
        }
        if !path.ends_with(b"/") {
            self.last_parent = Some((written.to_vec(), id));
        }
        Ok(Some(id))
    }

    /// Follows a path inside the root. Behind the first missing component nothing exists, so the rest is only names.
    pub(super) fn walk(&mut self, path: &[u8], parts: &[&[u8]]) -> Result<Walk, LayerFault> {
        let fail = |fault| LayerFault::entry(path, fault);
        let mut todo: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        let mut walk = Walk {
            directory: ROOT,
            missing: Vec::new(),
        };
        let mut links = 0;
        while let Some(part) = todo.pop() {
            self.lookups += 1;
            if self.lookups > self.limits.max_lookups {
                return Err(self.limit(
                    path,
                    "directory look-ups",
                    "max_lookups",
                    self.limits.max_lookups,
                ));
            }
            if part == b".." {
                if walk.missing.pop().is_none() {
                    walk.directory = self.directory(walk.directory).map_or(ROOT, |d| d.parent);
                }
                continue;
            }
            if !walk.missing.is_empty() {
                walk.missing.push(part);
                continue;
            }
            let Some(child) = self.child(walk.directory, &part) else {
                walk.missing.push(part);
                continue;
            };
            match &self.nodes[child.node as usize].kind {
                Kind::Directory(_) => walk.directory = child.node,
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(fail(EntryFault::SymlinkLoop));
                    }
                    if target.starts_with(b"/") {
                        walk.directory = ROOT;
                    }
                    let steps = target
                        .split(|b| *b == b'/')
                        .filter(|step| !step.is_empty() && *step != b".");
                    if let Some(long) = steps.clone().find(|step| step.len() > 255) {
                        return Err(fail(EntryFault::NameTooLong(long.len())));
                    }
                    todo.extend(steps.rev().map(<[u8]>::to_vec));
                }
                _ => return Err(fail(EntryFault::ParentNotDirectory(show(&part)))),
            }
        }
        Ok(walk)
    }
}

/// A name's components, from the root; a leading slash, `.` and doubled slashes mean nothing, `..` is refused.
///
/// Some builders write names from the root on, with a slash: those of distroless and of Paketo's images do.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, EntryFault> {
    if path.is_empty() {
        return Err(EntryFault::EmptyName);
    }
    if path.contains(&0) {
        return Err(EntryFault::NulInName);
    }
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(EntryFault::Traversal),
            // What hides a name is longer than the name.
            _ if part.strip_prefix(b".wh.").unwrap_or(part).len() > 255 => {
                return Err(EntryFault::NameTooLong(part.len()));
            }
            _ => parts.push(part),
        }
    }
    Ok(parts)
}
