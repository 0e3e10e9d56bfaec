//! The program of a job and its arguments, and why it could not be started.

use super::NotStarted;
use super::environment::Environment;
use super::open::{cannot, reason};
use mezcal_common::model::job::{BatchContext, Command, JobSpec, SHELL_PREFIX};
use mezcal_common::model::limits;
use mezcal_common::model::octets;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) fn command_line(
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

pub(super) fn why_not_started(spec: &JobSpec, program: &CStr, error: Errno) -> NotStarted {
    if error == Errno::TOOBIG {
        return NotStarted::Job("the command and its environment are longer than the kernel takes (execve(2): 128 KiB for one argument, a quarter of the stack limit in all)".into());
    }
    let program = match &spec.command {
        Command::Shell(_) => Path::new("/bin/bash"),
        Command::Argv(_) => Path::new(OsStr::from_bytes(program.to_bytes())),
    };
    // For files these errors mean something else.
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
