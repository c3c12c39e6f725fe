//! Registries under the names that documents give them.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::Result;

/// A proxy that leads to each name's registry on loopback, whatever the world's resolvers say of it; to
/// nothing else.
#[derive(Debug)]
pub struct Names {
    port: u16,
}

impl Names {
    /// Listens on a free loopback port; `known` has the port of each name (`registry.example.com:443`).
    /// It serves as long as this process lives.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(known: &[(&str, u16)]) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let known: Arc<[_]> = known
            .iter()
            .map(|(name, port)| ((*name).to_owned(), *port))
            .collect();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let known = Arc::clone(&known);
                // A client that goes away is none of the others' business.
                std::thread::spawn(move || drop(serve(client, &known)));
            }
        });
        Ok(Self { port })
    }

    /// What clients are to be told in `HTTPS_PROXY`.
    #[must_use]
    pub fn proxy(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn serve(mut client: TcpStream, known: &[(String, u16)]) -> Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let wanted = first
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next());
    let found = known.iter().find(|(name, _)| Some(name.as_str()) == wanted);
    let Some((_, port)) = found else {
        client.write_all(b"HTTP/1.1 502 Unknown\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(());
    };
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    let (mut to_client, mut from_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        // It ends with either side; the other is told.
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
    // What the reader has read already goes first.
    std::io::copy(&mut reader, &mut server)?;
    server.shutdown(Shutdown::Write)?;
    Ok(())
}
