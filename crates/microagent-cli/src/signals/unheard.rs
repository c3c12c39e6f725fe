//! A system without signals: Ctrl-C ends this process, and with it what it owns.

use microagent::{Error, RunController, SuperviseStop};

use super::TornDown;

/// Lets go of a terminal when this process is told to end, which is not heard here.
pub(crate) fn detach(_controller: RunController) -> Result<TornDown, Error> {
    Ok(TornDown::default())
}

/// Asks for the end of a supervision when this process is asked to end, which is not heard here.
pub(crate) fn on_end(_stop: SuperviseStop) -> Result<(), Error> {
    Ok(())
}

/// Hands signals on to the run from now on; there are none.
pub(crate) fn forward(_controller: RunController) -> Result<TornDown, Error> {
    Ok(TornDown::default())
}
