//! What the fuzzers drive: reader, merge and writer, without a file.

use std::io;

use microagent_files::tar::TarReader;

use super::content::{Appender, BlockFile, ContentError};
use super::error::LayerFault;
use super::ext4::{self, FIRST_CONTENT_BLOCK, Identity, LayoutError};
use super::flat::OntoTree;
use super::index::{IndexReader, IndexWriter};
use super::join::{MergeError, merge};
use super::layer::apply;
use super::limits::Limits;
use super::tree::Tree;

/// Blocks of the piece that an index is of.
const PIECE_BLOCKS: u32 = 4096;

/// Takes blocks, and forgets them.
struct Nowhere;

impl BlockFile for Nowhere {
    fn write_blocks(&mut self, _block: u32, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Drives reader, merge and writer with one uncompressed layer under tight limits, for fuzzing: whatever the bytes
/// are, it returns.
///
/// # Errors
/// What [`build`](super::build) would say about the layer.
#[doc(hidden)]
pub fn fuzz_layer(data: &[u8]) -> Result<(), LayerFault> {
    // The same bytes twice: as a first layer, and over themselves.
    fuzz_layers(&[data, data]).map(drop)
}

/// Drives reader, merge and writer with uncompressed layers under tight limits, for fuzzing. Gives the names in
/// the merged tree, each with its kind (`d`, `f`, `l` or `?`) and a number that names of one file share.
///
/// # Errors
/// What [`build`](super::build) would say about a layer.
#[doc(hidden)]
pub fn fuzz_layers(layers: &[&[u8]]) -> Result<Vec<(Vec<u8>, char, u32)>, LayerFault> {
    let limits = Limits::tight();
    let mut nowhere = Nowhere;
    let mut appender = Appender::new(&mut nowhere, FIRST_CONTENT_BLOCK, limits.max_disk_bytes);
    let mut tree = Tree::new(&limits);
    let mut entries = 0;
    for layer in layers {
        tree.begin_layer();
        let mut reader = TarReader::new(*layer, limits.tar());
        match apply(
            &mut reader,
            &limits,
            &mut OntoTree::new(&mut tree),
            &mut appender,
            &mut entries,
            &mut |_| {},
        ) {
            Ok(()) => {}
            Err(ContentError::Fault(fault)) => return Err(fault),
            Err(ContentError::Output(error)) => return Err(error.into()),
        }
    }
    let names = tree.names();
    write(&mut tree, &mut appender)?;
    Ok(names)
}

/// Reads an index of a layer's entries under tight limits, merges it as a first layer and over itself, and writes the
/// disk; what was understood, written and read again, is the same. Whatever the bytes are, it returns.
///
/// # Errors
/// What is wrong with the index, or with the layer it is of.
#[doc(hidden)]
pub fn fuzz_index(data: &[u8]) -> Result<(), LayerFault> {
    let limits = Limits::tight();
    let mut reader = IndexReader::new(data, &limits, PIECE_BLOCKS)?;
    let mut writer = IndexWriter::new(Vec::new())?;
    let mut read = Vec::new();
    while let Some((entry, extents)) = reader.next_entry()? {
        writer.entry(&entry, &extents)?;
        read.push((entry, extents));
    }
    let again = writer.finish()?;
    let mut reader = IndexReader::new(&again[..], &limits, PIECE_BLOCKS)?;
    for expected in read {
        assert_eq!(reader.next_entry()?, Some(expected));
    }
    assert_eq!(reader.next_entry()?, None);
    let mut tree = Tree::new(&limits);
    let (mut base, mut entries) = (FIRST_CONTENT_BLOCK, 0);
    for _ in 0..2 {
        let mut reader = IndexReader::new(data, &limits, PIECE_BLOCKS)?;
        match merge(&mut reader, &mut tree, base, &mut entries, &limits) {
            Ok(()) => base += PIECE_BLOCKS,
            Err(MergeError::Index(error)) => return Err(error.into()),
            Err(MergeError::Fault(fault)) => return Err(fault),
        }
    }
    let mut nowhere = Nowhere;
    let mut appender = Appender::new(&mut nowhere, base, limits.max_disk_bytes);
    write(&mut tree, &mut appender)
}

fn write(tree: &mut Tree<'_>, appender: &mut Appender<'_>) -> Result<(), LayerFault> {
    let identity = Identity {
        uuid: [1; 16],
        label: [0; 16],
    };
    match ext4::write(tree, appender, &identity, None) {
        Ok(_) | Err(LayoutError::Full | LayoutError::Impossible(_)) => Ok(()),
        Err(LayoutError::Output(error)) => Err(error.into()),
    }
}
