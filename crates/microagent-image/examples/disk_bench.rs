//! Measures disk building: `disk_bench inflate LAYER` is the floor, `disk_bench build OUTPUT LAYER...` the work,
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints")]
//! `disk_bench scratch OUTPUT MIB` the empty disk. Prints milliseconds and peak memory.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use microagent_image::disk::{BuildOptions, Compression, LayerSource, build, create_scratch};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let started = Instant::now();
    let mut report = String::new();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["inflate", layer] => {
            let mut decoder = flate2::read::MultiGzDecoder::new(File::open(layer)?);
            let mut buffer = vec![0; 256 << 10];
            let mut total = 0;
            loop {
                match decoder.read(&mut buffer)? {
                    0 => break,
                    count => total += count,
                }
            }
            report = format!("{total} bytes");
        }
        ["build", output, layers @ ..] => {
            let sources = layers
                .iter()
                .map(|layer| {
                    Ok(LayerSource {
                        label: (*layer).to_owned(),
                        reader: Box::new(File::open(layer)?),
                        compression: Compression::Detect,
                        diff_id: None,
                    })
                })
                .collect::<std::io::Result<Vec<_>>>()?;
            let disk = build(
                sources,
                Path::new(output),
                &BuildOptions::default(),
                &mut |progress| {
                    if std::env::var_os("TRACE").is_some() {
                        eprintln!("{:6} ms {progress:?}", started.elapsed().as_millis());
                    }
                },
            )?;
            report = format!("{disk:?}");
        }
        ["scratch", output, mebibytes] => create_scratch(Path::new(output), mebibytes.parse()?)?,
        _ => {
            return Err(
                "usage: disk_bench inflate LAYER | build OUTPUT LAYER... | scratch OUTPUT MIB"
                    .into(),
            );
        }
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or_default();
    println!("{} ms  {peak}  {report}", started.elapsed().as_millis());
    Ok(())
}
