//! Whole stacks of layers (whiteouts, opaque directories, links, changes of type) against the naive model that
//! the tests use: every input is a stack, and both must leave the same names.
#![no_main]
#![allow(dead_code, reason = "the tests' modules hold more than is needed here")]

#[path = "../../crates/microagent-image/tests/disk/archive.rs"]
mod archive;
#[path = "../../crates/microagent-image/tests/disk/stack.rs"]
mod stack;

use std::collections::{BTreeMap, BTreeSet};

use libfuzzer_sys::fuzz_target;
use microagent_image::disk::fuzz_layers;
use stack::{Node, Step};

/// As many layers as the tight limits of fuzzing allow.
const MAX_LAYERS: usize = 8;

fuzz_target!(|data: &[u8]| {
    let mut tree = BTreeMap::new();
    let mut next = 0;
    let layers: Vec<Vec<u8>> = data
        .split(|byte| *byte == b'/')
        .take(MAX_LAYERS)
        .map(|layer| {
            let late = layer.first().is_some_and(|byte| byte % 2 == 1);
            let steps: Vec<Step> = layer.chunks_exact(2).take(40).map(step).collect();
            stack::apply(&mut tree, &steps, late, &mut next)
        })
        .collect();
    let slices: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let found = match fuzz_layers(&slices) {
        Ok(found) => found,
        Err(fault) => panic!("a good stack is refused: {fault}"),
    };
    let mut ours: BTreeMap<String, (char, u32)> = BTreeMap::new();
    for (name, kind, node) in found {
        ours.insert(String::from_utf8(name).unwrap(), (kind, node));
    }
    let names: Vec<&String> = tree.keys().collect();
    assert_eq!(names, ours.keys().collect::<Vec<_>>());
    let mut files: BTreeMap<usize, u32> = BTreeMap::new();
    for (name, node) in &tree {
        let (kind, inode) = ours[name];
        let expected = match node {
            Node::Directory => 'd',
            Node::Symlink => 'l',
            Node::File(identity, _) => {
                assert_eq!(*files.entry(*identity).or_insert(inode), inode, "{name}");
                'f'
            }
        };
        assert_eq!(kind, expected, "{name}");
    }
    let inodes: BTreeSet<u32> = files.values().copied().collect();
    assert_eq!(
        inodes.len(),
        files.len(),
        "different files, different inodes"
    );
});

/// Two bytes are a step: what is done, and where in a tree of three names a directory, three deep.
fn step(bytes: &[u8]) -> Step {
    let (verb, place) = (bytes[0], bytes[1]);
    let parts = 1 + usize::from(place / 27) % 3;
    let path: Vec<&str> = [place % 3, place / 3 % 3, place / 9 % 3]
        .into_iter()
        .take(parts)
        .map(|part| ["a", "b", "c"][usize::from(part)])
        .collect();
    let path = path.join("/");
    match verb % 8 {
        0 | 1 => Step::File(path, vec![verb; usize::from(verb)]),
        2 | 3 => Step::Directory(path),
        4 => Step::Symlink(path),
        5 => Step::HardLink(path, usize::from(verb / 8)),
        6 => Step::Whiteout(path),
        _ => Step::Opaque(path),
    }
}
