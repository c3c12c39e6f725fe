//! The machine of a workspace, as seen from its directory: whether it lives, and where it listens.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use microagent_host::{
    fs::Private,
    lock::{Lock, Sharing},
    process::{ProcessHandle, start_ticks},
};
use microagent_protocol::{
    ProcessIdentity,
    supervisor::{CONTROL_SOCKET, MACHINE_LOCK},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    files::{self, Durability},
};

/// Where the machine of a workspace is recorded.
const MACHINE: &str = "machine.json";

/// A record may not be larger, in bytes.
const MAX: u64 = 64 << 10;

/// Where a machine listens; written before it is launched, so that nobody has to look for one
/// whose launcher was killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineRecord {
    /// The directory of its sockets.
    pub(crate) runtime_dir: PathBuf,
    /// Its supervisor, once that answered.
    #[serde(default)]
    pub(crate) supervisor: Option<ProcessIdentity>,
}

impl MachineRecord {
    /// The record in `directory`; `None` where there is none that can be read.
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        File::open(directory.join(MACHINE))
            .ok()?
            .take(MAX)
            .read_to_end(&mut bytes)
            .ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Records it in `directory`.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        files::write_json(&directory.join(MACHINE), self, Durability::Unsynced)
    }

    /// Its supervisor's control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.runtime_dir.join(CONTROL_SOCKET)
    }
}

/// Whether a supervisor of the workspace in `directory` lives.
///
/// A supervisor holds [`MACHINE_LOCK`] for as long as it lives; no process number is guessed from.
pub(crate) fn is_live(directory: &Path) -> bool {
    match File::open(directory.join(MACHINE_LOCK)) {
        // A shared lock for an instant disturbs nobody who asks likewise.
        Ok(file) => matches!(Lock::now(file, Sharing::Shared), Ok(None)),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// While it lives no supervisor of a workspace takes its lock.
///
/// Who holds a workspace needs it, too, before its files are changed or removed: a launcher that was
/// killed has let go of the workspace, and the supervisor it made may be about to begin.
#[derive(Debug)]
pub(crate) struct AtRest(#[expect(dead_code, reason = "held, not looked at")] Option<Lock>);

impl AtRest {
    /// Keeps the workspace in `directory` at rest; `None` where a supervisor of it lives.
    pub(crate) fn keep(directory: &Path) -> Option<Self> {
        let path = directory.join(MACHINE_LOCK);
        let file = File::open(&path).or_else(|_| {
            File::options()
                .read(true)
                .append(true)
                .create(true)
                .private()
                .open(&path)
        });
        match file {
            // Shared: who asks whether a machine lives is not told so.
            Ok(file) => match Lock::now(file, Sharing::Shared) {
                Ok(lock) => lock.map(|lock| Self(Some(lock))),
                Err(error) => {
                    tracing::debug!("cannot lock {}: {error}", path.display());
                    Some(Self(None))
                }
            },
            // Where it cannot be made, a supervisor cannot make it either, and does not begin.
            Err(error) => {
                tracing::debug!("cannot open {}: {error}", path.display());
                Some(Self(None))
            }
        }
    }
}

/// Waits for the supervisor to be gone; false if it did not go in time.
pub(crate) fn wait_gone(directory: &Path, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while is_live(directory) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Kills a supervisor that does not answer; its machine dies with it. Another process that has its
/// number by now is left alone.
pub(crate) fn kill(supervisor: &ProcessIdentity) {
    // The handle first: what is compared then is what is killed.
    let Ok(handle) = ProcessHandle::open(supervisor.pid) else {
        return; // Gone already.
    };
    // The lock says already that the boot is this one.
    if start_ticks(supervisor.pid).is_ok_and(|ticks| ticks == supervisor.start_ticks)
        && let Err(error) = handle.kill()
    {
        tracing::warn!("the supervisor {} was not killed: {error}", supervisor.pid);
    }
}

/// The directory of sockets that a supervisor left behind which was killed.
pub(crate) fn dead_runtime(directory: &Path) -> Option<PathBuf> {
    let record = MachineRecord::read(directory)?;
    let name = record.runtime_dir.file_name()?.to_str()?;
    // Only what we name like that ourselves, whatever the record says.
    let ours = name.len() == 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    (ours && record.runtime_dir.join("").is_dir()).then_some(record.runtime_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_a_workspace_at_rest_bars_a_machine_and_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let at_rest = AtRest::keep(directory.path()).unwrap();
        let machine = || {
            let file = File::open(directory.path().join(MACHINE_LOCK)).unwrap();
            Lock::now(file, Sharing::Exclusive).unwrap()
        };
        assert!(machine().is_none());
        assert!(!is_live(directory.path()));
        assert!(AtRest::keep(directory.path()).is_some());
        drop(at_rest);
        let _machine = machine().unwrap();
        assert!(is_live(directory.path()));
        assert!(AtRest::keep(directory.path()).is_none());
    }
}
