//! `microagent.yaml`: a workspace written down in a file.
//!
//! One table of keys ([`fields`]) is the reader, the JSON Schema and the reference in one, so
//! that they cannot disagree. A key that there is none of is an error that names the nearest one;
//! every error says where it is; all of them are told at once.

mod convert;
mod error;
mod fields;
mod kind;
mod nearest;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod schema_tests;
mod sense;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod yaml;

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde_json::{Value as Json, json};

use self::{error::FaultClass, kind::Reader};
pub use self::{
    error::{SpecError, SpecFault},
    types::{Spec, SpecKey, SpecResources, SpecWorkload},
};
use crate::error::{IoContext as _, Result};

impl Spec {
    /// The name under which people look for a spec, and editors for its schema.
    pub const FILE_NAME: &str = "microagent.yaml";

    /// Reads the spec in the file at `path`. Relative paths in it start at the file's directory.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if it cannot be read, [`crate::Error::Spec`] with everything that is
    /// wrong with it.
    pub fn read(path: &Path) -> Result<Self> {
        let absolute = std::path::absolute(path).context("find the absolute path of", path)?;
        let file = File::open(&absolute).context("open", path)?;
        let mut bytes = Vec::new();
        // One byte more than is taken shows that it is too large.
        file.take(yaml::MAX_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .context("read", path)?;
        let base = absolute.parent().unwrap_or(Path::new("/"));
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
            let fault = SpecFault {
                line,
                column: 1,
                message: "it is no UTF-8 text".to_owned(),
                class: FaultClass::Shape,
            };
            SpecError::new(path.to_owned(), vec![fault])
        })?;
        Ok(Self::parse(&text, path, base)?)
    }

    /// Reads the spec in `text`. Errors name `file`; relative paths start at `base`.
    ///
    /// # Errors
    /// [`SpecError`] with everything that is wrong with it.
    ///
    /// ```
    /// use microagent::Spec;
    ///
    /// let text = "name: hello\nimage: debian:12\nservice: echo hello\n";
    /// let spec = Spec::parse(text, "microagent.yaml", "/srv")?;
    /// assert_eq!(spec.name.unwrap().as_str(), "hello");
    ///
    /// let error = Spec::parse("nmae: hello\n", "microagent.yaml", "/srv").unwrap_err();
    /// assert_eq!(error.lines(), ["microagent.yaml:1:1: there is no nmae here; did you mean name?"]);
    /// # Ok::<(), microagent::SpecError>(())
    /// ```
    pub fn parse(
        text: &str,
        file: impl Into<PathBuf>,
        base: impl AsRef<Path>,
    ) -> Result<Self, SpecError> {
        let mut reader = Reader::default();
        let spec = match yaml::parse(text) {
            Ok(node) => fields::spec(base.as_ref()).read(&node, &mut reader),
            Err(malformed) => {
                reader.refuse(malformed.at, malformed.reason);
                None
            }
        };
        match (spec, reader.into_faults()) {
            (Some(spec), faults) if faults.is_empty() => Ok(spec),
            (_, faults) => Err(SpecError::new(file.into(), faults)),
        }
    }

    /// The JSON Schema (draft 2020-12) of a spec.
    ///
    /// What it refuses is refused by [`Self::parse`] as well. The converse holds but for what no
    /// schema can tell: image references, addresses, and values that contradict each other.
    #[must_use]
    pub fn schema() -> Json {
        let mut schema = serde_json::Map::new();
        schema.insert(
            "$schema".to_owned(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        schema.insert("title".to_owned(), json!(Self::FILE_NAME));
        schema.insert(
            "description".to_owned(),
            json!("An AI agent workspace in its own Linux microVM."),
        );
        schema.extend(fields::spec(Path::new("/")).schema);
        Json::Object(schema)
    }

    /// Every key, in the order of the reference.
    #[must_use]
    pub fn keys() -> Vec<SpecKey> {
        fields::spec(Path::new("/")).rows
    }
}
