//! Random stacks of small layers against a model that applies the specification naively.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use microagent_ext4::{FileKind, ROOT, Volume};
use microagent_image::disk::fuzz_layers;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use crate::oracle::{build_plain, directory, e2fsck};
use crate::stack::{Node, Step, apply};

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

/// Names of one file share an identity in the model, and a number in what was found.
fn assert_identities<'n>(
    files: impl Iterator<Item = (&'n str, usize, u32)>,
) -> Result<(), TestCaseError> {
    let mut identities: BTreeMap<usize, u32> = BTreeMap::new();
    for (name, identity, inode) in files {
        prop_assert_eq!(
            *identities.entry(identity).or_insert(inode),
            inode,
            "{}",
            name
        );
    }
    let inodes: BTreeSet<u32> = identities.values().copied().collect();
    prop_assert_eq!(
        inodes.len(),
        identities.len(),
        "different files, different inodes"
    );
    Ok(())
}

type Steps = Vec<(Vec<Step>, bool)>;

fn stacks() -> impl Strategy<Value = Steps> {
    prop::collection::vec((prop::collection::vec(step(), 0..12), any::<bool>()), 1..5)
}

/// The layers of a stack, and what the model says they leave.
fn modelled(stack: &Steps) -> (Vec<Vec<u8>>, BTreeMap<String, Node>) {
    let mut tree = BTreeMap::new();
    let mut next = 0;
    let layers = stack
        .iter()
        .map(|(steps, late)| apply(&mut tree, steps, *late, &mut next))
        .collect();
    (layers, tree)
}

/// What the disk says; e2fsck has checked its structures.
fn read_back(disk: &Path) -> BTreeMap<String, (Node, u32)> {
    let disk = Volume::open(File::open(disk).unwrap()).unwrap();
    let mut found = BTreeMap::new();
    let mut pending = vec![(String::new(), ROOT)];
    while let Some((name, folder)) = pending.pop() {
        for entry in disk.entries(&disk.inode(folder).unwrap()).unwrap() {
            let child = String::from_utf8(entry.name).unwrap();
            let path = if name.is_empty() {
                child
            } else {
                format!("{name}/{child}")
            };
            let inode = disk.inode(entry.inode).unwrap();
            let node = match inode.kind() {
                FileKind::File => {
                    let mut content = vec![0; usize::try_from(inode.size()).unwrap()];
                    let of_file = disk.content(&inode).unwrap();
                    of_file.read_at(0, &mut content).unwrap();
                    Node::File(0, content)
                }
                FileKind::Directory => {
                    pending.push((path.clone(), entry.inode));
                    Node::Directory
                }
                FileKind::Symlink => Node::Symlink,
                other => panic!("{other:?}"),
            };
            found.insert(path, (node, entry.inode));
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_merge_as_the_specification_says(stack in stacks()) {
        let (layers, tree) = modelled(&stack);
        let work = directory();
        let disk = work.path().join("disk");
        build_plain(&layers, &disk).unwrap();
        e2fsck(&disk);
        let found = read_back(&disk);
        prop_assert_eq!(tree.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
        for (name, node) in &tree {
            match (node, &found[name].0) {
                (Node::File(_, content), Node::File(_, read)) => {
                    prop_assert_eq!(content, read, "{}", name);
                }
                (node, ours) => prop_assert_eq!(node, ours, "{}", name),
            }
        }
        assert_identities(tree.iter().filter_map(|(name, node)| match node {
            Node::File(identity, _) => Some((name.as_str(), *identity, found[name].1)),
            _ => None,
        }))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    /// Names and identities alone, without a disk: many more of them.
    #[test]
    fn thousands_of_stacks_leave_the_right_names(stack in stacks()) {
        let (layers, tree) = modelled(&stack);
        let slices: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
        let found = fuzz_layers(&slices).map_err(|fault| TestCaseError::fail(fault.to_string()))?;
        let found: BTreeMap<String, (char, u32)> = found
            .into_iter()
            .map(|(name, kind, node)| (String::from_utf8(name).unwrap(), (kind, node)))
            .collect();
        let expected: BTreeMap<&String, char> = tree
            .iter()
            .map(|(name, node)| (name, match node {
                Node::Directory => 'd',
                Node::File(..) => 'f',
                Node::Symlink => 'l',
            }))
            .collect();
        let ours: BTreeMap<&String, char> =
            found.iter().map(|(name, (kind, _))| (name, *kind)).collect();
        prop_assert_eq!(expected, ours);
        assert_identities(tree.iter().filter_map(|(name, node)| match node {
            Node::File(identity, _) => Some((name.as_str(), *identity, found[name].1)),
            _ => None,
        }))?;
    }
}
