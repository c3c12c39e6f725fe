//! What a hostile guest can send the host: control messages, session answers and data frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_protocol::{
    FrameKind, FrameReader, TtySize,
    guest::{GuestMessage, SessionReply},
    shell::LineReport,
};

fuzz_target!(|data: &[u8]| {
    let mut reader = FrameReader::new(data);
    while let Ok(Some(frame)) = reader.read() {
        assert!(frame.payload.len() <= frame.kind.max_payload());
        // Any answer but a panic is fine: the decoders either read it or refuse it.
        match frame.kind {
            FrameKind::Control => drop(frame.json::<GuestMessage>()),
            FrameKind::Header => drop(frame.json::<SessionReply>()),
            FrameKind::Exit => {
                if let Ok(report) = frame.json::<LineReport>() {
                    let _code: u8 = report.exit.status.code();
                }
            }
            FrameKind::Resize => {
                if let Some(size) = TtySize::from_bytes(frame.payload) {
                    assert_eq!(size.to_bytes(), frame.payload);
                }
            }
            _ => {}
        }
    }
});
