//! `microagent images push`.

use clap::Args;
use microagent::{Error, Microagent, Platform, Pushed, Reference};

use crate::{
    cli::Globals,
    output::{Screen, size},
    progress::Progress,
    surroundings,
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent images push debian:12 registry.example.com/team/debian:12")]
pub(crate) struct PushArgs {
    /// The image: its reference, or its digest or the beginning of it
    image: String,
    /// Where it goes, as a reference [default: where its own says]
    #[arg(value_name = "DEST")]
    to: Option<Reference>,
    /// Which of a multi-platform image's images [default: this host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Speak plain HTTP to this registry (HOST[:PORT]); repeatable
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
}

pub(crate) fn run(args: PushArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &args.insecure_registry)?);
    let progress = Progress::new(screen);
    let pushed = microagent
        .images()
        .push(&args.image, args.to.as_ref(), args.platform, &|event| {
            screen.event(&args.image, &event);
            progress.image(&event);
        });
    progress.clear();
    let pushed = pushed?;
    screen.announce(&summary(&pushed));
    screen.result(&pushed, |pushed| {
        format!("{}  {}\n", pushed.reference.familiar(), pushed.digest)
    });
    Ok(0)
}

pub(crate) fn summary(pushed: &Pushed) -> String {
    let layers = |count: usize| match count {
        1 => "1 layer".to_owned(),
        count => format!("{count} layers"),
    };
    let mut text = format!(
        "{}: {} sent ({})",
        pushed.reference.familiar(),
        layers(pushed.layers_sent),
        size(pushed.bytes_sent)
    );
    let there = pushed.layers_existed + pushed.layers_mounted;
    if there > 0 {
        text.push_str(&format!(", {} already there", layers(there)));
    }
    text
}
