//! Reports as a picture: what the whole is made of, and how far the samples lie apart.

use std::{fmt::Write as _, path::PathBuf, str::FromStr};

use super::{PerfReport, Series, Unit};
use crate::{
    error::Result,
    files::{self, Durability},
};

const WIDTH: f64 = 860.0;
/// Where bars begin and end.
const LEFT: f64 = 170.0;
const RIGHT: f64 = 770.0;
const ROW: f64 = 34.0;
const BAR: f64 = 20.0;
/// Distinguishable also without colours: neighbours differ in brightness.
const COLOURS: [&str; 8] = [
    "#4e79a7", "#a0cbe8", "#f28e2b", "#ffbe7d", "#59a14f", "#8cd17d", "#b07aa1", "#d4a6c8",
];

/// A file that a picture is drawn into, by its name: `FILE.svg` or `FILE.html`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    path: PathBuf,
    page: bool,
}

/// A name that is none of a picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no picture; use FILE.svg or FILE.html")]
pub struct InvalidPicture(String);

impl FromStr for Picture {
    type Err = InvalidPicture;

    fn from_str(text: &str) -> std::result::Result<Self, InvalidPicture> {
        let path = PathBuf::from(text);
        let page = match path.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => false,
            Some("html") => true,
            _ => return Err(InvalidPicture(text.to_owned())),
        };
        Ok(Self { path, page })
    }
}

impl Picture {
    /// Draws `reports`, each with the name it is called by.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn draw(&self, reports: &[(&str, &PerfReport)]) -> Result<()> {
        let text = if self.page {
            html(reports)
        } else {
            svg(reports)
        };
        files::write(&self.path, text.as_bytes(), Durability::Synced)
    }
}

/// Draws `reports`, each with the name it is called by, as an SVG document: a bar of the medians of its
/// parts for each, and every sample of what is whole.
#[must_use]
pub fn svg(reports: &[(&str, &PerfReport)]) -> String {
    let mut canvas = Canvas::default();
    let heading = reports.first().map_or_else(String::new, |(_, report)| {
        let subject = &report.subject;
        format!(
            "{} of {} with {}",
            report.benchmark, subject.image.reference, subject.kernel.release
        )
    });
    canvas.text(12.0, 24.0, "start", 15, &heading);
    canvas.y = 40.0;
    for group in groups(reports) {
        canvas.group(&group);
    }
    canvas.end()
}

/// The same as a page.
#[must_use]
pub fn html(reports: &[(&str, &PerfReport)]) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>microagent perf</title>\n\
         <style>body{{margin:2em;font-family:sans-serif}}svg{{max-width:100%}}</style>\n{}</html>\n",
        svg(reports)
    )
}

/// What has one scale: a whole with its parts, of every report.
struct Group<'a> {
    whole: &'a str,
    unit: Unit,
    /// The most of it.
    most: f64,
    rows: Vec<Row<'a>>,
}

struct Row<'a> {
    name: &'a str,
    whole: &'a Series,
    parts: Vec<&'a Series>,
}

/// Parts follow their whole in a report.
fn groups<'a>(reports: &[(&'a str, &'a PerfReport)]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for (name, report) in reports {
        let mut series = report.series.iter().peekable();
        while let Some(whole) = series.next() {
            let mut parts = Vec::new();
            while let Some(part) = series.next_if(|next| next.part) {
                parts.push(part);
            }
            let row = Row { name, whole, parts };
            let same =
                |group: &&mut Group<'_>| group.whole == whole.name && group.unit == whole.unit;
            match groups.iter_mut().find(same) {
                Some(group) => {
                    group.most = group.most.max(whole.summary.max);
                    group.rows.push(row);
                }
                None => groups.push(Group {
                    whole: &whole.name,
                    unit: whole.unit,
                    most: whole.summary.max,
                    rows: vec![row],
                }),
            }
        }
    }
    groups
}

#[derive(Default)]
struct Canvas {
    body: String,
    y: f64,
}

impl Canvas {
    fn group(&mut self, group: &Group<'_>) {
        let scale = |value: f64| {
            let part = if group.most > 0.0 {
                value / group.most
            } else {
                0.0
            };
            LEFT + (RIGHT - LEFT) * part.clamp(0.0, 1.0)
        };
        self.y += 12.0;
        let title = format!("{} (up to {})", group.whole, amount(group.most, group.unit));
        self.text(12.0, self.y + 12.0, "start", 13, &title);
        self.y += 22.0;
        for row in &group.rows {
            self.bar(row, group.unit, scale);
            self.samples(row, scale);
        }
        let first = group.rows.first().map_or(&[][..], |row| &row.parts);
        self.legend(first);
    }

    fn bar(&mut self, row: &Row<'_>, unit: Unit, scale: impl Fn(f64) -> f64) {
        let middle = self.y + BAR * 0.7;
        self.text(LEFT - 8.0, middle, "end", 12, row.name);
        let whole = [row.whole];
        let parts = if row.parts.is_empty() {
            &whole[..]
        } else {
            &row.parts
        };
        let mut from = 0.0;
        for (index, part) in parts.iter().enumerate() {
            let to = from + part.summary.p50;
            let title = format!("{}: {}", part.name, amount(part.summary.p50, unit));
            let _ = writeln!(
                self.body,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"><title>{}</title></rect>",
                scale(from),
                self.y,
                scale(to) - scale(from),
                COLOURS[index % COLOURS.len()],
                escape(&title),
            );
            from = to;
        }
        let median = amount(row.whole.summary.p50, unit);
        self.text(scale(from) + 6.0, middle, "start", 11, &median);
        self.y += BAR + 4.0;
    }

    /// Every sample, and a line from the least to the largest.
    fn samples(&mut self, row: &Row<'_>, scale: impl Fn(f64) -> f64) {
        let y = self.y + 5.0;
        let summary = &row.whole.summary;
        let _ = writeln!(
            self.body,
            "<line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#999\"/>",
            scale(summary.min),
            scale(summary.max),
        );
        for sample in &row.whole.samples {
            let _ = writeln!(
                self.body,
                "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"#333\" fill-opacity=\"0.45\"/>",
                scale(*sample),
            );
        }
        self.y += ROW - BAR;
    }

    fn legend(&mut self, parts: &[&Series]) {
        let mut x = LEFT;
        for (index, part) in parts.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let _ = writeln!(
                self.body,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>",
                self.y,
            );
            self.text(x + 14.0, self.y + 9.0, "start", 11, &part.name);
            x += 100.0;
        }
        self.y += if parts.is_empty() { 0.0 } else { 18.0 };
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, size: u32, text: &str) {
        let text = escape(text);
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    fn end(self) -> String {
        let height = self.y + 12.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
             height=\"{height:.0}\" font-family=\"sans-serif\">\n<rect width=\"100%\" height=\"100%\" \
             fill=\"#fff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

fn amount(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Milliseconds => format!("{value:.2} ms"),
        Unit::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        Unit::PerSecond => format!("{value:.1} /s"),
        Unit::Percent => format!("{value:.2} %"),
        Unit::MebibytesPerSecond => format!("{value:.1} MiB/s"),
    }
}

/// Names of images come from outside.
fn escape(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .fold(String::new(), |mut escaped, c| {
            match c {
                '&' => escaped.push_str("&amp;"),
                '<' => escaped.push_str("&lt;"),
                '>' => escaped.push_str("&gt;"),
                '"' => escaped.push_str("&quot;"),
                _ => escaped.push(c),
            }
            escaped
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::{Benchmark, tests::report};

    #[test]
    fn bars_are_as_long_as_what_they_stand_for() {
        let now = report(
            Benchmark::Boot,
            &[
                ("total", false, &[50.0, 100.0]),
                ("vmm", true, &[25.0]),
                ("kernel", true, &[50.0]),
                ("teardown", false, &[4.0]),
            ],
        );
        let picture = svg(&[("now", &now)]);
        // The scale of a group ends at the largest sample: 100 ms are 600 wide.
        for piece in [
            "<rect x=\"170.0\" y=\"74.0\" width=\"150.0\" height=\"20\" fill=\"#4e79a7\"><title>vmm: 25.00 ms",
            "<rect x=\"320.0\" y=\"74.0\" width=\"300.0\" height=\"20\" fill=\"#a0cbe8\"><title>kernel: 50.00 ms",
            "<title>teardown: 4.00 ms",
            "<circle cx=\"770.0\"",
            "<circle cx=\"470.0\"",
        ] {
            assert!(picture.contains(piece), "{piece}\n{picture}");
        }
        assert_eq!(picture.matches("<circle").count(), 3);
        assert!(html(&[("now", &now)]).contains(&picture));
    }

    #[test]
    fn a_picture_is_what_its_name_says() {
        let folder = tempfile::tempdir().unwrap();
        let now = report(Benchmark::Exec, &[("total", false, &[1.0])]);
        for (name, begins) in [("a.svg", "<svg "), ("a.html", "<!doctype html>")] {
            let path = folder.path().join(name);
            let picture: Picture = path.to_str().unwrap().parse().unwrap();
            picture.draw(&[("now", &now)]).unwrap();
            assert!(std::fs::read_to_string(path).unwrap().starts_with(begins));
        }
        for bad in ["a", "svg", "a.png", ""] {
            assert!(bad.parse::<Picture>().is_err(), "{bad}");
        }
    }

    #[test]
    fn reports_stand_side_by_side_on_one_scale() {
        let now = report(Benchmark::Exec, &[("total", false, &[1.0])]);
        let before = report(Benchmark::Exec, &[("total", false, &[2.0])]);
        let picture = svg(&[("now", &now), ("before", &before)]);
        assert!(picture.contains("total (up to 2.00 ms)"));
        assert!(picture.contains("width=\"300.0\"") && picture.contains("width=\"600.0\""));
    }

    #[test]
    fn nothing_from_outside_is_markup_and_nothing_is_no_number() {
        let mut hostile = report(Benchmark::Boot, &[("total", false, &[0.0])]);
        hostile.subject.image.reference = "<script>\"&\u{1b}".to_owned();
        let picture = svg(&[("</svg>", &hostile)]);
        assert!(
            picture.contains("&lt;script&gt;&quot;&amp; with"),
            "{picture}"
        );
        assert_eq!(picture.matches("</svg>").count(), 1);
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
        assert!(svg(&[]).ends_with("</svg>\n"));
    }
}
