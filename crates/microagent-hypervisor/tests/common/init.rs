// PID 1 of the test guests, compiled on its own by the tests (static, no crates).
// The file /mode says what it does.
use std::{
    ffi::{CString, c_char, c_int, c_long, c_ulong, c_void},
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::fd::AsRawFd,
    thread::sleep,
    time::Duration,
};

unsafe extern "C" {
    fn mount(s: *const c_char, t: *const c_char, f: *const c_char, o: c_ulong, d: *const c_void) -> c_int;
    fn reboot(how: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

fn mount_at(kind: &str, at: &str) {
    std::fs::create_dir_all(at).expect("mkdir");
    let (kind, at) = (CString::new(kind).unwrap(), CString::new(at).unwrap());
    unsafe { mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
}

fn load_modules() {
    let list = std::fs::read_to_string("/modules").unwrap_or_default();
    for name in list.lines() {
        let file = File::open(format!("/{name}")).expect(name);
        let empty = c"";
        let done = unsafe { syscall(FINIT_MODULE, file.as_raw_fd(), empty.as_ptr(), 0) };
        if done != 0 {
            println!("MODULE-FAILED {name} {}", std::io::Error::last_os_error());
        }
    }
}

#[cfg(target_arch = "x86_64")]
const FINIT_MODULE: c_long = 313;
#[cfg(target_arch = "aarch64")]
const FINIT_MODULE: c_long = 273;

fn disks() {
    for name in ["vda", "vdb", "vdc"] {
        let serial = std::fs::read_to_string(format!("/sys/block/{name}/serial"));
        let Ok(serial) = serial else { continue };
        let path = format!("/dev/{name}");
        let mut start = [0; 5];
        let read = File::open(&path).and_then(|mut f| f.read_exact(&mut start));
        println!("DISK {name} serial={} read={read:?} start={}", serial.trim(), start.escape_ascii());
        let wrote = OpenOptions::new().write(true).open(&path).and_then(|mut f| {
            f.seek(std::io::SeekFrom::Start(4096))?;
            f.write_all(b"written by the guest")?;
            f.sync_all()
        });
        println!("DISK {name} write={}", if wrote.is_ok() { "ok" } else { "refused" });
    }
}

fn main() {
    mount_at("proc", "/proc");
    mount_at("sysfs", "/sys");
    mount_at("devtmpfs", "/dev");
    load_modules();
    let mode = std::fs::read_to_string("/mode").unwrap_or_default();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    println!("GUEST-IS-UP mode={mode} uptime={}", uptime.split(' ').next().unwrap());
    match mode.as_str() {
        "hello" => {}
        "disks" => disks(),
        "beat" => {
            for n in 0u64.. {
                println!("BEAT {n}");
                sleep(Duration::from_millis(50));
            }
        }
        "flood" => {
            let line = "0123456789abcdef".repeat(16);
            for n in 0..4000 {
                println!("FLOOD {n} {line}");
            }
            println!("FLOOD-DONE");
        }
        "network" => {
            // The names of the interfaces, and whether they have a carrier.
            for entry in std::fs::read_dir("/sys/class/net").unwrap() {
                println!("NET {}", entry.unwrap().file_name().to_string_lossy());
            }
        }
        "panic" => std::process::exit(3),
        other => println!("UNKNOWN-MODE {other}"),
    }
    println!("GUEST-IS-DONE");
    let mut console = File::options().write(true).open("/dev/console").unwrap();
    console.flush().unwrap();
    // What is still in the serial port's buffer is sent before the power goes.
    sleep(Duration::from_millis(100));
    unsafe {
        // LINUX_REBOOT_CMD_RESTART: every machine type ends at a reset.
        reboot(0x0123_4567);
    }
}
