//! Every way the library can fail, with the input, the reason and the remedy.

mod report;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use microagent_files::CopyError;
use microagent_image::{ImageError, Platform};
use microagent_kernel::KernelError;
use microagent_protocol::{FrameError, Mebibytes, State, supervisor::ErrorReport};

use crate::{
    spec::SpecError,
    workspaces::{Divergence, RefusedChange},
};

/// A failure of microagent itself; how a workload ended is no error but a [`crate::RunResult`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option is wrong, or two contradict each other.
    #[error("{option} is not usable: {reason}.")]
    Invalid {
        /// The option, such as `hostname`.
        option: &'static str,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// There is nothing to run.
    #[error("{image} names no command of its own; give one after the image.")]
    NoCommand {
        /// The image.
        image: String,
    },
    /// A workspace of this name exists.
    #[error("A workspace named {name} exists already.")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// There is no workspace of this name.
    #[error("There is no workspace named {name}.")]
    NoWorkspace {
        /// The name.
        name: String,
    },
    /// A workspace's workload has not ended, or there is none.
    #[error(
        "The workspace {name} has no result: no workload of it has ended since its last start."
    )]
    NoResult {
        /// The workspace.
        name: String,
    },
    /// A workspace declares no artifact of this name.
    #[error("The workspace {workspace} declares no artifact named {name}; {}.", declares(.declared))]
    NoArtifact {
        /// The workspace.
        workspace: String,
        /// The name.
        name: String,
        /// The names of those it declares.
        declared: Vec<String>,
    },
    /// It cannot be done in the workspace's present state.
    #[error("The workspace {name} is {state} and cannot be {doing}.")]
    State {
        /// The workspace.
        name: String,
        /// The state it is in.
        state: State,
        /// What was asked for, such as `started`.
        doing: &'static str,
        /// What to do.
        remedy: String,
    },
    /// Another command works on the workspace and does not end.
    #[error("Another command is at work on the workspace {name}.")]
    Busy {
        /// The workspace.
        name: String,
    },
    /// A file of microagent's own is not what was written.
    #[error("{} is damaged: {reason}.", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What a workspace boots from is not what it was made of.
    #[error(
        "The workspace {name} is not what was recorded and is not started: {}.",
        divergences(.found)
    )]
    Diverged {
        /// The workspace.
        name: String,
        /// Each difference.
        found: Vec<Divergence>,
    },
    /// A workspace cannot become what was asked for; nothing of it was changed.
    #[error("The workspace {name} is left as it is: {}.", refusals(.refused))]
    Unchangeable {
        /// The workspace.
        name: String,
        /// Everything that cannot change.
        refused: Vec<RefusedChange>,
    },
    /// A workspace's machine did not end in time.
    #[error("The machine of {name} has not ended within {}.", humantime::format_duration(*.limit))]
    NotEnding {
        /// The workspace.
        name: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The image a workspace is made of is gone.
    #[error(
        "The image {image} ({digest}), which {workspace} is made of, is not in the store any more."
    )]
    BaseGone {
        /// The workspace.
        workspace: String,
        /// The image's name when the workspace was made.
        image: String,
        /// The digest of its manifest.
        digest: String,
    },
    /// A spec is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The image could not be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image is for another kind of machine.
    #[error("{image} for {platform} cannot run here: the machines of this host are {host}.")]
    ForeignPlatform {
        /// The image.
        image: String,
        /// What was asked for.
        platform: Box<Platform>,
        /// What there is.
        host: Box<Platform>,
    },
    /// A settings file is wrong.
    #[error("{} cannot be used: {reason}.", .path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Credentials could not be had, kept or removed.
    #[error("The credentials for {registry} could not be {what}: {reason}.")]
    Credentials {
        /// The registry.
        registry: String,
        /// What was being done with them: `read`, `stored`, `removed`.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// There are no credentials.
    #[error("No credentials for {registry} are known.")]
    NotLoggedIn {
        /// The registry.
        registry: String,
    },
    /// The kernel could not be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// No supervisor program was found.
    #[error(
        "The supervisor program is in none of {}; install microagent there or name the program.",
        list(.searched)
    )]
    SupervisorMissing {
        /// The directories that were looked at.
        searched: Vec<PathBuf>,
    },
    /// The supervisor program could not be started.
    #[error("Cannot start the supervisor {}: {source}.", .program.display())]
    SupervisorStart {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The supervisor ended or answered nonsense.
    #[error("The supervisor of {subject} failed: {reason}.")]
    SupervisorFailed {
        /// The workspace, or what was asked of it.
        subject: String,
        /// What happened.
        reason: String,
        /// The last lines it wrote.
        log: Option<String>,
    },
    /// Files could not be copied.
    #[error("Cannot copy: {0}.")]
    Copy(Box<CopyError>),
    /// A copy was cut.
    #[error("The copy was cut: the machine of {workspace} does not answer any more ({reason}).")]
    CopyLost {
        /// The workspace.
        workspace: String,
        /// What happened.
        reason: String,
    },
    /// A workspace's disk cannot be read or changed.
    #[error("Cannot use the disk {}: {source}.", .path.display())]
    Disk {
        /// The disk.
        path: PathBuf,
        /// What is wrong with it.
        source: microagent_ext4::Error,
    },
    /// The supervisor said no.
    #[error("{}", .0.message)]
    Supervisor(Box<ErrorReport>),
    /// The machine ended before its workload began.
    #[error("The machine of {workspace} ended before the command started: {reason}.")]
    NeverStarted {
        /// The workspace.
        workspace: String,
        /// Why.
        reason: String,
        /// The console's last words.
        console: Option<String>,
        /// What its machine had.
        memory: Mebibytes,
    },
    /// The time was up before the workload began.
    #[error("The time limit of {} was over before the command started.", humantime::format_duration(*.limit))]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// A workspace was not ready for a command in time.
    #[error("The workspace {workspace} was not ready within {}.", humantime::format_duration(*.limit))]
    NotReady {
        /// The workspace.
        workspace: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// A benchmark came to nothing.
    #[error("The workspace {workspace} could not be measured: {reason}.")]
    NotMeasured {
        /// The workspace, which is gone again.
        workspace: String,
        /// What went wrong.
        reason: String,
    },
    /// A setup command failed.
    #[error("The setup command {command:?} failed: {outcome}; the command itself was not run.")]
    SetupFailed {
        /// The command as given.
        command: String,
        /// How it ended.
        outcome: String,
    },
    /// The caller cancelled before the workload began.
    #[error("Cancelled by {} before the command started.", crate::signal::name(*.signal))]
    Cancelled {
        /// The signal that said so.
        signal: u8,
    },
    /// A directory that must be private is not.
    #[error("{} cannot hold private files: {reason}; choose another directory.", .path.display())]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A system call failed.
    #[error("Cannot {doing} {}: {source}.", .path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The scratch disk could not be made.
    #[error("Cannot make the scratch disk {}: {reason}.", .path.display())]
    Scratch {
        /// Its path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An archive could not be made into a disk.
    #[error("Cannot make a disk of {} for the bundle {name}: {reason}.", .archive.display())]
    Bundle {
        /// The bundle.
        name: String,
        /// The archive.
        archive: PathBuf,
        /// Why.
        reason: String,
    },
    /// The system gave no random bytes.
    #[error("The system gave no random bytes: {0}.")]
    Random(getrandom::Error),
}

fn divergences(found: &[Divergence]) -> String {
    let words: Vec<_> = found.iter().map(ToString::to_string).collect();
    words.join("; ")
}

fn refusals(refused: &[RefusedChange]) -> String {
    let words: Vec<_> = refused.iter().map(ToString::to_string).collect();
    words.join("; ")
}

fn declares(names: &[String]) -> String {
    match names {
        [] => "it declares none".to_owned(),
        names => format!("it declares {}", names.join(", ")),
    }
}

fn list(paths: &[PathBuf]) -> String {
    if paths.is_empty() {
        return "the places to look at (there were none)".to_owned();
    }
    let shown: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    shown.join(", ")
}

impl From<CopyError> for Error {
    fn from(error: CopyError) -> Self {
        Self::Copy(Box::new(error))
    }
}

impl Error {
    pub(crate) fn invalid(option: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid {
            option,
            reason: reason.into(),
        }
    }

    pub(crate) fn connection(subject: impl Into<String>, error: &FrameError) -> Self {
        Self::SupervisorFailed {
            subject: subject.into(),
            reason: error.to_string(),
            log: None,
        }
    }
}

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Adds what was being done, and to which file, to an I/O result.
pub(crate) trait IoContext<T> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io {
            doing,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}
