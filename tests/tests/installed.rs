//! An installation under a real systemd: the agent as an account of its own, jobs as their users,
//! and the things that neither may do.

use mezcal_tests::lab::{Lab, host_name};
use mezcal_tests::machine::{Layer, Machine, Room, machines_or_say_why};
use mezcal_tests::programs::program;
use mezcal_tests::wait_for;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// A coordinator on host 0, and machines that have only the package.
struct Installed {
    machines: Vec<Machine>,
    /// Dropped after the machines that use it.
    _layer: Layer,
    coordinator: Child,
    lab: Lab,
    dir: tempfile::TempDir,
    /// Released after the machines.
    _room: Room,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One of the scripts that the package contains, for the programs of this build, or for the static
/// ones in the directory `MEZCAL_PACKED_PROGRAMS`.
fn script(name: &str) -> Command {
    let mut command = Command::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../systemd")
            .join(name),
    );
    let built = || {
        program("mezcal")
            .parent()
            .expect("a directory")
            .as_os_str()
            .to_owned()
    };
    command
        .arg("--programs")
        .arg(std::env::var_os("MEZCAL_PACKED_PROGRAMS").unwrap_or_else(built));
    command
}

fn users(dir: &Path) -> [(&'static str, PathBuf); 3] {
    ["admin", "okazaki", "sato"].map(|name| (name, dir.join("pki/users").join(name)))
}

impl Installed {
    fn new(test: &str, hosts: usize) -> Option<Self> {
        Self::with(test, hosts, true)
    }

    /// Machines with or without the package.
    fn with(test: &str, hosts: usize, installed: bool) -> Option<Self> {
        Self::sharing(test, hosts, installed, None)
    }

    /// The same with a directory `home` of this host that all machines share.
    fn sharing(test: &str, hosts: usize, installed: bool, home: Option<&str>) -> Option<Self> {
        let lab = Lab::new(hosts);
        if !machines_or_say_why(test, &lab) {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let here = dir.path().display().to_string();
        let certs = |args: &[&str]| {
            let out = Command::new(program("certs"))
                .args(args)
                .current_dir(dir.path())
                .output()
                .expect("it starts");
            assert!(out.status.success(), "{}", text(&out.stderr));
        };
        certs(&["init", "pki", "--cluster", "mezcal"]);
        certs(&["issue", "coordinator", "--dir", "pki"]);
        certs(&["issue", "issuer", "--dir", "pki"]);
        std::fs::create_dir_all(dir.path().join("config/mezcal/profiles")).expect("made");
        for (name, identity) in users(dir.path()) {
            certs(&["issue", "user", name, "--dir", "pki"]);
            let profile = format!(
                "coordinator = \"{}:7433\"\nidentity = \"{}\"\n",
                lab.address(0),
                identity.display()
            );
            std::fs::write(
                dir.path()
                    .join(format!("config/mezcal/profiles/{name}.toml")),
                profile,
            )
            .expect("written");
        }
        let config = format!(
            "listen = \"{}:7433\"\nidentity = \"{here}/pki/coordinator\"\nissuer = \"{here}/pki/issuer\"\nstate = \"{here}/state\"\n\
             lease = \"20s\"\nadmins = [\"admin\"]\n",
            lab.address(0)
        );
        std::fs::write(dir.path().join("coordinator.toml"), config).expect("written");
        let mut import = lab.command(0, &program("coordinator"));
        let imported = import
            .args([
                "certs",
                "import",
                "pki/issued.jsonl",
                "--config",
                "coordinator.toml",
            ])
            .current_dir(dir.path());
        assert!(imported.status().expect("it starts").success());
        let log = std::fs::File::create(dir.path().join("coordinator.log")).expect("a log");
        let mut serve = lab.command(0, &program("coordinator"));
        serve
            .args(["serve", "--config", "coordinator.toml"])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stderr(log);
        let coordinator = serve.spawn().expect("it starts");
        wait_for("it listens", PATIENCE, || {
            std::fs::read_to_string(dir.path().join("coordinator.log"))
                .unwrap_or_default()
                .contains("listens")
                .then_some(())
        });
        let layer = Layer::new(dir.path());
        if installed {
            let mut install = script("install.sh");
            assert!(
                install
                    .arg("--destdir")
                    .arg(layer.path())
                    .status()
                    .expect("it starts")
                    .success()
            );
        }
        let shared: Vec<String> = home
            .map(|at| format!("{here}/home:{at}"))
            .into_iter()
            .collect();
        std::fs::create_dir_all(dir.path().join("home")).expect("made");
        let room = Room::wait_for(hosts);
        let machines = (1..=hosts)
            .map(|n| Machine::boot_sharing(&lab, n, dir.path(), &layer, shared.clone()))
            .collect();
        Some(Self {
            machines,
            _layer: layer,
            coordinator,
            lab,
            dir,
            _room: room,
        })
    }

    /// Runs the `coordinator` command of a user.
    fn run(&self, user: &str, args: &[&str]) -> Output {
        let mut command = self.lab.command(0, &program("coordinator"));
        command
            .args(args)
            .env("MEZCAL_PROFILE", user)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
            .env("XDG_CONFIG_HOME", self.dir.path().join("config"))
            .output()
            .expect("it starts")
    }

    fn ok(&self, user: &str, args: &[&str]) -> String {
        let out = self.run(user, args);
        assert!(
            out.status.success(),
            "{user} {args:?}: {}{}",
            text(&out.stderr),
            text(&out.stdout)
        );
        text(&out.stdout).trim().to_owned()
    }

    /// Accounts, the agent's certificate and configuration, and engines for okazaki.
    fn join(&self, n: usize) -> &Machine {
        let machine = &self.machines[n - 1];
        // As install.sh does on a machine with systemd.
        machine.ok(&["systemd-sysusers", "/usr/lib/sysusers.d/mezcal.conf"]);
        machine.ok(&[
            "systemd-tmpfiles",
            "--create",
            "/usr/lib/tmpfiles.d/mezcal.conf",
        ]);
        for (uid, user) in [("2001", "okazaki"), ("2002", "sato")] {
            machine.ok(&["useradd", "-m", "-u", uid, "-s", "/bin/bash", user]);
        }
        machine.ok(&["groupadd", "data"]);
        machine.ok(&["usermod", "-aG", "data", "okazaki"]);
        let token = self.ok("admin", &["token", "create", "--host", &host_name(n)]);
        let joined = machine.feed(
            &[
                "mezcal-agent",
                "join",
                &self.lab.address(0),
                "--token-file",
                "-",
                "--slots",
                "2",
            ],
            &token,
        );
        assert!(joined.status.success(), "{}", text(&joined.stderr));
        machine.ok(&[
            "systemctl",
            "enable",
            "--now",
            "mezcal-engines@okazaki.service",
            "mezcal-agent.service",
        ]);
        machine
    }

    fn wait_ready(&self, hosts: usize) {
        let ready = || {
            let said = self.ok("admin", &["hosts", "--json"]);
            said.lines()
                .filter(|l| serde_json::from_str::<Value>(l).expect("JSON")["ready"] == true)
                .count()
        };
        wait_for("agents are ready", PATIENCE, || {
            (ready() == hosts).then_some(())
        });
    }

    /// Runs commands as a user's jobs, all of which succeed, and returns their output.
    fn jobs(&self, user: &str, commands: &[&str]) -> Vec<String> {
        let lines: String = commands
            .iter()
            .map(|c| serde_json::json!({"cmd": c}).to_string() + "\n")
            .collect();
        let name = format!("{user}.json");
        std::fs::write(self.dir.path().join(&name), lines).expect("written");
        let out = self.run(user, &["run", &name, "--keep-order", "--cd", "/"]);
        let results: Vec<Value> = text(&out.stdout)
            .lines()
            .map(|l| serde_json::from_str(l).expect("JSON"))
            .collect();
        assert!(out.status.success(), "{} {results:#?}", text(&out.stderr));
        results
            .iter()
            .map(|r| {
                r["result"]["stdout_tail"]
                    .as_str()
                    .unwrap_or_default()
                    .trim_end()
                    .to_owned()
            })
            .collect()
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("coordinator.log"))
                .unwrap_or_default();
            eprintln!("--- coordinator.log\n{log}");
        }
        self.machines.clear();
        let _ = self.coordinator.kill();
        let _ = self.coordinator.wait();
    }
}

#[test]
fn jobs_run_as_their_users_and_cannot_reach_the_agent_or_each_other() {
    let Some(site) = Installed::new("jobs as their users", 1) else {
        return;
    };
    let machine = site.join(1);
    site.wait_ready(1);
    let agent = machine.ok(&["systemctl", "show", "-P", "MainPID", "mezcal-agent.service"]);
    // Each prints how far it got, and succeeds if it got nowhere.
    let key =
        "cat /var/lib/mezcal-agent/pki/key.pem 2>&1; test ! -r /var/lib/mezcal-agent/pki/key.pem";
    let trace = format!(
        "python3 - <<'X'\nimport ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nr = libc.ptrace(16, {agent}, 0, 0)\nprint(r, os.strerror(ctypes.get_errno()))\nX"
    );
    let kill = format!("! kill -9 {agent} 2>&1");
    let own = "python3 -c \"import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect('/run/mezcal/engines/okazaki/sock'); print(len(s.recv(1)))\"";
    let said = site.jobs(
        "okazaki",
        &["id -un; id -Gn; umask; pwd >/dev/null; echo $HOME $USER $MEZCAL_HOST", key, &trace, &kill, own, "env -0 | sort -z | tr '\\0' '\\n' | grep -v '^MEZCAL_\\|^_=\\|^PWD=\\|^SHLVL='; ls -l /proc/self/fd | grep -c socket; true", "grep NoNewPrivs /proc/self/status; cat /proc/self/cgroup"],
    );
    let host = host_name(1);
    let lines: Vec<&str> = said[0].lines().collect();
    assert_eq!(
        (lines[0], lines[1]),
        ("okazaki", "okazaki data"),
        "their groups, and no others: {said:?}"
    );
    assert_eq!(lines[3], format!("/home/okazaki okazaki {host}"));
    assert!(said[1].contains("denied"), "{}", said[1]);
    assert!(said[2].contains("not permitted"), "{}", said[2]);
    assert!(said[3].contains("not permitted"), "{}", said[3]);
    assert_eq!(
        said[4], "0",
        "the keeper hangs up on whoever is not the agent, its own user's jobs too"
    );
    let names: Vec<&str> = said[5]
        .lines()
        .map(|l| l.split_once('=').map_or(l, |(name, _)| name))
        .collect();
    assert_eq!(
        names,
        ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER", "0"]
            .into_iter()
            .filter(|n| said[5].contains("LANG=") || *n != "LANG")
            .collect::<Vec<_>>()
    );
    assert!(
        said[6].contains("NoNewPrivs:\t1") && said[6].contains("mezcal-engines"),
        "{}",
        said[6]
    );

    // A job has no say about its user; a key that looks like one is the user's own.
    let wishes = r#"{"cmd": "id -un", "user": "root", "run_as": "root", "uid": 0}"#;
    std::fs::write(site.dir.path().join("wishes.json"), format!("{wishes}\n")).expect("written");
    let result = site.ok("okazaki", &["run", "--cd", "/", "wishes.json", "-q"]);
    assert!(
        result.contains("\"stdout_tail\": \"okazaki\\n\"")
            && result.contains("\"run_as\": \"root\""),
        "{result}"
    );

    // The journal has a field for each value.
    let journal = machine.ok(&[
        "journalctl",
        "--no-pager",
        "-o",
        "json",
        "-u",
        "mezcal-agent.service",
        "MEZCAL_COORDINATOR=10.77.0.1:7433",
    ]);
    assert!(journal.contains("\"MEZCAL_HOST\":\"mezcal01"), "{journal}");

    // A user without engines here is told why, and is served as soon as root has enabled some.
    std::fs::write(
        site.dir.path().join("sato.json"),
        "{\"cmd\": \"id -un; ls /run/mezcal/engines/okazaki 2>&1; true\"}\n",
    )
    .expect("written");
    let batch = site.ok("sato", &["run", "--detach", "--cd", "/", "sato.json"]);
    let why = site.ok("sato", &["why", &format!("{batch}/1")]);
    assert!(why.contains("mezcal-engines@sato.service"), "{why}");
    machine.ok(&[
        "systemctl",
        "enable",
        "--now",
        "mezcal-engines@sato.service",
    ]);
    site.ok("sato", &["wait", &batch]);
    let result = site.ok("sato", &["results", &batch]);
    assert!(
        result.contains("sato\\n") && result.contains("Permission denied"),
        "{result}"
    );
    // A job that may not read the agent's key does not get it from the agent, either.
    let key = "{\"cmd\": \"true\", \"out\": \"/var/lib/mezcal-agent/pki/key.pem\"}\n{\"cmd\": \"sleep 600\"}\n";
    std::fs::write(site.dir.path().join("key.json"), key).expect("written");
    let batch = site.ok("okazaki", &["run", "--detach", "--cd", "/", "key.json"]);
    wait_for("the first cannot start", PATIENCE, || {
        text(&site.run("okazaki", &["results", &batch]).stdout)
            .contains("start_failed")
            .then_some(())
    });
    let shown = site.run("okazaki", &["logs", &format!("{batch}/1")]);
    assert!(
        shown.stdout.is_empty() && text(&shown.stderr).contains("not a file of okazaki's"),
        "{}",
        text(&shown.stderr)
    );
    site.ok("okazaki", &["cancel", "--batch", &batch]);
    // Engines never run root's jobs.
    let refused = machine.exec(&["mezcal-agent", "engines", "--directory", "/tmp"]);
    assert!(
        text(&refused.stderr).contains("never run as root"),
        "{}",
        text(&refused.stderr)
    );
    let system = machine.exec(&[
        "setpriv",
        "--reuid",
        "daemon",
        "--clear-groups",
        "mezcal-agent",
        "engines",
        "--directory",
        "/tmp",
    ]);
    assert!(
        text(&system.stderr).contains("allow_users"),
        "{}",
        text(&system.stderr)
    );
    let exposure = machine.ok(&[
        "systemd-analyze",
        "security",
        "--no-pager",
        "mezcal-agent.service",
    ]);
    let level: f64 = exposure
        .lines()
        .find_map(|l| l.split("mezcal-agent.service:").nth(1))
        .and_then(|l| l.split_whitespace().next()?.parse().ok())
        .expect("a level");
    eprintln!("exposure of mezcal-agent.service: {level}");
    assert!(level <= 2.5, "{level}");
}

#[test]
fn a_restarted_killed_or_stopped_agent_leaves_its_jobs_alone() {
    let Some(site) = Installed::new("restarts of the agent", 1) else {
        return;
    };
    let machine = site.join(1);
    site.wait_ready(1);
    std::fs::write(
        site.dir.path().join("long.json"),
        "{\"cmd\": \"echo $$ >> ~/began; until test -e ~/go; do sleep 0.1; done; echo done\"}\n"
            .repeat(2),
    )
    .expect("written");
    let batch = site.ok("okazaki", &["run", "--detach", "--cd", "/", "long.json"]);
    let began = || {
        std::fs::read_to_string(machine.path("/home/okazaki/began"))
            .unwrap_or_default()
            .lines()
            .count()
    };
    wait_for("both have begun", PATIENCE, || (began() == 2).then_some(()));
    let pid = || machine.ok(&["systemctl", "show", "-P", "MainPID", "mezcal-agent.service"]);
    for how in [
        &["systemctl", "restart", "mezcal-agent.service"][..],
        &[
            "systemctl",
            "kill",
            "-s",
            "KILL",
            "--kill-who=main",
            "mezcal-agent.service",
        ],
    ] {
        let before = pid();
        machine.ok(how);
        wait_for("another agent runs", PATIENCE, || {
            let now = pid();
            (now != "0" && now != before).then_some(())
        });
        site.wait_ready(1);
    }
    machine.ok(&["systemctl", "stop", "mezcal-agent.service"]);
    std::fs::write(machine.path("/home/okazaki/go"), "").expect("written");
    machine.ok(&["systemctl", "start", "mezcal-agent.service"]);
    site.ok("okazaki", &["wait", &batch]);
    let results = site.ok("okazaki", &["results", &batch]);
    assert_eq!(
        results.matches("\"stdout_tail\": \"done\\n\"").count(),
        2,
        "{results}"
    );
    assert_eq!(began(), 2, "nothing was started twice");

    // A wrong configuration changes nothing, and a right one is applied; running jobs do not
    // notice.
    let agent = || {
        machine.ok(&[
            "systemctl",
            "show",
            "-P",
            "MainPID",
            "-P",
            "StatusText",
            "mezcal-agent.service",
        ])
    };
    let log = || {
        machine.ok(&[
            "journalctl",
            "--no-pager",
            "-o",
            "cat",
            "-u",
            "mezcal-agent.service",
        ])
    };
    let config = machine.path("/etc/mezcal/agent.toml");
    let good = std::fs::read_to_string(&config).expect("a configuration");
    let before = pid();
    std::fs::write(&config, format!("{good}\nslotss = 3\n")).expect("written");
    machine.ok(&["systemctl", "reload", "mezcal-agent.service"]);
    wait_for("it says what is wrong", PATIENCE, || {
        log().contains("nothing is changed").then_some(())
    });
    std::fs::write(
        &config,
        format!("{good}\nconnect_timeout = \"2s\"\npath = \"/bin\"\n"),
    )
    .expect("written");
    machine.ok(&["systemctl", "reload", "mezcal-agent.service"]);
    wait_for("it is read", PATIENCE, || {
        log()
            .contains("take effect when the agent is started again: path")
            .then_some(())
    });
    wait_for("it is connected", PATIENCE, || {
        agent().contains("connected to").then_some(())
    });
    site.wait_ready(1);
    assert_eq!(pid(), before, "the same process");

    // The engines' own restart ends their jobs, and these run again: no process of the first
    // attempt is left.
    std::fs::write(
        site.dir.path().join("again.json"),
        "{\"cmd\": \"echo $MEZCAL_ATTEMPT >> ~/again; test $MEZCAL_ATTEMPT != 1 || exec sleep 600\"}\n",
    )
    .expect("written");
    let batch = site.ok("okazaki", &["run", "--detach", "--cd", "/", "again.json"]);
    let again = || std::fs::read_to_string(machine.path("/home/okazaki/again")).unwrap_or_default();
    wait_for("it has begun", PATIENCE, || {
        (again() == "1\n").then_some(())
    });
    machine.ok(&["systemctl", "restart", "mezcal-engines@okazaki.service"]);
    site.ok("okazaki", &["wait", &batch]);
    assert_eq!(again(), "1\n2\n");
    assert_eq!(
        text(
            &machine
                .exec(&["pgrep", "-u", "okazaki", "-x", "sleep"])
                .stdout
        ),
        ""
    );
}

#[test]
fn a_host_shuts_down_in_seconds_however_its_agents_were_started() {
    let Some(mut site) = Installed::new("a shutdown", 1) else {
        return;
    };
    let machine = site.join(1);
    machine.ok(&["mkdir", "-p", "/var/log/journal"]);
    machine.ok(&["systemctl", "restart", "systemd-journald.service"]);
    site.wait_ready(1);
    // By hand, with a keeper of its own. A session's scope is ended like a unit: TERM to all
    // processes, and KILL after a minute and a half.
    let token = site.ok("admin", &["token", "create", "--host", "hand.lab"]);
    let address = site.lab.address(0);
    let home = ["env", "HOME=/home/okazaki"];
    let by_hand = [
        &["runuser", "-u", "okazaki", "--"][..],
        &home,
        &[
            "mezcal-agent",
            "join",
            &address,
            "--token-file",
            "-",
            "--name",
            "hand.lab",
            "--slots",
            "1",
        ],
    ];
    let joined = machine.feed(&by_hand.concat(), &token);
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    let unit = |name: &str| {
        [
            "systemd-run".to_owned(),
            format!("--unit={name}"),
            "--uid=okazaki".into(),
            "--setenv=HOME=/home/okazaki".into(),
        ]
    };
    let start = |name: &str, command: &[&str]| {
        let unit = unit(name);
        let all: Vec<&str> = unit
            .iter()
            .map(String::as_str)
            .chain(command.iter().copied())
            .collect();
        machine.ok(&all)
    };
    start("hand", &["mezcal-agent", "run"]);
    site.wait_ready(2);
    // Deaf to TERM in their first attempt.
    let deaf = |host: &str| {
        let cmd = format!(
            "echo {host} >> ~/ups; trap '' TERM; test $MEZCAL_ATTEMPT != 1 || while :; do sleep 0.1; done"
        );
        serde_json::json!({"cmd": cmd, "host": host}).to_string() + "\n"
    };
    let hosts = [host_name(1), "hand.lab".into()];
    std::fs::write(
        site.dir.path().join("deaf.json"),
        hosts.iter().map(|host| deaf(host)).collect::<String>(),
    )
    .expect("written");
    let batch = site.ok("okazaki", &["run", "--detach", "--cd", "/", "deaf.json"]);
    // Embedded: the same in a local run.
    std::fs::write(machine.path("/home/okazaki/own.json"), deaf("localhost")).expect("written");
    start(
        "embedded",
        &[
            "mezcal",
            "run",
            "/home/okazaki/own.json",
            "-j",
            "1",
            "-o",
            "/home/okazaki/own.results",
        ],
    );
    let ups = |machine: &Machine| {
        std::fs::read_to_string(machine.path("/home/okazaki/ups"))
            .unwrap_or_default()
            .lines()
            .count()
    };
    wait_for("all three run", PATIENCE, || {
        (ups(machine) == 3).then_some(())
    });
    let Installed { machines, lab, .. } = &mut site;
    let took = machines[0].power_off(PATIENCE);
    eprintln!("the host was off after {:.1} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(25), "{took:?}");
    let journal = Command::new("journalctl")
        .args(["--no-pager", "-D"])
        .arg(machines[0].path("/var/log/journal"))
        .output();
    let journal = text(&journal.expect("it starts").stdout);
    assert!(journal.contains("mezcal-agent"), "{journal}");
    for wrong in ["panicked", "stop-sigterm' timed out", "Killing process"] {
        let said: Vec<&str> = journal
            .lines()
            .filter(|line| line.contains(wrong))
            .collect();
        assert!(said.is_empty(), "{said:#?}");
    }
    // It comes back, and its jobs run again.
    machines[0].boot_again(lab);
    let again =
        || text(&site.run("okazaki", &["results", &batch]).stdout).contains("\"attempt\": 2");
    wait_for("the installed agent's job runs again", PATIENCE, || {
        again().then_some(())
    });
    site.ok("okazaki", &["cancel", "--batch", &batch]);
}

/// ssh configuration of the coordinator's host for the machines: a key, and their addresses.
fn ssh_config(site: &Installed) -> String {
    let path = |name: &str| site.dir.path().join(name).display().to_string();
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f", &path("id")])
        .status();
    assert!(made.expect("it starts").success());
    let key = std::fs::read(path("id.pub")).expect("a key");
    let mut config = format!(
        "Host *\n  User root\n  IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  StrictHostKeyChecking accept-new\n  LogLevel ERROR\n",
        path("id"),
        path("known_hosts")
    );
    for (n, machine) in (1..).zip(&site.machines) {
        std::fs::create_dir_all(machine.path("/root/.ssh")).expect("made");
        std::fs::write(machine.path("/root/.ssh/authorized_keys"), &key).expect("written");
        machine.ok(&["chmod", "-R", "go=", "/root/.ssh"]);
        machine.ok(&["systemctl", "start", "ssh.service"]);
        config.push_str(&format!(
            "Host mezcal{n:02}\n  HostName {}\n",
            site.lab.address(n)
        ));
    }
    std::fs::write(path("ssh_config"), config).expect("written");
    format!("ssh -F {}", path("ssh_config"))
}

#[test]
fn twelve_hosts_go_from_nothing_to_connected_by_one_command() {
    let Some(site) = Installed::with("provisioning", 12, false) else {
        return;
    };
    if !Path::new("/usr/sbin/sshd").exists() {
        assert!(
            std::env::var_os("MEZCAL_REQUIRE_NAMESPACES").is_none(),
            "provisioning needs sshd (package openssh-server)"
        );
        return mezcal_tests::say_skipped("provisioning: it needs sshd (package openssh-server)");
    }
    let ssh = ssh_config(&site);
    for machine in &site.machines {
        machine.ok(&["useradd", "-m", "-u", "2001", "-s", "/bin/bash", "okazaki"]);
        assert!(
            !machine.path("/usr/bin/mezcal-agent").exists(),
            "nothing is installed"
        );
    }
    let packed = script("pack.sh")
        .arg(site.dir.path())
        .output()
        .expect("it starts");
    assert!(packed.status.success(), "{}", text(&packed.stderr));
    let archive = text(&packed.stdout).trim().to_owned();
    let provision = |more: &[&str]| {
        let mut args = vec![
            "provision",
            "mezcal[01-12]",
            "--ssh",
            &ssh,
            "--archive",
            &archive,
            "--user",
            "okazaki",
            "--slots",
            "2",
        ];
        args.extend_from_slice(more);
        site.run("admin", &args)
    };
    let dry = provision(&["--dry-run"]);
    assert!(
        dry.status.success()
            && text(&dry.stdout)
                .matches("to do: installed, joined, started")
                .count()
                == 12,
        "{}",
        text(&dry.stdout)
    );
    assert!(
        site.machines
            .iter()
            .all(|m| !m.path("/usr/bin/mezcal-agent").exists()),
        "it only looked"
    );
    let begin = std::time::Instant::now();
    let out = provision(&[]);
    let took = begin.elapsed();
    assert!(
        out.status.success(),
        "{}{}",
        text(&out.stdout),
        text(&out.stderr)
    );
    eprintln!(
        "twelve hosts from nothing to connected in {:.1} s\n{}",
        took.as_secs_f64(),
        text(&out.stdout)
    );
    site.wait_ready(12);
    for machine in &site.machines {
        let states = machine.ok(&[
            "systemctl",
            "is-active",
            "mezcal-agent.service",
            "mezcal-engines@okazaki.service",
        ]);
        assert_eq!(states, "active\nactive");
    }
    let out = site.run(
        "okazaki",
        &["exec", "--all", "--cd", "/", "--", "id", "-un"],
    );
    assert!(
        out.status.success() && text(&out.stdout).matches("okazaki").count() == 12,
        "{}",
        text(&out.stdout)
    );
    let again = provision(&["--json"]);
    let rows: Vec<Value> = text(&again.stdout)
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert!(
        again.status.success()
            && rows.len() == 12
            && rows.iter().all(|row| row["did"] == serde_json::json!([])),
        "{rows:#?}"
    );
    // A missing host does not hold up the others.
    let mut args = vec![
        "provision",
        "mezcal[01-13]",
        "--ssh",
        &ssh,
        "--archive",
        &archive,
    ];
    args.extend(["--timeout", "20s"]);
    let partly = site.run("admin", &args);
    assert_eq!(partly.status.code(), Some(1), "{}", text(&partly.stderr));
    assert!(
        text(&partly.stdout).matches("nothing to do").count() == 12
            && text(&partly.stdout).contains("mezcal13"),
        "{}",
        text(&partly.stdout)
    );
}

#[test]
fn a_host_comes_back_by_one_command_whatever_has_become_of_it() {
    let Some(site) = Installed::with("provisioning again", 1, false) else {
        return;
    };
    if !Path::new("/usr/sbin/sshd").exists() {
        return mezcal_tests::say_skipped(
            "provisioning again: it needs sshd (package openssh-server)",
        );
    }
    let (ssh, machine) = (ssh_config(&site), &site.machines[0]);
    machine.ok(&["useradd", "-m", "-u", "2001", "-s", "/bin/bash", "okazaki"]);
    let packed = script("pack.sh")
        .arg(site.dir.path())
        .output()
        .expect("it starts");
    let archive = text(&packed.stdout).trim().to_owned();
    let provision = |more: &[&str]| {
        let mut args = vec![
            "provision",
            "mezcal01",
            "--ssh",
            &ssh,
            "--archive",
            &archive,
        ];
        args.extend_from_slice(more);
        let out = site.run("admin", &args);
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    };
    let did = |more: &[&str], what: &str| {
        let (code, row, steps) = provision(more);
        assert!(
            code == Some(0) && row.lines().count() == 1 && row.trim_end().ends_with(what),
            "{what}: {row}{steps}"
        );
        let lines: Vec<&str> = steps.lines().chain(row.lines()).collect();
        assert_eq!(
            lines
                .iter()
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
            lines.len(),
            "each line once: {lines:#?}"
        );
        steps
    };
    let fails = |more: &[&str], why: &str| {
        let begin = std::time::Instant::now();
        let (code, row, steps) = provision(more);
        assert!(
            code == Some(1) && row.contains(why) && begin.elapsed() < PATIENCE,
            "{why}: {row}{steps}"
        );
    };
    // An account that does not exist.
    fails(
        &["--user", "okazaki", "--user", "nosuch"],
        "it has no account nosuch",
    );
    assert!(
        !machine.path("/usr/bin/mezcal-agent").exists(),
        "nothing was done"
    );
    let steps = did(&["--user", "okazaki"], "installed, joined, started");
    for step in [
        "installing",
        "joining",
        "starting",
        "1 of 1 hosts are set up; waiting until they are connected",
    ] {
        assert_eq!(steps.matches(step).count(), 1, "{steps}");
    }
    let steps = did(&["--user", "okazaki"], "nothing to do");
    assert_eq!(steps.lines().count(), 1, "{steps}");
    // It was revoked, which its own files do not show.
    site.ok("admin", &["revoke", "mezcal01"]);
    fails(&[], "with --replace it joins again");
    did(&["--replace"], "joined again");
    site.wait_ready(1);
    did(&["--replace"], "nothing to do");
    let pid = || machine.ok(&["systemctl", "show", "-P", "MainPID", "mezcal-agent.service"]);
    // The program was removed, as by `dpkg -P`; or replaced by another one, as by a package, or by
    // the agent's own file of version 0.1.
    machine.ok(&["rm", "/usr/bin/mezcal"]);
    did(&[], "installed");
    let change = |script: &str| drop(machine.ok(&["sh", "-ec", &format!("cd /usr/bin; {script}")]));
    change("cp mezcal x; echo other >> x; mv x mezcal");
    did(&[], "installed");
    three_files(machine);
    machine.ok(&["systemctl", "restart", "mezcal-agent.service"]);
    let exe = || machine.ok(&["readlink", &format!("/proc/{}/exe", pid())]);
    assert_eq!(exe(), "/usr/bin/mezcal-agent");
    did(&[], "installed");
    is_one_file(machine, &["mezcal-agent"]);
    assert_eq!(exe(), "/usr/bin/mezcal");
    did(&[], "nothing to do");
    let before = pid();
    change("cp mezcal x; mv x mezcal");
    did(&[], "restarted");
    assert_ne!(pid(), before, "what runs is what is installed");
    site.wait_ready(1);
    // It was set up anew.
    machine.ok(&["systemctl", "stop", "mezcal-agent.service"]);
    machine.ok(&["rm", "-r", "/etc/mezcal", "/var/lib/mezcal-agent"]);
    wait_for("it is gone", PATIENCE, || {
        site.ok("admin", &["hosts", "--json"])
            .contains("\"connected\":false")
            .then_some(())
    });
    fails(&[], "with --replace it joins again");
    did(&["--replace"], "joined again, started");
}

#[test]
fn a_hung_agent_is_restarted_and_a_power_cut_ends_in_one_result_for_each_job() {
    let Some(mut site) = Installed::new("a hung agent and a power cut", 1) else {
        return;
    };
    site.join(1);
    site.wait_ready(1);
    let machine = &site.machines[0];
    machine.ok(&["mkdir", "-p", "/etc/systemd/system/mezcal-agent.service.d"]);
    std::fs::write(
        machine.path("/etc/systemd/system/mezcal-agent.service.d/test.conf"),
        "[Service]\nWatchdogSec=8s\n",
    )
    .expect("written");
    machine.ok(&["systemctl", "daemon-reload"]);
    machine.ok(&["systemctl", "restart", "mezcal-agent.service"]);
    site.wait_ready(1);
    let status = machine.ok(&[
        "systemctl",
        "show",
        "-P",
        "StatusText",
        "mezcal-agent.service",
    ]);
    assert!(
        status.starts_with("connected to 10.77.0.1:7433"),
        "{status}"
    );
    std::fs::write(
        site.dir.path().join("long.json"),
        "{\"cmd\": \"echo $MEZCAL_ATTEMPT >> ~/tries; test $MEZCAL_ATTEMPT != 1 || exec sleep 600\"}\n".repeat(2),
    )
    .expect("written");
    let batch = site.ok("okazaki", &["run", "--detach", "--cd", "/", "long.json"]);
    let tries = |machine: &Machine| {
        std::fs::read_to_string(machine.path("/home/okazaki/tries")).unwrap_or_default()
    };
    wait_for("both run", PATIENCE, || {
        (tries(machine) == "1\n1\n").then_some(())
    });
    let pid = || machine.ok(&["systemctl", "show", "-P", "MainPID", "mezcal-agent.service"]);
    let before = pid();
    machine.ok(&["kill", "-STOP", &before]);
    wait_for("the watchdog has seen it", PATIENCE, || {
        let now = pid();
        (now != "0" && now != before).then_some(())
    });
    assert!(
        machine
            .ok(&["journalctl", "--no-pager", "-u", "mezcal-agent.service"])
            .contains("Watchdog timeout")
    );
    site.wait_ready(1);
    assert_eq!(tries(machine), "1\n1\n", "its jobs went on");

    // Files on the disk stay; running jobs are gone, and run again.
    let Installed { machines, lab, .. } = &mut site;
    machines[0].crash();
    machines[0].boot_again(lab);
    site.ok("okazaki", &["wait", &batch]);
    let results = site.ok("okazaki", &["results", &batch]);
    assert_eq!(
        (
            results.lines().count(),
            results.matches("\"attempt\": 2").count()
        ),
        (2, 2),
        "{results}"
    );
    assert_eq!(tries(&site.machines[0]), "1\n1\n2\n2\n");
}

#[test]
fn the_doctor_names_what_is_wrong_and_the_way_out() {
    let Some(site) = Installed::new("the doctor", 1) else {
        return;
    };
    let machine = &site.machines[0];
    assert!(
        machine
            .path("/usr/share/man/man1/mezcal-agent-doctor.1")
            .exists(),
        "what was installed without an archive has its pages"
    );
    let doctor = || {
        let out = machine.exec(&["mezcal-agent", "doctor", "--json"]);
        let found: Vec<Value> = text(&out.stdout)
            .lines()
            .map(|l| serde_json::from_str(l).expect("JSON"))
            .collect();
        (out.status.success(), found)
    };
    let wrong = |found: &[Value]| -> Vec<String> {
        found
            .iter()
            .filter(|f| f["state"] == "fail")
            .map(|f| format!("{} {} -> {}", f["check"], f["seen"], f["fix"]))
            .collect()
    };
    let (well, found) = doctor();
    assert!(
        !well && wrong(&found)[0].contains("mezcal-agent join"),
        "{found:#?}"
    );
    site.join(1);
    site.wait_ready(1);
    let (well, found) = doctor();
    assert!(well, "{found:#?}");
    assert!(
        found
            .iter()
            .any(|f| f["check"] == "coordinator" && f["state"] == "ok"),
        "{found:#?}"
    );
    machine.ok(&["systemctl", "stop", "mezcal-engines@okazaki.service"]);
    machine.ok(&["chmod", "0644", "/var/lib/mezcal-agent/pki/key.pem"]);
    let (well, found) = doctor();
    let said = wrong(&found).join("\n");
    assert!(
        !well && said.contains("chmod 600") && said.contains("okazaki's do not run"),
        "{said}"
    );
    machine.ok(&["chmod", "0600", "/var/lib/mezcal-agent/pki/key.pem"]);
    machine.ok(&["systemctl", "start", "mezcal-engines@okazaki.service"]);
    // Files that root can read and the accounts that need them cannot.
    let unreadable = [
        (
            "/etc/mezcal/agent.toml",
            "0600",
            "0644",
            "mezcal-agent needs /etc/mezcal/agent.toml and cannot read it",
            "chmod o+r /etc/mezcal/agent.toml",
        ),
        (
            "/etc/mezcal",
            "0700",
            "0755",
            "mezcal-agent needs /etc/mezcal/agent.toml and cannot enter /etc/mezcal",
            "chmod o+x /etc/mezcal",
        ),
        (
            "/etc/mezcal/engines.toml",
            "0600",
            "0644",
            "okazaki needs /etc/mezcal/engines.toml and cannot read it",
            "chmod o+r /etc/mezcal/engines.toml",
        ),
    ];
    machine.ok(&["touch", "/etc/mezcal/engines.toml"]);
    for (path, closed, open, seen, fix) in unreadable {
        machine.ok(&["chmod", closed, path]);
        let (well, found) = doctor();
        machine.ok(&["chmod", open, path]);
        let said = wrong(&found).join("\n");
        assert!(!well && said.contains(seen) && said.contains(fix), "{said}");
    }
    // Room for bytes is not room for files, and a disk with errors has neither.
    for (options, seen) in [
        ("size=200m,nr_inodes=1", "no more files"),
        ("size=1m", "64 MiB are wanted"),
        ("ro", "is read-only"),
    ] {
        machine.ok(&["mount", "-t", "tmpfs", "-o", options, "none", "/tmp"]);
        let said = wrong(&doctor().1).join("\n");
        machine.ok(&["umount", "/tmp"]);
        assert!(
            said.contains("space") && said.contains(seen),
            "{options}: {said}"
        );
    }
    assert!(doctor().0, "{:#?}", doctor().1);
    site.ok("admin", &["revoke", &host_name(1)]);
    let said = wrong(&doctor().1).join("\n");
    assert!(said.contains("revoked"), "{said}");
    let out = site.run(
        "admin",
        &["doctor", "--config", "coordinator.toml", "--json"],
    );
    let found: Vec<Value> = text(&out.stdout)
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert!(out.status.success(), "{found:#?}");
    assert!(
        found
            .iter()
            .any(|f| f["check"] == "hosts"
                && f["seen"].as_str().is_some_and(|s| s.contains("revoked"))),
        "{found:#?}"
    );
}

/// The README's way to a coordinator, on a machine that has only the package.
#[test]
fn a_coordinator_is_set_up_as_the_readme_says() {
    let Some(site) = Installed::with("a coordinator's machine", 1, false) else {
        return;
    };
    let machine = &site.machines[0];
    let packed = script("pack.sh")
        .arg(site.dir.path())
        .output()
        .expect("it starts");
    let archive = std::fs::read(text(&packed.stdout).trim()).expect("an archive");
    std::fs::write(machine.path("/root/mezcal.tar.gz"), archive).expect("written");
    let sh = |script: &str| {
        machine.ok(&[
            "sh",
            "-ec",
            &format!("export HOME=/root; cd /root; {script}"),
        ])
    };
    sh("tar -xzf mezcal.tar.gz; mezcal-*/install.sh --coordinator");
    has_everything(machine);
    // It runs the programs of version 0.1 until it is upgraded.
    three_files(machine);
    sh("mezcal-certs init pki --cluster mezcal");
    sh("mezcal-certs issue coordinator --dir pki --out /var/lib/mezcal-coordinator/pki");
    sh("mezcal-certs issue issuer --dir pki --out /var/lib/mezcal-coordinator/issuer");
    sh("mezcal-certs issue user admin --dir pki --out ~/.config/mezcal/default");
    let config = "identity = \"/var/lib/mezcal-coordinator/pki\"\nissuer = \"/var/lib/mezcal-coordinator/issuer\"\nadmins = [\"admin\"]\n";
    std::fs::write(machine.path("/etc/mezcal/coordinator.toml"), config).expect("written");
    sh("chown -R mezcal-coordinator: /var/lib/mezcal-coordinator");
    sh("runuser -u mezcal-coordinator -- coordinator certs import - < pki/issued.jsonl");
    sh("systemctl enable --now mezcal-coordinator");
    sh(
        "mkdir -p ~/.config/mezcal/profiles; echo 'coordinator = \"127.0.0.1:7433\"' > ~/.config/mezcal/profiles/default.toml",
    );
    assert!(sh("coordinator hosts").starts_with("HOST"));
    // Its own host joins it, and the admin runs a job on it as a user.
    sh("useradd -m -u 2001 -s /bin/bash admin");
    sh("coordinator token create --host $(hostname) | mezcal-agent join 127.0.0.1 --token-file -");
    sh("systemctl enable --now mezcal-engines@admin mezcal-agent");
    assert!(sh("coordinator exec --all --cd / -- id -un").contains("admin"));
    assert!(sh("systemctl show -P StatusText mezcal-coordinator").contains("listens on"));
    // An upgrade while a job runs: new programs take over, and the job does not notice.
    std::fs::write(
        machine.path("/root/jobs.json"),
        "{\"cmd\": \"echo $MEZCAL_ATTEMPT >> ~/tries; until test -e ~/go; do sleep 0.1; done; cat ~/tries\"}\n",
    )
    .expect("written");
    let batch = sh("coordinator run --detach --cd / jobs.json");
    wait_for("it runs", PATIENCE, || {
        machine.path("/home/admin/tries").exists().then_some(())
    });
    let pids =
        || sh("systemctl show -P MainPID mezcal-agent mezcal-coordinator mezcal-engines@admin");
    let before = pids();
    // A program that does not run here, or is missing, replaces nothing.
    let files = || sh("cd /usr/bin; ls mezcal*; sha256sum mezcal-agent coordinator mezcal-certs");
    let there = files();
    sh("mkdir none other; printf '\\177ELF' > other/mezcal; chmod +x other/mezcal");
    for (from, why) in [
        ("other", "does not run on this host"),
        ("none", "no program mezcal"),
    ] {
        let said = sh(&format!(
            "! mezcal-*/install.sh --coordinator --programs {from} 2>&1"
        ));
        assert!(said.contains(why), "{said}");
    }
    assert_eq!((files(), pids()), (there, before.clone()));
    sh("mezcal-*/install.sh --coordinator");
    is_one_file(machine, &LINKS);
    let (before, after) = (
        before
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>(),
        pids(),
    );
    let after: Vec<&str> = after.split_whitespace().collect();
    assert!(
        after[0] != before[0] && after[1] != before[1] && after[2] == before[2],
        "{before:?} {after:?}"
    );
    sh("touch /home/admin/go");
    sh(&format!("coordinator wait {batch}"));
    // A changed list of admins is applied without a restart.
    let before = pids();
    sh(
        "sed -i 's/^admins.*/admins = [\"nobody\"]/' /etc/mezcal/coordinator.toml; systemctl reload mezcal-coordinator",
    );
    wait_for("admin is none any more", PATIENCE, || {
        sh("coordinator certs list 2>&1 || true")
            .contains("admin is not one")
            .then_some(())
    });
    sh(
        "sed -i 's/^admins.*/admins = [\"admin\"]/' /etc/mezcal/coordinator.toml; systemctl reload mezcal-coordinator",
    );
    wait_for("admin is one again", PATIENCE, || {
        (!sh("coordinator certs list 2>&1 || true").contains("admin is not one")).then_some(())
    });
    assert_eq!(pids(), before, "the same processes");
    let results = sh(&format!("coordinator results {batch}"));
    assert!(
        results.contains("\"stdout_tail\": \"1\\n\"") && results.contains("\"attempt\": 1"),
        "{results}"
    );
    sh("mezcal-agent doctor; coordinator doctor");
    let exposure = machine.ok(&[
        "systemd-analyze",
        "security",
        "--no-pager",
        "mezcal-coordinator.service",
    ]);
    eprintln!("{}", exposure.lines().last().unwrap_or_default());
}

/// The names of links to the program.
const LINKS: [&str; 3] = ["mezcal-agent", "coordinator", "mezcal-certs"];

/// Replaces the installed program by separate programs, as in version 0.1.
fn three_files(machine: &Machine) {
    for name in LINKS {
        let at = machine.path(&format!("/usr/bin/{name}"));
        if at.exists() {
            std::fs::remove_file(&at).expect("removed");
            std::fs::copy(program(name.trim_start_matches("mezcal-")), at).expect("copied");
        }
    }
    machine.ok(&["rm", "/usr/bin/mezcal"]);
}

/// Checks that one stripped file is installed, and that these are links to it.
fn is_one_file(machine: &Machine, links: &[&str]) {
    let file = machine.path("/usr/bin/mezcal");
    let meta = file.symlink_metadata().expect("it is there");
    let built = std::fs::metadata(program("mezcal")).expect("it is there");
    assert!(
        meta.is_file() && meta.len() < built.len(),
        "{meta:?} {built:?}"
    );
    for name in links {
        let link = machine.path(&format!("/usr/bin/{name}"));
        assert_eq!(
            std::fs::read_link(&link).ok(),
            Some("mezcal".into()),
            "{name}"
        );
        let said = machine.ok(&[name, "--version"]);
        assert!(said.starts_with(&format!("{name} ")), "{said}");
    }
}

/// Checks that program, manual pages, completions and units of both packages are there.
fn has_everything(machine: &Machine) {
    is_one_file(machine, &LINKS);
    for name in ["mezcal", "coordinator"] {
        for file in [
            format!("/usr/share/bash-completion/completions/{name}"),
            format!("/usr/share/zsh/vendor-completions/_{name}"),
            format!("/usr/share/fish/vendor_completions.d/{name}.fish"),
        ] {
            let script = std::fs::read_to_string(machine.path(&file)).expect("it is there");
            assert!(script.contains(name), "{file}: {script}");
        }
    }
    for page in [
        "man1/mezcal.1",
        "man1/mezcal-run.1",
        "man1/mezcal-agent-join.1",
        "man1/mezcal-certs-init.1",
        "man1/coordinator-run.1",
        "man5/mezcal-agent.toml.5",
        "man5/mezcal-engines.toml.5",
        "man5/mezcal-coordinator.toml.5",
    ] {
        let path = |end: &str| machine.path(&format!("/usr/share/man/{page}{end}"));
        assert!(path("").exists() || path(".gz").exists(), "{page}");
    }
    for (package, sample) in [
        ("agent", "agent"),
        ("agent", "engines"),
        ("coordinator", "coordinator"),
    ] {
        assert!(
            machine
                .path(&format!(
                    "/usr/share/doc/mezcal-{package}/examples/{sample}.toml"
                ))
                .exists(),
            "{sample}.toml"
        );
    }
    machine.ok(&[
        "systemctl",
        "cat",
        "mezcal-coordinator.service",
        "mezcal-agent.service",
        "mezcal-engines@x.service",
    ]);
}

/// Turns the packages in a directory, with the programs of a build, into packages as of version
/// 0.1.
const OLD_PACKAGES: &str = r#"
cd "$1"; mkdir old
for part in agent coordinator; do
    dpkg-deb -R mezcal-${part}_*.deb old/$part
    sed -i 's/^Version: .*/Version: 0.0.1/; s/mezcal-agent (= [^)]*)/mezcal-agent (= 0.0.1)/' old/$part/DEBIAN/control
    rm -f old/$part/usr/bin/*
done
strip -o old/agent/usr/bin/mezcal-agent "$2/agent"
strip -o old/coordinator/usr/bin/coordinator "$2/coordinator"
strip -o old/coordinator/usr/bin/mezcal-certs "$2/certs"
for part in agent coordinator; do dpkg-deb -Zgzip -z1 --root-owner-group -b old/$part old/mezcal-$part.deb; done
"#;

#[test]
fn a_package_brings_everything_and_its_purge_takes_the_keys_away() {
    let Some(site) = Installed::with("packages", 1, false) else {
        return;
    };
    let machine = &site.machines[0];
    if !Path::new("/usr/bin/dpkg-deb").exists() {
        return mezcal_tests::say_skipped("packages: they need dpkg-deb");
    }
    let made = script("deb.sh")
        .env("DEBEMAIL", "ops@mezcal.org")
        .arg(machine.path("/root"))
        .output()
        .expect("it starts");
    assert!(made.status.success(), "{}", text(&made.stderr));
    if Path::new("/usr/bin/lintian").exists() {
        let look = Command::new("sh")
            .args([
                "-c",
                "lintian --allow-root --fail-on error \"$1\"/root/*.deb",
                "sh",
            ])
            .arg(machine.path("/"))
            .output();
        let look = look.expect("it starts");
        assert!(look.status.success(), "{}", text(&look.stdout));
    } else {
        mezcal_tests::say_skipped("packages: what lintian says of them (package lintian)");
    }
    // The packages of an older version, which have three programs.
    let old = Command::new("sh")
        .args(["-ec", OLD_PACKAGES, "sh"])
        .arg(machine.path("/root"))
        .arg(program("mezcal").parent().expect("a directory"))
        .output()
        .expect("it starts");
    assert!(old.status.success(), "{}", text(&old.stderr));
    machine.ok(&[
        "sh",
        "-ec",
        "dpkg -i /root/old/mezcal-agent.deb /root/old/mezcal-coordinator.deb 2>&1",
    ]);
    assert!(
        !machine.path("/usr/bin/mezcal").exists()
            && LINKS.iter().all(|name| {
                let file = machine.path(&format!("/usr/bin/{name}"));
                file.symlink_metadata().is_ok_and(|meta| meta.is_file())
            })
    );
    site.join(1);
    site.wait_ready(1);
    let job =
        "{\"cmd\": \"echo $MEZCAL_ATTEMPT >> ~/tries; until test -e ~/go; do sleep 0.1; done\"}\n";
    std::fs::write(site.dir.path().join("long.json"), job).expect("written");
    let batch = site.ok("okazaki", &["run", "--detach", "--cd", "/", "long.json"]);
    wait_for("it runs", PATIENCE, || {
        machine.path("/home/okazaki/tries").exists().then_some(())
    });
    machine.ok(&[
        "sh",
        "-ec",
        "dpkg -i /root/mezcal-agent_*.deb /root/mezcal-coordinator_*.deb 2>&1",
    ]);
    has_everything(machine);
    site.wait_ready(1);
    let doctor = text(&machine.exec(&["mezcal-agent", "doctor"]).stdout);
    assert!(
        doctor.contains("systemctl restart mezcal-engines@okazaki"),
        "the engines are still the old ones: {doctor}"
    );
    machine.ok(&["touch", "/home/okazaki/go"]);
    site.ok("okazaki", &["wait", &batch]);
    let tries = std::fs::read_to_string(machine.path("/home/okazaki/tries"));
    assert_eq!(tries.expect("it is there"), "1\n", "the job went on");
    let manual = machine.ok(&[
        "sh",
        "-ec",
        "gzip -dc /usr/share/man/man1/coordinator-run.1.gz 2>/dev/null || cat /usr/share/man/man1/coordinator-run.1",
    ]);
    assert!(
        manual.contains("keep") && manual.contains(".TH"),
        "{manual}"
    );
    // Installing it again is an upgrade: what was configured stays, and the agent comes back.
    machine.ok(&[
        "sh",
        "-ec",
        "echo MEZCAL_LOG=debug >> /etc/default/mezcal-agent; dpkg -i /root/mezcal-agent_*.deb 2>&1",
    ]);
    assert!(
        machine
            .ok(&["cat", "/etc/default/mezcal-agent"])
            .contains("MEZCAL_LOG=debug")
    );
    site.wait_ready(1);
    let key = machine.path("/var/lib/mezcal-agent/pki/key.pem");
    assert!(key.exists());
    machine.ok(&["sh", "-ec", "dpkg -r mezcal-coordinator mezcal-agent 2>&1"]);
    assert!(
        key.exists(),
        "a removal keeps what a later installation needs"
    );
    assert_eq!(
        text(&machine.exec(&["pgrep", "mezcal"]).stdout),
        "",
        "nothing of it runs"
    );
    machine.ok(&["sh", "-ec", "dpkg -P mezcal-coordinator mezcal-agent 2>&1"]);
    assert!(
        !key.exists() && !machine.path("/etc/mezcal").exists(),
        "a purge takes keys and configuration"
    );
}

/// Makes RPM packages as of version 0.1, with the programs of a build.
const OLD_RPMS: &str = r#"
cd "$1"; mkdir -p old/files
strip -o old/files/mezcal-agent "$2/agent"
strip -o old/files/coordinator "$2/coordinator"
strip -o old/files/mezcal-certs "$2/certs"
cat > old/spec <<X
Name: mezcal
Version: 0.0.1
Release: 1
Summary: Old
License: MIT
%description
Old.
%package -n mezcal-agent
Summary: Old
%description -n mezcal-agent
Old.
%package -n mezcal-coordinator
Summary: Old
%description -n mezcal-coordinator
Old.
%install
mkdir -p %{buildroot}/usr/bin
cp $PWD/old/files/* %{buildroot}/usr/bin/
%files -n mezcal-agent
/usr/bin/mezcal-agent
%files -n mezcal-coordinator
/usr/bin/coordinator
/usr/bin/mezcal-certs
X
rpmbuild --quiet -bb --define "_topdir $PWD/old/build" --define "_rpmdir $PWD/old" --define "__os_install_post %{nil}" \
    --define "debug_package %{nil}" --define "_build_id_links none" --define "_binary_payload w1.gzdio" old/spec
mv old/*/mezcal-*.rpm old/
"#;

#[test]
fn an_rpm_brings_everything_and_its_erasure_keeps_the_keys() {
    let Some(site) = Installed::with("RPM packages", 1, false) else {
        return;
    };
    let machine = &site.machines[0];
    if !Path::new("/usr/bin/rpmbuild").exists() {
        return mezcal_tests::say_skipped("RPM packages: they need rpmbuild");
    }
    let made = script("rpm.sh")
        .arg(machine.path("/root"))
        .output()
        .expect("it starts");
    assert!(made.status.success(), "{}", text(&made.stderr));
    // Debian's libraries are there, which RPM does not know.
    let rpm = |how: &str, files: &str| {
        machine.ok(&[
            "sh",
            "-ec",
            &format!("rpm {how} --force-debian --nodeps /root/{files}mezcal-*.rpm 2>&1"),
        ])
    };
    // Three programs, as in version 0.1.
    let old = Command::new("sh")
        .args(["-ec", OLD_RPMS, "sh"])
        .arg(machine.path("/root"))
        .arg(program("mezcal").parent().expect("a directory"))
        .output()
        .expect("it starts");
    assert!(old.status.success(), "{}", text(&old.stderr));
    rpm("-i", "old/");
    assert!(!machine.path("/usr/bin/mezcal").exists());
    rpm("-U", "");
    has_everything(machine);
    site.join(1);
    site.wait_ready(1);
    machine.ok(&[
        "sh",
        "-ec",
        "echo MEZCAL_LOG=debug >> /etc/default/mezcal-agent",
    ]);
    let pid = || machine.ok(&["systemctl", "show", "-P", "MainPID", "mezcal-agent.service"]);
    let before = pid();
    rpm("-U --force", "");
    assert!(
        machine
            .ok(&["cat", "/etc/default/mezcal-agent"])
            .contains("MEZCAL_LOG=debug"),
        "what was configured stays"
    );
    assert_ne!(pid(), before, "the new version has taken over");
    site.wait_ready(1);
    machine.ok(&[
        "sh",
        "-ec",
        "rpm -e --nodeps mezcal-coordinator mezcal-agent 2>&1",
    ]);
    assert_eq!(
        text(&machine.exec(&["pgrep", "mezcal"]).stdout),
        "",
        "nothing of it runs"
    );
    assert!(
        machine.path("/var/lib/mezcal-agent/pki/key.pem").exists()
            && ["mezcal", "mezcal-agent", "coordinator"]
                .iter()
                .all(|name| !machine.path(&format!("/usr/bin/{name}")).exists())
    );
}

/// The setting of the article: an account without root on hosts that share one home.
#[test]
fn hosts_that_share_a_home_are_provisioned_without_root() {
    let Some(mut site) =
        Installed::sharing("provisioning without root", 3, false, Some("/home/shared"))
    else {
        return;
    };
    if !Path::new("/usr/sbin/sshd").exists() {
        return mezcal_tests::say_skipped(
            "provisioning without root: it needs sshd (package openssh-server)",
        );
    }
    ssh_config(&site);
    let home = site.dir.path().join("home");
    std::fs::create_dir_all(home.join(".ssh")).expect("made");
    std::fs::copy(
        site.dir.path().join("id.pub"),
        home.join(".ssh/authorized_keys"),
    )
    .expect("written");
    for machine in &site.machines {
        machine.ok(&[
            "useradd",
            "-M",
            "-d",
            "/home/shared",
            "-u",
            "2001",
            "-s",
            "/bin/bash",
            "okazaki",
        ]);
        machine.ok(&[
            "sh",
            "-ec",
            "chown -R okazaki: /home/shared; chmod 700 /home/shared/.ssh",
        ]);
    }
    let config =
        std::fs::read_to_string(site.dir.path().join("ssh_config")).expect("a configuration");
    std::fs::write(
        site.dir.path().join("ssh_config"),
        config.replace("User root", "User okazaki"),
    )
    .expect("written");
    let ssh = format!("ssh -F {}", site.dir.path().join("ssh_config").display());
    let packed = script("pack.sh")
        .arg(site.dir.path())
        .output()
        .expect("it starts");
    let archive = text(&packed.stdout).trim().to_owned();
    // One of them has no service that an account could use to have a program started.
    site.machines[2].ok(&["rm", "-f", "/usr/bin/loginctl", "/usr/bin/crontab"]);
    let provision = || {
        site.run(
            "admin",
            &[
                "provision",
                "mezcal[01-03]",
                "--ssh",
                &ssh,
                "--archive",
                &archive,
                "--home",
                "--slots",
                "1",
            ],
        )
    };
    let out = provision();
    assert!(
        out.status.success(),
        "{}{}",
        text(&out.stdout),
        text(&out.stderr)
    );
    let (with, without) = ("starts at boot", "does not come back after a reboot");
    let steps = text(&out.stderr);
    let said = |host: &str, what: &str| {
        steps
            .lines()
            .any(|line| line.starts_with(host) && line.contains(what))
    };
    assert!(
        said("mezcal01", with) && said("mezcal02", with) && said("mezcal03", without),
        "{steps}"
    );
    site.wait_ready(3);
    // The ssh sessions have ended, and the agents run on, each with a key of its own in the shared
    // home.
    let keys: std::collections::BTreeSet<String> = (1..=3)
        .map(|n| {
            let path = home.join(format!(
                ".local/state/mezcal-agent/{}/pki/key.pem",
                host_name(n)
            ));
            std::fs::read_to_string(path).expect("a key for each host")
        })
        .collect();
    assert_eq!(keys.len(), 3);
    let out = site.run(
        "okazaki",
        &[
            "exec",
            "--all",
            "--cd",
            "/",
            "--",
            "sh",
            "-c",
            "id -un; hostname",
        ],
    );
    assert!(
        out.status.success() && text(&out.stdout).matches("okazaki").count() == 3,
        "{}{}",
        text(&out.stdout),
        text(&out.stderr)
    );
    let again = provision();
    assert!(
        again.status.success() && text(&again.stdout).matches("nothing to do").count() == 3,
        "{}{}",
        text(&again.stdout),
        text(&again.stderr)
    );
    // An agent of version 0.1, a separate file, is replaced by the installed one.
    let old = home.join(".local/lib/mezcal/0123456789abcdef");
    std::fs::create_dir_all(&old).expect("made");
    std::fs::copy(program("agent"), old.join("agent")).expect("copied");
    let at_home = |script: &str| {
        site.machines[1].ok(&[
            "runuser",
            "-u",
            "okazaki",
            "--",
            "env",
            "HOME=/home/shared",
            "sh",
            "-ec",
            &format!(
                "cd; o=$HOME/.local/lib/mezcal/0123456789abcdef/agent; eval \"$($o paths)\"; {script}"
            ),
        ])
    };
    site.machines[1].ok(&["chown", "-R", "okazaki:", "/home/shared/.local/lib/mezcal"]);
    at_home(
        "p=$(cat \"$lock\"); kill -KILL $p; while kill -0 $p 2>/dev/null; do sleep 0.02; done; setsid -f $o run --config \"$config\" > /dev/null 2>&1 < /dev/null",
    );
    let running = || at_home("readlink /proc/$(cat \"$lock\")/exe || :");
    wait_for("the old agent runs", PATIENCE, || {
        running().ends_with("0123456789abcdef/agent").then_some(())
    });
    let upgraded = provision();
    assert!(
        upgraded.status.success()
            && text(&upgraded.stdout)
                .lines()
                .any(|row| row.starts_with("mezcal02") && row.ends_with("started")),
        "{}{}",
        text(&upgraded.stdout),
        text(&upgraded.stderr)
    );
    assert!(running().ends_with("/mezcal"), "{}", running());
    site.machines[0].crash();
    wait_for("it is gone", PATIENCE, || {
        site.ok("admin", &["hosts", "--json"])
            .contains("\"connected\":false")
            .then_some(())
    });
    let Installed { machines, lab, .. } = &mut site;
    machines[0].boot_again(lab);
    site.wait_ready(3);
}

#[test]
fn a_user_with_a_program_for_engines_harms_nobody_else() {
    let Some(site) = Installed::new("a hostile user", 1) else {
        return;
    };
    let machine = site.join(1);
    machine.ok(&[
        "systemctl",
        "enable",
        "--now",
        "mezcal-engines@sato.service",
    ]);
    machine.ok(&[
        "systemctl",
        "disable",
        "--now",
        "mezcal-engines@okazaki.service",
    ]);
    site.wait_ready(1);
    // Root has enabled engines for okazaki, who has put another program in their place.
    std::fs::copy(
        program("false_keeper"),
        machine.path("/usr/local/bin/false_keeper"),
    )
    .expect("copied");
    let dir = "/run/mezcal/engines/okazaki";
    machine.ok(&[
        "install",
        "-d",
        "-o",
        "okazaki",
        "-g",
        "mezcal-agent",
        "-m",
        "2710",
        dir,
    ]);
    let unit = "--unit=false-keeper";
    let socket = format!("{dir}/sock");
    machine.ok(&[
        "systemd-run",
        "-q",
        unit,
        "--uid=okazaki",
        "--gid=mezcal-agent",
        "false_keeper",
        &socket,
        "/home/okazaki/heard",
    ]);
    let heard = || std::fs::read_to_string(machine.path("/home/okazaki/heard")).unwrap_or_default();
    let wish = |what: &str| {
        machine.feed(
            &[
                "setpriv",
                "--reuid=okazaki",
                "--clear-groups",
                "tee",
                &format!("{dir}/sock.wish"),
            ],
            what,
        )
    };
    // okazaki's engines may handle okazaki's own jobs as they like, and learn from them the
    // numbering of other users' jobs.
    std::fs::write(
        site.dir.path().join("okazaki.json"),
        "{\"cmd\": \"true\"}\n",
    )
    .expect("written");
    site.ok("okazaki", &["run", "--cd", "/", "okazaki.json", "-q"]);
    assert!(heard().contains("was given 1.1"), "{}", heard());

    // sato's jobs keep both slots busy, and record their times and environment.
    const JOBS: usize = 90;
    let job = "{\"cmd\": \"echo $(date +%s.%N) $MEZCAL_JOB_ID $MEZCAL_ATTEMPT >> ~/times; sleep 1; echo $HUNTER\", \"env\": {\"HUNTER\": \"marigold\"}}\n";
    std::fs::write(site.dir.path().join("sato.json"), job.repeat(JOBS)).expect("written");
    let batch = site.ok(
        "sato",
        &[
            "run",
            "--detach",
            "--cd",
            "/",
            "--name",
            "oleander",
            "sato.json",
        ],
    );
    let times = || std::fs::read_to_string(machine.path("/home/sato/times")).unwrap_or_default();
    wait_for("sato's jobs run", PATIENCE, || {
        (times().lines().count() > 2).then_some(())
    });
    let ready = || {
        site.ok("admin", &["hosts", "--json"])
            .contains("\"ready\":true")
    };
    // Each for the length of a few jobs.
    let for_a_while = |what: &str, restart: bool| {
        let begun = times().lines().count();
        assert!(wish(what).status.success());
        if restart {
            machine.ok(&["systemctl", "restart", "mezcal-agent.service"]);
        }
        let mut last = std::time::Instant::now();
        wait_for(what, PATIENCE, || {
            if ready() {
                last = std::time::Instant::now();
            }
            assert!(
                last.elapsed() < Duration::from_secs(5),
                "{what}: the host is not ready"
            );
            (times().lines().count() >= begun + 12).then_some(())
        });
    };
    for_a_while("forge", false);
    for_a_while("steal", false);
    for_a_while("silent", true);
    for_a_while("forge", true);
    for_a_while("broken", false);
    site.ok("sato", &["wait", &batch]);
    let results = site.ok("sato", &["results", &batch]);
    assert_eq!(
        results.matches("\"stdout_tail\": \"marigold\\n\"").count(),
        JOBS,
        "{results}"
    );
    assert!(!results.contains("forged"), "{results}");
    let times = times();
    let mut starts: Vec<f64> = times
        .lines()
        .filter_map(|line| line.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(starts.len(), JOBS, "each ran once: {times}");
    assert!(
        times.lines().all(|line| line.ends_with(" 1")),
        "as a first attempt: {times}"
    );
    starts.sort_by(f64::total_cmp);
    let longest = starts
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .fold(0.0, f64::max);
    eprintln!("longest time between two starts of sato's jobs: {longest:.2} s");
    assert!(
        longest < 1.0 + 5.0,
        "a job was delayed: {longest} s between two starts"
    );
    let heard = heard();
    assert!(heard.contains("forging 5"), "it has tried: {heard}");
    for secret in [
        "marigold",
        "oleander",
        "sato",
        "HUNTER",
        "of another set was told",
    ] {
        assert!(
            !heard.contains(secret),
            "okazaki's program has heard {secret}: {heard}"
        );
    }
    // Its actions were logged, and it had no effect on other users' jobs.
    let journal = machine.ok(&[
        "journalctl",
        "--no-pager",
        "-o",
        "cat",
        "-u",
        "mezcal-agent.service",
    ]);
    assert!(journal.contains("it names engine 2 and has 2"), "{journal}");
    assert!(
        journal.contains("reports on an attempt that it was not given"),
        "{journal}"
    );
    machine.ok(&["systemctl", "stop", "false-keeper.service"]);
}
