//! A line for each layer on its way: how much, how fast, how long still, or that it is here already.

use std::{collections::HashMap, fmt::Write};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use microagent::Digest;

use crate::output::{short, size};

/// More lines than this hide what they are about.
const MOST: usize = 16;

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
            bar.set_style(words());
            bar.finish_with_message(text);
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
            bar.set_style(moving(bytes));
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
            bar.set_style(words());
            bar.finish_with_message("done");
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
            bar.set_style(moving(0));
            bar.set_prefix(short(&digest.to_string()).to_owned());
            bar
        }))
    }
}

/// A layer that is coming, from byte `begun` on. The rate is that of the whole way: it does not jump.
fn moving(begun: u64) -> ProgressStyle {
    let rate = move |state: &ProgressState| {
        let seconds = state.elapsed().as_secs_f64().max(0.1);
        state.pos().saturating_sub(begun) as f64 / seconds
    };
    styled("  {prefix} [{bar:24}] {came:>10} of {all:<10} {rate:>12}  {left}")
        .with_key("rate", move |state: &ProgressState, to: &mut dyn Write| {
            write(to, &format!("{}/s", size(rate(state) as u64)));
        })
        .with_key("left", move |state: &ProgressState, to: &mut dyn Write| {
            let missing = state.len().unwrap_or(0).saturating_sub(state.pos());
            let seconds = missing as f64 / rate(state);
            if seconds.is_finite() {
                write(to, &format!("{} left", duration(seconds as u64)));
            }
        })
}

fn words() -> ProgressStyle {
    styled("  {prefix} {all:>10}  {msg}")
}

/// The sizes are written as everywhere else.
fn styled(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .with_key("came", |state: &ProgressState, to: &mut dyn Write| {
            write(to, &size(state.pos()));
        })
        .with_key("all", |state: &ProgressState, to: &mut dyn Write| {
            write(to, &size(state.len().unwrap_or(0)));
        })
}

/// Seconds for people.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

fn write(to: &mut dyn Write, text: &str) {
    // It is a string in memory; there is nobody to tell.
    let _ = to.write_str(text);
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
}
