//! `microagent df`.

use microagent::{DiskUsage, Error, KindUsage, Microagent};

use crate::{
    cli::Globals,
    output::{Screen, size, table},
    surroundings,
};

pub(crate) fn run(globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let usage = microagent.disk_usage()?;
    screen.result(&usage, text);
    Ok(0)
}

fn text(usage: &DiskUsage) -> String {
    let kinds = [
        ("images", &usage.images),
        ("kernels", &usage.kernels),
        ("workspaces", &usage.workspaces),
        ("caches", &usage.caches),
    ];
    let mut rows: Vec<Vec<String>> = kinds.iter().map(|(name, kind)| row(name, kind)).collect();
    let reclaimable = kinds.iter().filter_map(|(_, kind)| kind.reclaimable_bytes);
    rows.push(vec![
        "total".to_owned(),
        String::new(),
        size(usage.total.allocated_bytes),
        String::new(),
        String::new(),
        size(usage.total.apparent_bytes),
        size(reclaimable.sum()),
    ]);
    let headings = [
        "KIND",
        "COUNT",
        "ON DISK",
        "SHARED",
        "UNIQUE",
        "APPARENT",
        "RECLAIMABLE",
    ];
    table(&headings, &rows)
}

fn row(name: &str, kind: &KindUsage) -> Vec<String> {
    let reclaimable = match kind.reclaimable_bytes {
        Some(0) => size(0),
        Some(bytes) => format!("{}  ({})", size(bytes), kind.command),
        None => "not known now".to_owned(),
    };
    vec![
        name.to_owned(),
        kind.count.to_string(),
        size(kind.total.allocated_bytes),
        size(kind.shared.allocated_bytes),
        size(kind.unique.allocated_bytes),
        size(kind.total.apparent_bytes),
        reclaimable,
    ]
}
