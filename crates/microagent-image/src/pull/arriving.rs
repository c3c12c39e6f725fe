//! Layers on their way, read as they come: an image's disk is built while its layers are still downloaded.
//!
//! What is read here is not verified yet. The disk counts for nothing before every layer's digest is, and the
//! builder checks what it read by digests of its own; so bytes that a retry replaced are found out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use microagent_host::fs::Positioned;

use crate::choose::Chosen;
use crate::digest::Digest;
use crate::disk::LayerSource;
use crate::manifest::Layer;
use crate::store;
use crate::sync::Behind;

/// How soon to look again at a file that is shorter than it was said to be: its download began anew.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The layers of one image.
pub(super) struct Arrivals(BTreeMap<Digest, Arc<Arrival>>);

struct Arrival {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    file: Option<Arc<File>>,
    /// What has come of it.
    bytes: u64,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// More comes.
    Open,
    Complete,
    /// The pull has failed.
    Failed,
}

impl Arrivals {
    pub(super) fn of(layers: &[Layer]) -> Self {
        let arrival = |layer: &Layer| {
            let state = Mutex::new(State {
                file: None,
                bytes: 0,
                end: End::Open,
            });
            let changed = Condvar::new();
            (layer.digest, Arc::new(Arrival { state, changed }))
        };
        Self(layers.iter().map(arrival).collect())
    }

    /// A layer comes into this file.
    pub(super) fn begun(&self, layer: &Layer, partial: &Path) {
        // Opened anew: a duplicate would keep the download's lock, for which another pull may wait.
        self.open(layer, partial);
    }

    /// So many bytes of it are there; fewer than before where the download began anew.
    pub(super) fn came(&self, layer: &Layer, bytes: u64) {
        self.change(layer.digest, |state| state.bytes = bytes);
    }

    /// All of it is there and verified.
    pub(super) fn complete(&self, layer: &Layer) {
        self.change(layer.digest, |state| {
            state.bytes = layer.size;
            if state.end == End::Open {
                state.end = End::Complete;
            }
        });
    }

    /// It was in the store already, or another pull brought it.
    pub(super) fn stored(&self, layer: &Layer, blob: &Path) {
        self.open(layer, blob);
        self.complete(layer);
    }

    /// Nothing more comes.
    pub(super) fn fail(&self) {
        for digest in self.0.keys() {
            self.change(*digest, |state| state.end = End::Failed);
        }
    }

    /// The image's layers for the builder, and what it has read of them, for [`let_go`].
    pub(super) fn sources(&self, chosen: &Chosen) -> (Vec<LayerSource>, Receiver<Passed>) {
        let (passed, receiver) = channel();
        let layers = &chosen.manifest.layers;
        let with_ids = layers.iter().zip(&chosen.config.diff_ids).enumerate();
        let sources = with_ids
            .filter_map(|(at, (layer, diff_id))| {
                let reader = Box::new(Following {
                    layer: at,
                    arrival: Arc::clone(self.0.get(&layer.digest)?),
                    offset: 0,
                    told: 0,
                    passed: passed.clone(),
                });
                let source = store::layer_source(at, layers.len(), layer, *diff_id, reader);
                Some(source)
            })
            .collect();
        (sources, receiver)
    }

    fn open(&self, layer: &Layer, path: &Path) {
        let file = File::open(path);
        self.change(layer.digest, |state| match file {
            Ok(file) => state.file = Some(Arc::new(file)),
            // The disk is built later, from what was stored, and that tells what is wrong.
            Err(_) => state.end = End::Failed,
        });
    }

    fn change(&self, digest: Digest, change: impl FnOnce(&mut State)) {
        if let Some(arrival) = self.0.get(&digest) {
            change(&mut arrival.lock());
            arrival.changed.notify_all();
        }
    }
}

impl Arrival {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is set under it is set in one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a layer was read.
pub(super) struct Passed {
    layer: usize,
    file: Arc<File>,
    offset: u64,
    /// Nothing more is read of it.
    ended: bool,
}

/// Lets go of what was read, as long as somebody reads. On a thread of its own, as whoever inflates layers is what
/// most pulls wait for.
pub(super) fn let_go(passed: Receiver<Passed>) {
    super::give_way();
    let mut layers: BTreeMap<usize, Behind> = BTreeMap::new();
    for Passed {
        layer,
        file,
        offset,
        ended,
    } in passed
    {
        let behind = layers.entry(layer).or_default();
        if ended {
            behind.finish(&file, offset);
        } else {
            behind.reached(&file, offset);
        }
    }
}

/// Reads one layer from its first byte to its last, waiting for what has not come.
struct Following {
    /// Its place in the image.
    layer: usize,
    arrival: Arc<Arrival>,
    offset: u64,
    /// Up to where it was said what was read.
    told: u64,
    passed: Sender<Passed>,
}

impl Following {
    fn tell(&mut self, file: Arc<File>, ended: bool) {
        self.told = self.offset;
        let passed = Passed {
            layer: self.layer,
            file,
            offset: self.offset,
            ended,
        };
        // Where nobody lets go of it, the host does so in its time.
        let _ = self.passed.send(passed);
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let file = self.arrival.lock().file.clone();
        if let Some(file) = file {
            self.tell(file, true);
        }
    }
}

impl Read for Following {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.arrival.lock();
        loop {
            let left = state.bytes.saturating_sub(self.offset);
            match (state.end, &state.file) {
                (End::Failed, _) => return Err(io::Error::other("the layers did not all come")),
                (End::Complete, _) if left == 0 => return Ok(0),
                (_, Some(file)) if left > 0 => {
                    let (file, end) = (Arc::clone(file), state.end);
                    drop(state);
                    let want =
                        usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
                    let count = file.read_at(&mut buffer[..want], self.offset)?;
                    if count > 0 || want == 0 {
                        self.offset += count as u64;
                        if self.offset - self.told >= Behind::STEP {
                            self.tell(file, false);
                        }
                        return Ok(count);
                    }
                    if end == End::Complete {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let again = self.arrival.lock();
                    let waited = self.arrival.changed.wait_timeout(again, LOOK_AGAIN);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                _ => state = self.arrival.wait(state),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &[u8] = b"what is in the layer";

    fn layer() -> Layer {
        Layer {
            digest: Digest::of(CONTENT),
            size: CONTENT.len() as u64,
            compression: crate::manifest::Compression::None,
            urls: Vec::new(),
        }
    }

    fn follow(arrivals: &Arrivals) -> Following {
        let arrival = Arc::clone(&arrivals.0[&layer().digest]);
        Following {
            layer: 0,
            arrival,
            offset: 0,
            told: 0,
            passed: channel().0,
        }
    }

    #[test]
    fn a_layer_is_read_as_it_comes() {
        let arrivals = Arrivals::of(&[layer()]);
        let mut reader = follow(&arrivals);
        let file = tempfile::NamedTempFile::new().unwrap();
        let (file, path) = (file.as_file(), file.path());
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                let mut content = Vec::new();
                reader.read_to_end(&mut content).map(|_| content)
            });
            arrivals.begun(&layer(), path);
            file.write_all_at(&CONTENT[..9], 0).unwrap();
            arrivals.came(&layer(), 9);
            // It begins anew.
            file.set_len(0).unwrap();
            for end in [3, CONTENT.len()] {
                file.write_all_at(&CONTENT[..end], 0).unwrap();
                arrivals.came(&layer(), end as u64);
            }
            arrivals.complete(&layer());
            assert_eq!(reading.join().unwrap().unwrap(), CONTENT);
        });
    }

    #[test]
    fn a_failed_pull_ends_all_readers() {
        let arrivals = Arrivals::of(&[layer()]);
        let mut reader = follow(&arrivals);
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || reader.read(&mut [0; 8]));
            arrivals.fail();
            assert!(reading.join().unwrap().is_err());
        });
        // And nothing makes it good again.
        arrivals.complete(&layer());
        assert!(follow(&arrivals).read(&mut [0; 8]).is_err());
    }

    #[test]
    fn a_stored_layer_is_there_at_once_and_a_short_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blob");
        std::fs::write(&path, CONTENT).unwrap();
        let arrivals = Arrivals::of(&[layer()]);
        arrivals.stored(&layer(), &path);
        let mut content = Vec::new();
        follow(&arrivals).read_to_end(&mut content).unwrap();
        assert_eq!(content, CONTENT);
        std::fs::write(&path, &CONTENT[1..]).unwrap();
        let error = follow(&arrivals).read_to_end(&mut content).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
