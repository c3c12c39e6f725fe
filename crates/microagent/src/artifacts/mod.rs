//! Declared artifacts: files and directories of a guest that are taken out by their names.
//!
//! They are read where they are, by the ways of a copy: through the agent while a machine runs, from
//! the disks when none does. Nothing is kept beside the workspace, so an artifact is never older than
//! what the guest wrote, and outlives a machine that was killed as far as its disk does. A file comes
//! as it is, a directory as one tar; both are hashed on the way.

mod channels;
mod content;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use microagent_protocol::{
    CopyPath, CopyWhat, DeclaredArtifact, GuestPath, ItemName, State, WorkspaceName,
    supervisor::ErrorReport, wiring::MAX_ARTIFACTS,
};
use serde::{Deserialize, Serialize};

pub use self::channels::{ArtifactChannels, ChannelKind, EgressArtifact, IngressArtifact};
use self::content::{Folder, TAR};
use crate::{
    config::Config,
    copy::{Disks, Source, through},
    error::{Error, Result},
    workspaces::{Workspace, machine, manifest::Manifest},
};

/// The thing itself, or what a link there leads to within the guest.
const WHAT: CopyWhat = CopyWhat {
    contents: false,
    follow: true,
};

/// A declared artifact, as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Its name.
    pub name: ItemName,
    /// Where it is in the guest.
    pub path: GuestPath,
    /// What was found there.
    #[serde(flatten)]
    pub state: ArtifactState,
}

/// What was found at an artifact's path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum ArtifactState {
    /// It is there.
    Present {
        /// What it is in the guest.
        #[serde(rename = "type")]
        kind: ArtifactKind,
        /// Its size in bytes; of a directory, that of its tar.
        size_bytes: u64,
        /// Its SHA-256 in hexadecimal; of a directory, that of its tar.
        sha256: String,
        /// How many things in a directory were left out: sockets, pipes and devices.
        skipped: u64,
        /// The file of the host that it was written to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        saved_as: Option<PathBuf>,
    },
    /// It is not there, or could not be had.
    Missing {
        /// Why.
        error: ErrorReport,
    },
}

/// What an artifact is in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// A file, which comes as it is.
    File,
    /// A directory, which comes as one tar. Equal trees give equal bytes.
    Directory,
}

impl Artifact {
    /// Why it could not be had, if it could not.
    #[must_use]
    pub fn missing(&self) -> Option<&ErrorReport> {
        match &self.state {
            ArtifactState::Missing { error } => Some(error),
            ArtifactState::Present { .. } => None,
        }
    }

    fn lost(declared: &DeclaredArtifact, error: ErrorReport) -> Self {
        Self {
            name: declared.name.clone(),
            path: declared.path.clone(),
            state: ArtifactState::Missing { error },
        }
    }
}

/// What went into a workspace, and how its artifacts are now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ArtifactList {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Its state.
    pub state: State,
    /// What was put in as a bundle.
    pub ingress: Vec<IngressArtifact>,
    /// Its artifacts, in the order they are declared.
    pub egress: Vec<Artifact>,
}

/// Artifacts that were taken out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TakenArtifacts {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Each of them.
    pub artifacts: Vec<Artifact>,
}

impl Workspace<'_> {
    /// How its artifacts are now: each is read and hashed, through its agent while it runs.
    ///
    /// # Errors
    /// When the workspace cannot be read in its present state. An artifact that is not there is told
    /// in the list.
    pub fn artifacts(&self) -> Result<ArtifactList> {
        let manifest = self.manifest();
        Ok(ArtifactList {
            workspace: self.name().clone(),
            state: self.state()?,
            ingress: ArtifactChannels::of(manifest, self.directory()).ingress,
            egress: self.read(&manifest.artifacts.iter().collect::<Vec<_>>(), None)?,
        })
    }

    /// Takes artifacts out into a directory of the host, which is made if it is missing; all of them
    /// if none is named. A file is called as its artifact, a directory's tar has `.tar` behind that;
    /// each is there whole, or what was there before.
    ///
    /// # Errors
    /// [`Error::NoArtifact`] for a name that is not declared, and when the workspace cannot be read in
    /// its present state. An artifact that could not be had is told in the result, and keeps none of
    /// the others.
    pub fn take_artifacts(&self, names: &[String], into: &Path) -> Result<TakenArtifacts> {
        let declared = &self.manifest().artifacts;
        let unknown = |name: &str| Error::NoArtifact {
            workspace: self.name().to_string(),
            name: name.to_owned(),
            declared: declared.iter().map(|one| one.name.to_string()).collect(),
        };
        let find = |name: &String| {
            let found = declared.iter().find(|one| one.name.as_str() == name);
            found.ok_or_else(|| unknown(name))
        };
        let wanted: Vec<_> = match names {
            [] => declared.iter().collect(),
            names => names.iter().map(find).collect::<Result<_>>()?,
        };
        let into = Folder::make(into)?;
        Ok(TakenArtifacts {
            workspace: self.name().clone(),
            artifacts: self.read(&wanted, Some(&into))?,
        })
    }

    fn read(&self, wanted: &[&DeclaredArtifact], into: Option<&Folder>) -> Result<Vec<Artifact>> {
        let room = self.capacity();
        let open =
            |path: &CopyPath| Source::of_workspace(self.config(), self.name().as_str(), path, WHAT);
        let read = |declared: &&DeclaredArtifact| {
            let path = copy_path(declared)?;
            match take(open(&path)?, declared, &path, room, into) {
                // Its machine ended under way; then its disks say how it is.
                Err(Error::CopyLost { .. }) => Ok(settle(
                    declared,
                    take(open(&path)?, declared, &path, room, into),
                )),
                taken => Ok(settle(declared, taken)),
            }
        };
        wanted.iter().map(read).collect()
    }
}

/// Looks at everything that can be wrong with declared artifacts.
///
/// # Errors
/// [`Error::Invalid`].
pub(crate) fn check(declared: &[DeclaredArtifact]) -> Result<()> {
    let invalid = |reason: String| Err(Error::invalid("--output", reason));
    if declared.len() > MAX_ARTIFACTS {
        let count = declared.len();
        return invalid(format!(
            "it is given {count} times, and {MAX_ARTIFACTS} are the most"
        ));
    }
    let mut names = HashSet::new();
    for artifact in declared {
        if !names.insert(artifact.name.as_str()) {
            return invalid(format!("the name {} is given twice", artifact.name));
        }
    }
    // A directory's tar must not take the place of a file.
    let shadowed = names.iter().find(|name| {
        name.strip_suffix(TAR)
            .is_some_and(|stem| names.contains(stem))
    });
    match shadowed {
        Some(name) => invalid(format!(
            "{name} is given beside the same name without {TAR}, and both may become {name}; \
             rename one of them"
        )),
        None => Ok(()),
    }
}

/// Makes the directory for the artifacts of a run that is about to begin, and sees that files can be
/// written there.
pub(crate) fn prepare(into: &Path) -> Result<()> {
    Folder::make(into)?.try_out()
}

/// The artifacts of a run that is over, from the disks in `directory`, which the caller holds.
pub(crate) fn at_end(
    config: &Config,
    manifest: &Manifest,
    directory: &Path,
    into: Option<&Path>,
) -> Vec<Artifact> {
    let declared = &manifest.artifacts;
    if declared.is_empty() {
        return Vec::new();
    }
    let ready = || {
        if !machine::wait_gone(directory, config.timeouts.shutdown) {
            return Err(Error::NotEnding {
                name: manifest.name.to_string(),
                limit: config.timeouts.shutdown,
            });
        }
        into.map(Folder::make).transpose()
    };
    let into = match ready() {
        Ok(into) => into,
        Err(error) => {
            let lost = |declared| Artifact::lost(declared, error.report());
            return declared.iter().map(lost).collect();
        }
    };
    let disks = Arc::new(Disks::of(manifest, directory));
    let room = manifest.capacity();
    let read = |declared: &DeclaredArtifact| {
        let taken = copy_path(declared).and_then(|path| {
            let source = Source::Disks {
                disks: Arc::clone(&disks),
                path: path.clone(),
                what: WHAT,
            };
            take(source, declared, &path, room, into.as_ref())
        });
        settle(declared, taken)
    };
    declared.iter().map(read).collect()
}

fn copy_path(declared: &DeclaredArtifact) -> Result<CopyPath> {
    let path = declared.path.as_str();
    path.parse()
        .map_err(|error: microagent_protocol::copy::InvalidCopyPath| {
            Error::invalid("--output", error.to_string())
        })
}

/// Reads one artifact, and gives it its name once all of it is there.
fn take(
    source: Source,
    declared: &DeclaredArtifact,
    path: &CopyPath,
    room: u64,
    into: Option<&Folder>,
) -> Result<ArtifactState> {
    let (taken, left_out) = through(source, |stream| {
        Ok(content::take(stream, path, room, into)?)
    })?;
    taken.publish(&declared.name, left_out.skipped)
}

fn settle(declared: &DeclaredArtifact, taken: Result<ArtifactState>) -> Artifact {
    match taken {
        Ok(state) => Artifact {
            name: declared.name.clone(),
            path: declared.path.clone(),
            state,
        },
        Err(error) => Artifact::lost(declared, error.report()),
    }
}
