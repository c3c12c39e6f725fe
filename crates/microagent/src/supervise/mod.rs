//! Keeping a workspace up: when it is started again, and what tells that it is well.

mod beat;
mod health;
mod http;
mod keeper;
mod policy;
mod probe;
mod step;
mod unit;
mod watch;

pub use health::{HealthCheck, HealthProbe};
pub use keeper::SuperviseEnd;
pub use policy::{InvalidRestartPolicy, RestartPolicy};
pub use step::{SuperviseEvent, SuperviseReport};
pub use unit::{SuperviseUnit, UnitReport};
pub use watch::{SuperviseOptions, SuperviseStop};
