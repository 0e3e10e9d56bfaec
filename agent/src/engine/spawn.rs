//! Starting a job: files, environment and the spawn.
//!
//! posix_spawn(3), or its like into a control group ([`super::clone`]), never fork: the cost does
//! not grow with this process. The child starts with an empty signal mask, default dispositions,
//! descriptors 0, 1, 2 only (everything else here is close-on-exec), and a session of its own: no
//! process of it can join a group of anybody else's, so a signal to a group of its processes hits
//! only those.

use super::NotStarted;
use super::environment::Inherited;
use super::open::{directory, not_started, open_output, open_waitless, reason, same_file};
use super::order::{Order, OutputTo};
use super::processes::Born;
use super::program::{command_line, why_not_started};
use crate::kernel::cgroup::{Leaf, Leaves};
use crate::kernel::paths;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

/// The things that are fixed for the life of an engine.
pub(super) struct Surroundings {
    inherited: Inherited,
    slot: u16,
    host: String,
    null: OwnedFd,
    /// Where attempts are born; none: in this process's own group.
    leaves: Option<Leaves>,
    stack: Box<super::clone::Stack>,
}

/// A job that runs, and its processes.
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) born: Option<Born>,
}

impl Surroundings {
    /// Opens `/dev/null`.
    pub(super) fn new(
        slot: u16,
        host: String,
        inherited: Inherited,
        leaves: Option<Leaves>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            inherited,
            slot,
            host,
            null: rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?,
            leaves,
            stack: super::clone::Stack::new(),
        })
    }
}

/// Starts the job.
///
/// # Errors
/// The text for the reader of the result: the thing that could not be done, with the path and the
/// system's reason.
pub(super) fn start(
    around: &mut Surroundings,
    order: &Order,
    [out, err]: &[OutputTo; 2],
) -> Result<Started, NotStarted> {
    let Order { spec, context, .. } = order;
    // The umask is process-wide, which is right: an engine runs one attempt at a time.
    rustix::process::umask(Mode::from_raw_mode(context.umask & 0o777));
    let cd = directory(spec, context)?;
    let stdin = match &spec.stdin {
        Some(path) => Some(open_waitless(
            &cd,
            &paths::path(path),
            OFlags::RDONLY,
            "read",
        )?),
        None => None,
    };
    let (out, err) = (open_output(&cd, out)?, open_output(&cd, err)?);
    let env = around
        .inherited
        .environment(order, around.slot, &around.host)?;
    let (program, argv) = command_line(&cd, spec, context, &env)?;
    // One file for both streams has to be one open file: two would overwrite each other.
    let err = if same_file(&out, &err) { &out } else { &err };
    let born = around.leaves.as_mut().map(next_leaf).transpose()?;
    let fds = [
        stdin.as_ref().map_or(around.null.as_fd(), AsFd::as_fd),
        out.as_fd(),
        err.as_fd(),
    ];
    let argv: Vec<*const c_char> = argv
        .iter()
        .map(|a| a.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    let envp: Vec<*const c_char> = env
        .iter()
        .map(|(_, e)| e.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    let spawned = match &born {
        Some((leaf, _)) => {
            let (stack, ignored) = (&mut around.stack, around.inherited.ignored);
            super::clone::spawn_into(
                leaf.dir(),
                stack,
                &program,
                &argv,
                &envp,
                cd.as_fd(),
                fds,
                ignored,
            )
        }
        None => posix_spawn(&program, &argv, &envp, cd.as_fd(), fds),
    };
    let pid = spawned.map_err(|e| {
        if let Some((leaf, _)) = &born {
            leaf.remove_if_used_up();
        }
        why_not_started(spec, &program, e)
    })?;
    Ok(Started { pid, born })
}

/// The control group of the next attempt.
fn next_leaf(leaves: &mut Leaves) -> Result<Born, NotStarted> {
    let leaf = leaves.next().map_err(|e| {
        let text = format!("no control group for the job: {e}");
        match crate::kernel::cgroup::errno(&e) {
            // cgroups(7): mkdir(2) fails so at the limit of groups.
            Some(Errno::AGAIN) => NotStarted::Short(format!(
                "{text} (EAGAIN: `cgroup.max.descendants` or `cgroup.max.depth` of a group above)"
            )),
            errno => not_started(text, errno.unwrap_or(Errno::IO)),
        }
    })?;
    let cpu = leaf.cpu();
    Ok((leaf, cpu))
}

/// Whether processes can be born in a control group here: the kernel may be too old for it, or a
/// container may forbid clone3(2).
///
/// # Errors
/// The reason why not.
pub(crate) fn can_spawn_into(leaf: &Leaf) -> std::io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // A program that cannot exist: the child gets as far as execve(2), which fails with the reason.
    let nothing = c"/dev/null/nothing".to_owned();
    let (argv, mut stack) = (
        [nothing.as_ptr(), std::ptr::null()],
        super::clone::Stack::new(),
    );
    let fds = [null.as_fd(); 3];
    match super::clone::spawn_into(
        leaf.dir(),
        &mut stack,
        &nothing,
        &argv,
        &[std::ptr::null()],
        root.as_fd(),
        fds,
        0,
    ) {
        Err(Errno::NOTDIR) => Ok(()),
        Err(e) => Err(std::io::Error::other(format!(
            "clone3(CLONE_INTO_CGROUP): {}",
            reason(e)
        ))),
        Ok(_) => Err(std::io::Error::other("/dev/null/nothing was started")),
    }
}

unsafe extern "C" {
    // glibc 2.29 and musl 1.1.24 have it; the libc crate does not declare it for both.
    fn posix_spawn_file_actions_addfchdir_np(
        actions: *mut libc::posix_spawn_file_actions_t,
        fd: libc::c_int,
    ) -> libc::c_int;
}

fn posix_spawn(
    program: &CStr,
    argv: &[*const c_char],
    envp: &[*const c_char],
    cd: BorrowedFd<'_>,
    fds: [BorrowedFd<'_>; 3],
) -> Result<i32, Errno> {
    let check = |code: libc::c_int| {
        if code == 0 {
            Ok(())
        } else {
            Err(Errno::from_raw_os_error(code))
        }
    };
    let mut pid = 0;
    // SAFETY: actions and attributes are initialised before use and destroyed after it; all
    // pointers outlive the call, and argv and envp end with a null pointer.
    unsafe {
        let mut actions = MaybeUninit::uninit();
        check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
        let mut attributes = MaybeUninit::uninit();
        let result = check(libc::posix_spawnattr_init(attributes.as_mut_ptr())).and_then(|()| {
            let mut spawn = || {
                let (acts, attrs) = (actions.as_mut_ptr(), attributes.as_mut_ptr());
                check(posix_spawn_file_actions_addfchdir_np(acts, cd.as_raw_fd()))?;
                for (target, fd) in fds.iter().enumerate() {
                    check(libc::posix_spawn_file_actions_adddup2(
                        acts,
                        fd.as_raw_fd(),
                        target as libc::c_int,
                    ))?;
                }
                let mut signals = MaybeUninit::uninit();
                libc::sigemptyset(signals.as_mut_ptr());
                check(libc::posix_spawnattr_setsigmask(attrs, signals.as_ptr()))?;
                libc::sigfillset(signals.as_mut_ptr());
                check(libc::posix_spawnattr_setsigdefault(attrs, signals.as_ptr()))?;
                let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
                check(libc::posix_spawnattr_setflags(
                    attrs,
                    flags as libc::c_short | libc::POSIX_SPAWN_SETSID,
                ))?;
                check(libc::posix_spawn(
                    &mut pid,
                    program.as_ptr(),
                    acts,
                    attrs,
                    argv.as_ptr().cast(),
                    envp.as_ptr().cast(),
                ))
            };
            let spawned = spawn();
            libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
            spawned
        });
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        result?;
    }
    Ok(pid)
}
