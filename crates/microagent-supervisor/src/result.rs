//! What is kept of a workload: bounded output and `result.json`.

use std::{path::Path, time::SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use microagent_protocol::{
    CapturedOutput, Timestamp, exec::ExitReport, output::OutputEncoding, supervisor::WorkloadResult,
};

use crate::{
    Error,
    files::{self, Durability},
};

/// The kept head of one stream.
#[derive(Debug, Default)]
struct Head {
    bytes: Vec<u8>,
    total: u64,
}

impl Head {
    fn take(&mut self, bytes: &[u8], limit: usize) {
        self.total = self.total.saturating_add(bytes.len() as u64);
        let room = limit.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..room]);
    }

    fn output(&self) -> CapturedOutput {
        let truncated = self.total > self.bytes.len() as u64;
        let (encoding, data) = match std::str::from_utf8(&self.bytes) {
            Ok(text) => (OutputEncoding::Utf8, text.to_owned()),
            // A character that the limit cut in two is left out whole.
            Err(error) if truncated && error.error_len().is_none() => (
                OutputEncoding::Utf8,
                String::from_utf8_lossy(&self.bytes[..error.valid_up_to()]).into_owned(),
            ),
            Err(_) => (OutputEncoding::Base64, STANDARD.encode(&self.bytes)),
        };
        CapturedOutput {
            encoding,
            data,
            total_bytes: self.total,
            truncated,
        }
    }
}

/// What a workload did so far.
#[derive(Debug)]
pub(crate) struct Capture {
    limit: usize,
    started_at: Timestamp,
    exited_at: Option<Timestamp>,
    exit: Option<ExitReport>,
    stdout: Head,
    stderr: Head,
}

impl Capture {
    /// Nothing yet; at most `limit` bytes of each stream will be kept.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit: limit as usize,
            started_at: Timestamp(SystemTime::now()),
            exited_at: None,
            exit: None,
            stdout: Head::default(),
            stderr: Head::default(),
        }
    }

    pub(crate) fn stdout(&mut self, bytes: &[u8]) {
        self.stdout.take(bytes, self.limit);
    }

    pub(crate) fn stderr(&mut self, bytes: &[u8]) {
        self.stderr.take(bytes, self.limit);
    }

    pub(crate) fn exited(&mut self, report: ExitReport) {
        self.exited_at = Some(Timestamp(SystemTime::now()));
        self.exit = Some(report);
    }

    /// How it ended, if it did.
    pub(crate) fn report(&self) -> Option<&ExitReport> {
        self.exit.as_ref()
    }

    fn result(&self) -> WorkloadResult {
        WorkloadResult {
            started_at: self.started_at,
            exited_at: self
                .exited_at
                .unwrap_or_else(|| Timestamp(SystemTime::now())),
            exit: self.exit.as_ref().map(|report| report.status.clone()),
            exit_code: self.exit.as_ref().map(|report| report.status.code()),
            oom_kills: self.exit.as_ref().map_or(0, |report| report.oom_kills),
            stdout: self.stdout.output(),
            stderr: self.stderr.output(),
        }
    }

    /// Writes `result.json` in `directory`.
    pub(crate) fn save(&self, directory: &Path, durability: Durability) -> Result<(), Error> {
        let path = directory.join("result.json");
        let mut bytes = serde_json::to_vec_pretty(&self.result())
            .map_err(|error| Error::file("write", &path)(error.into()))?;
        bytes.push(b'\n');
        files::replace(&path, &bytes, durability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_bounded_and_exact() {
        let mut head = Head::default();
        head.take(b"abc", 4);
        head.take("dü".as_bytes(), 5);
        let kept = head.output();
        assert_eq!(
            (
                kept.encoding,
                kept.data.as_str(),
                kept.total_bytes,
                kept.truncated
            ),
            (OutputEncoding::Utf8, "abcd", 6, true)
        );
        let mut head = Head::default();
        head.take(&[0xff, 0], 8);
        let kept = head.output();
        assert_eq!(
            (kept.encoding, kept.data.as_str(), kept.truncated),
            (OutputEncoding::Base64, "/wA=", false)
        );
    }
}
