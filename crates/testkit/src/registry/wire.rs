//! A wire that can be slow or cut.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;

/// A TCP wire to a port on loopback that can be slow, and that can be cut.
#[derive(Debug)]
pub struct Wire {
    port: u16,
    state: Arc<WireState>,
}

#[derive(Debug, Default)]
struct WireState {
    /// Bytes per second towards the client; 0 is as fast as it goes.
    rate: AtomicU64,
    /// Connections are cut after so many bytes towards the client, while cuts are left.
    cut_after: AtomicU64,
    cuts: AtomicI64,
    carried: AtomicU64,
    /// The same three towards the server.
    up_rate: AtomicU64,
    up_cut_after: AtomicU64,
    up_cuts: AtomicI64,
    up_carried: AtomicU64,
    closed: AtomicBool,
}

impl Wire {
    /// Listens on a free loopback port and connects each connection to `target`.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn to(target: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(WireState::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.closed.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), state) = (client, Arc::clone(&shared)) else {
                    continue;
                };
                // A target that is down closes the client's connection: dropping it does.
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else {
                    continue;
                };
                std::thread::spawn(move || carry(&client, &server, &state));
            }
        });
        Ok(Self { port, state })
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets at most so many bytes per second reach each client.
    pub fn slow(&self, bytes_per_second: u64) {
        self.state.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Cuts the next `cuts` connections that carry `bytes` bytes to the client.
    pub fn cut(&self, bytes: u64, cuts: u32) {
        self.state.cut_after.store(bytes, Ordering::Relaxed);
        self.state.cuts.store(i64::from(cuts), Ordering::Relaxed);
    }

    /// Lets at most so many bytes per second of each client reach the server.
    pub fn slow_up(&self, bytes_per_second: u64) {
        self.state
            .up_rate
            .store(bytes_per_second, Ordering::Relaxed);
    }

    /// Cuts the next `cuts` connections that carry `bytes` bytes to the server.
    pub fn cut_up(&self, bytes: u64, cuts: u32) {
        self.state.up_cut_after.store(bytes, Ordering::Relaxed);
        self.state.up_cuts.store(i64::from(cuts), Ordering::Relaxed);
    }

    /// How many bytes the server was sent, over all connections.
    #[must_use]
    pub fn carried_up(&self) -> u64 {
        self.state.up_carried.load(Ordering::Relaxed)
    }

    /// How many bytes clients were sent, over all connections.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.state.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        // Wakes the listener; if that fails it is gone already.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn carry(client: &TcpStream, server: &TcpStream, state: &Arc<WireState>) {
    let up = Arc::clone(state);
    if let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) {
        std::thread::spawn(move || {
            let way = Way {
                rate: &up.up_rate,
                cut_after: &up.up_cut_after,
                cuts: &up.up_cuts,
                carried: &up.up_carried,
            };
            if way.carry(&from, &to) {
                // However it ends, the other side is told so.
                let _ = to.shutdown(Shutdown::Write);
            } else {
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            }
        });
    }
    let way = Way {
        rate: &state.rate,
        cut_after: &state.cut_after,
        cuts: &state.cuts,
        carried: &state.carried,
    };
    way.carry(server, client);
    // They may be closed already.
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

/// One direction of a wire.
struct Way<'s> {
    rate: &'s AtomicU64,
    cut_after: &'s AtomicU64,
    cuts: &'s AtomicI64,
    carried: &'s AtomicU64,
}

impl Way<'_> {
    /// Carries bytes until there are no more; gives whether it was not cut.
    fn carry(&self, mut from: &TcpStream, mut to: &TcpStream) -> bool {
        let mut buffer = vec![0u8; 16 << 10];
        let mut sent = 0u64;
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
            sent += count as u64;
            self.carried.fetch_add(count as u64, Ordering::Relaxed);
            let rate = self.rate.load(Ordering::Relaxed);
            if let Some(wait) = (count as u64 * 1_000_000).checked_div(rate) {
                std::thread::sleep(Duration::from_micros(wait));
            }
            let limit = self.cut_after.load(Ordering::Relaxed);
            if limit > 0 && sent >= limit && self.cuts.fetch_sub(1, Ordering::Relaxed) > 0 {
                return false;
            }
        }
        true
    }
}
