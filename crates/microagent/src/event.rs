//! What is happening, as typed events, so that any program can draw it.

use microagent_image::ImageEvent;
use microagent_kernel::KernelProgress;
use microagent_protocol::supervisor::Event;

use crate::result::{ImageInfo, KernelInfo};

/// A step of a run. The order is: image, kernel, workspace, machine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RunEvent {
    /// The image is being pulled or its disk built.
    Image(ImageEvent),
    /// The image is ready.
    ImageReady(ImageInfo),
    /// A kernel is being installed.
    Kernel(KernelProgress),
    /// The kernel is ready.
    KernelReady(KernelInfo),
    /// The workspace exists; its machine is about to be launched.
    Workspace {
        /// Its name.
        name: String,
    },
    /// An archive is being made into a disk.
    Bundle {
        /// The bundle's name.
        name: String,
    },
    /// The machine's supervisor says what happened.
    Machine(Event),
    /// A file of the host is about to be copied in.
    File {
        /// Where it is on the host.
        src: std::path::PathBuf,
    },
    /// A setup command is about to run.
    Setup {
        /// The command.
        command: String,
    },
    /// The command runs: from here on signals go to it.
    Started,
}
