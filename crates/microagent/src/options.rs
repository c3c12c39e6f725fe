//! What to run and how: one builder method for every choice a `run` has.

use std::{path::PathBuf, time::Duration};

use microagent_image::{Platform, PullPolicy, VerifyKey};
use microagent_protocol::{
    BackendChoice, DeclaredArtifact, FileMode, GuestPath, Mebibytes, MediationRoute, NetworkMode,
    PublishedPort, TtySize, VcpuCount,
};
use serde::{Deserialize, Serialize};

use crate::{
    profile::{Profile, Resources},
    wiring::{Volume, Wiring},
};

/// Which kernel boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KernelChoice {
    /// The default one; installed first if there is none.
    #[default]
    Default,
    /// An installed one, by its id.
    Installed(String),
    /// A kernel file, installed first if it is not.
    File {
        /// A bzImage or an uncompressed ELF image.
        kernel: PathBuf,
        /// The directory of its modules; without it every driver must be built in.
        modules: Option<PathBuf>,
    },
}

/// A change to the image's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EnvChange {
    Set(String, String),
    Remove(String),
}

/// A file or directory of the host that is copied into a workspace before anything runs in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFile {
    /// Where it is on the host; absolute.
    pub src: PathBuf,
    /// Where it goes in the guest; directories above it are made.
    pub dst: GuestPath,
    /// Its permissions; those it has on the host by default.
    #[serde(default)]
    pub mode: Option<FileMode>,
}

/// What to run and how.
///
/// Nothing is checked here: [`crate::Microagent::run`] checks everything before it does anything.
///
/// ```
/// use std::time::Duration;
/// use microagent::{Profile, RunOptions};
///
/// let options = RunOptions::new("debian:12")
///     .command(["sh", "-c", "echo $GREETING"])
///     .env("GREETING", "hello")
///     .profile(Profile::Tiny)
///     .timeout(Duration::from_secs(30));
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RunOptions {
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    pub(crate) shell: Option<String>,
    pub(crate) shell_program: Option<String>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) setup: Vec<String>,
    pub(crate) files: Vec<HostFile>,
    pub(crate) env: Vec<EnvChange>,
    pub(crate) workdir: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) keep: bool,
    pub(crate) tty: Option<TtySize>,
    pub(crate) profile: Profile,
    pub(crate) memory: Option<Mebibytes>,
    pub(crate) vcpus: Option<VcpuCount>,
    pub(crate) disk: Option<Mebibytes>,
    pub(crate) headroom: Option<Mebibytes>,
    pub(crate) network: NetworkMode,
    pub(crate) wiring: Wiring,
    pub(crate) outputs: Vec<DeclaredArtifact>,
    pub(crate) artifacts_dir: Option<PathBuf>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) backend: BackendChoice,
    pub(crate) kernel: KernelChoice,
    pub(crate) pull: PullPolicy,
    pub(crate) verify_key: Option<VerifyKey>,
    pub(crate) platform: Option<Platform>,
}

impl RunOptions {
    /// Runs the command that `image` names, in a machine of the default size.
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            command: Vec::new(),
            shell: None,
            shell_program: None,
            entrypoint: None,
            setup: Vec::new(),
            files: Vec::new(),
            env: Vec::new(),
            workdir: None,
            user: None,
            hostname: None,
            name: None,
            keep: false,
            tty: None,
            profile: Profile::default(),
            memory: None,
            vcpus: None,
            disk: None,
            headroom: None,
            network: NetworkMode::default(),
            wiring: Wiring::default(),
            outputs: Vec::new(),
            artifacts_dir: None,
            timeout: None,
            backend: BackendChoice::default(),
            kernel: KernelChoice::default(),
            pull: PullPolicy::Missing,
            verify_key: None,
            platform: None,
        }
    }

    /// Another image.
    pub fn image(mut self, image: impl Into<String>) -> Self {
        self.image = image.into();
        self
    }

    /// Runs this instead of the image's `Cmd`; the image's `Entrypoint` stays in front of it.
    pub fn command<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.command = argv.into_iter().map(Into::into).collect();
        self
    }

    /// Runs `/bin/sh -c script`, whatever the image's `Entrypoint` and `Cmd` are.
    pub fn shell(mut self, script: impl Into<String>) -> Self {
        self.shell = Some(script.into());
        self
    }

    /// The guest's shell for [`shell`](Self::shell) and [`setup`](Self::setup), by its absolute
    /// path, instead of `/bin/sh`.
    pub fn shell_program(mut self, path: impl Into<String>) -> Self {
        self.shell_program = Some(path.into());
        self
    }

    /// Runs what was said last: a line for the shell, an entrypoint or a command, where they are
    /// given, go over what these options say so far. A command alone keeps the entrypoint.
    pub fn overridden_by(
        mut self,
        shell: Option<String>,
        entrypoint: Option<Vec<String>>,
        command: Vec<String>,
    ) -> Self {
        if shell.is_some() || entrypoint.is_some() {
            self.entrypoint = entrypoint;
            self.command = command;
            self.shell = shell;
        } else if !command.is_empty() {
            self.command = command;
            self.shell = None;
        }
        self
    }

    /// Replaces the image's `Entrypoint`, and drops its `Cmd`. Empty: no entrypoint.
    pub fn entrypoint<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = Some(argv.into_iter().map(Into::into).collect());
        self
    }

    /// Runs `/bin/sh -c script` before the command, after the setup commands given so far. Its
    /// output goes to standard error; when it fails the command is not run.
    pub fn setup(mut self, script: impl Into<String>) -> Self {
        self.setup.push(script.into());
        self
    }

    /// Copies a file of the host in before the setup commands run. It belongs to root there.
    pub fn file(mut self, file: HostFile) -> Self {
        self.files.push(file);
        self
    }

    /// Sets an environment variable, over the image's own.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push(EnvChange::Set(name.into(), value.into()));
        self
    }

    /// Takes a variable of the image's environment away.
    pub fn env_remove(mut self, name: impl Into<String>) -> Self {
        self.env.push(EnvChange::Remove(name.into()));
        self
    }

    /// The working directory, absolute; made if it is missing.
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.workdir = Some(path.into());
        self
    }

    /// `name`, `uid`, `name:group` or `uid:gid`, looked up in the guest's own files.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// The guest's host name; the workspace's name by default.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = Some(hostname.into());
        self
    }

    /// The workspace's name; a readable one is made up by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Keeps the workspace, shut down cleanly, instead of removing every trace of it.
    pub fn keep(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// Gives the command a terminal of this size. Its standard error is then the terminal too.
    pub fn tty(mut self, size: TtySize) -> Self {
        self.tty = Some(size);
        self
    }

    /// The machine's size by name; the three below go over it.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Guest memory.
    pub fn memory(mut self, memory: Mebibytes) -> Self {
        self.memory = Some(memory);
        self
    }

    /// vCPUs.
    pub fn vcpus(mut self, vcpus: VcpuCount) -> Self {
        self.vcpus = Some(vcpus);
        self
    }

    /// The most the workspace may write.
    pub fn disk(mut self, disk: Mebibytes) -> Self {
        self.disk = Some(disk);
        self
    }

    /// The least the workspace may write where only the profile says how much.
    pub fn headroom(mut self, headroom: Mebibytes) -> Self {
        self.headroom = Some(headroom);
        self
    }

    /// How it is connected.
    pub fn network(mut self, network: NetworkMode) -> Self {
        self.network = network;
        self
    }

    /// Attaches a volume after those attached so far.
    pub fn volume(mut self, volume: Volume) -> Self {
        self.wiring = self.wiring.volume(volume);
        self
    }

    /// Lets a port of the host lead into the guest. All are bound before the machine boots.
    pub fn publish(mut self, port: PublishedPort) -> Self {
        self.wiring = self.wiring.publish(port);
        self
    }

    /// Lets programs of the guest reach a server of the host.
    pub fn mediation(mut self, route: MediationRoute) -> Self {
        self.wiring = self.wiring.mediation(route);
        self
    }

    /// Everything that connects the machine besides its network, after what was given so far.
    pub fn wiring(mut self, wiring: Wiring) -> Self {
        self.wiring = self.wiring.and(wiring);
        self
    }

    /// Declares a file or directory of the guest as an artifact, after those declared so far. How it is
    /// at the end stands in [`RunResult::artifacts`](crate::RunResult::artifacts); from a workspace that
    /// is kept it is had by [`Workspace::take_artifacts`](crate::Workspace::take_artifacts), also while
    /// it runs.
    pub fn output(mut self, artifact: DeclaredArtifact) -> Self {
        self.outputs.push(artifact);
        self
    }

    /// Puts the artifacts into this directory of the host at the end of a run; it is made if it is
    /// missing. A run with artifacts ends with a clean shutdown, as one that is kept does.
    pub fn artifacts_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.artifacts_dir = Some(directory.into());
        self
    }

    /// Whether artifacts are declared that are gone when the run is over.
    #[must_use]
    pub fn drops_artifacts(&self) -> bool {
        !self.outputs.is_empty() && !self.keep && self.artifacts_dir.is_none()
    }

    /// The most time from the machine's launch to the command's end. It holds even when the
    /// calling program dies.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Which backend runs it.
    pub fn backend(mut self, backend: BackendChoice) -> Self {
        self.backend = backend;
        self
    }

    /// Which kernel boots.
    pub fn kernel(mut self, kernel: KernelChoice) -> Self {
        self.kernel = kernel;
        self
    }

    /// The key that the image must be signed with; signatures are not looked at without.
    pub fn verify_key(mut self, key: VerifyKey) -> Self {
        self.verify_key = Some(key);
        self
    }

    /// When the image is pulled.
    pub fn pull(mut self, pull: PullPolicy) -> Self {
        self.pull = pull;
        self
    }

    /// Which of a multi-platform image's images is meant; the host's by default.
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }

    /// What the machine will be given.
    #[must_use]
    pub fn resources(&self) -> Resources {
        let (memory, vcpus, disk) = self.profile.sizes();
        Resources {
            memory_mib: self.memory.unwrap_or(Mebibytes(memory)),
            cpu_count: self.vcpus.map_or(vcpus, u32::from),
            size_mib: self
                .disk
                .unwrap_or(Mebibytes(disk).max(self.headroom.unwrap_or(Mebibytes(0)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_have_the_documented_sizes() {
        let sizes: Vec<_> = Profile::ALL
            .map(|profile| {
                let resources = RunOptions::new("a").profile(profile).resources();
                (
                    profile.to_string(),
                    resources.memory_mib.0,
                    resources.cpu_count,
                    resources.size_mib.0,
                )
            })
            .into();
        assert_eq!(
            sizes,
            [
                ("tiny".into(), 256, 1, 512),
                ("small".into(), 512, 2, 1024),
                ("medium".into(), 2048, 2, 8192),
                ("large".into(), 4096, 4, 16384),
            ]
        );
        assert_eq!(RunOptions::new("a").resources().memory_mib, Mebibytes(512));
    }

    #[test]
    fn single_sizes_go_over_the_profile() {
        let resources = RunOptions::new("a")
            .memory(Mebibytes(1024))
            .vcpus(3_u32.try_into().unwrap())
            .profile(Profile::Tiny)
            .resources();
        assert_eq!(
            (
                resources.memory_mib.0,
                resources.cpu_count,
                resources.size_mib.0
            ),
            (1024, 3, 512)
        );
        assert!(
            "huge"
                .parse::<Profile>()
                .unwrap_err()
                .to_string()
                .contains("medium")
        );
    }
}
