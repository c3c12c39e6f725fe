//! Keeping a workspace up: when it is started again, and what tells that it is well.

mod health;
mod policy;

pub use health::{HealthCheck, HealthProbe};
pub use policy::{InvalidRestartPolicy, RestartPolicy};
