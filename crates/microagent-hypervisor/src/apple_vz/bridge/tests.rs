use std::{
    net,
    sync::{
        Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// A guest that listens at port 1024, and at no other; its ends of the connections come out here.
#[derive(Default)]
struct Fake {
    accepted: Mutex<Vec<UnixStream>>,
    kept: Arc<AtomicUsize>,
}

/// Counts what is kept.
struct Keep(Arc<AtomicUsize>);

impl Drop for Keep {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn channel(&self) -> (UnixStream, Channel) {
        let (inside, outside) = UnixStream::pair().unwrap();
        inside.set_read_timeout(Some(SOON)).unwrap();
        self.kept.fetch_add(1, Ordering::SeqCst);
        let keep = Box::new(Keep(Arc::clone(&self.kept)));
        let stream = outside.into();
        (inside, Channel { stream, keep })
    }
}

impl Guest for Fake {
    fn connect(&self, port: u32, _limit: Duration) -> io::Result<Channel> {
        if port != 1024 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let (inside, channel) = self.channel();
        self.accepted.lock().unwrap().push(inside);
        Ok(channel)
    }
}

struct Bench {
    folder: TempDir,
    guest: Arc<Fake>,
    bridge: Bridge,
}

impl Bench {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let guest = Arc::<Fake>::default();
        let bridge = Bridge::start(&folder.path().join("v"), guest.clone()).unwrap();
        Self {
            folder,
            guest,
            bridge,
        }
    }

    fn uds(&self) -> PathBuf {
        self.folder.path().join("v")
    }

    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let stream = hybrid::connect(&self.uds(), port, Instant::now() + SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(stream)
    }

    /// Both ends of a connection that the host made.
    fn connected(&self) -> (UnixStream, UnixStream) {
        let host = self.connect(1024).unwrap();
        (host, self.guest.accepted.lock().unwrap().pop().unwrap())
    }
}

fn say(mut from: &UnixStream, mut to: &UnixStream, text: &str) {
    from.write_all(text.as_bytes()).unwrap();
    let mut got = vec![0; text.len()];
    to.read_exact(&mut got).unwrap();
    assert_eq!(got, text.as_bytes());
}

fn is_over(mut end: &UnixStream) -> bool {
    !matches!(end.read(&mut [0]), Ok(1..))
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_host_reaches_a_port_of_the_guest_and_what_is_kept_outlives_the_stream() {
    let bench = Bench::new();
    let (host, guest) = bench.connected();
    say(&host, &guest, "question");
    say(&guest, &host, "answer");
    assert_eq!(bench.guest.kept.load(Ordering::SeqCst), 1);
    // A half that ends leaves the other open.
    host.shutdown(net::Shutdown::Write).unwrap();
    assert!(is_over(&guest));
    say(&guest, &host, "late");
    drop(guest);
    assert!(is_over(&host));
    let kept = &bench.guest.kept;
    wait_for("it is let go", || kept.load(Ordering::SeqCst) == 0);
    wait_for("its place is free", || {
        bench.bridge.inner.open().links.is_empty()
    });
}

#[test]
fn a_port_without_a_listener_and_a_line_that_is_none_are_refused() {
    let bench = Bench::new();
    let error = bench.connect(1025).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    for line in [
        "CONNECT x\n",
        "CONNECT 4294967296\n",
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT -1\n",
    ] {
        let mut host = UnixStream::connect(bench.uds()).unwrap();
        host.set_read_timeout(Some(SOON)).unwrap();
        host.write_all(line.as_bytes()).unwrap();
        assert!(is_over(&host), "{line}");
    }
    assert!(bench.guest.accepted.lock().unwrap().is_empty());
}

#[test]
fn the_guest_reaches_who_listens_and_nobody_else() {
    let bench = Bench::new();
    let listener = hybrid::listen(&bench.uds(), 52).unwrap();
    let (guest, channel) = bench.guest.channel();
    let take = bench.bridge.taker();
    assert!(take(52, channel));
    let (host, _) = listener.accept().unwrap();
    host.set_read_timeout(Some(SOON)).unwrap();
    say(&guest, &host, "hello");
    say(&host, &guest, "welcome");
    let (nobody, channel) = bench.guest.channel();
    assert!((bench.bridge.taker())(53, channel));
    assert!(is_over(&nobody));
    drop(bench);
    let (_late, channel) = Fake::default().channel();
    assert!(!take(52, channel), "the bridge is gone");
}

#[test]
fn severed_it_carries_nothing_any_more_and_takes_nothing_new() {
    let bench = Bench::new();
    let listener = hybrid::listen(&bench.uds(), 52).unwrap();
    let (host, guest) = bench.connected();
    let (inside, channel) = bench.guest.channel();
    assert!((bench.bridge.taker())(52, channel));
    let (accepted, _) = listener.accept().unwrap();
    say(&inside, &accepted, "hello");
    // One that has not named its port yet, either.
    let waiting = UnixStream::connect(bench.uds()).unwrap();
    waiting.set_read_timeout(Some(SOON)).unwrap();
    wait_for("it is accepted", || {
        bench.bridge.inner.open().links.len() == 3
    });

    bench.bridge.sever();
    for end in [&host, &guest, &inside, &accepted, &waiting] {
        end.set_read_timeout(Some(SOON)).unwrap();
        assert!(is_over(end));
    }
    assert!(!bench.uds().exists());
    let (_inside, channel) = bench.guest.channel();
    assert!(!(bench.bridge.taker())(52, channel));
    assert!(bench.connect(1024).is_err());
    bench.bridge.sever();
    let inner: Weak<Inner> = Arc::downgrade(&bench.bridge.inner);
    let kept = Arc::clone(&bench.guest.kept);
    drop(bench);
    wait_for("nothing is left of it", || {
        inner.upgrade().is_none() && kept.load(Ordering::SeqCst) == 0
    });
}

#[test]
fn the_ports_are_those_at_which_somebody_listens_now() {
    let folder = TempDir::new().unwrap();
    let uds = folder.path().join("v");
    for name in [
        "v",
        "v_1024",
        "v_52",
        "v_x",
        "v_",
        "w_7",
        "v_4294967296",
        "v_0052",
    ] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    assert_eq!(ports(&uds).unwrap(), [52, 1024]);
    for port in 0..200 {
        fs::write(folder.path().join(format!("v_{port}")), "").unwrap();
    }
    assert_eq!(ports(&uds).unwrap().len(), MOST_PORTS);
    assert!(ports(&folder.path().join("none/v")).is_err());
}

proptest! {
    #[test]
    fn a_port_is_read_as_it_is_written_and_no_other_way(port in any::<u32>(), noise in "[ -~]{0,16}") {
        prop_assert_eq!(hybrid::asked_port(format!("CONNECT {port}").as_bytes()), Some(port));
        let read = hybrid::asked_port(noise.as_bytes());
        prop_assert!(read.is_none() || noise.starts_with("CONNECT "));
    }
}
