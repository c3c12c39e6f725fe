//! The PC's first timer, which nobody needs once the kernel has a better one.

/// Where Linux names the timer that each processor uses.
#[cfg(target_arch = "x86_64")]
const CURRENT: &str = "/sys/devices/system/clockevents/clockevent0/current_device";

/// Stops the first timer of the i8254 where the kernel uses the processor's own. The firmware leaves it
/// running, kernels before 6.12 do not stop what they do not use, and so a virtual machine monitor changes
/// its line 36 times a second for nobody.
#[cfg(target_arch = "x86_64")]
pub(crate) fn stop_unused() {
    let is_unused =
        std::fs::read_to_string(CURRENT).is_ok_and(|device| device.starts_with("lapic"));
    if is_unused {
        // What cannot be stopped costs the host a little, and the guest nothing.
        let _stopped = stop();
    }
}

/// Other machines have no such timer.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn stop_unused() {}

#[cfg(target_arch = "x86_64")]
fn stop() -> std::io::Result<()> {
    const COMMAND: u16 = 0x43;
    /// Channel 0, to count down once from a count that does not come: as the kernel stops it.
    const ONCE: u8 = 0x30;
    // SAFETY: no pointers; it lets this thread use one port, or fails.
    if unsafe { libc::ioperm(COMMAND.into(), 1, 1) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the port is the timer's, this thread may use it, and no memory is touched.
    unsafe {
        std::arch::asm!(
            "out dx, al",
            in("dx") COMMAND,
            in("al") ONCE,
            options(nomem, nostack, preserves_flags)
        );
    }
    // SAFETY: as above. What is given back cannot fail.
    unsafe { libc::ioperm(COMMAND.into(), 1, 0) };
    Ok(())
}
