//! A program that speaks Firecracker's published API and enforces its order, and has no machine.
//! Each request and answer is held against the vendor's document. How it behaves is in its `--id`.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{escape, openapi::OpenApi, proved};

/// What it writes to its serial console when the machine is started.
pub(crate) const GREETING: &str = "the guest is up";

/// Where it keeps what it was asked, beside its API socket.
pub(crate) const REQUESTS: &str = "requests.jsonl";

struct Fake {
    id: String,
    api: OpenApi,
    log: PathBuf,
    state: &'static str,
    configured: Vec<String>,
    vsock: Option<PathBuf>,
    cards: Vec<File>,
}

pub(crate) fn main(name: &str, arguments: &[String]) -> ! {
    let value = |option: &str| {
        let at = arguments.iter().position(|word| word == option)?;
        arguments.get(at + 1).cloned()
    };
    if arguments.iter().any(|word| word == "--version") {
        let version = name.strip_prefix("firecracker-").unwrap_or("1.12.1");
        println!("Firecracker v{version}\n\nSupported snapshot data format versions: 5.0.0");
        std::process::exit(0);
    }
    let id = value("--id").unwrap();
    let socket = PathBuf::from(value("--api-sock").unwrap());
    match id.as_str() {
        "dies" => {
            eprintln!("error: Cannot open /dev/kvm");
            std::process::exit(148);
        }
        "silent" => std::thread::sleep(Duration::from_secs(600)),
        id => {
            if let Some(targets) = id.strip_prefix("escapes-") {
                escape::attempt(targets);
            }
        }
    }
    let fake = Arc::new(Mutex::new(Fake {
        id,
        api: OpenApi::load(),
        log: socket.with_file_name(REQUESTS),
        state: "Not started",
        configured: Vec::new(),
        vsock: None,
        cards: Vec::new(),
    }));
    let listener = UnixListener::bind(&socket).unwrap();
    for stream in listener.incoming() {
        let fake = Arc::clone(&fake);
        std::thread::spawn(move || serve(&stream.unwrap(), &fake));
    }
    unreachable!()
}

fn serve(stream: &UnixStream, fake: &Mutex<Fake>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return; // A look whether it listens.
    }
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap().to_owned());
    let method = method.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = (length > 0).then(|| serde_json::from_slice::<Value>(&body).unwrap());
    let (status, answer) = fake.lock().unwrap().answer(&method, &path, body.as_ref());
    let text = answer.map(|answer| answer.to_string());
    let mut reply =
        format!("HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n");
    if let Some(text) = &text {
        reply += &format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            text.len()
        );
    }
    reply += "\r\n";
    reply += text.as_deref().unwrap_or_default();
    (&*stream).write_all(reply.as_bytes()).unwrap();
}

impl Fake {
    fn answer(&mut self, method: &str, path: &str, body: Option<&Value>) -> (u16, Option<Value>) {
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        writeln!(log, "{}", json!([method, path, body])).unwrap();
        let fault = |status, words: &str| (status, Some(json!({ "fault_message": words })));
        let reply = if let Err(error) = self.api.check_request(method, path, body) {
            fault(400, &format!("not as published: {error}"))
        } else {
            self.act(method, path, body)
                .unwrap_or_else(|(status, words)| fault(status, &words))
        };
        if let Err(error) = self
            .api
            .check_answer(method, path, reply.0, reply.1.as_ref())
        {
            return fault(400, &format!("this answer is not as published: {error}"));
        }
        reply
    }

    /// What the operation does; the order is that of Firecracker's documentation.
    fn act(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Option<Value>), (u16, String)> {
        // `fault-<status>-<method>-<path>`
        if let Some(wanted) = self.id.strip_prefix("fault-") {
            let (status, operation) = wanted.split_once('-').unwrap();
            if operation == format!("{method}{}", path.replace('/', "-")) {
                return Err((status.parse().unwrap(), format!("no {path} today")));
            }
        }
        let before = |ok: bool, words: &str| {
            if ok {
                Ok(())
            } else {
                Err((400, words.to_owned()))
            }
        };
        let fresh = self.state == "Not started";
        match (method, path) {
            ("GET", "/") => {
                return Ok((
                    200,
                    Some(
                        json!({"id": self.id, "state": self.state, "vmm_version": "1.12.1", "app_name": "Firecracker"}),
                    ),
                ));
            }
            ("PUT", "/actions") => match body.unwrap()["action_type"].as_str().unwrap() {
                "InstanceStart" => {
                    before(fresh, "The microVM has already started.")?;
                    let kernel = self.configured.iter().any(|path| path == "/boot-source");
                    before(kernel, "Cannot start microvm without kernel configuration.")?;
                    match self.id.as_str() {
                        "crashes" => std::process::abort(),
                        "filters" => drop(std::thread::spawn(escape::filter_late)),
                        "multiplies" => drop(std::thread::spawn(escape::multiply)),
                        "hangs" => std::thread::sleep(Duration::from_secs(600)),
                        _ => {}
                    }
                    self.start();
                }
                _ => before(
                    !fresh,
                    "The operation is not supported before starting the microVM.",
                )?,
            },
            ("PATCH", "/vm") => {
                before(
                    !fresh,
                    "The operation is not supported before starting the microVM.",
                )?;
                self.state = match body.unwrap()["state"].as_str().unwrap() {
                    "Paused" => "Paused",
                    _ => "Running",
                };
            }
            ("PUT", "/snapshot/create") => {
                before(
                    self.state == "Paused",
                    "Cannot create a snapshot of a running microVM.",
                )?;
                for file in ["snapshot_path", "mem_file_path"] {
                    let path = body.unwrap()[file].as_str().unwrap();
                    std::fs::write(path, file).map_err(|error| (400, error.to_string()))?;
                }
            }
            ("PUT", "/snapshot/load") => {
                before(
                    fresh && self.configured.is_empty(),
                    "Loading a microVM snapshot not allowed after configuring boot-specific resources.",
                )?;
                let memory = body.unwrap()["mem_backend"]["backend_path"]
                    .as_str()
                    .unwrap();
                std::fs::read(memory).map_err(|error| (400, error.to_string()))?;
                self.start();
            }
            ("PATCH", "/balloon") => {
                before(
                    !fresh,
                    "The operation is not supported before starting the microVM.",
                )?;
            }
            _ => {
                before(
                    fresh,
                    "The operation is not supported after starting the microVM.",
                )?;
                if path == "/vsock" {
                    self.vsock = body.unwrap()["uds_path"].as_str().map(PathBuf::from);
                }
                if path == "/metrics" {
                    let path = body.unwrap()["metrics_path"].as_str().unwrap();
                    let metrics = OpenOptions::new().append(true).open(path);
                    metrics
                        .and_then(|mut file| file.write_all(b"{\"utc_timestamp_ms\":1}\n"))
                        .map_err(|error| (400, format!("Failed to initialize metrics: {error}")))?;
                }
                if path.starts_with("/network-interfaces/") {
                    let tap = body.unwrap()["host_dev_name"].as_str().unwrap();
                    let card = escape::take_tap(tap)
                        .map_err(|error| (400, format!("Open tap device failed: {error}")))?;
                    println!("{}", escape::TAP_TAKEN);
                    self.cards.push(card);
                }
                if let Some(disk) = path.strip_prefix("/drives/") {
                    self.open_disk(disk, body.unwrap())?;
                }
                self.configured.push(path.to_owned());
            }
        }
        Ok((204, None))
    }

    /// Firecracker opens a disk as it is told of it.
    fn open_disk(&self, name: &str, body: &Value) -> Result<(), (u16, String)> {
        let path = Path::new(body["path_on_host"].as_str().unwrap());
        let read_only = body["is_read_only"] == true;
        let open = |write: bool| OpenOptions::new().read(true).write(write).open(path);
        open(!read_only).map_err(|error| {
            (
                400,
                format!("Unable to create the block device {name}: {error}"),
            )
        })?;
        // What it is kept from must hold here, where it counts.
        if read_only && open(true).is_ok() {
            return Err((400, format!("the read-only disk {name} can be written")));
        }
        Ok(())
    }

    fn start(&mut self) {
        self.state = "Running";
        println!("{GREETING}");
        std::thread::spawn(|| {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                println!("<{line}>");
            }
        });
        if let Some(path) = self.vsock.clone().filter(|_| self.id == proved::NAME) {
            std::thread::spawn(move || proved::hello(&path));
        }
        if let Some(path) = self.vsock.clone() {
            let listener = UnixListener::bind(path).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    std::thread::spawn(move || echo(&stream));
                }
            });
        }
    }
}

/// The hybrid socket: `CONNECT <port>` is answered with `OK <port>`, and then all that comes is sent back.
fn echo(stream: &UnixStream) {
    let mut line = String::new();
    let mut reader = BufReader::new(stream);
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("CONNECT "), "{line}");
    let mut writer = stream;
    writer.write_all(b"OK 1073741824\n").unwrap();
    let _ = std::io::copy(&mut reader, &mut writer);
}
