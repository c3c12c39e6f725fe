//! Disks and archives that a machine has besides its root, and a machine with the most of everything.

use std::{
    fs,
    io::Write,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use testkit::{Running, Sandbox, eventually, eventually_or, require};

use crate::{
    network::{fetch, outer_address, serve},
    sandbox,
    wiring::{BOOT, SOON, event, unique},
};

fn wait_for_output(running: &Running, word: &str) {
    eventually(BOOT, word, || {
        let output = running.output_so_far();
        String::from_utf8_lossy(&output)
            .contains(word)
            .then_some(())
    });
}

fn mke2fs(path: &Path, mib: u32) {
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .arg(path)
        .arg(format!("{mib}M"))
        .stdout(std::process::Stdio::null())
        .status()
        .expect("mke2fs is missing; install the package e2fsprogs");
    assert!(made.success());
}

/// A file of an ext4 image that no machine has.
fn debugfs_cat(image: &Path, path: &str) -> String {
    let output = Command::new("/sbin/debugfs")
        .args(["-R", &format!("cat {path}")])
        .arg(image)
        .output()
        .expect("debugfs is missing; install the package e2fsprogs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn disks_are_mounted_in_order_and_what_is_read_only_stays_so() {
    let sandbox = sandbox();
    let name = unique("disks");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("tree/inner")).unwrap();
    fs::write(at("tree/given"), "given\n").unwrap();
    for (archive, compress) in [("ro.tar.gz", "--gzip"), ("rw.tar.zst", "--zstd")] {
        let packed = Command::new("tar")
            .args([compress, "--owner=1000", "--group=2000", "-C"])
            .arg(at("tree"))
            .arg("-cf")
            .arg(at(archive))
            .arg(".")
            .status()
            .expect("tar is missing; install the package tar");
        assert!(
            packed.success(),
            "zstd is missing; install the package zstd"
        );
    }
    mke2fs(&at("kept.ext4"), 16);
    mke2fs(&at("fixed.img"), 16);
    let fixed = fs::read(at("fixed.img")).unwrap();
    let script = r#"
        stat -c '%u:%g %n' /data/given; cat /data/given
        touch /data/x 2>&1; touch /data/inner/x 2>&1
        mount -o remount,rw /data/inner 2>&1; touch /data/inner/y 2>&1
        device=$(awk '$2 == "/data/inner" { print $1 }' /proc/mounts)
        umount /data/inner
        dd if=/dev/urandom of=$device bs=4096 count=64 conv=fsync 2>/dev/null && echo WRITTEN
        sync; echo 3 > /proc/sys/vm/drop_caches
        echo changed > /work/deep/given && dd if=/dev/zero of=/work/deep/big bs=1M count=50 2>/dev/null && echo room
        echo kept > /kept/file; mkdir /kept/dir
        echo done; cat > /dev/null"#;
    let running = sandbox
        .microagent(["run", "-i", "--name", &name, "-p", "0:9"])
        .arg("-v")
        .arg(format!("{}:/data", at("ro.tar.gz").display()))
        .arg("--disk")
        .arg(format!("fixed={}:/data/inner", at("fixed.img").display()))
        .arg("--bundle")
        .arg(format!("rw={}:/work/deep:rw", at("rw.tar.zst").display()))
        .arg("-v")
        .arg(format!("{}:/kept:rw", at("kept.ext4").display()))
        .args([Sandbox::BUSYBOX, "sh", "-c", script])
        .start();

    wait_for_output(&running, "done");

    // What this one writes to is nobody else's meanwhile; what it reads is.
    let kept = format!("{}:/kept", at("kept.ext4").display());
    for mode in ["ro", "rw"] {
        let refused = sandbox
            .run(["-v", &format!("{kept}:{mode}"), Sandbox::BUSYBOX, "true"])
            .run()
            .exited(125);
        for word in [at("kept.ext4").to_str().unwrap(), &name, "use a copy"] {
            assert!(refused.err().contains(word), "{word}: {refused}");
        }
    }
    let fixed_rw = format!("{}:/fixed:rw", at("fixed.img").display());
    let refused = sandbox
        .run(["-v", &fixed_rw, Sandbox::BUSYBOX, "true"])
        .run()
        .exited(125);
    assert!(refused.err().contains("attach it ro"), "{refused}");

    let finished = running.finish().success();
    let out = finished.out();
    assert!(
        out.starts_with("1000:2000 /data/given\ngiven\n"),
        "{finished}"
    );
    assert_eq!(
        out.matches("Read-only file system").count(),
        3,
        "{finished}"
    );
    assert!(!out.contains("WRITTEN"), "{finished}");
    for line in ["room", "done"] {
        assert!(out.lines().any(|seen| seen == line), "{line}: {finished}");
    }
    assert!(
        finished
            .err()
            .contains("Port 9 of the guest is published at 127.0.0.1:")
    );
    assert!(
        fs::read(at("fixed.img")).unwrap() == fixed,
        "it was written to"
    );

    // The machine ended cleanly: what was written is there, and nothing has to be played back.
    assert_eq!(debugfs_cat(&at("kept.ext4"), "/file"), "kept\n");
    let again = sandbox
        .run(["-v", &kept, "-v"])
        .arg(format!("{}:/two", at("kept.ext4").display()))
        .args([Sandbox::BUSYBOX, "cat", "/kept/file", "/two/file"])
        .run()
        .success();
    assert_eq!(again.out(), "kept\nkept\n");
    sandbox.leftovers().none(&[&name]);
}

#[test]
fn a_disk_that_cannot_be_mounted_fails_the_boot_by_its_name() {
    let sandbox = sandbox();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("broken");
    let mut content = vec![0; 4 << 20];
    // The magic number of ext4, and nothing else of it.
    content[1080..1082].copy_from_slice(&[0x53, 0xef]);
    fs::write(&image, content).unwrap();
    let failed = sandbox
        .run(["--disk", &format!("cache={}:/var/cache", image.display())])
        .args([Sandbox::BUSYBOX, "true"])
        .run()
        .exited(125);
    for word in ["cache", "/var/cache", "no ext4"] {
        assert!(failed.err().contains(word), "{word}: {failed}");
    }
    sandbox.leftovers().none(&[]);
}

/// As many as a machine may have; docs/limitations.md says so.
const MAX_DISKS: usize = 16;
const MAX_PUBLISHED: usize = 64;
const MAX_MEDIATION: usize = 16;

/// A server of this host that says one word to each who comes.
fn word_server(word: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // Who has gone again is not told.
            let _ = stream.and_then(|mut stream| stream.write_all(word.as_bytes()));
        }
    });
    address
}

/// The guest's memory that the host holds, in MiB.
fn resident(vmm: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssShmem:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() / 1024
}

/// Each driver of a virtio device and how many devices it has; a device without one is `none`.
const DEVICES: &str = "for it in /sys/bus/virtio/devices/*; do
    if [ -e $it/driver ]; then basename $(readlink $it/driver); else echo none; fi
done | sort | uniq -c | while read count name; do echo $name $count; done";

#[test]
fn a_machine_with_the_most_of_everything_works_and_one_more_of_anything_is_refused() {
    require("passt", "passt");
    let sandbox = sandbox();
    let name = unique("most");
    let dir = tempfile::tempdir().unwrap();
    let image = |number: usize| dir.path().join(format!("v{number}.ext4"));
    fs::write(dir.path().join("given"), "given\n").unwrap();
    let archive = dir.path().join("v15.tar");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(dir.path())
        .arg("-cf")
        .arg(&archive)
        .arg("given")
        .status();
    assert!(packed.expect("install the package tar").success());
    let volumes: Vec<String> = (0..MAX_DISKS)
        .map(|number| {
            if number == MAX_DISKS - 1 {
                return format!("{}:/v/{number}:rw", archive.display());
            }
            mke2fs(&image(number), 4);
            format!("{}:/v/{number}:rw", image(number).display())
        })
        .collect();
    let ports: Vec<String> = (0..MAX_PUBLISHED)
        .map(|number| format!("0:{}", 7000 + number))
        .collect();
    let routes: Vec<String> = (0..MAX_MEDIATION)
        .map(|number| {
            format!(
                "{}={}",
                2048 + number,
                word_server(format!("word {number}\n"))
            )
        })
        .collect();
    let create = |more: &[&str]| {
        let mut invocation = sandbox.microagent(["create", &name]);
        for (option, values) in [("-v", &volumes), ("-p", &ports), ("--mediation", &routes)] {
            for value in values {
                invocation = invocation.args([option, value]);
            }
        }
        for word in more {
            invocation = invocation.arg(word);
        }
        let words = [Sandbox::BUSYBOX, "--", "sleep", "600"];
        invocation.args(words).run()
    };
    for (option, value, most) in [
        ("-v", "/one/more.tar:/more", "16 are the most"),
        ("-p", "0:99", "64 are the most"),
        ("--mediation", "3000=127.0.0.1:1", "16 are the most"),
    ] {
        let refused = create(&[option, value]).exited(1);
        assert!(refused.err().contains(most), "{refused}");
        assert!(refused.took < Duration::from_secs(10), "{refused}");
    }

    create(&[]).success();
    sandbox.microagent(["start", &name]).run().success();
    let inside = |script: &str| {
        let finished = sandbox
            .microagent(["exec", &name, "--", "sh", "-c", script])
            .run();
        finished.success().out()
    };
    // Every place that QEMU's machine has is taken, and what is there has a driver.
    let wanted = [
        "virtio_balloon 1",
        "virtio_blk 18",
        "virtio_net 1",
        "virtio_rng 1",
        "vmw_vsock_virtio_transport 1",
    ];
    // The balloon's driver comes when the guest has nothing better to do.
    eventually_or(
        SOON,
        || inside(DEVICES),
        || {
            let devices = inside(DEVICES);
            let mut devices: Vec<_> = devices.lines().collect();
            devices.sort_unstable();
            (devices == wanted).then_some(())
        },
    );
    assert_eq!(inside("head -c 4096 /dev/hwrng | wc -c"), "4096\n");
    inside("echo The console works. > /dev/console");
    eventually(SOON, "the word on the console", || {
        let logs = sandbox.microagent(["logs", &name]).run().success();
        logs.out().contains("The console works.").then_some(())
    });
    // Each volume is written to, and the host reads it when the machine is gone.
    assert_eq!(inside("cat /v/15/given"), "given\n");
    inside("cd /v; for n in *; do echo volume $n > $n/file; done");
    // Each published port leads to a server of its own.
    inside(
        "n=7000; while [ $n -lt 7064 ]; do nc -ll -p $n -e echo port $n & n=$((n + 1)); done \
         > /dev/null 2>&1 < /dev/null",
    );
    let published = event(&sandbox, &name, "ports_published");
    let published = published["ports"].as_array().unwrap();
    assert_eq!(published.len(), MAX_PUBLISHED);
    for port in published {
        let host = port["host_port"].as_u64().unwrap();
        let address = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), host.try_into().unwrap());
        let wanted = format!("port {}\n", port["guest_port"]);
        eventually(SOON, &wanted, || {
            let mut stream = TcpStream::connect(address).ok()?;
            stream.set_read_timeout(Some(SOON)).ok()?;
            (std::io::read_to_string(&mut stream).ok()? == wanted).then_some(())
        });
    }
    // Each mediation route leads to the server it was given.
    let words =
        inside("n=2048; while [ $n -lt 2064 ]; do nc 127.0.0.1 $n < /dev/null; n=$((n + 1)); done");
    let wanted: String = (0..MAX_MEDIATION).map(|n| format!("word {n}\n")).collect();
    assert_eq!(words, wanted);
    // The network card carries what it should.
    let outer = outer_address("203.0.113.1").expect("a route out of this host");
    let (port, _) = serve(outer, "from outside\n");
    let page = inside(&fetch(&outer.to_string(), port, 20));
    assert_eq!(page, "from outside\n");
    // By the balloon the host gets back what the guest freed.
    let vmm = event(&sandbox, &name, "vmm_started")["vmm"]["pid"].clone();
    let vmm = vmm.as_u64().unwrap();
    inside("mkdir /t && mount -t tmpfs t /t && head -c 100663296 /dev/zero > /t/zeros");
    let taken = resident(vmm);
    assert!(taken >= 96, "{taken} MiB");
    inside("umount /t");
    eventually(SOON, "freed memory is the host's again", || {
        (resident(vmm) + 72 <= taken).then_some(())
    });

    sandbox.microagent(["halt", &name]).run().success();
    for number in 0..MAX_DISKS - 1 {
        let wanted = format!("volume {number}\n");
        assert_eq!(debugfs_cat(&image(number), "/file"), wanted);
    }
    sandbox.microagent(["delete", &name]).run().success();
    sandbox.leftovers().none(&[&name]);
}
