//! `microagent images tree`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, Microagent, TreeImage};

use crate::{
    cli::Globals,
    completion,
    output::{Screen, short, size},
    surroundings,
};

/// Shows images with their layers, and which other images have the same ones.
#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    /// Only these images: references, or digests or the beginnings of them
    #[arg(add = ArgValueCompleter::new(completion::images))]
    images: Vec<String>,
}

pub(crate) fn run(args: &TreeArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let tree = microagent.images().tree(&args.images)?;
    screen.result(&tree, |tree| tree.images.iter().map(text).collect());
    Ok(0)
}

fn text(image: &TreeImage) -> String {
    let names: Vec<_> = image.references.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "{}  {}  {}\n",
        names.join(", "),
        short(&image.digest.to_string()),
        image.platform
    );
    for (at, layer) in image.layers.iter().enumerate() {
        let branch = match at + 1 == image.layers.len() {
            true => "└─",
            false => "├─",
        };
        text.push_str(&format!(
            "{branch} {}  {}",
            short(&layer.layer.digest.to_string()),
            size(layer.layer.size_bytes)
        ));
        if !layer.also_in.is_empty() {
            let others: Vec<_> = layer.also_in.iter().map(ToString::to_string).collect();
            text.push_str(&format!("  also in {}", others.join(", ")));
        }
        text.push('\n');
    }
    text
}
