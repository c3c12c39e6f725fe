//! `microagent profiles`.

use microagent::{Error, Profile};
use serde_json::json;

use crate::output::{Screen, table};

pub(crate) fn run(screen: &Screen) -> Result<u8, Error> {
    let profiles: Vec<_> = Profile::ALL
        .iter()
        .map(|profile| profile.describe())
        .collect();
    screen.result(&json!({ "profiles": profiles }), |_| {
        let rows: Vec<_> = profiles
            .iter()
            .map(|profile| {
                vec![
                    profile.name.to_string(),
                    profile.resources.memory_mib.to_string(),
                    profile.resources.cpu_count.to_string(),
                    profile.resources.size_mib.to_string(),
                ]
            })
            .collect();
        table(&["PROFILE", "MEMORY", "CPUS", "DISK"], &rows)
    });
    Ok(0)
}
