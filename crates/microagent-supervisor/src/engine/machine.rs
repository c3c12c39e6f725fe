//! Launching an attempt's machine and making an end of it.

use super::*;

impl Engine {
    pub(super) fn launch(&mut self, attempt: u32) -> Input {
        match self.try_launch(attempt) {
            Ok(vmm) => Input::VmmStarted { vmm },
            Err((reason, may_retry)) => Input::LaunchFailed { reason, may_retry },
        }
    }

    /// How the guest is connected, and what carries that.
    pub(super) fn network(&self) -> Option<(GuestNetwork, NetworkProvider)> {
        let plan = self
            .setup
            .hypervisor
            .network_plan(self.setup.spec.network)?;
        let network = GuestNetwork {
            address: plan.address,
            prefix: plan.prefix,
            gateway: plan.gateway,
            ipv6: plan.ipv6.map(|plan| GuestIpv6 {
                address: plan.address,
                prefix: plan.prefix,
                gateway: plan.gateway,
            }),
            dns: plan.dns,
        };
        Some((network, plan.provider))
    }

    fn try_launch(&mut self, attempt: u32) -> Result<ProcessIdentity, (String, bool)> {
        // It becomes the reason within another sentence.
        let ours = |error: Error| (error.to_string().trim_end_matches('.').to_owned(), false);
        let spec = machine_spec(&self.setup.spec, attempt);
        let mut hello = spec.vsock.uds.clone().into_os_string();
        hello.push(format!("_{HELLO_PORT}"));
        let introduction = Introduction {
            hostname: self.setup.spec.hostname.clone(),
            network: self.network().map(|(network, _)| network),
            disks: disk_mounts(&self.setup.spec),
            mediation: self
                .setup
                .spec
                .mediation
                .iter()
                .map(|route| route.port)
                .collect(),
        };
        let outbox = self.outbox.clone();
        let mut link = Link::listen(
            hello.as_ref(),
            introduction,
            &self.setup.crew,
            move |input| {
                // The engine may be gone already; then nobody needs to know.
                let _ = outbox.send(Message::Machine { attempt, input });
            },
        )
        .map_err(ours)?;
        let console = Console::from_now(spec.console.log.clone());
        let machine: Arc<dyn Machine> = self
            .setup
            .hypervisor
            .launch(&spec)
            .map_err(|error| (error.to_string(), may_retry(&error)))?
            .into();
        let vmm = machine.vmm();
        let watched = Arc::clone(&machine);
        let last_words = link.over();
        let outbox = self.outbox.clone();
        let watcher = std::thread::Builder::new()
            .name("vmm-exit".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || {
                let exit = watch(&*watched);
                let by_guest = watched.ended_by_guest();
                drop(watched);
                // A guest that powers off says so first; its word is still on the way.
                if let Some(last_words) = last_words {
                    last_words.wait(LAST_WORDS_LIMIT);
                }
                // As above.
                let _ = outbox.send(Message::Machine {
                    attempt,
                    input: Input::VmmExited {
                        exit,
                        by_guest,
                        console: ConsoleVerdict::default(),
                    },
                });
            })
            .map_err(|error| ours(Error::system("start a thread")(error)))?;
        self.running = Some(Running {
            link: Some(link),
            console,
            machine,
            watcher,
        });
        Ok(vmm)
    }

    /// Ends what is left of the present attempt, and waits until it is gone.
    pub(super) fn discard(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        drop(running.link);
        if let Err(error) = running.machine.kill() {
            tracing::error!("the VMM could not be killed: {error}");
        }
        if running.watcher.join().is_err() {
            tracing::error!("the thread that watched the VMM panicked");
        }
        drop(running.machine);
    }
}

/// Whether another machine type may do better.
fn may_retry(error: &microagent_hypervisor::Error) -> bool {
    use microagent_hypervisor::Error as Driver;
    matches!(
        error,
        Driver::VmmStart { .. } | Driver::Control { .. } | Driver::Timeout { .. }
    )
}

/// The serial of the extra disk at this place.
fn extra_serial(at: usize) -> String {
    format!("disk{at}")
}

/// What the guest is told of the extra disks.
fn disk_mounts(spec: &LaunchSpec) -> Vec<DiskMount> {
    spec.disks
        .iter()
        .enumerate()
        .map(|(at, disk)| DiskMount {
            name: disk.name.to_string(),
            serial: extra_serial(at),
            mountpoint: disk.mountpoint.to_string(),
            read_only: disk.read_only,
        })
        .collect()
}

fn machine_spec(spec: &LaunchSpec, attempt: u32) -> MachineSpec {
    let mut disks = vec![
        DiskSpec {
            path: spec.base_disk.clone(),
            form: if microagent_disk::is_list(&spec.base_disk) {
                DiskForm::Joined
            } else {
                DiskForm::Raw
            },
            serial: BASE_SERIAL.to_owned(),
            read_only: true,
        },
        DiskSpec {
            path: spec.scratch_disk.clone(),
            form: DiskForm::Raw,
            serial: SCRATCH_SERIAL.to_owned(),
            read_only: false,
        },
    ];
    disks.extend(spec.disks.iter().enumerate().map(|(at, disk)| DiskSpec {
        path: disk.path.clone(),
        // Whatever its name is: it is a guest's.
        form: DiskForm::Raw,
        serial: extra_serial(at),
        read_only: disk.read_only,
    }));
    let directory = spec.runtime_dir.join(MACHINE_DIRECTORY);
    MachineSpec {
        name: spec.workspace.to_string(),
        memory: spec.memory,
        vcpus: spec.vcpus,
        kernel: spec.kernel.clone(),
        initramfs: spec.initramfs.clone(),
        disks,
        network: spec.network,
        confinement: spec.confinement,
        vsock: VsockSpec {
            cid: GUEST_CID,
            uds: directory.join(VSOCK_SOCKET),
        },
        console: ConsoleSpec {
            log: spec.directory.join("console.log"),
            limit: u64::from(spec.console_limit),
        },
        runtime_dir: directory,
        attempt,
    }
}

/// Waits for the VMM's end, however long, and words it.
fn watch(machine: &dyn Machine) -> String {
    loop {
        match machine.wait(FOREVER) {
            Ok(Some(Exit::Code(code))) => return format!("exit code {code}"),
            Ok(Some(Exit::Signal(signal))) => return format!("signal {signal}"),
            Ok(None) => {}
            Err(error) => {
                // Nothing is known of it any more: make sure of it.
                tracing::error!("the VMM cannot be waited for: {error}");
                if let Err(error) = machine.kill() {
                    tracing::error!("the VMM could not be killed: {error}");
                }
                return "it could not be waited for".to_owned();
            }
        }
    }
}
