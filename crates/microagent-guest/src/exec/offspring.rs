//! A child that borrows the agent's memory until it is another program. Copying the agent's page
//! tables for a child that throws them away at once is most of what a fork costs, and joining a
//! control group afterwards waits for every processor to have noticed.

use std::{
    arch::asm,
    ffi::{c_long, c_void},
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd},
};

use rustix::process::Pid;

/// Not in `libc`: its type there is too small.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// The child runs on the agent's memory, and the caller waits until it does not any more.
const FLAGS: u64 = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
/// Far more than a few system calls need.
const STACK: usize = 32 * 1024;

/// A child's stack, aligned as both architectures want it.
#[repr(C, align(16))]
struct Stack([u8; STACK]);

/// What the child does: with the caller's argument, on a stack of its own. Never returns.
pub(super) type Life = unsafe extern "C" fn(*mut c_void) -> !;

/// Starts a child that lives `life`, from the start a member of the control group `group` or else of
/// the agent's own. Returns when the child has become another program or has ended.
///
/// # Safety
/// The child runs on this thread's memory while this thread stands still, and other threads may hold
/// any lock: `life` must keep to plain system calls, neither allocate nor panic, and end in `execve`
/// or `_exit`. What `argument` points to must live until this returns.
pub(super) unsafe fn start(
    group: Option<BorrowedFd<'_>>,
    life: Life,
    argument: *mut c_void,
) -> io::Result<Pid> {
    let mut stack = Box::<Stack>::new_uninit();
    let base = stack.as_mut_ptr() as usize;
    let Some(group) = group else {
        let flags = FLAGS as usize | libc::SIGCHLD as usize;
        // SAFETY: a child on a stack of its own that lives through the call; the caller answers for
        // its life.
        return unsafe { child(libc::SYS_clone, [flags, base + STACK], life, argument) };
    };
    // SAFETY: all-zero bytes are a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = FLAGS | CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.stack = base as u64;
    arguments.stack_size = STACK as u64;
    arguments.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    let (first, second) = (&raw const arguments as usize, size_of_val(&arguments));
    // SAFETY: as above; the arguments live through the call.
    unsafe { child(libc::SYS_clone3, [first, second], life, argument) }
}

/// Whether a child may be born outside of its group and join it: the kernel is older than 5.7, or the
/// group is full, which must not keep anybody from looking into it.
pub(super) fn may_join_later(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::E2BIG | libc::EINVAL | libc::EAGAIN)
    )
}

/// The system call itself. It cannot go through the library: the child must not return on the stack
/// of the caller, which is still needed.
///
/// # Safety
/// `number` and `arguments` must ask for a new process with the memory shared, the caller suspended,
/// and a stack of its own, aligned and alive through the call.
unsafe fn child(
    number: c_long,
    arguments: [usize; 2],
    life: Life,
    argument: *mut c_void,
) -> io::Result<Pid> {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: to the caller this is a system call, which clobbers rcx and r11 and nothing else. The
    // child goes on at the `call` with its own copy of the registers and never comes out.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {life}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            life = in(reg) life,
            inlateout("rax") number as isize => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") 0,
            in("r10") 0,
            in("r8") 0,
            out("rcx") _,
            out("r11") _,
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: to the caller this is a system call, which clobbers x0 and nothing else. The child goes
    // on at the branch with its own copy of the registers and never comes out.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {life}",
            "brk 1",
            "2:",
            argument = in(reg) argument,
            life = in(reg) life,
            in("x8") number,
            inlateout("x0") arguments[0] as isize => result,
            in("x1") arguments[1],
            in("x2") 0,
            in("x3") 0,
            in("x4") 0,
        );
    }
    match i32::try_from(result) {
        Ok(pid @ 1..) => Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::Other.into()),
        Ok(error) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
        Err(_) => Err(io::ErrorKind::Other.into()),
    }
}

const _: () = assert!(size_of::<usize>() == size_of::<u64>());

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::fd::AsFd,
        ptr::null_mut,
        sync::atomic::{AtomicU32, Ordering},
    };

    use rustix::process::{WaitOptions, waitpid};

    use super::*;
    use crate::exec::pump::tests::ONE_AT_A_TIME;

    unsafe extern "C" fn live(count: *mut c_void) -> ! {
        // SAFETY: it is the test's own, and it waits.
        let count = unsafe { &*count.cast::<AtomicU32>() };
        count.fetch_add(1, Ordering::Relaxed);
        // SAFETY: ends this process alone.
        unsafe { libc::_exit(7) }
    }

    /// Starts a child; gives how it ended, and how often it lived.
    fn started() -> (Option<i32>, u32) {
        let count = AtomicU32::new(0);
        // SAFETY: `live` counts and exits; what it is given lives on this frame.
        let pid = unsafe { start(None, live, (&raw const count).cast_mut().cast()) };
        let (_, status) = waitpid(Some(pid.unwrap()), WaitOptions::empty())
            .unwrap()
            .unwrap();
        (status.exit_status(), count.load(Ordering::Relaxed))
    }

    #[test]
    fn a_child_lives_once_on_this_memory_and_the_caller_goes_on() {
        let _guard = ONE_AT_A_TIME.lock();
        let before = vec![1_u8, 2, 3];
        for _ in 0..100 {
            assert_eq!(started(), (Some(7), 1));
        }
        assert_eq!(before, [1, 2, 3]);
    }

    #[test]
    fn other_threads_go_on_meanwhile() {
        let _guard = ONE_AT_A_TIME.lock();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        assert_eq!(started(), (Some(7), 1));
                    }
                });
            }
        });
    }

    #[test]
    fn what_is_no_group_is_an_error_and_no_child() {
        let file = File::open("/dev/null").unwrap();
        // SAFETY: the child never lives.
        let refused = unsafe { start(Some(file.as_fd()), live, null_mut()) };
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
