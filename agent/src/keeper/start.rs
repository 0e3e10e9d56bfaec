//! How a keeper is started: its command, and a keeper that shares the fate of a run.

use crate::keeper::driver::ContainmentWish;
use crate::kernel::packet;
use mezcal_common::model::limits;
use rustix::fd::OwnedFd;
use std::io::Result;
use std::sync::Arc;

/// Starts a keeper that shares our fate, for embedded runs. `program` is this program's own file,
/// which may have been removed since.
///
/// # Errors
/// The keeper cannot be started.
pub fn embedded(
    program: Arc<OwnedFd>,
    host: &str,
    containment: ContainmentWish,
) -> Result<(OwnedFd, std::process::Child)> {
    let (ours, theirs) = packet::pair()?;
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&*program)
    );
    let child = command(path.as_ref(), host, containment)
        .stdin(std::process::Stdio::from(theirs))
        .spawn()
        .map_err(limits::named)?;
    Ok((ours, child))
}

/// The command of a keeper, which makes itself a session of its own, away from any terminal.
pub(crate) fn command(
    program: &std::path::Path,
    host: &str,
    containment: ContainmentWish,
) -> std::process::Command {
    use clap::ValueEnum;
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(program);
    command
        .arg0("mezcal-keeper")
        .arg("keeper")
        .args(["--host", host]);
    if let Some(value) = containment.to_possible_value() {
        command.args(["--containment", value.get_name()]);
    }
    command
}
