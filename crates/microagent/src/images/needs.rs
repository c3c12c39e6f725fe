//! Which images workspaces are made of: what is never taken away under them.

use std::{collections::BTreeSet, io};

use microagent_image::{Digest, ImageError, Needs};
use microagent_protocol::WorkspaceName;

use crate::{
    config::Config,
    directories,
    error::{Error, Result},
    workspaces::{history::EVENTS, manifest::Manifest},
};

/// The workspaces of a state directory, as the image store asks for them.
pub(crate) struct WorkspaceNeeds<'a>(pub(crate) &'a Config);

impl Needs for WorkspaceNeeds<'_> {
    fn images(&self) -> microagent_image::Result<BTreeSet<Digest>> {
        match made_of(self.0) {
            Ok(all) => Ok(all.into_iter().map(|(_, image)| image).collect()),
            Err(error) => Err(ImageError::NeedsUnknown {
                reason: error.to_string(),
            }),
        }
    }
}

/// Every workspace and its image. No workspace is made, copied or removed while they are looked through:
/// so that one which is copied and then removed is not missed twice.
///
/// # Errors
/// When one cannot be read, so that what it needs is not known.
fn made_of(config: &Config) -> Result<Vec<(WorkspaceName, Digest)>> {
    let Some(_still) = directories::still(config)? else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for (name, directory) in directories::named(config)? {
        let unknown = |reason: String| Error::Damaged {
            path: directory.clone(),
            reason: format!("{reason}; `microagent delete {name}` removes that workspace"),
        };
        match Manifest::read(&directory) {
            Ok(manifest) => {
                let digest = manifest.image.digest.parse();
                let digest = digest.map_err(|_| unknown("it names no image".to_owned()))?;
                all.push((name, digest));
            }
            // Being made, and held by its maker; or left behind before it ever booted.
            Err(Error::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && !directory.join(EVENTS).exists() => {
            }
            Err(error) => return Err(unknown(error.to_string())),
        }
    }
    Ok(all)
}

/// The workspaces that can be read, and their images: for show.
pub(super) fn known(config: &Config) -> Vec<(WorkspaceName, Digest)> {
    let named = directories::named(config).unwrap_or_default();
    named
        .into_iter()
        .filter_map(|(name, directory)| {
            let manifest = Manifest::read(&directory).ok()?;
            Some((name, manifest.image.digest.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SupervisorProgram;

    #[test]
    fn a_workspace_that_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::new(directory.path(), "/run/x", SupervisorProgram::ThisProgram);
        let needs = WorkspaceNeeds(&config);
        assert_eq!(needs.images().unwrap(), BTreeSet::new());
        let broken = config.workspaces_dir().join("broken");
        std::fs::create_dir_all(&broken).unwrap();
        // Being made, or never more than a directory.
        assert_eq!(needs.images().unwrap(), BTreeSet::new());
        // Somebody's, whatever became of its manifest.
        std::fs::write(broken.join(EVENTS), "").unwrap();
        let error = needs.images().unwrap_err().to_string();
        assert!(error.contains("delete broken"), "{error}");
        std::fs::write(broken.join("manifest.json"), "{}\n{}").unwrap();
        std::fs::remove_file(broken.join(EVENTS)).unwrap();
        let error = needs.images().unwrap_err().to_string();
        assert!(
            error.contains("none is removed") && error.contains("delete broken"),
            "{error}"
        );
        // What is no workspace needs nothing.
        std::fs::rename(&broken, config.workspaces_dir().join(".trash-1")).unwrap();
        assert_eq!(needs.images().unwrap(), BTreeSet::new());
    }
}
