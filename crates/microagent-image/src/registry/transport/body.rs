//! What comes in answer to a request: bounded in length, and in how slowly it may come.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::Body;
use ureq::http::Response;

use super::{Failure, Transport};

/// What has to come in a second, on average of the time that a registry may be silent for: who sends less is as
/// good as silent, and would hold us for as long as it likes.
const LEAST_PER_SECOND: f64 = 1024.0;

impl Transport<'_> {
    /// The body of an answer.
    pub(crate) fn body(&self, response: Response<Body>) -> impl Read + use<> {
        Paced::new(
            response.into_body().into_reader(),
            self.options.stall_timeout,
        )
    }

    /// Reads a body up to one byte more than `limit`, so that the caller can tell too long from just right.
    pub(crate) fn bytes(
        &self,
        response: Response<Body>,
        limit: u64,
    ) -> std::result::Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        self.body(response)
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::passing(error.to_string()))?;
        Ok(bytes)
    }
}

/// A reader that fails where too little comes. What the caller does between two reads is not its fault.
struct Paced<R> {
    inner: R,
    window: Duration,
    waited: Duration,
    came: usize,
}

impl<R> Paced<R> {
    fn new(inner: R, window: Duration) -> Self {
        Self {
            inner,
            window,
            waited: Duration::ZERO,
            came: 0,
        }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let begun = Instant::now();
        let count = self.inner.read(buffer)?;
        self.waited += begun.elapsed();
        self.came += count;
        if count > 0 && self.waited >= self.window {
            let waited = self.waited.as_secs_f64();
            if (self.came as f64) < LEAST_PER_SECOND * waited {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no more than {} bytes came in {waited:.1} s", self.came),
                ));
            }
            (self.waited, self.came) = (Duration::ZERO, 0);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Gives so many bytes at once, each time after a while.
    struct Drops(usize, Duration);

    impl Read for Drops {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            thread::sleep(self.1);
            let count = self.0.min(buffer.len());
            buffer[..count].fill(1);
            Ok(count)
        }
    }

    #[test]
    fn who_sends_hardly_anything_is_given_up_and_nobody_else() {
        let wait = Duration::from_millis(10);
        let window = Duration::from_millis(200);
        let most = 1 << 20;
        let read = |drops, window| {
            let mut body = Paced::new(drops, window).take(most);
            io::copy(&mut body, &mut io::sink())
        };
        let error = read(Drops(1, wait), window).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("bytes came in"), "{error}");
        // However long the pauses are that a loaded host makes of ours, this is enough in the first window.
        assert_eq!(read(Drops(64 << 10, wait), window).unwrap(), most);
        // Slow at the end of what comes in less than the window.
        let mut short = Paced::new(Drops(1, wait), Duration::from_secs(3600)).take(5);
        assert_eq!(io::copy(&mut short, &mut io::sink()).unwrap(), 5);
    }

    #[test]
    fn what_the_caller_takes_is_not_counted() {
        let mut body = Paced::new(&[1_u8; 100][..], Duration::from_millis(300));
        for _ in 0..10 {
            body.read_exact(&mut [0; 1]).unwrap();
            thread::sleep(Duration::from_millis(40));
        }
    }
}
