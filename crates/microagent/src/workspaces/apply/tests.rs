//! A workspace on disk, without a machine: what can become of it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use microagent_host::lock::{Lock, Sharing};
use microagent_image::{ImageStore, ImportOptions};
use microagent_protocol::{Timestamp, supervisor::MACHINE_LOCK};
use proptest::prelude::*;
use serde_json::Value;

use super::{compare::Circumstances, *};
use crate::{
    Config, Spec, SupervisorProgram,
    result::KernelInfo,
    workspaces::{
        Workspaces,
        manifest::{Hashed, MANIFEST, Part, Parts},
    },
};

/// The spec of the workspace `web`.
const SPEC: &str = "
image: web:1
restart: on-failure
entrypoint: [serve]
env: {A: 1, SECRET: hush}
user: www
workdir: /srv
setup: [one]
resources: {memoryMiB: 512, cpuCount: 2, sizeMiB: 1024}
network: {mode: isolated, forwards: [{hostPort: 8080, guestPort: 80}]}
mediation: {port: 2048, target: '127.0.0.1:9900'}
";

/// A state directory with an image and the workspace `web`, made of [`SPEC`].
struct Place {
    dir: tempfile::TempDir,
    config: Config,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(
            dir.path().join("state"),
            dir.path().join("run"),
            SupervisorProgram::ThisProgram,
        );
        let tar = dir.path().join("image.tar");
        fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        let packed = Command::new("tar")
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .args([&dir.path().join("root"), Path::new(".")])
            .status()
            .unwrap();
        assert!(packed.success());
        let store = ImageStore::open(config.images_dir()).unwrap();
        let options = ImportOptions::new()
            .reference("web:1".parse().unwrap())
            .build_disk(false);
        let record = store.import(&tar, &options, &|_| {}).unwrap();
        let part = || Part {
            path: PathBuf::from("/none"),
            sha256: String::new(),
            hashed: Hashed::Whole,
        };
        let directory = config.workspaces_dir().join("web");
        fs::create_dir_all(&directory).unwrap();
        let blank = Manifest {
            name: "web".parse().unwrap(),
            ephemeral: false,
            created_at: Timestamp(std::time::UNIX_EPOCH),
            image: crate::ImageInfo {
                reference: record.reference.canonical(),
                digest: record.digest.to_string(),
                platform: record.platform.to_string(),
            },
            kernel: KernelInfo {
                id: "k".to_owned(),
                release: "6.1".to_owned(),
                sha256: String::new(),
            },
            parts: Parts {
                kernel: part(),
                initramfs: part(),
                base_disk: part(),
                guest_sha256: String::new(),
            },
            backend: Default::default(),
            resources: crate::Profile::Small.resources(),
            network: Default::default(),
            hostname: "web".to_owned(),
            workload: None,
            session: ExecRequest {
                role: ExecRole::Command,
                argv: Vec::new(),
                env: Vec::new(),
                cwd: None,
                user: None,
                tty: None,
                stdin: false,
                stop_signal: None,
            },
            setup: Vec::new(),
            files: Vec::new(),
            shell: None,
            disks: Vec::new(),
            publish: Vec::new(),
            mediation: Vec::new(),
            artifacts: Vec::new(),
            restart: Default::default(),
            health: None,
        };
        blank.write(&directory).unwrap();
        let place = Self { dir, config };
        let made = place
            .open()
            .wanted(&place.options(SPEC), &Default::default());
        made.unwrap().write(&directory).unwrap();
        place
    }

    fn open(&self) -> Workspace<'_> {
        Workspaces::new(&self.config).open("web").unwrap()
    }

    fn options(&self, spec: &str) -> CreateOptions {
        let spec = Spec::parse(spec, "microagent.yaml", self.dir.path()).unwrap();
        spec.options().unwrap()
    }

    fn apply(&self, spec: &str) -> Result<Applied> {
        self.open().apply(&self.options(spec))
    }

    fn refused(&self, spec: &str) -> Vec<RefusedChange> {
        match self.apply(spec) {
            Err(Error::Unchangeable { refused, .. }) => refused,
            other => panic!("{other:?}"),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.open().directory.join(MANIFEST)).unwrap()
    }
}

/// [`SPEC`] with a line in place of another.
fn with(old: &str, new: &str) -> String {
    assert!(SPEC.contains(old), "{old}");
    SPEC.replace(old, new)
}

#[test]
fn what_is_the_same_changes_nothing() {
    let place = Place::new();
    let before = place.bytes();
    let applied = place.apply(SPEC).unwrap();
    assert!(!applied.changed && applied.changes.is_empty());
    // The image by its digest, variables in another order, and no image at all mean the same.
    let digest = place.open().manifest.image.digest.clone();
    for spec in [
        with("web:1", &format!("web@{digest}")),
        with("A: 1, SECRET: hush", "SECRET: hush, A: 1"),
        with("image: web:1", ""),
    ] {
        assert!(!place.apply(&spec).unwrap().changed, "{spec}");
    }
    assert_eq!(place.bytes(), before, "not even written");
}

#[test]
fn everything_that_can_change_at_rest_does_and_is_told() {
    let place = Place::new();
    let spec = "
image: web:1
restart: always
entrypoint: [serve, '--fast']
shell: /bin/bash
hostname: www
user: root
env: {A: 2, NEW: x}
setup: [two]
resources: {memoryMiB: 1024, cpuCount: 1, sizeMiB: 1024}
network: {mode: user, forwards: [{hostPort: 8081, guestPort: 80}]}
health: {exec: [ok]}
";
    let before = place.bytes();
    let plan = place.open().plan_apply(&place.options(spec)).unwrap();
    assert_eq!(place.bytes(), before, "a plan touches nothing");
    let applied = place.apply(spec).unwrap();
    assert_eq!((&plan.changes, plan.refused.len()), (&applied.changes, 0));
    let told: Vec<_> = applied
        .changes
        .iter()
        .map(|change| {
            (
                change.field.as_str(),
                change.old.as_deref().unwrap_or("none"),
                change.new.as_deref().unwrap_or("none"),
            )
        })
        .collect();
    let hidden = "(not shown)";
    assert_eq!(
        told,
        [
            ("restart", "on-failure", "always"),
            ("command", r#"["serve"]"#, r#"["serve","--fast"]"#),
            ("shell", "none", "/bin/bash"),
            ("hostname", "web", "www"),
            ("user", "www", "root"),
            ("workdir", "/srv", "none"),
            ("setup", r#""one""#, r#""two""#),
            ("env.A", hidden, hidden),
            ("env.NEW", "none", hidden),
            ("env.SECRET", hidden, "none"),
            ("resources.memoryMiB", "512 MiB", "1024 MiB"),
            ("resources.cpuCount", "2", "1"),
            ("network.mode", "isolated", "user"),
            (
                "network.forwards",
                "127.0.0.1:8080:80/tcp",
                "127.0.0.1:8081:80/tcp"
            ),
            ("mediation", "2048=127.0.0.1:9900 x128", "none"),
            (
                "health",
                "none",
                r#"{"probe":{"exec":["ok"]},"interval_seconds":30,"timeout_seconds":5,"retries":3,"start_period_seconds":0}"#
            ),
        ]
    );
    for change in &applied.changes {
        let now = change.field == "restart";
        assert_eq!(change.effect == Effect::Now, now, "{change:?}");
    }
    let workspace = place.open();
    let manifest = &workspace.manifest;
    let workload = manifest.workload.as_ref().unwrap();
    assert_eq!(workload.argv, ["serve", "--fast"]);
    assert_eq!(
        workload.env, manifest.session.env,
        "the workload has it, too"
    );
    assert_eq!(workload.user.as_deref(), Some("root"));
    assert!(!place.apply(spec).unwrap().changed, "twice is once");
}

#[test]
fn what_cannot_change_is_named_and_nothing_changes() {
    let place = Place::new();
    let before = place.bytes();
    let spec = with("web:1", "web:2")
        .replace("1024", "2048")
        .replace("always", "never")
        + "hostname: other\nbundles: [{name: b, path: image.tar, mountpoint: /b}]\n";
    let refused = place.refused(&spec);
    let fields: Vec<_> = refused.iter().map(|change| change.field.as_str()).collect();
    assert_eq!(fields, ["image", "resources.sizeMiB", "bundles"]);
    assert_eq!(
        (refused[1].old.as_deref(), refused[1].new.as_deref()),
        (Some("1024 MiB"), Some("2048 MiB"))
    );
    let error = place.apply(&spec).unwrap_err();
    let text = error.to_string();
    for words in ["image", "web:1 to ", "web:2", "1024 MiB to 2048 MiB"] {
        assert!(text.contains(words), "{text}");
    }
    let remedy = error.report().remedy.unwrap();
    assert!(remedy.contains("microagent create"), "{remedy}");
    assert_eq!(place.bytes(), before, "not even the host name");
}

#[test]
fn setup_that_ran_is_over_and_setup_that_did_not_can_change() {
    let place = Place::new();
    assert!(place.apply(&with("[one]", "[two]")).unwrap().changed);
    launch::setup_is_done(&place.open().directory).unwrap();
    let refused = place.refused(&with("[one]", "[three]"));
    assert_eq!(refused[0].field, "setup");
    assert!(
        refused[0].remedy.contains("microagent exec web"),
        "{refused:?}"
    );
}

#[test]
fn a_live_workspace_keeps_what_its_machine_was_told() {
    let place = Place::new();
    let machine = File::create(place.open().directory.join(MACHINE_LOCK)).unwrap();
    let _machine = Lock::now(machine, Sharing::Exclusive).unwrap().unwrap();
    for (old, new, field) in [
        ("A: 1", "A: 2", "env.A"),
        ("isolated", "user", "network.mode"),
        ("hostPort: 8080", "hostPort: 8081", "network.forwards"),
        ("9900", "9901", "mediation"),
        ("serve", "other", "command"),
    ] {
        let refused = place.refused(&with(old, new));
        assert_eq!(refused[0].field, field);
        assert!(
            refused[0].remedy.contains("microagent halt web"),
            "{refused:?}"
        );
    }
    // Size and policy can be written down for later.
    for (old, new, effect) in [
        ("memoryMiB: 512", "memoryMiB: 640", Effect::NextStart),
        ("on-failure", "always", Effect::Now),
        (
            "image: web:1",
            "image: web:1\noutputs: [{name: a, path: /a}]",
            Effect::Now,
        ),
    ] {
        let applied = place.apply(&with(old, new)).unwrap();
        assert!(
            applied.changes.iter().any(|change| change.effect == effect),
            "{applied:?}"
        );
    }
    // Where a port of the host is bound is the machine's to change, and this one does not answer.
    let before = place.bytes();
    let spec = with("hostPort: 8080,", "hostPort: 8080, host: 0.0.0.0,");
    let plan = place.open().plan_apply(&place.options(&spec)).unwrap();
    let moves = plan.changes.iter();
    let mut moves = moves.filter(|change| change.field == "network.forwards");
    assert_eq!(moves.next().unwrap().effect, Effect::Now);
    let error = place.apply(&spec).unwrap_err();
    assert!(matches!(error, Error::State { .. }), "{error}");
    assert_eq!(place.bytes(), before);
}

#[test]
fn an_image_that_is_not_here_any_more_is_named() {
    let place = Place::new();
    fs::remove_file(place.config.images_dir().join("index.json")).unwrap();
    let error = place.apply(SPEC).unwrap_err();
    assert!(matches!(error, Error::Image(_)), "{error:?}");
}

/// Every key of a manifest is compared, or stays by definition.
#[test]
fn no_part_of_a_manifest_is_forgotten() {
    const STAYS: [&str; 6] = [
        "name",
        "ephemeral",
        "created_at",
        "parts",
        "kernel",
        "backend",
    ];
    let place = Place::new();
    let old = place.open().manifest;
    let mut new = old.clone();
    new.image.reference = "other".to_owned();
    new.resources = crate::Profile::Tiny.resources();
    new.network = microagent_protocol::NetworkMode::User;
    new.hostname = "other".to_owned();
    new.workload = None;
    new.session.user = None;
    new.setup = vec!["x".to_owned()];
    new.files = vec![crate::HostFile {
        src: "/a".into(),
        dst: "/a".parse().unwrap(),
        mode: None,
    }];
    new.shell = Some("/bin/x".to_owned());
    new.disks = crate::Wiring::default()
        .volume("/d.ext4:/d".parse().unwrap())
        .attached(place.dir.path());
    new.publish = Vec::new();
    new.mediation = Vec::new();
    new.artifacts = vec!["a=/a".parse().unwrap()];
    new.restart = crate::RestartPolicy::Never;
    new.health = place
        .options(&(SPEC.to_owned() + "health: {exec: [ok]}\n"))
        .health;
    let as_object = |manifest: &Manifest| match serde_json::to_value(manifest).unwrap() {
        Value::Object(map) => map,
        other => panic!("{other}"),
    };
    let (before, after) = (as_object(&old), as_object(&new));
    let kept: Vec<_> = before
        .keys()
        .filter(|key| before[*key] == after[*key])
        .map(String::as_str)
        .collect();
    let untold: Vec<_> = kept
        .into_iter()
        .filter(|key| !STAYS.contains(key))
        .collect();
    assert!(
        untold.is_empty(),
        "{untold:?}: change it above, and see that it is told"
    );
    let circumstances = Circumstances {
        name: &old.name,
        directory: place.dir.path(),
        live: false,
        set_up: true,
    };
    let (changes, refused) = circumstances.compare(&old, &new);
    let told = changes.len() + refused.len();
    // image, three sizes, mode, host name, command, user, setup, files, shell, disks, forwards,
    // mediation, outputs, restart, health
    assert_eq!(told, 17, "{changes:?} {refused:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever is asked for: all of it is so afterwards, or nothing changed, and it stays sealed.
    #[test]
    fn all_or_nothing(
        memory in prop::sample::select(vec![256, 512, 1024]),
        size in prop::sample::select(vec![1024, 1024, 1024, 4096]),
        bind in prop::sample::select(vec!["127.0.0.1", "0.0.0.0", "::1"]),
        env in "[a-z]{0,3}",
        live in any::<bool>(),
    ) {
        let place = Place::new();
        let directory = place.open().directory.clone();
        let lock = File::create(directory.join(MACHINE_LOCK)).unwrap();
        let _machine = live.then(|| Lock::now(lock, Sharing::Exclusive).unwrap().unwrap());
        let spec = with("memoryMiB: 512", &format!("memoryMiB: {memory}"))
            .replace("sizeMiB: 1024", &format!("sizeMiB: {size}"))
            .replace("guestPort: 80", &format!("guestPort: 80, host: '{bind}'"))
            .replace("hush", &format!("'{env}'"));
        let before = place.bytes();
        let plan = place.open().plan_apply(&place.options(&spec)).unwrap();
        // Ports of a machine that does not answer cannot move.
        let moves = live && bind != "127.0.0.1";
        match place.apply(&spec) {
            Ok(applied) => {
                prop_assert!(size == 1024 && (!live || env == "hush") && !moves);
                prop_assert_eq!(applied.changes, plan.changes);
                let again = place.open().plan_apply(&place.options(&spec)).unwrap();
                prop_assert!(again.changes.is_empty() && again.refused.is_empty());
                let wanted = place.open().wanted(&place.options(&spec), &Default::default()).unwrap();
                prop_assert_eq!(&place.open().manifest, &wanted);
            }
            Err(Error::Unchangeable { refused, .. }) => {
                prop_assert_eq!(&refused, &plan.refused);
                prop_assert!(size != 1024 || (live && env != "hush"));
                prop_assert!(place.bytes() == before);
            }
            Err(Error::State { .. }) => {
                prop_assert!(moves && size == 1024 && env == "hush");
                prop_assert!(place.bytes() == before);
            }
            Err(error) => panic!("{error}"),
        }
    }
}
