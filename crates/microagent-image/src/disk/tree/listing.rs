//! The merged tree as a list, for those who hold it against another.

use super::{Kind, NodeId, ROOT, Tree};

impl Tree<'_> {
    /// Every name below the root, with what it stands for.
    pub(crate) fn names(&self) -> Vec<(Vec<u8>, char, NodeId)> {
        let mut names = Vec::new();
        let mut pending = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = pending.pop() {
            for (name, child) in self.directory(id).into_iter().flat_map(|d| &d.children) {
                let mut path: Vec<u8> = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                let kind = match self.nodes[child.node as usize].kind {
                    Kind::Directory(_) => {
                        pending.push((path.clone(), child.node));
                        'd'
                    }
                    Kind::File { .. } => 'f',
                    Kind::Symlink(_) => 'l',
                    _ => '?',
                };
                names.push((path, kind, child.node));
            }
        }
        names
    }
}
