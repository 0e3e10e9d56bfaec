//! The limits of a process: their names in errors.

use rustix::io::Errno;
use std::io::Error;

/// Meaning of EAGAIN from fork(2), execve(2) and pthread_create(3), which do not say which limit it
/// was.
pub const PROCESSES: &str = "EAGAIN: processes and threads, `ulimit -u` of the account, `pids.max` of its control group, or `sysctl kernel.threads-max`";

/// The limit of the host that causes an error, of any kind of call.
pub fn behind(error: Errno) -> Option<&'static str> {
    match error {
        Errno::MFILE => Some("EMFILE: open files of one process, `ulimit -n`"),
        Errno::NFILE => Some("ENFILE: open files of the host, `sysctl fs.file-max`"),
        Errno::NOMEM => Some("ENOMEM: memory of the host, or of its control group, `memory.max`"),
        _ => None,
    }
}

/// The same error of a call that makes a process or a thread, with the limit that was met.
pub fn named(error: Error) -> Error {
    let limit = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::AGAIN) => Some(PROCESSES),
        other => other.and_then(behind),
    };
    match limit {
        Some(limit) => Error::new(error.kind(), format!("{error} ({limit})")),
        None => error,
    }
}

/// The text of an error in which each operating-system error that means a limit is followed by the
/// limit's name, once: for the one place where a program says why it ends, since errors lose their
/// number on the way there.
pub fn named_in(text: &str) -> String {
    let mut named = text.to_owned();
    for error in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
        let said = Error::from(error).to_string();
        let Some(limit) = behind(error) else { continue };
        if let Some(at) = named.find(&said)
            && !named.contains(limit)
        {
            named.insert_str(at + said.len(), &format!(" ({limit})"));
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use super::{behind, named, named_in};
    use rustix::io::Errno;

    #[test]
    fn a_limit_is_named_once_wherever_its_error_was_written_down() {
        for error in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            let limit = behind(error).expect("a limit");
            let bare = format!(
                "the engines' keeper: {}; nothing is started",
                std::io::Error::from(error)
            );
            assert_eq!(
                named_in(&bare),
                format!(
                    "the engines' keeper: {} ({limit}); nothing is started",
                    std::io::Error::from(error)
                )
            );
            let already = format!("the engines' keeper: {}", named(error.into()));
            assert_eq!(named_in(&already), already);
        }
        assert_eq!(
            named_in("cannot open a: No such file or directory (os error 2)"),
            "cannot open a: No such file or directory (os error 2)"
        );
    }
}
