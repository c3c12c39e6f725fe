//! The end: the result, the last event, and everybody who waits for it.

use super::*;
use crate::files::Durability;

impl Engine {
    /// What is removed with the machine need not outlive a crash of the host.
    fn durability(&self) -> Durability {
        if self.setup.spec.ephemeral {
            Durability::Unsynced
        } else {
            Durability::Synced
        }
    }

    pub(super) fn save(&mut self) {
        let Some(capture) = self.capture.clone() else {
            return;
        };
        let directory = self.setup.spec.directory.clone();
        let durability = self.durability();
        let saved = std::thread::Builder::new()
            .name("result".to_owned())
            .spawn(move || {
                if let Err(error) = lock(&capture).save(&directory, durability) {
                    tracing::error!("the result is lost: {error}");
                }
            });
        match saved {
            Ok(saving) => self.saving = Some(saving),
            Err(error) => tracing::error!("the result is not saved yet: {error}"),
        }
    }

    pub(super) fn finish(
        &mut self,
        state: State,
        cause: EndCause,
        detail: Option<String>,
        with_console: bool,
    ) {
        let console = self
            .running
            .as_ref()
            .filter(|_| with_console)
            .and_then(|running| running.console.last_lines());
        self.discard();
        self.setup.wiring.close();
        let saved = self
            .saving
            .take()
            .is_some_and(|saving| saving.join().is_ok());
        if !saved
            && let Some(capture) = &self.capture
            && let Err(error) = lock(capture).save(&self.setup.spec.directory, self.durability())
        {
            tracing::error!("the result is lost: {error}");
        }
        let detail = match (detail, console) {
            (Some(detail), Some(console)) => {
                Some(format!("{detail}; the console's last lines:\n{console}"))
            }
            (None, Some(console)) => Some(format!("the console's last lines:\n{console}")),
            (detail, None) => detail,
        };
        self.over = Some(Over {
            cause,
            abandoned: self.setup.owner_gone.load(Ordering::SeqCst),
        });
        self.setup.journal.record(
            state,
            EventKind::Ended {
                cause,
                detail: detail.clone(),
                ms: self.ms(),
            },
        );
        self.setup.journal.close();
        if self.durability() == Durability::Synced {
            self.setup.journal.sync();
        }
        // The first end is the only one.
        let _ = self.setup.last_status.set(self.status());
        for reply in std::mem::take(&mut self.until_ready) {
            let mut report = ErrorReport::new(
                if cause == EndCause::BootFailed {
                    ErrorKind::Permanent
                } else {
                    ErrorKind::Conflict
                },
                format!(
                    "workspace {} ended ({}) before the process was started",
                    self.setup.spec.workspace,
                    cause_word(cause)
                ),
            );
            report.detail.clone_from(&detail);
            // A client that did not wait needs no answer.
            let _ = reply.send(Err(report));
        }
        for reply in std::mem::take(&mut self.until_end) {
            self.answer(&reply, Ok(()));
        }
    }
}

/// The cause as it stands in events.
fn cause_word(cause: EndCause) -> String {
    serde_json::to_value(cause)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
