//! Names for runs that were given none: readable, and with enough chance in them not to collide.

use microagent_protocol::WorkspaceName;

use crate::error::{Error, Result};

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "agile", "azure", "blue", "bold", "brave", "brief", "bright", "brisk", "calm",
    "clear", "clever", "coral", "crisp", "deep", "eager", "early", "fair", "fancy", "fast", "fine",
    "fond", "fresh", "gentle", "glad", "gold", "grand", "green", "happy", "hardy", "honest",
    "ideal", "jolly", "keen", "kind", "lively", "loyal", "lucky", "lunar", "merry", "mild",
    "modest", "neat", "nimble", "noble", "novel", "patient", "plain", "proud", "quick", "quiet",
    "rapid", "ready", "royal", "sharp", "silent", "smart", "solid", "steady", "sunny", "swift",
    "tidy", "warm",
];

const ANIMALS: [&str; 64] = [
    "ant", "badger", "bear", "beaver", "bee", "bison", "camel", "cat", "cobra", "condor", "coyote",
    "crab", "crane", "crow", "deer", "dingo", "dove", "eagle", "egret", "elk", "falcon", "ferret",
    "finch", "fox", "frog", "gecko", "goose", "hare", "hawk", "heron", "horse", "ibex", "jackal",
    "jay", "koala", "lark", "lemur", "lion", "lynx", "marten", "mole", "moose", "moth", "newt",
    "otter", "owl", "panda", "pike", "puffin", "quail", "raven", "robin", "seal", "shark", "skunk",
    "snail", "stork", "swan", "tapir", "tiger", "toad", "viper", "wolf", "wren",
];

/// A new name, such as `run-brave-otter-4f9c`.
///
/// # Errors
/// [`Error::Random`] if the system gives no random bytes.
pub(crate) fn generate() -> Result<WorkspaceName> {
    let mut bytes = [0_u8; 4];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    let [a, b, c, d] = bytes;
    let (adjective, animal) = (
        ADJECTIVES[usize::from(a) % 64],
        ANIMALS[usize::from(b) % 64],
    );
    format!("run-{adjective}-{animal}-{c:02x}{d:02x}")
        .parse()
        .map_err(|error: microagent_protocol::name::InvalidName| {
            Error::invalid("the generated name", error.to_string())
        })
}

/// Eight random hexadecimal digits, for a run-time directory.
///
/// # Errors
/// [`Error::Random`] if the system gives no random bytes.
pub(crate) fn random_hex() -> Result<String> {
    let mut bytes = [0_u8; 4];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_word_makes_a_valid_name() {
        for (adjective, animal) in ADJECTIVES.iter().zip(ANIMALS) {
            let name = format!("run-{adjective}-{animal}-0000");
            assert!(name.parse::<WorkspaceName>().is_ok(), "{name}");
        }
        let distinct: HashSet<_> = ADJECTIVES.iter().chain(&ANIMALS).collect();
        assert_eq!(distinct.len(), 128);
    }

    #[test]
    fn names_differ() {
        let names: HashSet<_> = (0..100).map(|_| generate().unwrap()).collect();
        assert!(names.len() > 95, "{}", names.len());
    }
}
