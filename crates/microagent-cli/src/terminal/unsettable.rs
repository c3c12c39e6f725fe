//! A terminal that is left as it is.

use std::{convert::Infallible, io};

use microagent::TtySize;

/// How the terminal at standard input is set. It is never set otherwise here.
pub(super) struct Settings(Infallible);

impl Settings {
    /// Makes the terminal raw; gives how it was.
    pub(super) fn make_raw() -> io::Result<Self> {
        Err(microagent_host::unsupported("a raw terminal"))
    }

    /// Sets the terminal so.
    pub(super) fn set(&self) -> io::Result<()> {
        match self.0 {}
    }
}

/// How many columns there are where progress is drawn; unknown here.
pub(super) fn columns() -> Option<u16> {
    None
}

/// The terminal's size; unknown here.
pub(super) fn size() -> Option<TtySize> {
    None
}
