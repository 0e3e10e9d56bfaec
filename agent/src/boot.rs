//! `agent at-boot`: an account's own agent starts again when its host does, without root, by a
//! means that the host lets the account have.

use anyhow::{Context, bail};
use mezcal_common::system::account;
use mezcal_common::system::output::print;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The accounts whose user managers start at boot: those of loginctl(1), enable-linger.
const LINGER: &str = "/var/lib/systemd/linger";
/// The text by which our line of a crontab(5) is known again.
const MARK: &str = "# mezcal-agent at-boot";
const UNIT: &str = "mezcal-agent.service";

/// Start this account's agent at boot, without root: by the account's own systemd (with linger),
/// else by cron.
#[derive(Debug, clap::Args)]
pub struct BootArgs {
    /// Only check: exit status 1 if the agent would not start at boot
    #[arg(long)]
    pub check: bool,
}

/// Where the account's user manager finds its units. Several hosts may share the units, and each
/// host has a linger of its own.
struct Units {
    unit: PathBuf,
    wanted: PathBuf,
}

/// Arranges for the agent to start at boot, or only checks that. True if it will; says how, or what
/// to do. `called` is the name of this program.
///
/// # Errors
/// An error text for the user.
pub fn run(called: &str, args: &BootArgs) -> anyhow::Result<bool> {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        bail!("root's agent is started by its unit: systemctl enable mezcal-agent.service");
    }
    let account = account::of(uid.as_raw())
        .with_context(|| format!("there is no account {}", uid.as_raw()))?;
    let program = std::env::current_exe().context("where this program is")?;
    let program = program
        .to_str()
        .filter(|path| is_plain(path))
        .with_context(|| {
            format!(
                "{} has characters that neither a unit nor a crontab takes: install it elsewhere",
                program.display()
            )
        })?;
    let program = &command(called, program);
    let own = Path::new(&account.home).join(".config/systemd/user");
    let units = Units {
        unit: own.join(UNIT),
        wanted: own.join("default.target.wants").join(UNIT),
    };
    let line = format!("@reboot {program} run >/dev/null 2>&1 {MARK}");
    let lingers = || Path::new(LINGER).join(&account.name).exists();
    let has_unit = || {
        std::fs::read_to_string(&units.unit).is_ok_and(|text| text == unit(program))
            && units.wanted.symlink_metadata().is_ok()
    };
    let by_systemd = || lingers() && has_unit();
    let by_cron = || has_cron() && crontab().lines().any(|other| other == line);
    if by_systemd() || by_cron() {
        print("starts at boot already")?;
        return Ok(true);
    }
    if args.check {
        return Ok(false);
    }
    if Path::new("/run/systemd/system").is_dir() {
        if !lingers() {
            enable_linger();
        }
        if lingers() {
            units
                .write(program)
                .with_context(|| format!("cannot write {}", units.unit.display()))?;
            print(format_args!(
                "starts at boot, by this account's systemd ({})",
                units.unit.display()
            ))?;
            return Ok(true);
        }
    }
    if has_cron() && add_to_crontab(&line).is_ok() && by_cron() {
        print("starts at boot, by cron (`crontab -l`)")?;
        return Ok(true);
    }
    print(format_args!(
        "does not come back after a reboot: {} may not linger, and no cron takes its jobs. Either let root run `loginctl enable-linger {}` and then \
         `{program} at-boot` again, or start `{program} run` after each boot",
        account.name, account.name
    ))?;
    Ok(false)
}

/// The command may want more rights than an account has (polkit).
fn enable_linger() {
    let mut linger = Command::new("loginctl");
    let _ = linger
        .args(["--no-ask-password", "enable-linger"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// The start of the command line that is the agent in any case, before the verb. Where a program
/// was called by a link to it, the kernel knows only the file, and that file may be all programs.
fn command(called: &str, program: &str) -> String {
    let file = program.rsplit('/').next().unwrap_or(program);
    match called == "agent" || ["agent", "mezcal-agent"].contains(&file) {
        true => program.to_owned(),
        false => format!("{program} agent"),
    }
}

/// Whether a text means itself in a unit and in a crontab.
fn is_plain(path: &str) -> bool {
    path.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"/._-+@".contains(&b))
}

/// The text of the unit. Jobs that an earlier agent has left go on when this agent ends.
fn unit(program: &str) -> String {
    format!(
        "# Made by `mezcal-agent at-boot`.\n[Unit]\nDescription=Mezcal agent\n\n[Service]\nExecStart={program} run\nKillMode=process\n\n\
         [Install]\nWantedBy=default.target\n"
    )
}

impl Units {
    fn write(&self, program: &str) -> std::io::Result<()> {
        for dir in [&self.unit, &self.wanted]
            .into_iter()
            .filter_map(|path| path.parent())
        {
            std::fs::create_dir_all(dir)?;
        }
        // Other hosts may do the same in the same home.
        let new = self
            .unit
            .with_extension(format!("{}.new", std::process::id()));
        std::fs::write(&new, unit(program))?;
        std::fs::rename(&new, &self.unit)?;
        match std::os::unix::fs::symlink(format!("../{UNIT}"), &self.wanted) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }
}

/// Whether a cron daemon runs that would read a crontab.
fn has_cron() -> bool {
    let names = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok());
    names
        .into_iter()
        .any(|name| ["cron", "crond", "fcron"].contains(&name.trim()))
}

fn crontab() -> String {
    let out = Command::new("crontab")
        .arg("-l")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    out.ok()
        .filter(|out| out.status.success())
        .map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
        .unwrap_or_default()
}

/// Puts our line in the place of an earlier one; the other lines stay.
fn with_line(before: &str, line: &str) -> String {
    let others = before.lines().filter(|other| !other.ends_with(MARK));
    others.chain([line]).flat_map(|line| [line, "\n"]).collect()
}

fn add_to_crontab(line: &str) -> std::io::Result<()> {
    let text = with_line(&crontab(), line);
    let mut child = Command::new("crontab")
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()))?;
    child.wait().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crontab_has_our_line_once_and_keeps_the_others() {
        let line = |program: &str| format!("@reboot {program} run {MARK}");
        let first = with_line("0 1 * * * backup", &line("/old/agent"));
        assert_eq!(first, format!("0 1 * * * backup\n{}\n", line("/old/agent")));
        assert_eq!(
            with_line(&first, &line("/new/agent")),
            format!("0 1 * * * backup\n{}\n", line("/new/agent"))
        );
        assert_eq!(with_line("", "x"), "x\n");
        for (called, program, line) in [
            ("agent", "/opt/other", "/opt/other"),
            ("mezcal-agent", "/lib/mezcal", "/lib/mezcal agent"),
            ("mezcal agent", "/lib/mezcal", "/lib/mezcal agent"),
            ("mezcal-agent", "/bin/mezcal-agent", "/bin/mezcal-agent"),
        ] {
            assert_eq!(command(called, program), line);
        }
        assert!(
            is_plain("/home/a/.local/lib/mezcal/0123/agent")
                && !is_plain("/home/a b/agent")
                && !is_plain("/home/50%/agent")
        );
    }
}
