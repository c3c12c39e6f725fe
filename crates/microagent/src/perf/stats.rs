//! What a list of measurements says.

use serde::{Deserialize, Serialize};

/// A few numbers that stand for many.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The smallest.
    pub min: f64,
    /// Half of them are no larger.
    pub p50: f64,
    /// 95 of 100 of them are no larger.
    pub p95: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of `samples`; `None` if there is none, or one is no number.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        if samples.iter().any(|sample| !sample.is_finite()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            min: *sorted.first()?,
            p50: percentile(&sorted, 0.50)?,
            p95: percentile(&sorted, 0.95)?,
            max: *sorted.last()?,
        })
    }
}

/// Between two of them where it is none of them: of two the 50th is their mean.
fn percentile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = part * (sorted.len().checked_sub(1)?) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    let (low, high) = (*sorted.get(below)?, *sorted.get(above)?);
    Some(low + (high - low) * place.fract())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_where_they_should_be() {
        let hundred: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        let summary = Summary::of(&hundred).unwrap();
        assert_eq!(
            [summary.min, summary.p50, summary.p95, summary.max],
            [0.0, 50.0, 95.0, 100.0]
        );
        let two = Summary::of(&[3.0, 1.0]).unwrap();
        assert_eq!([two.min, two.p50, two.max], [1.0, 2.0, 3.0]);
        assert!((two.p95 - 2.9).abs() < 1e-9);
        assert_eq!(Summary::of(&[4.0]).unwrap().p95, 4.0);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    }

    proptest! {
        #[test]
        fn they_are_in_order(samples in prop::collection::vec(0.0_f64..1e12, 1..50)) {
            let it = Summary::of(&samples).unwrap();
            prop_assert!(it.min <= it.p50 && it.p50 <= it.p95 && it.p95 <= it.max);
        }
    }
}
