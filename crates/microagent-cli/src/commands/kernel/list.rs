//! `microagent kernel list`.

use microagent::{Error, KernelRecord, Microagent, Provenance};
use serde_json::json;

use crate::{
    cli::Globals,
    output::{Screen, size, table},
    surroundings,
};

pub(crate) fn run(globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let list = microagent.kernels().list()?;
    if screen.only_names(list.kernels.iter().map(|record| record.id.clone())) {
        return Ok(0);
    }
    let chosen = microagent
        .kernels()
        .default_kernel()?
        .map(|record| record.id);
    let damaged: Vec<_> = list.damaged.iter().map(ToString::to_string).collect();
    let value = json!({ "kernels": list.kernels, "default": chosen, "damaged": damaged });
    screen.result(&value, |_| {
        let rows: Vec<_> = list
            .kernels
            .iter()
            .map(|record| row(record, chosen.as_deref()))
            .collect();
        let mut text = table(&["KERNEL", "RELEASE", "SIZE", "FROM", "DEFAULT"], &rows);
        for fault in &damaged {
            text.push_str(&format!("damaged: {fault}\n"));
        }
        text
    });
    Ok(0)
}

fn row(record: &KernelRecord, chosen: Option<&str>) -> Vec<String> {
    let mark = if chosen == Some(record.id.as_str()) {
        "yes"
    } else {
        ""
    };
    vec![
        record.id.clone(),
        record.release.clone(),
        size(record.size),
        provenance(&record.provenance),
        mark.to_owned(),
    ]
}

pub(super) fn provenance(provenance: &Provenance) -> String {
    match provenance {
        Provenance::DistributionPackage { packages } => packages.first().map_or_else(
            || "package".to_owned(),
            |package| format!("{} {}", package.name, package.version),
        ),
        Provenance::Build { source, .. } => {
            format!("built from {} {}", source.name, source.version)
        }
        Provenance::Repository { url, channel, .. } => format!("{channel} of {url}"),
        Provenance::Host { .. } => "this host".to_owned(),
        Provenance::File { kernel, .. } => kernel.display().to_string(),
        _ => "elsewhere".to_owned(),
    }
}
