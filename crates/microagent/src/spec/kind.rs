//! The kinds of values a spec has. Each kind is one thing that reads, describes itself in a JSON
//! Schema and describes itself in words, so that the three cannot disagree.

use std::rc::Rc;

use serde_json::{Map, Value as Json, json};

use super::{
    error::{FaultClass, SpecFault},
    nearest::nearest,
    types::SpecKey,
    yaml::{Node, Position, Resolved, Value},
};

/// The longest piece of somebody's text that a message repeats, in characters.
const QUOTED: usize = 60;

/// What was found wrong so far, and where we are.
#[derive(Debug, Default)]
pub(super) struct Reader {
    faults: Vec<SpecFault>,
    path: Vec<String>,
}

impl Reader {
    /// Notes a fault of the value that is being read.
    pub(super) fn fault(&mut self, at: Position, class: FaultClass, message: &str) {
        let path = self.path.concat();
        let path = path.strip_prefix('.').unwrap_or(&path);
        let message = match path {
            "" => message.to_owned(),
            path => format!("{path}: {message}"),
        };
        self.faults.push(SpecFault {
            line: at.line,
            column: at.column,
            message,
            class,
        });
    }

    /// Notes that the schema, too, would refuse the value at `at`.
    pub(super) fn refuse(&mut self, at: Position, message: impl AsRef<str>) {
        self.fault(at, FaultClass::Shape, message.as_ref());
    }

    /// Notes a fault that needs more than a schema to be found.
    pub(super) fn object(&mut self, at: Position, message: impl AsRef<str>) {
        self.fault(at, FaultClass::Sense, message.as_ref());
    }

    /// Does `what` with `step` added to the path that messages name.
    pub(super) fn within<T>(&mut self, step: String, what: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step);
        let done = what(self);
        self.path.pop();
        done
    }

    pub(super) fn into_faults(self) -> Vec<SpecFault> {
        self.faults
    }
}

type Read<T> = Rc<dyn Fn(&Node, &mut Reader) -> Option<T>>;

/// A kind of value that becomes a `T`.
pub(super) struct Kind<T> {
    /// What it is, in words that follow "is not" and "takes": `a whole number from 1 to 64`.
    pub(super) what: String,
    pub(super) schema: Map<String, Json>,
    /// The keys inside it.
    pub(super) rows: Vec<SpecKey>,
    read: Read<T>,
}

impl<T> Clone for Kind<T> {
    fn clone(&self) -> Self {
        Self {
            what: self.what.clone(),
            schema: self.schema.clone(),
            rows: self.rows.clone(),
            read: Rc::clone(&self.read),
        }
    }
}

impl<T: 'static> Kind<T> {
    pub(super) fn new(
        what: impl Into<String>,
        schema: Json,
        read: impl Fn(&Node, &mut Reader) -> Option<T> + 'static,
    ) -> Self {
        let schema = match schema {
            Json::Object(schema) => schema,
            _ => Map::new(),
        };
        Self {
            what: what.into(),
            schema,
            rows: Vec::new(),
            read: Rc::new(read),
        }
    }

    /// Reads `node`, or notes why not.
    pub(super) fn read(&self, node: &Node, reader: &mut Reader) -> Option<T> {
        (self.read)(node, reader)
    }

    /// The same kind, whose schema says how many characters it has at most. (Its reader knows.)
    pub(super) fn limited(mut self, max: usize) -> Self {
        self.schema.insert("maxLength".to_owned(), json!(max));
        self
    }

    /// The same kind, made into something else.
    pub(super) fn map<U: 'static>(self, make: impl Fn(T) -> U + 'static) -> Kind<U> {
        let read = self.read;
        Kind {
            what: self.what,
            schema: self.schema,
            rows: self.rows,
            read: Rc::new(move |node, reader| read(node, reader).map(&make)),
        }
    }

    /// The same kind, some of whose values make no sense for a reason no schema tells.
    pub(super) fn and_then<U: 'static>(
        self,
        make: impl Fn(T) -> Result<U, String> + 'static,
    ) -> Kind<U> {
        let read = self.read;
        Kind {
            what: self.what,
            schema: self.schema,
            rows: self.rows,
            read: Rc::new(move |node, reader| {
                make(read(node, reader)?)
                    .map_err(|reason| reader.object(node.at, reason))
                    .ok()
            }),
        }
    }
}

/// What stands there, for a message.
pub(super) fn shown(node: &Node) -> String {
    match &node.value {
        Value::List(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
        Value::Scalar(scalar) => match scalar.resolve() {
            Resolved::Null => "empty".to_owned(),
            Resolved::Text(text) => quoted(text),
            _ => quoted(&scalar.text).trim_matches('"').to_owned(),
        },
    }
}

fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// Notes that `node` is not `what`.
pub(super) fn mismatch<T>(node: &Node, what: &str, reader: &mut Reader) -> Option<T> {
    let message = match shown(node).as_str() {
        "empty" => format!("it is empty; give {what}, or leave the key out"),
        is => format!("it is {is}, not {what}"),
    };
    reader.refuse(node.at, message);
    None
}

/// Any text without a NUL, not empty.
pub(super) fn text() -> Kind<String> {
    let schema = json!({"type": "string", "pattern": "^[^\\x00]+$"});
    Kind::new("text", schema, |node, reader| {
        let text = as_text(node, "text", reader)?;
        if text.is_empty() || text.contains('\0') {
            reader.refuse(node.at, "it is empty, or has a NUL in it");
            return None;
        }
        Some(text.to_owned())
    })
}

fn as_text<'a>(node: &'a Node, what: &str, reader: &mut Reader) -> Option<&'a str> {
    let Value::Scalar(scalar) = &node.value else {
        return mismatch(node, what, reader);
    };
    match scalar.resolve() {
        Resolved::Text(text) => Some(text),
        Resolved::Null => mismatch(node, what, reader),
        _ => {
            let is = shown(node);
            reader.refuse(
                node.at,
                format!("it is {is}, not {what}; write it in quotes"),
            );
            None
        }
    }
}

/// Text that `parse` reads, and of which `pattern` says the same.
pub(super) fn pattern<T: 'static>(
    what: &'static str,
    pattern: &str,
    parse: impl Fn(&str) -> Option<T> + 'static,
) -> Kind<T> {
    let schema = json!({"type": "string", "pattern": pattern});
    Kind::new(what, schema, move |node, reader| {
        let text = as_text(node, what, reader)?;
        let parsed = parse(text);
        if parsed.is_none() {
            reader.refuse(node.at, format!("it is {}, not {what}", quoted(text)));
        }
        parsed
    })
}

/// Text with a grammar that no schema tells.
pub(super) fn parsed<T: 'static, E: std::fmt::Display>(
    what: &'static str,
    parse: impl Fn(&str) -> Result<T, E> + 'static,
) -> Kind<T> {
    Kind::new(what, json!({"type": "string"}), move |node, reader| {
        let text = as_text(node, what, reader)?;
        parse(text)
            .map_err(|error| reader.object(node.at, error.to_string().trim_end_matches('.')))
            .ok()
    })
}

/// What stands there as text: text, a number or a word such as `true`, as it is written.
pub(super) fn written() -> Kind<String> {
    const WHAT: &str = "text, a number, true or false";
    let schema = json!({"type": ["string", "number", "boolean"], "pattern": "^[^\\x00]*$"});
    Kind::new(WHAT, schema, |node, reader| match &node.value {
        Value::Scalar(scalar) if scalar.resolve() == Resolved::Null => {
            reader.refuse(node.at, "it is empty; write \"\" if that is meant");
            None
        }
        Value::Scalar(scalar) if scalar.text.contains('\0') => {
            reader.refuse(node.at, "it has a NUL in it");
            None
        }
        Value::Scalar(scalar) => Some(scalar.text.clone()),
        _ => mismatch(node, WHAT, reader),
    })
}

/// A whole number in a range.
pub(super) fn number<T>(min: T, max: T) -> Kind<T>
where
    T: Copy + Into<u64> + TryFrom<u64> + 'static,
{
    let (low, high): (u64, u64) = (min.into(), max.into());
    let what = format!("a whole number from {low} to {high}");
    let words = what.clone();
    let schema = json!({"type": "integer", "minimum": low, "maximum": high});
    Kind::new(what, schema, move |node, reader| {
        let number = match &node.value {
            Value::Scalar(scalar) => match scalar.resolve() {
                Resolved::Integer(number) => u64::try_from(number).ok(),
                // 512.0 is a whole number in JSON, so it is here.
                Resolved::Float(number) if number.fract() == 0.0 => whole(number),
                _ => None,
            },
            _ => None,
        };
        match number
            .filter(|number| (low..=high).contains(number))
            .and_then(|number| T::try_from(number).ok())
        {
            Some(number) => Some(number),
            None => mismatch(node, &words, reader),
        }
    })
}

fn whole(number: f64) -> Option<u64> {
    // Above this, not every whole number is one of these.
    (0.0..9e15).contains(&number).then_some(number as u64)
}

/// `true` or `false`.
pub(super) fn flag() -> Kind<bool> {
    const WHAT: &str = "true or false";
    Kind::new(
        WHAT,
        json!({"type": "boolean"}),
        |node, reader| match &node.value {
            Value::Scalar(scalar) => match scalar.resolve() {
                Resolved::Bool(flag) => Some(flag),
                _ => mismatch(node, WHAT, reader),
            },
            _ => mismatch(node, WHAT, reader),
        },
    )
}

/// One of some words; other words that people know get an answer of their own.
pub(super) fn choice<T: Copy + 'static>(
    choices: &'static [(&'static str, T)],
    elsewhere: &'static [(&'static str, &'static str)],
) -> Kind<T> {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let what = match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    };
    let wanted = what.clone();
    Kind::new(what, json!({"enum": words}), move |node, reader| {
        let Value::Scalar(scalar) = &node.value else {
            return mismatch(node, &wanted, reader);
        };
        let Resolved::Text(text) = scalar.resolve() else {
            return mismatch(node, &wanted, reader);
        };
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*choice);
        }
        let known = elsewhere.iter().find(|(word, _)| *word == text);
        let near = nearest(text, choices.iter().map(|(word, _)| *word));
        let message = match (known, near) {
            (Some((_, instead)), _) => format!("there is no {text}: {instead}"),
            (None, Some(near)) => format!("it is {}, not {wanted}; {near}?", quoted(text)),
            (None, None) => format!("it is {}, not {wanted}", quoted(text)),
        };
        reader.refuse(node.at, message);
        None
    })
}

/// A list, in order.
pub(super) fn list<T: 'static>(item: Kind<T>, max: usize) -> Kind<Vec<T>> {
    let what = format!("a list, each item {}", item.what);
    let words = what.clone();
    let schema = json!({"type": "array", "items": item.schema, "maxItems": max});
    let rows = prefixed(&item.rows, "[]");
    let mut kind = Kind::new(what, schema, move |node, reader| {
        let Value::List(nodes) = &node.value else {
            return mismatch(node, &words, reader);
        };
        if nodes.len() > max {
            reader.refuse(
                node.at,
                format!("it has {} items, more than {max}", nodes.len()),
            );
            return None;
        }
        let items: Vec<Option<T>> = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| {
                reader.within(format!("[{index}]"), |reader| item.read(node, reader))
            })
            .collect();
        items.into_iter().collect()
    });
    kind.rows = rows;
    kind
}

/// A table whose keys are names.
pub(super) fn names<T: 'static>(
    name: &'static str,
    pattern: &str,
    valid: fn(&str) -> bool,
    value: Kind<T>,
) -> Kind<Vec<(String, T)>> {
    let what = format!("a table of {name}s, each with {}", value.what);
    let words = what.clone();
    let schema = json!({
        "type": "object",
        "propertyNames": {"pattern": pattern},
        "additionalProperties": value.schema,
    });
    Kind::new(what, schema, move |node, reader| {
        let Value::Table(entries) = &node.value else {
            return mismatch(node, &words, reader);
        };
        let pairs: Vec<Option<(String, T)>> = entries
            .iter()
            .map(|entry| {
                if !valid(&entry.key) {
                    reader.refuse(entry.at, format!("{} is no {name}", quoted(&entry.key)));
                    return None;
                }
                reader
                    .within(format!(".{}", entry.key), |reader| {
                        value.read(&entry.node, reader)
                    })
                    .map(|value| (entry.key.clone(), value))
            })
            .collect();
        pairs.into_iter().collect()
    })
}

/// A list, or one item alone. (An item is never a list itself.)
pub(super) fn one_or_many<T: 'static>(item: Kind<T>, max: usize) -> Kind<Vec<T>> {
    let many = list(item.clone(), max);
    let what = format!("{}, or a list of such", item.what);
    let schema = json!({"anyOf": [item.schema, many.schema]});
    let rows = item.rows.clone();
    let mut kind = Kind::new(what, schema, move |node, reader| match &node.value {
        Value::List(_) => many.read(node, reader),
        _ => item.read(node, reader).map(|item| vec![item]),
    });
    kind.rows = rows;
    kind
}

/// One kind if a list stands there, the other one if not.
pub(super) fn list_or<T: 'static>(many: Kind<T>, one: Kind<T>) -> Kind<T> {
    let what = format!("{}, or {}", one.what, many.what);
    let schema = json!({"anyOf": [one.schema, many.schema]});
    Kind::new(what, schema, move |node, reader| match &node.value {
        Value::List(_) => many.read(node, reader),
        _ => one.read(node, reader),
    })
}

pub(super) fn prefixed(rows: &[SpecKey], prefix: &str) -> Vec<SpecKey> {
    rows.iter()
        .map(|row| SpecKey {
            path: match row.path.as_str() {
                path if prefix.is_empty() || path.starts_with('[') => format!("{prefix}{path}"),
                path => format!("{prefix}.{path}"),
            },
            ..row.clone()
        })
        .collect()
}
