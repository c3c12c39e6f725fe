//! A line for each layer on its way: how much, how fast, how long still, or that it is here already.

use std::{collections::HashMap, fmt::Write};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use microagent::Digest;

use crate::{
    output::{short, size},
    terminal,
};

/// More lines than this hide what they are about.
const MOST: usize = 16;
/// The widest bar, and the narrowest that says anything.
const BAR: usize = 24;
const LEAST_BAR: usize = 5;
/// The longest way to say how long it still takes.
const LEFT: usize = "12 h 59 min left".len();

/// The layers that are shown.
#[derive(Default)]
pub(super) struct Layers {
    bars: HashMap<Digest, ProgressBar>,
}

impl Layers {
    /// The layer is where it is to be; `text` says so.
    pub(super) fn here(
        &mut self,
        multi: &MultiProgress,
        digest: Digest,
        bytes: u64,
        text: &'static str,
    ) {
        if let Some(bar) = self.bar(multi, digest, bytes) {
            bar.set_style(words(digest, text));
            bar.finish();
        }
    }

    /// So much of it was left by an earlier pull: no part of the rate.
    pub(super) fn resumed(
        &mut self,
        multi: &MultiProgress,
        digest: Digest,
        bytes: u64,
        total: u64,
    ) {
        if let Some(bar) = self.bar(multi, digest, total) {
            bar.set_style(moving(digest, bytes));
            bar.reset_elapsed();
            bar.set_position(bytes);
        }
    }

    /// So much of it has come.
    pub(super) fn came(&mut self, multi: &MultiProgress, digest: Digest, bytes: u64, total: u64) {
        let Some(bar) = self.bar(multi, digest, total) else {
            return;
        };
        bar.set_position(bytes);
        if bytes == total {
            bar.set_style(words(digest, "done"));
            bar.finish();
        }
    }

    /// Wipes all lines away.
    pub(super) fn clear(&mut self) {
        for (_, bar) in self.bars.drain() {
            bar.finish_and_clear();
        }
    }

    fn bar(&mut self, multi: &MultiProgress, digest: Digest, total: u64) -> Option<&ProgressBar> {
        if !self.bars.contains_key(&digest) && self.bars.len() >= MOST {
            return None;
        }
        Some(self.bars.entry(digest).or_insert_with(|| {
            let bar = multi.add(ProgressBar::new(total));
            bar.set_style(moving(digest, 0));
            bar
        }))
    }
}

/// A layer that is coming, from byte `begun` on. The rate is that of the whole way: it does not jump.
fn moving(digest: Digest, begun: u64) -> ProgressStyle {
    drawn(move |state: &ProgressState, columns| {
        let seconds = state.elapsed().as_secs_f64().max(0.1);
        let rate = state.pos().saturating_sub(begun) as f64 / seconds;
        let (came, all) = (state.pos(), state.len().unwrap_or(0));
        moving_line(columns, &name(digest), came, all, rate)
    })
}

/// A layer that is where it is to be.
fn words(digest: Digest, text: &'static str) -> ProgressStyle {
    drawn(move |state: &ProgressState, columns| {
        words_line(columns, &name(digest), state.len().unwrap_or(0), text)
    })
}

fn name(digest: Digest) -> String {
    short(&digest.to_string()).to_owned()
}

/// A style that is one line, made for the columns there are at that moment: one that is too long would be broken
/// in two, and hide another.
fn drawn(
    line: impl Fn(&ProgressState, usize) -> String + Clone + Send + Sync + 'static,
) -> ProgressStyle {
    ProgressStyle::with_template("{line}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("line", move |state: &ProgressState, to: &mut dyn Write| {
            // The last column is left free: some terminals go on to the next line when it is written.
            let columns = terminal::columns().saturating_sub(1);
            // It is a string in memory; there is nobody to tell.
            let _ = to.write_str(&line(state, columns));
        })
}

/// The bar gives way first, then the rate, then what is left.
fn moving_line(columns: usize, name: &str, came: u64, all: u64, rate: f64) -> String {
    let seconds = all.saturating_sub(came) as f64 / rate;
    let left = match seconds.is_finite() {
        true => format!("{} left", duration(seconds as u64)),
        false => String::new(),
    };
    let percent = came.saturating_mul(100) / all.max(1);
    let sizes = format!("{:>10} of {:<10}", size(came), size(all));
    let rate = format!("{:>12}", format!("{}/s", size(rate as u64)));
    let bare = "  ".len() + name.len() + " ".len() + sizes.len();
    let with_left = bare + "  ".len() + LEFT;
    let with_rate = with_left + " ".len() + rate.len();
    let bar = columns.saturating_sub(with_rate + " []".len()).min(BAR);
    let line = if bar >= LEAST_BAR {
        let bar = drawn_bar(bar, came, all);
        format!("  {name} [{bar}] {sizes} {rate}  {left}")
    } else if columns >= with_rate {
        format!("  {name} {sizes} {rate}  {left}")
    } else if columns >= with_left {
        format!("  {name} {sizes}  {left}")
    } else if columns >= bare {
        format!("  {name} {sizes}")
    } else {
        format!("  {name} {percent:>3} %")
    };
    cut(line.trim_end(), columns)
}

fn drawn_bar(width: usize, came: u64, all: u64) -> String {
    let part = came as f64 / all.max(1) as f64;
    let full = ((width as f64 * part) as usize).min(width);
    let mut bar = "=".repeat(full);
    if full < width && came > 0 {
        bar.push('>');
    }
    format!("{bar:<width$}")
}

fn words_line(columns: usize, name: &str, all: u64, text: &str) -> String {
    let long = format!("  {name} {:>10}  {text}", size(all));
    match long.len() <= columns {
        true => long,
        false => cut(&format!("  {name} {text}"), columns),
    }
}

fn cut(line: &str, columns: usize) -> String {
    line.chars().take(columns).collect()
}

/// Seconds for people.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable() {
        assert_eq!(
            [0, 59, 61, 3725].map(duration),
            ["0 s", "59 s", "1 min 1 s", "1 h 2 min"]
        );
    }

    #[test]
    fn a_line_fits_where_it_is_drawn() {
        let line = |columns| moving_line(columns, "0123456789ab", 1 << 20, 4 << 20, 524_288.0);
        assert_eq!(
            line(120),
            "  0123456789ab [======>                 ]    1.0 MiB of 4.0 MiB     512.0 KiB/s  6 s left"
        );
        assert_eq!(
            line(79),
            "  0123456789ab [=>    ]    1.0 MiB of 4.0 MiB     512.0 KiB/s  6 s left"
        );
        assert_eq!(
            line(60),
            "  0123456789ab    1.0 MiB of 4.0 MiB     6 s left"
        );
        assert_eq!(line(40), "  0123456789ab    1.0 MiB of 4.0 MiB");
        assert_eq!(line(24), "  0123456789ab  25 %");
        assert_eq!(
            words_line(79, "0123456789ab", 1 << 20, "done"),
            "  0123456789ab    1.0 MiB  done"
        );
        assert_eq!(
            words_line(20, "0123456789ab", 1 << 20, "done"),
            "  0123456789ab done"
        );
    }

    #[test]
    fn no_line_is_too_long() {
        for columns in 0..200 {
            for (came, all, rate) in [
                (0, 0, 0.0),
                (0, u64::MAX, 1.0),
                (1023 << 20, 64 << 30, 1e3),
                (u64::MAX, 1, 1e12),
            ] {
                for line in [
                    moving_line(columns, "0123456789ab", came, all, rate),
                    words_line(columns, "0123456789ab", all, "already there"),
                ] {
                    assert!(line.chars().count() <= columns, "{columns}: {line}");
                }
            }
        }
    }
}
