//! `microagent images pull`.

mod summary;

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{
    Error, ImageArrival, ImageEvent, ImagePullOptions, Microagent, Platform, VerifyKey,
};
use serde::Serialize;

use self::summary::Summaries;
use crate::{
    cli::{EXIT_FAILURE, Form, Globals},
    completion,
    output::Screen,
    progress::Progress,
    surroundings,
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent images pull alpine:3
  microagent images pull --verify-key cosign.pub registry.example.com/app:1")]
pub(crate) struct PullArgs {
    /// The images: NAME[:TAG] or NAME@sha256:DIGEST, with the registry in front
    #[arg(required = true, add = ArgValueCompleter::new(completion::images))]
    images: Vec<String>,
    /// Which of a multi-platform image's images, such as linux/amd64 [default: this host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Accept only images with a signature of this key (a PEM file with cosign's public key, or any
    /// other of ECDSA, Ed25519 or RSA)
    #[arg(long, value_name = "FILE")]
    verify_key: Option<PathBuf>,
    /// Speak plain HTTP to this registry (HOST[:PORT]); repeatable
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
}

/// What several pulls gave.
#[derive(Serialize)]
struct List {
    images: Vec<ImageArrival>,
}

pub(crate) fn run(args: &PullArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &args.insecure_registry)?);
    let mut options = ImagePullOptions::new();
    options.platform = args.platform.clone();
    if let Some(path) = &args.verify_key {
        options.verify_key = Some(VerifyKey::read(path)?);
    }
    let progress = Progress::new(screen);
    let summaries = Mutex::new(Summaries::default());
    let pulled =
        microagent
            .images()
            .pull_all(&args.images, &options, &|image, event: ImageEvent| {
                screen.event(image, &event);
                progress.image(&event);
                summaries
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .hear(image, &event);
            });
    progress.clear();
    let summaries = summaries
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let (mut images, mut code) = (Vec::new(), 0);
    for (image, pulled) in args.images.iter().zip(pulled) {
        match pulled {
            Ok(record) => {
                if let Some(line) = summaries.line(image) {
                    screen.announce(&line);
                }
                images.push(record);
            }
            Err(error) => {
                screen.error(&error.report());
                code = EXIT_FAILURE;
            }
        }
    }
    match (&images[..], args.images.len(), globals.form()) {
        ([], 1, _) => {}
        ([one], 1, _) => screen.result(one, |one| super::line(&one.image)),
        (_, _, Form::Json) => screen.result(&List { images }, |_| String::new()),
        (all, _, Form::Text) => screen.result(&(), |()| {
            all.iter().map(|one| super::line(&one.image)).collect()
        }),
    }
    Ok(code)
}
