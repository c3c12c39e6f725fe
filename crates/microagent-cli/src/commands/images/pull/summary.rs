//! What a pull was, in one line.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use microagent::{Digest, ImageEvent};

use crate::output::{short, size};

/// What is known of each image so far.
#[derive(Default)]
pub(super) struct Summaries(BTreeMap<String, Summary>);

struct Summary {
    begun: Instant,
    took: Duration,
    layers: usize,
    /// Layers that were in the store.
    here: BTreeSet<Digest>,
    /// Of each layer: how far an earlier pull had come, and how far this one.
    came: BTreeMap<Digest, (u64, u64)>,
    mirror: Option<String>,
    moved: Option<(Digest, Digest)>,
    verified: bool,
}

impl Summaries {
    pub(super) fn hear(&mut self, image: &str, event: &ImageEvent) {
        let summary = self.0.entry(image.to_owned()).or_insert_with(|| Summary {
            begun: Instant::now(),
            took: Duration::ZERO,
            layers: 0,
            here: BTreeSet::new(),
            came: BTreeMap::new(),
            mirror: None,
            moved: None,
            verified: false,
        });
        match event {
            ImageEvent::Resolved { layers, .. } => summary.layers = *layers,
            ImageEvent::LayerExists { digest, .. } => {
                summary.here.insert(*digest);
            }
            ImageEvent::LayerResumed { digest, bytes, .. } => {
                summary.came.insert(*digest, (*bytes, *bytes));
            }
            ImageEvent::LayerProgress { digest, bytes, .. } => {
                summary.came.entry(*digest).or_default().1 = *bytes;
            }
            ImageEvent::FromMirror { mirror, .. } => summary.mirror = Some(mirror.clone()),
            ImageEvent::TagMoved { from, to, .. } => summary.moved = Some((*from, *to)),
            ImageEvent::SignatureVerified { .. } => summary.verified = true,
            ImageEvent::Done { .. } => summary.took = summary.begun.elapsed(),
            _ => {}
        }
    }

    /// The line about `image`; none where nothing was to be done.
    pub(super) fn line(&self, image: &str) -> Option<String> {
        let summary = self.0.get(image)?;
        if summary.layers == 0 && summary.took.is_zero() {
            return None;
        }
        let bytes: u64 = summary
            .came
            .values()
            .map(|(before, now)| now.saturating_sub(*before))
            .sum();
        let resumed: u64 = summary.came.values().map(|(before, _)| before).sum();
        let layers = match summary.layers {
            1 => "1 layer".to_owned(),
            many => format!("{many} layers"),
        };
        let mut line = format!(
            "{image}: {layers}, {} in {:.1} s",
            size(bytes),
            summary.took.as_secs_f64()
        );
        if !summary.here.is_empty() {
            line.push_str(&format!(", {} already here", summary.here.len()));
        }
        if resumed > 0 {
            line.push_str(&format!(", {} from an earlier pull", size(resumed)));
        }
        if let Some(mirror) = &summary.mirror {
            line.push_str(&format!(", from the mirror {mirror}"));
        }
        if summary.verified {
            line.push_str(", signed");
        }
        if let Some((from, to)) = &summary.moved {
            line.push_str(&format!(
                "; the tag moved from {} to {}",
                short(&from.to_string()),
                short(&to.to_string())
            ));
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digit: char) -> Digest {
        let text: String = std::iter::repeat_n(digit, 64).collect();
        format!("sha256:{text}").parse().unwrap()
    }

    #[test]
    fn a_pull_in_a_line() {
        let (a, b, c) = (digest('a'), digest('b'), digest('c'));
        let mut summaries = Summaries::default();
        for event in [
            ImageEvent::Resolved {
                reference: "x:1".into(),
                digest: a,
                layers: 3,
                bytes: 9,
            },
            ImageEvent::LayerExists {
                digest: a,
                bytes: 3,
            },
            ImageEvent::LayerResumed {
                digest: b,
                bytes: 1024,
                total: 4096,
            },
            ImageEvent::LayerProgress {
                digest: b,
                bytes: 4096,
                total: 4096,
            },
            ImageEvent::LayerProgress {
                digest: c,
                bytes: 1024,
                total: 1024,
            },
            ImageEvent::TagMoved {
                reference: "x:1".into(),
                from: a,
                to: b,
            },
            ImageEvent::Done {
                reference: "x:1".into(),
                digest: b,
            },
        ] {
            summaries.hear("x:1", &event);
        }
        let line = summaries.line("x:1").unwrap();
        assert!(
            line.starts_with("x:1: 3 layers, 4.0 KiB in 0.0 s"),
            "{line}"
        );
        assert!(
            line.ends_with(", 1 already here, 1.0 KiB from an earlier pull; the tag moved from aaaaaaaaaaaa to bbbbbbbbbbbb"),
            "{line}"
        );
        assert_eq!(summaries.line("y:1"), None);
    }
}
