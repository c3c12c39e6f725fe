//! Random stacks of layers against umoci: many stacks are one image, each below a directory of its own, so that a
//! single unpacking judges them all. A difference is made as small as it gets before it is shown.
//!
//! The seeds are fixed, so every run judges the same stacks; `MICROAGENT_STACKS=N` judges more of them, and
//! `MICROAGENT_SEED=N` those of the seeds from there on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use microagent_image::disk::fuzz_layers;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::archive::{DIR, FILE, Meta, Tar, header};
use crate::oracle::{Mounted, build_joined, build_plain, differences, directory, e2fsck, unpacked};

/// As many stacks are one image.
const BATCH: usize = 50;
/// As many are judged without `MICROAGENT_STACKS`.
const STACKS: usize = 300;
/// Seeds whose stacks once were a difference.
const KEPT: &[u64] = &[];
/// VFS capability revision 2, effective, cap_net_raw.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

#[derive(Debug, Clone)]
enum What {
    File(Vec<u8>),
    /// So many bytes, of which the ten at this place are written.
    Sparse(u64, u64),
    Directory,
    /// Where to: relative, or below the stack's own directory.
    Symlink(String, bool),
    HardLink(String),
    Fifo,
    Device(u32, u32),
    Whiteout,
    Opaque,
}

#[derive(Debug, Clone)]
struct Step {
    path: String,
    what: What,
    meta: Meta,
    nanoseconds: Option<u32>,
    xattrs: Vec<(&'static str, Vec<u8>)>,
}

type Stack = Vec<Vec<Step>>;

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned),
        2 => prop::sample::select(vec![
            "x y", "\u{e4}\u{1f980}", r"\x2d", "-rf", ".hidden", "new\nline", "...", "wh.", "$(id)", "*", "~",
        ]).prop_map(str::to_owned),
        1 => (0usize..3, 90usize..256).prop_map(|(letter, length)| ["n", "m", "o"][letter].repeat(length)),
    ]
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(name(), 1..4).prop_map(|parts| parts.join("/"))
}

fn what() -> impl Strategy<Value = What> {
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        (0usize..20_000, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        (4000usize..60_000).prop_map(|zeros| [vec![0; zeros], vec![1]].concat()),
    ];
    let target = prop_oneof![
        3 => path(),
        1 => path().prop_map(|path| format!("../{path}")),
        1 => Just(".".to_owned()),
    ];
    prop_oneof![
        6 => content.prop_map(What::File),
        1 => (20u64..3_000_000, 0u64..100).prop_map(|(size, at)| What::Sparse(size, (size - 10) * at / 100)),
        5 => Just(What::Directory),
        3 => (target, any::<bool>()).prop_map(|(target, absolute)| What::Symlink(target, absolute)),
        3 => path().prop_map(What::HardLink),
        1 => Just(What::Fifo),
        1 => (0u32..512, 0u32..100_000).prop_map(|(major, minor)| What::Device(major, minor)),
        4 => Just(What::Whiteout),
        2 => Just(What::Opaque),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop::sample::select(vec![
        0o644, 0o755, 0, 0o600, 0o4755, 0o2755, 0o1777, 0o7777, 0o6711,
    ]);
    let owner = prop::sample::select(vec![0u64, 0, 0, 5, 1000, 70_000, 4_000_000_000]);
    // None without a value: POSIX deletes such a record, and so does umoci; GNU tar and we keep it.
    let xattrs = prop::collection::vec(
        prop_oneof![
            prop::collection::vec(any::<u8>(), 1..40).prop_map(|value| ("user.note", value)),
            (1usize..2000).prop_map(|length| ("user.big", vec![b'x'; length])),
            Just(("security.capability", CAPABILITY.to_vec())),
        ],
        0..3,
    );
    let time = (1u64..2_000_000_000, prop::option::of(1u32..1_000_000_000));
    (path(), what(), mode, (owner.clone(), owner), time, xattrs).prop_map(
        |(path, what, mode, (uid, gid), (mtime, nanoseconds), mut xattrs)| {
            xattrs.sort();
            xattrs.dedup_by_key(|(name, _)| *name);
            // umoci removes the directory first, and has nothing left to link to.
            let what = match what {
                What::HardLink(target) if target.starts_with(&format!("{path}/")) => What::Fifo,
                other => other,
            };
            let plain = matches!(what, What::File(_) | What::Directory);
            Step {
                path,
                what,
                meta: Meta {
                    mode,
                    uid,
                    gid,
                    mtime,
                },
                nanoseconds,
                // The kernel lets nothing else have attributes of users.
                xattrs: if plain { xattrs } else { Vec::new() },
            }
        },
    )
}

fn stack() -> impl Strategy<Value = Stack> {
    prop::collection::vec(prop::collection::vec(step(), 0..14), 1..5)
}

/// Writes one step of the stack whose directory is `root`.
fn write(tar: Tar, root: &str, step: &Step) -> Tar {
    let name = format!("{root}/{}", step.path);
    let (parent, last) = name.rsplit_once('/').unwrap_or(("", &name));
    let mut records: Vec<(String, Vec<u8>)> = step
        .xattrs
        .iter()
        .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone()))
        .collect();
    if let Some(nanoseconds) = step.nanoseconds {
        let mtime = format!("{}.{nanoseconds:09}", step.meta.mtime);
        records.push(("mtime".into(), mtime.into_bytes()));
    }
    let mut put =
        |kind: u8, name: &str, link: &str, content: &[u8], device: (u32, u32), meta: Meta| {
            if name.len() > 100 {
                records.push(("path".into(), name.as_bytes().to_vec()));
            }
            if link.len() > 100 {
                records.push(("linkpath".into(), link.as_bytes().to_vec()));
            }
            let borrowed: Vec<(&str, &[u8])> = records
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_slice()))
                .collect();
            let tar = match borrowed.is_empty() {
                true => tar.clone(),
                false => tar.clone().pax(&borrowed),
            };
            let size = content.len() as u64;
            tar.raw(&header(
                kind,
                name.as_bytes(),
                link.as_bytes(),
                size,
                meta,
                device,
            ))
            .body(content)
        };
    match &step.what {
        What::File(content) => put(b'0', &name, "", content, (0, 0), step.meta),
        What::Directory => put(b'5', &format!("{name}/"), "", b"", (0, 0), step.meta),
        What::Symlink(target, absolute) => {
            let target = match absolute {
                true => format!("/{root}/{target}"),
                false => target.clone(),
            };
            put(b'2', &name, &target, b"", (0, 0), step.meta.mode(0o777))
        }
        What::HardLink(target) => put(
            b'1',
            &name,
            &format!("{root}/{target}"),
            b"",
            (0, 0),
            step.meta,
        ),
        What::Fifo => put(b'6', &name, "", b"", (0, 0), step.meta),
        What::Device(major, minor) => put(b'3', &name, "", b"", (*major, *minor), step.meta),
        What::Whiteout => put(b'0', &format!("{parent}/.wh.{last}"), "", b"", (0, 0), FILE),
        What::Opaque => put(b'0', &format!("{name}/.wh..wh..opq"), "", b"", (0, 0), FILE),
        What::Sparse(size, at) => {
            // PAX sparse 1.0: the map first, then what is not a hole.
            let mut stored = format!("2\n{at}\n10\n{size}\n0\n").into_bytes();
            stored.resize(512, 0);
            stored.extend([7; 10]);
            records.extend([
                ("GNU.sparse.major".into(), b"1".to_vec()),
                ("GNU.sparse.minor".into(), b"0".to_vec()),
                ("GNU.sparse.name".into(), name.clone().into_bytes()),
                ("GNU.sparse.realsize".into(), size.to_string().into_bytes()),
            ]);
            let borrowed: Vec<(&str, &[u8])> = records
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_slice()))
                .collect();
            let length = stored.len() as u64;
            tar.pax(&borrowed)
                .raw(&header(
                    b'0',
                    b"GNUSparseFile.1/x",
                    b"",
                    length,
                    step.meta,
                    (0, 0),
                ))
                .body(&stored)
        }
    }
}

/// The layers of an image with these stacks, each below its number.
fn layers(stacks: &[(usize, Stack)]) -> Vec<Vec<u8>> {
    let count = stacks.iter().map(|(_, stack)| stack.len()).max();
    (0..count.unwrap_or(0))
        .map(|layer| {
            let mut tar = Tar::default();
            for (number, stack) in stacks {
                let root = format!("s{number}");
                if layer == 0 {
                    tar = tar.dir(&format!("{root}/"), DIR);
                }
                for step in stack.get(layer).into_iter().flatten() {
                    tar = write(tar, &root, step);
                }
            }
            tar.end()
        })
        .collect()
}

/// Whether we take the first `count` steps of a stack.
fn is_good(stack: &Stack, count: usize) -> bool {
    let mut left = count;
    let prefix: Stack = stack
        .iter()
        .map(|steps| {
            let taken = steps.len().min(left);
            left -= taken;
            steps[..taken].to_vec()
        })
        .collect();
    let layers = layers(&[(0, prefix)]);
    fuzz_layers(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>()).is_ok()
}

/// The stack without the steps we refuse: names below a file, links to what is not there.
fn mended(mut stack: Stack) -> Stack {
    let mut good = 0;
    loop {
        let all = stack.iter().map(Vec::len).sum();
        if is_good(&stack, all) {
            return stack;
        }
        // What is refused is refused whatever comes after it.
        let mut bad = all;
        while bad - good > 1 {
            let middle = good.midpoint(bad);
            match is_good(&stack, middle) {
                true => good = middle,
                false => bad = middle,
            }
        }
        let mut at = bad - 1;
        for steps in &mut stack {
            if at < steps.len() {
                steps.remove(at);
                break;
            }
            at -= steps.len();
        }
    }
}

/// What is different between our disk and what umoci unpacks; nothing if umoci refuses the image, which is told.
enum Judged {
    Same(usize),
    Different(BTreeMap<PathBuf, String>),
    Refused(String),
}

fn judge(stacks: &[(usize, Stack)]) -> Judged {
    let layers = layers(stacks);
    let work = directory();
    let disk = work.path().join("disk");
    let joined = work.path().join("joined");
    let built = build_plain(&layers, &disk).map(drop);
    if let Err(error) = built.and_then(|()| build_joined(&layers, &joined)) {
        return Judged::Different(BTreeMap::from([(PathBuf::new(), error.to_string())]));
    }
    e2fsck(&disk);
    e2fsck(&joined);
    let begun = SystemTime::now();
    let theirs = match unpacked(&layers, work.path()) {
        Ok(theirs) => theirs,
        Err(error) => return Judged::Refused(error),
    };
    let mut judged = Judged::Same(0);
    // In one file and in pieces.
    for disk in [&disk, &joined] {
        let mounted = Mounted::new(disk);
        judged = match differences(mounted.path(), &theirs, begun) {
            (different, names) if different.is_empty() => Judged::Same(names),
            (different, _) => return Judged::Different(different),
        };
    }
    judged
}

fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Makes one stack that is judged wrongly as small as it gets.
fn smallest(seed: u64, number: usize) -> String {
    let mut runner = runner(seed);
    let mut tree = None;
    for _ in 0..=number {
        tree = Some(stack().new_tree(&mut runner).unwrap());
    }
    let mut tree = tree.unwrap();
    let wrong = |stack: &Stack| match judge(&[(number, stack.clone())]) {
        Judged::Different(different) => Some(different.into_values().collect()),
        Judged::Refused(error) => Some(error),
        Judged::Same(_) => None,
    };
    let current = |tree: &dyn ValueTree<Value = Stack>| mended(tree.current());
    let mut last = match wrong(&current(&tree)) {
        Some(found) => (current(&tree), found),
        None => return "alone, the stack is judged well".into(),
    };
    for _ in 0..150 {
        if !tree.simplify() {
            break;
        }
        loop {
            let smaller = current(&tree);
            if let Some(found) = wrong(&smaller) {
                last = (smaller, found);
                break;
            }
            if !tree.complicate() {
                break;
            }
        }
    }
    format!("{:#?}\n{}", last.0, last.1)
}

/// Judges one stack, which must be unpacked as by umoci; how many names it has.
fn alone(seed: u64, number: usize, stack: &Stack) -> usize {
    match judge(&[(number, stack.clone())]) {
        Judged::Same(names) => names,
        _ => panic!("seed {seed}, stack {number}: {}", smallest(seed, number)),
    }
}

#[test]
fn random_stacks_are_what_umoci_unpacks() {
    let told = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let wanted = told("MICROAGENT_STACKS").unwrap_or(STACKS as u64) as usize;
    let first = told("MICROAGENT_SEED").unwrap_or(0);
    let (mut judged, mut names, mut last) = (0, 0, first);
    let mut seeds = KEPT.iter().copied().chain(first..);
    while judged < wanted {
        let seed = seeds.next().unwrap();
        let mut runner = runner(seed);
        let good: Vec<(usize, Stack)> = (0..BATCH)
            .map(|number| {
                let stack = stack().new_tree(&mut runner).unwrap().current();
                (number, mended(stack))
            })
            .collect();
        names += match judge(&good) {
            Judged::Same(names) => names,
            // Alone, to know which; what climbed out of its directory into another's may be none.
            _ => good
                .iter()
                .map(|(number, stack)| alone(seed, *number, stack))
                .sum(),
        };
        judged += good.len();
        last = seed;
    }
    println!(
        "\ncorpus: stacks: {judged} of the kept seeds ({}) and of {first} to {last}, {names} names the same",
        KEPT.len()
    );
}
