//! Starting a job: files, environment and the spawn.
//!
//! posix_spawn(3), or its like into a control group ([`super::clone`]), never fork: the cost does
//! not grow with this process. The child starts with an empty signal mask, default dispositions,
//! descriptors 0, 1, 2 only (everything else here is close-on-exec), and a session of its own: no
//! process of it can join a group of anybody else's, so a signal to a group of its processes hits
//! only those.

use super::NotStarted;
use super::processes::Born;
use crate::kernel::cgroup::{Leaf, Leaves};
use crate::kernel::paths::{self, OutputFile};
use mezcal_common::model::ids::{AttemptId, EngineId};
use mezcal_common::model::job::{BatchContext, Command, JobSpec, SHELL_PREFIX};
use mezcal_common::model::octets;
use mezcal_common::system::limits;
use mezcal_common::system::proc::{self, CommandLine};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::borrow::Cow;
use std::ffi::{CStr, CString, OsStr, c_char};
use std::mem::MaybeUninit;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

/// What is fixed for the life of an engine.
pub(super) struct Surroundings {
    inherited: Inherited,
    slot: u16,
    host: String,
    null: OwnedFd,
    /// Where attempts are born; none: in this process's own group.
    leaves: Option<Leaves>,
    stack: Box<super::clone::Stack>,
}

/// What the engines of a keeper have in common.
pub(crate) struct Inherited {
    pub(super) command_line: CommandLine,
    /// Environment of every job, before the batch's.
    env: Vec<(String, CString)>,
    /// Signals that they ignore.
    ignored: u64,
}

/// What the spawner is to start.
pub(super) struct Order {
    pub(super) attempt: AttemptId,
    pub(super) spec: Box<JobSpec>,
    pub(super) context: Arc<BatchContext>,
    pub(super) engine: EngineId,
}

/// Where an output stream goes.
pub(super) enum OutputTo {
    File(OutputFile),
    /// The write end.
    Pipe(Arc<OwnedFd>),
}

/// A job that runs.
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) born: Option<Born>,
}

/// Names and whole entries (environ(7)), most of them those of this process.
type Environment<'a> = Vec<(Cow<'a, str>, Cow<'a, CStr>)>;

/// Names that must not leak from a service manager or a shell into jobs.
const SCRUBBED: [&str; 20] = [
    "BASH_ENV",
    "ENV",
    "SHELLOPTS",
    "BASHOPTS",
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
    "MANAGERPIDFDID",
    "LISTEN_PIDFDID",
    "MAINPID",
    "SYSTEMD_EXEC_PID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
];

/// What a `make` tells those below it.
const MAKE_FLAGS: [&str; 2] = ["MAKEFLAGS", "MFLAGS"];

/// The flags of a `make` without its jobserver, if that is a pair of descriptors, which jobs do not
/// get (GNU Make Manual, "POSIX Jobserver Interaction"): with it their own `make` would complain
/// and run one job at a time. One that has a name in the file system works for them, too.
fn without_jobserver(flags: &[u8]) -> Vec<u8> {
    let words: Vec<&[u8]> = flags.split(|b| *b == b' ').collect();
    // Variables follow, with any text.
    let own = words
        .iter()
        .position(|word| *word == b"--")
        .unwrap_or(words.len());
    let is_pair = |word: &&[u8]| {
        let value = word
            .strip_prefix(b"--jobserver-auth=")
            .or_else(|| word.strip_prefix(b"--jobserver-fds="));
        value.is_some_and(|value| {
            value
                .iter()
                .all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
        })
    };
    if !words[..own].iter().any(is_pair) {
        return flags.to_vec();
    }
    let is_count = |word: &[u8]| {
        word.strip_prefix(b"-j")
            .is_some_and(|n| n.iter().all(u8::is_ascii_digit))
    };
    let kept = words
        .iter()
        .enumerate()
        .filter(|(i, word)| *i >= own || !is_pair(word) && !is_count(word));
    kept.map(|(_, word)| *word).collect::<Vec<_>>().join(&b' ')
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

impl Inherited {
    /// Reads it from this process, of which the engines are copies; with the `functions` that a
    /// shell has exported or without them.
    pub(crate) fn read(functions: bool) -> Self {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| {
                let mut entry = name.into_vec();
                let key = octets::text(entry.clone());
                entry.push(b'=');
                let value = value.into_vec();
                entry.extend(if MAKE_FLAGS.contains(&key.as_str()) {
                    without_jobserver(&value)
                } else {
                    value
                });
                Some((key, CString::new(entry).ok()?))
            })
            .filter(|(key, _)| {
                !SCRUBBED.contains(&key.as_str()) && (functions || !key.starts_with("BASH_FUNC_"))
            })
            .collect();
        Self {
            command_line: CommandLine::find(),
            env,
            ignored: proc::ignored_signals(),
        }
    }

    /// The environment of one job: later names win, the reserved ones come last.
    fn environment(&self, order: &Order, slot: u16, host: &str) -> Result<Environment<'_>, String> {
        let Order {
            attempt,
            spec,
            context,
            engine,
        } = order;
        let mut env: Environment = self
            .env
            .iter()
            .map(|(key, entry)| (key.into(), entry.into()))
            .collect();
        let mut set = |name: &str, value: &str| -> Result<(), String> {
            let entry = CString::new([&octets::of(name)[..], b"=", &octets::of(value)].concat())
                .map_err(|_| {
                    format!("environment {:?} contains a NUL byte", octets::shown(name))
                })?;
            match env.iter_mut().find(|(key, _)| key == name) {
                Some(slot) => slot.1 = entry.into(),
                None => env.push((name.to_owned().into(), entry.into())),
            }
            Ok(())
        };
        for (name, value) in context.env.iter().chain(&spec.env) {
            set(name, value)?;
        }
        set("MEZCAL_JOB_ID", &paths::label(spec, *attempt))?;
        set("MEZCAL_ATTEMPT", &attempt.attempt.to_string())?;
        set("MEZCAL_ENGINE_ID", &engine.to_string())?;
        set("MEZCAL_SLOT", &slot.to_string())?;
        set("MEZCAL_HOST", host)?;
        set("MEZCAL_BATCH", &context.batch.to_string())?;
        Ok(env)
    }
}

/// Starts the job.
///
/// # Errors
/// For the reader of the result: what could not be done, with the path and the system's reason.
pub(super) fn start(
    around: &mut Surroundings,
    order: &Order,
    [out, err]: &[OutputTo; 2],
) -> Result<Started, NotStarted> {
    let Order { spec, context, .. } = order;
    // Process-wide, which is right: an engine runs one attempt at a time.
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
    // One file for both streams is one open file: two would overwrite each other.
    let err = if same_file(&out, &err) { &out } else { &err };
    let born = match &mut around.leaves {
        Some(leaves) => {
            let leaf = leaves.next().map_err(|e| {
                let text = format!("no control group for the job: {e}");
                match crate::kernel::cgroup::errno(&e) {
                    // cgroups(7): what mkdir(2) says then.
                    Some(Errno::AGAIN) => NotStarted::Short(format!(
                        "{text} (EAGAIN: `cgroup.max.descendants` or `cgroup.max.depth` of a group above)"
                    )),
                    errno => not_started(text, errno.unwrap_or(Errno::IO)),
                }
            })?;
            let cpu = leaf.cpu();
            Some((leaf, cpu))
        }
        None => None,
    };
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

/// Whether processes can be born in a control group here: the kernel may be too old for it, or a
/// container may forbid clone3(2).
///
/// # Errors
/// Why not.
pub(crate) fn can_spawn_into(leaf: &Leaf) -> std::io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // A program that cannot exist: the child gets as far as execve(2) and comes back with its
    // reason.
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

/// What the job writes to. A file is truncated.
fn open_output(cd: &OwnedFd, to: &OutputTo) -> Result<Arc<OwnedFd>, NotStarted> {
    match to {
        OutputTo::Pipe(write) => Ok(write.clone()),
        OutputTo::File(OutputFile { dir, path }) => {
            if let Some(dir) = dir {
                // If it cannot be made, opening the file says why.
                let _ = std::fs::create_dir_all(dir);
            }
            open_waitless(
                cd,
                path,
                OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC,
                "write",
            )
            .map(Arc::new)
        }
    }
}

fn directory(spec: &JobSpec, context: &BatchContext) -> Result<OwnedFd, NotStarted> {
    let path = paths::directory(spec, context);
    rustix::fs::open(
        &path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| cannot("change to directory", &path, e))
}

/// A pipe whose read end does not block.
pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd), NotStarted> {
    let make = || {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
        Ok((read, write))
    };
    make().map_err(|e: Errno| not_started(format!("cannot make a pipe: {}", reason(e)), e))
}

fn open_at(cd: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        cd,
        path,
        flags | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o666),
    )
}

/// Opens a file without ever waiting for a partner. A FIFO is refused: its other end would decide
/// when the job starts and ends.
fn open_waitless(
    cd: &OwnedFd,
    path: &Path,
    flags: OFlags,
    verb: &str,
) -> Result<OwnedFd, NotStarted> {
    let fifo = || format!("cannot {verb} {path:?}: it is a FIFO; redirect inside `cmd` to use one");
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open_at(cd, path, flags).map_err(|e| {
        if e == Errno::NXIO {
            fifo().into()
        } else {
            cannot(verb, path, e)
        }
    })?;
    let stat = rustix::fs::fstat(&file).map_err(|e| cannot(verb, path, e))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        return Err(fifo().into());
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

fn cannot(verb: &str, path: &Path, error: Errno) -> NotStarted {
    not_started(format!("cannot {verb} {path:?}: {}", reason(error)), error)
}

/// Whether it is the host that lacks something, and what: that may pass.
fn not_started(text: String, error: Errno) -> NotStarted {
    match limits::behind(error) {
        Some(limit) => NotStarted::Short(format!("{text} ({limit})")),
        None => NotStarted::Job(text),
    }
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
    env: &Environment,
) -> Result<(CString, Vec<CString>), String> {
    let c = |bytes: &[u8]| {
        CString::new(bytes).map_err(|_| "the command contains a NUL byte".to_owned())
    };
    match &spec.command {
        Command::Shell(cmd) => {
            let setup = context
                .setup
                .as_ref()
                .map_or(String::new(), |s| format!("{s}\n"));
            let text = [setup.as_bytes(), SHELL_PREFIX.as_bytes(), &octets::of(cmd)].concat();
            let argv = vec![c(b"/bin/bash")?, c(b"-c")?, c(&text)?];
            Ok((argv[0].clone(), argv))
        }
        Command::Argv(words) => {
            let argv = words
                .iter()
                .map(|word| c(&octets::of(word)))
                .collect::<Result<Vec<_>, _>>()?;
            let name = argv.first().ok_or("`argv` is empty")?;
            Ok((find_program(cd, name, env)?, argv))
        }
    }
}

/// Finds a program along the job's own PATH, as execvp(3) would in the job's environment and
/// directory.
fn find_program(cd: &OwnedFd, name: &CStr, env: &Environment) -> Result<CString, String> {
    if name.to_bytes().contains(&b'/') {
        return Ok(name.to_owned());
    }
    let path = env
        .iter()
        .find(|(key, _)| key == "PATH")
        .map_or(&b"/usr/bin:/bin"[..], |(_, entry)| {
            &entry.to_bytes()["PATH=".len()..]
        });
    for dir in path.split(|b| *b == b':') {
        let mut candidate = if dir.is_empty() {
            b".".to_vec()
        } else {
            dir.to_vec()
        };
        candidate.push(b'/');
        candidate.extend(name.to_bytes());
        let Ok(candidate) = CString::new(candidate) else {
            continue;
        };
        let is_file = rustix::fs::statat(cd, &candidate, AtFlags::empty())
            .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
        if is_file
            && rustix::fs::accessat(
                cd,
                &candidate,
                rustix::fs::Access::EXEC_OK,
                AtFlags::empty(),
            )
            .is_ok()
        {
            return Ok(candidate);
        }
    }
    Err(format!("{:?} is not in PATH", name.to_string_lossy()))
}

fn why_not_started(spec: &JobSpec, program: &CStr, error: Errno) -> NotStarted {
    if error == Errno::TOOBIG {
        return NotStarted::Job("the command and its environment are longer than the kernel takes (execve(2): 128 KiB for one argument, a quarter of the stack limit in all)".into());
    }
    let program = match &spec.command {
        Command::Shell(_) => Path::new("/bin/bash"),
        Command::Argv(_) => Path::new(OsStr::from_bytes(program.to_bytes())),
    };
    // Of files these mean something else.
    let limit = match error {
        Errno::AGAIN => limits::PROCESSES,
        Errno::TXTBSY => "ETXTBSY: somebody has it open for writing",
        _ => return cannot("start", program, error),
    };
    NotStarted::Short(format!(
        "cannot start {program:?}: {} ({limit})",
        reason(error)
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_a_make_lose_a_jobserver_that_jobs_do_not_have() {
        let cases = [
            // GNU Make 4.3, below `make -j4 -k VAR='a b'`, and older ones.
            ("k -j4 --jobserver-auth=3,4 -- VAR=a\\ b", "k -- VAR=a\\ b"),
            (" --jobserver-fds=3,4 -j", ""),
            ("-j2 --jobserver-auth=3,4", ""),
            // Not under `make -j`, or with a name that every process can open.
            ("k", "k"),
            ("", ""),
            (
                " -j8 --jobserver-auth=fifo:/tmp/GMfifo123",
                " -j8 --jobserver-auth=fifo:/tmp/GMfifo123",
            ),
            (
                "k -- X=--jobserver-auth=3,4 -j2",
                "k -- X=--jobserver-auth=3,4 -j2",
            ),
        ];
        for (flags, left) in cases {
            assert_eq!(
                String::from_utf8_lossy(&without_jobserver(flags.as_bytes())),
                left,
                "{flags}"
            );
        }
    }
}
