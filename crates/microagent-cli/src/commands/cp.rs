//! `microagent cp`.

use std::{
    fs::File,
    io::{self, IsTerminal},
};

use clap::{Args, builder::TypedValueParser};
use clap_complete::engine::ArgValueCompleter;
use microagent::{
    CopyIo, CopyOptions, CopyReport, Endpoint, Error, FileMode, InvalidEndpoint, Microagent, Owner,
};
use microagent_host::stdio::{Stream, duplicate};

use crate::{
    cli::{Form, Globals},
    completion,
    output::{Screen, size},
    surroundings,
};

const EXAMPLES: &str = "\
Examples:
  microagent cp ./src agent:/work             # src becomes /work, or goes into it if it is there
  microagent cp ./src/. agent:/work           # what is in src goes into /work
  microagent cp agent:/work/report.json .
  microagent cp --chown 1000:1000 --chmod 640 key agent:/home/me/.ssh/id
  microagent cp agent:/var/log - | tar -t
  tar -c . | microagent cp - agent:/work

A path in a workspace is written NAME:/PATH. One of this host that has a colon in it is written
./a:b. A single hyphen stands for a tar stream: on standard input as SRC, on standard output as DST.

Owners, modes, times, links, holes and attributes are kept. Owners are kept as numbers, on this host
only for root. What a running workspace has mounted below SRC stays out. Each file is there in
whole, or what was there before; into a workspace that does not run, everything or nothing arrives.";

/// Copies files between this host and a workspace, running or not.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CpArgs {
    /// What to copy: NAME:/PATH, a path of this host, or - for a tar stream
    #[arg(value_name = "SRC", value_parser = endpoint(), add = ArgValueCompleter::new(completion::endpoints))]
    from: Endpoint,
    /// Where to: NAME:/PATH, a path of this host, or - for a tar stream
    #[arg(value_name = "DST", value_parser = endpoint(), add = ArgValueCompleter::new(completion::endpoints))]
    to: Endpoint,
    /// Copy what a symbolic link SRC leads to, not the link
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// Make directories above DST that are missing
    #[arg(long)]
    parents: bool,
    /// Take out of a guest also what gives rights here: set-user-ID bits, capabilities, devices
    #[arg(long, short)]
    archive: bool,
    /// Give everything to this owner, by numbers
    #[arg(long, value_name = "UID[:GID]")]
    chown: Option<Owner>,
    /// Give every file this mode, in octal; directories can be searched by whoever may read
    #[arg(long, value_name = "MODE")]
    chmod: Option<FileMode>,
}

fn endpoint() -> impl TypedValueParser<Value = Endpoint> {
    clap::builder::OsStringValueParser::new()
        .try_map(|text| -> Result<Endpoint, InvalidEndpoint> { Endpoint::parse(&text) })
}

pub(crate) fn run(args: &CpArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let to_stream = args.to == Endpoint::Stream;
    if to_stream && io::stdout().is_terminal() {
        return Err(Error::Invalid {
            option: "DST",
            reason: "a tar stream does not go to a terminal; redirect it".to_owned(),
        });
    }
    let mut options = CopyOptions::new()
        .follow(args.follow_link)
        .parents(args.parents)
        .archive(args.archive);
    if let Some(owner) = args.chown {
        options = options.owner(owner);
    }
    if let Some(mode) = args.chmod {
        options = options.mode(mode);
    }
    let mut streams = CopyIo::none();
    if args.from == Endpoint::Stream {
        streams = streams.input(io::stdin());
    }
    if to_stream {
        streams = streams.output(unbuffered(io::stdout())?);
    }
    let report = microagent.copy(&args.from, &args.to, &options, streams)?;
    for notice in &report.notices {
        screen.announce(&format!("Left out: {notice}."));
    }
    if screen.form == Form::Json && !to_stream {
        screen.result(&report, |_| String::new());
    } else {
        screen.notice(&text(&report, to_stream));
    }
    Ok(0)
}

fn text(report: &CopyReport, to_stream: bool) -> String {
    let bytes = size(report.bytes);
    if to_stream {
        return format!("Wrote {bytes}.");
    }
    let files = match report.files {
        1 => "1 file".to_owned(),
        files => format!("{files} files"),
    };
    let left_out = match report.skipped {
        0 => String::new(),
        skipped => format!(", left out {skipped}"),
    };
    format!("Copied {files} ({bytes}){left_out}.")
}

/// The descriptor itself: a tar stream is large and needs no looking for ends of lines.
fn unbuffered(stream: impl Stream) -> Result<File, Error> {
    duplicate(stream).map_err(|source| Error::Io {
        doing: "share",
        path: "standard output".into(),
        source,
    })
}
