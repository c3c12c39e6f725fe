//! Sizes and counts that carry their unit in their type.

use serde::{Deserialize, Serialize};

/// A number of mebibytes (1,048,576 bytes each).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Mebibytes(pub u32);

impl Mebibytes {
    /// The same size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 as u64 * 1024 * 1024
    }
}

impl std::fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// A size that is not a positive number with an optional `M`/`MiB`/`G`/`GiB` suffix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{input:?} is not a size; give MiB as a number, or a number with M, MiB, G or GiB (512, 512M, 2G)"
)]
pub struct InvalidSize {
    input: String,
}

impl std::str::FromStr for Mebibytes {
    type Err = InvalidSize;

    /// Reads `512`, `512M`, `512MiB`, `2G` or `2GiB`; a bare number is MiB.
    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSize {
            input: input.to_owned(),
        };
        let digits = input
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(input.len());
        let (number, suffix) = input.split_at(digits);
        let factor = match suffix.to_ascii_lowercase().as_str() {
            "" | "m" | "mb" | "mib" => 1,
            "g" | "gb" | "gib" => 1024,
            _ => return Err(invalid()),
        };
        let number: u32 = number.parse().map_err(|_| invalid())?;
        match number.checked_mul(factor) {
            Some(mib) if mib > 0 => Ok(Self(mib)),
            _ => Err(invalid()),
        }
    }
}

/// How many vCPUs a machine has: 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("minimum" = 1, "maximum" = 64)))]
#[serde(try_from = "u32", into = "u32")]
pub struct VcpuCount(u8);

impl VcpuCount {
    /// The most vCPUs a machine may have.
    pub const MAX: u32 = 64;

    /// The number of vCPUs.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// A vCPU count outside 1..=64.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a vCPU count; give a number from 1 to 64")]
pub struct InvalidVcpuCount {
    input: String,
}

impl TryFrom<u32> for VcpuCount {
    type Error = InvalidVcpuCount;

    fn try_from(count: u32) -> Result<Self, Self::Error> {
        u8::try_from(count)
            .ok()
            .filter(|count| (1..=Self::MAX).contains(&u32::from(*count)))
            .map(Self)
            .ok_or_else(|| InvalidVcpuCount {
                input: count.to_string(),
            })
    }
}

impl From<VcpuCount> for u32 {
    fn from(count: VcpuCount) -> Self {
        Self::from(count.0)
    }
}

impl std::str::FromStr for VcpuCount {
    type Err = InvalidVcpuCount;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidVcpuCount {
            input: input.to_owned(),
        };
        input
            .parse::<u32>()
            .map_err(|_| invalid())?
            .try_into()
            .map_err(|_| invalid())
    }
}

impl std::fmt::Display for VcpuCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, mib) in [("512", 512), ("512M", 512), ("2G", 2048), ("1GiB", 1024)] {
            assert_eq!(text.parse(), Ok(Mebibytes(mib)), "{text}");
        }
        for text in ["", "0", "-1", "1.5G", "4T", "M", "99999999G"] {
            assert!(text.parse::<Mebibytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn vcpu_counts_are_bounded() {
        assert_eq!("64".parse::<VcpuCount>().unwrap().get(), 64);
        for text in ["0", "65", "two", "-1", ""] {
            assert!(text.parse::<VcpuCount>().is_err(), "{text}");
        }
    }
}
