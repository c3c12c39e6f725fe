//! Guests, registries, fixtures and kills, so that a VM test is ten lines.

pub mod registry;
