//! A real terminal for microagent to run on.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsFd as _,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Termios, Winsize, tcgetattr, tcsetwinsize},
};

use crate::{command::Reaped, eventually, eventually_or};

/// What no command writes.
const LAST: &[u8] = b"\x1b_the test\x1b\\";

/// A command that runs on a terminal, and the other end of that terminal.
#[derive(Debug)]
pub struct Terminal {
    child: Reaped,
    master: File,
    slave: File,
    seen: Arc<Mutex<Vec<u8>>>,
    before: Termios,
}

impl Terminal {
    pub(crate) fn start(mut command: Command, rows: u16, cols: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        // At once: a program that another test starts just now would keep it.
        #[cfg(target_os = "linux")]
        let flags = flags | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        fcntl_setfd(&master, FdFlags::CLOEXEC).expect("a terminal");
        grantpt(&master).expect("a terminal");
        unlockpt(&master).expect("a terminal");
        let name = ptsname(&master, Vec::new()).expect("the terminal's name");
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().expect("an ASCII name"))
            .expect("the terminal's other end");
        let end = || slave.try_clone().expect("another descriptor");
        let before = tcgetattr(&slave).expect("the terminal's settings");
        let mut command_on_it = {
            command
                .env("TERM", "xterm")
                .stdin(end())
                .stdout(end())
                .stderr(end());
            command
        };
        let terminal = Self {
            child: Reaped(command_on_it.spawn().expect("microagent starts")),
            master: File::from(master),
            slave,
            seen: Arc::default(),
            before,
        };
        terminal.set_size(rows, cols);
        let (mut reader, seen) = (
            terminal.master.try_clone().expect("another descriptor"),
            terminal.seen.clone(),
        );
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 4096];
            // The read fails when the last holder of the other end is gone.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                seen.lock()
                    .expect("the screen")
                    .extend_from_slice(&buffer[..count]);
            }
        });
        terminal
    }

    fn set_size(&self, rows: u16, cols: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(self.slave.as_fd(), size).expect("the terminal's size");
    }

    /// Changes the size and tells the command, as a terminal emulator does.
    pub fn resize(&self, rows: u16, cols: u16) {
        self.set_size(rows, cols);
        // The command is not this terminal's foreground group, so the kernel does not tell it.
        self.signal(rustix::process::Signal::WINCH);
    }

    /// Sends the command a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child.0);
        rustix::process::kill_process(pid, signal).expect("the command still runs");
    }

    /// The command's process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Types `text`.
    pub fn type_text(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("the terminal takes input");
    }

    /// Waits until the screen shows `text`; gives everything shown so far.
    pub fn wait_for(&self, text: &str) -> String {
        eventually_or(
            Duration::from_secs(60),
            || format!("{text:?} on the terminal, which shows {:?},", self.screen()),
            || {
                let screen = self.screen();
                screen.contains(text).then_some(screen)
            },
        )
    }

    /// Waits until the last thing on the screen is `text`, such as a prompt.
    pub fn wait_for_last(&self, text: &str) {
        eventually_or(
            Duration::from_secs(60),
            || {
                format!(
                    "{text:?} at the end of the terminal, which shows {:?},",
                    self.screen()
                )
            },
            || {
                // A line editor may ask for the cursor's position after its prompt.
                let screen = self.screen();
                screen
                    .trim_end_matches("\x1b[6n")
                    .ends_with(text)
                    .then_some(())
            },
        );
    }

    /// Everything shown so far.
    #[must_use]
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("the screen")).into_owned()
    }

    /// Waits for the command's end and gives its exit code, if it had one. What it wrote last is on the
    /// screen then.
    pub fn finish(&mut self) -> Option<i32> {
        let child = &mut self.child.0;
        let ended = eventually(Duration::from_secs(60), "the command's end", || {
            child.try_wait().expect("the command")
        });
        // What comes after all of it is read after all of it.
        let mut slave = &self.slave;
        slave.write_all(LAST).expect("the terminal takes output");
        eventually(Duration::from_secs(60), "the command's last words", || {
            let mut seen = self.seen.lock().expect("the screen");
            let at = seen.windows(LAST.len()).position(|part| part == LAST)?;
            seen.drain(at..at + LAST.len());
            Some(())
        });
        ended.code()
    }

    /// Whether the terminal's settings are those it had before the command.
    #[must_use]
    pub fn is_restored(&self) -> bool {
        let now = tcgetattr(&self.slave).expect("the terminal's settings");
        (
            now.input_modes,
            now.output_modes,
            now.local_modes,
            now.control_modes,
        ) == (
            self.before.input_modes,
            self.before.output_modes,
            self.before.local_modes,
            self.before.control_modes,
        )
    }
}
