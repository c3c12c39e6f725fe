//! What specs say, and what is said about those that are wrong.

use super::*;
use crate::{
    Profile,
    supervise::{HealthProbe, RestartPolicy},
};

fn parse(text: &str) -> Result<Spec, SpecError> {
    Spec::parse(text, "a.yaml", "/base")
}

/// The faults as `line:column: message`.
fn faults(text: &str) -> Vec<String> {
    let error = parse(text).expect_err(text);
    let lines = error.lines();
    lines
        .iter()
        .map(|line| line.strip_prefix("a.yaml:").unwrap().to_owned())
        .collect()
}

#[test]
fn everything_a_spec_can_say_is_read() {
    let spec = parse(
        r#"
name: agent-1
image: debian:12
profile: medium
restart: on-failure
entrypoint: [/usr/bin/python3, -u]
command: [agent.py, --port, "8080"]
shell: /bin/bash
hostname: agent.example
user: "1000:1000"
workdir: /srv
setup:
  - apt-get update
  - |
    echo two
    echo lines
setupFiles: [setup.sh, /opt/more.sh]
files:
  - {src: agent.py, dst: /srv/agent.py, mode: "0755"}
  - {src: /etc/hosts, dst: /etc/hosts}
env:
  PORT: 8080
  VERSION: 1.10
  DEBUG: true
  EMPTY: ""
resources: {memoryMiB: 1024, cpuCount: 3, sizeMiB: 4096.0}
network:
  mode: isolated
  forwards:
    - {hostPort: 0, guestPort: 8080}
    - {protocol: tcp, host: "::1", hostPort: 9000, guestPort: 9000}
mediation:
  - {port: 2048, target: "127.0.0.1:9900"}
  - {port: 2049, target: "unix:/run/x.sock", required: false, failClosed: true, maxConnections: 4}
  - {enabled: false}
disks:
  - {name: data, path: data.ext4, mountpoint: /data, mode: rw}
bundles:
  - {name: tools, path: tools.tar.gz, mountpoint: /opt/tools}
outputs:
  - {name: report, path: /srv/report.txt}
health:
  httpGet: /healthz
  port: 8080
  intervalSeconds: 1
"#,
    )
    .unwrap();
    assert_eq!(spec.name.unwrap().as_str(), "agent-1");
    assert_eq!(spec.image.unwrap().familiar(), "debian:12");
    assert_eq!(spec.profile, Some(Profile::Medium));
    assert_eq!(spec.restart, Some(RestartPolicy::OnFailure));
    let SpecWorkload::Words {
        entrypoint,
        command,
    } = spec.workload
    else {
        panic!("{:?}", spec.workload)
    };
    assert_eq!(entrypoint.unwrap(), ["/usr/bin/python3", "-u"]);
    assert_eq!(command.unwrap(), ["agent.py", "--port", "8080"]);
    assert_eq!(spec.shell.as_deref(), Some("/bin/bash"));
    assert_eq!(spec.hostname.as_deref(), Some("agent.example"));
    assert_eq!(spec.user.as_deref(), Some("1000:1000"));
    assert_eq!(spec.workdir.as_deref(), Some("/srv"));
    assert_eq!(spec.setup, ["apt-get update", "echo two\necho lines\n"]);
    assert_eq!(
        spec.setup_files,
        [Path::new("/base/setup.sh"), Path::new("/opt/more.sh")]
    );
    assert_eq!(spec.files[0].src, Path::new("/base/agent.py"));
    assert_eq!(spec.files[0].dst.as_str(), "/srv/agent.py");
    assert_eq!(
        (spec.files[0].mode, spec.files[1].mode),
        (Some("0755".parse().unwrap()), None)
    );
    let env: Vec<String> = spec.env.into_iter().map(String::from).collect();
    assert_eq!(env, ["PORT=8080", "VERSION=1.10", "DEBUG=true", "EMPTY="]);
    assert_eq!(spec.resources.memory.unwrap().0, 1024);
    assert_eq!(spec.resources.vcpus.unwrap().get(), 3);
    assert_eq!(spec.resources.disk.unwrap().0, 4096);
    assert_eq!(
        spec.network,
        Some(microagent_protocol::NetworkMode::Isolated)
    );
    let publish: Vec<String> = spec.publish.iter().map(ToString::to_string).collect();
    assert_eq!(publish, ["127.0.0.1:0:8080/tcp", "[::1]:9000:9000/tcp"]);
    let routes: Vec<_> = spec
        .mediation
        .iter()
        .map(|route| (route.to_string(), route.required, route.max_connections))
        .collect();
    assert_eq!(
        routes,
        [
            ("2048=127.0.0.1:9900".to_owned(), true, 128),
            ("2049=unix:/run/x.sock".to_owned(), false, 4)
        ]
    );
    let [disk, bundle] = &spec.volumes[..] else {
        panic!("{:?}", spec.volumes)
    };
    assert_eq!(disk.path(), Path::new("/base/data.ext4"));
    assert!(!disk.is_read_only() && bundle.is_read_only());
    assert_eq!(bundle.mountpoint().as_str(), "/opt/tools");
    assert_eq!(spec.outputs[0].path.as_str(), "/srv/report.txt");
    let health = spec.health.unwrap();
    assert!(
        matches!(&health.probe, HealthProbe::HttpGet { port, path } if port.get() == 8080 && path == "/healthz")
    );
    assert_eq!(
        (
            health.interval_seconds.get(),
            health.timeout_seconds.get(),
            health.retries.get(),
            health.start_period_seconds
        ),
        (1, 5, 3, 0)
    );
}

#[test]
fn short_forms_stand_for_the_long_ones() {
    let spec = parse(
        "service: exec agent\nrestart: always\nmediation: {port: 2048, target: 'h:1'}\n\
         health: {exec: test -e /tmp/well}\n",
    )
    .unwrap();
    assert_eq!(spec.workload, SpecWorkload::Service("exec agent".into()));
    assert_eq!(spec.mediation.len(), 1);
    assert_eq!(
        spec.health.unwrap().probe,
        HealthProbe::Exec(
            ["/bin/sh", "-c", "test -e /tmp/well"]
                .map(str::to_owned)
                .into()
        )
    );
    let spec = parse("entrypoint: /agent\n").unwrap();
    assert_eq!(
        spec.workload,
        SpecWorkload::Words {
            entrypoint: Some(vec!["/agent".into()]),
            command: None
        }
    );
    assert_eq!(parse("{}").unwrap(), Spec::default());
}

#[test]
fn unknown_keys_are_told_with_what_was_meant() {
    for (text, told) in [
        (
            "imgae: debian:12\n",
            "1:1: there is no imgae here; did you mean image?",
        ),
        (
            "name: a\nresources:\n  memory_mib: 5\n",
            "3:3: resources: there is no memory_mib here; did you mean memoryMiB?",
        ),
        (
            "memoryMiB: 5\n",
            "1:1: there is no memoryMiB here; did you mean resources.memoryMiB?",
        ),
        (
            "hostPort: 5\n",
            "1:1: there is no hostPort here; did you mean network.forwards[].hostPort?",
        ),
        (
            "ports: []\n",
            "1:1: there is no ports here: publish ports with network.forwards",
        ),
        (
            "network: {interface: br0}\n",
            "1:11: network: there is no interface here: a workspace is on no bridge; leave it out",
        ),
        (
            "network: {mode: bridged}\n",
            "1:17: network.mode: there is no bridged: write user, which lets the guest reach out, and \
             publish ports with forwards",
        ),
        (
            "network: {mode: isolate}\n",
            "1:17: network.mode: it is \"isolate\", not user or isolated; isolated?",
        ),
    ] {
        assert_eq!(faults(text), [told], "{text}");
    }
    let told = &faults("network: {dns: [1.1.1.1]}\n")[0];
    assert!(told.contains("cannot be set"), "{told}");
    let told = &faults("xyzzy: 1\n")[0];
    assert!(told.contains("the keys are name, image"), "{told}");
}

#[test]
fn wrong_values_are_told_with_what_would_be_right() {
    for (text, told) in [
        (
            "resources: {memoryMiB: lots}",
            "1:24: resources.memoryMiB: it is \"lots\", not a whole number from 1 to 4294967295",
        ),
        (
            "resources: {cpuCount: 65}",
            "1:23: resources.cpuCount: it is 65, not a whole number from 1 to 64",
        ),
        (
            "setup: apt-get update",
            "1:8: setup: it is \"apt-get update\", not a list, each item text",
        ),
        (
            "setup:\n",
            "1:6: setup: it is empty; give a list, each item text, or leave the key out",
        ),
        (
            "setup: [a, 5]",
            "1:12: setup[1]: it is 5, not text; write it in quotes",
        ),
        (
            "files: [{src: a, dst: /b, mode: 0644}]",
            "1:33: files[0].mode: it is 0644, not octal permissions such as \"0644\"; write it in quotes",
        ),
        (
            "files: [{src: a, dst: b}]",
            "1:23: files[0].dst: it is \"b\", not an absolute path without . and ..",
        ),
        ("files: [{src: a}]", "1:9: files[0]: dst is missing"),
        (
            "env: {A: }",
            "1:8: env.A: it is empty; write \"\" if that is meant",
        ),
        ("env: {A=B: x}", "1:7: env: \"A=B\" is no variable name"),
        ("- a", "1:1: it is a list, not a table"),
        (
            "mediation: {target: 'a:1'}",
            "1:12: mediation: port is missing",
        ),
        (
            "health: {httpGet: /}\nrestart: always",
            "1:9: health: httpGet needs port",
        ),
        (
            "health: {}\nrestart: always",
            "1:9: health: it needs exec or httpGet",
        ),
        (
            "service: a\nentrypoint: b",
            "2:1: service and entrypoint exclude each other; give one",
        ),
    ] {
        assert_eq!(faults(text), [told], "{text}");
    }
    let told = &faults("entrypoint: python agent.py")[0];
    assert!(told.contains("for more words write a list"), "{told}");
}

#[test]
fn what_contradicts_itself_is_refused() {
    for (text, at, words) in [
        ("image: 'a b'", "1:8", "a b"),
        ("health: {exec: x}", "1:9", "restart"),
        (
            "restart: always\nhealth: {httpGet: /, port: 80}",
            "2:9",
            "network.forwards",
        ),
        (
            "mediation: {port: 2048, target: 'a:1', failClosed: false}",
            "1:52",
            "required: false",
        ),
        ("mediation: {port: 2048, target: 'x'}", "1:33", "no port"),
        (
            "outputs: [{name: a, path: /a}, {name: a, path: /b}]",
            "1:32",
            "share the name a",
        ),
        (
            "disks: [{name: a, path: x, mountpoint: /m}]\nbundles: [{name: b, path: y, mountpoint: /m}]",
            "2:11",
            "share the mountpoint /m",
        ),
        (
            "network: {forwards: [{hostPort: 1, guestPort: 1}, {hostPort: 1, guestPort: 2}]}",
            "1:51",
            "127.0.0.1:1",
        ),
        (
            "network: {forwards: [{host: here, hostPort: 1, guestPort: 1}]}",
            "1:29",
            "IP address",
        ),
    ] {
        let told = faults(text);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].starts_with(at) && told[0].contains(words),
            "{told:?}"
        );
    }
}

#[test]
fn every_fault_is_told_at_once_in_the_order_of_the_file() {
    let text = "nmae: a\nprofile: huge\nresources: {cpuCount: 0}\n";
    let error = parse(text).unwrap_err();
    let lines: Vec<_> = error.faults().iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [1, 2, 3]);
    assert!(
        error
            .to_string()
            .ends_with("did you mean name? (and 2 more)."),
        "{error}"
    );
    let report = crate::Error::from(error).report();
    assert_eq!(report.detail.unwrap().lines().count(), 3);

    let many: String = (0..200).map(|n| format!("{n}{n}{n}q: 1\n")).collect();
    assert_eq!(parse(&many).unwrap_err().faults().len(), 50);
}

#[test]
fn files_are_read_from_where_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("microagent.yaml");
    std::fs::write(&path, "\u{feff}files: [{src: x, dst: /x}]\r\nname: a\r\n").unwrap();
    let spec = Spec::read(&path).unwrap();
    assert_eq!(spec.files[0].src, directory.path().join("x"));
    assert_eq!(spec.name.unwrap().as_str(), "a");

    std::fs::write(&path, b"name: a\nimage: \xff\n").unwrap();
    let error = Spec::read(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("microagent.yaml:2:1: it is no UTF-8 text."),
        "{error}"
    );

    std::fs::write(&path, vec![b'#'; 2 * yaml::MAX_BYTES]).unwrap();
    let error = Spec::read(&path).unwrap_err().to_string();
    assert!(error.contains("larger than 1024 KiB"), "{error}");

    let error = Spec::read(&directory.path().join("none.yaml"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("none.yaml"), "{error}");
}
