//! Keeping a workspace up: when it is started again, and what tells that it is well.

mod health;
mod http;
mod keeper;
mod policy;
mod probe;
mod unit;
mod watch;

pub use health::{HealthCheck, HealthProbe};
pub use keeper::SuperviseEnd;
pub use policy::{InvalidRestartPolicy, RestartPolicy};
pub use unit::{SuperviseUnit, UnitReport};
pub use watch::{SuperviseEvent, SuperviseOptions, SuperviseReport, SuperviseStop};
