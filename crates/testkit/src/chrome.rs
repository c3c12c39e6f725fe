//! Chrome's trace event format, read as strictly as a viewer needs it to draw what is meant.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// When it begins and ends, and its name.
type Phase<'a> = (i64, i64, &'a str);

/// Looks at a whole trace, and panics at what a viewer would not take or would draw wrongly.
pub fn check(trace: &Value) {
    let unit = trace["displayTimeUnit"].as_str();
    assert!(matches!(unit, Some("ms" | "ns")), "{unit:?}");
    let mut rows: BTreeMap<(u64, u64), Vec<Phase<'_>>> = BTreeMap::new();
    let (mut named, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for event in trace["traceEvents"].as_array().expect("a list of events") {
        let text = |key: &str| {
            let text = event[key].as_str().filter(|text| !text.is_empty());
            text.unwrap_or_else(|| panic!("no {key}: {event}"))
        };
        let number = |key: &str| {
            event[key]
                .as_u64()
                .unwrap_or_else(|| panic!("no {key}: {event}"))
        };
        let row = (number("pid"), number("tid"));
        assert!(event["args"].is_object(), "{event}");
        match text("ph") {
            // Of the kinds of metadata these are two.
            "M" => {
                let what = text("name");
                assert!(["process_name", "thread_name"].contains(&what), "{event}");
                let name = event["args"]["name"].as_str();
                assert!(name.is_some_and(|name| !name.is_empty()), "{event}");
                let whose = if what == "process_name" {
                    (row.0, 0)
                } else {
                    row
                };
                assert!(seen.insert((what, whose)), "named twice: {event}");
                if what == "process_name" {
                    named.insert(row.0);
                }
            }
            "X" => {
                assert!(!text("cat").contains(char::is_whitespace), "{event}");
                let time = |key: &str| {
                    event[key]
                        .as_i64()
                        .unwrap_or_else(|| panic!("no {key}: {event}"))
                };
                let (from, took) = (time("ts"), time("dur"));
                assert!(took >= 0, "{event}");
                rows.entry(row)
                    .or_default()
                    .push((from, from + took, text("name")));
            }
            other => panic!("no kind of event that is written here: {other}"),
        }
    }
    for (row, mut phases) in rows {
        assert!(named.contains(&row.0), "process {} has no name", row.0);
        // What is on one row is within each other or apart: anything else cannot be drawn.
        phases.sort_by_key(|(from, to, _)| (*from, std::cmp::Reverse(*to)));
        let mut open: Vec<Phase<'_>> = Vec::new();
        for phase in phases {
            while open.last().is_some_and(|last| last.1 <= phase.0) {
                open.pop();
            }
            if let Some(around) = open.last() {
                assert!(
                    phase.1 <= around.1,
                    "{phase:?} is half in {around:?} on {row:?}"
                );
            }
            open.push(phase);
        }
    }
}
