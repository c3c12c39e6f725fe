//! Progress on standard error, drawn only on a terminal and gone when it is over.

mod layers;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use microagent::{
    Backend, Digest, Error, Event, EventKind, ImageEvent, KernelProgress, RunEvent, RunIo,
};

use self::layers::Layers;

use crate::{
    cli::Form,
    output::{Screen, clean, short, size},
};

/// One line that says what is being done.
pub(crate) struct Progress {
    screen: Screen,
    lines: MultiProgress,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    bars: Layers,
    /// Bytes of each layer so far.
    layers: HashMap<Digest, u64>,
    /// Bytes of each image in all.
    totals: HashMap<String, u64>,
    /// Whether the layers go instead of coming.
    pushing: bool,
    announced: bool,
}

impl Progress {
    pub(crate) fn new(screen: &Screen) -> Self {
        Self {
            screen: *screen,
            lines: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is being done.
    pub(crate) fn say(&self, text: &str) {
        self.draw(&mut self.state(), text);
    }

    /// A line that stays, above the progress.
    pub(crate) fn note(&self, text: &str) {
        match &self.state().bar {
            Some(_) => self.lines.suspend(|| self.screen.notice(text)),
            None => self.screen.notice(text),
        }
    }

    /// A line that stays, and that a log is to have, too.
    pub(crate) fn announce(&self, text: &str) {
        match &self.state().bar {
            Some(bar) => bar.suspend(|| self.screen.announce(text)),
            None => self.screen.announce(text),
        }
    }

    /// Wipes the line away.
    pub(crate) fn clear(&self) {
        let mut state = self.state();
        state.bars.clear();
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Something is not as it should be, and work goes on.
    fn warn(&self, text: &str) {
        match &self.state().bar {
            Some(_) => self.lines.suspend(|| self.screen.announce(text)),
            None => self.screen.announce(text),
        }
    }

    fn bar(&self, change: impl FnOnce(&MultiProgress)) {
        if self.screen.lively {
            change(&self.lines);
        }
    }

    fn draw(&self, state: &mut State, text: &str) {
        if !self.screen.lively {
            return;
        }
        let bar = state.bar.get_or_insert_with(|| {
            let bar = self.lines.insert(0, ProgressBar::no_length());
            let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        bar.set_message(clean(text));
    }

    /// A step on the way to a machine.
    pub(crate) fn step(&self, event: &RunEvent) {
        match event {
            RunEvent::Image(ImageEvent::TagMoved {
                reference,
                from,
                to,
            }) => self.warn(&format!(
                "The tag {reference} moved: it stood for {} and stands for {} now.",
                short(&from.to_string()),
                short(&to.to_string())
            )),
            RunEvent::Image(event) => self.image(event),
            RunEvent::Kernel(event) => self.kernel(event),
            RunEvent::Bundle { name } => self.say(&format!("Making a disk of the bundle {name}")),
            RunEvent::File { src } => self.say(&format!("Copying {}", src.display())),
            RunEvent::Workspace { name } => self.say(&format!("Booting {name}")),
            RunEvent::Machine(event) => self.machine(event),
            RunEvent::Setup { command } => {
                self.note(&format!("Setup: {command}"));
                // What it prints is next.
                self.clear();
            }
            _ => {}
        }
    }

    fn machine(&self, event: &Event) {
        match &event.kind {
            EventKind::Starting { backend: Backend::QemuTcg, .. } if self.screen.lively => self.note(
                "No hardware virtualisation: software emulation is slower, and a larger attack \
                 surface, though the guest still has a kernel of its own (microagent doctor says more).",
            ),
            EventKind::BootRetried { reason } => self.note(&format!("Booting again: {reason}")),
            _ => {}
        }
    }

    /// A step of a pull, an import or a disk build.
    pub(crate) fn image(&self, event: &ImageEvent) {
        let mut state = self.state();
        let text = match event {
            ImageEvent::Resolving { reference } => format!("Looking for {reference}"),
            ImageEvent::Resolved {
                reference, bytes, ..
            } => {
                state.totals.insert(reference.clone(), *bytes);
                pulled(&state)
            }
            ImageEvent::Pushing {
                reference, bytes, ..
            } => {
                state.pushing = true;
                state.totals.insert(reference.clone(), *bytes);
                pulled(&state)
            }
            ImageEvent::LayerExists { digest, bytes }
            | ImageEvent::LayerMounted { digest, bytes, .. } => {
                state.layers.insert(*digest, *bytes);
                let where_it_is = match state.pushing {
                    true => "already there",
                    false => "already here",
                };
                self.bar(|lines| state.bars.here(lines, *digest, *bytes, where_it_is));
                pulled(&state)
            }
            ImageEvent::LayerResumed {
                digest,
                bytes,
                total,
            } => {
                state.layers.insert(*digest, *bytes);
                self.bar(|lines| state.bars.resumed(lines, *digest, *bytes, *total));
                pulled(&state)
            }
            ImageEvent::LayerProgress {
                digest,
                bytes,
                total,
            } => {
                state.layers.insert(*digest, *bytes);
                self.bar(|lines| state.bars.came(lines, *digest, *bytes, *total));
                pulled(&state)
            }
            ImageEvent::FromMirror { .. } => return,
            ImageEvent::MirrorFailed { mirror, reason } => {
                drop(state);
                self.warn(&format!("The mirror {mirror} was passed over: {reason}"));
                return;
            }
            ImageEvent::NoCredentials { registry, reason } => {
                drop(state);
                self.warn(&format!("{registry} is asked anonymously: {reason}."));
                return;
            }
            ImageEvent::Retrying { doing, reason, .. } => {
                format!("Trying again: {doing} ({reason})")
            }
            ImageEvent::Importing { bytes, total } => {
                format!("Importing: {} of {}", size(*bytes), size(*total))
            }
            ImageEvent::Exporting { bytes, total } => match total {
                Some(total) => format!("Writing: {} of {}", size(*bytes), size(*total)),
                None => format!("Writing: {}", size(*bytes)),
            },
            ImageEvent::Committing { reference, bytes } => {
                format!("Committing {reference}: {}", size(*bytes))
            }
            ImageEvent::Verifying { bytes } => format!("Reading: {}", size(*bytes)),
            ImageEvent::Waiting { .. } => {
                "Waiting for another process with the same image".to_owned()
            }
            ImageEvent::BuildingDisk { bytes: 0, .. } if state.totals.len() == 1 => {
                state.bars.clear();
                return;
            }
            ImageEvent::BuildingDisk {
                finishing: true, ..
            } => "Finishing the disk".to_owned(),
            ImageEvent::BuildingDisk {
                reference, bytes, ..
            } => {
                format!("Building the disk of {reference}: {}", size(*bytes))
            }
            _ => return,
        };
        self.draw(&mut state, &text);
    }

    /// A step of a kernel's installation. The first is worth a line in a log, too.
    pub(crate) fn kernel(&self, step: &KernelProgress) {
        let mut state = self.state();
        let text = match step {
            KernelProgress::Waiting => "Waiting for another process with the kernels".to_owned(),
            KernelProgress::Resolving => "Looking for the distribution's kernel".to_owned(),
            KernelProgress::Downloading { package, bytes } => {
                format!("Downloading {package} ({})", size(*bytes))
            }
            KernelProgress::Unpacking { package } => format!("Unpacking {package}"),
            KernelProgress::Configuring => "Configuring Linux".to_owned(),
            KernelProgress::Compiling { steps } => format!("Compiling Linux ({steps} steps)"),
            KernelProgress::Extracting => "Extracting the kernel and its modules".to_owned(),
            KernelProgress::Storing { release } => format!("Storing kernel {release}"),
            _ => return,
        };
        if !state.announced && !matches!(step, KernelProgress::Waiting) {
            state.announced = true;
            let line = "Installing a kernel for the machines (it is not installed on this host).";
            match &state.bar {
                Some(_) => self.lines.suspend(|| self.screen.announce(line)),
                None => self.screen.announce(line),
            }
        }
        self.draw(&mut state, &text);
    }
}

fn pulled(state: &State) -> String {
    let bytes: u64 = state.layers.values().sum();
    let total: u64 = state.totals.values().sum();
    let doing = match state.pushing {
        true => "Pushing",
        false => "Pulling",
    };
    // Layers that images share count once.
    format!("{doing}: {} of {}", size(bytes), size(total.max(bytes)))
}

/// Does something that takes a [`RunIo`] only to tell how it goes: progress is drawn, and what setup
/// commands print goes to standard error.
pub(crate) fn following<T>(
    screen: &Screen,
    act: impl FnOnce(RunIo) -> Result<T, Error>,
) -> Result<T, Error> {
    let progress = Arc::new(Progress::new(screen));
    let io = match screen.form {
        Form::Json => RunIo::new(io::sink(), io::sink()),
        Form::Text => RunIo::new(io::sink(), io::stderr()),
    };
    let listener = Arc::clone(&progress);
    let done = act(io.on_event(move |event| {
        tracing::debug!(?event, "step");
        listener.step(&event);
    }));
    progress.clear();
    done
}
