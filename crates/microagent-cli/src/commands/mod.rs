//! One file per command, named as the command.

pub(crate) mod completions;
pub(crate) mod connect;
pub(crate) mod cp;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod images;
pub(crate) mod kernel;
pub(crate) mod login;
pub(crate) mod logout;
pub(crate) mod man;
pub(crate) mod run;
pub(crate) mod spec;
pub(crate) mod version;
pub(crate) mod whoami;
pub(crate) mod wiring_args;
