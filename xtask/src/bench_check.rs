//! Regressions: figures of now against those that were saved.
//!
//! Only what is of this program and not of the host counts: ratios to something measured in the same
//! session, and sizes.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;

use crate::bench::Figure;

/// From so much more on it is a regression.
const TOLERANCE: f64 = 0.10;

/// The figures of some time, by their names.
type Saved = BTreeMap<String, f64>;

/// Saves what can be compared of `figures` at `path`, beside what is there of other benchmarks.
pub(crate) fn save(path: &Path, figures: &[Figure]) -> anyhow::Result<()> {
    let mut saved = if path.exists() {
        read(path)?
    } else {
        Saved::new()
    };
    take(&mut saved, figures);
    let text = serde_json::to_string_pretty(&saved)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What became worse than what is saved at `path`, a line each.
pub(crate) fn regressions(path: &Path, figures: &[Figure]) -> anyhow::Result<Vec<String>> {
    worse(&read(path)?, figures)
        .with_context(|| format!("nothing that was measured is in {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Saved> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what --save writes", path.display()))
}

fn take(saved: &mut Saved, figures: &[Figure]) {
    let ours = figures.iter().filter(|figure| figure.is_of_ours());
    saved.extend(ours.map(|figure| (figure.name.clone(), figure.value)));
}

/// `None` if there is nothing to compare.
fn worse(saved: &Saved, figures: &[Figure]) -> Option<Vec<String>> {
    let compared: Vec<_> = figures
        .iter()
        .filter(|figure| figure.is_of_ours())
        .filter_map(|figure| Some((figure, *saved.get(&figure.name)?)))
        .collect();
    let lines = compared
        .iter()
        .filter(|(figure, before)| figure.value > before * (1.0 + TOLERANCE))
        .map(|(figure, before)| {
            let (name, now, unit) = (&figure.name, figure.value, figure.unit);
            format!("{name}: {before:.3} -> {now:.3} {unit}, more than a tenth worse")
        });
    (!compared.is_empty()).then(|| lines.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_tenth_worse_is_told_and_times_of_the_host_are_not() {
        let figure = Figure::new;
        let before = [
            figure("run / bare boot", 1.2, "×"),
            figure("guest binary", 1.5, "MiB"),
            figure("run", 1.0, "s"),
        ];
        let mut saved = Saved::new();
        take(&mut saved, &before);
        // Another benchmark's figures stay.
        take(&mut saved, &[figure("other", 2.0, "×")]);
        assert_eq!(saved.len(), 3);
        let now = [
            figure("run / bare boot", 1.33, "×"),
            figure("guest binary", 1.6, "MiB"),
            figure("run", 9.0, "s"),
            figure("new", 9.0, "×"),
        ];
        let lines = worse(&saved, &now).unwrap();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("run / bare boot: 1.200 -> 1.330 ×"));
        assert_eq!(worse(&saved, &before), Some(Vec::new()));
        assert_eq!(
            worse(&saved, &[figure("other", 2.3, "×")]).unwrap().len(),
            1
        );
    }

    #[test]
    fn nothing_to_compare_is_no_success() {
        let mut saved = Saved::new();
        take(&mut saved, &[Figure::new("run", 1.0, "s")]);
        assert_eq!(worse(&saved, &[Figure::new("run", 1.0, "s")]), None);
        assert_eq!(worse(&saved, &[Figure::new("new", 1.0, "×")]), None);
    }
}
