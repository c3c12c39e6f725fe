//! Copies: a tree of the guest as a tar stream to the host, or the other way. It knows frames and
//! who may still write to a disk; trees are [`microagent_files`]' business.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use microagent_files::{CopyError, Policy, land, pack};
use microagent_protocol::{
    CopyEnd, CopyIn, CopyOut, CopyReport, FrameKind, FrameReader,
    frame::write_json,
    guest::SessionReply,
    stream::{DataReader, DataWriter},
    supervisor::ErrorKind,
};
use rustix::net::{Shutdown, shutdown};

use crate::{
    error::{Context, Error},
    vsock,
};

/// How long the host may take to hear how a copy ended.
const FAREWELL_LIMIT: Duration = Duration::from_secs(10);

/// How long copies that were cut may take to let go of their files.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The copies under way. The disks cannot be closed while one of them writes.
#[derive(Debug, Default)]
pub(crate) struct Copies(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    streams: HashMap<u64, File>,
    closed: bool,
}

impl Copies {
    /// Packs what the host asked for.
    pub(crate) fn pack(&self, stream: &File, request: &CopyOut) -> Result<(), Error> {
        let _place = self.begin(stream)?;
        let path = Path::new(request.path.as_str());
        let output = DataWriter::new(stream, FrameKind::Stdout);
        let end = match pack(path, request.what, output) {
            Ok((output, report)) => {
                output.finish().context("send the last of a copy")?;
                CopyEnd::Done(report)
            }
            Err(CopyError::Output(_)) => return Err(Error::HostGone),
            Err(error) => failed(&error),
        };
        bound(stream)?;
        Ok(write_json(&mut &*stream, FrameKind::Exit, &end)?)
    }

    /// Lands what the host sends.
    pub(crate) fn land(&self, stream: &File, request: &CopyIn) -> Result<(), Error> {
        let _place = self.begin(stream)?;
        let frames = FrameReader::new(stream);
        let mut input = DataReader::new(frames, FrameKind::Stdin, FrameKind::StdinEof);
        let path = Path::new(request.path.as_str());
        let landed: Result<CopyReport, CopyError> =
            land(&mut input, path, &request.landing, &Policy::trusting());
        let end = match landed {
            Ok(report) => CopyEnd::Done(report),
            Err(error) => failed(&error),
        };
        bound(stream)?;
        write_json(&mut &*stream, FrameKind::Exit, &end)?;
        // Who closes a stream with bytes left in it takes back what it said last.
        let deadline = Instant::now() + FAREWELL_LIMIT;
        let mut rest = vec![0; 64 * 1024];
        while Instant::now() < deadline && matches!((&*stream).read(&mut rest), Ok(1..)) {}
        Ok(())
    }

    /// Cuts every copy off and waits until none has a file open. There will be no others.
    pub(crate) fn end(&self) {
        {
            let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            open.closed = true;
            for stream in open.streams.values() {
                // One that is over already is as good.
                let _ = shutdown(stream, Shutdown::Both);
            }
        }
        let deadline = Instant::now() + END_LIMIT;
        let busy = || {
            !self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .streams
                .is_empty()
        };
        while busy() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn begin(&self, stream: &File) -> Result<Place<'_>, Error> {
        let copy = stream.try_clone().context("share the stream of a copy")?;
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.closed {
            return Err(Error::HostGone);
        }
        open.next += 1;
        let id = open.next;
        open.streams.insert(id, copy);
        let place = Place { copies: self, id };
        drop(open);
        write_json(&mut &*stream, FrameKind::Header, &SessionReply::Opened)?;
        // Either side may be slow for as long as it likes.
        vsock::set_timeouts(stream, None, None).context("unbound a copy")?;
        Ok(place)
    }
}

/// A copy's place among those under way.
struct Place<'a> {
    copies: &'a Copies,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut open = self.copies.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.streams.remove(&self.id);
    }
}

fn failed(error: &CopyError) -> CopyEnd {
    let kind = match error {
        // The host cut it, or was cut off.
        CopyError::Stream(_) => ErrorKind::Transient,
        error => error.kind(),
    };
    let message = error.to_string();
    CopyEnd::Failed { kind, message }
}

fn bound(stream: &File) -> Result<(), Error> {
    let limit = Some(FAREWELL_LIMIT);
    let bounded: io::Result<()> = vsock::set_timeouts(stream, limit, limit);
    bounded.context("bound the end of a copy")
}
