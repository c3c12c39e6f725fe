//! Where the tests of pulls take place.

use std::sync::Mutex;

use microagent_image::{ImageEvent, ImageStore};

/// A store, a layout to push from, and a record of events, in one directory.
pub(crate) struct Bench {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) store: ImageStore,
    pub(crate) events: Mutex<Vec<ImageEvent>>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("images")).unwrap();
        Self {
            directory,
            store,
            events: Mutex::default(),
        }
    }

    pub(crate) fn hear(&self, event: ImageEvent) {
        self.events.lock().unwrap().push(event);
    }
}
