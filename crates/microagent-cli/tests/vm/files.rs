//! Files go in and out of workspaces, whether they run or not.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use testkit::{Finished, Running, Sandbox, eventually};

use crate::sandbox;

/// A workspace of this name, gone before and after.
struct Named<'s> {
    sandbox: &'s Sandbox,
    name: String,
}

impl<'s> Named<'s> {
    fn new(sandbox: &'s Sandbox, name: &str) -> Self {
        let named = Self {
            sandbox,
            name: name.to_owned(),
        };
        named.remove();
        named
    }

    fn remove(&self) {
        let dir = self.sandbox.state().join("workspaces").join(&self.name);
        if dir.exists() {
            fs::remove_dir_all(dir).unwrap();
        }
    }

    /// Runs a script in it until the end of its standard input, and keeps it.
    fn running(&self, script: &str) -> Running {
        let script = format!("{script}; echo begun; cat >/dev/null");
        let arguments = ["--keep", "-i", Sandbox::BUSYBOX, "sh", "-c", &script];
        let running = self.sandbox.run_as(&self.name, arguments).start();
        eventually(Duration::from_secs(90), "the guest's first word", || {
            running.output_so_far().ends_with(b"begun\n").then_some(())
        });
        running
    }

    fn cp(&self, from: &str, to: &str, flags: &[&str]) -> Finished {
        let name = format!("{}:", self.name);
        let place = |text: &str| text.replace("ws:", &name);
        let mut invocation = self.sandbox.microagent(["cp"]).json();
        for flag in flags {
            invocation = invocation.arg(*flag);
        }
        invocation.arg(place(from)).arg(place(to)).run()
    }
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.remove();
        }
    }
}

/// A tree of the host to copy in.
fn tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::write(root.join("hello"), "hello").unwrap();
    fs::write(root.join("deep/script"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(root.join("deep/script"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(root.join("deep/er/big"), vec![7; 1_000_000]).unwrap();
    fs::hard_link(root.join("hello"), root.join("deep/hello")).unwrap();
    symlink("../hello", root.join("deep/link")).unwrap();
    symlink("/etc/passwd", root.join("outward")).unwrap();
}

fn same(a: &Path, b: &Path) {
    let status = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args([a, b])
        .status()
        .unwrap();
    assert!(status.success());
    for path in ["hello", "deep/script", "deep/er", "deep"] {
        let facts = |root: &Path| {
            let meta = fs::symlink_metadata(root.join(path)).unwrap();
            (
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.nlink(),
            )
        };
        assert_eq!(facts(a), facts(b), "{path}");
    }
}

#[test]
fn files_go_in_and_out_of_a_running_workspace() {
    let sandbox = sandbox();
    let named = Named::new(&sandbox, "e2e-cp-live");
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name).to_str().unwrap().to_owned();
    let src = host.path().join("src");
    tree(&src);
    let hostile = "mkdir -p /h/real; echo x > /h/real/f; ln -s / /h/root; ln -s real /h/link; \
                   mknod /h/null c 1 3; mkfifo /h/pipe; cp /bin/busybox /h/su; chmod 6755 /h/su";
    // Files of two file systems with one inode number, which the copy meets in one directory.
    let twins = "mkdir /one /two /twins; for it in one two; do mount -t tmpfs none /$it; \
                 echo $it >/$it/f; ln /$it/f /$it/g; touch /twins/$it /twins/$it-too; \
                 mount -o bind /$it/f /twins/$it; mount -o bind /$it/g /twins/$it-too; done; \
                 [ $(stat -c %i /one/f) = $(stat -c %i /two/f) ] || exit 9";
    let running = named.running(&format!("{hostile}; {twins}"));

    // In, looked at from inside, and out again.
    let report = named.cp(&at("src"), "ws:/work", &[]).success().parsed();
    assert_eq!(
        (&report["files"], &report["directories"]),
        (&6.into(), &3.into()),
        "{report}"
    );
    named.cp("ws:/work", &at("back"), &[]).success();
    same(&src, &host.path().join("back"));
    named.cp("ws:/work/.", &at("back"), &[]).success();
    same(&src, &host.path().join("back"));
    named.cp(&at("src/."), "ws:/work", &[]).success();
    named.cp("ws:/work/deep/er/big", &at("big"), &[]).success();
    assert_eq!(fs::metadata(at("big")).unwrap().len(), 1_000_000);
    named
        .cp(
            &at("src/hello"),
            "ws:/work/",
            &["--chown", "12:34", "--chmod", "600"],
        )
        .success();

    // A stream each way.
    let tar = Command::new("tar")
        .args(["-cf", "-", "-C", &at("src"), "."])
        .output()
        .unwrap();
    sandbox
        .microagent(["cp", "-", "e2e-cp-live:/new/place", "--parents"])
        .stdin(tar.stdout)
        .run()
        .success();
    let out = named.cp("ws:/new/place", "-", &[]).success();
    let mut list = Command::new("tar")
        .arg("-t")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    list.stdin.take().unwrap().write_all(&out.stdout).unwrap();
    let listed = String::from_utf8(list.wait_with_output().unwrap().stdout).unwrap();
    assert!(listed.contains("place/deep/er/big\n"), "{listed}");

    // What a guest plants does not lead out, and what gives rights stays there.
    let report = named.cp("ws:/h", &at("h"), &[]).success().parsed();
    assert_eq!(report["skipped"], 2, "{report}");
    assert_eq!(fs::read_link(at("h/root")).unwrap(), Path::new("/"));
    assert_eq!(fs::metadata(at("h/su")).unwrap().mode() & 0o7777, 0o755);
    // Both are kept, and a link is followed, where that is asked for.
    let asked = |state: &str| {
        let kept = at(&format!("kept-{state}"));
        named.cp("ws:/h", &kept, &["--archive"]).success();
        let mode = fs::metadata(format!("{kept}/su")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o6755, "{state}");
        let (link, led) = (at(&format!("link-{state}")), at(&format!("led-{state}")));
        named.cp("ws:/h/link", &link, &[]).success();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("real"));
        let follow = ["--follow-link"];
        named.cp("ws:/h/link", &led, &follow).success();
        assert_eq!(fs::read(format!("{led}/f")).unwrap(), b"x\n", "{state}");
    };
    asked("live");
    named.cp("ws:/twins", &at("twins"), &[]).success();
    for name in ["one", "two"] {
        let [first, second] = ["", "-too"].map(|end| at(&format!("twins/{name}{end}")));
        assert_eq!(fs::read_to_string(&first).unwrap(), format!("{name}\n"));
        let inode = |path: &str| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&first), inode(&second), "{name} has two names");
    }
    // Nor does what came out before, when more comes.
    fs::remove_file(at("h/real/f")).unwrap();
    fs::remove_dir(at("h/real")).unwrap();
    fs::create_dir(at("canary")).unwrap();
    symlink(at("canary"), at("h/real")).unwrap();
    let refused = named.cp("ws:/h", &at(""), &[]).exited(1);
    assert!(
        refused.err().contains("links are not followed"),
        "{refused}"
    );
    assert_eq!(fs::read_dir(at("canary")).unwrap().count(), 0);
    fs::remove_file(at("h/real")).unwrap();

    // Refusals name what is wrong.
    let missing = named.cp("ws:/none", &at("x"), &[]).exited(1);
    assert!(
        missing.err().contains("/none") && missing.err().contains("not_found"),
        "{missing}"
    );
    let missing = named.cp(&at("src"), "ws:/none/here", &[]).exited(1);
    assert!(missing.err().contains("--parents"), "{missing}");
    let full = named.cp(&at("src"), "ws:/proc/x", &[]).exited(1);
    assert!(!full.err().is_empty(), "{full}");
    let neither = named.cp(&at("src"), &at("y"), &[]).exited(1);
    assert!(neither.err().contains("NAME:/PATH"), "{neither}");

    drop(running.finish().success());

    // The same at rest: what was copied in is there, and comes out the same.
    named.cp("ws:/work", &at("rest"), &[]).success();
    let facts = fs::metadata(at("rest/hello")).unwrap();
    assert_eq!(
        (facts.mode() & 0o7777, facts.uid(), facts.gid()),
        (0o600, 12, 34)
    );
    asked("rest");
    named.cp("ws:/h", &at(""), &[]).success();
    let report = named.cp("ws:/h", &at("h-rest"), &[]).success().parsed();
    assert_eq!(report["skipped"], 2, "{report}");
    let status = Command::new("diff")
        .args(["-r", "--no-dereference", &at("h"), &at("h-rest")])
        .status()
        .unwrap();
    assert!(status.success());
    named.cp("ws:/bin/busybox", &at("busybox"), &[]).success();
    let missing = named.cp("ws:/none", &at("x"), &[]).exited(1);
    assert!(
        missing.err().contains("/none") && missing.err().contains("not_found"),
        "{missing}"
    );
    sandbox.leftovers().none(&[]);
}

#[test]
fn files_copied_at_rest_are_there_for_the_guest_and_outlive_its_death() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name).to_str().unwrap().to_owned();
    let cp = |from: &str, to: &str| sandbox.microagent(["cp", from, to]).json().run();
    let guest = |script: &str| {
        let done = sandbox
            .microagent(["exec", "rest", "--", "sh", "-c", script])
            .run();
        done.success().out()
    };
    tree(&host.path().join("src"));
    let create = ["create", "rest", Sandbox::BUSYBOX, "--profile", "tiny"];
    sandbox.microagent(create).run().success();

    // Before it ever ran: into a directory of the image, and over a file of it.
    cp(&at("src"), "rest:/etc").success();
    fs::write(at("passwd"), "root:x:0:0:copied:/root:/bin/sh\n").unwrap();
    cp(&at("passwd"), "rest:/etc/passwd").success();
    fs::write(at("program"), "x").unwrap();
    sandbox
        .microagent([
            "cp",
            "--chmod",
            "4711",
            "--chown",
            "5:6",
            &at("program"),
            "rest:/new/program",
        ])
        .run()
        .exited(1);
    sandbox
        .microagent([
            "cp",
            "--parents",
            "--chmod",
            "4711",
            "--chown",
            "5:6",
            &at("program"),
            "rest:/new/program",
        ])
        .run()
        .success();
    sandbox.microagent(["start", "rest"]).run().success();
    assert_eq!(
        guest("cat /etc/src/hello; echo; /etc/src/deep/script; readlink /etc/src/outward"),
        "hello\nran\n/etc/passwd\n"
    );
    assert_eq!(
        guest("grep -c copied /etc/passwd; stat -c '%a %u %g' /new/program"),
        "1\n4711 5 6\n"
    );

    // What it does in its last moment comes out of a machine that was killed.
    guest(
        "rm -r /etc/src/deep; mkdir /etc/src/deep; echo last > /etc/src/deep/word; echo gone > /etc/src/hello; sync",
    );
    let status = sandbox
        .microagent(["status", "rest"])
        .json()
        .run()
        .success()
        .parsed();
    let vmm = status["processes"]["vmm"]["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(vmm.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    sandbox.microagent(["wait", "rest"]).run().exited(1);
    let scratch = sandbox.state().join("workspaces/rest/scratch.ext4");
    let dump = Command::new("dumpe2fs")
        .arg("-h")
        .arg(&scratch)
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&dump.stdout).contains("needs_recovery"),
        "it was killed"
    );
    cp("rest:/etc/src", &at("out")).success();
    assert_eq!(fs::read_to_string(at("out/deep/word")).unwrap(), "last\n");
    assert_eq!(fs::read_to_string(at("out/hello")).unwrap(), "gone\n");
    assert_eq!(fs::read_dir(at("out/deep")).unwrap().count(), 1);

    // And what is copied in then is there at the next start.
    cp(&at("src/hello"), "rest:/etc/src/deep/word").success();
    sandbox.microagent(["start", "rest"]).run().success();
    assert_eq!(
        guest("cat /etc/src/deep/word; ls /etc/src/deep | wc -l"),
        "hello1\n"
    );
    // A paused guest copies nothing, and says how it would.
    sandbox.microagent(["pause", "rest"]).run().success();
    let paused = cp("rest:/etc/src", &at("paused")).exited(1);
    assert!(
        paused.err().contains("resume") && paused.err().contains("conflict"),
        "{paused}"
    );
    sandbox
        .microagent(["delete", "--force", "rest"])
        .run()
        .success();
    let gone = cp("rest:/etc/src", &at("gone")).exited(1);
    assert!(gone.err().contains("not_found"), "{gone}");
    sandbox.leftovers().none(&[]);
}
