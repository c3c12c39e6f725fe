//! The persistent shell: one process a boot, which takes one line after the other.
//!
//! Nothing in a line's output says where it ends, so that the output may be anything: each
//! line has pipes of its own, which the shell opens by name, and `$?` comes through another
//! one. What the shell is told on its standard input is, for line 7,
//!
//! ```sh
//! \command . DIR/7 </dev/null >DIR/7.out 2>DIR/7.err; \command echo "$?" >DIR/7.end
//! ```
//!
//! The line itself is the file `DIR/7`, so it needs no quoting. `command` keeps a mistake in
//! it from ending the shell, as POSIX demands of `.` alone.

mod leftovers;
mod line;
mod process;
mod turns;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use microagent_protocol::{ShellOrigin, ShellStart};

use self::{leftovers::Leftovers, turns::Turns};
pub(crate) use self::{line::Line, process::Shell, turns::Turn};
use crate::error::Error;

/// The workspace's shell, if it runs, and who wants it.
#[derive(Debug)]
pub(crate) struct Shells {
    turns: Turns<Option<Shell>>,
    /// Where each shell's directory is made.
    base: PathBuf,
    /// How many shells there were.
    started: AtomicU64,
    leftovers: Leftovers,
}

impl Shells {
    /// No shell yet.
    pub(crate) fn new(base: &Path) -> Self {
        Self {
            turns: Turns::new(None),
            base: base.to_owned(),
            started: AtomicU64::new(0),
            leftovers: Leftovers::default(),
        }
    }

    /// Waits for the lines before, at most `limit`.
    pub(crate) fn turn(&self, limit: Option<Duration>) -> Option<Turn<'_, Option<Shell>>> {
        self.turns.take(limit)
    }

    /// The shell whose turn it is; `start` starts one where none runs.
    pub(crate) fn ready<'a>(
        &self,
        turn: &'a mut Option<Shell>,
        wanted: &ShellStart,
        start: impl FnOnce(u64, &Path) -> Result<Shell, Error>,
    ) -> Result<(&'a mut Shell, ShellOrigin), Error> {
        // With it goes the directory of one that has ended.
        let running = turn.take_if(|shell| shell.is_alive());
        let (shell, origin) = match running {
            Some(shell) => (shell, ShellOrigin::Running),
            None => {
                *turn = None;
                let number = self.started.load(Ordering::Relaxed);
                let shell = start(number, &self.base)?;
                // Nobody else starts one: it is this one's turn.
                self.started.store(number + 1, Ordering::Relaxed);
                let origin = match number {
                    0 => ShellOrigin::Started,
                    _ => ShellOrigin::Restarted,
                };
                (shell, origin)
            }
        };
        let shell = turn.insert(shell);
        shell.check(wanted)?;
        Ok((shell, origin))
    }

    /// Notes the end of `line`, whose turn it was.
    pub(crate) fn finish(&self, turn: &mut Option<Shell>, mut line: Line<'_>) {
        if let (Some(shell), Some(status)) = (turn, line.status()) {
            shell.set_status(status);
        }
        self.leftovers.drain(line.take_outputs());
    }
}

#[cfg(test)]
mod tests;
