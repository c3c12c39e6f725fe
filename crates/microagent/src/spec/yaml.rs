//! YAML text to a small tree in which everything knows where it stood.
//!
//! The parser gives events; this makes values of them and bounds what they may cost: the size of
//! the text, how deep it nests, and how many values there are once aliases are followed.

use std::{collections::BTreeMap, fmt};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput};

/// The longest text that is read, in bytes.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// How deep lists and tables may nest.
const MAX_DEPTH: usize = 32;

/// The most values of a document, those that aliases repeat counted each time; a long text counts
/// as one for every [`TEXT_UNIT`] bytes.
const MAX_NODES: usize = 20_000;

/// See [`MAX_NODES`].
const TEXT_UNIT: usize = 256;

/// A place in the text, both numbers counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Position {
    /// Where every text begins.
    pub(super) const START: Self = Self { line: 1, column: 1 };
}

impl From<&Marker> for Position {
    fn from(marker: &Marker) -> Self {
        Self {
            line: marker.line().max(1),
            column: marker.col() + 1,
        }
    }
}

impl From<Span> for Position {
    fn from(span: Span) -> Self {
        Self::from(&span.start)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A value and where it stood.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
}

impl Node {
    /// The value under `key`, if this is a table that has one.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Table(entries) => entries
                .iter()
                .find(|entry| entry.key == key)
                .map(|entry| &entry.node),
            _ => None,
        }
    }

    fn count(&self) -> usize {
        1 + match &self.value {
            Value::Scalar(scalar) => scalar.text.len() / TEXT_UNIT,
            Value::List(nodes) => nodes.iter().map(Self::count).sum(),
            Value::Table(entries) => entries.iter().map(|entry| entry.node.count()).sum(),
        }
    }
}

/// What a node is.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// One key of a table and what is under it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Position,
    pub(super) node: Node,
}

/// A value that is neither list nor table, as it was written.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Whether it stands without quotes, so that it may be something else than text.
    pub(super) plain: bool,
}

/// What a scalar is by YAML 1.2's core schema.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Resolved<'a> {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(&'a str),
}

impl Scalar {
    /// A scalar that stands without quotes.
    pub(super) fn plain(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            plain: true,
        }
    }

    /// What it is.
    pub(super) fn resolve(&self) -> Resolved<'_> {
        if !self.plain {
            return Resolved::Text(&self.text);
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => Resolved::Null,
            "true" | "True" | "TRUE" => Resolved::Bool(true),
            "false" | "False" | "FALSE" => Resolved::Bool(false),
            text => integer(text)
                .map(Resolved::Integer)
                .or_else(|| float(text).map(Resolved::Float))
                .unwrap_or(Resolved::Text(text)),
        }
    }
}

fn integer(text: &str) -> Option<i128> {
    let based = |digits: &str, radix| {
        // Rust would take a sign here.
        let unsigned = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
        unsigned
            .then(|| i128::from_str_radix(digits, radix).ok())
            .flatten()
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return based(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return based(digits, 8);
    }
    text.parse().ok()
}

fn float(text: &str) -> Option<f64> {
    let numeric = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    match text.trim_start_matches(['+', '-']) {
        ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN" => Some(f64::NAN),
        // Without a digit it is no number, and Rust knows words for numbers that YAML does not.
        _ if text.bytes().all(numeric) && text.bytes().any(|b| b.is_ascii_digit()) => {
            text.parse().ok()
        }
        _ => None,
    }
}

/// Why a text is no document that could be read.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) at: Position,
    pub(super) reason: String,
}

impl Malformed {
    fn new(at: impl Into<Position>, reason: impl Into<String>) -> Self {
        Self {
            at: at.into(),
            reason: reason.into(),
        }
    }
}

impl From<ScanError> for Malformed {
    fn from(error: ScanError) -> Self {
        Self::new(error.marker(), format!("it is no YAML: {}", error.info()))
    }
}

/// Reads the one document in `text`.
///
/// # Errors
/// For a text that is no YAML, is empty, has several documents, tags or a key twice, or costs too
/// much.
pub(super) fn parse(text: &str) -> Result<Node, Malformed> {
    if text.len() > MAX_BYTES {
        return Err(Malformed::new(
            Position::START,
            format!("it is larger than {} KiB", MAX_BYTES / 1024),
        ));
    }
    let mut composer = Composer {
        events: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
        nodes: 0,
    };
    composer.document()
}

struct Composer<'a> {
    events: Parser<'a, StrInput<'a>>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl<'a> Composer<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Malformed> {
        match self.events.next_event() {
            Some(event) => Ok(event?),
            None => Err(Malformed::new(Position::START, "it ends too soon")),
        }
    }

    fn document(&mut self) -> Result<Node, Malformed> {
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
                (Event::StreamEnd, span) => return Err(Malformed::new(span, "it is empty")),
                (event, span) => {
                    let node = self.node(event, span, 0)?;
                    return self.end().map(|()| node);
                }
            }
        }
    }

    fn end(&mut self) -> Result<(), Malformed> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentStart(_), span) => {
                    return Err(Malformed::new(
                        span,
                        "a second document begins here; a spec is one",
                    ));
                }
                _ => {}
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Malformed> {
        let at = Position::from(span);
        self.spend(1, at)?;
        if depth > MAX_DEPTH {
            return Err(Malformed::new(
                at,
                format!("it nests deeper than {MAX_DEPTH} levels"),
            ));
        }
        let (value, anchor) = match event {
            Event::Alias(anchor) => {
                // The parser knows only anchors that came before; one that is not complete is
                // around this very place.
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(Malformed::new(at, "the alias stands inside its own anchor"));
                };
                self.spend(node.count(), at)?;
                return Ok(Node { at, ..node });
            }
            Event::Scalar(text, style, anchor, tag) => {
                untagged(tag.is_some(), at)?;
                self.spend(text.len() / TEXT_UNIT, at)?;
                let plain = style == ScalarStyle::Plain;
                let text = text.into_owned();
                (Value::Scalar(Scalar { text, plain }), anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                untagged(tag.is_some(), at)?;
                (self.list(depth)?, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                untagged(tag.is_some(), at)?;
                (self.table(depth)?, anchor)
            }
            _ => return Err(Malformed::new(at, "a value is missing here")),
        };
        let node = Node { at, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Value, Malformed> {
        let mut nodes = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(nodes)),
                (event, span) => nodes.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn table(&mut self, depth: usize) -> Result<Value, Malformed> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut known = BTreeMap::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Ok(Value::Table(entries));
            }
            let key = self.node(event, span, depth + 1)?;
            let Value::Scalar(Scalar { text, .. }) = key.value else {
                return Err(Malformed::new(
                    key.at,
                    "a key is a word, not a list or table",
                ));
            };
            if let Some(first) = known.insert(text.clone(), key.at) {
                return Err(Malformed::new(
                    key.at,
                    format!("{text} is here twice; the first is at {first}"),
                ));
            }
            let (event, span) = self.next()?;
            let node = self.node(event, span, depth + 1)?;
            entries.push(Entry {
                key: text,
                at: key.at,
                node,
            });
        }
    }

    fn spend(&mut self, nodes: usize, at: Position) -> Result<(), Malformed> {
        self.nodes += nodes;
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        Err(Malformed::new(
            at,
            format!("it has more than {MAX_NODES} values, aliases followed"),
        ))
    }
}

fn untagged(tagged: bool, at: Position) -> Result<(), Malformed> {
    if tagged {
        return Err(Malformed::new(
            at,
            "tags (!…) have no meaning here; leave it out",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> (String, String) {
        let error = parse(text).unwrap_err();
        (error.at.to_string(), error.reason)
    }

    fn resolved(text: &str) -> String {
        let node = parse(text).unwrap();
        match &node.value {
            Value::Scalar(scalar) => format!("{:?}", scalar.resolve()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn scalars_are_what_yaml_1_2_says() {
        for (text, is) in [
            ("yes", "Text(\"yes\")"),
            ("true", "Bool(true)"),
            ("\"true\"", "Text(\"true\")"),
            ("0644", "Integer(644)"),
            ("0o644", "Integer(420)"),
            ("0x10", "Integer(16)"),
            ("0x+1", "Text(\"0x+1\")"),
            ("-5", "Integer(-5)"),
            ("1.5", "Float(1.5)"),
            ("1e3", "Float(1000.0)"),
            ("1.2.3", "Text(\"1.2.3\")"),
            ("inf", "Text(\"inf\")"),
            ("e", "Text(\"e\")"),
            ("~", "Null"),
            ("12:30", "Text(\"12:30\")"),
        ] {
            assert_eq!(resolved(text), is, "{text}");
        }
    }

    #[test]
    fn everything_knows_where_it_stood() {
        let node = parse("a: 1\nb:\n  - x\n  - {c: 'ü', d: [z]}\n").unwrap();
        let list = node.get("b").unwrap();
        assert_eq!(list.at.to_string(), "3:3");
        let Value::List(items) = &list.value else {
            panic!("{list:?}")
        };
        assert_eq!(items[1].get("d").unwrap().at.to_string(), "4:17");
    }

    #[test]
    fn what_is_no_single_plain_document_is_refused() {
        for (text, at, words) in [
            ("", "1:1", "empty"),
            ("# only a comment\n", "2:1", "empty"),
            ("a: 1\n---\nb: 2\n", "2:1", "second document"),
            ("a: 1\nb: 2\na: 3\n", "3:1", "the first is at 1:1"),
            ("a: !!str 1\n", "1:4", "tags"),
            ("a: [1, 2\n", "2:1", "no YAML"),
            ("? [x]\n: y\n", "1:3", "a word"),
            ("a: &x [*x]\n", "1:8", "inside its own"),
            ("a: *none\n", "1:4", "no YAML"),
        ] {
            let (position, reason) = reason(text);
            assert!(reason.contains(words), "{text:?}: {position} {reason}");
            assert_eq!(position, at, "{text:?}: {reason}");
        }
    }

    #[test]
    fn aliases_are_followed_and_bombs_are_not() {
        let node = parse("a: &x [1, 2]\nb: *x\n").unwrap();
        assert!(matches!(&node.get("b").unwrap().value, Value::List(list) if list.len() == 2));

        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let last = format!("*a{}", level - 1);
            let list = vec![last; 9].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        assert!(reason(&bomb).1.contains("values"));
        let deep = "[".repeat(100);
        assert!(reason(&deep).1.contains("deeper"));
        let deep = "- ".repeat(5000);
        assert!(reason(&deep).1.contains("deeper"));
        let large = format!("a: {}", "x".repeat(MAX_BYTES));
        assert!(reason(&large).1.contains("larger"));
    }
}
