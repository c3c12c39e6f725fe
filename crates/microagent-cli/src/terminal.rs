//! The user's terminal: its size, its raw mode, and giving it back as it was, whatever happens.

#[cfg(unix)]
mod settings;
#[cfg(not(unix))]
#[path = "terminal/unsettable.rs"]
mod settings;

use std::{
    io::{self, BufRead, IsTerminal, Read},
    sync::{Mutex, PoisonError},
};

use microagent::{Error, Secret, TtySize};
use zeroize::Zeroizing;

use self::settings::Settings;

/// The longest line that is read at a prompt.
const MAX_LINE: u64 = 4096;

use crate::cli::Form;

/// The size of a terminal that does not know its own.
pub(crate) const DEFAULT_SIZE: TtySize = TtySize { rows: 24, cols: 80 };

/// How the terminal was before it was made raw; shared with the panic hook.
static ORIGINAL: Mutex<Option<Settings>> = Mutex::new(None);

/// Whether there is a terminal to give to the command.
pub(crate) fn is_terminal(with_input: bool) -> bool {
    io::stdout().is_terminal() && (!with_input || io::stdin().is_terminal())
}

/// Why `what`, which needs a terminal, cannot be had, and what to do `instead`.
pub(crate) fn refusal(
    what: &'static str,
    with_input: bool,
    form: Form,
    instead: &str,
) -> Option<Error> {
    let why = if form == Form::Json {
        "a terminal's output does not go into JSON"
    } else if !is_terminal(with_input) {
        "standard input and output are not a terminal"
    } else {
        return None;
    };
    Some(Error::Invalid {
        option: what,
        reason: format!("{why}; {instead}"),
    })
}

/// What kind of terminal it is.
pub(crate) fn kind() -> Option<String> {
    std::env::var("TERM").ok().filter(|kind| !kind.is_empty())
}

/// How many columns there are where progress is drawn.
pub(crate) fn columns() -> usize {
    settings::columns()
        .filter(|columns| *columns > 0)
        .map_or(80, usize::from)
}

/// The terminal's size.
pub(crate) fn size() -> Option<TtySize> {
    settings::size().filter(|size| size.rows > 0 && size.cols > 0)
}

/// The terminal in raw mode, at most once at a time.
#[derive(Debug, Default)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Every key goes to the command as it is.
    pub(crate) fn enter(&self) {
        let mut original = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner);
        if original.is_some() {
            return;
        }
        match Settings::make_raw() {
            Ok(before) => *original = Some(before),
            Err(error) => tracing::warn!("the terminal was not made raw: {error}"),
        }
    }

    /// The terminal is as it was.
    pub(crate) fn restore(&self) {
        restore();
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let original = ORIGINAL
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(original) = original
        && let Err(error) = original.set()
    {
        // The terminal may be gone (a hang-up).
        tracing::debug!("the terminal was not restored: {error}");
    }
}

/// A panic in any thread gives the terminal back before it says what happened.
pub(crate) fn restore_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        default(panic);
    }));
}

/// What a person typed at a prompt.
#[derive(Debug)]
pub(crate) enum Typed<T> {
    /// A line, without its end.
    Text(T),
    /// Ctrl-C, or the end of input before anything was typed.
    Interrupted,
}

/// Asks for a line.
pub(crate) fn ask(prompt: &str) -> Result<Typed<String>, Error> {
    crate::output::to_stderr(prompt);
    let mut line = String::new();
    match io::stdin().lock().take(MAX_LINE).read_line(&mut line) {
        Ok(0) => Ok(Typed::Interrupted),
        Ok(_) => Ok(Typed::Text(line.trim_end_matches(['\r', '\n']).to_owned())),
        Err(source) => Err(unreadable(source)),
    }
}

/// Asks for a line that is not shown. The terminal is raw meanwhile, so that Ctrl-C comes here as a key
/// and cannot leave the terminal without its echo.
pub(crate) fn ask_secretly(prompt: &str) -> Result<Typed<Secret>, Error> {
    crate::output::to_stderr(prompt);
    let raw = RawMode::default();
    raw.enter();
    let typed = read_secret(io::stdin().lock());
    raw.restore();
    crate::output::to_stderr("\n");
    typed.map_err(unreadable)
}

fn read_secret(keys: impl BufRead) -> io::Result<Typed<Secret>> {
    const CTRL_C: u8 = 0x03;
    const CTRL_D: u8 = 0x04;
    const CTRL_U: u8 = 0x15;
    // As large as it may become, so that no copy is left behind when it grows.
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE as usize));
    for key in keys.bytes().take(MAX_LINE as usize) {
        match key? {
            b'\r' | b'\n' => break,
            CTRL_C => return Ok(Typed::Interrupted),
            CTRL_D if line.is_empty() => return Ok(Typed::Interrupted),
            CTRL_U => line.clear(),
            0x7f | 0x08 => {
                // A character may have several bytes.
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            other => line.push(other),
        }
    }
    let text = std::str::from_utf8(&line)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))?;
    Ok(Typed::Text(Secret::from(text)))
}

fn unreadable(source: io::Error) -> Error {
    Error::Io {
        doing: "read from",
        path: "the terminal".into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_edit_a_secret() {
        for (keys, expect) in [
            (&b"secret\r"[..], Some("secret")),
            (b"sef\x7fcret\nmore", Some("secret")),
            ("caf\u{e9}\u{7f}e\r".as_bytes(), Some("cafe")),
            (b"wrong\x15right\r", Some("right")),
            (b"a\x04\r", Some("a\x04")),
            (b"\x04", None),
            (b"abc\x03", None),
        ] {
            let typed = match read_secret(keys).unwrap() {
                Typed::Text(secret) => Some(secret.expose().to_owned()),
                Typed::Interrupted => None,
            };
            assert_eq!(typed.as_deref(), expect);
        }
    }
}
