//! What an image is built for: operating system, architecture, variant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ImageError;

/// An OCI platform, normalised: `amd64` for x86_64, `arm64` for aarch64, no variant for `arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, as Go names it: `linux`.
    pub os: String,
    /// Architecture, as Go names it: `amd64`, `arm64`.
    pub architecture: String,
    /// CPU variant, as `v7` of `arm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// A normalised platform from its parts.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = os.to_ascii_lowercase();
        let architecture = match architecture.to_ascii_lowercase().as_str() {
            "aarch64" | "arm64" => "arm64".to_owned(),
            "x86_64" | "x86-64" | "x64" | "amd64" => "amd64".to_owned(),
            "i386" | "i486" | "i586" | "i686" | "x86" | "386" => "386".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant
            .map(str::to_ascii_lowercase)
            .filter(|v| !v.is_empty())
            .filter(|v| {
                !matches!(
                    (architecture.as_str(), v.as_str()),
                    ("arm64", "v8" | "8") | ("amd64", "v1")
                )
            });
        Self {
            os,
            architecture,
            variant,
        }
    }

    /// Linux on the architecture this program was built for: what a microVM here can run natively.
    #[must_use]
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, None)
    }

    /// Whether a machine of `self` runs the programs of `other`: its own kind in any variant, and what its
    /// kernel takes besides.
    #[must_use]
    pub fn runs(&self, other: &Self) -> bool {
        let same = self.architecture == other.architecture;
        let besides = self.architecture == "amd64" && other.architecture == "386";
        self.os == other.os && (same || besides)
    }

    /// How well an image for `self` serves a request for `wanted`: `None` does not run, smaller is better.
    #[must_use]
    pub(crate) fn fit(&self, wanted: &Self) -> Option<u8> {
        if self.os != wanted.os || self.architecture != wanted.architecture {
            return None;
        }
        match (&self.variant, &wanted.variant) {
            (have, want) if have == want => Some(0),
            (Some(_), None) => Some(2),
            (None, Some(_)) => Some(1),
            // A later variant of a CPU runs what was built for an earlier one.
            (Some(have), Some(want)) => {
                let behind = generation(want)?.checked_sub(generation(have)?)?;
                (behind > 0).then(|| behind.saturating_add(1))
            }
            _ => None,
        }
    }
}

/// The number of a variant such as `v7`.
fn generation(variant: &str) -> Option<u8> {
    variant.strip_prefix('v')?.parse().ok()
}

impl Default for Platform {
    fn default() -> Self {
        Self::host()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = ImageError;

    /// Reads `os/arch[/variant]`, or an architecture alone (the system is then `linux`).
    fn from_str(text: &str) -> Result<Self, ImageError> {
        let fault = |reason| ImageError::BadPlatform {
            input: crate::error::clip(text),
            reason,
        };
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 3 {
            return Err(fault("it has more than three parts"));
        }
        if parts.iter().any(|part| {
            part.is_empty()
                || part.len() > 32
                || !part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        }) {
            return Err(fault("a part is empty or has an unexpected character"));
        }
        Ok(match parts[..] {
            [os] if os.eq_ignore_ascii_case("linux") => Self::host(),
            [architecture] => Self::new("linux", architecture, None),
            [os, architecture] => Self::new(os, architecture, None),
            [os, architecture, variant] => Self::new(os, architecture, Some(variant)),
            _ => return Err(fault("it is empty")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (text, expect) in [
            ("linux/x86_64", "linux/amd64"),
            ("x64", "linux/amd64"),
            ("aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), expect);
        }
        for bad in ["", "a/b/c/d", "linux/", "linux/am d64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_machine_runs_its_own_kind() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        for (host, image, expect) in [
            ("amd64", "amd64/v3", true),
            ("amd64", "386", true),
            ("amd64", "arm64", false),
            ("arm64", "arm64/v8", true),
            ("arm64", "arm/v7", false),
            ("arm64", "amd64", false),
        ] {
            let image = platform(&format!("linux/{image}"));
            assert_eq!(platform(host).runs(&image), expect, "{host} {image}");
        }
        assert!(!platform("amd64").runs(&platform("windows/amd64")));
    }

    #[test]
    fn an_exact_variant_beats_a_missing_one() {
        let v6: Platform = "linux/arm/v6".parse().unwrap();
        let v7: Platform = "linux/arm/v7".parse().unwrap();
        let plain: Platform = "linux/arm".parse().unwrap();
        assert_eq!(v7.fit(&v7), Some(0));
        assert_eq!(plain.fit(&v7), Some(1));
        assert_eq!((v6.fit(&v7), v7.fit(&v6)), (Some(2), None));
        assert_eq!(v6.fit(&plain), Some(2));
        assert_eq!(
            Platform::new("windows", "amd64", None).fit(&Platform::new("linux", "amd64", None)),
            None
        );
    }
}
