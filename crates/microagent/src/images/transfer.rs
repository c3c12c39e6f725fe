//! Images that come and go in files and over registries.

use std::{io::Read, path::Path, sync::Arc};

use microagent_image::{
    ExportOptions, ExportTo, Exported, ImageEvent, ImageRecord, ImportOptions, Platform,
    PushOptions, Pushed, Reference,
};

use super::Images;
use crate::{auth::FromConfig, error::Result, registries};

impl Images<'_> {
    /// Writes images to a file, a directory or a stream: as an OCI archive or layout, as what `docker load` reads,
    /// or the root file system of one as a tar.
    ///
    /// # Errors
    /// When a name matches no image or more than one, when the format does not hold what is asked for, and when it
    /// cannot be written; then nothing is left of it.
    pub fn export(
        &self,
        names: &[String],
        options: &ExportOptions,
        to: ExportTo<'_>,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Exported> {
        Ok(self.store()?.export(names, options, to, events)?)
    }

    /// Brings in every image of an archive, under the names it has there.
    ///
    /// # Errors
    /// As [`Self::import`]. Images that came before the one that failed stay.
    pub fn load(
        &self,
        path: &Path,
        options: &ImportOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Vec<ImageRecord>> {
        Ok(self.store()?.load(path, options, events)?)
    }

    /// The same, of a stream.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_stream(
        &self,
        stream: &mut dyn Read,
        options: &ImportOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Vec<ImageRecord>> {
        Ok(self.store()?.load_stream(stream, options, events)?)
    }

    /// Sends an image to a registry: to where its name says, or to `to`. Its digest is the same there. Credentials
    /// are those that pulls use.
    ///
    /// # Errors
    /// When nothing matches, or the registry does not take it.
    pub fn push(
        &self,
        name: &str,
        to: Option<&Reference>,
        platform: Option<Platform>,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Pushed> {
        let mut options = PushOptions::new()
            .registry(registries::registry_options(self.config)?)
            .credentials(Arc::new(FromConfig(self.config.clone())));
        options.platform = platform;
        Ok(self.store()?.push(name, to, &options, events)?)
    }
}
