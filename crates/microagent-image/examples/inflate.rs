//! Inflates a gzip file and throws the bytes away: the floor an import is measured against.

use std::fs::File;
use std::io::{self, Read as _};

use flate2::read::MultiGzDecoder;

fn main() -> io::Result<()> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or_else(|| io::Error::other("usage: inflate FILE.gz"))?;
    let mut decoder = MultiGzDecoder::new(File::open(path)?);
    let mut buffer = vec![0; 256 << 10];
    while decoder.read(&mut buffer)? > 0 {}
    Ok(())
}
