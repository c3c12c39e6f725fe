//! Printing: results on standard output, everything else on standard error, and nothing foreign
//! reaches a terminal unclean.

use std::io::{self, IsTerminal, Write};

pub(crate) use microagent::text::harmless as clean;
use microagent::{ErrorReport, Resources, Timestamp, text::is_harmful};
use serde::Serialize;

use crate::{
    cli::{Form, Globals},
    surroundings,
};

/// The most lines of detail shown under an error.
const DETAIL_LINES: usize = 12;

/// How to print, decided once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    pub(crate) form: Form,
    /// Whether notices and progress may be drawn: standard error is a terminal and wanted.
    pub(crate) lively: bool,
    quiet: bool,
    colour: bool,
}

/// The colours of words.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Colour {
    Green,
    Yellow,
    Red,
}

impl Screen {
    pub(crate) fn new(globals: &Globals) -> Self {
        let form = globals.form();
        let terminal = io::stderr().is_terminal();
        Self {
            form,
            lively: terminal && !globals.quiet && form == Form::Text,
            quiet: globals.quiet,
            colour: io::stdout().is_terminal() && !globals.no_color && !surroundings::no_color(),
        }
    }

    /// The same for a program that reads the results.
    pub(crate) fn for_programs(&self) -> Self {
        Self {
            form: Form::Json,
            lively: false,
            ..*self
        }
    }

    /// `text` in a colour, where there are colours.
    pub(crate) fn paint(&self, colour: Colour, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Red => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A line on standard error for whoever watches.
    pub(crate) fn notice(&self, text: &str) {
        if self.lively {
            to_stderr(&format!("{}\n", clean(text)));
        }
    }

    /// A line on standard error that is worth seeing in a log, too.
    pub(crate) fn announce(&self, text: &str) {
        if !self.quiet && self.form == Form::Text {
            to_stderr(&format!("{}\n", clean(text)));
        }
    }

    /// A step of `subject`, for programs: one object on a line of standard error.
    pub(crate) fn event<T: Serialize>(&self, subject: &str, event: &T) {
        #[derive(Serialize)]
        struct Step<'s, T> {
            image: &'s str,
            #[serde(flatten)]
            event: &'s T,
        }
        if self.form == Form::Json && !self.quiet {
            let step = Step {
                image: subject,
                event,
            };
            to_stderr(&json(&step, false));
        }
    }

    /// An error on standard error: a sentence for people, one object for programs.
    pub(crate) fn error(&self, report: &ErrorReport) {
        let text = match self.form {
            Form::Json => json(report, false),
            Form::Text => error_text(report),
        };
        to_stderr(&text);
    }

    /// A result: one JSON document, or what `text` makes of it.
    pub(crate) fn result<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) {
        match self.form {
            Form::Json => to_stdout(&json(value, io::stdout().is_terminal())),
            Form::Text => to_stdout(&clean(&text(value))),
        }
    }

    /// Prints only the names of what there is, a line each, where --quiet wants no more; says whether it did.
    pub(crate) fn only_names(&self, names: impl IntoIterator<Item = String>) -> bool {
        let only = self.quiet && self.form == Form::Text;
        if only {
            for name in names {
                to_stdout(&clean(&format!("{name}\n")));
            }
        }
        only
    }

    /// A result whose text has colours of ours in it; what is foreign in it is clean already.
    pub(crate) fn coloured<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) {
        match self.form {
            Form::Json => self.result(value, |_| String::new()),
            Form::Text => to_stdout(&clean_but_colours(&text(value))),
        }
    }
}

fn error_text(report: &ErrorReport) -> String {
    let mut text = format!("microagent: {}\n", clean(&report.message));
    if let Some(remedy) = &report.remedy {
        text.push_str(&format!("  {}\n", clean(remedy)));
    }
    if let Some(detail) = &report.detail {
        let lines: Vec<_> = detail
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        for line in &lines[lines.len().saturating_sub(DETAIL_LINES)..] {
            text.push_str(&format!("  | {}\n", clean(line)));
        }
    }
    text
}

fn json<T: Serialize>(value: &T, pretty: bool) -> String {
    let written = if pretty {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    match written {
        Ok(json) => escaped(&json) + "\n",
        Err(error) => format!(
            "{{\"kind\":\"internal\",\"message\":{:?}}}\n",
            error.to_string()
        ),
    }
}

/// JSON with everything escaped that means something to a terminal: JSON leaves some of it as it is.
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        // Line breaks are those between the fields: in a text they are escaped.
        if character != '\n' && is_harmful(character) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Text of ours, made harmless, in which our own colours stay.
pub(crate) fn clean_but_colours(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        let (before, after) = rest.split_at(at);
        cleaned.push_str(&clean(before));
        let colour = OWN_COLOURS
            .iter()
            .find(|colour| after.starts_with(**colour));
        cleaned.push_str(colour.copied().unwrap_or("\u{fffd}"));
        rest = &after[colour.map_or(1, |colour| colour.len())..];
    }
    cleaned + &clean(rest)
}

/// How many columns a cell takes: colours take none.
fn columns(cell: &str) -> usize {
    let colours = OWN_COLOURS.iter();
    let unseen = colours.map(|colour| cell.matches(colour).count() * colour.len());
    cell.chars().count() - unseen.sum::<usize>()
}

const OWN_COLOURS: [&str; 4] = ["\x1b[0m", "\x1b[31m", "\x1b[32m", "\x1b[33m"];

/// A time as tables show it: to the second is enough for people.
pub(crate) fn to_the_second(time: Timestamp) -> String {
    let text = time.to_string();
    text.split('.').next().unwrap_or(&text).replace('T', " ")
}

/// Writes to standard output; a reader that went away wants no more, which is no error.
pub(crate) fn to_stdout(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}

/// Writes to standard error; there is nowhere to tell that it failed.
pub(crate) fn to_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Rows under headings, in columns as wide as they need to be.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| columns(cell));
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width.saturating_sub(columns(cell)) + 2));
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut headings.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// What a machine is given, for people.
pub(crate) fn machine(resources: &Resources) -> String {
    let plural = if resources.cpu_count == 1 { "" } else { "s" };
    format!(
        "{} of memory, {} vCPU{plural}, {} of disk",
        resources.memory_mib, resources.cpu_count, resources.size_mib
    )
}

/// Names and values, a line each.
pub(crate) fn facts(rows: &[(&str, String)]) -> String {
    rows.iter()
        .map(|(name, value)| format!("{name:10} {value}\n"))
        .collect()
}

/// The first 12 digits of a digest.
pub(crate) fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use microagent::ErrorKind;

    use super::*;

    #[test]
    fn nothing_foreign_reaches_the_terminal() {
        assert_eq!(
            clean("a\x1b]0;x\x07\r\nb\u{9b}c\t"),
            "a\u{fffd}]0;x\u{fffd}\u{fffd}\nb\u{fffd}c\t"
        );
        // Not even a colour: what is green in our output is ours.
        assert_eq!(clean("\x1b[32mok\x1b[0m"), "\u{fffd}[32mok\u{fffd}[0m");
        assert_eq!(
            clean("a\u{202e}b\u{2066}c\u{61c}d"),
            "a\u{fffd}b\u{fffd}c\u{fffd}d"
        );
        assert_eq!(
            clean_but_colours("\x1b[31mred\x1b[0m\x1b[5m\u{9b}\x1b"),
            "\x1b[31mred\x1b[0m\u{fffd}[5m\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn json_says_the_same_and_steers_no_terminal() {
        let said = "\x1b[2J\u{9b}2J\u{7f}\u{202e}\r\n\"ä\u{1f980}\"";
        for pretty in [false, true] {
            let json = json(&serde_json::json!({ "out": said }), pretty);
            assert!(
                !json.trim_end().contains(|c| c != '\n' && is_harmful(c)),
                "{json:?}"
            );
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(value["out"], said);
        }
    }

    #[test]
    fn errors_are_told_with_remedy_and_the_end_of_the_detail() {
        let detail: String = (0..20).map(|n| format!("line {n}\n")).collect();
        let report = ErrorReport::new(ErrorKind::Permanent, "It broke.")
            .remedy("Mend it.")
            .detail(detail);
        let text = error_text(&report);
        assert!(
            text.starts_with("microagent: It broke.\n  Mend it.\n  | line 8\n"),
            "{text}"
        );
        assert!(text.ends_with("  | line 19\n"));
    }

    #[test]
    fn tables_line_up() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["long".to_owned(), "2".to_owned()],
        ];
        assert_eq!(table(&["X", "N"], &rows), "X     N\na     1\nlong  2\n");
        let rows = [vec!["\x1b[32mup\x1b[0m".to_owned(), "1".to_owned()]];
        assert_eq!(
            table(&["STATE", "N"], &rows),
            "STATE  N\n\x1b[32mup\x1b[0m     1\n"
        );
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(
            [0, 1023, 1024, 1536, 5 << 30].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB"]
        );
    }
}
