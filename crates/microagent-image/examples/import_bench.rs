//! Measures an import with its disk against its floor, one inflate of the layer, interleaved:
//! `import_bench ROOTFS.tar.gz [ROUNDS]`. Prints medians in milliseconds and their ratio.
#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use microagent_image::{ImageStore, ImportOptions};

fn inflate(path: &Path) -> std::io::Result<u64> {
    let mut decoder = flate2::read::MultiGzDecoder::new(File::open(path)?);
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match decoder.read(&mut buffer)? {
            0 => return Ok(total),
            count => total += count as u64,
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = Path::new(
        arguments
            .first()
            .ok_or("usage: import_bench ROOTFS.tar.gz [ROUNDS]")?,
    );
    let rounds: usize = arguments.get(1).map_or(Ok(5), |text| text.parse())?;
    let (mut floors, mut imports) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        inflate(path)?;
        floors.push(begun.elapsed().as_millis());
        let directory = tempfile::tempdir_in(path.parent().unwrap_or(Path::new(".")))?;
        let begun = Instant::now();
        let store = ImageStore::open(directory.path())?;
        let options = ImportOptions::new().reference("bench:1".parse()?);
        store.import(path, &options, &|_| {})?;
        imports.push(begun.elapsed().as_millis());
    }
    floors.sort_unstable();
    imports.sort_unstable();
    let (floor, import) = (floors[rounds / 2], imports[rounds / 2]);
    println!(
        "inflate {floor} ms {floors:?}, import {import} ms {imports:?}, ratio {:.2}",
        import as f64 / floor as f64
    );
    Ok(())
}
