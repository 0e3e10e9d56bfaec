//! A whole cluster: a coordinator on `mezcal00`, agents on the others, certificates, configuration
//! and logs below one directory.

use crate::lab::{Lab, host_name};
use crate::mount::Disk;
use crate::programs::program;
use crate::relay::Relay;
use crate::wait_for;
use mezcal_certs::{Authority, ClusterDir};
use mezcal_common::model::identity::Role;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// How long programs may take to start, connect or stop on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster that is stopped when dropped.
pub struct Cluster {
    /// The hosts.
    pub lab: Lab,
    dir: tempfile::TempDir,
    hosts: usize,
    slots: u16,
    port: u16,
    containment: &'static str,
    lease: &'static str,
    client_lease: &'static str,
    coordinator: Option<Child>,
    agents: Vec<Option<Child>>,
    settings: Vec<Setting>,
    /// The disk of the store, if it has one of its own.
    disk: Option<Disk>,
    /// The address of the coordinator's dashboard.
    http: Option<&'static str>,
    /// Further arguments of `serve`.
    serve_arguments: Vec<&'static str>,
}

/// The settings of one host's agent.
#[derive(Clone, Default)]
struct Setting {
    env: Vec<(&'static str, String)>,
    boot_id: Option<PathBuf>,
    has_no_terminal: bool,
}

impl Cluster {
    /// Hosts, certificates and configuration; nothing runs yet.
    pub fn new(hosts: usize, slots: u16) -> Self {
        Self::with(hosts, slots, "auto", "10m")
    }

    /// The same with another containment in agent.toml and another lease in coordinator.toml.
    pub fn with(hosts: usize, slots: u16, containment: &'static str, lease: &'static str) -> Self {
        let lab = Lab::new(hosts);
        // The programs may have to be built first, and certificates that live for seconds would
        // expire meanwhile.
        program("coordinator");
        let dir = tempfile::tempdir().expect("a directory");
        let (cluster, authority) =
            ClusterDir::init(&dir.path().join("pki"), "mezcal").expect("a cluster's certificates");
        let leaves = leaves();
        let day = mezcal_certs::days(1);
        let life = |role| {
            if role == Role::Coordinator {
                day
            } else {
                leaves.unwrap_or(day)
            }
        };
        let issue = |role, name: &str| {
            cluster
                .issue(&authority, role, name, life(role), None)
                .map(|_| ())
                .expect("issued")
        };
        issue(Role::Coordinator, "");
        issue(Role::User, "okazaki");
        issue(Role::User, "sato");
        issue(Role::User, "admin");
        (1..=hosts).for_each(|n| issue(Role::Agent, &host_name(n)));
        let port = if lab.is_real() { 7433 } else { free_port() };
        let agents = (0..=hosts).map(|_| None).collect();
        let settings = vec![Setting::default(); hosts + 1];
        let me = Self {
            lab,
            dir,
            hosts,
            slots,
            port,
            containment,
            lease,
            client_lease: "20s",
            coordinator: None,
            agents,
            settings,
            disk: None,
            http: None,
            serve_arguments: Vec::new(),
        };
        me.write_configuration();
        if leaves.is_some() {
            cluster.issue_issuer(&authority, 1, None).expect("issued");
            let config = me.path("coordinator.toml").display().to_string();
            let out = me.run(&["certs", "import", "pki/issued.jsonl", "--config", &config]);
            assert!(
                out.status.success(),
                "{}",
                String::from_utf8_lossy(&out.stderr)
            );
        }
        me
    }

    /// A cluster that runs: the coordinator listens and all agents are connected.
    pub fn running(hosts: usize, slots: u16) -> Self {
        Self::new(hosts, slots).start()
    }

    /// Sets a client lease other than 20 s.
    pub fn client_lease(mut self, lease: &'static str) -> Self {
        self.client_lease = lease;
        self.write_configuration();
        self
    }

    /// Sets the length of leases from the coordinator's next start on.
    pub fn set_lease(&mut self, lease: &'static str) {
        self.lease = lease;
        self.write_configuration();
    }

    /// Starts everything and waits until all agents are connected.
    pub fn start(mut self) -> Self {
        self.start_coordinator();
        self.start_agents();
        self.wait_connected(self.hosts);
        self
    }

    /// A path below the cluster's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// HOST:PORT of the coordinator.
    pub fn address(&self) -> String {
        format!("{}:{}", self.lab.address(0), self.port)
    }

    fn write_configuration(&self) {
        let write = |name: String, text: String| {
            let path = self.path(&name);
            std::fs::create_dir_all(path.parent().expect("below the directory")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        let pki = self.path("pki");
        let (pki, address) = (pki.display(), self.address());
        write(
            "coordinator.toml".into(),
            format!(
                "listen = \"{address}\"\nidentity = \"{pki}/coordinator\"\nlease = \"{}\"\nclient_lease = \"{}\"\nstate = \"{}\"\n\
                 admins = [\"admin\"]\n",
                self.lease,
                self.client_lease,
                self.path("state").display()
            ) + &self.issuer(),
        );
        let profiles = "config/mezcal/profiles";
        write(
            format!("{profiles}/mezcal.toml"),
            format!("coordinator = \"{address}\"\nidentity = \"{pki}/users/okazaki\"\n"),
        );
        write(
            format!("{profiles}/sato.toml"),
            format!("coordinator = \"{address}\"\nidentity = \"{pki}/users/sato\"\n"),
        );
        write(
            format!("{profiles}/admin.toml"),
            format!("coordinator = \"{address}\"\nidentity = \"{pki}/users/admin\"\n"),
        );
        write(
            format!("{profiles}/listen.toml"),
            format!("listen = \"{address}\"\nidentity = \"{pki}/coordinator\"\n"),
        );
        for n in 1..=self.hosts {
            let (name, slots, run) = (host_name(n), self.slots, self.path(&format!("run{n:02}")));
            write(
                format!("agent{n:02}.toml"),
                format!(
                    "coordinator = \"{address}\"\nidentity = \"{pki}/agents/{name}\"\nslots = {slots}\nruntime = \"{}\"\nallow_root_jobs = true\ncontainment = \"{}\"\n",
                    run.display(),
                    self.containment
                ),
            );
        }
    }

    /// The coordinator's settings for renewing certificates with the lifetime of [`leaves`].
    fn issuer(&self) -> String {
        let Some(life) = leaves() else {
            return String::new();
        };
        let enrol = SocketAddr::new(
            self.lab.address(0).parse().expect("an address"),
            if self.lab.is_real() {
                7434
            } else {
                free_port()
            },
        );
        format!(
            "issuer = \"{}\"\nenrol = \"{enrol}\"\ncertificate_life = \"{}s\"\n",
            self.path("pki/issuer").display(),
            life.as_secs()
        )
    }

    /// The log file of a program: `NAME.log`.
    pub fn log(&self, name: &str) -> File {
        File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{name}.log")))
            .expect("a log file")
    }

    /// The text of a program's log.
    pub fn log_text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// The process of the coordinator.
    pub fn coordinator_pid(&self) -> i32 {
        self.coordinator
            .as_ref()
            .expect("a running coordinator")
            .id() as i32
    }

    /// Starts the coordinator and waits until it listens.
    pub fn start_coordinator(&mut self) {
        let listens = || self.log_text("coordinator").matches("listens").count();
        let before = listens();
        let mut command = self.beside_store();
        command
            .args(["serve", "--config"])
            .arg(self.path("coordinator.toml"));
        command.args(self.http.iter().flat_map(|address| ["--http", address]));
        command.args(&self.serve_arguments);
        let child = command
            .stdin(Stdio::null())
            .stderr(self.log("coordinator"))
            .spawn()
            .expect("the coordinator starts");
        self.coordinator = Some(child);
        let listens = || self.log_text("coordinator").matches("listens").count();
        wait_for("the coordinator listens", PATIENCE, || {
            (listens() > before).then_some(())
        });
    }

    /// Makes the coordinator read its configuration again, and waits until it has.
    pub fn reload_coordinator(&self) {
        let read = || {
            let log = self.log_text("coordinator");
            log.matches("were read again").count() + log.matches("nothing is changed").count()
        };
        let before = read();
        crate::signal(
            self.coordinator
                .as_ref()
                .expect("a running coordinator")
                .id() as i32,
            libc::SIGHUP,
        );
        wait_for("the configuration is read again", PATIENCE, || {
            (read() > before).then_some(())
        });
    }

    /// From its next start on, the coordinator's store gets an empty disk of this size, which lasts
    /// as long as the cluster.
    pub fn set_store_size(&mut self, size: &str) {
        self.disk = Some(Disk::mount(&self.path("state"), size));
        if self.path("pki/issuer").exists() {
            let mut import = self.beside_store();
            import
                .args(["certs", "import"])
                .arg(self.path("pki/issued.jsonl"))
                .arg("--config")
                .arg(self.path("coordinator.toml"));
            let out = import.output().expect("the coordinator runs");
            assert!(
                out.status.success(),
                "{}",
                String::from_utf8_lossy(&out.stderr)
            );
        }
    }

    /// The store's disk.
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("the store has a disk of its own")
    }

    /// The `coordinator` command on the coordinator's host, with the store's disk in view.
    pub fn beside_store(&self) -> Command {
        let program = program("coordinator");
        let Some(disk) = &self.disk else {
            return self.lab.command(0, &program);
        };
        let mut command = self.lab.command(0, Path::new("nsenter"));
        command.args([&disk.entrance(), "--"]).arg(program);
        command
    }

    /// Adds arguments to `serve` from its next start on.
    pub fn set_serve_arguments(&mut self, arguments: &[&'static str]) {
        self.serve_arguments = arguments.to_vec();
    }

    /// Makes the coordinator show its dashboard on its own host from its next start on.
    pub fn set_http(&mut self, address: &'static str) {
        // Without network namespaces the dashboard takes any free port.
        self.http = Some(if self.lab.is_real() {
            address
        } else {
            "127.0.0.1:0"
        });
    }

    /// The address of the dashboard.
    pub fn http_address(&self) -> String {
        let log = self.log_text("coordinator");
        let said = log
            .lines()
            .rev()
            .find_map(|line| line.split("dashboard and metrics on http://").nth(1));
        said.expect("the coordinator says so").trim().to_owned()
    }

    /// Kills the coordinator.
    pub fn kill_coordinator(&mut self) {
        if let Some(mut child) = self.coordinator.take() {
            child.kill().expect("killed");
            let _ = child.wait();
        }
    }

    /// Starts all agents.
    pub fn start_agents(&mut self) {
        (1..=self.hosts).for_each(|n| self.start_agent(n));
    }

    /// Starts the agent of one host.
    pub fn start_agent(&mut self, n: usize) {
        let setting = &self.settings[n];
        let mut command = match &setting.boot_id {
            None if setting.has_no_terminal => {
                let mut command = self.lab.command(n, Path::new("setsid"));
                command.arg(program("agent"));
                command
            }
            None => self.lab.command(n, &program("agent")),
            Some(file) => {
                let mut command = self.lab.command(n, Path::new("unshare"));
                let script =
                    "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";
                command
                    .args(["--mount", "sh", "-c", script, "sh"])
                    .arg(file)
                    .arg(program("agent"));
                command
            }
        };
        // A directory below the cluster's, never the account's or the machine's.
        command.env("STATE_DIRECTORY", self.path(&format!("agent-state{n:02}")));
        command.envs(setting.env.iter().map(|(name, value)| (name, value)));
        command
            .args(["run", "--config"])
            .arg(self.path(&format!("agent{n:02}.toml")));
        let child = command
            .stdin(Stdio::null())
            .stderr(self.log(&format!("agent{n:02}")))
            .spawn()
            .expect("an agent starts");
        self.agents[n] = Some(child);
    }

    /// Makes a host's agent reach the coordinator through a relay, from its next start on.
    pub fn by_way_of(&self, n: usize, relay: &Relay) {
        let path = self.path(&format!("agent{n:02}.toml"));
        let text = std::fs::read_to_string(&path).expect("readable");
        std::fs::write(path, text.replace(&self.address(), &relay.address())).expect("written");
    }

    /// Sets a variable in the environment of a host's agent, from its next start on.
    pub fn set_env(&mut self, n: usize, name: &'static str, value: &str) {
        self.settings[n].env.push((name, value.into()));
    }

    /// Starts a host's agent without the terminal of the test, from its next start on: HUP makes it
    /// read its configuration again.
    pub fn set_without_terminal(&mut self, n: usize) {
        self.settings[n].has_no_terminal = true;
    }

    /// Makes the agent believe, from its next start on, that its host has booted again.
    pub fn set_boot(&mut self, n: usize, boot: u8) {
        let file = self.path(&format!("boot{n}"));
        std::fs::write(
            &file,
            format!("0000{boot:04}-0000-4000-8000-000000000000\n"),
        )
        .expect("written");
        self.settings[n].boot_id = Some(file);
    }

    /// Cuts the power of one host.
    pub fn crash_host(&mut self, n: usize) {
        for pid in self.lab.processes(n) {
            crate::signal(pid, libc::SIGKILL);
        }
        if let Some(mut child) = self.agents[n].take() {
            let _ = child.wait();
        }
        wait_for("nothing of it is left", PATIENCE, || {
            self.lab.processes(n).is_empty().then_some(())
        });
    }

    /// The process of a host's agent.
    pub fn agent_pid(&self, n: usize) -> i32 {
        // nsenter executes the agent in its place.
        self.agents[n].as_ref().expect("a running agent").id() as i32
    }

    /// Sends a signal to the agent of one host and waits for its end.
    pub fn end_agent(&mut self, n: usize, signal: i32) {
        if let Some(mut child) = self.agents[n].take() {
            crate::signal(child.id() as i32, signal);
            wait_for("the agent ends", PATIENCE, || {
                child.try_wait().expect("our child")
            });
        }
    }

    /// Programs that ended by themselves, by their host's number (0: the coordinator); each is
    /// returned once.
    pub fn ended(&mut self) -> Vec<(usize, ExitStatus)> {
        let mut ended = Vec::new();
        for (n, place) in [(0, &mut self.coordinator)]
            .into_iter()
            .chain(self.agents.iter_mut().enumerate().skip(1))
        {
            if let Some(status) = place
                .as_mut()
                .and_then(|child| child.try_wait().expect("our child"))
            {
                *place = None;
                ended.push((n, status));
            }
        }
        ended
    }

    /// Keeps the directory, with logs and certificates, and returns its path.
    pub fn keep(&mut self) -> &Path {
        self.dir.disable_cleanup(true);
        self.dir.path()
    }

    /// The `coordinator` command on the coordinator's host with this cluster's profiles.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.lab.command(0, &program("coordinator"));
        command
            .args(args)
            .env("XDG_CONFIG_HOME", self.path("config"))
            .stdin(Stdio::null())
            .current_dir(self.dir.path());
        command
    }

    /// Runs that command to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the coordinator runs")
    }

    /// Starts `coordinator run` with these jobs; the results go to `results.json`.
    pub fn start_run(&self, jobs: &str, args: &[&str]) -> Child {
        std::fs::write(self.path("jobs.json"), jobs).expect("written");
        let mut command = self.command(&[
            "run",
            "-p",
            "mezcal",
            "jobs.json",
            "-o",
            "results.json",
            "--force",
        ]);
        command
            .args(args)
            .stderr(self.log("run"))
            .spawn()
            .expect("the run starts")
    }

    /// The hosts that `coordinator hosts --json` calls connected.
    pub fn connected(&self) -> Vec<serde_json::Value> {
        let out = self.run(&["hosts", "-p", "mezcal", "--json"]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let hosts = text
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON"));
        hosts.filter(|h| h["connected"] == true).collect()
    }

    /// Waits until `count` agents are connected and can be given jobs.
    pub fn wait_connected(&self, count: usize) {
        let ready = || {
            self.connected()
                .iter()
                .filter(|h| h["ready"] == true)
                .count()
        };
        wait_for("all agents are ready", PATIENCE, || {
            (ready() == count).then_some(())
        });
    }

    /// Makes credentials of another cluster.
    pub fn strangers_credentials(&self, role: Role, name: &str) -> PathBuf {
        let dir = self.path("stranger");
        let (authority, _) = Authority::create("other").expect("created");
        authority
            .issue(role, name, 1)
            .expect("issued")
            .write(&dir)
            .expect("written");
        dir
    }

    /// Sends TERM to the coordinator and waits for its end.
    pub fn stop_coordinator(&mut self) {
        if let Some(mut child) = self.coordinator.take() {
            crate::signal(child.id() as i32, libc::SIGTERM);
            wait_for("the coordinator ends", PATIENCE, || {
                child.try_wait().expect("our child")
            });
        }
    }

    /// Stops everything in order and proves that no process is left and no error was logged.
    pub fn finish(self) {
        self.finish_with(&[]);
    }

    /// Like [`Self::finish`], with errors that the logs are expected to have.
    pub fn finish_with(mut self, expected: &[&str]) {
        for n in 1..=self.hosts {
            self.end_agent(n, libc::SIGTERM);
        }
        self.stop_coordinator();
        for n in 0..=self.hosts {
            wait_for(
                &format!(
                    "no process is left on host {n}: {:?}",
                    self.lab.processes(n)
                ),
                PATIENCE,
                || self.lab.processes(n).is_empty().then_some(()),
            );
        }
        for entry in std::fs::read_dir(self.dir.path())
            .expect("readable")
            .flatten()
        {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "log") {
                let text = std::fs::read_to_string(&path).expect("readable");
                let wrong = |line: &&str| line.contains("ERROR") || line.contains("panicked");
                let wrong = text
                    .lines()
                    .filter(wrong)
                    .find(|line| !expected.iter().any(|e| line.contains(e)));
                assert!(wrong.is_none(), "{}:\n{text}", path.display());
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- processes\n{}", crate::states_below(self.dir.path()));
        }
        for child in self
            .agents
            .iter_mut()
            .flatten()
            .chain(&mut self.coordinator)
        {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for name in ["coordinator", "agent01", "run"] {
                eprintln!("--- {name}.log\n{}", self.log_text(name));
            }
        }
        // Keepers outlive their agents. Without namespaces they are found by their sockets below
        // our directory.
        for pid in crate::alive_with(&self.dir.path().display().to_string()) {
            crate::signal(pid, libc::SIGKILL);
        }
    }
}

/// Lifetime of agents' and users' certificates, if it is short: `MEZCAL_LEAF_SECONDS`.
fn leaves() -> Option<Duration> {
    let seconds = std::env::var("MEZCAL_LEAF_SECONDS").ok()?;
    Some(Duration::from_secs(
        seconds.parse().expect("a number of seconds"),
    ))
}

/// A free UDP port of loopback.
pub fn free_port() -> u16 {
    std::net::UdpSocket::bind("127.0.0.1:0")
        .and_then(|s| s.local_addr())
        .expect("a free port")
        .port()
}

/// The lines of a results file.
pub fn results(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).expect("results");
    text.lines()
        .map(|l| serde_json::from_str(l).expect("a JSON line"))
        .collect()
}
