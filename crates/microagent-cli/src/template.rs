//! `--format`: a text with `{{field}}` in it, filled from what JSON would show.

use std::str::FromStr;

use serde::Serialize;
use serde_json::Value;

/// A template. Fields are named as in JSON, with dots into objects and lists: `{{image.digest}}`,
/// `{{network.ports.0.host_port}}`. `\n` and `\t` mean what they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(String),
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (field, after) = after
                .split_once("}}")
                .ok_or("a {{ without its }}; write {{field}}")?;
            let field = field.trim().trim_start_matches('.');
            if field.is_empty() {
                return Err("{{}} names no field; write {{field}}, as it is named in JSON".into());
            }
            pieces.push(Piece::Text(unescape(before)));
            pieces.push(Piece::Field(field.to_owned()));
            rest = after;
        }
        pieces.push(Piece::Text(unescape(rest)));
        if pieces.len() == 1 {
            return Err(format!(
                "{text:?} names no field; write {{{{field}}}}, as it is named in JSON"
            ));
        }
        Ok(Self(pieces))
    }
}

fn unescape(text: &str) -> String {
    text.replace("\\n", "\n").replace("\\t", "\t")
}

impl Template {
    /// The template filled with the fields of `value`, as a line.
    ///
    /// # Errors
    /// The name of a field that is not there, and those that are.
    pub(crate) fn fill(&self, value: &impl Serialize) -> Result<String, microagent::Error> {
        let invalid = |reason| microagent::Error::Invalid {
            option: "--format",
            reason,
        };
        let value = serde_json::to_value(value).map_err(|error| invalid(error.to_string()))?;
        let mut line = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Field(path) => line.push_str(&field(&value, path).map_err(invalid)?),
            }
        }
        line.push('\n');
        Ok(line)
    }
}

fn field(value: &Value, path: &str) -> Result<String, String> {
    let mut at = value;
    for part in path.split('.') {
        let next = match at {
            Value::Object(fields) => fields.get(part),
            Value::Array(items) => part.parse().ok().and_then(|at: usize| items.get(at)),
            // What there is not now has no fields now.
            Value::Null => return Ok(String::new()),
            _ => None,
        };
        at = next.ok_or_else(|| match at {
            Value::Object(fields) => {
                let names: Vec<_> = fields.keys().map(String::as_str).collect();
                format!("there is no {path} here; there are {}", names.join(", "))
            }
            Value::Array(items) => format!("there is no {path} here; there are {}", items.len()),
            _ => format!("there is no {path} here"),
        })?;
    }
    Ok(match at {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fill(template: &str, value: &Value) -> Result<String, String> {
        let template: Template = template.parse()?;
        template.fill(value).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_are_filled_in_by_their_path() {
        let value = json!({ "name": "a", "n": { "ports": [{ "p": 80 }] }, "ok": true, "no": null });
        for (template, filled) in [
            ("{{name}}", "a\n"),
            ("{{ .name }}", "a\n"),
            ("x {{n.ports.0.p}}\\t{{ok}} y", "x 80\ttrue y\n"),
            ("{{n.ports}}", "[{\"p\":80}]\n"),
            ("{{no}}|{{no.deeper}}", "|\n"),
        ] {
            assert_eq!(fill(template, &value), Ok(filled.to_owned()), "{template}");
        }
    }

    #[test]
    fn a_wrong_template_says_what_would_be_right() {
        let value = json!({ "name": "a", "n": { "m": [1] } });
        for (template, words) in [
            ("plain", "{{field}}"),
            ("{{", "}}"),
            ("{{}}", "names no field"),
            ("{{nmae}}", "there are n, name"),
            ("{{n.m.1}}", "there are 1"),
            ("{{name.x}}", "no name.x"),
        ] {
            let error = fill(template, &value).unwrap_err();
            assert!(error.contains(words), "{template}: {error}");
        }
    }
}
