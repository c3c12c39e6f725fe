//! One Firecracker process and the machine in it.

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

use microagent_disk::JoinedFile;
use microagent_protocol::NetworkMode;

use super::{
    FirecrackerBinary, JailerBinary, Tuning,
    api::{
        Api, Balloon, BootSource, CacheType, Drive, MachineConfiguration, NetworkInterface,
        VmState, Vsock,
    },
};
use crate::{
    DiskForm, Error, Exit, MachineSpec,
    boot_file::BootFile,
    confine::{Reach, Terms, cgroup::Limits},
    console::RotatingLog,
    driven::Driven,
    network::{MAC, Network, Passt, tap::TAP},
    process::{Plan, Vmm},
};

/// The most vCPUs that Firecracker gives a machine.
const MAX_VCPUS: u8 = 32;
/// The API socket's name in the runtime directory.
const API_SOCKET: &str = "api";
/// The longest path of a Unix socket, its end included (`sockaddr_un`, unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// How long it may take to end after it closed its API.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The guest kernel's command line. Like QEMU's, it holds nothing of a workspace.
///
/// `reboot=k`: the guest ends by a reset through the keyboard controller, at which Firecracker
/// exits; at a power-off it would stay. The disks' serials are Firecracker's own, so the guest
/// takes them by their order.
const KERNEL_LINE: &str = if cfg!(target_arch = "aarch64") {
    "console=ttyS0 quiet reboot=k panic=1 random.trust_cpu=on cryptomgr.notests \
     keep_bootcon microagent_disks=ordered"
} else {
    "console=ttyS0 quiet reboot=k panic=1 random.trust_cpu=on cryptomgr.notests \
     i8042.noaux i8042.nomux i8042.dumbkbd microagent_disks=ordered"
};

/// A machine that was stopped in time: its devices' state, and its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The file with the state.
    pub state: PathBuf,
    /// The file with the memory. A restored machine reads it as long as it lives.
    pub memory: PathBuf,
}

/// A machine in a Firecracker process.
pub struct FirecrackerMachine {
    // Dropped first: nothing it still does is waited for.
    vmm: Vmm,
    network: Option<Network>,
    api: Api,
    files: Files,
}

/// What a machine is launched with, beside its own specification.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) binary: &'a FirecrackerBinary,
    pub(super) jailer: Option<&'a JailerBinary>,
    pub(super) tuning: &'a Tuning,
    pub(super) passt: Option<&'a Passt>,
    pub(super) limit: Duration,
}

/// What it leaves in the file system.
struct Files {
    api: PathBuf,
    vsock: PathBuf,
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in [&self.api, &self.vsock] {
            remove(path);
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("cannot remove {}: {error}", path.display()),
    }
}

impl FirecrackerMachine {
    pub(super) fn launch(about: &About<'_>, spec: &MachineSpec) -> Result<Self, Error> {
        check(about, spec)?;
        let spec = &with_flat_disks(spec)?;
        let kernel = BootFile::open("kernel", &spec.kernel)?;
        let initramfs = BootFile::open("initramfs", &spec.initramfs)?;
        let boot = BootSource {
            kernel_image_path: &kernel.name,
            initrd_path: &initramfs.name,
            boot_args: KERNEL_LINE.to_owned(),
        };
        let copies = kernel.copy.into_iter().chain(initramfs.copy).collect();
        let machine = Self::spawn(about, spec, copies)?;
        machine.or_last_words(about.binary, |machine| {
            machine.configure(about.tuning, spec, &boot)
        })
    }

    pub(super) fn restore(
        about: &About<'_>,
        spec: &MachineSpec,
        snapshot: &Snapshot,
    ) -> Result<Self, Error> {
        check(about, spec)?;
        let spec = &with_flat_disks(spec)?;
        let machine = Self::spawn(about, spec, Vec::new())?;
        machine.or_last_words(about.binary, |machine| {
            machine
                .api
                .load_snapshot(&snapshot.state, &snapshot.memory, true)?;
            machine.vmm.check_confinement()
        })
    }

    /// Starts the process, and waits until its API answers.
    fn spawn(
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

    /// Tells it everything, and starts the machine.
    fn configure(
        &self,
        tuning: &Tuning,
        spec: &MachineSpec,
        boot: &BootSource<'_>,
    ) -> Result<(), Error> {
        self.api.machine(&MachineConfiguration {
            vcpu_count: spec.vcpus.get(),
            mem_size_mib: spec.memory.0,
            smt: tuning.smt,
            track_dirty_pages: false,
            huge_pages: tuning.huge_pages,
            cpu_template: tuning.cpu_template,
        })?;
        self.api.boot_source(boot)?;
        for (at, disk) in spec.disks.iter().enumerate() {
            self.api.drive(&Drive {
                drive_id: format!("disk{at}"),
                path_on_host: &disk.path,
                is_root_device: false,
                is_read_only: disk.read_only,
                // A guest's flush of a disk it can write to reaches the host's disk. What it only
                // reads has nothing to flush.
                cache_type: if disk.read_only {
                    CacheType::Unsafe
                } else {
                    CacheType::Writeback
                },
                io_engine: "Sync",
                rate_limiter: tuning.disk_limit.filter(|_| !disk.read_only),
            })?;
        }
        self.api.vsock(&Vsock {
            guest_cid: spec.vsock.cid,
            uds_path: &spec.vsock.uds,
        })?;
        if self.network.is_some() {
            self.api.network(&NetworkInterface {
                iface_id: "eth0",
                host_dev_name: TAP,
                guest_mac: MAC,
            })?;
        }
        self.api.entropy()?;
        if tuning.balloon {
            self.api.balloon(&Balloon {
                amount_mib: 0,
                deflate_on_oom: true,
                stats_polling_interval_s: 0,
            })?;
        }
        self.api.start()?;
        self.vmm.check_confinement()
    }

    /// This machine, if `step` succeeds; otherwise the error, or what the process said if it
    /// ended over it.
    fn or_last_words(
        self,
        binary: &FirecrackerBinary,
        step: impl FnOnce(&Self) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        match step(&self) {
            Ok(()) => Ok(self),
            Err(error) => match self.vmm.wait(Duration::from_millis(100)) {
                Ok(Some(_)) => Err(self.start_failure(binary, &error.to_string())),
                _ => Err(error),
            },
        }
    }

    fn start_failure(mut self, binary: &FirecrackerBinary, why: &str) -> Error {
        let how = match self.vmm.wait(END_LIMIT) {
            Ok(Some(Exit::Code(code))) => format!("exit code {code}"),
            Ok(Some(Exit::Signal(signal))) => format!("signal {signal}"),
            Ok(None) => "it still runs".to_owned(),
            Err(error) => error.to_string(),
        };
        // Also waits for the thread that gathers its words.
        self.vmm.end();
        let words = self.vmm.words();
        Error::VmmStart {
            program: binary.path().to_owned(),
            reason: if words.is_empty() {
                format!("{why} ({how})")
            } else {
                format!("{why} ({how}): {words}")
            },
        }
    }

    /// Presses Ctrl-Alt-Del: a guest with a keyboard driver reboots, and Firecracker ends (x86_64).
    ///
    /// # Errors
    /// In Firecracker's words.
    pub fn ctrl_alt_del(&self) -> Result<(), Error> {
        self.api.ctrl_alt_del()
    }

    /// Takes so much memory from the guest for the host; needs [`Tuning::balloon`].
    ///
    /// # Errors
    /// In Firecracker's words.
    pub fn inflate_balloon(&self, mebibytes: u32) -> Result<(), Error> {
        self.api.inflate(mebibytes)
    }

    /// Writes a snapshot of the machine, which must be paused, into [`Tuning::snapshots`]. It goes
    /// on from where it is when it is resumed. The contents of its disks are not part of it.
    ///
    /// # Errors
    /// In Firecracker's words.
    pub fn snapshot(&self, snapshot: &Snapshot) -> Result<(), Error> {
        self.api.create_snapshot(&snapshot.state, &snapshot.memory)
    }
}

impl Driven for FirecrackerMachine {
    fn process(&self) -> &Vmm {
        &self.vmm
    }

    /// It ends by itself, and calmly, when the guest resets and for no other reason.
    fn ended_by_guest(&self) -> bool {
        matches!(self.vmm.wait(Duration::ZERO), Ok(Some(Exit::Code(0))))
    }

    fn vsock(&self) -> &Path {
        &self.files.vsock
    }

    fn pause(&self) -> Result<(), Error> {
        self.api.set_state("freeze its vCPUs", VmState::Paused)
    }

    fn resume(&self) -> Result<(), Error> {
        self.api.set_state("thaw its vCPUs", VmState::Resumed)
    }

    /// Firecracker has no switch for its vsock. The socket by which new connections come is taken
    /// away, and those of the guest find nobody; the vCPUs are frozen for good, so that nothing
    /// moves on those that there are, until their other ends close them.
    fn sever(&self) -> Result<(), Error> {
        if let Some(network) = &self.network {
            network.sever();
        }
        remove(&self.files.vsock);
        self.pause()
    }
}

fn check(about: &About<'_>, spec: &MachineSpec) -> Result<(), Error> {
    crate::machine::check(spec)?;
    if spec.vcpus.get() > MAX_VCPUS {
        return Err(Error::Unsupported(format!(
            "Firecracker gives a machine at most {MAX_VCPUS} vCPUs, not {}; ask for fewer, or for the backend qemu",
            spec.vcpus
        )));
    }
    if spec.network == NetworkMode::User && about.passt.is_none() {
        return Err(Error::Unsupported(format!(
            "the network mode user needs passt with Firecracker; {}, or use the network mode isolated, or the backend qemu",
            crate::network::REMEDY
        )));
    }
    Ok(())
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

/// The same machine with each disk in one file: it cannot join several.
fn with_flat_disks(spec: &MachineSpec) -> Result<MachineSpec, Error> {
    let mut spec = spec.clone();
    for disk in &mut spec.disks {
        if disk.form == DiskForm::Joined {
            let list = &disk.path;
            let flat = JoinedFile::open(list)
                .and_then(|joined| joined.flat(list))
                .map_err(|source| Error::Io {
                    context: format!(
                        "make one file of the disk {}, as Firecracker cannot join several",
                        list.display()
                    ),
                    source,
                })?;
            (disk.path, disk.form) = (flat, DiskForm::Raw);
        }
    }
    Ok(spec)
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

    #[test]
    fn the_guest_ends_by_a_reset() {
        let words: Vec<_> = KERNEL_LINE.split_ascii_whitespace().collect();
        assert!(words.contains(&"reboot=k") && words.contains(&"panic=1"));
    }
}
