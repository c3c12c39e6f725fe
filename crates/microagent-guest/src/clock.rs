//! Clocks: how long the kernel has been up, and what time it is.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::error::{Context, Error};

/// Milliseconds since the kernel started its clocks.
pub(crate) fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Sets the wall clock to `unix_nanos` nanoseconds since 1970, UTC.
pub(crate) fn set(unix_nanos: u64) -> Result<(), Error> {
    const SECOND: u64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: i64::try_from(unix_nanos / SECOND).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(unix_nanos % SECOND).unwrap_or(0),
    };
    clock_settime(ClockId::Realtime, time).context("set the clock")
}
