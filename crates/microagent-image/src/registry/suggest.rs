//! What was probably meant by a name that a registry does not know.

use super::transport::Failure;
use super::transport::{Ask, Transport};
use crate::error::clip;
use crate::reference::Reference;

const MAX_LIST: u64 = 1 << 20;
/// How many pages of a list are read, and names of them kept.
const MAX_PAGES: usize = 8;
const MAX_NAMES: usize = 20_000;
/// How many names are asked for, and how many of them are shown.
const ASKED: u32 = 1000;
const SHOWN: usize = 3;

/// A sentence about `reference`, which was not found. Whatever fails on the way only makes it shorter.
pub(super) fn hint(transport: &Transport<'_>, reference: &Reference) -> String {
    let plain = "Check the name and the tag.".to_owned();
    let (Some(tag), None) = (reference.tag(), reference.digest()) else {
        return "Check the name and the digest.".into();
    };
    if let Ok((tags, all)) = list(transport, reference.repository(), "tags") {
        let near = nearest(tag, &tags);
        if !near.is_empty() {
            let names: Vec<String> = near.iter().map(|tag| reference.with_tag(tag)).collect();
            return format!("Did you mean {}?", joined(&names, "or"));
        }
        let rest = tags.len().saturating_sub(SHOWN * 2);
        let tags: Vec<String> = tags.into_iter().take(SHOWN * 2).collect();
        return match (tags.is_empty(), rest) {
            (true, _) => format!("{} has no tags.", reference.repository()),
            (false, 0) if all => format!("It has the tags {}.", joined(&tags, "and")),
            (false, _) if all => format!("It has the tags {} and {rest} more.", tags.join(", ")),
            (false, _) => format!("It has the tags {} and many more.", tags.join(", ")),
        };
    }
    let Ok((repositories, _)) = list(transport, "", "repositories") else {
        return plain;
    };
    let near = nearest(reference.repository(), &repositories);
    if near.is_empty() {
        return plain;
    }
    let names: Vec<String> = near
        .iter()
        .map(|name| reference.with_repository(name))
        .collect();
    format!("Did you mean {}?", joined(&names, "or"))
}

/// The tags of a repository, or the repositories of the registry, and whether these are all.
fn list(
    transport: &Transport<'_>,
    repository: &str,
    field: &str,
) -> std::result::Result<(Vec<String>, bool), Failure> {
    let path = match field {
        "tags" => format!("/v2/{repository}/tags/list?n={ASKED}"),
        _ => format!("/v2/_catalog?n={ASKED}"),
    };
    let (mut all, mut whole) = (Vec::new(), false);
    let mut response = transport.ask(&path, Ask::default())?;
    let mut asked = path;
    for page in 1.. {
        if !response.status().is_success() {
            return Err(Failure::passing("there is no list"));
        }
        let next = transport.next_page(&asked, &response);
        let names = names(&transport.bytes(response, MAX_LIST)?, field)?;
        let came = names.len();
        all.extend(names);
        let Some(next) = next else {
            whole = true;
            break;
        };
        if page == MAX_PAGES || all.len() > MAX_NAMES || came == 0 {
            break;
        }
        // What came is of use, whatever becomes of the rest.
        response = match transport.ask_at(&next, Ask::default()) {
            Ok(response) if response.status().is_success() => response,
            _ => break,
        };
        asked = next;
    }
    // Pages may overlap.
    all.sort();
    all.dedup();
    Ok((all, whole))
}

/// The names on one page.
fn names(bytes: &[u8], field: &str) -> std::result::Result<Vec<String>, Failure> {
    let list: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| Failure::passing(error.to_string()))?;
    let names = list[field]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    Ok(names
        .iter()
        .filter_map(|name| name.as_str())
        .filter(|name| name.len() <= 255)
        .map(clip)
        .collect())
}

/// Those of `names` that `typed` may stand for, best first.
fn nearest<'n>(typed: &str, names: &'n [String]) -> Vec<&'n str> {
    let most = (typed.chars().count() / 3).max(1);
    let mut ranked: Vec<(usize, &str)> = names
        .iter()
        .filter_map(|name| {
            let distance = distance(typed, name);
            // `12` and `12.5`, `trixie` and `trixie-slim`.
            let begins =
                typed.len() >= 2 && (name.starts_with(typed) || typed.starts_with(&**name));
            match (distance <= most, begins) {
                (true, _) => Some((distance, name.as_str())),
                (false, true) => Some((most + 1, name.as_str())),
                (false, false) => None,
            }
        })
        .collect();
    ranked.sort();
    ranked.truncate(SHOWN);
    ranked.into_iter().map(|(_, name)| name).collect()
}

/// How many letters must be changed, added, left out or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut least = (last[j] + usize::from(x != y))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

fn joined(names: &[String], word: &str) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} {word} {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_meant() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let tags = names(&[
            "latest",
            "12",
            "12.5",
            "bookworm",
            "bookworm-slim",
            "trixie",
            "7",
        ]);
        for (typed, expect) in [
            ("lastest", &["latest"][..]),
            ("bookwrom", &["bookworm", "bookworm-slim"][..1]),
            ("12.4", &["12.5", "12"]),
            ("bookworm-slin", &["bookworm-slim", "bookworm"]),
            ("sid", &[]),
        ] {
            assert_eq!(nearest(typed, &tags), expect, "{typed}");
        }
        assert_eq!(joined(&names(&["a", "b", "c"]), "or"), "a, b or c");
    }

    proptest! {
        #[test]
        fn a_distance_is_one(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
            prop_assert!(distance(&a, &b) <= a.len().max(b.len()));
        }
    }
}
