//! A state directory with a kernel and images in it, and a runtime directory to look for leftovers in.

use std::{
    fs::{File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{Invocation, Leftovers, cache_dir, evidence, fixture};

/// A place to run microagent in. Its kernel and images are shared by all
/// tests and made once; its runtime directory is its own and must be empty at
/// the end.
#[derive(Debug)]
pub struct Sandbox {
    program: PathBuf,
    state: PathBuf,
    runtime: tempfile::TempDir,
    own_state: Option<tempfile::TempDir>,
    marker: String,
    runs: AtomicU32,
    /// Names of workspaces that were run.
    names: Mutex<Vec<String>>,
}

impl Sandbox {
    /// The tiny busybox image, which every sandbox has.
    pub const BUSYBOX: &'static str = "busybox:test";
    /// An image with one program and no shell.
    pub const SHELL_LESS: &'static str = "shell-less:test";
    /// A Debian 12 (minbase).
    pub const DEBIAN: &'static str = "debian:12";

    /// A sandbox for the executable `program` on the shared state.
    #[must_use]
    pub fn new(program: &str) -> Self {
        let sandbox = Self::make(program, cache_dir().join("state"), None);
        sandbox.fill();
        sandbox
    }

    /// A sandbox whose state directory is its own, and empty.
    #[must_use]
    pub fn empty(program: &str) -> Self {
        let own = tempfile::tempdir().expect("a state directory");
        Self::make(program, own.path().join("state"), Some(own))
    }

    /// A sandbox whose state directory is its own, with the kernel and the images of the shared
    /// one and no workspaces.
    #[must_use]
    pub fn own(program: &str) -> Self {
        let shared = Self::new(program);
        let sandbox = Self::empty(program);
        std::fs::create_dir(&sandbox.state).expect("the state directory");
        // The verdict on the host is there only after a first machine.
        let parts = ["images", "kernels", "host"].map(|part| shared.state.join(part));
        let copied = Command::new("cp")
            .args(["-a", "--reflink=auto", "--sparse=always"])
            .args(parts.iter().filter(|part| part.exists()))
            .arg(&sandbox.state)
            .status()
            .expect("cp starts");
        assert!(copied.success(), "the shared state can be copied");
        std::fs::set_permissions(&sandbox.state, Permissions::from_mode(0o700))
            .expect("the state directory's mode");
        sandbox
    }

    fn make(program: &str, state: PathBuf, own_state: Option<tempfile::TempDir>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let marker = format!(
            "t{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        // Short: Unix socket paths are limited to 107 bytes.
        let runtime = tempfile::Builder::new()
            .prefix("ma-")
            .tempdir_in("/tmp")
            .expect("a runtime directory");
        Self {
            program: program.into(),
            state,
            runtime,
            own_state,
            marker,
            runs: AtomicU32::new(0),
            names: Mutex::default(),
        }
    }

    /// Makes what is missing of the shared state, one test process at a time.
    #[expect(
        clippy::disallowed_methods,
        reason = "whoever waits for it waits a little longer"
    )]
    fn fill(&self) {
        let lock =
            File::create(cache_dir().join("state.lock")).expect("the lock of the shared state");
        lock.lock().expect("the lock of the shared state");
        let list = self.microagent(["kernel", "list"]).json().run().success();
        let list = list.parsed();
        // One that an older version installed lacks what is newer.
        if !list.to_string().contains("virtio_balloon") {
            for kernel in list["kernels"].as_array().into_iter().flatten() {
                let id = kernel["id"].as_str().expect("a kernel's id");
                self.microagent(["kernel", "rm", id]).run().success();
            }
            self.microagent(["kernel", "install"]).run().success();
        }
        for (reference, tar) in [
            (Self::BUSYBOX, fixture::busybox_tar as fn() -> PathBuf),
            (Self::SHELL_LESS, fixture::shell_less_tar),
            (Self::DEBIAN, fixture::debian_tar),
        ] {
            if self
                .microagent(["images", "inspect", reference])
                .run()
                .code()
                != 0
            {
                self.import(reference, &tar());
            }
        }
    }

    /// Imports the archive at `path` as `reference`.
    pub fn import(&self, reference: &str, path: &Path) {
        self.microagent(["images", "import", "--name", reference])
            .args([path.to_str().expect("a UTF-8 path")])
            .run()
            .success();
    }

    /// `microagent ARGUMENTS` in this sandbox.
    #[must_use]
    pub fn microagent<const N: usize>(&self, arguments: [&str; N]) -> Invocation {
        Invocation::new(
            &self.program,
            &self.state,
            self.runtime.path(),
            &self.marker,
        )
        .args(arguments)
    }

    /// Another program, with everything else as microagent would have it here.
    #[must_use]
    pub fn program(&self, program: &str) -> Invocation {
        Invocation::new(
            Path::new(program),
            &self.state,
            self.runtime.path(),
            &self.marker,
        )
    }

    /// `microagent run --name <unique> ARGUMENTS` in this sandbox.
    #[must_use]
    pub fn run<const N: usize>(&self, arguments: [&str; N]) -> Invocation {
        let name = format!(
            "{}-{}",
            self.marker,
            self.runs.fetch_add(1, Ordering::Relaxed)
        );
        self.run_as(&name, arguments)
    }

    /// `microagent run --name NAME ARGUMENTS` in this sandbox.
    #[must_use]
    pub fn run_as<const N: usize>(&self, name: &str, arguments: [&str; N]) -> Invocation {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.push(name.to_owned());
        drop(names);
        self.microagent(["run", "--name", name]).args(arguments)
    }

    /// `sh -c SCRIPT` in `directory`, where `microagent` is this sandbox's.
    #[must_use]
    pub fn shell(&self, script: &str, directory: &Path) -> Invocation {
        let beside = self.program.parent().expect("the executable's directory");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(
            std::iter::once(beside.to_owned()).chain(std::env::split_paths(&path)),
        )
        .expect("a search path");
        Invocation::new(
            Path::new("/bin/sh"),
            &self.state,
            self.runtime.path(),
            &self.marker,
        )
        .env("PATH", path.to_str().expect("a UTF-8 search path"))
        .inside(directory)
        .args(["-c", script])
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The runtime directory.
    #[must_use]
    pub fn runtime(&self) -> &Path {
        self.runtime.path()
    }

    /// Whether the state directory is this sandbox's own.
    #[must_use]
    pub fn owns_state(&self) -> bool {
        self.own_state.is_some()
    }

    /// What this sandbox's commands left behind.
    #[must_use]
    pub fn leftovers(&self) -> Leftovers {
        let runs = self.runs.load(Ordering::Relaxed);
        let names = (0..runs)
            .map(|run| format!("{}-{run}", self.marker))
            .collect();
        Leftovers::find(&self.state, self.runtime.path(), &self.marker, names)
    }
}

impl Drop for Sandbox {
    /// A test that failed shows what its workspaces recorded, and leaves its machines to nobody.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let names = self.names.get_mut().unwrap_or_else(PoisonError::into_inner);
            let runtime = self.runtime.path();
            eprintln!("{}", evidence::collect(&self.state, runtime, names));
            self.leftovers().kill();
        }
    }
}
