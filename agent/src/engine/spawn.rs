//! Starting a job: files, environment and posix_spawn(3).
//!
//! Always posix_spawn, never fork: its cost does not grow with this process, and glibc and musl both do it by
//! `clone(CLONE_VM | CLONE_VFORK)`. The child starts with an empty signal mask, default dispositions, a process group of its own and
//! descriptors 0, 1, 2 only (everything else here is close-on-exec).

use mezcal_common::ids::{AttemptId, EngineId};
use mezcal_common::job::{BatchContext, Command, JobSpec, SHELL_PREFIX};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// What is fixed for the life of an engine.
pub(super) struct Surroundings {
    /// Environment of every job, before the batch's.
    env: Vec<(String, CString)>,
    null: OwnedFd,
    slot: u16,
    host: String,
}

/// A job that runs, and the ends of the pipes that take its output.
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) out: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
}

/// Names that must not leak from a service manager or a shell into jobs.
const SCRUBBED: [&str; 12] = [
    "BASH_ENV",
    "ENV",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "CREDENTIALS_DIRECTORY",
    "MANAGERPID",
];

impl Surroundings {
    /// Reads this process's environment and opens `/dev/null`.
    pub(super) fn new(slot: u16, host: String) -> std::io::Result<Self> {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| {
                let key = name.to_string_lossy().into_owned();
                let mut entry = name.into_vec();
                entry.push(b'=');
                entry.extend(value.into_vec());
                Some((key, CString::new(entry).ok()?))
            })
            .filter(|(key, _)| !SCRUBBED.contains(&key.as_str()) && !key.starts_with("BASH_FUNC_"))
            .collect();
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { env, null, slot, host })
    }

    /// The environment of one job: later names win, the reserved ones come last.
    fn environment(
        &self,
        attempt: AttemptId,
        spec: &JobSpec,
        context: &BatchContext,
        engine: EngineId,
    ) -> Result<Vec<(String, CString)>, String> {
        let mut env = self.env.clone();
        let mut set = |name: &str, value: &str| -> Result<(), String> {
            let entry = CString::new(format!("{name}={value}")).map_err(|_| format!("environment {name:?} contains a NUL byte"))?;
            match env.iter_mut().find(|(key, _)| key == name) {
                Some(slot) => slot.1 = entry,
                None => env.push((name.to_owned(), entry)),
            }
            Ok(())
        };
        for (name, value) in context.env.iter().chain(&spec.env) {
            set(name, value)?;
        }
        set("MEZCAL_JOB_ID", &label(spec, attempt))?;
        set("MEZCAL_ATTEMPT", &attempt.attempt.to_string())?;
        set("MEZCAL_ENGINE_ID", &engine.to_string())?;
        set("MEZCAL_SLOT", &self.slot.to_string())?;
        set("MEZCAL_HOST", &self.host)?;
        set("MEZCAL_BATCH", &context.batch.to_string())?;
        Ok(env)
    }
}

fn label(spec: &JobSpec, attempt: AttemptId) -> String {
    spec.label.clone().unwrap_or_else(|| attempt.key.job.to_string())
}

/// Starts the job.
///
/// # Errors
/// For the reader of the result: what could not be done, with the path and the system's reason.
pub(super) fn start(
    around: &Surroundings,
    attempt: AttemptId,
    spec: &JobSpec,
    context: &BatchContext,
    engine: EngineId,
) -> Result<Started, String> {
    // Process-wide, which is right: an engine runs one attempt at a time.
    rustix::process::umask(Mode::from_raw_mode(context.umask & 0o777));
    let cd = directory(spec, context)?;
    let stdin = match &spec.stdin {
        Some(path) => Some(open_waitless(&cd, path, OFlags::RDONLY, "read")?),
        None => None,
    };
    let (out_read, out_write) = match output_path(spec, spec.out.as_deref(), "out", attempt, context) {
        Some(path) => (None, open_output(&cd, &path)?),
        None => pipe().map(|(read, write)| (Some(read), write))?,
    };
    let (err_read, err_write) = match output_path(spec, spec.err.as_deref(), "err", attempt, context) {
        Some(path) => (None, open_output(&cd, &path)?),
        None => pipe().map(|(read, write)| (Some(read), write))?,
    };
    let env = around.environment(attempt, spec, context, engine)?;
    let (program, argv) = command_line(&cd, spec, context, &env)?;
    // One file for both streams is one open file: two would overwrite each other.
    let err = if same_file(&out_write, &err_write) { &out_write } else { &err_write };
    let fds = [stdin.as_ref().map_or(around.null.as_fd(), AsFd::as_fd), out_write.as_fd(), err.as_fd()];
    let pid = posix_spawn(&program, &argv, &env, cd.as_fd(), fds).map_err(|e| why_not_started(spec, &program, e))?;
    Ok(Started { pid, out: out_read, err: err_read })
}

fn directory(spec: &JobSpec, context: &BatchContext) -> Result<OwnedFd, String> {
    let path = Path::new(&context.cd).join(spec.cd.as_deref().unwrap_or_default());
    rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| cannot("change to directory", &path.to_string_lossy(), e))
}

fn output_path(spec: &JobSpec, own: Option<&str>, extension: &str, attempt: AttemptId, context: &BatchContext) -> Option<String> {
    own.map(str::to_owned).or_else(|| {
        let dir = context.output_dir.as_ref()?;
        // If it cannot be made, opening the file says why.
        let _ = std::fs::create_dir_all(dir);
        let name = label(spec, attempt).replace(['/', '\0'], "_");
        Some(format!("{dir}/{name}.{extension}"))
    })
}

/// A pipe whose read end does not block.
fn pipe() -> Result<(OwnedFd, OwnedFd), String> {
    let make = || {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
        Ok((read, write))
    };
    make().map_err(|e: Errno| format!("cannot make a pipe: {}", reason(e)))
}

fn open_at(cd: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(cd, path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o666))
}

/// Opens a file for output, truncated.
fn open_output(cd: &OwnedFd, path: &str) -> Result<OwnedFd, String> {
    open_waitless(cd, path, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC, "write")
}

/// Opens a file without ever waiting for a partner. A FIFO is refused: its other end would decide when the job starts and ends.
fn open_waitless(cd: &OwnedFd, path: &str, flags: OFlags, verb: &str) -> Result<OwnedFd, String> {
    let fifo = || format!("cannot {verb} {path:?}: it is a FIFO; redirect inside `cmd` to use one");
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open_at(cd, path, flags).map_err(|e| if e == Errno::NXIO { fifo() } else { cannot(verb, path, e) })?;
    let stat = rustix::fs::fstat(&file).map_err(|e| cannot(verb, path, e))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        return Err(fifo());
    }
    rustix::fs::fcntl_setfl(&file, OFlags::empty()).map_err(|e| cannot(verb, path, e))?;
    Ok(file)
}

fn same_file(a: &OwnedFd, b: &OwnedFd) -> bool {
    match (rustix::fs::fstat(a), rustix::fs::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

fn cannot(verb: &str, path: &str, error: Errno) -> String {
    format!("cannot {verb} {path:?}: {}", reason(error))
}

/// The system's text of an error without Rust's "(os error N)".
fn reason(error: Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn command_line(
    cd: &OwnedFd,
    spec: &JobSpec,
    context: &BatchContext,
    env: &[(String, CString)],
) -> Result<(CString, Vec<CString>), String> {
    let c = |text: String| CString::new(text).map_err(|_| "the command contains a NUL byte".to_owned());
    match &spec.command {
        Command::Shell(cmd) => {
            let setup = context.setup.as_ref().map_or(String::new(), |s| format!("{s}\n"));
            let argv = vec![c("/bin/bash".into())?, c("-c".into())?, c(format!("{setup}{SHELL_PREFIX}{cmd}"))?];
            Ok((argv[0].clone(), argv))
        }
        Command::Argv(words) => {
            let argv = words.iter().cloned().map(c).collect::<Result<Vec<_>, _>>()?;
            let name = argv.first().ok_or("`argv` is empty")?;
            Ok((find_program(cd, name, env)?, argv))
        }
    }
}

/// Finds a program along the job's own PATH, as execvp(3) would in the job's environment and directory.
fn find_program(cd: &OwnedFd, name: &CStr, env: &[(String, CString)]) -> Result<CString, String> {
    if name.to_bytes().contains(&b'/') {
        return Ok(name.to_owned());
    }
    let path =
        env.iter().find(|(key, _)| key == "PATH").map_or(&b"/usr/bin:/bin"[..], |(_, entry)| &entry.to_bytes()["PATH=".len()..]);
    for dir in path.split(|b| *b == b':') {
        let mut candidate = if dir.is_empty() { b".".to_vec() } else { dir.to_vec() };
        candidate.push(b'/');
        candidate.extend(name.to_bytes());
        let Ok(candidate) = CString::new(candidate) else { continue };
        let is_file = rustix::fs::statat(cd, &candidate, AtFlags::empty())
            .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
        if is_file && rustix::fs::accessat(cd, &candidate, rustix::fs::Access::EXEC_OK, AtFlags::empty()).is_ok() {
            return Ok(candidate);
        }
    }
    Err(format!("{:?} is not in PATH", name.to_string_lossy()))
}

fn why_not_started(spec: &JobSpec, program: &CStr, error: Errno) -> String {
    if error == Errno::TOOBIG {
        return "the command and its environment are longer than the kernel takes (execve(2): 128 KiB for one argument, a quarter of the stack limit in all)".into();
    }
    match &spec.command {
        Command::Shell(_) => cannot("start", "/bin/bash", error),
        Command::Argv(_) => cannot("start", &program.to_string_lossy(), error),
    }
}

unsafe extern "C" {
    // glibc 2.29 and musl 1.1.24 have it; the libc crate does not declare it for both.
    fn posix_spawn_file_actions_addfchdir_np(actions: *mut libc::posix_spawn_file_actions_t, fd: libc::c_int) -> libc::c_int;
}

fn posix_spawn(
    program: &CStr,
    argv: &[CString],
    env: &[(String, CString)],
    cd: BorrowedFd<'_>,
    fds: [BorrowedFd<'_>; 3],
) -> Result<i32, Errno> {
    let argv: Vec<*mut c_char> = argv.iter().map(|a| a.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
    let envp: Vec<*mut c_char> = env.iter().map(|(_, e)| e.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
    let check = |code: libc::c_int| if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code)) };
    let mut pid = 0;
    // SAFETY: actions and attributes are initialised before use and destroyed after it; all pointers outlive the call, and
    // argv and envp end with a null pointer.
    unsafe {
        let mut actions = MaybeUninit::uninit();
        check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
        let mut attributes = MaybeUninit::uninit();
        let result = check(libc::posix_spawnattr_init(attributes.as_mut_ptr())).and_then(|()| {
            let mut spawn = || {
                let (acts, attrs) = (actions.as_mut_ptr(), attributes.as_mut_ptr());
                check(posix_spawn_file_actions_addfchdir_np(acts, cd.as_raw_fd()))?;
                for (target, fd) in fds.iter().enumerate() {
                    check(libc::posix_spawn_file_actions_adddup2(acts, fd.as_raw_fd(), target as libc::c_int))?;
                }
                let mut signals = MaybeUninit::uninit();
                libc::sigemptyset(signals.as_mut_ptr());
                check(libc::posix_spawnattr_setsigmask(attrs, signals.as_ptr()))?;
                libc::sigfillset(signals.as_mut_ptr());
                check(libc::posix_spawnattr_setsigdefault(attrs, signals.as_ptr()))?;
                check(libc::posix_spawnattr_setpgroup(attrs, 0))?;
                let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETPGROUP;
                check(libc::posix_spawnattr_setflags(attrs, flags as libc::c_short))?;
                check(libc::posix_spawn(&mut pid, program.as_ptr(), acts, attrs, argv.as_ptr(), envp.as_ptr()))
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
