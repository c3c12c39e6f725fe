//! One file per command, named as the command.

pub(crate) mod doctor;
pub(crate) mod images;
pub(crate) mod kernel;
pub(crate) mod login;
pub(crate) mod logout;
pub(crate) mod run;
pub(crate) mod version;
pub(crate) mod whoami;
