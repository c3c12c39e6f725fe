//! A machine whose VMM is a child of this process: what drivers do not differ in.

use std::{os::fd::BorrowedFd, path::Path, time::Duration};

use microagent_protocol::{Confinement, ProcessIdentity};

use crate::{Error, Exit, Machine, SerialPort, process::Vmm};

/// What they do differ in; each is as [`Machine`] has it.
pub(crate) trait Driven: Send + Sync {
    fn process(&self) -> &Vmm;
    fn ended_by_guest(&self) -> bool;
    fn vsock(&self) -> &Path;
    fn pause(&self) -> Result<(), Error>;
    fn resume(&self) -> Result<(), Error>;
    fn sever(&self) -> Result<(), Error>;
}

impl<D: Driven> Machine for D {
    fn vmm(&self) -> ProcessIdentity {
        self.process().identity().clone()
    }

    fn exit_fd(&self) -> BorrowedFd<'_> {
        self.process().exit_fd()
    }

    fn wait(&self, limit: Duration) -> Result<Option<Exit>, Error> {
        self.process().wait(limit)
    }

    fn ended_by_guest(&self) -> bool {
        Driven::ended_by_guest(self)
    }

    fn vsock(&self) -> &Path {
        Driven::vsock(self)
    }

    fn console(&self) -> Result<SerialPort, Error> {
        self.process().console()
    }

    fn pause(&self) -> Result<(), Error> {
        Driven::pause(self)
    }

    fn resume(&self) -> Result<(), Error> {
        Driven::resume(self)
    }

    fn sever(&self) -> Result<(), Error> {
        Driven::sever(self)
    }

    fn confinement(&self) -> Confinement {
        self.process().confinement()
    }

    fn words(&self) -> String {
        self.process().words()
    }

    fn kill(&self) -> Result<(), Error> {
        self.process().kill()
    }
}
