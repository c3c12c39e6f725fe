//! What a terminal of a Unix can be told.

use std::io;

use microagent::TtySize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// How the terminal at standard input is set.
#[derive(Clone)]
pub(super) struct Settings(Termios);

impl Settings {
    /// Makes the terminal raw; gives how it was.
    pub(super) fn make_raw() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }

    /// Sets the terminal so.
    pub(super) fn set(&self) -> io::Result<()> {
        Ok(tcsetattr(io::stdin(), OptionalActions::Now, &self.0)?)
    }
}

/// How many columns there are where progress is drawn.
pub(super) fn columns() -> Option<u16> {
    Some(tcgetwinsize(io::stderr()).ok()?.ws_col)
}

/// The terminal's size, as it tells it.
pub(super) fn size() -> Option<TtySize> {
    let size = tcgetwinsize(io::stdout())
        .or_else(|_| tcgetwinsize(io::stdin()))
        .ok()?;
    Some(TtySize {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}
