//! The disks of a workspace whose machine does not run. They are held for as long as they are used.

use std::{
    io::BufRead,
    path::{Path, PathBuf},
};

use microagent_files::Policy;
use microagent_protocol::{CopyIn, CopyPath, CopyReport, ExtraDisk};

use super::{
    land::land_overlay,
    overlay::{Disk, Overlay},
    pack::View,
};
use crate::{
    directories::{Held, SCRATCH},
    error::{Error, Result},
    workspaces::{Workspace, machine::AtRest, manifest::Manifest},
};

/// A workspace's disks.
#[derive(Debug)]
pub(crate) struct Disks {
    workspace: String,
    base: PathBuf,
    scratch: PathBuf,
    extra: Vec<ExtraDisk>,
    _held: Option<(Held, AtRest)>,
}

impl Disks {
    /// The disks of a workspace, or `None` where a machine uses them.
    pub(crate) fn at_rest(workspace: &Workspace<'_>) -> Result<Option<Self>> {
        if workspace.is_live()? {
            return Ok(None);
        }
        let held = workspace.hold()?;
        // Whoever held it before may have started it.
        let Some(at_rest) = AtRest::keep(workspace.directory()) else {
            return Ok(None);
        };
        if workspace.is_live()? {
            return Ok(None);
        }
        let disks = Self::of(workspace.manifest(), workspace.directory());
        Ok(Some(Self {
            _held: Some((held, at_rest)),
            ..disks
        }))
    }

    /// The disks of a workspace without a machine in `directory`, which the caller holds.
    pub(crate) fn of(manifest: &Manifest, directory: &Path) -> Self {
        Self {
            workspace: manifest.name.to_string(),
            base: manifest.parts.base_disk.path.clone(),
            scratch: directory.join(SCRATCH),
            extra: manifest.disks.clone(),
            _held: None,
        }
    }

    /// The tree that a path leads into.
    pub(super) fn view_of(&self, path: &CopyPath) -> Result<View> {
        if let Some((disk, rest)) = self.mounted(path) {
            let lower = Disk::open(disk.path.clone())?;
            return Ok(View {
                overlay: Overlay::new(lower, None),
                path: rest,
                shown: path.clone(),
            });
        }
        let overlay = Overlay::new(
            Disk::open_base(self.base.clone())?,
            Some(Disk::open(self.scratch.clone())?),
        );
        Ok(View {
            overlay,
            path: path.clone(),
            shown: path.clone(),
        })
    }

    /// The extra disk that a path is on, and where on it.
    fn mounted(&self, path: &CopyPath) -> Option<(&ExtraDisk, CopyPath)> {
        // The last one mounted is the one that shows.
        self.extra.iter().rev().find_map(|disk| {
            let below = path.as_str().strip_prefix(disk.mountpoint.as_str())?;
            let rest = match below {
                "" => "/",
                below if below.starts_with('/') => below,
                _ => return None,
            };
            Some((disk, rest.parse().ok()?))
        })
    }

    /// Lands a stream on the scratch disk.
    pub(super) fn land(
        &self,
        input: impl BufRead,
        request: &CopyIn,
        policy: &Policy,
    ) -> Result<CopyReport> {
        if let Some((disk, _)) = self.mounted(&request.path) {
            return Err(Error::invalid(
                "DST",
                format!(
                    "{} is on the disk {}, and what is written there is the guest's to write; start \
                     {} for that",
                    request.path, disk.name, self.workspace
                ),
            ));
        }
        let (base, scratch) = (self.base.clone(), self.scratch.clone());
        Ok(land_overlay(base, scratch, input, request, policy)?)
    }
}
