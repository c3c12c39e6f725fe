//! An image of what a workspace has written.

use microagent_image::{
    CommitOptions, Committed, Digest, ImageError, ImageEvent, ImageStore, Reference, UpperDirectory,
};
use microagent_protocol::State;

use super::Workspace;
use crate::{
    copy::UPPER,
    directories::SCRATCH,
    error::{Error, Result},
};

/// What the guest agent writes at each boot is about the machine, and no part of an image.
const OF_THE_MACHINE: &[&[u8]] = &[b"etc/hostname", b"etc/hosts", b"etc/resolv.conf"];

impl Workspace<'_> {
    /// Makes the image `reference` of the workspace's image and what was written on top of it: one more layer, with
    /// everything exact, and the same bytes each time. What volumes hold is no part of it.
    ///
    /// A quarantined workspace is committed as its disk is: what its guest had not yet written to the disk is missing.
    ///
    /// # Errors
    /// [`Error::State`] if a machine may be writing; else why the layer cannot be made.
    pub fn commit(
        &self,
        reference: &Reference,
        options: &CommitOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Committed> {
        let _held = self.hold()?;
        // Nothing thaws a quarantined machine: its disk changes no more.
        let _at_rest = match self.state()? {
            State::Quarantined => None,
            _ => Some(self.at_rest("committed")?),
        };
        let recorded = &self.manifest.image;
        let base: Digest = recorded.digest.parse()?;
        let store = ImageStore::open(self.config.images_dir())?;
        let scratch = self.directory.join(SCRATCH);
        let upper = UpperDirectory {
            disk: &scratch,
            name: UPPER,
            without: OF_THE_MACHINE,
        };
        store
            .commit(base, &upper, reference, options, events)
            .map_err(|error| match error {
                ImageError::BaseGone { .. } => Error::BaseGone {
                    workspace: self.name().to_string(),
                    image: recorded.reference.clone(),
                    digest: recorded.digest.clone(),
                },
                other => other.into(),
            })
    }
}
