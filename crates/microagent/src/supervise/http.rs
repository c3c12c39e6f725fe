//! One HTTP request, of which only the status matters.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// The longest status line that is read, in bytes.
const MAX_LINE: usize = 1024;

/// Asks the server at `address` for `path`, and says which status it answers.
///
/// # Errors
/// If nobody listens, the answer is no HTTP, or not all of it came within `timeout`.
pub(super) fn status(address: SocketAddr, path: &str, timeout: Duration) -> io::Result<u16> {
    let deadline = Instant::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: microagent\r\n\
         Accept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut line = Vec::new();
    let mut buffer = [0; 256];
    while !line.contains(&b'\n') {
        if line.len() > MAX_LINE {
            return Err(nonsense("its first line has no end"));
        }
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(nonsense("it hung up without an answer")),
            Ok(count) => line.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(error) => return Err(error),
        }
    }
    parse(&line).ok_or_else(|| nonsense("its answer is no HTTP"))
}

/// The status in an answer's first line.
fn parse(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.trim_end();
    let (version, rest) = line.split_once(' ')?;
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return None;
    }
    let code = rest.split(' ').next()?;
    (code.len() == 3)
        .then(|| code.parse().ok())
        .flatten()
        .filter(|code| (100..600).contains(code))
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(late());
    }
    Ok(left)
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// Answers one request with each of these pieces, then waits for the client to go.
    fn server(pieces: &'static [&'static [u8]]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let count = stream.read(&mut request).unwrap();
            assert!(request[..count].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            for piece in pieces {
                stream.write_all(piece).unwrap();
                stream.flush().unwrap();
            }
            if pieces.last().is_some_and(|piece| piece.contains(&b'\n')) {
                let _ = stream.read(&mut request);
            }
        });
        address
    }

    fn ask(address: SocketAddr) -> io::Result<u16> {
        status(address, "/healthz", Duration::from_secs(5))
    }

    #[test]
    fn the_status_is_all_that_is_read() {
        assert_eq!(ask(server(&[b"HTTP/1.1 200 OK\r\n"])).unwrap(), 200);
        assert_eq!(
            ask(server(&[b"HTTP/1.", b"0 503", b"\r\n\r\nbody"])).unwrap(),
            503
        );
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for (pieces, words) in [
            (&[b"SSH-2.0\r\n" as &[u8]][..], "no HTTP"),
            (&[b"HTTP/1.1 20 OK\r\n"], "no HTTP"),
            (&[b"HTTP/1.1 999 OK\r\n"], "no HTTP"),
            (&[b"HTTP/1.1 200"], "hung up"),
        ] {
            let error = ask(server(pieces)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(
            ask(testkit::Port::free().address()).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }

    #[test]
    fn a_server_that_says_nothing_is_late_and_one_that_never_ends_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let error = status(address, "/", Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let talker = thread::spawn(move || {
            // The first client gave up already.
            let (mut stream, _) = listener
                .incoming()
                .map(|stream| (stream.unwrap(), ()))
                .nth(1)
                .unwrap();
            while stream.write_all(&[b'x'; 256]).is_ok() {}
        });
        let error = status(address, "/", Duration::from_secs(5)).unwrap_err();
        assert!(error.to_string().contains("no end"), "{error}");
        talker.join().unwrap();
    }
}
