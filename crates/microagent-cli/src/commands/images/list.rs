//! `microagent images list`.

use microagent::{Error, ImageRecord, Microagent, Timestamp};
use serde::Serialize;

use crate::{
    cli::Globals,
    output::{Screen, short, size, table},
    surroundings,
};

#[derive(Serialize)]
struct List {
    images: Vec<ImageRecord>,
}

pub(crate) fn run(globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let list = List {
        images: microagent.images().list()?,
    };
    screen.result(&list, |list| {
        let rows: Vec<_> = list.images.iter().map(row).collect();
        table(&["IMAGE", "DIGEST", "PLATFORM", "SIZE", "LAST USED"], &rows)
    });
    Ok(0)
}

fn row(record: &ImageRecord) -> Vec<String> {
    let used = record.last_used.unwrap_or(record.pulled_at);
    // To the second is enough for people.
    let used = Timestamp(used).to_string();
    vec![
        record.reference.familiar(),
        short(&record.digest.to_string()).to_owned(),
        record.platform.to_string(),
        size(record.size_bytes),
        used.split('.').next().unwrap_or(&used).replace('T', " "),
    ]
}
