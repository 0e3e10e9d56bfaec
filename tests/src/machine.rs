//! A host with a systemd of its own as process 1: a container on an overlay of this machine's
//! files, in the network of a lab host.

use crate::lab::{Lab, host_name};
use crate::wait_for;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counts the machines of this process: each has names of its own, even on the same lab host.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Time for a boot on a busy machine.
const BOOT: Duration = Duration::from_secs(60);

/// Machines that run at a time. Each takes about eight of the 128 inotify(7) instances that Linux
/// lends an account (`fs.inotify.max_user_instances`), and process 1 does not start without.
const AT_ONCE: usize = 12;

/// The things that machines take from the account that runs them all, each with what a machine says
/// on its console when it does not get them.
const SHORTAGES: [(&str, &str); 2] = [
    // inotify_init(2) gives EMFILE: systemd says "Failed to create control group inotify object: Too
    // many open files", and ends.
    ("inotify instances", "Too many open files"),
    // clone(2) gives EAGAIN.
    ("processes", "Resource temporarily unavailable"),
];

/// What this host was short of, if a machine says on its console that this is why it has ended.
fn shortage(console: &str) -> Option<&'static str> {
    let said = |(_, text): &&(&str, &str)| console.contains(text);
    SHORTAGES.iter().find(said).map(|(short, _)| *short)
}

/// Machines that run now.
static TAKEN: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// Room for the machines of a test. Dropping it, after them, makes room for others.
pub struct Room(usize);

impl Room {
    /// Waits until so many `machines` may run: all of a test's at once, so that no two tests wait
    /// for each other.
    pub fn wait_for(machines: usize) -> Self {
        let (taken, freed) = &TAKEN;
        let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |taken: &mut usize| *taken > 0 && *taken + machines > AT_ONCE;
        let mut taken = freed
            .wait_while(taken, full)
            .unwrap_or_else(PoisonError::into_inner);
        *taken += machines;
        Self(machines)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let (taken, freed) = &TAKEN;
        *taken.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        freed.notify_all();
    }
}

/// A running machine. Dropping it pulls the plug and removes its disk.
pub struct Machine {
    dir: PathBuf,
    group: PathBuf,
    nspawn: Option<Child>,
    host: usize,
    /// `PID-N`.
    number: String,
    /// Directories of this machine that it shares, each as FROM:TO, as from a file server.
    shared: Vec<String>,
}

/// Whether machines can be used here; if not, prints the reason.
pub fn machines_or_say_why(test: &str, lab: &Lab) -> bool {
    let why = if !lab.is_real() {
        "it needs network namespaces".to_owned()
    } else if !Path::new("/usr/bin/systemd-nspawn").exists() {
        let missing = "it needs systemd-nspawn (package systemd-container)";
        assert!(
            std::env::var_os("MEZCAL_REQUIRE_NAMESPACES").is_none(),
            "{test}: {missing}"
        );
        missing.to_owned()
    } else {
        match possible() {
            Ok(()) => return true,
            Err(why) => why,
        }
    };
    crate::say_skipped(&format!("{test}: {why}"));
    false
}

/// Whether this machine lets us divide its control groups and stack file systems.
fn possible() -> Result<(), String> {
    let group = cgroup2()
        .ok_or("it needs control groups of version 2")?
        .join(format!("mezcal-probe-{}", std::process::id()));
    std::fs::create_dir(&group).map_err(|e| format!("it needs control groups of its own: {e}"))?;
    let _ = std::fs::remove_dir(&group);
    let script = "mount -t tmpfs none /mnt && mkdir /mnt/u /mnt/w /mnt/r && \
                  mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r";
    let out = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .output()
        .map_err(|e| e.to_string())?;
    match out.status.success() {
        true => Ok(()),
        false => Err(format!(
            "it needs overlay file systems: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        )),
    }
}

fn cgroup2() -> Option<PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    roots
        .into_iter()
        .find(|root| root.join("cgroup.controllers").exists())
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program)
        .args(args)
        .output()
        .expect("it starts");
    assert!(
        out.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Files that several machines have over this machine's: a file system of its own, because layers
/// must not lie within each other.
pub struct Layer(PathBuf);

impl Layer {
    /// An empty layer.
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("layer");
        std::fs::create_dir_all(&path).expect("made");
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                "mode=755",
                "layer",
                &path.display().to_string(),
            ],
        );
        Self(path)
    }

    /// The directory of its files.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status();
    }
}

impl Machine {
    /// Boots a machine on a lab host. Its files are this machine's with those of `layer` over them;
    /// no program of ours runs there yet.
    pub fn boot(lab: &Lab, host: usize, dir: &Path, layer: &Layer) -> Self {
        Self::boot_sharing(lab, host, dir, layer, Vec::new())
    }

    /// Like [`Self::boot`], with directories of this machine in it, each as FROM:TO, as from a file
    /// server.
    pub fn boot_sharing(
        lab: &Lab,
        host: usize,
        dir: &Path,
        layer: &Layer,
        shared: Vec<String>,
    ) -> Self {
        let dir = dir.join(format!("machine{host:02}"));
        let number = format!(
            "{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let group = cgroup2()
            .expect("cgroup v2")
            .join(format!("mezcal-lab-{number}"));
        std::fs::create_dir_all(&dir).expect("made");
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                "mode=755",
                "disk",
                &dir.display().to_string(),
            ],
        );
        let mut me = Self {
            dir,
            group,
            nspawn: None,
            host,
            number,
            shared,
        };
        let path = |name: &str| me.dir.join(name).display().to_string();
        for name in ["upper", "work", "root"] {
            std::fs::create_dir(me.dir.join(name)).expect("made");
        }
        let options = format!(
            "lowerdir={}:/,upperdir={},workdir={}",
            layer.0.display(),
            path("upper"),
            path("work")
        );
        run(
            "mount",
            &["-t", "overlay", "overlay", "-o", &options, &path("root")],
        );
        let root = me.dir.join("root");
        for wants in ["timers.target.wants", "multi-user.target.wants"] {
            let _ = std::fs::remove_dir_all(root.join("etc/systemd/system").join(wants));
        }
        let write =
            |name: &str, text: &str| std::fs::write(root.join(name), text).expect("written");
        write("etc/hostname", &format!("{}\n", host_name(host)));
        write(
            "etc/machine-id",
            &format!("{:032x}\n", (0x4d65_7a63_616c_u128 << 32) + host as u128),
        );
        write(
            "etc/systemd/system/lab.target",
            "[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=multi-user.target\nAllowIsolate=yes\n",
        );
        me.start(lab);
        me
    }

    fn launch(&mut self, lab: &Lab) {
        std::fs::create_dir_all(&self.group).expect("a control group");
        let console = std::fs::File::create(self.dir.join("console.log")).expect("a log");
        // Only nspawn is in the group that it divides.
        let script = "echo $$ > \"$1\"/cgroup.procs && shift && exec systemd-nspawn \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(&self.group);
        command.args([
            "-q",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--settings=no",
            "--link-journal=no",
            "--resolv-conf=off",
        ]);
        command.args(["--timezone=off", "--console=read-only"]);
        command.arg(format!("--directory={}", self.dir.join("root").display()));
        command
            .arg(format!("--machine=m{}", self.number))
            .arg(format!("--hostname={}", host_name(self.host)));
        command.arg(format!(
            "--network-namespace-path={}",
            lab.network(self.host).expect("a network").display()
        ));
        command.args(self.shared.iter().map(|pair| format!("--bind={pair}")));
        command
            .args(["--", "--unit=lab.target"])
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        command
            .stdin(Stdio::null())
            .stdout(console.try_clone().expect("a descriptor"))
            .stderr(console);
        self.nspawn = Some(command.spawn().expect("it starts"));
    }

    /// Boots it. A boot that fails because machines of other programs have taken what this host
    /// lends is tried again; any other fails at once.
    fn start(&mut self, lab: &Lab) {
        self.launch(lab);
        let deadline = Instant::now() + BOOT;
        while !self.is_up() {
            assert!(
                Instant::now() < deadline,
                "{} has not booted within {BOOT:?}:\n{}",
                host_name(self.host),
                self.what_boots()
            );
            std::thread::sleep(Duration::from_millis(50));
            let nspawn = self.nspawn.as_mut().expect("it was started");
            if let Some(status) = nspawn.try_wait().expect("our child") {
                let (name, console) = (host_name(self.host), self.console());
                let Some(short) = shortage(&console) else {
                    panic!("{name} does not boot ({status}):\n{console}");
                };
                eprintln!("{name} boots again: this machine is short of {short}:\n{console}");
                std::thread::sleep(Duration::from_secs(1));
                self.launch(lab);
            }
        }
    }

    /// Whether its boot has ended. Process 1 may not hear a question that comes too early, so it is
    /// asked again.
    fn is_up(&self) -> bool {
        let asked = ["timeout", "5", "systemctl", "is-system-running"];
        self.try_exec(&asked).is_some_and(|out| {
            let state = String::from_utf8_lossy(&out.stdout).trim().to_owned();
            matches!(state.as_str(), "running" | "degraded")
        })
    }

    /// All that it has said at its present boot.
    fn console(&self) -> String {
        let console = std::fs::read(self.dir.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }

    /// The progress of its boot, for the message of a failing test.
    fn what_boots(&self) -> String {
        let mut said = format!("--- console\n{}\n", self.console());
        for asked in [
            &["systemctl", "is-system-running"][..],
            &["systemctl", "list-jobs", "--no-pager"],
            &["systemctl", "--failed", "--no-pager"],
            &["journalctl", "-b", "--no-pager", "-n", "40"],
        ] {
            let out = self.try_exec(&[&["timeout", "5"], asked].concat());
            let out = out
                .map(|out| [out.stdout, out.stderr].concat())
                .unwrap_or_default();
            said += &format!(
                "--- {}\n{}\n",
                asked.join(" "),
                String::from_utf8_lossy(&out)
            );
        }
        said
    }

    /// Its process 1.
    pub fn leader(&self) -> Option<i32> {
        let pid = self.nspawn.as_ref()?.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_ascii_whitespace().next()?.parse().ok()
    }

    /// A command that runs in it.
    pub fn command(&self, args: &[&str]) -> Command {
        Self::command_below(self.leader().expect("it runs"), args)
    }

    /// A command that runs in the machine of this process 1.
    fn command_below(leader: i32, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &leader.to_string(), "-a", "--"])
            .args(args);
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .stdin(Stdio::null());
        command
    }

    fn try_exec(&self, args: &[&str]) -> Option<Output> {
        Self::command_below(self.leader()?, args).output().ok()
    }

    /// Runs a command in it.
    pub fn exec(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("it starts")
    }

    /// Runs a command that has to succeed, and returns its output.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.exec(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success(),
            "{args:?}: {said}{}",
            String::from_utf8_lossy(&out.stdout)
        );
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// Runs a command in it that reads `input`.
    pub fn feed(&self, args: &[&str], input: &str) -> Output {
        let mut command = self.command(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(input.as_bytes())
            .expect("written");
        child.wait_with_output().expect("it ends")
    }

    /// A path in its file system, as seen from outside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join("root").join(name.trim_start_matches('/'))
    }

    /// Shuts it down in order, and returns the time that it took.
    pub fn power_off(&mut self, limit: Duration) -> Duration {
        let begin = std::time::Instant::now();
        // The machine may be gone before it answers.
        let _ = self.exec(&["systemctl", "poweroff"]);
        let mut nspawn = self.nspawn.take().expect("it runs");
        wait_for("the machine is off", limit, || {
            nspawn.try_wait().expect("our child")
        });
        begin.elapsed()
    }

    /// Cuts its power: all processes die at once, and the disk stays.
    pub fn crash(&mut self) {
        if let Some(leader) = self.leader() {
            crate::signal(leader, libc::SIGKILL);
        }
        if let Some(mut nspawn) = self.nspawn.take() {
            let _ = nspawn.wait();
        }
    }

    /// Boots a crashed machine again.
    pub fn boot_again(&mut self, lab: &Lab) {
        self.start(lab);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.leader().is_some() {
            let journal = self.exec(&["journalctl", "--no-pager", "-n", "60", "-u", "mezcal-*"]);
            eprintln!(
                "--- journal of {}\n{}",
                host_name(self.host),
                String::from_utf8_lossy(&journal.stdout)
            );
        }
        self.crash();
        for mounted in ["root", ""] {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.dir.join(mounted))
                .stderr(Stdio::null())
                .status();
        }
        // The deepest group first.
        let _ = Command::new("find")
            .arg(&self.group)
            .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
            .stderr(Stdio::null())
            .status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_that_says_what_it_lacks_boots_again() {
        let lacks = "systemd 252 running in system mode\n\
                     Failed to create control group inotify object: Too many open files\n\
                     Failed to allocate manager object: Too many open files\n\
                     [!!!!!!] Failed to allocate manager object.\nExiting PID 1...\n";
        assert_eq!(shortage(lacks), Some("inotify instances"));
        assert_eq!(
            shortage("execv(/usr/lib/systemd/systemd) failed: No such file or directory\n"),
            None
        );
        assert_eq!(shortage(""), None);
    }
}
