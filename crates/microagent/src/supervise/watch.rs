//! The loop that keeps a workspace up: it starts, watches, probes, and starts again.
//!
//! Nothing is polled: a thread waits for the machine's events, another one makes the probe that is
//! due, and the loop sleeps until one of them, the caller or the clock has something to say.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use microagent_protocol::{
    State,
    supervisor::{ErrorKind, Event},
};

use super::{
    beat::Beat,
    keeper::{Ending, Keeper, Next, SuperviseEnd},
    step::{SuperviseEvent, SuperviseReport},
};
use crate::{
    error::{Error, Result},
    io::RunIo,
    workspaces::{StartOptions, Workspace, history, machine},
};

/// How often is looked whether a machine that says nothing any more is gone.
const SOON: Duration = Duration::from_millis(100);

/// How a workspace is kept up.
#[derive(Clone, Debug)]
#[must_use]
pub struct SuperviseOptions {
    max_restarts: Option<u32>,
    grace: Duration,
    start: StartOptions,
    stop: SuperviseStop,
}

impl Default for SuperviseOptions {
    fn default() -> Self {
        Self {
            max_restarts: None,
            grace: Duration::from_secs(10),
            start: StartOptions::new(),
            stop: SuperviseStop::default(),
        }
    }
}

impl SuperviseOptions {
    /// As often as its policy says, until it ends.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts it again at most so often.
    pub fn max_restarts(mut self, max: u32) -> Self {
        self.max_restarts = Some(max);
        self
    }

    /// How long its workload may take to end when the caller asks for the end; 10 seconds unless
    /// said.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How it is started.
    pub fn start(mut self, options: StartOptions) -> Self {
        self.start = options;
        self
    }

    /// A handle that ends the supervision, from any thread.
    #[must_use]
    pub fn stop(&self) -> SuperviseStop {
        self.stop.clone()
    }
}

/// Ends a supervision: the workspace is halted, and the loop returns.
#[derive(Clone, Debug, Default)]
pub struct SuperviseStop(Arc<Mutex<Asked>>);

#[derive(Debug, Default)]
struct Asked {
    asked: bool,
    tell: Option<Sender<Happening>>,
}

impl SuperviseStop {
    /// Asks for the end.
    pub fn ask(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked = true;
        if let Some(tell) = &state.tell {
            // A loop that is over has nothing to end.
            let _ = tell.send(Happening::Stop);
        }
    }

    fn asked(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).asked
    }

    fn tell(&self, sender: Sender<Happening>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tell = Some(sender);
    }
}

/// What the loop waits for.
#[derive(Debug)]
pub(super) enum Happening {
    /// The caller asked for the end.
    Stop,
    /// Something happened to the machine of this watch.
    Machine(u64, Event),
    /// The machine of this watch is gone.
    Gone(u64),
    /// A probe of the machine of this watch ended.
    Probed(u64, Result<(), String>),
}

impl Workspace<'_> {
    /// Keeps it up by its restart policy: starts it, watches it, and starts it again when it ends,
    /// until the policy, the number of restarts, a request to halt it or the caller says no.
    ///
    /// The workspace is nobody's property: when this program dies the machine runs on, and another
    /// call goes on watching it. What the manifest says of policy and health is read again at each
    /// start.
    ///
    /// # Errors
    /// What no further try would change: a workspace that is not what was recorded, an image or a
    /// kernel that is gone, a machine that cannot be ended.
    pub fn supervise(
        &mut self,
        options: &SuperviseOptions,
        mut tell: impl FnMut(SuperviseEvent),
    ) -> Result<SuperviseReport> {
        let (sender, receiver) = mpsc::channel();
        options.stop.tell(sender.clone());
        let mut watcher = Watcher {
            options,
            keeper: Keeper::new(self.manifest().restart, options.max_restarts),
            sender,
            receiver,
            watch: 0,
        };
        let end = watcher.run(self, &mut tell)?;
        Ok(SuperviseReport {
            workspace: self.name().clone(),
            end,
            restart: self.manifest().restart,
            restarts: watcher.keeper.restarts(),
            state: match end {
                SuperviseEnd::Removed => None,
                _ => Some(self.state()?),
            },
        })
    }
}

struct Watcher<'a> {
    options: &'a SuperviseOptions,
    keeper: Keeper,
    sender: Sender<Happening>,
    receiver: Receiver<Happening>,
    /// Which machine is watched; what is said of another one is late.
    watch: u64,
}

/// What a machine's watch came to.
enum Watched {
    Ended(Ending),
    /// Nothing is to be done about it any more.
    Over(SuperviseEnd),
}

impl Watcher<'_> {
    fn run(
        &mut self,
        workspace: &mut Workspace<'_>,
        tell: &mut impl FnMut(SuperviseEvent),
    ) -> Result<SuperviseEnd> {
        let state = workspace.state()?;
        let mut next = self.keeper.begin(state);
        if next == Next::Watch {
            tell(SuperviseEvent::Found { state });
        }
        loop {
            let ending = match next {
                Next::Finish(end) => return Ok(end),
                Next::Watch => match self.watch(workspace, tell)? {
                    Watched::Ended(ending) => ending,
                    Watched::Over(end) => return Ok(end),
                },
                Next::Start(pause) => {
                    if !self.pause(pause, tell) {
                        return Ok(SuperviseEnd::Requested);
                    }
                    match self.start(workspace, tell)? {
                        None => {
                            next = Next::Watch;
                            continue;
                        }
                        Some(ending) => ending,
                    }
                }
            };
            if let Err(error) = workspace.refresh() {
                return removed(error);
            }
            tell(SuperviseEvent::Ended {
                state: ending.state,
                cause: ending.cause,
            });
            self.keeper.set_policy(workspace.manifest().restart);
            next = self.keeper.ended(ending);
        }
    }

    /// Waits before a restart; false if the caller asks for the end.
    fn pause(&self, pause: Duration, tell: &mut impl FnMut(SuperviseEvent)) -> bool {
        if self.options.stop.asked() {
            return false;
        }
        if pause.is_zero() {
            return true;
        }
        tell(SuperviseEvent::Waiting {
            ms: crate::run::millis(pause),
        });
        let until = Instant::now() + pause;
        while let Ok(happening) = self
            .receiver
            .recv_timeout(until - Instant::now().min(until))
        {
            if matches!(happening, Happening::Stop) {
                return false;
            }
        }
        true
    }

    /// Starts it; how it ended, if it never was ready.
    fn start(
        &self,
        workspace: &mut Workspace<'_>,
        tell: &mut impl FnMut(SuperviseEvent),
    ) -> Result<Option<Ending>> {
        tell(SuperviseEvent::Starting {
            restart: self.keeper.restarts(),
        });
        let error = match workspace.start(&self.options.start, RunIo::captured()) {
            Ok(started) => {
                tell(SuperviseEvent::Started(started));
                return Ok(None);
            }
            Err(error) => error,
        };
        // Somebody else may have been faster.
        if workspace.state().is_ok_and(State::is_live) {
            return Ok(None);
        }
        if is_final(&error) {
            return Err(error);
        }
        tell(SuperviseEvent::StartFailed {
            error: error.report(),
        });
        Ok(Some(Ending {
            state: State::Failed,
            cause: None,
            up: Duration::ZERO,
        }))
    }

    /// Watches and probes a machine to its end.
    fn watch(
        &mut self,
        workspace: &Workspace<'_>,
        tell: &mut impl FnMut(SuperviseEvent),
    ) -> Result<Watched> {
        self.watch += 1;
        let begun = Instant::now();
        follow(workspace, self.watch, self.sender.clone());
        let health = workspace.manifest().health.clone();
        let mut pulse = health.as_ref().map(|check| Beat::new(check.clone(), begun));
        let mut state = workspace.state()?;
        if self.options.stop.asked() {
            return self.end(workspace, tell);
        }
        loop {
            let happening = match pulse.as_ref().and_then(Beat::due) {
                Some(due) => self.receiver.recv_timeout(due - Instant::now().min(due)),
                None => self
                    .receiver
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
            };
            match happening {
                Ok(Happening::Stop) => return self.end(workspace, tell),
                Ok(Happening::Machine(watch, event)) if watch == self.watch => {
                    state = event.state;
                    if state == State::Quarantined {
                        return Ok(Watched::Over(SuperviseEnd::Quarantined));
                    }
                }
                Ok(Happening::Gone(watch)) if watch == self.watch => {
                    return ended(workspace, begun.elapsed());
                }
                Ok(Happening::Probed(watch, outcome)) if watch == self.watch => {
                    // A machine that is on its way out answers nothing.
                    if let Some(beat) = &mut pulse {
                        beat.probed(workspace, outcome, state, tell)?;
                    }
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(beat) = &mut pulse {
                        beat.probe(workspace, state, self.watch, &self.sender);
                    }
                }
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    /// Halts it because the caller asked for the end.
    fn end(
        &self,
        workspace: &Workspace<'_>,
        tell: &mut impl FnMut(SuperviseEvent),
    ) -> Result<Watched> {
        tell(SuperviseEvent::Halting);
        match workspace.halt(self.options.grace) {
            Ok(_) => {}
            Err(error) => {
                tracing::debug!("{} was not halted: {error}", workspace.name());
                workspace.kill()?;
            }
        }
        Ok(Watched::Over(SuperviseEnd::Requested))
    }
}

/// Tells `sender` what happens to the workspace's machine until it is gone.
fn follow(workspace: &Workspace<'_>, watch: u64, sender: Sender<Happening>) {
    let events = workspace.connect().and_then(|control| control.subscribe());
    let directory = workspace.directory().to_owned();
    thread::spawn(move || {
        if let Ok(mut events) = events {
            while let Ok(Some(event)) = events.next() {
                if sender.send(Happening::Machine(watch, event)).is_err() {
                    return;
                }
            }
        }
        // Its connection closes a moment before it is gone.
        while !machine::wait_gone(&directory, SOON) {
            thread::sleep(SOON);
        }
        // Nobody listens any more when the supervision ended meanwhile.
        let _ = sender.send(Happening::Gone(watch));
    });
}

fn ended(workspace: &Workspace<'_>, up: Duration) -> Result<Watched> {
    let state = match workspace.state() {
        Ok(state) => state,
        Err(error) => return removed(error).map(Watched::Over),
    };
    // What nobody recorded is recorded now.
    workspace.history()?;
    Ok(Watched::Ended(Ending {
        state,
        cause: history::end_cause(workspace.directory())?,
        up,
    }))
}

/// A workspace that is not there any more was removed; anything else is an error.
fn removed(error: Error) -> Result<SuperviseEnd> {
    match error {
        Error::NoWorkspace { .. } => Ok(SuperviseEnd::Removed),
        Error::Io { ref source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(SuperviseEnd::Removed)
        }
        error => Err(error),
    }
}

/// Whether no further try would change anything.
fn is_final(error: &Error) -> bool {
    matches!(
        error,
        Error::Diverged { .. } | Error::Damaged { .. } | Error::Untrusted { .. }
    ) || matches!(
        error.kind(),
        ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Unsupported
    )
}
