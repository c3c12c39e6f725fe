//! What goes in and out of a guest is exact, apart, and as it happens.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use testkit::{Sandbox, sha256};

use crate::sandbox;

const MIB: usize = 1024 * 1024;

/// Bytes without a pattern that a lost or doubled block could hide in.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn sixty_four_mebibytes_of_output_are_exact() {
    let sandbox = sandbox();
    // The guest hashes what it sends, so both ends are seen.
    let script =
        "head -c 67108864 /dev/urandom > /tmp/noise; sha256sum < /tmp/noise >&2; cat /tmp/noise";
    let finished = sandbox
        .run(["--profile", "medium", Sandbox::BUSYBOX, "sh", "-c", script])
        .run()
        .success();
    assert_eq!(finished.stdout.len(), 64 * MIB);
    assert_eq!(
        finished.err().split_whitespace().next(),
        Some(finished.out_sha256().as_str())
    );
}

#[test]
fn stdout_and_stderr_stay_apart() {
    let sandbox = sandbox();
    let finished = sandbox
        .run([
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            "echo out; echo err >&2; echo out2",
        ])
        .run()
        .success();
    assert_eq!(finished.out(), "out\nout2\n");
    assert_eq!(finished.err(), "err\n");
}

#[test]
fn sixteen_mebibytes_of_input_arrive() {
    let sandbox = sandbox();
    let input = noise(16 * MIB);
    let expected = sha256(&input);
    let finished = sandbox
        .run(["-i", Sandbox::BUSYBOX, "sha256sum"])
        .stdin(input)
        .run()
        .success();
    assert_eq!(
        finished.out().split_whitespace().next(),
        Some(expected.as_str())
    );
}

#[test]
fn without_interactive_the_input_is_empty() {
    let sandbox = sandbox();
    let finished = sandbox
        .run([Sandbox::BUSYBOX, "sh", "-c", "wc -c"])
        .stdin("not for the guest")
        .run()
        .success();
    assert_eq!(finished.out().trim(), "0");
}

#[test]
fn output_is_streamed_as_it_is_produced() {
    let sandbox = sandbox();
    let mut running = sandbox
        .run([
            "-i",
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            "while read line; do echo \"got $line\"; done",
        ])
        .start();
    let mut stdin = running.stdin.take().expect("a pipe");
    stdin.write_all(b"one\n").expect("the guest reads");
    // The answer to the first line must come while the input is still open.
    let start = Instant::now();
    while running.output_so_far().is_empty() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "no answer while the input is open"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(running.output_so_far(), b"got one\n");
    stdin.write_all(b"two\n").expect("the guest reads");
    drop(stdin);
    assert_eq!(running.finish().success().out(), "got one\ngot two\n");
}

#[test]
fn a_process_that_ignores_its_input_does_not_hang() {
    let sandbox = sandbox();
    let finished = sandbox
        .run(["-i", Sandbox::BUSYBOX, "true"])
        .stdin(noise(4 * MIB))
        .run()
        .success();
    assert_eq!(finished.out(), "");
}

#[test]
fn a_background_child_that_holds_the_output_does_not_hang_the_run() {
    let sandbox = sandbox();
    let finished = sandbox
        .run([Sandbox::BUSYBOX, "sh", "-c", "sleep 600 & echo done"])
        .run()
        .success();
    assert_eq!(finished.out(), "done\n");
    assert!(finished.took < Duration::from_secs(60));
}

#[test]
fn escapes_and_nuls_pass_unharmed() {
    let sandbox = sandbox();
    let script = r"printf '\033[2J\033]0;title\007\000\377\376end\n'";
    let finished = sandbox
        .run([Sandbox::BUSYBOX, "sh", "-c", script])
        .run()
        .success();
    assert_eq!(finished.stdout, b"\x1b[2J\x1b]0;title\x07\0\xff\xfeend\n");
    assert_eq!(finished.err(), "");
}
