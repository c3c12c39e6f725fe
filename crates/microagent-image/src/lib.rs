//! Registries, content store, archives, and layers to disk.

pub mod disk;
