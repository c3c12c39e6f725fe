//! Images in a list: what they take, who is made of them, and choosing among them.

use std::{collections::BTreeMap, str::FromStr};

use microagent_image::{Digest, ImageError, ImageRecord, ImageUsage, Platform};
use microagent_protocol::WorkspaceName;
use serde::Serialize;

use crate::workspaces::is_like;

/// An image in a list.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ImageSummary {
    /// What the store knows of it.
    #[serde(flatten)]
    pub record: ImageRecord,
    /// What its files take on the disk, base disk included.
    pub stored_bytes: u64,
    /// Of that, what other images have, too.
    pub shared_bytes: u64,
    /// Of that, what comes free when this image alone is removed.
    pub unique_bytes: u64,
    /// How long its files are: disks are sparse, and take less than that.
    pub apparent_bytes: u64,
    /// The workspaces that are made of it.
    pub workspaces: Vec<WorkspaceName>,
}

pub(super) fn summaries(
    records: Vec<ImageRecord>,
    usage: &BTreeMap<Digest, ImageUsage>,
    workspaces: &[(WorkspaceName, Digest)],
) -> Vec<ImageSummary> {
    records
        .into_iter()
        .map(|record| {
            let of = usage.get(&record.digest).copied().unwrap_or_default();
            let made_of_it = workspaces
                .iter()
                .filter(|(_, image)| *image == record.digest);
            ImageSummary {
                stored_bytes: of.total.allocated_bytes,
                shared_bytes: of.shared.allocated_bytes,
                unique_bytes: of.unique.allocated_bytes,
                apparent_bytes: of.total.apparent_bytes,
                workspaces: made_of_it.map(|(name, _)| name.clone()).collect(),
                record,
            }
        })
        .collect()
}

/// Which images are wanted, by one field: `reference=debian*`, `used=false`.
///
/// ```
/// use microagent::ImageFilter;
///
/// assert!("reference=debian:*".parse::<ImageFilter>().is_ok());
/// let error = "size=1".parse::<ImageFilter>().unwrap_err();
/// assert!(error.to_string().contains("use reference, digest, platform, registry, used or signed"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageFilter {
    /// Its name, in its short or its full form, is like this; `*` stands for any text.
    Reference(String),
    /// Its digest begins so.
    Digest(String),
    /// It was built for this.
    Platform(Platform),
    /// It came from this registry or mirror.
    Registry(String),
    /// Whether a workspace is made of it.
    Used(bool),
    /// Whether a signature of it was checked.
    Signed(bool),
}

impl ImageFilter {
    /// Whether it holds for an image.
    #[must_use]
    pub fn holds(&self, row: &ImageSummary) -> bool {
        let record = &row.record;
        match self {
            Self::Reference(pattern) => {
                is_like(&record.reference.familiar(), pattern)
                    || is_like(&record.reference.canonical(), pattern)
            }
            Self::Digest(prefix) => record.digest.hex().starts_with(prefix.as_str()),
            Self::Platform(platform) => record.platform == *platform,
            Self::Registry(registry) => record.pulled_from.as_ref() == Some(registry),
            Self::Used(used) => row.workspaces.is_empty() != *used,
            Self::Signed(signed) => record.signature.is_some() == *signed,
        }
    }

    /// Whether of the filters for each field one holds.
    #[must_use]
    pub fn all_hold(filters: &[Self], row: &ImageSummary) -> bool {
        filters.iter().all(|filter| {
            filters
                .iter()
                .filter(|other| std::mem::discriminant(*other) == std::mem::discriminant(filter))
                .any(|other| other.holds(row))
        })
    }
}

/// Not a filter of images.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a filter: {reason}")]
pub struct InvalidImageFilter {
    input: String,
    reason: String,
}

impl FromStr for ImageFilter {
    type Err = InvalidImageFilter;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let invalid = |reason: String| InvalidImageFilter {
            input: input.to_owned(),
            reason,
        };
        let (field, value) = input
            .split_once('=')
            .ok_or_else(|| invalid("write FIELD=VALUE, such as reference=debian:*".to_owned()))?;
        let parse = |text: &str| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(invalid(format!("{text:?} is neither true nor false"))),
        };
        Ok(match field {
            "reference" => Self::Reference(value.to_owned()),
            "digest" => Self::Digest(value.strip_prefix("sha256:").unwrap_or(value).to_owned()),
            "platform" => Self::Platform(
                value
                    .parse()
                    .map_err(|error: ImageError| invalid(error.to_string()))?,
            ),
            "registry" => Self::Registry(value.to_owned()),
            "used" => Self::Used(parse(value)?),
            "signed" => Self::Signed(parse(value)?),
            _ => {
                let reason = "it names no field that is known; use reference, digest, platform, registry, used or signed";
                return Err(invalid(reason.to_owned()));
            }
        })
    }
}

/// What a list of images is ordered by; equal ones by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageSortKey {
    /// The name.
    #[default]
    Reference,
    /// What comes free when it is removed, most first.
    Size,
    /// When it was last used, latest first.
    Used,
    /// When it came, latest first.
    Pulled,
}

impl ImageSortKey {
    /// Puts `rows` in this order.
    pub fn sort(self, rows: &mut [ImageSummary]) {
        let used = |row: &ImageSummary| row.record.last_used.unwrap_or(row.record.pulled_at);
        // Rows are by name; what is equal stays so.
        match self {
            Self::Reference => rows.sort_by(|a, b| {
                let key = |row: &ImageSummary| row.record.reference.clone();
                (key(a), &a.record.platform).cmp(&(key(b), &b.record.platform))
            }),
            Self::Size => rows.sort_by_key(|row| std::cmp::Reverse(row.unique_bytes)),
            Self::Used => rows.sort_by_key(|row| std::cmp::Reverse(used(row))),
            Self::Pulled => rows.sort_by_key(|row| std::cmp::Reverse(row.record.pulled_at)),
        }
    }
}

impl FromStr for ImageSortKey {
    type Err = InvalidImageSortKey;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        Ok(match input {
            "reference" => Self::Reference,
            "size" => Self::Size,
            "used" => Self::Used,
            "pulled" => Self::Pulled,
            _ => {
                return Err(InvalidImageSortKey {
                    input: input.to_owned(),
                });
            }
        })
    }
}

/// Nothing to order images by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is nothing to order by; use reference, size, used or pulled")]
pub struct InvalidImageSortKey {
    input: String,
}
