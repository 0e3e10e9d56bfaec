//! Spawning into a control group: clone3(2) with `CLONE_VM | CLONE_VFORK | CLONE_INTO_CGROUP`.
//!
//! This works like posix_spawn(3), which has no attribute for the control group before glibc 2.39:
//! the child borrows this process's memory, on a stack of its own, while the calling thread waits,
//! until execve(2). So the cost does not grow with this process, unlike fork's. In the child only
//! system calls are made.
//!
//! Neither libc has a function for it, so it is written here for each processor. On other
//! processors attempts are held by group and subreaper alone.

use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;
use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;

/// Room for a few frames of [`child`] and of the libc's wrappers, debug builds included.
const STACK: usize = 64 * 1024;

/// The memory in which the child runs. It costs only the pages that the child touches.
#[repr(align(16))]
pub(super) struct Stack([MaybeUninit<u8>; STACK]);

impl Stack {
    pub(super) fn new() -> Box<Self> {
        // SAFETY: it is made of bytes that need no value.
        unsafe { Box::new_uninit().assume_init() }
    }
}

/// The data that the child needs, and the error that it reports when it fails. Plain data: nothing
/// is allocated or freed in the child.
#[repr(C)]
struct Plan {
    program: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    cd: libc::c_int,
    fds: [libc::c_int; 3],
    /// Signals that this process ignores: bit N−1 for signal N.
    ignored: u64,
    /// errno of the call that failed, or 0.
    failed: libc::c_int,
}

/// Starts `program` in the control group `group`: in a session of its own, in directory `cd`, with
/// `fds` as descriptors 0, 1, 2, an empty signal mask and default dispositions.
///
/// # Errors
/// errno of clone3(2), or of the call that failed in the child.
#[expect(
    clippy::too_many_arguments,
    reason = "execve(2) and its surroundings; each is named at the one call"
)]
pub(super) fn spawn_into(
    group: BorrowedFd<'_>,
    stack: &mut Stack,
    program: &CString,
    argv: &[*const c_char],
    envp: &[*const c_char],
    cd: BorrowedFd<'_>,
    fds: [BorrowedFd<'_>; 3],
    ignored: u64,
) -> Result<i32, Errno> {
    let mut plan = Plan {
        program: program.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        cd: cd.as_raw_fd(),
        fds: fds.map(|fd| fd.as_raw_fd()),
        ignored,
        failed: 0,
    };
    // SAFETY: all zeroes is a valid clone_args (linux/sched.h).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags =
        (libc::CLONE_VM | libc::CLONE_VFORK) as u64 | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.stack = stack.0.as_mut_ptr() as u64;
    args.stack_size = STACK as u64;
    args.cgroup = group.as_raw_fd() as u64;
    // SAFETY: the child has a stack of its own, whose top is aligned to 16 bytes. This thread goes
    // on when the child has called execve(2) or has ended; until then nothing of `plan`, `stack`
    // and what they point to changes. `plan.failed` is read through a volatile pointer after that.
    let result = unsafe { clone3(&args, child, &raw mut plan) };
    if result < 0 {
        return Err(Errno::from_raw_os_error(-result as i32));
    }
    // SAFETY: the child is gone from this memory, and `plan` is ours again.
    let failed = unsafe { std::ptr::read_volatile(&raw const plan.failed) };
    let pid = result as i32;
    if failed != 0 {
        // The child has ended without ever being the job.
        super::wait::wait4_blocking(pid);
        return Err(Errno::from_raw_os_error(failed));
    }
    Ok(pid)
}

/// The system call: in the child, which starts behind it on the stack of `args`, calls `child`;
/// here, the child's number or −errno.
///
/// # Safety
/// As for clone3(2): `child` must use the memory that it shares rightly.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(
    args: &libc::clone_args,
    child: extern "C" fn(*mut Plan) -> !,
    plan: *mut Plan,
) -> isize {
    let result;
    // SAFETY: the caller vouches for it; `child` never returns. The kernel changes rax, rcx and r11
    // (syscall(2)); the child uses nothing of this frame.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") child,
            in("r13") plan,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// As above, for this processor.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(
    args: &libc::clone_args,
    child: extern "C" fn(*mut Plan) -> !,
    plan: *mut Plan,
) -> isize {
    let result;
    // SAFETY: as above. The kernel changes x0 only; x29 and x30, the frame and the return address,
    // are the child's own registers.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x21",
            "blr x20",
            "brk #1",
            "2:",
            inlateout("x0") args as *const libc::clone_args as isize => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
            in("x20") child,
            in("x21") plan,
        );
    }
    result
}

/// Fails as a kernel does that lacks the system call.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone3(_: &libc::clone_args, _: extern "C" fn(*mut Plan) -> !, _: *mut Plan) -> isize {
    -(libc::ENOSYS as isize)
}

/// linux/sched.h; the libc crate has them as 32-bit numbers only on some targets.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The child, in borrowed memory. It may change errno, which is that of the waiting thread: nothing
/// there depends on it.
extern "C" fn child(plan: *mut Plan) -> ! {
    // SAFETY: `plan` lives in the waiting caller. All calls are async-signal-safe
    // (signal-safety(7)); dispositions and mask are the child's own, since neither CLONE_SIGHAND
    // nor CLONE_THREAD is set.
    unsafe {
        let it = &mut *plan;
        libc::setsid();
        let mut fine = libc::fchdir(it.cd) == 0;
        let mut target = 0;
        while target < 3 {
            fine = fine && libc::dup2(it.fds[target as usize], target) == target;
            target += 1;
        }
        let mut signal = 1;
        while signal <= 64 {
            if it.ignored & (1 << (signal - 1)) != 0 {
                // Not through the libc, which keeps two signals to itself. All zeroes: SIG_DFL, no
                // flags (struct kernel_sigaction).
                let default = [0u64; 4];
                let (size, old) = (size_of::<u64>(), std::ptr::null_mut::<u64>());
                libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, size);
            }
            signal += 1;
        }
        let empty = 0u64;
        let (how, size) = (libc::SIG_SETMASK, size_of::<u64>());
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            how,
            &raw const empty,
            std::ptr::null_mut::<u64>(),
            size,
        );
        if fine {
            libc::execve(it.program, it.argv, it.envp);
        }
        std::ptr::write_volatile(&raw mut it.failed, *libc::__errno_location());
        libc::_exit(127)
    }
}
