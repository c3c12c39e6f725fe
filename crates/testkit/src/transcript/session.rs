//! Transcripts of what is typed at a terminal.

use std::time::{Duration, Instant};

use super::compare;
use crate::Invocation;

/// What is typed where a transcript shows the question for a password, and nothing after it.
pub const PASSWORD: &str = "s3cret-pass";

/// How long the terminal may take to show what a transcript shows.
const LIMIT: Duration = Duration::from_secs(60);

/// How long what it wrote last may take to be read.
const LAST: Duration = Duration::from_secs(2);

/// What a transcript shows up to its next typing, and that.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    shown: String,
    typed: String,
    /// What a terminal shows of the typing.
    echo: String,
}

/// A transcript in which something is typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Session {
    turns: Vec<Turn>,
    end: String,
}

/// What is typed in a line of a transcript, behind what is shown before it.
fn typing(line: &str) -> Option<(&str, String, String)> {
    let secret = line.ends_with("(not shown):");
    let at = match line {
        _ if secret => line.len(),
        "^C" | "^]" => 0,
        _ if line.starts_with("root@") || line.starts_with("# ") => line.find("# ")? + 2,
        _ => line.find("[y/N] ")? + 6,
    };
    let (shown, text) = line.split_at(at);
    let (typed, echo) = match text {
        _ if secret => (format!("{PASSWORD}\n"), String::new()),
        "^C" => ("\x03".to_owned(), "^C".to_owned()),
        "^]" => ("\x1d".to_owned(), String::new()),
        _ => (format!("{text}\n"), format!("{text}\n")),
    };
    Some((shown, typed, echo))
}

impl Session {
    /// The session that `expected` is, if something is typed in it.
    pub(super) fn of(expected: &str) -> Option<Self> {
        let (mut turns, mut shown) = (Vec::new(), String::new());
        for line in expected.lines() {
            match typing(line) {
                Some((prompt, typed, echo)) => {
                    shown.push_str(prompt);
                    turns.push(Turn {
                        shown: std::mem::take(&mut shown),
                        typed,
                        echo,
                    });
                }
                None => {
                    shown.push_str(line);
                    shown.push('\n');
                }
            }
        }
        (!turns.is_empty()).then_some(Self { turns, end: shown })
    }

    /// Runs `command` by `shell`, types what is typed as soon as what is before it is there, and gives
    /// the exit code.
    pub(super) fn play(
        &self,
        command: &str,
        shell: impl Fn(&str) -> Invocation,
    ) -> Result<i32, String> {
        // In a session of its own the terminal is its own: then `^C` is a signal, to the shell as well. Other
        // shells than this one die of it, however well the command takes it.
        let mut terminal = shell("exec setsid --ctty --wait bash -c \"$0\"")
            .args([command])
            .on_terminal(40, 200);
        let (mut from, mut echo) = (0, "");
        for turn in &self.turns {
            let start = Instant::now();
            while let Err(report) = compare(&turn.shown, &read(&terminal.screen(), from, echo)) {
                if start.elapsed() > LIMIT {
                    return Err(report);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            (from, echo) = (terminal.screen().len(), &turn.echo);
            terminal.type_text(&turn.typed);
        }
        let code = terminal.finish();
        // What it wrote last is read a little later.
        let start = Instant::now();
        while let Err(report) = compare(&self.end, &read(&terminal.screen(), from, echo)) {
            if start.elapsed() > LAST {
                return Err(report);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        code.ok_or_else(|| format!("a signal ended it: {}", terminal.screen()))
    }
}

/// What the screen shows from there on, without what was typed and without what draws.
fn read(screen: &str, from: usize, echo: &str) -> String {
    let text = plain(screen.get(from..).unwrap_or_default());
    text.strip_prefix(echo).unwrap_or(&text).to_owned()
}

/// The text as a terminal has it in the end: without the sequences that move cursors and set titles and
/// colours, and without what was drawn over.
fn plain(text: &str) -> String {
    let (mut plain, mut rest, mut again) = (String::new(), text.chars(), false);
    while let Some(next) = rest.next() {
        match next {
            '\x1b' => match rest.next() {
                Some('[') => drop(rest.find(|it| ('@'..='~').contains(it))),
                Some(']') => drop(rest.find(|it| *it == '\x07')),
                _ => {}
            },
            '\r' => again = true,
            '\n' => {
                plain.push('\n');
                again = false;
            }
            other => {
                if std::mem::take(&mut again) {
                    plain.truncate(plain.rfind('\n').map_or(0, |at| at + 1));
                }
                plain.push(other);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sandbox;

    #[test]
    fn what_is_typed_is_told_from_what_is_shown() {
        let session = Session::of("up\nroot@web:/# cd /\n# ^]\nSure? [y/N] y\ngone\n").unwrap();
        let typed: Vec<_> = session.turns.iter().map(|it| it.typed.as_str()).collect();
        assert_eq!(typed, ["cd /\n", "\x1d", "y\n"]);
        assert_eq!(session.turns[0].shown, "up\nroot@web:/# ");
        assert_eq!(session.end, "gone\n");
        assert_eq!(Session::of("no # prompt\n$HOME\n"), None);
        assert_eq!(
            plain("1%\r2%\r\x1b[2K\x1b[?2004la\r\n\x1b]0;title\x07b"),
            "a\nb"
        );
    }

    #[test]
    fn a_session_is_played_on_a_terminal() {
        let (sandbox, directory) = (Sandbox::empty("/bin/true"), tempfile::tempdir().unwrap());
        let play = |expected: &str, command: &str| {
            let shell = |script: &str| sandbox.shell(script, directory.path());
            Session::of(expected).unwrap().play(command, shell)
        };
        let question = "test -t 0 && printf 'Sure? [y/N] ' && read it && echo \"$it.\"; exit 3";
        assert_eq!(play("Sure? [y/N] y\ny.\n", question), Ok(3));
        let other = play("Sure? [y/N] y\nn.\n", question).unwrap_err();
        assert!(other.contains("printed:\ny."), "{other}");
        let endless = "trap 'echo heard; exit 0' INT; echo up; while :; do sleep 0.1; done";
        assert_eq!(play("up\n^C\n…heard\n", endless), Ok(0));
        let secret = "stty -echo; printf 'Password (not shown): '; read it; echo; echo ${#it}";
        assert_eq!(play("Password (not shown):\n\n11\n", secret), Ok(0));
    }
}
