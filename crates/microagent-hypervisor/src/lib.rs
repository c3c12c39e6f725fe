//! The Hypervisor and Machine traits and their drivers. Knows nothing of images or workspaces.

#[cfg(target_os = "linux")]
pub mod vsock;
