//! What layers say, step by step, and a naive model of what they leave, in two passes a layer. Shared with the
//! fuzzer, so nothing here needs more than the standard library.

use std::collections::BTreeMap;

use crate::archive::{DIR, FILE, Tar};

/// One entry or whiteout, by its path.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    File(String, Vec<u8>),
    Directory(String),
    Symlink(String),
    HardLink(String, usize),
    Whiteout(String),
    Opaque(String),
}

/// What a name stands for in the end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Directory,
    /// Identity and content: names of one file share the identity.
    File(usize, Vec<u8>),
    Symlink,
}

fn below(tree: &BTreeMap<String, Node>, directory: &str) -> Vec<String> {
    let prefix = format!("{directory}/");
    tree.keys()
        .filter(|name| name.starts_with(&prefix))
        .cloned()
        .collect()
}

fn remove(tree: &mut BTreeMap<String, Node>, name: &str) {
    for inner in below(tree, name) {
        tree.remove(&inner);
    }
    tree.remove(name);
}

/// Puts a node, with its missing parents; `false` where a parent is no directory.
fn put(tree: &mut BTreeMap<String, Node>, name: &str, node: Node) -> bool {
    let mut parents: Vec<&str> = name.match_indices('/').map(|(at, _)| &name[..at]).collect();
    if parents.iter().any(|parent| {
        tree.get(*parent)
            .is_some_and(|node| *node != Node::Directory)
    }) {
        return false;
    }
    for parent in parents.drain(..) {
        tree.insert(parent.to_owned(), Node::Directory);
    }
    if !(node == Node::Directory && tree.get(name) == Some(&Node::Directory)) {
        remove(tree, name);
    }
    tree.insert(name.to_owned(), node);
    true
}

/// Applies a layer: all whiteouts to what lies below, then all else. Returns its archive, whose order is `late`:
/// whiteouts behind the entries.
pub(crate) fn apply(
    tree: &mut BTreeMap<String, Node>,
    steps: &[Step],
    late: bool,
    next: &mut usize,
) -> Vec<u8> {
    let mut whiteouts = Tar::default();
    let mut hidden_files: Vec<String> = Vec::new();
    for step in steps {
        match step {
            Step::Whiteout(name) => {
                hidden_files.extend(below(tree, name).into_iter().chain([name.clone()]).filter(
                    |hidden| {
                        tree.get(hidden)
                            .is_some_and(|node| *node != Node::Directory)
                    },
                ));
                remove(tree, name);
                let (parent, last) = name
                    .rsplit_once('/')
                    .map_or(("", name.as_str()), |(p, l)| (p, l));
                let parent = if parent.is_empty() {
                    String::new()
                } else {
                    format!("{parent}/")
                };
                whiteouts = whiteouts.whiteout(&format!("{parent}.wh.{last}"));
            }
            Step::Opaque(name) => {
                for inner in below(tree, name) {
                    if tree
                        .remove(&inner)
                        .is_some_and(|node| node != Node::Directory)
                    {
                        hidden_files.push(inner);
                    }
                }
                whiteouts = whiteouts.whiteout(&format!("{name}/.wh..wh..opq"));
            }
            _ => {}
        }
    }
    let mut entries = Tar::default();
    for step in steps {
        match step {
            Step::File(name, content) => {
                *next += 1;
                if put(tree, name, Node::File(*next, content.clone())) {
                    entries = entries.file(name, content, FILE);
                }
            }
            Step::Directory(name) => {
                if put(tree, name, Node::Directory) {
                    entries = entries.dir(&format!("{name}/"), DIR);
                }
            }
            Step::Symlink(name) => {
                if put(tree, name, Node::Symlink) {
                    entries = entries.symlink(name, "nowhere");
                }
            }
            Step::HardLink(name, pick) => {
                let files: Vec<(String, Node)> = tree
                    .iter()
                    .filter(|(_, n)| matches!(n, Node::File(..)))
                    .map(|(p, n)| (p.clone(), n.clone()))
                    .collect();
                if files.is_empty() {
                    continue;
                }
                let (target, node) = files[pick % files.len()].clone();
                // A link through a name that replaces its own target's directory is no link any more.
                if target == *name {
                    continue;
                }
                if put(tree, name, node) {
                    entries = entries.hard_link(name, &target);
                }
            }
            Step::Whiteout(_) | Step::Opaque(_) => {}
        }
    }
    // A whiteout that comes too late to make room for a parent is an error, here as in umoci.
    let in_the_way = |step: &Step| match step {
        Step::File(name, _)
        | Step::Directory(name)
        | Step::Symlink(name)
        | Step::HardLink(name, _) => hidden_files
            .iter()
            .any(|hidden| name.starts_with(&format!("{hidden}/"))),
        Step::Whiteout(_) | Step::Opaque(_) => false,
    };
    if late && !steps.iter().any(in_the_way) {
        entries.raw(&whiteouts.0).end()
    } else {
        whiteouts.raw(&entries.0).end()
    }
}
