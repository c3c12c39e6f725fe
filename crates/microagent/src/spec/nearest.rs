//! What somebody meant who wrote a word that there is none of.

/// The candidate that `word` is most like, if it is like one at all.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let word = plain(word);
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A word without what people vary: case, `_` and `-`. Bounded: the text is somebody else's.
fn plain(word: &str) -> String {
    word.chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .flat_map(char::to_lowercase)
        .take(64)
        .collect()
}

/// How many letters must be put in, taken out, replaced or swapped with their neighbour.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before = vec![0; to.len() + 1];
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i; to.len() + 1];
        for j in 1..=to.len() {
            let differs = usize::from(from[i - 1] != to[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + differs);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likely_words_are_found_and_unlikely_ones_are_not() {
        let keys = ["memoryMiB", "cpuCount", "sizeMiB", "image", "name"];
        for (word, meant) in [
            ("memoryMib", Some("memoryMiB")),
            ("memory_mib", Some("memoryMiB")),
            ("MEMORY-MIB", Some("memoryMiB")),
            ("cpuCuont", Some("cpuCount")),
            ("imgae", Some("image")),
            ("images", Some("image")),
            ("nmae", Some("name")),
            ("ports", None),
            ("", None),
            ("ääääääää", None),
        ] {
            assert_eq!(nearest(word, keys), meant, "{word}");
        }
    }
}
