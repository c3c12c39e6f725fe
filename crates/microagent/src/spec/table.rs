//! Tables: the keys they have, the keys they have not and what to do instead, and the rules
//! between keys that a schema can tell.

use std::{cell::RefCell, rc::Rc};

use serde_json::{Map, Value as Json, json};

use super::{
    kind::{Kind, Reader, mismatch, prefixed},
    nearest::nearest,
    types::SpecKey,
    yaml::{Entry, Node, Resolved, Scalar, Value},
};

/// Where the value of one key is put while its table is read.
pub(super) struct Slot<T>(Rc<RefCell<Option<T>>>);

impl<T> Slot<T> {
    fn new() -> Self {
        Self(Rc::new(RefCell::new(None)))
    }

    /// The value, if the key was there or has a default.
    pub(super) fn take(&self) -> Option<T> {
        self.0.borrow_mut().take()
    }

    fn put(&self, value: Option<T>) {
        *self.0.borrow_mut() = value;
    }
}

/// What happens to a key's slot when its table is read: the value that stands there, or none.
type Fill = Box<dyn Fn(Option<&Node>, &mut Reader)>;

struct Field {
    key: &'static str,
    row: SpecKey,
    /// The keys inside it.
    rows: Vec<SpecKey>,
    schema: Map<String, Json>,
    fill: Fill,
}

/// A rule between the keys of one table.
enum Rule {
    OneOf(&'static [&'static str]),
    Needs(&'static str, &'static str),
    Excludes(&'static str, &'static str),
    /// Each is required unless the flag says false.
    UnlessOff(&'static str, &'static [&'static str]),
}

/// A table under construction.
pub(super) struct Table {
    what: &'static str,
    fields: Vec<Field>,
    absent: &'static [(&'static str, &'static str)],
    rules: Vec<Rule>,
}

impl Table {
    /// A table that is `what`.
    pub(super) fn new(what: &'static str) -> Self {
        Self {
            what,
            fields: Vec::new(),
            absent: &[],
            rules: Vec::new(),
        }
    }

    /// A key that may be left out.
    pub(super) fn optional<T: 'static>(
        &mut self,
        key: &'static str,
        meaning: &'static str,
        kind: Kind<T>,
    ) -> Slot<T> {
        self.add(key, meaning, kind, false, None)
    }

    /// A key that must be there.
    pub(super) fn required<T: 'static>(
        &mut self,
        key: &'static str,
        meaning: &'static str,
        kind: Kind<T>,
    ) -> Slot<T> {
        self.add(key, meaning, kind, true, None)
    }

    /// A key that has the value `default`, written as in the file, when it is left out.
    pub(super) fn default<T: 'static>(
        &mut self,
        key: &'static str,
        default: &'static str,
        meaning: &'static str,
        kind: Kind<T>,
    ) -> Slot<T> {
        self.add(key, meaning, kind, false, Some(default))
    }

    fn add<T: 'static>(
        &mut self,
        key: &'static str,
        meaning: &'static str,
        kind: Kind<T>,
        required: bool,
        default: Option<&'static str>,
    ) -> Slot<T> {
        let slot = Slot::new();
        let filled = Slot(Rc::clone(&slot.0));
        let mut schema = kind.schema.clone();
        schema.insert("description".to_owned(), json!(meaning));
        if let Some(default) = default {
            schema.insert("default".to_owned(), as_json(&Scalar::plain(default)));
        }
        self.fields.push(Field {
            key,
            row: SpecKey {
                path: key.to_owned(),
                takes: kind.what.clone(),
                default: default.map(str::to_owned),
                required,
                meaning,
            },
            rows: prefixed(&kind.rows, key),
            schema,
            fill: Box::new(move |node, reader| {
                let value = match (node, default) {
                    (Some(node), _) => {
                        reader.within(format!(".{key}"), |reader| kind.read(node, reader))
                    }
                    (None, Some(default)) => kind.read(&scalar(default), reader),
                    (None, None) => None,
                };
                filled.put(value);
            }),
        });
        slot
    }

    /// Keys that people look for and that there are none of, each with what to do instead.
    pub(super) fn absent(&mut self, absent: &'static [(&'static str, &'static str)]) {
        self.absent = absent;
    }

    /// Exactly one of `keys` must be there.
    pub(super) fn one_of(&mut self, keys: &'static [&'static str]) {
        self.rules.push(Rule::OneOf(keys));
    }

    /// Where `key` is, `other` must be.
    pub(super) fn needs(&mut self, key: &'static str, other: &'static str) {
        self.rules.push(Rule::Needs(key, other));
    }

    /// Where `key` is, `other` must not be.
    pub(super) fn excludes(&mut self, key: &'static str, other: &'static str) {
        self.rules.push(Rule::Excludes(key, other));
    }

    /// `keys` must be there unless `flag` is false.
    pub(super) fn unless_off(&mut self, flag: &'static str, keys: &'static [&'static str]) {
        self.rules.push(Rule::UnlessOff(flag, keys));
    }

    /// The kind that reads the table, fills the slots and makes a `T` of them. `make` may object
    /// to what makes no sense.
    pub(super) fn build<T: 'static>(
        self,
        make: impl Fn(&Node, &mut Reader) -> Option<T> + 'static,
    ) -> Kind<T> {
        let rows = self
            .fields
            .iter()
            .flat_map(|field| std::iter::once(field.row.clone()).chain(field.rows.clone()))
            .collect();
        let mut kind = Kind::new(
            self.what,
            Json::Object(self.schema()),
            move |node, reader| {
                let Value::Table(entries) = &node.value else {
                    return mismatch(node, self.what, reader);
                };
                self.fill(node, entries, reader);
                make(node, reader)
            },
        );
        kind.rows = rows;
        kind
    }

    fn fill(&self, node: &Node, entries: &[Entry], reader: &mut Reader) {
        for entry in entries {
            if !self.has(&entry.key) {
                reader.refuse(entry.at, self.unknown(&entry.key));
            }
        }
        for field in &self.fields {
            let value = node.get(field.key);
            if value.is_none() && field.row.required {
                reader.refuse(node.at, format!("{} is missing", field.key));
            }
            (field.fill)(value, reader);
        }
        for rule in &self.rules {
            rule.check(node, entries, reader);
        }
    }

    fn has(&self, key: &str) -> bool {
        self.fields.iter().any(|field| field.key == key)
    }

    /// What to say about a key that there is none of.
    fn unknown(&self, key: &str) -> String {
        let short: String = key.chars().take(60).collect();
        if let Some((_, instead)) = self.absent.iter().find(|(absent, _)| *absent == key) {
            return format!("there is no {short} here: {instead}");
        }
        let keys = || self.fields.iter().map(|field| field.key);
        if let Some(near) = nearest(key, keys()) {
            return format!("there is no {short} here; did you mean {near}?");
        }
        let deeper = self.fields.iter().flat_map(|field| &field.rows);
        let inside = deeper.map(|row| row.path.as_str()).find(|path| {
            path.rsplit('.')
                .next()
                .is_some_and(|last| nearest(key, [last]).is_some())
        });
        match inside {
            Some(path) => format!("there is no {short} here; did you mean {path}?"),
            None => format!(
                "there is no {short} here; the keys are {}",
                keys().collect::<Vec<_>>().join(", ")
            ),
        }
    }

    fn schema(&self) -> Map<String, Json> {
        let properties: Map<String, Json> = self
            .fields
            .iter()
            .map(|field| (field.key.to_owned(), Json::Object(field.schema.clone())))
            .collect();
        let mut schema = Map::new();
        schema.insert("type".to_owned(), json!("object"));
        schema.insert("properties".to_owned(), Json::Object(properties));
        schema.insert("additionalProperties".to_owned(), json!(false));
        let required: Vec<_> = self
            .fields
            .iter()
            .filter(|field| field.row.required)
            .map(|field| field.key)
            .collect();
        if !required.is_empty() {
            schema.insert("required".to_owned(), json!(required));
        }
        let rules: Vec<Json> = self.rules.iter().map(Rule::schema).collect();
        if !rules.is_empty() {
            schema.insert("allOf".to_owned(), Json::Array(rules));
        }
        schema
    }
}

impl Rule {
    fn check(&self, node: &Node, entries: &[Entry], reader: &mut Reader) {
        let has = |key: &str| node.get(key).is_some();
        match self {
            Self::OneOf(keys) => match keys.iter().filter(|key| has(key)).count() {
                1 => {}
                0 => reader.refuse(node.at, format!("it needs {}", keys.join(" or "))),
                _ => reader.refuse(node.at, format!("give one of {}", keys.join(" and "))),
            },
            Self::Needs(key, other) if has(key) && !has(other) => {
                reader.refuse(node.at, format!("{key} needs {other}"));
            }
            Self::Excludes(key, other) if has(key) && has(other) => {
                let at = entries
                    .iter()
                    .find(|entry| entry.key == *other)
                    .map_or(node.at, |entry| entry.at);
                reader.refuse(
                    at,
                    format!("{key} and {other} exclude each other; give one"),
                );
            }
            Self::UnlessOff(flag, keys) if !is_off(node, flag) => {
                for key in keys.iter().filter(|key| !has(key)) {
                    reader.refuse(node.at, format!("{key} is missing"));
                }
            }
            _ => {}
        }
    }

    fn schema(&self) -> Json {
        match self {
            Self::OneOf(keys) => {
                let each: Vec<_> = keys.iter().map(|key| json!({"required": [key]})).collect();
                json!({"oneOf": each})
            }
            Self::Needs(key, other) => json!({"dependentRequired": {*key: [other]}}),
            Self::Excludes(key, other) => json!({"not": {"required": [key, other]}}),
            Self::UnlessOff(flag, keys) => json!({"anyOf": [
                {"properties": {*flag: {"const": false}}, "required": [flag]},
                {"required": keys},
            ]}),
        }
    }
}

fn is_off(node: &Node, flag: &str) -> bool {
    match node.get(flag).map(|node| &node.value) {
        Some(Value::Scalar(scalar)) => scalar.resolve() == Resolved::Bool(false),
        _ => false,
    }
}

fn scalar(text: &str) -> Node {
    Node {
        at: super::yaml::Position::START,
        value: Value::Scalar(Scalar::plain(text)),
    }
}

fn as_json(scalar: &Scalar) -> Json {
    match scalar.resolve() {
        Resolved::Null => Json::Null,
        Resolved::Bool(flag) => json!(flag),
        Resolved::Integer(number) => i64::try_from(number).map_or(Json::Null, |n| json!(n)),
        Resolved::Float(number) => json!(number),
        Resolved::Text(text) => json!(text),
    }
}
