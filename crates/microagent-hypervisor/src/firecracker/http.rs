//! One request and one answer of HTTP/1.1 over a Unix socket, as much of it as Firecracker's API
//! speaks: a status, JSON bodies with a length, no chunks, no redirects.

use std::{
    io::{self, Read, Write},
    path::Path,
    time::{Duration, Instant},
};

use crate::hybrid::dial;

/// The longest head of an answer.
const MAX_HEAD: usize = 16 * 1024;
/// The longest body of an answer.
const MAX_BODY: usize = 1024 * 1024;

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Sends `method path` with a JSON body, if there is one, and reads the answer within `limit`.
pub(super) fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&[u8]>,
    limit: Duration,
) -> io::Result<Answer> {
    let deadline = Instant::now() + limit;
    let mut stream = dial(socket, deadline)?;
    let mut message =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if let Some(body) = body {
        message.push_str("Content-Type: application/json\r\n");
        message.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    message.push_str("\r\n");
    let mut bytes = message.into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(Some(left)),
    };
    stream.set_write_timeout(left()?)?;
    stream
        .write_all(&bytes)
        .map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })?;

    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(answer) = parse(&received)? {
            return Ok(answer);
        }
        stream.set_read_timeout(left()?)?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
}

/// The answer in these bytes, or `None` while it is not complete.
fn parse(bytes: &[u8]) -> io::Result<Option<Answer>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        if bytes.len() > MAX_HEAD {
            return Err(malformed("its head does not end"));
        }
        return Ok(None);
    };
    if end > MAX_HEAD {
        return Err(malformed("its head is too long"));
    }
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| malformed("its head is no text"))?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|rest| rest.split(' ').nth(1)?.parse().ok())
        .filter(|status| (100..600).contains(status))
        .ok_or_else(|| malformed("it has no status"))?;
    let mut length = 0;
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| malformed("a header has no colon"))?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value
                .trim()
                .parse()
                .ok()
                .filter(|length| *length <= MAX_BODY)
                .ok_or_else(|| malformed("its body is too long"))?;
        }
    }
    Ok(bytes[end + 4..]
        .split_at_checked(length)
        .map(|(body, _)| Answer {
            status,
            body: body.to_vec(),
        }))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the answer is not understood: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hybrid::listen_private;

    #[test]
    fn answers_of_firecracker_are_read_however_they_arrive() {
        let empty = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
        let fault = b"HTTP/1.1 400 \r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"a\": \"reason\"}";
        for (bytes, status, body) in [
            (&empty[..], 204, &b""[..]),
            (fault, 400, b"{\"a\": \"reason\"}"),
        ] {
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]).unwrap(), None, "{cut}");
            }
            let answer = parse(bytes).unwrap().unwrap();
            assert_eq!((answer.status, &answer.body[..]), (status, body));
        }
    }

    /// A monitor that a guest took over need not accept anybody.
    #[test]
    fn who_does_not_accept_is_given_up_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let _listener = listen_private(&path).unwrap();
        let limit = Duration::from_millis(5);
        let (done, told) = std::sync::mpsc::sync_channel(1);
        // More than wait to be accepted. In a thread: it never came back.
        std::thread::spawn(move || {
            let ask = |_| {
                request(&path, "PATCH", "/vm", None, limit)
                    .unwrap_err()
                    .kind()
            };
            done.send((0..200).map(ask).collect::<Vec<_>>())
        });
        let kinds = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(kinds, vec![io::ErrorKind::TimedOut; 200]);
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for bytes in [
            &b"SSH-2.0-x\r\n\r\n"[..],
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 99\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nnocolon\r\n\r\n",
            &[b'x'; MAX_HEAD + 1],
        ] {
            assert!(parse(bytes).is_err(), "{:?}", &bytes[..20.min(bytes.len())]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
            answer.extend(bytes);
            let _ = parse(&answer);
        }
    }
}
