//! Inflates a gzip file (`-`: standard input) and throws the bytes away, but says how many there were: the floor
//! that imports and pulls are measured against.

use std::fs::File;
use std::io::{self, Read, Write as _};

use flate2::read::MultiGzDecoder;

fn main() -> io::Result<()> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or_else(|| io::Error::other("usage: inflate FILE.gz|-"))?;
    let input: Box<dyn Read> = if path == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path)?)
    };
    let mut decoder = MultiGzDecoder::new(input);
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match decoder.read(&mut buffer)? {
            0 => break,
            count => total += count,
        }
    }
    writeln!(io::stdout(), "{total}")
}
