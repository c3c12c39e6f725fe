//! One QEMU process and the machine in it.

use std::{
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use microagent_protocol::{Confinement, ConfinementMode, NetworkMode};
use serde_json::json;

use super::{
    Accelerator, MachineType, QemuBinary, RunState,
    arguments::{BootFiles, Card, Descriptors, NETWORK_DEVICE, arguments, idle_arguments},
    disks::{self, OpenDisk},
    qmp::Qmp,
};
use crate::{
    ConsoleSpec, Error, Exit, MachineSpec,
    boot_file::BootFile,
    confine::{Reach, Terms, cgroup::Limits},
    console::RotatingLog,
    driven::Driven,
    network::{Network, Passt},
    process::{Plan, Vmm},
    vsock::{VsockConfig, VsockDevice},
};

/// How long QEMU may take to obey.
const CONTROL_LIMIT: Duration = Duration::from_secs(5);
/// How long a VMM that has ended may have something to say that is still on its way.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(500);

/// How long it may take to end after it closed its control channel.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A machine in a QEMU process.
pub struct QemuMachine {
    // Dropped in this order: the VMM first, so nothing it still does is waited for.
    vmm: Vmm,
    qmp: Qmp,
    vsock: VsockDevice,
    vsock_path: PathBuf,
    mode: NetworkMode,
    network: Option<Network>,
    machine_type: MachineType,
}

impl QemuMachine {
    pub(super) fn launch(
        binary: &QemuBinary,
        accelerator: Accelerator,
        machine_type: MachineType,
        passt: Option<&Passt>,
        by_tap: bool,
        limit: Duration,
        spec: &MachineSpec,
    ) -> Result<Self, Error> {
        crate::machine::check(spec)?;
        let deadline = Instant::now() + limit;

        let (qmp_here, qmp_there) = socket_pair("QEMU's control channel")?;
        let (console_here, console_there) = socket_pair("the serial console")?;
        let disks = disks::open(&spec.disks)?;
        let vhost_path = spec.runtime_dir.join("vhost");
        let vsock = VsockDevice::spawn(VsockConfig::new(
            &vhost_path,
            &spec.vsock.uds,
            u64::from(spec.vsock.cid),
        ))?;
        // QEMU inherits the connection: it needs no right to reach a socket by name.
        let vhost = UnixStream::connect(&vhost_path).map_err(|source| Error::Io {
            context: format!("connect to {}", vhost_path.display()),
            source,
        })?;
        let log = RotatingLog::open(&spec.console).map_err(|source| Error::Io {
            context: format!("open the console log {}", spec.console.log.display()),
            source,
        })?;
        let passt = passt.filter(|_| spec.network == NetworkMode::User);
        let mut wiring = Wiring::of(passt, by_tap)?;
        let kernel = BootFile::open("kernel", &spec.kernel)?;
        let initramfs = BootFile::open("initramfs", &spec.initramfs)?;
        let arguments = arguments(
            spec,
            machine_type,
            accelerator,
            &Descriptors {
                qmp: qmp_there.as_raw_fd(),
                console: console_there.as_raw_fd(),
                disks: &disks,
                vsock: Some(vhost.as_raw_fd()),
                network: wiring.card(),
            },
            &BootFiles {
                kernel: &kernel.name,
                initramfs: &initramfs.name,
            },
        )?;
        let mut descriptors: Vec<OwnedFd> =
            vec![qmp_there.into(), console_there.into(), vhost.into()];
        descriptors.extend(disks.into_iter().flat_map(OpenDisk::into_files));
        descriptors.extend(wiring.wire.take().map(OwnedFd::from));
        descriptors.extend(kernel.copy.into_iter().chain(initramfs.copy));
        tracing::debug!(program = %binary.path().display(), ?arguments, "launching QEMU");

        let qmp = Qmp::new(qmp_here).map_err(|source| Error::Io {
            context: "watch QEMU's control channel".to_owned(),
            source,
        })?;
        let vmm = Vmm::spawn(Plan {
            program: binary.path().to_owned(),
            arguments,
            descriptors,
            terms: Terms {
                mode: spec.confinement,
                reach: reach(binary, accelerator, spec, passt.is_none(), by_tap),
                filters_calls: true,
                limits: Limits::of(spec),
                jailer: None,
                no_jailer: None,
            },
            console: console_here,
            stdio: None,
            tap: wiring.tap.take(),
            log,
        })?;
        let network = wiring.network(passt)?;
        let machine = Self {
            vmm,
            qmp,
            vsock,
            vsock_path: spec.vsock.uds.clone(),
            mode: spec.network,
            network,
            machine_type,
        };
        match machine.qmp.greet(deadline, limit) {
            Ok(true) => machine.vmm.check_confinement().map(|()| machine),
            Ok(false) => Err(machine.start_failure(binary)),
            Err(error) => Err(error),
        }
    }

    /// Why a QEMU that ended before it was greeted did so.
    fn start_failure(self, binary: &QemuBinary) -> Error {
        let how = match self.vmm.wait(END_LIMIT) {
            Ok(Some(Exit::Code(code))) => format!("it ended with code {code}"),
            Ok(Some(Exit::Signal(signal))) => format!("it was ended by signal {signal}"),
            Ok(None) => "it closed its control channel".to_owned(),
            Err(error) => error.to_string(),
        };
        let words = self.last_words();
        Error::VmmStart {
            program: binary.path().to_owned(),
            reason: if words.is_empty() {
                how
            } else {
                format!("{words} ({how})")
            },
        }
    }

    /// Ends it, if it has not ended, and gives all it said of itself.
    fn last_words(mut self) -> String {
        // Also waits for the thread that gathers its words.
        self.vmm.end();
        self.vmm.words()
    }

    /// What QEMU says the machine is doing.
    #[must_use]
    pub fn run_state(&self) -> RunState {
        self.qmp.run_state()
    }

    /// Which machine type it is.
    #[must_use]
    pub const fn machine_type(&self) -> MachineType {
        self.machine_type
    }
}

impl Driven for QemuMachine {
    fn process(&self) -> &Vmm {
        &self.vmm
    }

    fn ended_by_guest(&self) -> bool {
        self.qmp.last_state(LAST_WORDS_LIMIT).is_ended()
    }

    fn vsock(&self) -> &Path {
        &self.vsock_path
    }

    fn pause(&self) -> Result<(), Error> {
        let action = "freeze its vCPUs";
        self.qmp
            .execute(action, "stop", &json!({}), CONTROL_LIMIT)?;
        self.qmp.wait_for(action, CONTROL_LIMIT, |run| run.stopped)
    }

    fn resume(&self) -> Result<(), Error> {
        let action = "thaw its vCPUs";
        self.qmp
            .execute(action, "cont", &json!({}), CONTROL_LIMIT)?;
        self.qmp.wait_for(action, CONTROL_LIMIT, |run| !run.stopped)
    }

    fn sever(&self) -> Result<(), Error> {
        self.vsock.sever();
        if let Some(network) = &self.network {
            network.sever();
        }
        match self.mode {
            NetworkMode::Isolated => Ok(()),
            // The guest sees it, too; and QEMU's own network has no other switch.
            NetworkMode::User => self
                .qmp
                .execute(
                    "cut the network",
                    "set_link",
                    &json!({"name": NETWORK_DEVICE, "up": false}),
                    CONTROL_LIMIT,
                )
                .map(drop),
        }
    }
}

/// What holds back a QEMU that is started as any other, but has no machine.
pub(crate) fn confinement_of_idle(
    binary: &QemuBinary,
    directory: &Path,
) -> Result<Confinement, Error> {
    let (qmp_here, qmp_there) = socket_pair("QEMU's control channel")?;
    let (console, _console_there) = socket_pair("the serial console")?;
    let log = Passing(directory.join("idle"));
    let arguments = idle_arguments(qmp_there.as_raw_fd());
    let nowhere = ConsoleSpec {
        log: log.0.clone(),
        limit: 4096,
    };
    let vmm = Vmm::spawn(Plan {
        program: binary.path().to_owned(),
        arguments,
        descriptors: vec![qmp_there.into()],
        terms: Terms {
            mode: ConfinementMode::Auto,
            reach: program_reach(binary),
            filters_calls: true,
            limits: Limits::default(),
            jailer: None,
            no_jailer: None,
        },
        console,
        stdio: None,
        tap: None,
        log: RotatingLog::open(&nowhere).map_err(|source| Error::Io {
            context: format!("open {}", log.0.display()),
            source,
        })?,
    })?;
    let qmp = Qmp::new(qmp_here).map_err(|source| Error::Io {
        context: "read QEMU's control channel".to_owned(),
        source,
    })?;
    // Its filter is on once it answers.
    let answered = qmp.greet(Instant::now() + CONTROL_LIMIT, CONTROL_LIMIT);
    let found = vmm.confinement();
    drop(vmm);
    match answered? {
        true => Ok(found),
        false => Err(Error::VmmStart {
            program: binary.path().to_owned(),
            reason: "it ended before it was looked at".to_owned(),
        }),
    }
}

/// A file that goes when this does.
struct Passing(PathBuf);

impl Drop for Passing {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "{} is left behind", self.0.display());
            }
            _ => {}
        }
    }
}

/// The network of one launch, on its way to where it belongs.
#[derive(Default)]
struct Wiring {
    network: Option<Network>,
    /// QEMU's end of the wire.
    wire: Option<UnixStream>,
    /// Both ends of the channel by which the other side of a tap comes.
    channel: Option<UnixStream>,
    tap: Option<UnixStream>,
}

impl Wiring {
    fn of(passt: Option<&Passt>, by_tap: bool) -> Result<Self, Error> {
        let mut wiring = Self::default();
        match passt {
            None => {}
            Some(_) if by_tap => {
                let (here, there) = socket_pair("the network")?;
                (wiring.channel, wiring.tap) = (Some(here), Some(there));
            }
            Some(passt) => {
                let (network, wire) = Network::start(passt)?;
                (wiring.network, wiring.wire) = (Some(network), Some(wire));
            }
        }
        Ok(wiring)
    }

    fn card(&self) -> Card {
        match (&self.wire, &self.tap) {
            (Some(wire), _) => Card::Wire(wire.as_raw_fd()),
            (None, Some(_)) => Card::Tap,
            (None, None) => Card::Own,
        }
    }

    /// The network, once QEMU's process is there.
    fn network(self, passt: Option<&Passt>) -> Result<Option<Network>, Error> {
        match (self.network, passt.zip(self.channel)) {
            (None, Some((passt, channel))) => Network::start_on_tap(passt, &channel).map(Some),
            (network, _) => Ok(network),
        }
    }
}

fn socket_pair(what: &str) -> Result<(UnixStream, UnixStream), Error> {
    UnixStream::pair().map_err(|source| Error::Io {
        context: format!("make a socket pair for {what}"),
        source,
    })
}

/// The files this QEMU may reach: its own program, libraries and firmware, and
/// this machine's kernel and initramfs. Disks come as descriptors.
fn reach(
    binary: &QemuBinary,
    accelerator: Accelerator,
    spec: &MachineSpec,
    network_of_its_own: bool,
    by_tap: bool,
) -> Reach {
    let connects = spec.network == NetworkMode::User && network_of_its_own;
    let mut reach = program_reach(binary);
    reach.read.push(spec.kernel.clone());
    reach.read.push(spec.initramfs.clone());
    if connects {
        // Its name server forwards to the host's, whose file may be a link to one
        // that a resolver replaces while the machine runs; then its directory is
        // reached. All of /etc would be too much.
        let resolver = Path::new("/etc/resolv.conf");
        let real = std::fs::canonicalize(resolver).unwrap_or_else(|_| resolver.to_owned());
        reach.read.push(match real.parent() {
            Some(dir) if dir.starts_with("/run") => dir.to_owned(),
            _ => real,
        });
    }
    if accelerator == Accelerator::Kvm {
        reach.write.push("/dev/kvm".into());
    }
    if by_tap {
        reach.write.push("/dev/net/tun".into());
    }
    reach.tcp = connects;
    reach.host_network = connects;
    reach
}

/// What a QEMU needs for itself: its program, libraries and firmware.
fn program_reach(binary: &QemuBinary) -> Reach {
    let mut read: Vec<PathBuf> = [
        "/usr",
        "/bin",
        "/lib",
        "/lib64",
        "/lib32",
        "/libx32",
        "/etc/ld.so.cache",
        "/etc/ld.so.preload",
        "/etc/qemu",
        "/proc/cpuinfo",
        "/sys/devices/system",
    ]
    .map(PathBuf::from)
    .into();
    read.push(installation(binary.path()));
    Reach {
        read,
        write: ["/dev/null", "/dev/urandom"].map(PathBuf::from).into(),
        ..Reach::default()
    }
}

/// The directory that holds a program's installation: `/opt`, `/nix` and the
/// like as a whole, elsewhere the directory above `bin`.
fn installation(program: &Path) -> PathBuf {
    let real = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    for root in ["/usr", "/opt", "/nix", "/gnu", "/snap"] {
        if real.starts_with(root) {
            return root.into();
        }
    }
    let bin = real.parent().unwrap_or(&real);
    match bin.parent() {
        Some(prefix) if prefix != Path::new("/") => prefix.to_owned(),
        _ => bin.to_owned(),
    }
}
