//! The rate of this host's time-stamp counter. Software emulation shows the
//! guest the host's counter; a guest that measures it on a busy host may fail
//! to, and hang, so it is told.

/// The counter's rate in kHz, measured for a few milliseconds against the
/// host's raw monotonic clock; `None` where there is no such counter, or the
/// host was too busy for three measurements to agree within 0.05 %.
#[must_use]
pub fn measure_tsc_khz() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        x86::measure()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        None
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use std::time::{Duration, Instant};

    use rustix::time::{ClockId, clock_gettime};

    /// One measurement; its error is the reading's jitter (below 1 µs) over this.
    const SPAN: Duration = Duration::from_millis(4);
    /// How long it is tried in all.
    const LIMIT: Duration = Duration::from_millis(200);

    pub(super) fn measure() -> Option<u64> {
        let start = Instant::now();
        let mut rates: Vec<u64> = Vec::new();
        while start.elapsed() < LIMIT {
            let (ticks0, nanos0) = reading()?;
            std::thread::sleep(SPAN);
            let (ticks1, nanos1) = reading()?;
            let ticks = u128::from(ticks1.checked_sub(ticks0)?);
            let nanos = u128::from(nanos1.checked_sub(nanos0).filter(|nanos| *nanos > 0)?);
            rates.push(u64::try_from(ticks * 1_000_000 / nanos).ok()?);
            if let Some(rate) = agreed(&mut rates.clone()) {
                return Some(rate);
            }
        }
        None
    }

    /// The middle of three neighbours that agree.
    pub(super) fn agreed(rates: &mut [u64]) -> Option<u64> {
        rates.sort_unstable();
        rates
            .windows(3)
            .find(|three| three[0] > 0 && three[2] - three[0] <= three[1] / 2000)
            .map(|three| three[1])
    }

    /// The counter and the clock at one instant: the tightest of a few tries,
    /// so that being preempted between the two does not count.
    fn reading() -> Option<(u64, u64)> {
        (0..8)
            .map(|_| {
                // SAFETY: RDTSC is in every x86-64 processor and reads only the counter.
                let before = unsafe { std::arch::x86_64::_rdtsc() };
                let now = clock_gettime(ClockId::MonotonicRaw);
                // SAFETY: as above.
                let after = unsafe { std::arch::x86_64::_rdtsc() };
                let nanos = u64::try_from(now.tv_sec).ok()? * 1_000_000_000
                    + u64::try_from(now.tv_nsec).ok()?;
                let width = after.checked_sub(before)?;
                Some((width, before + width / 2, nanos))
            })
            .min_by_key(|reading| reading.map_or(u64::MAX, |(width, ..)| width))?
            .map(|(_, ticks, nanos)| (ticks, nanos))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn outliers_do_not_count() {
            assert_eq!(
                agreed(&mut [2_445_404, 3_000_000, 2_445_405, 2_445_407]),
                Some(2_445_405)
            );
            assert_eq!(agreed(&mut [2_000_000, 3_000_000, 4_000_000]), None);
            assert_eq!(agreed(&mut [0, 0, 0]), None);
        }

        #[test]
        fn two_measurements_agree() {
            let (one, two) = (measure().unwrap(), measure().unwrap());
            assert!(one.abs_diff(two) < one / 500, "{one} {two}");
        }
    }
}
