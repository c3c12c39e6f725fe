//! What a kill at each step leaves, and that a sweep takes it all.

use std::thread;

use super::*;
use crate::{SupervisorProgram, workspaces::machine::MachineRecord};

struct World {
    base: tempfile::TempDir,
    config: Config,
}

impl World {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let program = SupervisorProgram::At(base.path().join("none"));
        let config = Config::new(base.path().join("state"), base.path().join("run"), program);
        Self { base, config }
    }

    fn directory(&self, name: &str) -> Directory {
        Directory::create(&self.config, &name.parse().unwrap()).unwrap()
    }

    /// What there is, `dry_run` first: both say the same, and after the second there is nothing.
    fn sweep(&self) -> Vec<(PathBuf, LeftoverKind)> {
        let named = |found: Vec<Leftover>| -> Vec<_> {
            let pairs = found.into_iter().map(|it| (it.path, it.what));
            pairs.collect()
        };
        let seen = named(collect(&self.config, true).unwrap());
        assert_eq!(named(collect(&self.config, false).unwrap()), seen);
        assert_eq!(collect(&self.config, false).unwrap(), []);
        seen
    }
}

#[test]
fn the_directory_for_sockets_goes_if_a_kill_left_it_empty() {
    let world = World::new();
    let root = &world.config.runtime_dir;
    assert_eq!(world.sweep(), []);
    fs::create_dir(root).unwrap();
    // No workspace was ever made here: `doctor` makes it, too.
    assert_eq!(world.sweep(), [(root.clone(), LeftoverKind::Sockets)]);
    assert!(!root.exists());

    let directory = world.directory("lives");
    let runtime = RuntimeDirectory::make(&world.config, directory.path()).unwrap();
    assert_eq!(world.sweep(), []);
    assert!(runtime.path().exists(), "it is another machine's");
    drop(runtime);
    assert!(!root.exists());
}

#[test]
fn what_a_killed_launcher_made_for_sockets_is_found() {
    let world = World::new();
    let root = world.config.runtime_dir.clone();
    let directory = world.directory("killed");
    let path = directory.path().to_owned();
    fs::write(path.join(EVENTS), "").unwrap();
    // It stays, so only the sockets are left over.
    directory.keep();

    // Killed when the directory was recorded, and before it was made.
    let never_made = MachineRecord {
        runtime_dir: root.join("0123abcd"),
        supervisor: None,
    };
    never_made.write(&path).unwrap();
    assert_eq!(world.sweep(), []);

    // Killed right after it was made, before anything was launched.
    let runtime = RuntimeDirectory::make(&world.config, &path).unwrap();
    let made = runtime.path().to_owned();
    fs::write(made.join("control"), "").unwrap();
    runtime.hand_over();
    let record = MachineRecord::read(&path).unwrap();
    assert_eq!(record.runtime_dir, made);
    let seen = collect(&world.config, true).unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(
        collect(&world.config, false).unwrap(),
        seen,
        "a look is no lie"
    );
    assert!(!root.exists() && path.exists());
    assert_eq!(world.sweep(), []);
}

/// However far the removal of a workspace that does not stay came, the rest of it goes.
#[test]
fn a_workspace_that_is_half_removed_is_removed() {
    let world = World::new();
    let names = [EVENTS, MANIFEST, SCRATCH, "machine.json", "result.json"];
    for left in 0..1_u32 << (names.len() - 2) {
        let directory = world.directory("half");
        let path = directory.path().to_owned();
        // Those two went first.
        for (at, name) in names[2..].iter().enumerate() {
            if left >> at & 1 == 1 {
                fs::write(path.join(name), "{}").unwrap();
            }
        }
        directory.keep();
        let [(found, LeftoverKind::Abandoned)] = &world.sweep()[..] else {
            panic!("{left:b}");
        };
        assert_eq!(*found, path);
        assert!(!path.exists());
    }
    // And dropping one removes those two first, whatever else there is.
    let directory = world.directory("dropped");
    let path = directory.path().to_owned();
    for name in names {
        fs::write(path.join(name), "{}").unwrap();
    }
    drop(directory);
    assert!(!path.exists());
    drop(world.base);
}

#[test]
fn a_sweep_does_not_mind_workspaces_that_come_and_go() {
    let world = World::new();
    let config = &world.config;
    drop(world.directory("first"));
    thread::scope(|scope| {
        let made = scope.spawn(|| {
            for round in 0..400 {
                let directory = world.directory(&format!("n{round}"));
                let runtime = RuntimeDirectory::make(config, directory.path()).unwrap();
                assert!(runtime.path().exists());
                drop(runtime);
                drop(directory);
            }
        });
        while !made.is_finished() {
            let found = collect(config, false).unwrap();
            assert!(found.len() < 4, "{found:?}");
        }
        made.join().unwrap();
    });
    assert_eq!(collect(config, false).unwrap(), []);
}
