//! What a client can send a supervisor, and a supervisor a client.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_protocol::{
    FrameKind, FrameReader,
    supervisor::{Event, Request, Response, WorkloadResult},
};

fuzz_target!(|data: &[u8]| {
    let mut reader = FrameReader::new(data);
    while let Ok(Some(frame)) = reader.read() {
        match frame.kind {
            FrameKind::Request => {
                if let Ok(request) = frame.json::<Request>() {
                    // What was understood can be said again, and means the same.
                    let again = serde_json::to_vec(&request).unwrap();
                    assert_eq!(serde_json::from_slice::<Request>(&again).unwrap(), request);
                }
            }
            FrameKind::Response => drop(frame.json::<Response>().map(Response::into_result)),
            FrameKind::Event => drop(frame.json::<Event>()),
            _ => drop(frame.json::<WorkloadResult>()),
        }
    }
});
