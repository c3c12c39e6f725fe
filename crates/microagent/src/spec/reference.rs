//! The tables of `docs/spec.md`, written from the table of keys.

use super::*;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec.md");
const BEGIN: &str = "<!-- Written from the program; see CONTRIBUTING.md. -->\n";
const END: &str = "<!-- End of what is written from the program. -->\n";

/// The keys, one table of them for each table of the spec.
fn tables() -> String {
    let keys = Spec::keys();
    let mut text = String::new();
    let mut parents = vec![""];
    for key in &keys {
        let parent = parent(&key.path);
        if !parents.contains(&parent) {
            parents.push(parent);
        }
    }
    for wanted in parents {
        match wanted {
            "" => text.push_str("\n### The spec\n"),
            path => text.push_str(&format!("\n### `{path}`\n")),
        }
        text.push_str("\n| key | takes | default | meaning |\n|---|---|---|---|\n");
        for key in keys.iter().filter(|key| parent(&key.path) == wanted) {
            let name = key.path.rsplit('.').next().unwrap_or(&key.path);
            let default = match (&key.default, key.required) {
                (Some(default), _) => format!("`{default}`"),
                (None, true) => "required".to_owned(),
                (None, false) => String::new(),
            };
            text.push_str(&format!(
                "| `{name}` | {} | {default} | {} |\n",
                key.takes, key.meaning
            ));
        }
    }
    text
}

fn parent(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(parent, _)| parent)
}

#[test]
fn the_reference_is_fresh_and_its_specs_are_good() {
    let page = std::fs::read_to_string(PATH).unwrap();
    let (front, rest) = page.split_once(BEGIN).unwrap();
    let (_, back) = rest.split_once(END).unwrap();
    let fresh = format!("{front}{BEGIN}{}\n{END}{back}", tables());
    if std::env::var_os("MICROAGENT_WRITE_DOCS").is_some() {
        std::fs::write(PATH, &fresh).unwrap();
    }
    let page = std::fs::read_to_string(PATH).unwrap();
    assert!(
        page == fresh,
        "docs/spec.md is stale; write it again: MICROAGENT_WRITE_DOCS=1 cargo test -p microagent reference"
    );

    let mut specs = 0;
    for block in page.split("```yaml\n").skip(1) {
        let (text, _) = block.split_once("```").unwrap();
        Spec::parse(text, PATH, "/").unwrap();
        specs += 1;
    }
    assert!(specs > 0);
}
