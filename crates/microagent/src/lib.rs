//! AI agent workspaces, each in its own Linux microVM: the library.
