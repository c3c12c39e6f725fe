//! What a process in the guest finds: variables, user, directory, host name, command.

use testkit::Sandbox;

use crate::sandbox;

#[test]
fn variables_come_from_the_flags_the_files_and_the_host() {
    let sandbox = sandbox();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vars");
    std::fs::write(
        &file,
        "# a comment\nFROM_FILE=file value\nFROM_HOST\nTWICE=file\n",
    )
    .unwrap();
    let finished = sandbox
        .run([
            "-e",
            "A=b=c",
            "-e",
            "PASSED",
            "-e",
            "TWICE=flag",
            "--env-file",
            file.to_str().unwrap(),
        ])
        .args([Sandbox::BUSYBOX, "env"])
        .env("PASSED", "from the host")
        .env("FROM_HOST", "x")
        .env("NOT_PASSED", "secret")
        .run()
        .success();
    let out = finished.out();
    for line in [
        "A=b=c",
        "PASSED=from the host",
        "FROM_FILE=file value",
        "FROM_HOST=x",
        "TWICE=flag",
        "HOME=/root",
    ] {
        assert!(
            out.lines().any(|seen| seen == line),
            "{line} is missing: {finished}"
        );
    }
    assert!(
        out.lines()
            .any(|seen| seen.starts_with("PATH=/usr/local/sbin:")),
        "{finished}"
    );
    assert!(!out.contains("NOT_PASSED"), "{finished}");
}

#[test]
fn the_user_is_looked_up_in_the_guest() {
    let sandbox = sandbox();
    let script = "echo $(id -u):$(id -g):$(id -G):$HOME:$(id -un)";
    for (user, expected) in [
        ("agent", "1000:1000:1000 2000:/home/agent:agent"),
        ("1000", "1000:1000:1000 2000:/home/agent:agent"),
        ("agent:extra", "1000:2000:2000:/home/agent:agent"),
        ("0:2000", "0:2000:2000:/root:root"),
    ] {
        let finished = sandbox
            .run(["-u", user, Sandbox::BUSYBOX, "sh", "-c", script])
            .run()
            .success();
        assert_eq!(finished.out().trim(), expected, "-u {user}: {finished}");
    }
    let numeric = sandbox
        .run([
            "-u",
            "4321:5",
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            "echo $(id -u):$(id -g)",
        ])
        .run()
        .success();
    assert_eq!(numeric.out().trim(), "4321:5");
    let unknown = sandbox
        .run(["-u", "nobody-here", Sandbox::BUSYBOX, "true"])
        .run()
        .exited(126);
    assert!(unknown.err().contains("nobody-here"), "{unknown}");
}

#[test]
fn the_directory_is_made_and_the_host_name_set() {
    let sandbox = sandbox();
    let finished = sandbox
        .run(["-w", "/work/deep", "--hostname", "agent-host", Sandbox::BUSYBOX, "sh", "-c", "pwd; hostname; cat /etc/hostname; getent hosts agent-host || grep -o agent-host /etc/hosts"])
        .run()
        .success();
    assert_eq!(
        finished.out(),
        "/work/deep\nagent-host\nagent-host\nagent-host\n",
        "{finished}"
    );
}

#[test]
fn entrypoint_and_command_follow_the_image() {
    let sandbox = sandbox();
    // An image with Entrypoint, Cmd, Env, User and WorkingDir, as builders make them.
    let dir = tempfile::tempdir().unwrap();
    let archive = testkit::image_with_config(
        dir.path(),
        &serde_json::json!({
            "Entrypoint": ["/bin/echo", "entry"],
            "Cmd": ["cmd"],
            "Env": ["PATH=/bin", "FROM_IMAGE=yes"],
            "User": "agent",
            "WorkingDir": "/home/agent",
        }),
    );
    sandbox.import("configured:test", &archive);
    let out = |finished: testkit::Finished| finished.success().out();
    assert_eq!(out(sandbox.run(["configured:test"]).run()), "entry cmd\n");
    assert_eq!(
        out(sandbox.run(["configured:test", "mine"]).run()),
        "entry mine\n"
    );
    assert_eq!(
        out(sandbox
            .run(["--entrypoint", "/bin/pwd", "configured:test"])
            .run()),
        "/home/agent\n"
    );
    assert_eq!(
        out(sandbox
            .run([
                "--image",
                "configured:test",
                "--exec",
                "id -un; echo $FROM_IMAGE"
            ])
            .run()),
        "agent\nyes\n"
    );
    let both = sandbox
        .run(["--exec", "true", "configured:test", "false"])
        .run();
    assert_ne!(both.code(), 0, "two commands at once are refused: {both}");
    assert!(both.err().contains("--exec"), "{both}");
}

#[test]
fn setup_commands_run_before_and_their_failure_is_ours() {
    let sandbox = sandbox();
    let finished = sandbox
        .run([
            "--setup",
            "echo one > /tmp/order",
            "--setup",
            "echo two >> /tmp/order",
            Sandbox::BUSYBOX,
            "cat",
            "/tmp/order",
        ])
        .run()
        .success();
    assert_eq!(finished.out(), "one\ntwo\n");
    let failed = sandbox
        .run(["--setup", "exit 9", Sandbox::BUSYBOX, "true"])
        .run()
        .exited(125);
    assert!(
        failed.err().contains("exit 9") && failed.err().contains('9'),
        "{failed}"
    );
    sandbox.leftovers().none(&[]);
}

#[test]
fn the_machine_has_the_size_asked_for() {
    let sandbox = sandbox();
    let script = "grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ {print int($2/1024)}' /proc/meminfo; df -k / | tail -1 | awk '{print int($2/1024)}'";
    let finished = sandbox
        .run([
            "--cpus",
            "2",
            "--memory",
            "1G",
            "--disk-size",
            "3000",
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            script,
        ])
        .run()
        .success();
    let numbers: Vec<u32> = finished
        .out()
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    assert_eq!(numbers[0], 2, "{finished}");
    assert!((900..=1024).contains(&numbers[1]), "{finished}");
    assert!((2600..=3000).contains(&numbers[2]), "{finished}");
    let tiny = sandbox
        .run(["--profile", "tiny", "--backend", "qemu-tcg"])
        .args([Sandbox::BUSYBOX, "sh", "-c", script])
        .run()
        .success();
    let numbers: Vec<u32> = tiny
        .out()
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    assert_eq!(numbers[0], 1, "{tiny}");
    assert!((180..=256).contains(&numbers[1]), "{tiny}");
}

#[test]
fn the_guest_is_a_whole_system() {
    let sandbox = sandbox();
    let script = "set -e
        for dir in /proc /sys /dev /dev/pts /dev/shm /run /tmp; do test -d $dir; done
        test \"$(readlink /dev/fd)\" = /proc/self/fd; echo x > /dev/stdout; echo y | cat /dev/stdin
        ip addr show lo | grep -q 127.0.0.1
        touch /root/written; mkdir /usr/local/new; rm /etc/debian_version
        test $(stat -c %a /tmp) = 1777; test $(stat -c %a /dev/null) = 666
        date +%s";
    let finished = sandbox.run([Sandbox::DEBIAN, "sh", "-c", script]).run();
    // `ip` is not in a minimal Debian; the loopback is looked at without it below.
    let finished = if finished.err().contains("ip: not found") {
        let script = script.replace(
            "ip addr show lo | grep -q 127.0.0.1",
            "grep -q 7F000001 /proc/net/fib_trie || grep -q 127.0.0.1 /proc/net/fib_trie",
        );
        sandbox
            .run([Sandbox::DEBIAN, "sh", "-c", &script])
            .run()
            .success()
    } else {
        finished.success()
    };
    let out = finished.out();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(&lines[..2], ["x", "y"]);
    let guest: u64 = lines[2].parse().unwrap();
    let host = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(
        host.abs_diff(guest) < 60,
        "the guest's clock says {guest}, the host's {host}"
    );
}

#[test]
fn isolated_has_loopback_only_and_user_has_a_network() {
    let sandbox = sandbox();
    let script = "ls /sys/class/net; ping -c1 -W5 127.0.0.1 >/dev/null && echo loopback";
    let isolated = sandbox
        .run([
            "--network",
            "isolated",
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            script,
        ])
        .run()
        .success();
    assert_eq!(isolated.out(), "lo\nloopback\n", "{isolated}");

    // Without passt it is QEMU's own, and says so; a server on the host's loopback stands for the
    // outside then, as that maps its gateway there.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"from the host\n").unwrap();
    });
    let without = tempfile::tempdir().unwrap();
    let qemu = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .flat_map(|dir| ["x86_64", "aarch64"].map(|arch| dir.join(format!("qemu-system-{arch}"))))
        .find(|path| path.is_file())
        .unwrap();
    std::os::unix::fs::symlink(&qemu, without.path().join(qemu.file_name().unwrap())).unwrap();
    let path = without.path().to_str().unwrap();
    let user = sandbox
        .run([
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            "cat /etc/resolv.conf | grep -c nameserver; nc -w 10 10.0.2.2 $1 </dev/null",
            "sh",
            &port,
        ])
        .env("PATH", path)
        .run()
        .success();
    answer.join().unwrap();
    assert!(user.out().ends_with("from the host\n"), "{user}");
    assert!(!user.out().starts_with('0'), "{user}");
    // QEMU's own network needs the host's; where all confinement is required, nothing is started.
    let required = sandbox
        .run([Sandbox::BUSYBOX, "true"])
        .env("PATH", path)
        .env("MICROAGENT_CONFINEMENT", "required")
        .run()
        .exited(125);
    let words = required.err();
    assert!(
        words.contains("network namespace: ") && words.contains("install passt"),
        "{required}"
    );
    let misspelt = sandbox
        .run([Sandbox::BUSYBOX, "true"])
        .env("MICROAGENT_CONFINEMENT", "most")
        .run()
        .exited(125);
    assert!(misspelt.err().contains("auto (what"), "{misspelt}");
    let hurried = |limit: &str| {
        let run = sandbox.run([Sandbox::BUSYBOX, "true"]);
        run.env("MICROAGENT_BOOT_TIMEOUT", limit).run().exited(125)
    };
    let late = hurried("60ms").err();
    assert!(late.contains("was not ready within 0.1 s"), "{late}");
    let misspelt = hurried("soon").err();
    assert!(
        misspelt.contains("MICROAGENT_BOOT_TIMEOUT") && misspelt.contains("\"soon\""),
        "{misspelt}"
    );
    let host = sandbox.microagent(["host"]).env("PATH", path).json().run();
    let host = host.parsed();
    let checks = host["checks"].as_array().unwrap();
    let network = checks
        .iter()
        .find(|check| check["name"] == "network")
        .unwrap();
    assert_eq!(network["verdict"], "degraded", "{network}");
    assert!(
        network["detail"]
            .as_str()
            .unwrap()
            .contains("install passt"),
        "{network}"
    );
    let held = checks
        .iter()
        .find(|check| check["name"] == "confinement")
        .unwrap();
    let held = held["detail"].as_str().unwrap();
    assert!(held.contains("system call filter"), "{held}");
}

#[test]
fn a_debian_is_what_it_says() {
    let sandbox = sandbox();
    let finished = sandbox
        .run([
            Sandbox::DEBIAN,
            "--",
            "sh",
            "-c",
            "uname -a; cat /etc/os-release; id",
        ])
        .run()
        .success();
    let out = finished.out();
    assert!(
        out.contains("Linux")
            && out.contains("VERSION_CODENAME=bookworm")
            && out.contains("uid=0(root)"),
        "{finished}"
    );
    assert_eq!(finished.err(), "", "nothing but the guest speaks in a pipe");
}
