//! The published protocol, seen by programs that know only `docs/protocol.md`.

use std::{
    io::Write as _,
    os::unix::{fs::symlink, net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use microagent_protocol::{Frame, FrameKind, FrameReader, frame::write_frame};
use serde_json::Value;

use crate::machines;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Every transcript of the page happens as it is written.
pub(crate) fn transcripts() {
    let page = std::fs::read_to_string(Path::new(ROOT).join("docs/protocol.md")).unwrap();
    let workspace = machines::workspace();
    let spec = serde_json::to_value(&workspace.spec).unwrap();
    let mut socket = None;
    let mut connection: Option<FrameReader<UnixStream>> = None;
    let mut lines = 0;
    for block in page.split("```transcript\n").skip(1) {
        let mut one_shot = None;
        for line in block.split("```").next().unwrap().lines() {
            lines += 1;
            let context = format!("docs/protocol.md: {line}");
            match line.split_once(' ').unwrap() {
                ("---", "one-shot") => connection = None,
                ("---", "connection") => {
                    let path: &PathBuf = socket.as_ref().expect("a launch comes first");
                    let stream = UnixStream::connect(path).unwrap();
                    stream
                        .set_read_timeout(Some(Duration::from_secs(150)))
                        .unwrap();
                    connection = Some(FrameReader::new(stream));
                }
                (">", sent) => match &connection {
                    Some(connection) => send(connection.get_ref(), sent),
                    None => one_shot = Some(ask_once(sent, &spec)),
                },
                ("<", wanted) => match &mut connection {
                    Some(connection) => receive(connection, wanted, &context),
                    None => {
                        let got = one_shot.take().expect("a request comes first");
                        fits(&serde_json::from_str(wanted).unwrap(), &got, &context);
                        if let Some(path) = got.pointer("/answer/value/socket") {
                            socket = Some(PathBuf::from(path.as_str().unwrap()));
                        }
                    }
                },
                _ => panic!("{context}: not understood"),
            }
        }
    }
    assert!(lines > 20, "the transcripts were not found");
}

fn ask_once(request: &str, spec: &Value) -> Value {
    let mut request: Value = serde_json::from_str(request).unwrap();
    if request["arguments"] == "@SPEC" {
        request["arguments"] = spec.clone();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg0("microagent-supervisor")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(request.to_string().as_bytes()).unwrap();
    drop(input);
    serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap()
}

fn kind(name: &str) -> FrameKind {
    match name {
        "request" => FrameKind::Request,
        "response" => FrameKind::Response,
        "event" => FrameKind::Event,
        "stdin" => FrameKind::Stdin,
        "stdin_eof" => FrameKind::StdinEof,
        "stdout" => FrameKind::Stdout,
        "exit" => FrameKind::Exit,
        other => panic!("no frame is called {other}"),
    }
}

fn send(mut stream: &UnixStream, frame: &str) {
    let (name, payload) = frame.split_once(' ').unwrap_or((frame, ""));
    let payload = match kind(name) {
        FrameKind::Stdin => serde_json::from_str::<String>(payload).unwrap(),
        _ => payload.to_owned(),
    };
    write_frame(&mut stream, kind(name), payload.as_bytes()).unwrap();
}

fn receive(connection: &mut FrameReader<UnixStream>, wanted: &str, context: &str) {
    let (name, payload) = wanted.split_once(' ').unwrap();
    let next = |frame: Frame<'_>| (frame.kind, frame.payload.to_vec());
    let mut got = next(connection.require().unwrap());
    while got.0 == FrameKind::StdinCredit {
        got = next(connection.require().unwrap());
    }
    assert_eq!(got.0, kind(name), "{context}");
    if got.0 == FrameKind::Stdout {
        let wanted: String = serde_json::from_str(payload).unwrap();
        assert_eq!(got.1, wanted.as_bytes(), "{context}");
    } else {
        let got: Value = serde_json::from_slice(&got.1).unwrap();
        fits(&serde_json::from_str(payload).unwrap(), &got, context);
    }
}

/// Whether all that is wanted is there; `…` is anything.
fn fits(wanted: &Value, got: &Value, context: &str) {
    match (wanted, got) {
        (Value::String(text), _) if text == "…" => {}
        (Value::Object(wanted), Value::Object(fields)) => {
            for (key, wanted) in wanted {
                let field = fields.get(key).unwrap_or(&Value::Null);
                fits(wanted, field, &format!("{context}\n  at {key} of {got}"));
            }
        }
        _ => assert_eq!(wanted, got, "{context}"),
    }
}

/// A program that knows nothing but the protocol runs a command and sees the machine end.
pub(crate) fn python() {
    let workspace = machines::workspace();
    let root = workspace.root.path();
    let spec = root.join("spec.json");
    std::fs::write(&spec, serde_json::to_vec(&workspace.spec).unwrap()).unwrap();
    // This test program is a supervisor where it is called like one.
    let supervisor = root.join("microagent-supervisor");
    symlink(std::env::current_exe().unwrap(), &supervisor).unwrap();
    let client = |argv: &[&str]| {
        Command::new("python3")
            .arg(Path::new(ROOT).join("examples/supervisor_client.py"))
            .arg(&supervisor)
            .arg(&spec)
            .args(argv)
            .output()
            .expect("python3 is missing; install the package python3")
    };
    let output = client(&["sh", "-c", "uname -s; echo bad >&2; exit 42"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(42), "{stderr}");
    assert_eq!(output.stdout, b"Linux\n", "{stderr}");
    assert_eq!(stderr, "bad\nthe machine is failed: workload_finished\n");

    std::fs::write(&spec, "{}").unwrap();
    let refused = client(&["true"]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.starts_with("invalid: "), "{stderr}");
    assert_eq!(refused.status.code(), Some(1));
}
