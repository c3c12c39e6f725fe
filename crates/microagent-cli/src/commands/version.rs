//! `microagent version`.

use microagent::{Error, GUEST_SHA256};
use serde_json::json;

use crate::output::{Screen, short};

pub(crate) fn run(screen: &Screen) -> Result<u8, Error> {
    let version = env!("CARGO_PKG_VERSION");
    let value = json!({
        "version": version,
        "guest_sha256": GUEST_SHA256,
        "os": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
    });
    screen.result(&value, |_| {
        let (os, architecture) = (std::env::consts::OS, std::env::consts::ARCH);
        format!(
            "microagent {version} ({architecture} {os}, guest agent {})\n",
            short(GUEST_SHA256)
        )
    });
    Ok(0)
}
