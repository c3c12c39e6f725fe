//! All the images of an archive, and archives that come as a stream.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;

use super::container::Container;
use super::{Import, ImportOptions, MAX_ARCHIVE};
use crate::error::{ImageError, IoContext, Result};
use crate::event::ImageEvent;
use crate::store::{ImageRecord, ImageStore, files};

impl ImageStore {
    /// Brings in every image of an archive under the names it has there, as `docker load` does. What holds only one
    /// image is imported as [`import`](Self::import) does it.
    ///
    /// # Errors
    /// As [`import`](Self::import); images that came before the one that failed stay.
    pub fn load(
        &self,
        path: &Path,
        options: &ImportOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Vec<ImageRecord>> {
        let several = options.reference.is_none() && options.select.is_none();
        let names = if several {
            Import::new(self, path, options, events).names()?
        } else {
            BTreeSet::new()
        };
        if names.len() < 2 {
            return Ok(vec![self.import(path, options, events)?]);
        }
        names
            .into_iter()
            .map(|name| {
                let mut one = options.clone();
                // A bare tag would read as a repository of that name.
                one.reference = name
                    .contains([':', '/'])
                    .then(|| name.parse().ok())
                    .flatten();
                one.select = Some(name);
                self.import(path, &one, events)
            })
            .collect()
    }

    /// The same, from a stream. It is kept in the store until it was read.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_stream(
        &self,
        stream: &mut dyn Read,
        options: &ImportOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Vec<ImageRecord>> {
        let transaction = self.begin()?;
        let path = transaction.path("the-stream");
        let mut file = files::create_new(&path)?;
        let copied =
            io::copy(&mut stream.take(MAX_ARCHIVE + 1), &mut file).context("copy to", &path)?;
        if copied > MAX_ARCHIVE {
            return Err(ImageError::BadArchive {
                path,
                reason: format!("it is larger than {MAX_ARCHIVE} bytes"),
            });
        }
        drop(file);
        self.load(&path, options, events)
    }
}

impl Import<'_> {
    /// The names of the images in an archive or a layout; none for what is neither.
    fn names(&self) -> Result<BTreeSet<String>> {
        let names = |container: &Container| -> Result<BTreeSet<String>> {
            let mut names = self.layout_names(container)?;
            if names.is_empty() {
                names = self.saved_names(container)?;
            }
            Ok(names)
        };
        if self.path.is_dir() {
            return names(&Container::Directory(self.path.to_owned()));
        }
        let (file, compression, is_archive) = self.look()?;
        if !is_archive {
            return Ok(BTreeSet::new());
        }
        let transaction = self.store.begin()?;
        names(&Container::archive(
            self.plain(file, compression, &transaction)?,
            self.path,
        )?)
    }
}
