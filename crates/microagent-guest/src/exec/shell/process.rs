//! The shell's process, and the directory in which it finds its lines.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, chown},
    },
    path::{Path, PathBuf},
};

use microagent_protocol::{ShellStart, StartFailure};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat, openat},
    pipe::{PipeFlags, pipe_with},
};

use super::line::Line;
use crate::{
    error::{Context, Error},
    exec::{
        oom::OomWatch,
        spawn::{Stdio, null_sink},
    },
    reaper::{Child, Processes},
};

/// An interrupted line is over, and the shell that ran it is not. A child of the shell does
/// not inherit this.
const FIRST_WORDS: &[u8] = b"trap 'return 130' INT\n";

/// A shell that takes lines.
#[derive(Debug)]
pub(crate) struct Shell {
    child: Child,
    program: String,
    /// Its standard input.
    commands: File,
    directory: PathBuf,
    uid: u32,
    lines: u64,
    /// The last line's `$?`, which the next line may ask for.
    status: u8,
}

impl Shell {
    /// Shell number `number`, which `spawn` starts with the streams it is given. Its lines
    /// are kept below `base`, for the user `uid` to read.
    pub(crate) fn start(
        program: &str,
        (number, base): (u64, &Path),
        uid: u32,
        spawn: impl FnOnce(Stdio) -> Result<Child, Error>,
    ) -> Result<Self, Error> {
        let (input, commands) = pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
        // What it says between two lines is about nothing that was asked.
        let (output, errors) = (null_sink()?, null_sink()?);
        let directory = make_directory(base, number)?;
        let child = spawn(Stdio {
            streams: [input, output, errors],
            terminal: false,
        });
        let mut shell = match child {
            Ok(child) => Self {
                child,
                program: program.to_owned(),
                commands: commands.into(),
                directory,
                uid,
                lines: 0,
                status: 0,
            },
            Err(error) => {
                remove(&directory);
                return Err(error);
            }
        };
        shell.tell(FIRST_WORDS)?;
        Ok(shell)
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Its process.
    #[cfg(test)]
    pub(crate) fn child(&self) -> &Child {
        &self.child
    }

    /// Whether it can take a line.
    pub(crate) fn is_alive(&self) -> bool {
        self.child.exit.status().is_none()
    }

    /// Whether it is the one that is wanted.
    pub(crate) fn check(&self, wanted: &ShellStart) -> Result<(), Error> {
        if wanted.program == self.program {
            return Ok(());
        }
        Err(Error::start(
            StartFailure::Invalid,
            format!(
                "the persistent shell of this boot is {:?}, not {:?}; end it with the line `exit` first",
                self.program, wanted.program
            ),
        ))
    }

    /// Remembers the `$?` of the line before.
    pub(crate) fn set_status(&mut self, status: u8) {
        self.status = status;
    }

    /// Begins `text`.
    pub(crate) fn begin<'a>(
        &mut self,
        text: &str,
        processes: &'a Processes,
        oom_kills: OomWatch<'a>,
    ) -> Result<Line<'a>, Error> {
        self.lines += 1;
        let path = self.directory.join(self.lines.to_string());
        let outputs = vec![
            self.make_pipe(&path.with_extension("out"), OFlags::RDONLY)?,
            self.make_pipe(&path.with_extension("err"), OFlags::RDONLY)?,
        ];
        // Held open for writing as well: nobody's opening and closing ends it.
        let end = self.make_pipe(&path.with_extension("end"), OFlags::RDWR)?;
        self.write(&path, &format!("{text}\n"))?;
        let place = path.display();
        let mut command = String::new();
        if self.status != 0 {
            let status = self.directory.join("status");
            self.write(&status, &format!("return {}\n", self.status))?;
            command = format!("\\command . {}; ", status.display());
        }
        command += &format!(
            "\\command . {place} </dev/null >{place}.out 2>{place}.err; \\command echo \"$?\" >{place}.end\n"
        );
        // A shell that is gone by now shows by its end.
        if let Err(error) = self.tell(command.as_bytes())
            && self.is_alive()
        {
            return Err(error);
        }
        Ok(Line::new(
            self.child.clone(),
            processes,
            oom_kills,
            (path, outputs, end),
        ))
    }

    fn tell(&mut self, words: &[u8]) -> Result<(), Error> {
        match self.commands.write_all(words) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(error).context("talk to the shell")
            }
            _ => Ok(()),
        }
    }

    /// A pipe with a name, for the shell to write.
    fn make_pipe(&self, path: &Path, access: OFlags) -> Result<OwnedFd, Error> {
        let context = || format!("make the pipe {}", path.display());
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).context(context())?;
        chown(path, Some(self.uid), None).context(context())?;
        // Without blocking, as nobody has opened the other end yet.
        let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat(CWD, path, flags, Mode::empty()).context(context())
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), Error> {
        fs::write(path, text)
            .and_then(|()| chown(path, Some(self.uid), None))
            .context(format_args!("write {}", path.display()))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

fn make_directory(base: &Path, number: u64) -> Result<PathBuf, Error> {
    let path = base.join(format!("microagent-shell-{number}"));
    // An image may have prepared one.
    remove(&path);
    DirBuilder::new()
        .mode(0o711)
        .create(&path)
        .context(format_args!("make the directory {}", path.display()))?;
    Ok(path)
}

/// Removes a shell's directory; without it the guest is as well off.
fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path);
}
