//! What a machine costs its host, read from `/proc`. What cannot be read is absent, never zero.

use std::{
    fs, io,
    time::{Duration, Instant, SystemTime},
};

use microagent_protocol::MachineStats;

/// The time over which processor use is taken, where there is no earlier sample to take it from.
const INTERVAL: Duration = Duration::from_millis(200);

/// Takes samples for one client, each against the one before.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    last: Option<Reading>,
}

/// A process's processor time at one instant.
#[derive(Clone, Copy, Debug)]
struct Reading {
    pid: u32,
    at: Instant,
    cpu_ms: u64,
}

impl Sampler {
    /// A sample of the VMM `pid`, with what only the supervisor knows.
    ///
    /// # Errors
    /// If the process is gone.
    pub(crate) fn sample(
        &mut self,
        pid: u32,
        sessions: usize,
        connections: usize,
    ) -> io::Result<MachineStats> {
        let before = match self.last {
            Some(last) if last.pid == pid && last.at.elapsed() >= INTERVAL => last,
            _ => {
                let reading = Reading::take(pid)?;
                std::thread::sleep(INTERVAL);
                reading
            }
        };
        let now = Reading::take(pid)?;
        self.last = Some(now);
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(MachineStats {
            sampled_at: SystemTime::now().into(),
            pid,
            cpu_ms: now.cpu_ms,
            cpu_percent: now.percent_since(before),
            memory_bytes: resident(pid)?,
            supervisor_memory_bytes: resident(std::process::id())?,
            io_read_bytes: field(&io, "read_bytes:"),
            io_write_bytes: field(&io, "write_bytes:"),
            sessions: count(sessions),
            connections: count(connections),
        })
    }
}

impl Reading {
    fn take(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let at = Instant::now();
        let ticks = ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Self {
            pid,
            at,
            cpu_ms: ticks.saturating_mul(1000) / per_second,
        })
    }

    /// Tenths of a percent are as fine as the kernel's ticks allow.
    fn percent_since(self, before: Self) -> Option<f64> {
        let elapsed = self.at.duration_since(before.at).as_secs_f64() * 1000.0;
        let used = self.cpu_ms.checked_sub(before.cpu_ms)? as f64;
        (elapsed > 0.0).then(|| (used / elapsed * 1000.0).round() / 10.0)
    }
}

/// User and system time of a process, its threads together (proc(5): fields 14 and 15).
fn ticks(stat: &str) -> Option<u64> {
    // The name in parentheses may hold anything; field 3 follows the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = field(&status, "VmRSS:").ok_or(io::ErrorKind::NotFound)?;
    Ok(kib * 1024)
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_is_seen_to_be_busy() {
        let mut sampler = Sampler::default();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let busy = std::thread::spawn({
            let stop = stop.clone();
            move || while !stop.load(std::sync::atomic::Ordering::Relaxed) {}
        });
        let pid = std::process::id();
        let first = sampler.sample(pid, 1, 2).unwrap();
        std::thread::sleep(INTERVAL);
        let second = sampler.sample(pid, 1, 2).unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        busy.join().unwrap();
        assert!(first.cpu_percent.unwrap() > 5.0, "{first:?}");
        assert!(second.cpu_ms > first.cpu_ms, "{second:?}");
        assert!(second.memory_bytes > 100_000 && second.io_read_bytes.is_some());
        assert_eq!((second.sessions, second.connections), (1, 2));
    }

    #[test]
    fn what_is_not_there_is_absent() {
        assert!(Sampler::default().sample(u32::MAX, 0, 0).is_err());
        assert_eq!(field("rchar: 1\n", "read_bytes:"), None);
        assert_eq!(field("read_bytes: 7\n", "read_bytes:"), Some(7));
        assert_eq!(ticks("1 (a) b) S 1 1 1 0 -1 4 9 9 9 9 30 12 0 0"), Some(42));
    }
}
