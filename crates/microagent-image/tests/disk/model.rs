//! Random stacks of small layers against a model that applies the specification naively, in two passes a layer.

use std::collections::{BTreeMap, BTreeSet};

use mkext4::reader::Fs;
use proptest::prelude::*;

use crate::archive::{DIR, FILE, Tar};
use crate::oracle::{build_plain, directory, e2fsck};

#[derive(Debug, Clone)]
enum Step {
    File(String, Vec<u8>),
    Directory(String),
    Symlink(String),
    HardLink(String, usize),
    Whiteout(String),
    Opaque(String),
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Directory,
    /// Identity and content: names of one file share the identity.
    File(usize, Vec<u8>),
    Symlink,
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        (0usize..20_000, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        (4000usize..60_000).prop_map(|zeros| [vec![0; zeros], vec![1]].concat()),
    ];
    prop_oneof![
        4 => (path(), content).prop_map(|(p, c)| Step::File(p, c)),
        3 => path().prop_map(Step::Directory),
        1 => path().prop_map(Step::Symlink),
        2 => (path(), any::<usize>()).prop_map(|(p, n)| Step::HardLink(p, n)),
        2 => path().prop_map(Step::Whiteout),
        1 => path().prop_map(Step::Opaque),
    ]
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
fn apply(
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

/// What the disk says, read by a reader in Rust that checks every structure.
fn read_back(image: &[u8]) -> BTreeMap<String, (Node, u32)> {
    let disk = Fs::open(image).unwrap();
    let issues = disk.verify().unwrap();
    assert!(issues.is_empty(), "{issues:?}");
    let mut found = BTreeMap::new();
    let mut pending = vec![(String::new(), 2u32)];
    while let Some((name, inode)) = pending.pop() {
        for entry in disk.read_dir(inode).unwrap() {
            let child = String::from_utf8(entry.name.clone()).unwrap();
            if child == "." || child == ".." {
                continue;
            }
            let path = if name.is_empty() {
                child
            } else {
                format!("{name}/{child}")
            };
            let node = match entry.file_type {
                1 => Node::File(0, disk.read_file(entry.inode).unwrap()),
                2 => {
                    pending.push((path.clone(), entry.inode));
                    Node::Directory
                }
                7 => Node::Symlink,
                other => panic!("type {other}"),
            };
            found.insert(path, (node, entry.inode));
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_merge_as_the_specification_says(
        stack in prop::collection::vec((prop::collection::vec(step(), 0..12), any::<bool>()), 1..5)
    ) {
        let mut tree = BTreeMap::new();
        let mut next = 0;
        let layers: Vec<Vec<u8>> =
            stack.iter().map(|(steps, late)| apply(&mut tree, steps, *late, &mut next)).collect();
        let work = directory();
        let disk = work.path().join("disk");
        build_plain(&layers, &disk).unwrap();
        e2fsck(&disk);
        let found = read_back(&std::fs::read(&disk).unwrap());
        prop_assert_eq!(tree.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
        let mut identities: BTreeMap<usize, u32> = BTreeMap::new();
        for (name, node) in &tree {
            let (ours, inode) = &found[name];
            match (node, ours) {
                (Node::File(id, content), Node::File(_, read)) => {
                    prop_assert_eq!(content, read, "{}", name);
                    prop_assert_eq!(*identities.entry(*id).or_insert(*inode), *inode, "{}", name);
                }
                _ => prop_assert_eq!(node, ours, "{}", name),
            }
        }
        let inodes: BTreeSet<u32> = identities.values().copied().collect();
        prop_assert_eq!(inodes.len(), identities.len(), "different files, different inodes");
    }
}
