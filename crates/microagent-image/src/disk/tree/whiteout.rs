//! What a layer hides of the layers below it.

use std::collections::VecDeque;

use super::{Child, NodeId, Tree};

impl Tree<'_> {
    /// Hides one name that earlier layers left.
    pub(super) fn hide(&mut self, parent: NodeId, name: &[u8]) {
        let Some(child) = self.child(parent, name) else {
            return;
        };
        if self.is_of_this_layer(child) {
            if self.directory(child.node).is_some() {
                self.prune(child.node);
            }
        } else {
            self.remove_child(parent, name);
        }
    }

    fn is_of_this_layer(&self, child: Child) -> bool {
        match self.directory(child.node) {
            Some(directory) => directory.touched == self.layer,
            None => child.layer == self.layer,
        }
    }

    /// Hides everything that earlier layers left below a directory. Once per directory and layer: nothing older can
    /// come back.
    pub(super) fn prune(&mut self, id: NodeId) {
        let mut queue = VecDeque::from([id]);
        while let Some(id) = queue.pop_front() {
            let layer = self.layer;
            match self.directory_mut(id) {
                Some(directory) if directory.pruned != layer => directory.pruned = layer,
                _ => continue,
            }
            let mut older: Vec<Box<[u8]>> = Vec::new();
            for (name, child) in self.directory(id).into_iter().flat_map(|d| &d.children) {
                if !self.is_of_this_layer(*child) {
                    older.push(name.clone());
                } else if self.directory(child.node).is_some() {
                    queue.push_back(child.node);
                }
            }
            for name in older {
                self.remove_child(id, &name);
            }
        }
    }
}
