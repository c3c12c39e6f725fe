//! The supervisor protocol from the client's side: starting the program, and talking to one that runs.

pub(crate) mod client;
pub(crate) mod program;
