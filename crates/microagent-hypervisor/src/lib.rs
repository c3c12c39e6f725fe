//! The Hypervisor and Machine traits and their drivers. Knows nothing of images or workspaces.
