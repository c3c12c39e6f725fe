//! Processes of a Mac. Never run: no Mac was there; what reads a date is tested elsewhere.
#![cfg_attr(not(target_os = "macos"), allow(dead_code))]

/// What `ps -o lstart=` prints in the language C, such as `Sat Nov 28 04:09:07 2026`, as one number that
/// grows: 20261128040907.
pub(super) fn date_number(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split_ascii_whitespace();
    let (_weekday, month, day) = (words.next()?, words.next()?, words.next()?);
    let (time, year) = (words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let number = |digits: &str, most: u64| {
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u64>().ok().filter(|n| plain && *n <= most)
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let mut date = number(year, 9999)? * 100 + month;
    date = date * 100 + number(day, 31)?;
    let mut parts = 0;
    for (part, most) in time.split(':').zip([23, 59, 60]) {
        date = date * 100 + number(part, most)?;
        parts += 1;
    }
    (parts == 3 && time.split(':').count() == 3).then_some(date)
}

#[cfg(target_os = "macos")]
pub use self::system::ProcessHandle;
#[cfg(target_os = "macos")]
pub(super) use self::system::{boot_name, start_number};

#[cfg(target_os = "macos")]
mod system {
    use std::{
        io,
        os::fd::OwnedFd,
        process::{Command, Stdio},
        time::Instant,
    };

    use nix::{
        errno::Errno,
        sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue},
    };
    use rustix::process::{Pid, Signal, kill_process};

    use super::{super::readable_by, date_number};

    /// A handle on one process, never on a later one with its number.
    #[derive(Debug)]
    pub struct ProcessHandle {
        /// Hears of its end, and of no later process's.
        queue: OwnedFd,
        pid: Pid,
    }

    impl ProcessHandle {
        /// Of the process that has this number now.
        ///
        /// # Errors
        /// [`io::ErrorKind::NotFound`] if it is gone.
        pub fn open(pid: u32) -> io::Result<Self> {
            let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let number = number.ok_or(io::ErrorKind::NotFound)?;
            let queue = Kqueue::new()?;
            let end = KEvent::new(
                pid as usize,
                EventFilter::EVFILT_PROC,
                EvFlags::EV_ADD,
                FilterFlag::NOTE_EXIT,
                0,
                0,
            );
            // Without room for an event it registers, and does not wait.
            match queue.kevent(&[end], &mut [], None) {
                Ok(_) => Ok(Self {
                    queue: queue.into(),
                    pid: number,
                }),
                Err(Errno::ESRCH) => Err(io::ErrorKind::NotFound.into()),
                Err(error) => Err(error.into()),
            }
        }

        /// Waits for its end; false if it did not come in time.
        ///
        /// # Errors
        /// The system's.
        pub fn ended_by(&self, deadline: Instant) -> io::Result<bool> {
            readable_by(&self.queue, deadline)
        }

        /// Ends it at once, without a chance to clean up.
        ///
        /// # Errors
        /// The system's, if it has ended for one.
        pub fn kill(&self) -> io::Result<()> {
            // Its number is free from its end on; the instant between the two calls is all there is to lose.
            if self.ended_by(Instant::now())? {
                return Err(rustix::io::Errno::SRCH.into());
            }
            Ok(kill_process(self.pid, Signal::KILL)?)
        }

        /// A descriptor that becomes readable when it ends.
        #[must_use]
        pub fn into_fd(self) -> OwnedFd {
            self.queue
        }
    }

    /// When a process was started, to the second. What tells it finer takes a call that only unsafe code can make.
    pub(in super::super) fn start_number(pid: u32) -> io::Result<u64> {
        let pid = pid.to_string();
        // It fails where there is no such process.
        let text =
            told_by("/bin/ps", &["-o", "lstart=", "-p", &pid])?.ok_or(io::ErrorKind::NotFound)?;
        date_number(&text).ok_or_else(|| {
            let what = format!("ps tells no start time of process {pid}: {text:?}");
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    }

    /// Which boot this is.
    pub(in super::super) fn boot_name() -> io::Result<String> {
        let name = told_by("/usr/sbin/sysctl", &["-n", "kern.bootsessionuuid"])?;
        let name = name.map(|name| name.trim().to_owned());
        name.filter(|name| !name.is_empty()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "this host gives its boot no name",
            )
        })
    }

    /// What a program of the system prints, in the language C and the time zone UTC; `None` if it failed.
    fn told_by(program: &str, arguments: &[&str]) -> io::Result<Option<String>> {
        let output = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs([("LC_ALL", "C"), ("TZ", "UTC0")])
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(output.status.success().then_some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_becomes_a_number_that_grows() {
        assert_eq!(
            date_number("Sat Nov 28 04:09:07 2026\n"),
            Some(20_261_128_040_907)
        );
        assert_eq!(
            date_number("Thu Jan  1 00:00:00 1970"),
            Some(19_700_101_000_000)
        );
        assert!(date_number("Fri Dec 31 23:59:60 2027") < date_number("Sat Jan  1 00:00:00 2028"));
        for text in [
            "",
            "Sat Nov 28 2026",
            "Sat Nov 28 04:09 2026",
            "Sat Nov 28 04:09:07:01 2026",
            "Sam Nov. 28 04:09:07 2026",
            "Sat Nov +8 04:09:07 2026",
            "Sat Nov 32 04:09:07 2026",
            "Sat Nov 28 24:09:07 2026",
            "Sat Nov 28 04:09:07 2026 UTC",
        ] {
            assert_eq!(date_number(text), None, "{text}");
        }
    }
}
