//! Registries, content store, archives, and layers to disk.
