//! Firecracker's API, typed: the bodies of its published OpenAPI document, as far as this driver
//! uses them, and its errors in its own words with our remedy.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::http;
use crate::Error;

/// How long Firecracker may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to write or read a snapshot: that is the guest's memory.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(120);

/// `MachineConfiguration`.
#[derive(Debug, Serialize)]
pub(super) struct MachineConfiguration {
    pub(super) vcpu_count: u8,
    pub(super) mem_size_mib: u32,
    pub(super) smt: bool,
    pub(super) track_dirty_pages: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) huge_pages: Option<HugePages>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_template: Option<CpuTemplate>,
}

/// Pages that back a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum HugePages {
    /// Explicit pages of 2 MiB, which the host must have set aside.
    #[serde(rename = "2M")]
    TwoMebibytes,
}

/// A set of processor features that is the same on different hosts (x86_64, Intel unless said).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum CpuTemplate {
    /// That of C3 instances.
    C3,
    /// That of T2 instances.
    T2,
    /// T2, made the same for Skylake and Cascade Lake.
    T2S,
    /// T2, made the same for Intel and AMD, on Intel.
    T2CL,
    /// T2, made the same for Intel and AMD, on AMD.
    T2A,
    /// That of Neoverse V1 (aarch64).
    V1N1,
}

/// `BootSource`.
#[derive(Debug, Serialize)]
pub(super) struct BootSource<'a> {
    pub(super) kernel_image_path: &'a Path,
    pub(super) initrd_path: &'a Path,
    pub(super) boot_args: String,
}

/// `Drive`.
#[derive(Debug, Serialize)]
pub(super) struct Drive<'a> {
    pub(super) drive_id: String,
    pub(super) path_on_host: &'a Path,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
    pub(super) cache_type: CacheType,
    pub(super) io_engine: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rate_limiter: Option<RateLimiter>,
}

/// Whether a guest's flush reaches the host's disk.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) enum CacheType {
    Unsafe,
    Writeback,
}

/// What a device may do in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// So many of something in so long a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TokenBucket {
    /// How many.
    pub size: u64,
    /// In how many milliseconds.
    pub refill_time: u64,
}

/// `Vsock`.
#[derive(Debug, Serialize)]
pub(super) struct Vsock<'a> {
    pub(super) guest_cid: u32,
    pub(super) uds_path: &'a Path,
}

/// `Balloon`.
#[derive(Debug, Serialize)]
pub(super) struct Balloon {
    pub(super) amount_mib: u32,
    pub(super) deflate_on_oom: bool,
    pub(super) stats_polling_interval_s: u32,
}

#[derive(Debug, Serialize)]
struct BalloonUpdate {
    amount_mib: u32,
}

#[derive(Debug, Serialize)]
struct Empty {}

/// `NetworkInterface`.
#[derive(Debug, Serialize)]
pub(super) struct NetworkInterface {
    pub(super) iface_id: &'static str,
    pub(super) host_dev_name: &'static str,
    pub(super) guest_mac: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rx_rate_limiter: Option<RateLimiter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tx_rate_limiter: Option<RateLimiter>,
}

/// `Metrics`.
#[derive(Debug, Serialize)]
struct Metrics<'a> {
    metrics_path: &'a Path,
}

/// `InstanceActionInfo`.
#[derive(Debug, Serialize)]
struct ActionInfo {
    action_type: Action,
}

#[derive(Clone, Copy, Debug, Serialize)]
enum Action {
    InstanceStart,
    SendCtrlAltDel,
}

/// `Vm`.
#[derive(Debug, Serialize)]
struct Vm {
    state: VmState,
}

/// What the vCPUs are to do.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) enum VmState {
    Paused,
    Resumed,
}

/// `SnapshotCreateParams`.
#[derive(Debug, Serialize)]
struct SnapshotCreate<'a> {
    snapshot_type: &'static str,
    snapshot_path: &'a Path,
    mem_file_path: &'a Path,
}

/// `SnapshotLoadParams`.
#[derive(Debug, Serialize)]
struct SnapshotLoad<'a> {
    snapshot_path: &'a Path,
    mem_backend: MemoryBackend<'a>,
    resume_vm: bool,
}

#[derive(Debug, Serialize)]
struct MemoryBackend<'a> {
    backend_type: &'static str,
    backend_path: &'a Path,
}

/// `InstanceInfo`.
#[derive(Debug, Deserialize)]
pub(super) struct InstanceInfo {
    pub(super) state: String,
    pub(super) vmm_version: String,
}

#[derive(Debug, Deserialize)]
struct Fault {
    #[serde(default)]
    fault_message: String,
}

/// A Firecracker at its API socket.
#[derive(Debug)]
pub(super) struct Api {
    socket: PathBuf,
}

impl Api {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn describe(&self) -> Result<InstanceInfo, Error> {
        let action = "say how it is";
        let answer = self.send(action, "GET", "/", None, ANSWER_LIMIT)?;
        serde_json::from_slice(&answer).map_err(|error| Error::Control {
            action,
            reason: format!("its answer is not understood: {error}"),
        })
    }

    pub(super) fn metrics(&self, metrics_path: &Path) -> Result<(), Error> {
        self.put(
            "take its metrics' file",
            "/metrics",
            &Metrics { metrics_path },
        )
    }

    pub(super) fn machine(&self, body: &MachineConfiguration) -> Result<(), Error> {
        self.put("take the machine's size", "/machine-config", body)
    }

    pub(super) fn boot_source(&self, body: &BootSource<'_>) -> Result<(), Error> {
        self.put("take the kernel", "/boot-source", body)
    }

    pub(super) fn drive(&self, body: &Drive<'_>) -> Result<(), Error> {
        self.put("take a disk", &format!("/drives/{}", body.drive_id), body)
    }

    pub(super) fn network(&self, body: &NetworkInterface) -> Result<(), Error> {
        let path = format!("/network-interfaces/{}", body.iface_id);
        self.put("take its network card", &path, body)
    }

    pub(super) fn vsock(&self, body: &Vsock<'_>) -> Result<(), Error> {
        self.put("take the vsock", "/vsock", body)
    }

    pub(super) fn entropy(&self) -> Result<(), Error> {
        self.put("take the entropy device", "/entropy", &Empty {})
    }

    pub(super) fn balloon(&self, body: &Balloon) -> Result<(), Error> {
        self.put("take the balloon", "/balloon", body)
    }

    pub(super) fn inflate(&self, amount_mib: u32) -> Result<(), Error> {
        let body = BalloonUpdate { amount_mib };
        self.change("set the balloon", "PATCH", "/balloon", &body, ANSWER_LIMIT)
    }

    pub(super) fn start(&self) -> Result<(), Error> {
        self.act("start the machine", Action::InstanceStart)
    }

    pub(super) fn ctrl_alt_del(&self) -> Result<(), Error> {
        self.act("press Ctrl-Alt-Del", Action::SendCtrlAltDel)
    }

    pub(super) fn set_state(&self, action: &'static str, state: VmState) -> Result<(), Error> {
        self.change(action, "PATCH", "/vm", &Vm { state }, ANSWER_LIMIT)
    }

    pub(super) fn create_snapshot(&self, state: &Path, memory: &Path) -> Result<(), Error> {
        let body = SnapshotCreate {
            snapshot_type: "Full",
            snapshot_path: state,
            mem_file_path: memory,
        };
        self.change(
            "write a snapshot",
            "PUT",
            "/snapshot/create",
            &body,
            SNAPSHOT_LIMIT,
        )
    }

    pub(super) fn load_snapshot(
        &self,
        state: &Path,
        memory: &Path,
        resume: bool,
    ) -> Result<(), Error> {
        let body = SnapshotLoad {
            snapshot_path: state,
            mem_backend: MemoryBackend {
                backend_type: "File",
                backend_path: memory,
            },
            resume_vm: resume,
        };
        self.change(
            "load a snapshot",
            "PUT",
            "/snapshot/load",
            &body,
            SNAPSHOT_LIMIT,
        )
    }

    fn act(&self, action: &'static str, action_type: Action) -> Result<(), Error> {
        self.put(action, "/actions", &ActionInfo { action_type })
    }

    fn put(&self, action: &'static str, path: &str, body: &impl Serialize) -> Result<(), Error> {
        self.change(action, "PUT", path, body, ANSWER_LIMIT)
    }

    fn change(
        &self,
        action: &'static str,
        method: &str,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Control {
            action,
            // A path that is not UTF-8: JSON has no words for it.
            reason: format!("it cannot be told: {error}"),
        })?;
        self.send(action, method, path, Some(&body), limit)
            .map(drop)
    }

    fn send(
        &self,
        action: &'static str,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        limit: Duration,
    ) -> Result<Vec<u8>, Error> {
        let answer = http::request(&self.socket, method, path, body, limit).map_err(|error| {
            let reason = match error.kind() {
                io::ErrorKind::TimedOut => format!("it did not answer within {limit:?}"),
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe => "it ended".to_owned(),
                _ => error.to_string(),
            };
            Error::Control { action, reason }
        })?;
        tracing::debug!(method, path, status = answer.status, "asked Firecracker");
        if answer.is_success() {
            return Ok(answer.body);
        }
        let words = serde_json::from_slice::<Fault>(&answer.body)
            .map(|fault| fault.fault_message)
            .unwrap_or_default();
        Err(Error::Control {
            action,
            reason: explained(&words, answer.status),
        })
    }
}

/// Firecracker's own words, made safe to show, and what to do about them.
fn explained(words: &str, status: u16) -> String {
    let words = crate::text::printable(words.as_bytes());
    let words: String = words.chars().take(2000).collect();
    if words.is_empty() {
        return format!("it refused with status {status} and no reason");
    }
    let has = |part: &str| words.to_ascii_lowercase().contains(part);
    let remedy = if has("/dev/kvm") || has("kvm object") || has("error creating vm") {
        "; look with `microagent doctor` whether KVM works here and this user may open /dev/kvm"
    } else if has("hugetlb") || has("huge page") {
        "; set huge pages aside (/proc/sys/vm/nr_hugepages) or use none"
    } else if has("cannot allocate memory") || has("mmap") {
        "; give the machine less memory, or free some"
    } else if has("template") {
        "; leave the CPU template out, or take one for this processor"
    } else if has("tap") {
        "; the machine's network device is missing or in use"
    } else if has("address in use") {
        "; another machine uses its socket: end it, or start this one again"
    } else if has("permission denied") || has("no such file") {
        "; its files must be there and readable for this user"
    } else {
        ""
    };
    format!("Firecracker says: {words}{remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_firecrackers_words_and_a_remedy() {
        let text = explained(
            "Internal error while starting microVM: Cannot open /dev/kvm\u{1b}[2J",
            400,
        );
        assert!(
            text.starts_with("Firecracker says: Internal error while starting microVM: Cannot")
        );
        assert!(
            text.contains("microagent doctor") && !text.contains('\u{1b}'),
            "{text}"
        );
        assert_eq!(
            explained("", 500),
            "it refused with status 500 and no reason"
        );
        assert!(explained(&"x".repeat(100_000), 400).len() < 3000);
    }
}
