//! An HTTP server that answers by a function: for what no real server does on demand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

/// The most of a request's body that is read.
const MAX_BODY: u64 = 1 << 20;

/// A request as the server sees it.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `GET`, `HEAD`, `POST`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The headers, in their order.
    pub headers: Vec<(String, String)>,
    /// The body, of the length the headers say.
    pub body: String,
}

impl Request {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// An answer: status line, headers, body.
#[derive(Clone, Debug)]
pub struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    /// An answer with nothing in it.
    #[must_use]
    pub fn new(status: &'static str) -> Self {
        Self::of(status, Vec::new(), Vec::new())
    }

    /// An answer of these parts. The body's length is declared unless a header says otherwise.
    #[must_use]
    pub fn of(status: &'static str, headers: Vec<(&'static str, String)>, body: Vec<u8>) -> Self {
        Self {
            status,
            headers,
            body,
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// A server on a free loopback port, which answers until the test process ends.
#[derive(Clone, Copy, Debug)]
pub struct Scripted {
    port: u16,
}

impl Scripted {
    /// Starts it.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || serve(&stream, &*answer));
            }
        });
        Self { port }
    }

    /// Its port.
    #[must_use]
    pub fn port(self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn name(self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// Answers one request. A client that went away is no fault of the server.
fn serve(stream: &TcpStream, answer: &dyn Fn(&Request) -> Answer) {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    // A TLS hello has no line end for long: answer as HTTP servers do.
    if reader
        .fill_buf()
        .is_ok_and(|head| head.first() == Some(&0x16))
    {
        let _ = writer.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        return;
    }
    let Some(request) = read(&mut reader) else {
        return;
    };
    let Answer {
        status,
        headers,
        body,
    } = answer(&request);
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    if !headers
        .iter()
        .any(|(name, _)| *name == "Transfer-Encoding" || *name == "Content-Length")
    {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let _ = writer.write_all(head.as_bytes());
    if request.method != "HEAD" {
        let _ = writer.write_all(&body);
    }
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let mut request = Request {
        method: words.next()?.to_owned(),
        target: words.next()?.to_owned(),
        ..Request::default()
    };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        request
            .headers
            .push((name.to_owned(), value.trim().to_owned()));
    }
    if let Some(length) = request.header("content-length") {
        let length = length.parse().ok().filter(|length| *length <= MAX_BODY)?;
        reader.take(length).read_to_string(&mut request.body).ok()?;
    }
    Some(request)
}
