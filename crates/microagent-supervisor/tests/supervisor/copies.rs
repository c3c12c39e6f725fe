//! Copies, relayed between a client and a scripted guest that packs and lands files of the host.

use std::{
    io::{BufRead, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
};

use microagent_files::{Policy, land, pack};
use microagent_protocol::{
    CopyEnd, CopyIn, CopyOut, CopyReport, EndCause, FrameKind, FrameReader, Landing, Shipment,
    frame::{write_frame, write_json},
    guest::{SessionReply, SessionRequest},
    stream::{DataReader, DataWriter},
    supervisor::{Answer, Command as Ask, ErrorKind},
};

use crate::{
    SOON,
    client::{Client, Machine, Workspace},
    gone,
    vmm::wait_for,
};

/// The guest's side of a copy.
pub(crate) fn guest(mut stream: UnixStream, request: SessionRequest) {
    write_json(&mut stream, FrameKind::Header, &SessionReply::Opened).unwrap();
    let end = match request {
        SessionRequest::CopyOut(request) => match request.path.as_str() {
            "/violate" => {
                write_frame(&mut stream, FrameKind::Stderr, b"x").unwrap();
                return;
            }
            "/vanish" => {
                write_frame(&mut stream, FrameKind::Stdout, b"x").unwrap();
                return;
            }
            "/lie" => {
                write_frame(
                    &mut stream,
                    FrameKind::Exit,
                    b"{\"copy\":\"done\",\"files\":-1}",
                )
                .unwrap();
                return;
            }
            "/rude" => CopyEnd::Failed {
                kind: ErrorKind::Permanent,
                message: "\u{1b}]0;x\u{7} no".to_owned(),
            },
            "/endless" => {
                while write_frame(&mut stream, FrameKind::Stdout, &[0; 60_000]).is_ok() {}
                return;
            }
            path => {
                let output = DataWriter::new(&stream, FrameKind::Stdout);
                let (output, report) = pack(Path::new(path), request.what, output).unwrap();
                output.finish().unwrap();
                CopyEnd::Done(report)
            }
        },
        SessionRequest::CopyIn(request) => {
            let frames = FrameReader::new(&stream);
            let mut input = DataReader::new(frames, FrameKind::Stdin, FrameKind::StdinEof);
            let path = Path::new(request.path.as_str());
            match land(&mut input, path, &request.landing, &Policy::trusting()) {
                Ok(report) => CopyEnd::Done(report),
                Err(error) => {
                    let _ = std::fs::write(path.with_extension("refused"), error.to_string());
                    CopyEnd::Failed {
                        kind: error.kind(),
                        message: error.to_string(),
                    }
                }
            }
        }
        SessionRequest::Exec(_) | SessionRequest::Shell(_) | SessionRequest::Forward { .. } => {
            unreachable!()
        }
    };
    let _ = write_json(&mut stream, FrameKind::Exit, &end);
    let _ = (&stream).read_to_end(&mut Vec::new());
}

fn out(path: &str) -> Ask {
    Ask::CopyOut(CopyOut {
        path: path.parse().unwrap(),
        what: microagent_protocol::CopyWhat::default(),
    })
}

fn into(path: &Path) -> Ask {
    Ask::CopyIn(CopyIn {
        path: path.to_str().unwrap().parse().unwrap(),
        landing: Landing::new(Shipment::Named),
    })
}

fn running() -> (Workspace, Machine) {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    (workspace, machine)
}

fn begin(machine: &Machine, ask: Ask) -> Client {
    let mut client = machine.client();
    assert_eq!(client.ask(ask).unwrap(), Answer::Copying);
    client
}

/// The stream up to its exit frame, and that.
fn received(client: Client) -> (Vec<u8>, CopyEnd) {
    let mut reader = DataReader::new(client.0, FrameKind::Stdout, FrameKind::Exit);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    let (end, _) = reader.into_end().unwrap();
    (bytes, serde_json::from_slice(&end).unwrap())
}

/// A file with something to relay in it.
fn source(workspace: &Workspace) -> std::path::PathBuf {
    let source = workspace.root.path().join("source");
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&source, content).unwrap();
    source
}

pub(crate) fn files_are_copied_both_ways() {
    let (workspace, machine) = running();
    let source = source(&workspace);
    let (bytes, end) = received(begin(&machine, out(source.to_str().unwrap())));
    let CopyEnd::Done(CopyReport {
        files: 1,
        bytes: 12_000_000,
        ..
    }) = end
    else {
        panic!("{end:?}");
    };
    let landed = workspace.root.path().join("landed");
    let client = begin(&machine, into(&landed));
    let mut output = DataWriter::new(client.stream(), FrameKind::Stdin);
    output.write_all(&bytes).unwrap();
    output.finish().unwrap();
    client.send(FrameKind::StdinEof, b"");
    let (rest, end) = received(client);
    assert!(
        rest.is_empty() && matches!(end, CopyEnd::Done(_)),
        "{end:?}"
    );
    assert!(std::fs::read(landed).unwrap() == std::fs::read(source).unwrap());
    machine.client().ask(Ask::Kill).unwrap();
    gone(&workspace, &machine);
}

pub(crate) fn a_copy_that_is_cut_is_no_copy() {
    let (workspace, machine) = running();
    let source = source(&workspace);
    let (bytes, _) = received(begin(&machine, out(source.to_str().unwrap())));
    // The client goes away in the middle, and where the stream could have ended.
    for length in [6_000_000, bytes.len() - 1024, bytes.len()] {
        let landed = workspace.root.path().join("landed");
        std::fs::write(&landed, "old").unwrap();
        let client = begin(&machine, into(&landed));
        let mut output = DataWriter::new(client.stream(), FrameKind::Stdin);
        output.write_all(&bytes[..length]).unwrap();
        output.finish().unwrap();
        drop(client);
        let refused = landed.with_extension("refused");
        wait_for(SOON, || refused.exists());
        // The file was complete; that the stream was not is found out behind it.
        assert_eq!(
            std::fs::read(&landed).unwrap() == b"old",
            length < bytes.len() - 1024
        );
        std::fs::remove_file(refused).unwrap();
    }
    // One that does not read is let go when it hangs up.
    let client = begin(&machine, out("/endless"));
    client.stream().shutdown(Shutdown::Both).unwrap();
    // A client that says what it must not is hung up on.
    for (ask, kind) in [
        (into(&source), FrameKind::Signal),
        (into(&source), FrameKind::Exit),
    ] {
        let mut client = begin(&machine, ask);
        client.send(
            kind,
            if kind == FrameKind::Signal {
                &[9]
            } else {
                b"{}"
            },
        );
        assert!(
            client
                .0
                .read()
                .is_ok_and(|frame| frame.is_none_or(|frame| frame.kind == FrameKind::Exit))
        );
    }
    machine.client().ask(Ask::Kill).unwrap();
    gone(&workspace, &machine);
}

pub(crate) fn a_hostile_guest_ends_with_its_copy() {
    for (path, ends) in [
        ("/violate", true),
        ("/lie", true),
        ("/vanish", false),
        ("/rude", false),
    ] {
        let (workspace, mut machine) = running();
        let client = begin(&machine, out(path));
        let mut reader = DataReader::new(client.0, FrameKind::Stdout, FrameKind::Exit);
        if path == "/rude" {
            assert!(reader.fill_buf().unwrap().is_empty());
            let end = String::from_utf8(reader.into_end().unwrap().0).unwrap();
            assert!(end.contains("no") && !end.contains("u001b"), "{end}");
        } else {
            assert!(reader.read_to_end(&mut Vec::new()).is_err(), "{path}");
        }
        if ends {
            let (_, cause, detail) = machine.end();
            assert_eq!(cause, EndCause::GuestPanicked, "{path}");
            assert!(detail.contains("protocol"), "{detail}");
        } else {
            machine.client().ask(Ask::Kill).unwrap();
        }
        gone(&workspace, &machine);
    }
}

pub(crate) fn nothing_is_copied_where_nothing_runs() {
    let (workspace, machine) = running();
    machine.client().ask(Ask::Pause).unwrap();
    let refused = machine.client().ask(out("/etc")).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(
        refused
            .remedy
            .as_ref()
            .is_some_and(|remedy| remedy.contains("resume")),
        "{refused}"
    );
    // The connection takes further requests.
    let mut client = machine.client();
    client.ask(out("/etc")).unwrap_err();
    client.ask(Ask::Resume).unwrap();
    // A copy under way ends with the quarantine.
    let copying = begin(&machine, out("/endless"));
    machine.client().ask(Ask::Quarantine).unwrap();
    let mut reader = DataReader::new(copying.0, FrameKind::Stdout, FrameKind::Exit);
    assert!(std::io::copy(&mut reader, &mut std::io::sink()).is_err());
    let refused = machine.client().ask(into(Path::new("/x"))).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    machine.client().ask(Ask::Kill).unwrap();
    gone(&workspace, &machine);
}
