//! Options whose effect shows without a machine, or in a probe.

use std::{fs, process::Command};

use serde_json::Value;
use testkit::Sandbox;

fn own() -> Sandbox {
    Sandbox::own(env!("CARGO_BIN_EXE_microagent"))
}

fn json(sandbox: &Sandbox, words: &[&str]) -> Value {
    let command = sandbox.microagent([]).words(words).json();
    command.run().success().parsed()
}

/// What a workspace is recorded to be.
fn manifest(sandbox: &Sandbox, name: &str) -> Value {
    let path = sandbox.state().join("workspaces").join(name);
    let text = fs::read_to_string(path.join("manifest.json")).unwrap();
    serde_json::from_str(text.split_once('\n').unwrap().1).unwrap()
}

#[test]
fn every_option_of_create_is_in_the_workspace() {
    let sandbox = own();
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("env"), "FROM_FILE=1\n").unwrap();
    for disk in ["one.ext4", "two.ext4"] {
        let mut made = Command::new("mke2fs");
        made.args(["-q", "-t", "ext4", &at(disk), "8M"]);
        testkit::registry::run_tool("e2fsprogs", &mut made).unwrap();
    }
    let mut packed = Command::new("tar");
    packed.args(["-cf", &at("tools.tar"), "-C", &at(""), "env"]);
    assert!(packed.status().unwrap().success());
    let kernels = json(&sandbox, &["kernel", "list"]);
    let kernel = kernels["kernels"][0]["id"].as_str().unwrap();
    let (volume, disk) = (
        at("one.ext4") + ":/one:ro",
        format!("two={}:/two:rw", at("two.ext4")),
    );
    let bundle = format!("tools={}:/opt/tools", at("tools.tar"));
    let (env, image) = (at("env"), Sandbox::BUSYBOX);
    let words = [
        "create",
        "all",
        image,
        "--profile",
        "tiny",
        "--entrypoint",
        "/bin/busybox",
        "--env-file",
        &env,
        "-e",
        "GIVEN=2",
        "--workdir",
        "/srv",
        "--user",
        "0:0",
        "--hostname",
        "box",
        "--restart",
        "always",
        "--disk-size",
        "640M",
        "--backend",
        "qemu-tcg",
        "--kernel",
        kernel,
        "--network",
        "isolated",
        "--volume",
        &volume,
        "--disk",
        &disk,
        "--bundle",
        &bundle,
        "--mediation",
        "2048=unix:/nobody/there",
        "--mediation-optional",
        "--publish",
        "0:80",
        "--output",
        "report=/out",
        "--",
        "sh",
        "-c",
        "true",
    ];
    json(&sandbox, &words);
    let made = manifest(&sandbox, "all");
    let status = json(&sandbox, &["inspect", "all", "--verify"]);
    assert_eq!(status["verification"]["ok"], true, "{status}");
    assert_eq!(
        made["workload"]["argv"],
        serde_json::json!(["/bin/busybox", "sh", "-c", "true"])
    );
    let session = &made["session"];
    assert_eq!(
        (&session["cwd"], &session["user"]),
        (&"/srv".into(), &"0:0".into())
    );
    let has = |var: &str| session["env"].as_array().unwrap().contains(&var.into());
    assert!(has("FROM_FILE=1") && has("GIVEN=2"), "{session}");
    assert_eq!(
        (&made["hostname"], &made["restart"]),
        (&"box".into(), &"always".into())
    );
    assert_eq!(
        (&made["backend"], &made["network"]),
        (&"qemu-tcg".into(), &"isolated".into())
    );
    assert_eq!(
        (&made["kernel"]["id"], &made["resources"]["size_mib"]),
        (&kernel.into(), &640.into())
    );
    let disks: Vec<_> = made["disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|disk| {
            (
                disk["mountpoint"].as_str().unwrap(),
                disk["read_only"].as_bool().unwrap(),
            )
        })
        .collect();
    for wanted in [("/one", true), ("/two", false), ("/opt/tools", true)] {
        assert!(disks.contains(&wanted), "{disks:?}");
    }
    assert_eq!(made["mediation"][0]["required"], false, "{made}");
    assert_eq!(made["publish"][0]["guest_port"], 80);
    assert_eq!(made["artifacts"][0]["name"], "report");

    json(
        &sandbox,
        &["create", "line", "--image", image, "--exec", "echo hi"],
    );
    let argv = &manifest(&sandbox, "line")["workload"]["argv"];
    assert_eq!(argv, &serde_json::json!(["/bin/sh", "-c", "echo hi"]));
    json(&sandbox, &["create", "own", image, "--image-command"]);
    let cmd = &json(&sandbox, &["images", "inspect", image])["image"]["cmd"];
    assert_eq!(&manifest(&sandbox, "own")["workload"]["argv"], cmd);
    assert!(!cmd.as_array().unwrap().is_empty());
    assert!(
        json(&sandbox, &["ps"])["workspaces"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    let all = json(&sandbox, &["ps", "--all"]);
    assert_eq!(all["workspaces"].as_array().unwrap().len(), 3, "{all}");
    let name = sandbox
        .microagent(["inspect", "all", "--format", "{{workspace}} {{state}}"])
        .run()
        .success();
    assert_eq!(name.out(), "all prepared\n");

    // A layer of its own says who made it.
    let commit = [
        "commit",
        "all",
        "made:1",
        "--author",
        "A. Person",
        "--message",
        "why",
    ];
    json(&sandbox, &commit);
    let history = json(&sandbox, &["images", "history", "--no-trunc", "made:1"]);
    let last = &history["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(last["comment"], "why", "{history}");
    let made = json(&sandbox, &["images", "inspect", "made:1"]);
    let config = made["config"].as_str().unwrap().replace(':', "/");
    let config = fs::read(sandbox.state().join("images/blobs").join(config)).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["author"], "A. Person", "{config}");
    assert_eq!(config["history"].as_array().unwrap().len(), 2, "{config}");
}

#[test]
fn the_platform_and_the_form_of_images_are_chosen() {
    let sandbox = own();
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name).to_str().unwrap().to_owned();
    let image = Sandbox::BUSYBOX;
    let own = json(&sandbox, &["images", "inspect", image])["platform"].clone();
    let own = format!(
        "{}/{}",
        own["os"].as_str().unwrap(),
        own["architecture"].as_str().unwrap()
    );
    let (one, two, disk) = (at("one.tar"), at("two.tar"), at("root.ext4"));
    let exported = json(
        &sandbox,
        &["images", "export", "--platform", &own, image, "-o", &one],
    );
    let saved = [
        "images",
        "save",
        "--format",
        "oci-archive",
        "--platform",
        &own,
        image,
        "-o",
        &two,
    ];
    let saved = json(&sandbox, &saved);
    assert_eq!(
        (&saved["format"], &saved["sha256"]),
        (&exported["format"], &exported["sha256"])
    );
    for command in ["export", "save"] {
        let words = [
            "images",
            command,
            "--platform",
            "linux/s390x",
            image,
            "-o",
            &two,
        ];
        let refused = sandbox.microagent(words).run().exited(1);
        assert!(refused.err().contains("s390x"), "{refused}");
    }
    let other = Sandbox::empty(env!("CARGO_BIN_EXE_microagent"));
    let load = ["images", "load", "--input", &one, "--platform", &own];
    let loaded = json(&other, &load);
    assert_eq!(
        loaded["images"][0]["digest"],
        exported["images"][0]["digest"]
    );

    // A root file system is for what it is said to be for.
    let mut packed = Command::new("tar");
    packed.args(["-cf", &at("root.tar"), "-C", "/etc", "hostname"]);
    assert!(packed.status().unwrap().success());
    let import = [
        "images",
        "import",
        "--platform",
        "linux/s390x",
        "--name",
        "far:1",
        &at("root.tar"),
    ];
    json(&other, &import);
    let far = json(&other, &["images", "inspect", "far:1"]);
    assert_eq!(far["platform"]["architecture"], "s390x", "{far}");
    let build = [
        "rootfs",
        "build",
        "--pull",
        "never",
        "--allow-mutable",
        "--platform",
    ];
    let built = sandbox
        .microagent(build)
        .args([&own, image, "-o", &disk])
        .run();
    built.success();
    let built = sandbox
        .microagent(build)
        .args(["linux/s390x", image, "-o", &disk]);
    assert!(built.run().exited(1).err().contains("s390x"));
}

#[test]
fn one_backend_is_looked_at_anew() {
    let sandbox = own();
    for command in ["host", "doctor"] {
        let report = json(&sandbox, &[command, "--backend", "qemu-tcg", "--fresh"]);
        assert_eq!(report["chosen"], "qemu-tcg", "{report}");
    }
    let host = json(&sandbox, &["host", "--backend", "qemu-tcg"]);
    let row = &host["backends"].as_array().unwrap()[2];
    assert_eq!(
        (&row["name"], &row["usable"]),
        (&"qemu-tcg".into(), &true.into())
    );
    assert_eq!(row["capabilities"]["user_network"], true, "{host}");
    let told = sandbox.microagent(["contract"]).run().success();
    assert!(told.out().contains("ITS MACHINES HAVE"), "{told}");
}

#[test]
fn what_kernels_and_images_are_to_have_is_held_to() {
    let sandbox = own();
    let kernels = json(&sandbox, &["kernel", "list"]);
    let id = kernels["kernels"][0]["id"].as_str().unwrap();
    let kernel = sandbox.state().join("kernels").join(id).join("vmlinux");
    let kernel = kernel.to_str().unwrap();
    let image = Sandbox::BUSYBOX;
    let none = "0".repeat(64);
    let install = ["kernel", "install"];
    let refusals: [(&[&str], &[&str], &str); 6] = [
        (&install, &["--from", kernel, "--sha256", &none], &none),
        (
            &install,
            &["--from", kernel, "--modules", "/no/such"],
            "/no/such",
        ),
        (
            &install,
            &["--package", "linux-image-none-such", "--default"],
            "linux-image-none-such",
        ),
        (
            &["create", "other", image],
            &["--kernel", kernel, "--modules", "/no/such"],
            "/no/such",
        ),
        (
            &["create", "other", image],
            &["--verify-key", "/no/such.pub"],
            "/no/such.pub",
        ),
        (
            &["run"],
            &["--kernel", kernel, "--modules", "/no/such", image, "true"],
            "/no/such",
        ),
    ];
    for (command, options, named) in refusals {
        let refused = sandbox.microagent([]).words(command).words(options).run();
        assert!(refused.code() == 1 || refused.code() == 125, "{refused}");
        assert!(refused.err().contains(named), "{refused}");
    }
    assert_eq!(
        json(&sandbox, &["kernel", "list"]),
        kernels,
        "nothing was installed"
    );
    let all = json(&sandbox, &["list"]);
    assert!(all["workspaces"].as_array().unwrap().is_empty(), "{all}");
    sandbox.leftovers().none(&[]);
}
