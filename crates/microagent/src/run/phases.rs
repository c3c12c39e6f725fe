//! What took how long.

use std::time::Duration;

use crate::result::Phase;

/// The phases of a run so far, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phases(Vec<Phase>);

impl Phases {
    /// One more phase.
    pub(crate) fn add(&mut self, name: &str, duration: Duration) {
        self.add_ms(
            name,
            u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        );
    }

    /// One more phase, in milliseconds.
    pub(crate) fn add_ms(&mut self, name: &str, ms: u64) {
        self.0.push(Phase {
            name: name.to_owned(),
            ms,
        });
    }

    /// All of them.
    pub(crate) fn into_list(self) -> Vec<Phase> {
        self.0
    }
}
