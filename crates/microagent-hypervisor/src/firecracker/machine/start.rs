//! How its process is started: what it is told, what it may reach, and how long it may take to answer.

use std::{
    ffi::OsString,
    fs,
    io::ErrorKind,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use microagent_protocol::NetworkMode;

use super::{About, FirecrackerMachine};
use crate::{
    Error, MachineSpec,
    confine::{Reach, Terms, cgroup::Limits},
    console::RotatingLog,
    firecracker::{FirecrackerBinary, JailerBinary, Tuning, api::Api},
    network::Network,
    process::{Plan, Vmm},
};

/// The API socket's name in the runtime directory.
const API_SOCKET: &str = "api";
/// The longest path of a Unix socket, its end included (`sockaddr_un`, unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// What it leaves in the file system.
pub(super) struct Files {
    pub(super) api: PathBuf,
    pub(super) vsock: PathBuf,
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in [&self.api, &self.vsock] {
            remove(path);
        }
    }
}

pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("cannot remove {}: {error}", path.display()),
    }
}

impl FirecrackerMachine {
    /// Starts the process, and waits until its API answers.
    pub(super) fn spawn(
        about: &About<'_>,
        spec: &MachineSpec,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, Error> {
        let Some(jailer) = about.jailer else {
            return Self::spawn_by(about, spec, descriptors, Ok(None));
        };
        if !descriptors.is_empty() {
            let why =
                "a jailer hands on no descriptor, and its kernel or initramfs is another user's";
            return Self::spawn_by(about, spec, descriptors, Err(why.to_owned()));
        }
        match Self::spawn_by(about, spec, Vec::new(), Ok(Some(jailer))) {
            Err(error @ Error::VmmStart { .. }) => {
                tracing::warn!("{} does not do here: {error}", jailer.path().display());
                Self::spawn_by(about, spec, Vec::new(), Err(error.to_string()))
            }
            other => other,
        }
    }

    /// By this jailer, or without one, and perhaps why.
    fn spawn_by(
        about: &About<'_>,
        spec: &MachineSpec,
        descriptors: Vec<OwnedFd>,
        jailer: Result<Option<&JailerBinary>, String>,
    ) -> Result<Self, Error> {
        let About {
            binary,
            tuning,
            limit,
            ..
        } = *about;
        let deadline = Instant::now() + limit;
        let files = Files {
            api: spec.runtime_dir.join(API_SOCKET),
            vsock: spec.vsock.uds.clone(),
        };
        for path in [&files.api, &files.vsock] {
            if path.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
                return Err(Error::Invalid(format!(
                    "{} is longer than the {MAX_SOCKET_PATH} bytes a socket's path may have",
                    path.display()
                )));
            }
            // Of a machine that is dead: the directory is this machine's alone.
            remove(path);
        }
        let io = |context: &str| {
            let context = context.to_owned();
            move |source| Error::Io { context, source }
        };
        let (console_here, console_there) =
            UnixStream::pair().map_err(io("make a socket pair for the serial console"))?;
        let log = RotatingLog::open(&spec.console).map_err(io(&format!(
            "open the console log {}",
            spec.console.log.display()
        )))?;
        let id = instance_id(&spec.name);
        let mut arguments: Vec<OsString> = [
            "--api-sock".into(),
            files.api.clone().into(),
            // Its own words go where ours are gathered, not into the guest's console.
            "--log-path".into(),
            "/dev/stderr".into(),
            "--level".into(),
            "Warning".into(),
        ]
        .into();
        let (jailer, no_jailer) = match jailer {
            Ok(jailer) => (jailer, None),
            Err(why) => (None, Some(why)),
        };
        let jailer = jailer.map(|jailer| jailer.starts(binary, spec, &id, &arguments));
        let jailer = jailer.transpose()?;
        arguments.extend(["--id".into(), id.into()]);
        tracing::debug!(program = %binary.path().display(), ?arguments, "launching Firecracker");
        let passt = about.passt.filter(|_| spec.network == NetworkMode::User);
        let (channel, tap) = match passt {
            Some(_) => UnixStream::pair()
                .map(|(here, there)| (Some(here), Some(there)))
                .map_err(io("make a socket pair for the network"))?,
            None => (None, None),
        };
        let vmm = Vmm::spawn(Plan {
            program: binary.path().to_owned(),
            arguments,
            descriptors,
            terms: Terms {
                mode: spec.confinement,
                reach: reach(binary, tuning, spec),
                // Its own filter is on unless it is told otherwise, which it is not.
                filters_calls: true,
                limits: Limits::of(spec),
                jailer,
                no_jailer,
            },
            console: console_here,
            stdio: Some(console_there),
            tap,
            log,
        })?;
        let api = Api::new(files.api.clone());
        let network = match passt.zip(channel) {
            Some((passt, channel)) => Some(Network::start_on_tap(passt, &channel)?),
            None => None,
        };
        let machine = Self {
            vmm,
            network,
            api,
            files,
        };
        machine.await_api(binary, limit, deadline)
    }

    fn await_api(
        self,
        binary: &FirecrackerBinary,
        limit: Duration,
        deadline: Instant,
    ) -> Result<Self, Error> {
        loop {
            if UnixStream::connect(self.api.socket()).is_ok() {
                return self.or_last_words(binary, |machine| {
                    let info = machine.api.describe()?;
                    tracing::debug!(?info, "Firecracker answers");
                    match info.state.as_str() {
                        "Not started" => Ok(()),
                        state => Err(Error::Control {
                            action: "wait for its configuration",
                            reason: format!(
                                "Firecracker {} says it is {state:?}",
                                info.vmm_version
                            ),
                        }),
                    }
                });
            }
            // Also the pause between two looks.
            if self.vmm.wait(Duration::from_millis(2))?.is_some() {
                return Err(self.start_failure(binary, "it ended before its API answered"));
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout {
                    what: "an answer of Firecracker's API".to_owned(),
                    limit,
                });
            }
        }
    }
}

/// What Firecracker takes for an identifier: at most 64 letters, digits and hyphens.
fn instance_id(name: &str) -> String {
    let id: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(64)
        .collect();
    if id.is_empty() {
        "machine".to_owned()
    } else {
        id
    }
}

/// The files it may reach: its own program, KVM, and this machine's.
fn reach(binary: &FirecrackerBinary, tuning: &Tuning, spec: &MachineSpec) -> Reach {
    let mut read: Vec<PathBuf> = [
        // A release is static; one built against the host's libraries reads them here.
        "/usr/lib",
        "/lib",
        "/lib64",
        "/etc/ld.so.cache",
        "/proc/cpuinfo",
        "/sys/devices/system/cpu",
    ]
    .map(PathBuf::from)
    .into();
    let program = fs::canonicalize(binary.path());
    read.push(program.unwrap_or_else(|_| binary.path().to_owned()));
    read.push(spec.kernel.clone());
    read.push(spec.initramfs.clone());
    let mut write: Vec<PathBuf> = ["/dev/kvm", "/dev/null", "/dev/urandom"]
        .map(PathBuf::from)
        .into();
    for disk in &spec.disks {
        if disk.read_only {
            read.push(disk.path.clone());
        } else {
            write.push(disk.path.clone());
        }
    }
    if spec.network == NetworkMode::User {
        write.push("/dev/net/tun".into());
    }
    write.extend(tuning.metrics.clone());
    let mut make = vec![spec.runtime_dir.clone()];
    make.extend(spec.vsock.uds.parent().map(Path::to_owned));
    make.extend(tuning.snapshots.clone());
    Reach {
        read,
        write,
        make,
        tcp: false,
        host_network: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_becomes_an_identifier() {
        assert_eq!(instance_id("agent-1"), "agent-1");
        assert_eq!(instance_id("a b/../c"), "a-b----c");
        assert_eq!(instance_id(""), "machine");
        assert_eq!(instance_id(&"x".repeat(100)).len(), 64);
    }
}
