//! What is told of the work itself: messages on standard error, and a trace in a file.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
};

use microagent::{Error, LogFilter, LogLevel, trace::Trace};
use tracing_subscriber::{
    Layer as _,
    filter::{FilterFn, LevelFilter},
    layer::SubscriberExt as _,
};

use crate::{cli::Globals, surroundings};

/// Collects for as long as a command runs.
pub(crate) struct Observer {
    trace: Option<(Trace, PathBuf)>,
}

impl Observer {
    /// Tells and collects from here on what was asked for.
    pub(crate) fn begin(globals: &Globals) -> Result<Self, Error> {
        let wanted = surroundings::log_filter()?;
        let wanted = wanted.or_else(|| globals.verbose.then(|| LogFilter::all(LogLevel::Debug)));
        let trace = match &globals.trace_out {
            None => None,
            Some(path) => {
                let (trace, path) = (Trace::new(), surroundings::absolute(path)?);
                // A place that cannot be written to is told of before anything takes its time.
                trace.write(&path)?;
                Some((trace, path))
            }
        };
        if wanted.is_none() && trace.is_none() {
            return Ok(Self { trace });
        }
        let messages = wanted.map(|filter| {
            let most = level_filter(filter.most());
            let wants = FilterFn::new(move |it| filter.wants(it.target(), level(*it.level())));
            let colour = !globals.no_color && !surroundings::no_color();
            tracing_subscriber::fmt::layer()
                .with_writer(io::stderr)
                .with_ansi(io::stderr().is_terminal() && colour)
                .with_filter(wants.with_max_level_hint(most))
        });
        let collected = trace.as_ref().map(|(trace, _)| trace.layer());
        let subscriber = tracing_subscriber::registry()
            .with(messages)
            .with(collected);
        // Set once, first thing: nobody can have set another.
        let _ = tracing::subscriber::set_global_default(subscriber);
        Ok(Self { trace })
    }

    /// Writes what was collected.
    pub(crate) fn end(self) -> Result<(), Error> {
        self.trace
            .map_or(Ok(()), |(trace, path)| trace.write(&path))
    }
}

fn level(level: tracing::Level) -> LogLevel {
    match level {
        tracing::Level::ERROR => LogLevel::Error,
        tracing::Level::WARN => LogLevel::Warn,
        tracing::Level::INFO => LogLevel::Info,
        tracing::Level::DEBUG => LogLevel::Debug,
        tracing::Level::TRACE => LogLevel::Trace,
    }
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
