//! A VMM that is none: a child process that speaks the guest's side of the
//! guest protocol over the sockets a real driver makes, as told by a script.
//!
//! It tests the supervisor's logic. What a guest and a VMM really do, the
//! tests on real machines show.

use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Mutex,
    time::{Duration, Instant},
};

use microagent_hypervisor::{
    Capabilities, Error, Exit, Hypervisor, Machine, MachineSpec, NetworkPlan,
};
use microagent_protocol::{
    Backend, LaunchSpec, NetworkMode, NetworkProvider, ProcessIdentity,
    supervisor::{CONTROL_SOCKET, ErrorKind, ErrorReport, HostQuery, HostReport},
};
use microagent_supervisor::{Backends, Chosen, HostBackends};

/// The argument that makes the test program a VMM.
pub(crate) const MARKER: &str = "__vmm";

/// The kernel file names the script; a real kernel gets a real machine.
pub(crate) struct Scripted;

impl Backends for Scripted {
    fn choose(&self, spec: &LaunchSpec) -> Result<Chosen, ErrorReport> {
        if std::fs::read(&spec.kernel).unwrap().starts_with(b"\x7fELF") {
            return HostBackends.choose(spec);
        }
        if script(&spec.kernel) == "no-backend" {
            return Err(
                ErrorReport::new(ErrorKind::Unsupported, "nothing works here")
                    .remedy("install something"),
            );
        }
        Ok(Chosen {
            hypervisor: Box::new(Driver {
                half_close: script(&spec.kernel) != WHOLE,
            }),
            reason: "it is scripted".to_owned(),
        })
    }

    /// As on a Mac where it is called so.
    fn begin_anew(&self) -> bool {
        std::env::args().next().as_deref() == Some(ANEW)
    }

    fn host(&self, _: &HostQuery) -> Result<HostReport, ErrorReport> {
        Ok(HostReport {
            os: "linux".to_owned(),
            architecture: "x86_64".to_owned(),
            chosen: Some(Backend::QemuTcg),
            reason: "it is scripted".to_owned(),
            checks: Vec::new(),
            backends: Vec::new(),
        })
    }
}

/// What a supervisor is called that begins as a program anew.
pub(crate) const ANEW: &str = "/anew/microagent-supervisor";

fn script(kernel: &Path) -> String {
    std::fs::read_to_string(kernel).unwrap()
}

/// The script of a machine whose vsock has no half-closes.
pub(crate) const WHOLE: &str = "whole";

/// The script of a machine whose monitor does not answer when it is to freeze.
pub(crate) const STUBBORN: &str = "stubborn";

/// The file beside the kernel that ends the wait for such a monitor.
pub(crate) const GIVE_UP: &str = "give-up";

/// How long such a monitor is waited for.
const PATIENCE: Duration = Duration::from_secs(25);

/// The driver of scripted machines.
struct Driver {
    half_close: bool,
}

impl Hypervisor for Driver {
    fn backend(&self) -> Backend {
        Backend::QemuTcg
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            pause: true,
            user_network: true,
            sever: true,
            sever_ends_connections: true,
            half_close: self.half_close,
            ..Capabilities::default()
        }
    }

    fn network_plan(&self, mode: NetworkMode) -> Option<NetworkPlan> {
        (mode == NetworkMode::User).then(|| NetworkPlan {
            provider: NetworkProvider::Slirp,
            ipv6: None,
            address: [10, 0, 2, 15].into(),
            prefix: 24,
            gateway: [10, 0, 2, 2].into(),
            dns: vec![[10, 0, 2, 3].into()],
        })
    }

    fn launch(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, Error> {
        let script = script(&spec.kernel);
        // A driver may let its VMM make and remove files there: it could take the supervisor's place.
        let beside = spec.runtime_dir.join(CONTROL_SOCKET);
        assert!(!beside.exists(), "a VMM reaches {}", beside.display());
        assert!(spec.vsock.uds.starts_with(&spec.runtime_dir));
        if script == "no-launch" {
            return Err(Error::VmmStart {
                program: "scripted".into(),
                reason: format!("attempt {} is refused", spec.attempt),
            });
        }
        let parent = rustix::process::getpid();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .arg(MARKER)
            .arg(&script)
            .arg(spec.attempt.to_string())
            .arg(&spec.vsock.uds)
            .arg(&spec.console.log);
        // SAFETY: both calls are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(
                    rustix::process::Signal::KILL,
                ))?;
                if rustix::process::getppid() != Some(parent) {
                    return Err(std::io::Error::other("orphaned"));
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        // A driver returns once its vsock listens.
        wait_for(Duration::from_secs(15), || spec.vsock.uds.exists());
        Ok(Box::new(ScriptedMachine {
            pidfd: rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap(),
            pid,
            child: Mutex::new(child),
            vsock: spec.vsock.uds.clone(),
            give_up: spec.kernel.with_file_name(GIVE_UP),
            stubborn: script == STUBBORN,
        }))
    }
}

struct ScriptedMachine {
    pidfd: OwnedFd,
    pid: rustix::process::Pid,
    child: Mutex<Child>,
    vsock: PathBuf,
    give_up: PathBuf,
    stubborn: bool,
}

impl ScriptedMachine {
    fn signal(&self, signal: rustix::process::Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }
}

impl Machine for ScriptedMachine {
    fn vmm(&self) -> ProcessIdentity {
        ProcessIdentity {
            pid: self.pid.as_raw_nonzero().get().cast_unsigned(),
            start_ticks: 1,
            boot_id: "test".to_owned(),
        }
    }

    fn exit_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    fn wait(&self, limit: Duration) -> Result<Option<Exit>, Error> {
        // Longer than can be said is for ever.
        let timeout = rustix::event::Timespec::try_from(limit).ok();
        let mut ready = [rustix::event::PollFd::new(
            &self.pidfd,
            rustix::event::PollFlags::IN,
        )];
        let _ = rustix::event::poll(&mut ready, timeout.as_ref());
        let status = self.child.lock().unwrap().try_wait().unwrap();
        Ok(status.map(|status| match status.code() {
            Some(code) => Exit::Code(code),
            None => Exit::Signal(status.signal().unwrap()),
        }))
    }

    fn ended_by_guest(&self) -> bool {
        false
    }

    fn vsock(&self) -> &Path {
        &self.vsock
    }

    fn pause(&self) -> Result<(), Error> {
        if self.stubborn {
            let give_up = self.give_up.clone();
            wait_for(PATIENCE, || give_up.exists());
            return Err(Error::Timeout {
                what: "its vCPUs to freeze".to_owned(),
                limit: PATIENCE,
            });
        }
        self.signal(rustix::process::Signal::STOP);
        Ok(())
    }

    fn resume(&self) -> Result<(), Error> {
        self.signal(rustix::process::Signal::CONT);
        Ok(())
    }

    fn sever(&self) -> Result<(), Error> {
        let _ = std::fs::remove_file(&self.vsock);
        Ok(())
    }

    fn words(&self) -> String {
        String::new()
    }

    fn kill(&self) -> Result<(), Error> {
        self.signal(rustix::process::Signal::KILL);
        Ok(())
    }
}

impl Drop for ScriptedMachine {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        let _ = self.child.lock().unwrap().wait();
        let _ = std::fs::remove_file(&self.vsock);
    }
}

pub(crate) fn wait_for(limit: Duration, mut what: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !what() {
        assert!(Instant::now() < deadline, "it did not come in {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
