//! What the guest agent measures: how it is told, and what it says.
//!
//! The agent's own program, started by a session as [`PROGRAM`], measures disks and answers a peer on the
//! host. So it works in any image, also in one without any program.

use serde::{Deserialize, Serialize};

/// The agent's program, in each guest.
pub const PROGRAM: &str = "/proc/1/exe";

/// Its first argument when it is to measure.
pub const MEASURE: &str = "measure";

/// The words after [`MEASURE`], and what belongs to them.
pub mod task {
    /// `disk MIB`: measures both disks, and prints [`DiskTimes`](super::DiskTimes).
    pub const DISK: &str = "disk";
    /// `connect ADDRESS TOKEN`: answers the peer at a TCP address.
    pub const CONNECT: &str = "connect";
    /// `vsock PORT TOKEN`: answers the peer at the host's vsock port.
    pub const VSOCK: &str = "vsock";
    /// `listen PORT TOKEN`: answers the peer that comes to the port of the guest's loopback. A line is
    /// printed as soon as it can.
    pub const LISTEN: &str = "listen";
}

/// The bytes of a token, in hexadecimal digits: what a connection begins with, sent by whoever made it.
pub const TOKEN_LEN: usize = 32;

/// The largest message of a [`Drill`].
pub const MAX_MESSAGE: u32 = 1 << 20;

/// What the host asks of the guest on a connection, again and again until it closes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drill {
    /// What to do.
    pub what: DrillKind,
    /// The size of each message, from 1 to [`MAX_MESSAGE`].
    pub size: u32,
    /// How many messages.
    pub count: u32,
}

/// What is done with messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrillKind {
    /// The guest sends each back.
    Echo,
    /// The guest takes all, and then sends one byte.
    Take,
    /// The guest sends them.
    Give,
}

impl Drill {
    /// Its length on the wire.
    pub const LEN: usize = 9;

    /// As it is sent.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = match self.what {
            DrillKind::Echo => b'E',
            DrillKind::Take => b'T',
            DrillKind::Give => b'G',
        };
        bytes[1..5].copy_from_slice(&self.size.to_le_bytes());
        bytes[5..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    /// As it is received; `None` if it is none.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Option<Self> {
        let [what, s0, s1, s2, s3, c0, c1, c2, c3] = bytes;
        let what = match what {
            b'E' => DrillKind::Echo,
            b'T' => DrillKind::Take,
            b'G' => DrillKind::Give,
            _ => return None,
        };
        let size = u32::from_le_bytes([s0, s1, s2, s3]);
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        (1..=MAX_MESSAGE)
            .contains(&size)
            .then_some(Self { what, size, count })
    }
}

/// How long disks took, in nanoseconds, with nothing of them in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskTimes {
    /// How many bytes were read and written from end to end.
    pub bytes: u64,
    /// To write a new file on the scratch disk, until it was on stable storage.
    pub scratch_write: u64,
    /// To read it.
    pub scratch_read: u64,
    /// To write 4 KiB somewhere in it, on average.
    pub scratch_random_write: u64,
    /// To read 4 KiB somewhere in it, on average.
    pub scratch_random_read: u64,
    /// To write 4 KiB and have them on stable storage; the median.
    pub scratch_sync: u64,
    /// How many bytes of the base disk were read from end to end: it may be small.
    pub base_bytes: u64,
    /// To read them.
    pub base_read: u64,
    /// To read 4 KiB somewhere on the base disk, on average.
    pub base_random_read: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_drill_is_the_same_after_the_wire(bytes in any::<[u8; Drill::LEN]>()) {
            if let Some(drill) = Drill::from_bytes(bytes) {
                prop_assert_eq!(drill.to_bytes(), bytes);
                prop_assert!((1..=MAX_MESSAGE).contains(&drill.size));
            }
        }
    }

    #[test]
    fn what_is_too_large_or_unknown_is_none() {
        let drill = Drill {
            what: DrillKind::Give,
            size: MAX_MESSAGE,
            count: u32::MAX,
        };
        assert_eq!(Drill::from_bytes(drill.to_bytes()), Some(drill));
        for bytes in [
            Drill { size: 0, ..drill }.to_bytes(),
            Drill {
                size: MAX_MESSAGE + 1,
                ..drill
            }
            .to_bytes(),
            [b'x'; Drill::LEN],
        ] {
            assert_eq!(Drill::from_bytes(bytes), None);
        }
    }
}
