//! The text format of Prometheus (0.0.4), read as strictly as its own tools do, and its customs for names.

use std::collections::{BTreeMap, BTreeSet};

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// What is said of a metric before its values.
#[derive(Debug, Default)]
struct Family {
    help: Option<String>,
    kind: Option<String>,
    samples: usize,
}

/// Reads all of it, and panics at what a strict reader, or a reader of names, would not take.
#[must_use]
pub fn read(text: &str) -> Vec<Sample> {
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "no end of the last line: {text:?}"
    );
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    let mut samples = Vec::new();
    for line in text.lines() {
        let comment = ["HELP", "TYPE"]
            .into_iter()
            .find_map(|word| Some((word, line.strip_prefix(&format!("# {word} "))?)));
        if let Some((word, rest)) = comment {
            let (name, said) = rest.split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
            // A family's lines are together, and none comes back.
            if current != name {
                assert!(!families.contains_key(name), "again: {line:?}");
                name.clone_into(&mut current);
            }
            named(name);
            let family = families.entry(name.to_owned()).or_default();
            assert_eq!(family.samples, 0, "after its values: {line:?}");
            let place = match word {
                "HELP" => &mut family.help,
                _ => &mut family.kind,
            };
            assert!(!said.trim().is_empty() && place.is_none(), "{line:?}");
            *place = Some(said.to_owned());
            continue;
        }
        assert!(
            !line.starts_with('#') && !line.trim().is_empty(),
            "{line:?}"
        );
        let sample = sample(line).unwrap_or_else(|| panic!("no sample: {line:?}"));
        assert_eq!(sample.name, current, "away from its kin: {line:?}");
        let family = families.get_mut(&current).unwrap();
        family.samples += 1;
        let counts = family.kind.as_deref() == Some("counter");
        assert!(
            !sample.value.is_nan() && (!counts || sample.value >= 0.0),
            "{line:?}"
        );
        let series = (sample.name.clone(), sample.labels.clone());
        assert!(seen.insert(series), "twice: {line:?}");
        samples.push(sample);
    }
    for (name, family) in &families {
        let kind = family.kind.as_deref();
        let kind = kind.unwrap_or_else(|| panic!("{name} has no type"));
        assert!(["counter", "gauge"].contains(&kind), "{name} is a {kind}");
        assert!(family.help.is_some(), "{name} has no help");
        assert!(family.samples > 0, "{name} has no value");
        assert_eq!(
            name.ends_with("_total"),
            kind == "counter",
            "{name} is a {kind}"
        );
    }
    samples
}

/// Base units, and none of the words that say nothing.
fn named(name: &str) {
    let mut bytes = name.bytes();
    assert!(
        bytes.next().is_some_and(|byte| byte.is_ascii_lowercase()),
        "{name}"
    );
    assert!(
        bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
        "{name}"
    );
    let odd = [
        "ms",
        "milliseconds",
        "us",
        "microseconds",
        "ns",
        "minutes",
        "hours",
        "kb",
        "kib",
        "mb",
        "mib",
        "kilobytes",
        "megabytes",
        "percent",
        "count",
        "counter",
        "gauge",
        "metric",
        "bucket",
        "sum",
    ];
    let found = name.split('_').find(|word| odd.contains(word));
    assert_eq!(found, None, "{name}");
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let good = !label.is_empty() && !label.starts_with("__");
            let good = good
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            let (value, after) = quoted(after)?;
            if !good || labels.insert(label.to_owned(), value).is_some() {
                return None;
            }
            rest = match after.strip_prefix(',') {
                Some(more) => more,
                None => after,
            };
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.strip_prefix(' ')?;
    if value.contains(' ') {
        return None;
    }
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().ok()?,
    })
}

/// What is before the closing quote, and what is after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                it @ ('\\' | '"') => it,
                _ => return None,
            }),
            it => value.push(it),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::read;

    #[test]
    fn what_is_well_said_is_read_and_the_rest_is_not() {
        let good = "# HELP a_bytes What.\n# TYPE a_bytes gauge\na_bytes{x=\"1\\\"\\\\\\n\",y=\"\"} 1.5\na_bytes 2\n";
        let samples = read(good);
        assert_eq!(samples[0].labels["x"], "1\"\\\n");
        assert_eq!((samples[0].value, samples[1].value), (1.5, 2.0));
        for (from, to) in [
            ("# HELP a_bytes What.\n", ""),
            ("# TYPE a_bytes gauge\n", ""),
            ("gauge", "counter"),
            ("gauge", "number"),
            ("a_bytes", "a_milliseconds"),
            ("a_bytes", "aBytes"),
            ("\\n", "\\t"),
            ("y=", "x="),
            ("a_bytes 2\n", "a_bytes 2"),
            ("a_bytes 2\n", "a_bytes 2 \n"),
            ("a_bytes 2\n", "b_bytes 2\n"),
            ("a_bytes 2\n", "a_bytes 2\na_bytes 3\n"),
            ("a_bytes 2\n", "a_bytes NaN\n"),
            ("a_bytes 2\n", "a_bytes 2\n# TYPE a_bytes gauge\n"),
        ] {
            let bad = good.replace(from, to);
            assert!(catch_unwind(|| read(&bad)).is_err(), "{bad}");
        }
    }
}
