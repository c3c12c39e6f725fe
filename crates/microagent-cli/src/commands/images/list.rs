//! `microagent images list`.

use clap::Args;
use microagent::{Error, ImageFilter, ImageSortKey, ImageSummary, Microagent, Timestamp};
use serde::Serialize;

use crate::{
    cli::Globals,
    output::{self, Screen, short, size, table, to_the_second},
    surroundings,
    template::Template,
};

/// Every image, a row each. SIZE is what it takes on the disk, base disk included; UNIQUE is what comes
/// free when it alone is removed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent images list --filter used=false --sort size")]
pub(crate) struct ListArgs {
    /// Only those with this: reference=PATTERN (with *), digest=BEGINNING, platform=OS/ARCH,
    /// registry=HOST, used=true|false (by a workspace), signed=true|false (checked); repeatable. One of
    /// several values of a field must hold, and every field
    #[arg(long, value_name = "FIELD=VALUE")]
    filter: Vec<ImageFilter>,
    /// Print this text for each, with each {{field}} filled in, named as in JSON: '{{reference}} {{unique_bytes}}'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<Template>,
    /// Order them by reference, size (unique), used or pulled
    #[arg(long, value_name = "FIELD", default_value = "reference")]
    sort: ImageSortKey,
}

#[derive(Serialize)]
struct List {
    images: Vec<ImageSummary>,
}

pub(crate) fn run(args: &ListArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut images = microagent.images().list()?;
    images.retain(|row| ImageFilter::all_hold(&args.filter, row));
    args.sort.sort(&mut images);
    if let Some(template) = &args.format {
        for row in &images {
            output::to_stdout(&output::clean(&template.fill(row)?));
        }
        return Ok(0);
    }
    if screen.only_names(images.iter().map(|row| row.record.reference.familiar())) {
        return Ok(0);
    }
    screen.result(&List { images }, |list| {
        let rows: Vec<_> = list.images.iter().map(row).collect();
        let headings = [
            "IMAGE",
            "DIGEST",
            "PLATFORM",
            "SIZE",
            "SHARED",
            "UNIQUE",
            "LAST USED",
        ];
        table(&headings, &rows)
    });
    Ok(0)
}

fn row(row: &ImageSummary) -> Vec<String> {
    let record = &row.record;
    let used = record.last_used.unwrap_or(record.pulled_at);
    vec![
        record.reference.familiar(),
        short(&record.digest.to_string()).to_owned(),
        record.platform.to_string(),
        size(row.stored_bytes),
        size(row.shared_bytes),
        size(row.unique_bytes),
        to_the_second(Timestamp(used)),
    ]
}
