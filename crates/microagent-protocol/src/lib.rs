//! Wire types and framing: the supervisor protocol and the guest protocol. No async runtime, no OS calls.
