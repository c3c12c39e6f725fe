//! Measurements from inside: the agent's program, started again by a session.

mod disk;
mod peer;

use std::{
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
};

use microagent_protocol::measure::{MEASURE, TOKEN_LEN, task};

use crate::vsock;

/// What was wrong, for whoever reads the session's standard error.
fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.to_owned())
}

/// Does what `arguments` ask for; `None` if that is no measurement.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Option<io::Result<()>> {
    (arguments.next()? == MEASURE).then(|| {
        let task = arguments
            .next()
            .ok_or_else(|| wrong("nothing to measure"))?;
        measure(&task, &arguments.collect::<Vec<_>>())
    })
}

fn measure(task: &str, arguments: &[String]) -> io::Result<()> {
    match (task, arguments) {
        (task::DISK, [mib]) => {
            let mib = mib.parse().map_err(|_| wrong("no size in MiB"))?;
            let times = disk::measure(mib)?;
            say(&serde_json::to_string(&times)?)
        }
        (task::CONNECT, [address, token]) => {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.write_all(checked(token)?)?;
            peer::answer(stream)
        }
        (task::VSOCK, [port, token]) => {
            let mut stream = vsock::connect(number(port)?)?;
            stream.write_all(checked(token)?)?;
            peer::answer(stream)
        }
        (task::LISTEN, [port, token]) => {
            let token = checked(token)?;
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, number(port)?))?;
            say("ready")?;
            loop {
                let (mut stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                // Anybody in the guest may come; who knows the token is the one.
                if peer::has_token(&mut stream, token) {
                    return peer::answer(stream);
                }
            }
        }
        _ => Err(wrong("not a measurement of this agent")),
    }
}

fn checked(token: &str) -> io::Result<&[u8]> {
    match token.len() {
        TOKEN_LEN => Ok(token.as_bytes()),
        _ => Err(wrong("the token has a strange length")),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| wrong("not a port"))
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}
