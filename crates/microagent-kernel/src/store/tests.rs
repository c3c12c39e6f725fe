use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::*;
use crate::fixtures::{RELEASE, bzimage, gzip, module_tree, vmlinux};

const GUEST: &[u8] = b"a guest agent";

/// A state directory and a kernel file with modules to install.
struct World {
    directory: tempfile::TempDir,
    store: KernelStore,
    source: KernelSource,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = KernelStore::open(&directory.path().join("state")).unwrap();
        let source = source(directory.path());
        Self {
            directory,
            store,
            source,
        }
    }

    fn install(&self) -> KernelRecord {
        self.store.install(&self.source, &mut |_| {}).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.store.root).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name != ".lock");
        names.sort();
        names
    }
}

fn source(directory: &Path) -> KernelSource {
    let kernel = directory.join("vmlinuz");
    fs::write(
        &kernel,
        bzimage(&gzip(&vmlinux(true, Some("CONFIG_MODULE_SIG=y\n")))),
    )
    .unwrap();
    KernelSource::File {
        kernel,
        modules: Some(module_tree(directory, &[])),
        sha256: None,
    }
}

#[test]
fn what_is_installed_is_recorded_and_private() {
    let world = World::new();
    let record = world.install();
    assert!(
        record.id.starts_with(&format!("{RELEASE}-")),
        "{}",
        record.id
    );
    assert_eq!(
        fs::read(world.store.vmlinux(&record)).unwrap(),
        vmlinux(true, Some("CONFIG_MODULE_SIG=y\n"))
    );
    let read_back = world.store.inspect(&record.id).unwrap();
    // The manifest keeps milliseconds.
    assert_eq!(
        KernelRecord {
            installed_at: record.installed_at,
            ..read_back
        },
        record
    );
    assert!(matches!(
        &record.provenance,
        crate::Provenance::File {
            verified: false,
            ..
        }
    ));
    assert_eq!(world.store.verify(&record.id).unwrap(), []);

    let mut directories = vec![world.store.root.clone()];
    while let Some(directory) = directories.pop() {
        assert_eq!(
            fs::metadata(&directory).unwrap().permissions().mode() & 0o777,
            0o700,
            "{}",
            directory.display()
        );
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            } else {
                assert_eq!(
                    entry.metadata().unwrap().permissions().mode() & 0o777,
                    0o600,
                    "{}",
                    entry.path().display()
                );
            }
        }
    }
}

#[test]
fn installing_again_changes_nothing() {
    let world = World::new();
    let first = world.install();
    let second = world.install();
    assert_eq!(first.id, second.id);
    assert_eq!(world.names(), [first.id]);
}

#[test]
fn a_damaged_kernel_is_named_file_by_file() {
    let world = World::new();
    let record = world.install();
    let directory = world.store.directory(&record.id).unwrap();
    fs::write(directory.join("vmlinux"), b"else").unwrap();
    fs::remove_file(directory.join("modules/overlay.ko")).unwrap();
    let found = world.store.verify(&record.id).unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|divergence| (divergence.file.as_str(), divergence.found.is_some()))
        .collect();
    assert_eq!(found, [("vmlinux", true), ("modules/overlay.ko", false)]);

    fs::write(directory.join(MANIFEST), b"{").unwrap();
    let list = world.store.list().unwrap();
    assert_eq!((list.kernels.len(), list.damaged.len()), (0, 1));
    assert!(
        list.damaged[0].to_string().contains(MANIFEST),
        "{}",
        list.damaged[0]
    );
    world.store.remove(&record.id).unwrap();
}

#[test]
fn a_tampered_module_never_gets_into_an_initramfs() {
    let world = World::new();
    let record = world.install();
    fs::write(
        world.store.root.join(&record.id).join("modules/overlay.ko"),
        b"else",
    )
    .unwrap();
    let error = world.store.initramfs(&record, GUEST).unwrap_err();
    assert!(
        matches!(&error, KernelError::DigestMismatch { name, .. } if name.ends_with("overlay.ko")),
        "{error}"
    );
}

#[test]
fn the_initramfs_is_built_once_and_always_the_same() {
    let world = World::new();
    let record = world.install();
    let first = world.store.initramfs(&record, GUEST).unwrap();
    let bytes = fs::read(&first.path).unwrap();
    assert_eq!(
        (sha256(&bytes), bytes.len() as u64),
        (first.sha256.clone(), first.size)
    );
    let built = fs::metadata(&first.path).unwrap().modified().unwrap();
    assert_eq!(world.store.initramfs(&record, GUEST).unwrap(), first);
    assert_eq!(
        fs::metadata(&first.path).unwrap().modified().unwrap(),
        built
    );

    // Cut short by a crash of the host: built again, the same.
    fs::write(&first.path, b"070701").unwrap();
    assert_eq!(world.store.initramfs(&record, GUEST).unwrap(), first);
    assert_eq!(fs::read(&first.path).unwrap(), bytes);
    assert_ne!(
        world
            .store
            .initramfs(&record, b"another guest")
            .unwrap()
            .path,
        first.path
    );
    assert!(matches!(
        world.store.initramfs(&record, b""),
        Err(KernelError::NoGuest)
    ));
}

#[test]
fn a_new_guest_replaces_the_oldest_initramfs() {
    let world = World::new();
    let record = world.install();
    let built: Vec<_> = (0..6_u8)
        .map(|guest| world.store.initramfs(&record, &[b'g', guest]).unwrap().path)
        .collect();
    assert!(built.last().unwrap().exists() && !built[0].exists());
    assert_eq!(built.iter().filter(|path| path.exists()).count(), 4);
    let notes = fs::read_dir(world.store.root.join(&record.id))
        .unwrap()
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_str().unwrap().starts_with("initramfs-")
                && name.to_str().unwrap().ends_with(".json")
        });
    assert_eq!(notes.count(), 4);
    fs::write(built.last().unwrap(), b"else").unwrap();
    let divergences = world.store.verify(&record.id).unwrap();
    assert_eq!(divergences.len(), 1);
    assert!(built[5].ends_with(&divergences[0].file));
}

#[test]
fn a_damaged_choice_of_default_says_so_and_goes_with_a_removal() {
    let world = World::new();
    let record = world.install();
    fs::write(world.store.root.join(DEFAULT), b"?").unwrap();
    let error = world.store.default_kernel().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("Choose the default kernel again"),
        "{error}"
    );
    world.store.remove(&record.id).unwrap();
    assert_eq!(world.store.default_kernel().unwrap(), None);
}

#[test]
fn the_initramfs_is_what_cpio_expects() {
    let world = World::new();
    let initramfs = world.store.initramfs(&world.install(), GUEST).unwrap();
    let archive = fs::File::open(&initramfs.path).unwrap();
    let listed = Command::new("cpio")
        .args(["--list", "--verbose", "--numeric-uid-gid"])
        .stdin(archive)
        .output();
    let listed = listed.expect("cpio is needed: install package cpio");
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let lines = String::from_utf8(listed.stdout).unwrap();
    let entries: Vec<(&str, &str)> = lines
        .lines()
        .map(|line| {
            (
                line.split_whitespace().next().unwrap(),
                line.split_whitespace().last().unwrap(),
            )
        })
        .collect();
    for expected in [
        ("-rwxr-xr-x", "init"),
        ("crw-------", "dev/console"),
        ("drwxr-xr-x", "proc"),
        ("-rw-r--r--", "modules/order"),
    ] {
        assert!(entries.contains(&expected), "{expected:?} in {lines}");
    }
    let modules: Vec<_> = entries
        .iter()
        .filter_map(|(_, name)| name.strip_suffix(".ko"))
        .collect();
    assert_eq!(modules.first(), Some(&"modules/000-virtio_ring"));
    assert_eq!(modules.len(), 8);
}

#[test]
fn signatures_stay_where_the_kernel_may_demand_them() {
    let world = World::new();
    let record = world.install();
    assert!(!record.module_signatures_required);
    let marked = |record: &KernelRecord| {
        let initramfs = world.store.initramfs(record, GUEST).unwrap();
        fs::read(initramfs.path)
            .unwrap()
            .windows(25)
            .any(|window| window == b"Module signature appended")
    };
    assert!(!marked(&record));
    let kernel = world.directory.path().join("vmlinuz");
    fs::write(&kernel, vmlinux(true, Some("CONFIG_MODULE_SIG_FORCE=y\n"))).unwrap();
    let record = world.install();
    assert!(record.module_signatures_required && marked(&record));
}

#[test]
fn the_default_is_the_chosen_one_else_the_latest() {
    let world = World::new();
    assert_eq!(world.store.default_kernel().unwrap(), None);
    let first = world.install();
    fs::write(world.directory.path().join("vmlinuz"), vmlinux(true, None)).unwrap();
    // Installation times are told apart by the millisecond.
    let second = loop {
        let second = world.install();
        if second
            .installed_at
            .duration_since(first.installed_at)
            .unwrap()
            .as_millis()
            > 1
        {
            break second;
        }
        world.store.remove(&second.id).unwrap();
    };
    assert_eq!(world.store.default_kernel().unwrap().unwrap().id, second.id);
    world.store.set_default(&first.id).unwrap();
    assert_eq!(world.store.default_kernel().unwrap().unwrap().id, first.id);
    world.store.remove(&first.id).unwrap();
    assert_eq!(
        world.store.ensure_default(&mut |_| {}).unwrap().id,
        second.id
    );
}

#[test]
fn only_the_named_kernel_is_removed() {
    let world = World::new();
    let kept = world.install();
    fs::write(world.directory.path().join("vmlinuz"), vmlinux(true, None)).unwrap();
    let gone = world.install();
    for id in [
        "",
        ".",
        "..",
        "../state",
        "default.json",
        ".lock",
        "6.1.0-none",
    ] {
        assert!(
            matches!(world.store.remove(id), Err(KernelError::NotFound { .. })),
            "{id:?}"
        );
    }
    world.store.remove(&gone.id).unwrap();
    assert_eq!(world.names(), [kept.id]);
    assert!(matches!(
        world.store.inspect(&gone.id),
        Err(KernelError::NotFound { .. })
    ));
}

#[test]
fn an_unusable_kernel_leaves_nothing_behind() {
    let world = World::new();
    let modules = module_tree(&world.directory.path().join("poor"), &["overlay"]);
    let KernelSource::File { kernel, .. } = &world.source else {
        unreachable!()
    };
    let source = KernelSource::File {
        kernel: kernel.clone(),
        modules: Some(modules),
        sha256: None,
    };
    let error = world.store.install(&source, &mut |_| {}).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("lacks what a microVM needs: overlay"),
        "{error}"
    );
    assert_eq!(world.names(), [""; 0]);
}

/// The victim of the test below: installs into `MICROAGENT_KILL_TEST` and waits for its end in the middle of it.
#[test]
#[ignore = "a helper process of killed_at_any_point_the_store_is_whole"]
fn install_and_wait_to_be_killed() {
    let directory = PathBuf::from(std::env::var_os("MICROAGENT_KILL_TEST").unwrap());
    let store = KernelStore::open(&directory.join("state")).unwrap();
    let stop_at = std::env::var("MICROAGENT_KILL_AT").unwrap();
    let source = source(&directory);
    let result = store.install(&source, &mut |progress| {
        if format!("{progress:?}").starts_with(&stop_at) {
            println!("\nready");
            loop {
                std::thread::park();
            }
        }
    });
    panic!("{result:?} before {stop_at}");
}

#[test]
fn killed_at_any_point_the_store_is_whole() {
    for stop_at in ["Extracting", "Storing"] {
        let world = World::new();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::tests::install_and_wait_to_be_killed",
                "--ignored",
                "--nocapture",
            ])
            .env("MICROAGENT_KILL_TEST", world.directory.path())
            .env("MICROAGENT_KILL_AT", stop_at)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap() == "ready"),
            "the helper ended early"
        );
        child.kill().unwrap();
        child.wait().unwrap();

        assert!(world.store.list().unwrap().kernels.is_empty());
        assert!(
            world.names().iter().all(|name| name.starts_with(TEMPORARY))
                && !world.names().is_empty()
        );
        let record = world.install();
        assert_eq!(world.names(), std::slice::from_ref(&record.id));
        assert_eq!(world.store.verify(&record.id).unwrap(), []);
    }
}

#[test]
fn a_half_removed_kernel_is_gone_and_cleaned_up() {
    let world = World::new();
    let record = world.install();
    let doomed = world
        .store
        .root
        .join(format!("{TEMPORARY}removed-{}", record.id));
    fs::rename(world.store.root.join(&record.id), doomed).unwrap();
    assert!(world.store.list().unwrap().kernels.is_empty());
    assert_eq!(world.install().id, record.id);
    assert_eq!(world.names(), [record.id]);
}

#[test]
fn installers_take_turns() {
    let world = World::new();
    let lock = world.store.lock(|| {}).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let installer = scope.spawn(|| {
            world.store.install(&world.source, &mut |progress| {
                sender.send(progress).unwrap();
            })
        });
        assert_eq!(receiver.recv().unwrap(), KernelProgress::Waiting);
        assert_eq!(world.names(), [""; 0]);
        drop(lock);
        installer.join().unwrap().unwrap();
    });
    assert_eq!(receiver.try_recv().unwrap(), KernelProgress::Extracting);
}
