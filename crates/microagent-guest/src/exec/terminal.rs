//! Terminals: the agent's end is the session's, the other end the process's.

use std::os::fd::OwnedFd;

use microagent_protocol::TtySize;
use rustix::{
    fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, openat},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize},
};

use super::spawn::Stdio;
use crate::error::{Context, Error};

/// What Ctrl-D sends where a terminal does not say otherwise.
const END_OF_TRANSMISSION: u8 = 4;

/// A new terminal of `size` for the user `uid`: the agent's end, and the process's streams.
pub(crate) fn open(size: TtySize, uid: u32) -> Result<(OwnedFd, Stdio), Error> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let agent = openat(rustix::fs::CWD, "/dev/pts/ptmx", flags, Mode::empty())
        .context("open /dev/pts/ptmx")?;
    unlockpt(&agent).context("unlock the terminal")?;
    let process = ioctl_tiocgptpeer(
        &agent,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .context("open the terminal")?;
    // Group 5 is `tty`, as the mount says.
    fchown(&process, Some(Uid::from_raw(uid)), Some(Gid::from_raw(5)))
        .context("own the terminal")?;
    fchmod(&process, Mode::from_raw_mode(0o620)).context("protect the terminal")?;
    resize(&agent, size)?;
    let another = || process.try_clone().context("share the terminal");
    let streams = [another()?, another()?, process];
    Ok((
        agent,
        Stdio {
            streams,
            terminal: true,
        },
    ))
}

/// Changes the size; the kernel tells the processes.
pub(crate) fn resize(agent: &OwnedFd, size: TtySize) -> Result<(), Error> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(agent, size).context("resize the terminal")
}

/// What to type for an end of input after `last`, the last byte typed.
pub(crate) fn end_of_input(agent: &OwnedFd, last: Option<u8>) -> Vec<u8> {
    let Ok(settings) = tcgetattr(agent) else {
        return vec![END_OF_TRANSMISSION];
    };
    let code = settings.special_codes[SpecialCodeIndex::VEOF];
    // In the middle of a line the first one only hands over the line.
    let pending = settings.local_modes.contains(LocalModes::ICANON)
        && last.is_some_and(|last| last != b'\n' && last != b'\r');
    vec![code; if pending { 2 } else { 1 }]
}
