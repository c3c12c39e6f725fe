//! The user's terminal: its size, its raw mode, and giving it back as it was, whatever happens.

use std::{
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
};

use microagent::{Error, TtySize};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::cli::Form;

/// The size of a terminal that does not know its own.
pub(crate) const DEFAULT_SIZE: TtySize = TtySize { rows: 24, cols: 80 };

/// How the terminal was before it was made raw; shared with the panic hook.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

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

/// The terminal's size.
pub(crate) fn size() -> Option<TtySize> {
    let size = tcgetwinsize(io::stdout())
        .or_else(|_| tcgetwinsize(io::stdin()))
        .ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(TtySize {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}

/// The terminal in raw mode, at most once at a time.
#[derive(Debug, Default)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Every key goes to the command as it is.
    pub(crate) fn enter(&self) {
        let stdin = io::stdin();
        let mut original = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner);
        if original.is_some() {
            return;
        }
        let entered = tcgetattr(&stdin).and_then(|before| {
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(&stdin, OptionalActions::Now, &raw).map(|()| before)
        });
        match entered {
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
        && let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &original)
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
