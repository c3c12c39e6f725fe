//! What clients ask of the machine.

use super::*;

impl Engine {
    pub(super) fn ask(&mut self, ask: Ask, reply: Reply<Status>) {
        let input = match ask {
            Ask::Inspect => return self.answer(&reply, Ok(())),
            Ask::Pause => {
                let done = self.pause();
                return self.answer(&reply, done);
            }
            Ask::Resume => {
                let done = self.resume();
                return self.answer(&reply, done);
            }
            Ask::Quarantine => {
                let done = self.quarantine();
                return self.answer(&reply, done);
            }
            Ask::Rebind { ports } => {
                let done = self.rebind(&ports);
                return self.answer(&reply, done);
            }
            Ask::Halt { grace_ms } => Input::Halt { grace_ms },
            Ask::Stop { grace_ms } => Input::Stop { grace_ms },
            Ask::Kill => Input::Kill,
            Ask::Condemn { reason } => match self.machine_to("condemned", &[State::Running]) {
                Ok(_) => Input::Condemned { reason },
                Err(refusal) => return self.answer(&reply, Err(refusal)),
            },
        };
        // Answered when it is true.
        self.until_end.push(reply);
        self.feed(input);
    }

    pub(super) fn answer(&self, reply: &Reply<Status>, done: Result<(), ErrorReport>) {
        // A client that did not wait needs no answer.
        let _ = reply.send(done.map(|()| self.status()));
    }

    pub(super) fn status(&self) -> Status {
        let (network, network_provider) = self.network().unzip();
        Status {
            workspace: self.setup.spec.workspace.clone(),
            state: self.life.state(),
            sequence: self.setup.journal.sequence(),
            backend: Some(self.setup.hypervisor.backend()),
            supervisor: self.setup.supervisor.clone(),
            vmm: self.running.as_ref().map(|running| running.machine.vmm()),
            end: self.over.map(|over| over.cause),
            ports: self.setup.wiring.ports(),
            network,
            network_provider,
            confinement: self
                .running
                .as_ref()
                .map(|running| running.machine.confinement()),
            readiness: readiness::known(
                self.ready_at,
                self.life.state(),
                self.result_at,
                self.setup.spec.workload.is_some() || self.life.has_workload(),
            ),
        }
    }

    fn machine_to(&self, what: &str, from: &[State]) -> Result<Arc<dyn Machine>, ErrorReport> {
        let state = self.life.state();
        match &self.running {
            Some(running) if from.contains(&state) && self.life.cause().is_none() => {
                Ok(Arc::clone(&running.machine))
            }
            _ if self.life.cause().is_some() => Err(conflict(format!(
                "workspace {} is ending and cannot be {what}",
                self.setup.spec.workspace
            ))),
            _ => Err(conflict(format!(
                "workspace {} is {state} and cannot be {what}",
                self.setup.spec.workspace
            ))),
        }
    }

    fn pause(&mut self) -> Result<(), ErrorReport> {
        if self.life.state() == State::Paused {
            return Ok(());
        }
        let machine = self.machine_to("paused", &[State::Running])?;
        machine.pause().map_err(|error| refused(&error))?;
        self.feed(Input::Paused);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), ErrorReport> {
        if self.life.state() == State::Running {
            return Ok(());
        }
        let machine = self.machine_to("resumed", &[State::Paused])?;
        machine.resume().map_err(|error| refused(&error))?;
        self.feed(Input::Resumed);
        // It slept through the time in between.
        if let Ok(now) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)
            && let Ok(unix_nanos) = u64::try_from(now.as_nanos())
        {
            self.tell(&HostMessage::SetClock { unix_nanos });
        }
        Ok(())
    }

    fn quarantine(&mut self) -> Result<(), ErrorReport> {
        if self.life.state() == State::Quarantined {
            return Ok(());
        }
        let machine = self.machine_to("quarantined", &[State::Running, State::Paused])?;
        let (frozen, severed) = frozen_meanwhile(&machine, || {
            self.setup.sessions.close();
            self.setup.wiring.close();
            if let Some(running) = &mut self.running {
                running.link = None;
            }
            machine.sever()
        });
        self.feed(Input::CutOff);
        frozen.and(severed).map_err(|error| {
            refused(&error).remedy("Its connections were cut as far as possible: kill it.")
        })?;
        self.feed(Input::Quarantined);
        Ok(())
    }

    fn rebind(&self, ports: &[PublishedPort]) -> Result<(), ErrorReport> {
        let from = [State::Starting, State::Running, State::Paused];
        self.machine_to("reached elsewhere", &from)?;
        let wiring = &self.setup.wiring;
        if wiring.rebind(ports).map_err(|error| error.report())? {
            let ports = wiring.ports();
            self.record(self.life.state(), EventKind::PortsPublished { ports });
        }
        Ok(())
    }

    pub(super) fn console(&self, reply: &Reply<SerialPort>) {
        let from = [State::Starting, State::Running, State::Paused];
        let port = self
            .machine_to("attached to", &from)
            .and_then(|machine| machine.console().map_err(|error| refused(&error)));
        // A client that did not wait needs no answer.
        let _ = reply.send(port);
    }

    pub(super) fn exec(&mut self, role: ExecRole, reply: Reply<PathBuf>) {
        let refusal = match self.life.state() {
            _ if self.life.cause().is_some() => Some("is ending".to_owned()),
            State::Starting | State::Running => None,
            state => Some(format!("is {state}")),
        };
        let refusal = match refusal {
            None if role == ExecRole::Workload
                && (self.workload_asked || self.life.has_workload()) =>
            {
                Some("has a workload already".to_owned())
            }
            refusal => refusal,
        };
        if let Some(what) = refusal {
            let refused = conflict(format!(
                "The workspace {} {what}; nothing was started in it.",
                self.setup.spec.workspace
            ));
            // A client that did not wait needs no answer.
            let _ = reply.send(Err(match self.life.state() {
                State::Paused => refused.remedy("It has to be resumed first."),
                State::Quarantined => refused.remedy("Nothing reaches it any more: end it first."),
                _ => refused,
            }));
            return;
        }
        self.workload_asked |= role == ExecRole::Workload;
        self.until_ready.push(reply);
        if self.life.state() == State::Running {
            self.open_sessions();
        }
    }

    pub(super) fn open_sessions(&mut self) {
        let Some(running) = &self.running else { return };
        for reply in self.until_ready.drain(..) {
            // A client that did not wait needs no answer.
            let _ = reply.send(Ok(running.machine.vsock().to_owned()));
        }
    }
}

fn conflict(message: String) -> ErrorReport {
    ErrorReport::new(ErrorKind::Conflict, message)
}

fn refused(error: &microagent_hypervisor::Error) -> ErrorReport {
    use microagent_hypervisor::Error as Driver;
    let kind = match error {
        Driver::Unsupported(_) => ErrorKind::Unsupported,
        Driver::Timeout { .. } => ErrorKind::Transient,
        _ => ErrorKind::Permanent,
    };
    ErrorReport::new(kind, error.to_string())
}

/// How long the freezing of a machine goes before its being cut off, which a guest should not see. A
/// monitor needs a millisecond or two; one that a guest has taken over may never answer.
const FREEZES_FIRST: Duration = Duration::from_millis(30);

/// Freezes `machine`, and does `cut` when it is frozen or has taken too long. Gives what came of each.
fn frozen_meanwhile<T>(
    machine: &Arc<dyn Machine>,
    cut: impl FnOnce() -> T,
) -> (Result<(), microagent_hypervisor::Error>, T) {
    let (frozen, told) = channel();
    let freezing = Arc::clone(machine);
    let begun = std::thread::Builder::new()
        .name("freeze".to_owned())
        .spawn(move || {
            // Whoever waits for it does so until it is there.
            let _ = frozen.send(freezing.pause());
        });
    if let Err(error) = begun {
        tracing::warn!("there is no thread to freeze the machine in: {error}");
        let cut = cut();
        return (machine.pause(), cut);
    }
    let early = told.recv_timeout(FREEZES_FIRST);
    let cut = cut();
    let frozen = early.or_else(|_| told.recv()).unwrap_or_else(|_| {
        Err(microagent_hypervisor::Error::Io {
            context: "freeze the machine".to_owned(),
            source: std::io::Error::other("its thread ended without a word"),
        })
    });
    (frozen, cut)
}
