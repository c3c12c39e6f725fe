//! `microagent images export` and `images save`.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, IsTerminal},
    path::PathBuf,
};

use clap::Args;
use microagent::{Error, ExportFormat, ExportOptions, ExportTo, Exported, Microagent, Platform};

use crate::{
    cli::Globals,
    output::{Screen, size},
    progress::Progress,
    surroundings,
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent images export debian:12 -o debian.oci.tar
  microagent images export debian:12 -o rootfs.tar --format rootfs-tar")]
pub(crate) struct ExportArgs {
    /// The images: references, or digests or the beginnings of them. A root file system is that of one
    #[arg(required = true)]
    images: Vec<String>,
    /// The file, or the directory of an oci-layout; - is standard output
    #[arg(long, short, value_name = "PATH")]
    output_file: PathBuf,
    /// oci-archive, docker-archive (what `docker load` reads), oci-layout (a directory) or rootfs-tar (the
    /// merged root file system)
    #[arg(long, value_name = "FORMAT", default_value_t = ExportFormat::OciArchive)]
    format: ExportFormat,
    /// Which of a multi-platform image's images [default: this host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The images: references, or digests or the beginnings of them
    #[arg(required = true)]
    images: Vec<String>,
    /// The file [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output_file: Option<PathBuf>,
    /// oci-archive or docker-archive (what `docker load` reads)
    #[arg(long, value_name = "FORMAT", default_value_t = ExportFormat::DockerArchive)]
    format: ExportFormat,
    /// Which of a multi-platform image's images [default: this host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

impl From<SaveArgs> for ExportArgs {
    fn from(args: SaveArgs) -> Self {
        Self {
            images: args.images,
            output_file: args.output_file.unwrap_or_else(|| "-".into()),
            format: args.format,
            platform: args.platform,
        }
    }
}

pub(crate) fn run(args: ExportArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut options = ExportOptions::new(args.format);
    options.platform = args.platform;
    let is_stream = args.output_file.as_os_str() == OsStr::new("-");
    if is_stream && io::stdout().is_terminal() {
        return Err(Error::Invalid {
            option: "--output-file",
            reason: "an archive does not go to a terminal; redirect it, or name a file with -o"
                .to_owned(),
        });
    }
    let mut stream;
    let path;
    let to = if is_stream {
        stream = standard_output()?;
        ExportTo::Stream(&mut stream)
    } else {
        path = surroundings::absolute(&args.output_file)?;
        ExportTo::Path(&path)
    };
    let progress = Progress::new(screen);
    let exported = microagent
        .images()
        .export(&args.images, &options, to, &|event| {
            screen.event(&args.images.join(" "), &event);
            progress.image(&event);
        });
    progress.clear();
    let exported = exported?;
    if is_stream {
        screen.notice(&line(&exported));
    } else {
        screen.result(&exported, |exported| format!("{}\n", line(exported)));
    }
    Ok(0)
}

fn line(exported: &Exported) -> String {
    let images: Vec<_> = exported
        .images
        .iter()
        .map(|image| image.reference.familiar())
        .collect();
    let bytes = size(exported.bytes);
    match &exported.path {
        Some(path) => format!("{}: {} ({bytes})", path.display(), images.join(", ")),
        None => format!("Wrote {} ({bytes}).", images.join(", ")),
    }
}

/// The descriptor itself: an archive is large and needs no looking for ends of lines.
fn standard_output() -> Result<File, Error> {
    microagent_host::stdio::duplicate(io::stdout()).map_err(|source| Error::Io {
        doing: "share",
        path: "standard output".into(),
        source,
    })
}
