//! Files that a crash cut short or a disk has rotted.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use microagent::{
    Config, CreateOptions, Microagent, Profile, RunIo, RunOptions, StartOptions, SupervisorProgram,
    Verify,
};
use serde_json::Value;
use testkit::Sandbox;

use crate::random::Random;

/// How many bits of each file are turned over, one at a time.
const FLIPS: usize = 400;

/// A workspace that has run once, and its directory as it was then.
struct Victim {
    sandbox: Sandbox,
    whole: tempfile::TempDir,
}

impl Victim {
    const NAME: &str = "torn";

    fn new() -> Self {
        let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
        // Disks and their records are made anew: those of the cache may be of another version.
        fs::remove_dir_all(sandbox.state().join("images/disks")).unwrap();
        let whole = tempfile::tempdir().unwrap();
        let victim = Self { sandbox, whole };
        let microagent = victim.microagent();
        let options = RunOptions::new(Sandbox::BUSYBOX)
            .name(Self::NAME)
            .profile(Profile::Tiny)
            .command(["echo", "done"]);
        let workspaces = microagent.workspaces();
        workspaces
            .create(&CreateOptions::new(options), RunIo::captured())
            .unwrap();
        let mut workspace = workspaces.open(Self::NAME).unwrap();
        workspace
            .start(&StartOptions::new(), RunIo::captured())
            .unwrap();
        workspace.wait(Some(Duration::from_secs(60))).unwrap();
        for entry in fs::read_dir(victim.directory()).unwrap() {
            let path = entry.unwrap().path();
            // Whatever stands in the scratch disk is the guest's to worry about.
            if path.extension().is_none_or(|extension| extension != "ext4") && path.is_file() {
                fs::copy(&path, victim.whole.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        victim
    }

    fn microagent(&self) -> Microagent {
        let supervisor = SupervisorProgram::At(env!("CARGO_BIN_EXE_microagent").into());
        Microagent::new(Config::new(
            self.sandbox.state(),
            self.sandbox.runtime(),
            supervisor,
        ))
    }

    fn directory(&self) -> PathBuf {
        self.sandbox.state().join("workspaces").join(Self::NAME)
    }

    /// The state files, by name.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(self.whole.path())
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read(&path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    /// Everything that reads the workspace gives an answer or a reason, and nothing is believed
    /// that was not written.
    fn is_read(&self, what: &str, original_manifest: &[u8]) {
        let microagent = self.microagent();
        let workspaces = microagent.workspaces();
        let rows = workspaces.list().unwrap();
        assert_eq!(rows.len(), 1, "{what}: it is still listed");
        let manifest = fs::read(self.directory().join("manifest.json")).unwrap();
        match workspaces.open(Self::NAME) {
            Ok(workspace) => {
                assert_eq!(
                    manifest, original_manifest,
                    "{what}: a changed manifest is believed"
                );
                let status = workspace.status(Verify::Changed);
                let history = workspace.history().unwrap();
                assert!(history.events.len() <= 32, "{what}: {history:?}");
                // A result that is torn is said to be; everything else has an answer.
                if let Err(error) = status {
                    let reason = error.to_string();
                    assert!(reason.contains("result.json"), "{what}: {reason}");
                }
            }
            Err(error) => assert!(
                error.to_string().contains("manifest.json"),
                "{what}: {error}"
            ),
        }
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.directory().join(name), bytes).unwrap();
    }

    fn copy_of_directory(&self, to: &Path) {
        let copied = std::process::Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(self.directory())
            .arg(to)
            .status()
            .unwrap();
        assert!(copied.success());
    }
}

#[test]
fn no_torn_or_rotten_file_is_believed_or_keeps_a_workspace_from_being_deleted() {
    let mut random = Random::seeded("torn");
    let victim = Victim::new();
    let files = victim.files();
    let manifest = fs::read(victim.directory().join("manifest.json")).unwrap();
    for expected in [
        "manifest.json",
        "events.jsonl",
        "result.json",
        "machine.json",
    ] {
        assert!(
            files.iter().any(|(name, _)| name == expected),
            "{expected} is a state file"
        );
    }
    let mut looks = 0;
    for (name, whole) in &files {
        if name.ends_with(".log") {
            continue; // Shown as it is, whatever it is.
        }
        for length in 0..whole.len() {
            victim.put(name, &whole[..length]);
            victim.is_read(&format!("{name} cut to {length} bytes"), &manifest);
            looks += 1;
        }
        if !whole.is_empty() {
            for _ in 0..FLIPS {
                let (byte, bit) = (random.below(whole.len()), random.below(8));
                let mut rotten = whole.clone();
                rotten[byte] ^= 1 << bit;
                victim.put(name, &rotten);
                victim.is_read(
                    &format!("{name} with bit {bit} of byte {byte} turned"),
                    &manifest,
                );
                looks += 1;
            }
        }
        // Removing it always works, however it is torn.
        let spare = tempfile::tempdir_in(victim.sandbox.state()).unwrap();
        victim.copy_of_directory(spare.path());
        victim.put(name, &whole[..whole.len() / 2]);
        let microagent = victim.microagent();
        let removed = microagent.workspaces().remove(Victim::NAME, false).unwrap();
        assert!(removed.deleted, "with {name} torn");
        fs::rename(spare.path().join(Victim::NAME), victim.directory()).unwrap();
        victim.put(name, whole);
        victim.is_read(&format!("{name} restored"), &manifest);
    }
    println!("{looks} torn files were read");

    // And it still runs.
    let microagent = victim.microagent();
    let mut workspace = microagent.workspaces().open(Victim::NAME).unwrap();
    workspace
        .start(&StartOptions::new(), RunIo::captured())
        .unwrap();
    workspace.wait(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(workspace.result().unwrap().unwrap().stdout.data, "done\n");
    assert!(
        microagent
            .workspaces()
            .remove(Victim::NAME, false)
            .unwrap()
            .deleted
    );
    victim.sandbox.leftovers().none(&[]);
}

#[test]
fn a_changed_byte_of_anything_that_boots_keeps_a_workspace_from_starting() {
    let mut random = Random::seeded("tampering");
    let victim = Victim::new();
    let microagent = victim.microagent();
    let status = microagent
        .workspaces()
        .open(Victim::NAME)
        .unwrap()
        .status(Verify::Changed)
        .unwrap();
    assert!(status.verification.ok);
    let manifest = fs::read_to_string(victim.directory().join("manifest.json")).unwrap();
    let body: Value = serde_json::from_str(manifest.split_once('\n').unwrap().1).unwrap();
    let mut files: Vec<(&str, PathBuf, String)> = ["kernel", "initramfs", "base_disk"]
        .map(|part| {
            let of = |what: &str| body["parts"][part][what].as_str().unwrap().to_owned();
            (part, of("path").into(), of("sha256"))
        })
        .into();
    // The disk is a list of files, and says what each is to be.
    let list = files[2].1.clone();
    let text = fs::read_to_string(&list).unwrap();
    for line in text.lines().filter_map(|line| line.strip_prefix("# sums ")) {
        let (digest, name) = line.split_once(' ').unwrap();
        files.push(("base_disk", list.with_file_name(name), digest.to_owned()));
    }
    assert!(files.len() >= 5, "{files:?}");
    for (part, path, recorded) in &files {
        let mode = fs::metadata(path).unwrap().permissions();
        let length = fs::metadata(path).unwrap().len();
        for round in 0..4 {
            let at = random.next() % length;
            let turn = || {
                use std::os::unix::fs::{FileExt, PermissionsExt};
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
                let file = fs::File::options()
                    .read(true)
                    .write(true)
                    .open(path)
                    .unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
                drop(file);
                fs::set_permissions(path, mode.clone()).unwrap();
            };
            turn();
            let mut workspace = microagent.workspaces().open(Victim::NAME).unwrap();
            let refused = workspace
                .start(&StartOptions::new(), RunIo::captured())
                .unwrap_err()
                .to_string();
            let what = format!("{part}, byte {at}, round {round}: {refused}");
            assert!(
                refused.contains(part) && refused.contains(recorded.as_str()),
                "{what}"
            );
            let shown = workspace.status(Verify::Changed).unwrap().verification;
            assert!(!shown.ok && shown.divergence.len() == 1, "{what}");
            turn();
            assert!(
                workspace.status(Verify::Changed).unwrap().verification.ok,
                "{what}"
            );
        }
    }
    any_byte_of_what_the_store_says(&victim, &microagent, &body);
    assert!(
        microagent
            .workspaces()
            .remove(Victim::NAME, false)
            .unwrap()
            .deleted
    );
}

/// The same of the image's manifest and of the record of its disk, each byte of them.
fn any_byte_of_what_the_store_says(victim: &Victim, microagent: &Microagent, body: &Value) {
    let images = victim.sandbox.state().join("images");
    let image = body["image"]["digest"].as_str().unwrap();
    let disk = Path::new(body["parts"]["base_disk"]["path"].as_str().unwrap());
    let sums = body["parts"]["base_disk"]["sha256"].as_str().unwrap();
    let blob = images.join("blobs").join(image.replace(':', "/"));
    for (path, expected) in [(blob, image), (disk.with_extension("json"), sums)] {
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut rotten = whole.clone();
            rotten[at] ^= 1 << (at % 8);
            fs::write(&path, &rotten).unwrap();
            let mut workspace = microagent.workspaces().open(Victim::NAME).unwrap();
            let what = format!("byte {at} of {}", path.display());
            let shown = workspace.status(Verify::Changed).unwrap().verification;
            assert!(!shown.ok, "{what}");
            let [found] = &shown.divergence[..] else {
                panic!("{what}: {shown:?}");
            };
            assert_eq!(found.expected, expected, "{what}");
            assert!(!found.actual.is_empty() && found.actual != expected);
            if at % 64 == 0 {
                let refused = workspace
                    .start(&StartOptions::new(), RunIo::captured())
                    .unwrap_err()
                    .to_string();
                for words in [path.to_str().unwrap(), expected, &found.actual] {
                    assert!(refused.contains(words), "{what}: {refused}");
                }
            }
        }
        fs::write(&path, &whole).unwrap();
        let workspace = microagent.workspaces().open(Victim::NAME).unwrap();
        let shown = workspace.status(Verify::Changed).unwrap();
        assert!(shown.verification.ok, "{:?}", shown.verification);
    }
}
