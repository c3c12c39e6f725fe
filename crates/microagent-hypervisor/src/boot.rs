//! Boots the probe guest with the real driver until its agent says hello.

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use microagent_protocol::{
    ConfinementMode, FrameError, FrameKind, FrameReader, Mebibytes, NetworkMode, VcpuCount,
    guest::{GUEST_CID, GuestMessage, HELLO_PORT},
    supervisor::ProbeGuest,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{
    ConsoleSpec, Error, Hypervisor, Machine, MachineSpec, VsockSpec, hybrid, text::printable,
};

/// How long a killed VMM may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The guest's first words.
pub(crate) struct Hello {
    pub kernel_release: String,
    /// From the launch.
    pub after: Duration,
}

impl std::fmt::Display for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "a guest with kernel {} said hello after {} ms",
            self.kernel_release,
            self.after.as_millis()
        )
    }
}

/// A directory of its own, gone with all in it in the end.
struct Place(PathBuf);

impl Place {
    fn new(runtime_dir: &Path) -> Result<Self, Error> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = runtime_dir.join(format!("p{:x}.{number:x}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| Error::Io {
                context: format!("make the directory {}", path.display()),
                source,
            })?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a probe's directory was left behind");
        }
    }
}

/// Boots the guest; ends it as soon as it said hello or `limit` passed.
pub(crate) fn until_hello(
    driver: &dyn Hypervisor,
    program: &Path,
    guest: &ProbeGuest,
    runtime_dir: &Path,
    attempt: u32,
    limit: Duration,
) -> Result<Hello, Error> {
    let start = Instant::now();
    let deadline = start + limit;
    let place = Place::new(runtime_dir)?;
    let uds = place.0.join("v");
    let spec = MachineSpec {
        name: "probe".to_owned(),
        memory: Mebibytes(256),
        vcpus: VcpuCount::try_from(1).map_err(|error| Error::Invalid(error.to_string()))?,
        kernel: guest.kernel.clone(),
        initramfs: guest.initramfs.clone(),
        disks: Vec::new(),
        network: NetworkMode::Isolated,
        confinement: ConfinementMode::Auto,
        vsock: VsockSpec {
            cid: GUEST_CID,
            uds: uds.clone(),
        },
        console: ConsoleSpec {
            log: place.0.join("console"),
            limit: 64 * 1024,
        },
        runtime_dir: place.0.clone(),
        attempt,
    };
    let listener = hybrid::listen(&uds, HELLO_PORT).map_err(|source| Error::Io {
        context: format!("listen for the probe guest at {}", uds.display()),
        source,
    })?;
    let machine = driver.launch(&spec)?;
    listener.set_nonblocking(true).map_err(|source| Error::Io {
        context: "wait for the probe guest".to_owned(),
        source,
    })?;
    while connected(&*machine, &listener, deadline)? {
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        match first_word(stream, deadline) {
            Ok(kernel_release) => {
                return Ok(Hello {
                    kernel_release,
                    after: start.elapsed(),
                });
            }
            // A busy host may let a connection lapse; the agent tries again.
            Err(error) => tracing::debug!(%error, "the probe guest connected in vain"),
        }
    }
    let ended = machine.wait(Duration::ZERO)?;
    // Also waits for the last of its words.
    machine.kill()?;
    machine.wait(END_LIMIT)?;
    let words = machine.words();
    let console = last_line(&spec.console.log);
    Err(match ended {
        Some(exit) => Error::VmmStart {
            program: program.to_owned(),
            reason: format!("it ended ({exit:?}) before the guest spoke: {words}{console}"),
        },
        None => Error::Timeout {
            what: format!("the guest's hello{console}"),
            limit,
        },
    })
}

/// Reads the hello and gives the kernel's release.
fn first_word(stream: UnixStream, deadline: Instant) -> Result<String, FrameError> {
    let left = deadline.saturating_duration_since(Instant::now());
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(left.max(Duration::from_millis(100))))?;
    let mut reader = FrameReader::new(stream);
    let message = reader
        .require()?
        .expect_json::<GuestMessage>(FrameKind::Control, "hello")?;
    let GuestMessage::Hello { kernel_release, .. } = message else {
        return Err(io::Error::other("the first word is not hello").into());
    };
    Ok(printable(kernel_release.as_bytes())
        .chars()
        .take(64)
        .collect())
}

/// Waits until the guest connects; `false` if the VMM ended or time ran out first.
fn connected(
    machine: &dyn Machine,
    listener: &UnixListener,
    deadline: Instant,
) -> Result<bool, Error> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let exit_fd = machine.exit_fd();
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(exit_fd, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::Io {
                    context: "wait for the probe guest".to_owned(),
                    source: errno.into(),
                });
            }
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) => {}
            Ok(_) => return Ok(!fds[0].revents().is_empty()),
        }
    }
}

/// The console's last line, for a message.
fn last_line(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = printable(&bytes);
    let line: String = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default()
        .chars()
        .take(200)
        .collect();
    if line.is_empty() {
        " (nothing on the console)".to_owned()
    } else {
        format!(" (last on the console: {})", line.trim())
    }
}
