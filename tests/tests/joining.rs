//! Joining by tokens, and the later life of certificates: real programs, real certificates.

use mezcal_common::model::identity::Identity;
use mezcal_common::model::token::Token;
use mezcal_common::wire::codec;
use mezcal_common::wire::enrol::{FromEnroller, ToEnroller};
use mezcal_tests::cluster::free_port;
use mezcal_tests::programs::program;
use mezcal_tests::wait_for;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator with an issuer, and an admin whose certificate comes from `certs issue`.
struct Site {
    dir: tempfile::TempDir,
    port: u16,
    enrol: u16,
    coordinator: Option<Child>,
    agents: Vec<Child>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Site {
    fn new(life: &str) -> Self {
        let me = Self {
            dir: tempfile::tempdir().expect("a directory"),
            port: free_port(),
            enrol: free_port(),
            coordinator: None,
            agents: vec![],
        };
        let here = me.dir.path().display().to_string();
        me.ok("certs", &["init", "pki", "--cluster", "mezcal"]);
        me.ok("certs", &["issue", "coordinator", "--dir", "pki"]);
        me.ok("certs", &["issue", "issuer", "--dir", "pki"]);
        me.ok("certs", &["issue", "user", "admin", "--dir", "pki"]);
        let config = format!(
            "listen = \"127.0.0.1:{}\"\nenrol = \"127.0.0.1:{}\"\nidentity = \"{here}/pki/coordinator\"\nissuer = \"{here}/pki/issuer\"\n\
             state = \"{here}/state\"\nadmins = [\"admin\"]\ncertificate_life = \"{life}\"\n",
            me.port, me.enrol
        );
        std::fs::write(me.path("serve.toml"), config).expect("written");
        std::fs::create_dir_all(me.path("config/mezcal/profiles")).expect("made");
        let profile = format!(
            "coordinator = \"127.0.0.1:{}\"\nidentity = \"{here}/pki/users/admin\"\n",
            me.port
        );
        std::fs::write(me.path("config/mezcal/profiles/admin.toml"), profile).expect("written");
        me
    }

    fn started(life: &str) -> Self {
        let mut me = Self::new(life);
        me.ok(
            "coordinator",
            &[
                "certs",
                "import",
                "pki/issued.jsonl",
                "--config",
                "serve.toml",
            ],
        );
        me.start();
        me
    }

    fn start(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("coordinator.log"))
            .expect("a log");
        let before = self.log().matches("listens").count();
        let mut command = self.command("coordinator", &["serve", "--config", "serve.toml"]);
        self.coordinator = Some(
            command
                .stdin(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("it starts"),
        );
        wait_for("it listens", PATIENCE, || {
            (self.log().matches("listens").count() > before).then_some(())
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("coordinator.log")).unwrap_or_default()
    }

    fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program(name));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env_remove("MEZCAL_PROFILE");
        command
    }

    fn run(&self, name: &str, args: &[&str], input: &str) -> Output {
        let mut child = self
            .command(name, args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        // A command that has already refused does not read its input.
        let _ = child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(input.as_bytes());
        child.wait_with_output().expect("it ends")
    }

    fn ok(&self, name: &str, args: &[&str]) -> String {
        let out = self.run(name, args, "");
        assert!(
            out.status.success(),
            "{name} {args:?}: {}",
            text(&out.stderr)
        );
        text(&out.stdout)
    }

    fn token(&self, args: &[&str]) -> String {
        let all: Vec<&str> = ["token", "create", "-p", "admin"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        self.ok("coordinator", &all).trim().to_owned()
    }

    fn enrol_address(&self) -> String {
        format!("127.0.0.1:{}", self.enrol)
    }

    /// `agent join` of a host with this name, which stores its files in a directory with this name.
    fn join(&self, host: &str, token: &str) -> Output {
        let (config, identity) = (
            format!("{host}/agent.toml"),
            format!("{}/pki", self.path(host).display()),
        );
        let address = self.enrol_address();
        let args = [
            "join",
            &address,
            "--token-file",
            "-",
            "--config",
            &config,
            "--identity",
            &identity,
            "--name",
            host,
            "--json",
        ];
        self.run("agent", &args, token)
    }

    fn start_agent(&mut self, host: &str) {
        self.configure_agent(host);
        self.start_agent_of(host, &program("agent"));
    }

    fn configure_agent(&self, host: &str) {
        let mut file = std::fs::File::options()
            .append(true)
            .open(self.path(&format!("{host}/agent.toml")))
            .expect("joined");
        let run = self.path(&format!("{host}/run"));
        writeln!(
            file,
            "allow_root_jobs = true\nruntime = \"{}\"",
            run.display()
        )
        .expect("written");
    }

    /// Starts this agent program for a host that has joined and is configured.
    fn start_agent_of(&mut self, host: &str, agent: &Path) {
        let config = self.path(&format!("{host}/agent.toml"));
        let log = std::fs::File::create(self.path(&format!("{host}.log"))).expect("a log");
        let mut command = Command::new(agent);
        command
            .args(["run", "--config", &config.display().to_string()])
            .current_dir(self.dir.path());
        self.agents.push(
            command
                .stdin(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("it starts"),
        );
    }

    fn stop_agents(&mut self) {
        for mut child in self.agents.drain(..) {
            mezcal_tests::signal(child.id() as i32, libc::SIGTERM);
            let _ = child.wait();
        }
    }

    fn connected(&self) -> Vec<String> {
        let hosts = self.ok("coordinator", &["hosts", "-p", "admin", "--json"]);
        let hosts = hosts
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        hosts
            .filter(|h| h["ready"] == true)
            .map(|h| h["name"].as_str().expect("a name").to_owned())
            .collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let states = mezcal_tests::states_below(self.dir.path());
            eprintln!("--- processes\n{states}");
        }
        for child in self.agents.iter_mut().chain(&mut self.coordinator) {
            mezcal_tests::signal(child.id() as i32, libc::SIGTERM);
            let _ = child.wait();
        }
        for pid in mezcal_tests::alive_with(&self.dir.path().display().to_string()) {
            mezcal_tests::signal(pid, libc::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("--- coordinator.log\n{}", self.log());
            if let Ok(log) = std::fs::read_to_string(self.path("run.log")) {
                eprintln!("--- run.log\n{log}");
            }
        }
    }
}

#[test]
fn hosts_and_users_join_by_tokens_and_run_jobs() {
    let mut site = Site::started("1h");
    assert!(
        !site.log().contains("can join"),
        "without tokens the port is closed"
    );
    let out = site.ok(
        "coordinator",
        &[
            "token",
            "create",
            "-p",
            "admin",
            "--host",
            "mezcal[01-02].lab",
            "--json",
        ],
    );
    let tokens: Vec<serde_json::Value> = out
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(
        tokens
            .iter()
            .map(|t| t["host"].as_str().expect("a host"))
            .collect::<Vec<_>>(),
        ["mezcal01.lab", "mezcal02.lab"]
    );
    for token in &tokens {
        let (host, token) = (
            token["host"].as_str().expect("a host"),
            token["token"].as_str().expect("a token"),
        );
        let out = site.join(host, token);
        assert!(out.status.success(), "{}", text(&out.stderr));
        let said: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
        assert_eq!(
            (said["host"].as_str(), said["joined"].as_bool()),
            (Some(host), Some(true))
        );
        let key = std::fs::metadata(site.path(host).join("pki/key.pem")).expect("a key");
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777,
            0o600
        );
        // Repeated, it does nothing, and needs no token.
        let again = site.join(host, "no token");
        assert!(
            again.status.success() && text(&again.stdout).contains("\"joined\":false"),
            "{}",
            text(&again.stderr)
        );
        site.start_agent(host);
    }
    wait_for("both hosts are there", PATIENCE, || {
        (site.connected().len() == 2).then_some(())
    });
    wait_for("the port is closed again", PATIENCE, || {
        site.log()
            .contains("nobody can join any more")
            .then_some(())
    });

    let token = site.token(&["--user", "okazaki"]);
    let address = site.enrol_address();
    let out = site.run(
        "coordinator",
        &["join", &address, "--token-file", "-", "-p", "mezcal"],
        &token,
    );
    assert!(out.status.success(), "{}", text(&out.stderr));
    std::fs::write(
        site.path("jobs.json"),
        "{\"cmd\": \"echo $MEZCAL_HOST\", \"host\": \"mezcal02\"}\n",
    )
    .expect("written");
    let out = site.ok("coordinator", &["run", "-p", "mezcal", "jobs.json"]);
    assert!(
        out.contains("\"stdout_tail\": \"mezcal02.lab\\n\""),
        "{out}"
    );
    let list = site.ok("coordinator", &["certs", "list", "-p", "admin"]);
    assert!(
        list.contains("mezcal01.lab") && list.contains("okazaki") && list.contains("admin"),
        "{list}"
    );
    let list = site.ok("coordinator", &["token", "list", "-p", "admin"]);
    assert_eq!(list.matches("used 20").count(), 3, "{list}");
    assert!(!list.contains("mz1"), "secrets are seen once");
    let denied = site.run("coordinator", &["token", "list", "-p", "mezcal"], "");
    assert!(
        denied.status.code() == Some(2) && text(&denied.stderr).contains("only an admin"),
        "{}",
        text(&denied.stderr)
    );
}

/// Whether the command lines and environments of processes, which all users of the host and their
/// own user can see, contain this secret.
fn seen_in_proc(secret: &[u8]) -> bool {
    let pids = std::fs::read_dir("/proc")
        .expect("procfs")
        .flatten()
        .map(|e| e.path());
    let files = pids.flat_map(|dir| [dir.join("cmdline"), dir.join("environ")]);
    files
        .filter_map(|file| std::fs::read(file).ok())
        .any(|text| text.windows(secret.len()).any(|part| part == secret))
}

/// Files below a directory that contain this secret.
fn with_in_it(dir: &Path, secret: &[u8]) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir)
        .expect("readable")
        .flatten()
        .map(|e| e.path());
    let below = entries.flat_map(|path| {
        if path.is_dir() {
            with_in_it(&path, secret)
        } else {
            vec![path]
        }
    });
    let has = |path: &PathBuf| {
        std::fs::read(path).is_ok_and(|text| text.windows(secret.len()).any(|part| part == secret))
    };
    below.filter(has).collect()
}

#[test]
fn what_can_fail_here_fails_before_the_token_is_spent() {
    let site = Site::started("1h");
    let address = site.enrol_address();
    // A user whose home is new: it is empty, without even `.config`.
    let token = site.token(&["--user", "okazaki"]);
    let join = |home: &str, more: &[&str], token: &str| {
        let mut command = site.command("coordinator", &["join", &address, "--token-file", "-"]);
        command
            .args(more)
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", site.path(home))
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let _ = child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(token.as_bytes());
        child.wait_with_output().expect("it ends")
    };
    // Homes in which a certificate cannot be stored.
    let obstacles = [
        "none/.config/mezcal/default/",
        "profiles/.config/mezcal/profiles/default.toml",
    ];
    std::fs::create_dir_all(site.path("none/.config/mezcal")).expect("made");
    std::fs::write(site.path("none/.config/mezcal/default"), "a file").expect("written");
    std::fs::create_dir_all(site.path("profiles/.config/mezcal/profiles")).expect("made");
    std::fs::write(
        site.path("profiles/.config/mezcal/profiles/default.toml"),
        "coordinator = [\n",
    )
    .expect("written");
    for obstacle in obstacles {
        let home = obstacle.split_once('/').expect("a home").0;
        let out = join(home, &[], &token);
        let said = text(&out.stderr);
        assert!(
            out.status.code() == Some(2) && said.contains(obstacle.trim_end_matches('/')),
            "{said}"
        );
    }
    let out = join("fresh", &["-p", "../x"], &token);
    assert!(
        out.status.code() == Some(2) && text(&out.stderr).contains("name of a profile"),
        "{}",
        text(&out.stderr)
    );
    // A user's token is not a host's.
    let out = site.join("h1", &token);
    let said = text(&out.stderr);
    assert!(
        out.status.code() == Some(3)
            && said.contains("for the user okazaki")
            && said.contains("coordinator join"),
        "{said}"
    );
    std::fs::create_dir(site.path("fresh")).expect("made");
    let out = join("fresh", &[], &token);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let mut hosts = site.command("coordinator", &["hosts"]);
    let hosts = hosts
        .env_remove("XDG_CONFIG_HOME")
        .env("HOME", site.path("fresh"))
        .output()
        .expect("it runs");
    assert!(hosts.status.success(), "{}", text(&hosts.stderr));
    // The port for joining is open while there are tokens.
    let next = site.token(&["--host", "h1"]);
    let again = join("second", &[], &token);
    assert!(
        text(&again.stderr).contains("has been used"),
        "it was spent once: {}",
        text(&again.stderr)
    );

    // A host whose directories are in the way.
    let token = next;
    std::fs::create_dir_all(site.path("h1")).expect("made");
    std::fs::write(site.path("h1/pki"), "a file").expect("written");
    let out = site.join("h1", &token);
    assert!(
        out.status.code() == Some(2) && text(&out.stderr).contains("h1/pki"),
        "{}",
        text(&out.stderr)
    );
    std::fs::remove_file(site.path("h1/pki")).expect("removed");
    let out = site.run(
        "coordinator",
        &["join", &address, "--token-file", "-", "-p", "h1"],
        &token,
    );
    assert!(
        out.status.code() == Some(3) && text(&out.stderr).contains("for the host h1"),
        "{}",
        text(&out.stderr)
    );
    let out = site.join("h1", &token);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn root_imports_certificates_as_the_owner_of_the_store() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    if !rustix::process::geteuid().is_root() {
        return mezcal_tests::say_skipped(
            "root_imports_certificates_as_the_owner_of_the_store: not root",
        );
    }
    let site = Site::new("1h");
    std::fs::set_permissions(site.dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    for dir in ["state", "victim"] {
        std::fs::create_dir(site.path(dir)).expect("made");
    }
    chown(site.path("state"), Some(5005), Some(5060)).expect("chown");
    let import = || {
        site.run(
            "coordinator",
            &[
                "certs",
                "import",
                "pki/issued.jsonl",
                "--config",
                "serve.toml",
            ],
            "",
        )
    };
    symlink(site.path("victim/made"), site.path("state/store.db")).expect("made");
    let out = import();
    assert!(!out.status.success(), "{}", text(&out.stderr));
    assert!(
        !site.path("victim/made").exists(),
        "nothing was made where the link leads"
    );
    std::fs::remove_file(site.path("state/store.db")).expect("removed");
    let out = import();
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(
        std::fs::metadata(site.path("state/store.db"))
            .expect("there")
            .uid(),
        5005
    );
}

/// Runs under `unshare`: adds the account that installed agents have, which may be missing on this
/// machine.
fn with_the_agents_account(command: &mut Command, dir: &Path) {
    let mut passwd = std::fs::read_to_string("/etc/passwd").expect("readable");
    passwd.retain(|c| c != '\r');
    let lines: String = passwd
        .lines()
        .filter(|line| !line.starts_with("mezcal-agent:"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(
        dir.join("passwd"),
        lines + "mezcal-agent:x:5005:5060::/nonexistent:/bin/false\n",
    )
    .expect("written");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            "mount --bind \"$1\" /etc/passwd && shift && exec \"$@\"",
            "sh",
        ])
        .arg(dir.join("passwd"));
}

#[test]
fn root_joins_through_no_link_of_the_agents_account() {
    use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
    if !rustix::process::geteuid().is_root() {
        return mezcal_tests::say_skipped(
            "root_joins_through_no_link_of_the_agents_account: not root",
        );
    }
    let site = Site::started("1h");
    let (state, victim) = (site.path("state-of-agent"), site.path("victim"));
    for dir in [&state, &victim] {
        std::fs::create_dir(dir).expect("made");
    }
    chown(&state, Some(5005), Some(5060)).expect("chown");
    symlink(&victim, state.join("pki")).expect("made");
    lchown(state.join("pki"), Some(5005), Some(5060)).expect("lchown");
    let token = site.token(&["--host", "h1"]);
    let join = || {
        let mut command = Command::new("unshare");
        with_the_agents_account(&mut command, site.dir.path());
        command.arg(program("agent")).args([
            "join",
            &site.enrol_address(),
            "--token-file",
            "-",
            "--name",
            "h1",
            "--force",
        ]);
        command.args(["--config", &site.path("root.toml").display().to_string()]);
        command
            .args(["--identity", &state.join("pki").display().to_string()])
            .current_dir(site.dir.path());
        let mut child = command
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let _ = child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(token.as_bytes());
        child.wait_with_output().expect("it ends")
    };
    let out = join();
    let said = text(&out.stderr);
    assert!(
        out.status.code() == Some(2)
            && said.contains("is a link that mezcal-agent (uid 5005) has made"),
        "{said}"
    );
    let owner = |path: &Path| std::fs::symlink_metadata(path).expect("there").uid();
    assert_eq!(
        (
            owner(&victim),
            std::fs::read_dir(&victim).expect("readable").count()
        ),
        (0, 0),
        "nothing happened to what it leads to"
    );
    // A link deeper down: the directory is theirs, and so are the files in it.
    std::fs::remove_file(state.join("pki")).expect("removed");
    std::fs::create_dir(state.join("pki")).expect("made");
    std::fs::write(victim.join("file"), "untouched").expect("written");
    for name in ["key.pem", "key.pem.new", "cert.pem", "ca.pem.new"] {
        symlink(victim.join("file"), state.join("pki").join(name)).expect("made");
    }
    let out = join();
    assert!(
        out.status.success(),
        "the token is still good: {}",
        text(&out.stderr)
    );
    assert_eq!(
        (
            owner(&victim.join("file")),
            std::fs::read_to_string(victim.join("file")).expect("there")
        ),
        (0, "untouched".into())
    );
    for path in ["", "key.pem", "cert.pem", "ca.pem"].map(|name| state.join("pki").join(name)) {
        let meta = std::fs::symlink_metadata(&path).expect("there");
        assert_eq!(
            (meta.uid(), meta.gid(), meta.is_symlink()),
            (5005, 5060, false),
            "{}",
            path.display()
        );
    }
    assert_eq!(owner(&site.path("root.toml")), 0);
}

#[test]
fn secrets_are_in_no_command_line_no_log_and_no_store() {
    let mut site = Site::started("1h");
    let token = site.token(&["--host", "mezcal01.lab"]);
    // The secret's last bytes: its beginning names the coordinator and the token.
    let secret = token.as_bytes()[token.len() - 16..].to_vec();
    let (looking, seen) = (
        Arc::new(AtomicBool::new(true)),
        Arc::new(AtomicBool::new(false)),
    );
    let looker = std::thread::spawn({
        let (looking, seen, secret) = (looking.clone(), seen.clone(), secret.clone());
        move || {
            let mut looks = 0;
            while looking.load(Ordering::Relaxed) {
                seen.fetch_or(seen_in_proc(&secret), Ordering::Relaxed);
                looks += 1;
            }
            looks
        }
    });
    assert!(site.join("mezcal01.lab", &token).status.success());
    site.start_agent("mezcal01.lab");
    wait_for("it is there", PATIENCE, || {
        (site.connected().len() == 1).then_some(())
    });
    looking.store(false, Ordering::Relaxed);
    assert!(looker.join().expect("it looks") > 0);
    assert!(!seen.load(Ordering::Relaxed), "in /proc");
    assert_eq!(with_in_it(site.dir.path(), &secret), Vec::<PathBuf>::new());
    // The search does find secrets.
    std::fs::write(site.path("secret"), &secret).expect("written");
    assert_eq!(with_in_it(site.dir.path(), &secret), [site.path("secret")]);
    let mut told = Command::new("sleep")
        .arg("60")
        .env("SECRET", text(&secret))
        .spawn()
        .expect("it starts");
    wait_for("it is seen", PATIENCE, || {
        seen_in_proc(&secret).then_some(())
    });
    let _ = told.kill();
    let _ = told.wait();
}

/// Each certificate of the host in its directory, by its text.
fn certificate_of(site: &Site, host: &str) -> String {
    std::fs::read_to_string(site.path(&format!("{host}/pki/cert.pem"))).expect("a certificate")
}

#[test]
fn a_token_to_replace_an_identity_replaces_it_and_any_other_leaves_it() {
    let site = Site::started("1h");
    let host = "mezcal01.lab";
    assert!(
        site.join(host, &site.token(&["--host", host]))
            .status
            .success()
    );
    let first = certificate_of(&site, host);
    let stays = |token: &str, why: &str| {
        let out = site.join(host, token);
        let (said, told) = (text(&out.stderr), text(&out.stdout));
        assert!(
            out.status.success() && told.contains("\"joined\":false") && said.contains(why),
            "{said}{told}"
        );
        assert_eq!(certificate_of(&site, host), first);
    };
    // A token that was deleted, one for a host that is new, and a coordinator that does not answer.
    stays("", "");
    stays(
        &site.token(&["--host", host]),
        "mezcal01.lab has joined already",
    );
    let replacement = site.token(&["--host", host, "--replace"]);
    let out = site.join(host, &replacement);
    assert!(
        out.status.success() && text(&out.stdout).contains("\"joined\":true"),
        "{}",
        text(&out.stderr)
    );
    assert_ne!(certificate_of(&site, host), first);
    let counts = site.ok("coordinator", &["certs", "list", "-p", "admin", "--json"]);
    let counts = counts
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    assert_eq!(
        counts
            .filter(|c| c["host"] == host && c["revoked"].is_null())
            .count(),
        1,
        "the first one counts no more"
    );
}

#[test]
fn a_host_is_called_by_its_short_or_its_full_name() {
    let mut site = Site::started("1h");
    let token = site.token(&["--host", "mezcal01.lab"]);
    assert!(site.join("mezcal01.lab", &token).status.success());
    site.start_agent("mezcal01.lab");
    wait_for("it is there", PATIENCE, || {
        (site.connected().len() == 1).then_some(())
    });
    site.ok("coordinator", &["drain", "-p", "admin", "mezcal01"]);
    site.ok("coordinator", &["undrain", "-p", "admin", "mezcal01.lab"]);
    assert_eq!(
        site.ok(
            "coordinator",
            &["exec", "-p", "admin", "mezcal01", "--", "echo", "here"]
        )
        .trim(),
        "mezcal01: here"
    );
    let said = site.ok("coordinator", &["revoke", "-p", "admin", "mezcal01"]);
    assert!(
        said.starts_with("host mezcal01.lab: 1 certificate was revoked; 1 connection has ended"),
        "{said}"
    );
    site.ok("coordinator", &["confirm-dead", "-p", "admin", "mezcal01"]);
    // A token for a known name is that host's, however the name is written.
    let listed = site.ok(
        "coordinator",
        &[
            "token",
            "create",
            "-p",
            "admin",
            "--host",
            "mezcal01",
            "--replace",
            "--json",
        ],
    );
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["host"], "mezcal01.lab");
    let out = site.join("mezcal01.lab", listed["token"].as_str().expect("a token"));
    assert!(out.status.success(), "{}", text(&out.stderr));
    wait_for("it is there again", PATIENCE, || {
        (site.connected().len() == 1).then_some(())
    });
    // A full name whose short form is a known host may be a new host's.
    assert!(
        site.join("mezcal02", &site.token(&["--host", "mezcal02"]))
            .status
            .success()
    );
    let new = site.ok(
        "coordinator",
        &[
            "token",
            "create",
            "-p",
            "admin",
            "--host",
            "mezcal02.lab",
            "--json",
        ],
    );
    assert!(new.contains("\"mezcal02.lab\""), "{new}");
    let known = site.ok(
        "coordinator",
        &[
            "token",
            "create",
            "-p",
            "admin",
            "--host",
            "mezcal02.lab",
            "--replace",
            "--json",
        ],
    );
    assert!(known.contains("\"mezcal02\""), "{known}");
    // A name that may mean two hosts means neither.
    assert!(
        site.join("mezcal01.other", &site.token(&["--host", "mezcal01.other"]))
            .status
            .success()
    );
    let unclear = site.run("coordinator", &["revoke", "-p", "admin", "mezcal01"], "");
    let said = text(&unclear.stderr);
    assert!(
        unclear.status.code() == Some(2)
            && said.contains("may be any of mezcal01.lab,mezcal01.other"),
        "{said}"
    );
    site.stop_agents();
    wait_for("it is gone", PATIENCE, || {
        site.connected().is_empty().then_some(())
    });
    site.ok("coordinator", &["forget-host", "-p", "admin", "mezcal01"]);
    let kept = site.run("coordinator", &["certs", "list", "-p", "admin"], "");
    assert!(
        text(&kept.stdout).contains("mezcal01.other"),
        "{}",
        text(&kept.stdout)
    );
}

#[test]
fn what_is_revoked_is_gone_at_once_and_does_not_come_back() {
    let mut site = Site::started("1h");
    let token = site.token(&["--host", "mezcal01.lab"]);
    assert!(site.join("mezcal01.lab", &token).status.success());
    site.start_agent("mezcal01.lab");
    wait_for("it is there", PATIENCE, || {
        (site.connected().len() == 1).then_some(())
    });
    site.ok("coordinator", &["revoke", "-p", "admin", "mezcal01.lab"]);
    wait_for("its connection has ended", Duration::from_secs(2), || {
        site.connected().is_empty().then_some(())
    });
    let log = || std::fs::read_to_string(site.path("mezcal01.lab.log")).unwrap_or_default();
    wait_for("it knows why", PATIENCE, || {
        log().contains("revoked or replaced").then_some(())
    });
    assert!(site.connected().is_empty());
    // Its certificate still looks valid; a token that has been used is refused, and the message
    // says so. (Another token keeps the port open.)
    site.token(&["--host", "mezcal09.lab"]);
    let out = site.join("mezcal01.lab", &token);
    let said = text(&out.stderr);
    assert!(
        !out.status.success()
            && said.contains("not accepted any more")
            && said.contains("has been used"),
        "{said}"
    );
    // It joins again with only a token, and its agent comes back by itself.
    let out = site.join(
        "mezcal01.lab",
        &site.token(&["--host", "mezcal01.lab", "--replace"]),
    );
    assert!(
        out.status.success() && text(&out.stdout).contains("\"joined\":true"),
        "{}{}",
        text(&out.stdout),
        text(&out.stderr)
    );
    // A host that has left can be forgotten; one that is connected cannot.
    wait_for("it is there again", PATIENCE, || {
        (site.connected().len() == 1).then_some(())
    });
    let there = site.run(
        "coordinator",
        &["forget-host", "-p", "admin", "mezcal01.lab"],
        "",
    );
    assert!(
        there.status.code() == Some(2) && text(&there.stderr).contains("stop its agent"),
        "{}",
        text(&there.stderr)
    );
    site.stop_agents();
    wait_for("it is gone", PATIENCE, || {
        site.connected().is_empty().then_some(())
    });
    assert!(
        site.ok("coordinator", &["hosts", "-p", "admin"])
            .contains("mezcal01.lab")
    );
    site.ok(
        "coordinator",
        &["forget-host", "-p", "admin", "mezcal01.lab"],
    );
    assert!(
        !site
            .ok("coordinator", &["hosts", "-p", "admin"])
            .contains("mezcal01.lab")
    );
    let unknown = site.run(
        "coordinator",
        &["revoke", "-p", "admin", "mezcal07.lab"],
        "",
    );
    assert!(unknown.status.code() == Some(2) && text(&unknown.stderr).contains("mezcal07.lab"));
    // An admin loses all rights with the certificate, like any other user.
    let last = site.run(
        "coordinator",
        &["revoke", "-p", "admin", "--user", "admin"],
        "",
    );
    assert!(
        last.status.code() == Some(2) && text(&last.stderr).contains("no admin would have"),
        "{}",
        text(&last.stderr)
    );
    // The admin who does it is told.
    let said = site.ok(
        "coordinator",
        &["revoke", "-p", "admin", "--user", "admin", "--force"],
    );
    assert_eq!(
        said,
        "user admin: 1 certificate was revoked; 1 connection has ended\n"
    );
    let out = site.run("coordinator", &["hosts", "-p", "admin"], "");
    assert!(
        out.status.code() == Some(3) && text(&out.stderr).contains("revoked"),
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn a_host_that_was_revoked_or_has_not_been_seen_since_a_restart_is_shown_as_such() {
    let mut site = Site::started("1h");
    for host in ["mezcal01.lab", "mezcal02.lab"] {
        let joined = site.join(host, &site.token(&["--host", host]));
        assert!(joined.status.success(), "{}", text(&joined.stderr));
        site.start_agent(host);
    }
    wait_for("both are there", PATIENCE, || {
        (site.connected().len() == 2).then_some(())
    });
    let of = |site: &Site, host: &str| {
        let (text, all) = (
            site.ok("coordinator", &["hosts", "-p", "admin"]),
            site.ok("coordinator", &["hosts", "-p", "admin", "--json"]),
        );
        let row = text
            .lines()
            .find(|line| line.starts_with(host))
            .unwrap_or_default()
            .to_owned();
        let all = all
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        (
            row,
            all.into_iter()
                .find(|row| row["name"] == host)
                .unwrap_or_default(),
        )
    };
    let doctor = |site: &Site| {
        text(
            &site
                .run(
                    "coordinator",
                    &["doctor", "-p", "admin", "--config", "none.toml"],
                    "",
                )
                .stdout,
        )
    };
    let (_, json) = of(&site, "mezcal01.lab");
    assert!(json["seen"] == true && json["revoked"].is_null(), "{json}");
    site.ok("coordinator", &["revoke", "-p", "admin", "mezcal01.lab"]);
    wait_for("its connection has ended", PATIENCE, || {
        (site.connected() == ["mezcal02.lab"]).then_some(())
    });
    let (row, json) = of(&site, "mezcal01.lab");
    assert!(
        row.contains("revoked 2") && row.contains("; lost "),
        "{row}"
    );
    assert!(
        json["seen"] == true
            && json["revoked"]
                .as_str()
                .is_some_and(|at| at.starts_with('2')),
        "{json}"
    );
    assert!(
        doctor(&site).contains("revoked: mezcal01.lab"),
        "{}",
        doctor(&site)
    );
    let again = site.ok("coordinator", &["revoke", "-p", "admin", "mezcal01.lab"]);
    assert!(
        again.starts_with("host mezcal01.lab: was revoked already, at 2"),
        "{again}"
    );
    // A host that is absent when the coordinator is started again.
    site.stop_agents();
    site.kill_coordinator();
    site.start();
    let (row, json) = of(&site, "mezcal01.lab");
    assert!(
        row.contains("revoked 2") && row.contains("not seen since the coordinator started"),
        "{row}"
    );
    assert!(
        json["seen"] == false && !json["revoked"].is_null(),
        "{json}"
    );
    let (row, json) = of(&site, "mezcal02.lab");
    assert!(
        !row.contains("revoked") && row.contains("lost, not seen since the coordinator started"),
        "{row}"
    );
    assert!(!row.contains("0.0G"), "nothing is known of it: {row}");
    assert!(
        json["seen"] == false && json["revoked"].is_null() && json["connected"] == false,
        "{json}"
    );
    let said = doctor(&site);
    assert!(said.contains("revoked: mezcal01.lab"), "{said}");
    assert!(
        said.contains("not seen since the coordinator was started: mezcal02.lab"),
        "{said}"
    );
}

#[test]
fn hosts_that_join_one_after_the_other_each_find_the_port_open() {
    let site = Site::started("1h");
    // Each token is made in the moment in which the one before it has been used.
    for host in 1..=20 {
        let host = format!("mezcal{host:02}.lab");
        let out = site.join(&host, &site.token(&["--host", &host]));
        assert!(out.status.success(), "{host}: {}", text(&out.stderr));
    }
    assert!(!site.log().contains("ERROR"), "{}", site.log());
}

#[test]
fn who_joins_at_the_port_for_members_hears_which_one_is_right() {
    let site = Site::started("1h");
    let address = format!("127.0.0.1:{}", site.port);
    let host = site.token(&["--host", "mezcal01.lab"]);
    let (config, identity) = (site.path("agent.toml"), site.path("agent"));
    let (config, identity) = (config.display().to_string(), identity.display().to_string());
    let args = [
        "join",
        &address,
        "--token-file",
        "-",
        "--config",
        &config,
        "--identity",
        &identity,
        "--name",
        "mezcal01.lab",
    ];
    let out = site.run("agent", &args, &host);
    let right = format!(
        "nobody can join at {address}: that port is for hosts and users who have joined already; joining uses port 7434"
    );
    assert!(
        out.status.code() == Some(3) && text(&out.stderr).contains(&right),
        "{}",
        text(&out.stderr)
    );
    let user = site.token(&["--user", "sato"]);
    let out = site.run(
        "coordinator",
        &["join", &address, "--token-file", "-", "-p", "sato"],
        &user,
    );
    assert!(
        out.status.code() == Some(3) && text(&out.stderr).contains(&right),
        "{}",
        text(&out.stderr)
    );
    // Neither token is spent.
    assert!(site.join("mezcal01.lab", &host).status.success());
}

/// The agent's program as version 0.0.9: the same build with another number in each place of its
/// own.
fn of_an_earlier_version(at: &Path) {
    let (ours, earlier) = (mezcal_common::VERSION, "0.0.9");
    assert_eq!(ours.len(), earlier.len(), "numbers of the same length");
    let words = format!("s/{}/{earlier}/g", ours.replace('.', r"\."));
    let copy = std::fs::File::create(at).expect("made");
    let sed = Command::new("sed")
        .args(["-e", &words])
        .arg(program("agent"))
        .env("LC_ALL", "C")
        .stdout(copy)
        .status();
    assert!(sed.expect("sed runs").success());
    std::fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("executable");
}

#[test]
fn an_upgrade_reaches_the_engines_when_what_runs_has_ended() {
    let mut site = Site::started("1h");
    let host = "mezcal01.lab";
    assert!(
        site.join(host, &site.token(&["--host", host]))
            .status
            .success()
    );
    let config = site.path("mezcal01.lab/agent.toml");
    let mut file = std::fs::File::options()
        .append(true)
        .open(&config)
        .expect("joined");
    writeln!(file, "slots = 2").expect("written");
    site.configure_agent(host);
    let earlier = site.path("earlier-agent");
    of_an_earlier_version(&earlier);
    site.start_agent_of(host, &earlier);
    wait_for("it is there", PATIENCE, || {
        (site.connected().len() == 1).then_some(())
    });
    let run = |site: &Site, cmd: &str| {
        std::fs::write(
            site.path("jobs.json"),
            serde_json::json!({"cmd": cmd}).to_string(),
        )
        .expect("written");
        site.ok(
            "coordinator",
            &["run", "-p", "admin", "jobs.json", "--detach", "-q"],
        )
        .trim()
        .to_owned()
    };
    let first = run(
        &site,
        "echo $$ > began; until test -e go; do sleep 0.05; done",
    );
    wait_for("it runs", PATIENCE, || {
        site.path("began").exists().then_some(())
    });
    // Its keeper and engines outlive it.
    let mut old = site.agents.pop().expect("an agent");
    old.kill().expect("killed");
    let _ = old.wait();
    site.start_agent_of(host, &program("agent"));
    let hosts = |site: &Site| {
        let text = site.ok("coordinator", &["hosts", "-p", "admin"]);
        let json: serde_json::Value =
            serde_json::from_str(&site.ok("coordinator", &["hosts", "-p", "admin", "--json"]))
                .expect("JSON");
        (text, json)
    };
    let engines = |site: &Site, version: &str| {
        let (_, json) = hosts(site);
        let all = serde_json::json!([{"version": version, "count": 2}]);
        (json["ready"] == true
            && json["version"] == mezcal_common::VERSION
            && json["engines"] == all)
            .then_some(())
    };
    wait_for("the new agent has the old engines", PATIENCE, || {
        engines(&site, "0.0.9")
    });
    let (table, _) = hosts(&site);
    assert!(
        table.contains(&format!("{} (engines 0.0.9)", mezcal_common::VERSION)),
        "{table}"
    );
    let doctor = text(
        &site
            .run(
                "coordinator",
                &["doctor", "-p", "admin", "--config", "none.toml"],
                "",
            )
            .stdout,
    );
    assert!(
        doctor.contains("engines older than their agent: mezcal01.lab"),
        "{doctor}"
    );
    // One of two slots is idle, and gets no job.
    let second = run(&site, "readlink /proc/$PPID/exe");
    let status = |batch: &str| site.ok("coordinator", &["status", "-p", "admin", batch]);
    let why = site.ok(
        "coordinator",
        &["why", "-p", "admin", &format!("{second}/1")],
    );
    assert!(
        why.contains("waits") && status(&second).contains("waiting"),
        "{why}"
    );
    assert!(status(&first).contains(": running"), "{}", status(&first));
    std::fs::write(site.path("go"), "").expect("written");
    wait_for("the engines are new", PATIENCE, || {
        engines(&site, mezcal_common::VERSION)
    });
    assert_eq!(
        site.run("coordinator", &["wait", "-p", "admin", &second], "")
            .status
            .code(),
        Some(0)
    );
    let result = |batch: &str| -> serde_json::Value {
        serde_json::from_str(&site.ok("coordinator", &["results", "-p", "admin", batch]))
            .expect("JSON")
    };
    let (first, second) = (result(&first), result(&second));
    assert!(
        first["result"]["attempt"] == 1 && first["result"]["code"] == 0,
        "it has not been touched: {first}"
    );
    let runs = second["result"]["pyout"]
        .as_str()
        .or(second["result"]["stdout_tail"].as_str())
        .unwrap_or_default();
    assert!(
        runs.trim() == program("agent").display().to_string(),
        "{second}"
    );
    let doctor = text(
        &site
            .run(
                "coordinator",
                &["doctor", "-p", "admin", "--config", "none.toml"],
                "",
            )
            .stdout,
    );
    assert!(!doctor.contains("older than their agent"), "{doctor}");
}

impl Site {
    /// A site with a host that runs jobs, and the user sato.
    fn with_sato() -> Self {
        let mut site = Self::started("1h");
        let token = site.token(&["--host", "mezcal01.lab"]);
        assert!(site.join("mezcal01.lab", &token).status.success());
        site.start_agent("mezcal01.lab");
        site.join_as("sato");
        wait_for("the host is there", PATIENCE, || {
            (site.connected().len() == 1).then_some(())
        });
        site
    }

    fn join_as(&self, user: &str) {
        let (token, address) = (
            self.token(&["--user", user, "--replace"]),
            self.enrol_address(),
        );
        let out = self.run(
            "coordinator",
            &["join", &address, "--token-file", "-", "-p", user, "--force"],
            &token,
        );
        assert!(out.status.success(), "{}", text(&out.stderr));
    }

    /// A detached batch of one job that sleeps for `mark` seconds in a session of its own, which
    /// runs already, and one that waits.
    fn batch(&self, user: &str, mark: u32) -> String {
        let jobs = [
            serde_json::json!({"cmd": format!("setsid --wait sleep {mark}")}),
            serde_json::json!({"cmd": "true", "host": "elsewhere"}),
        ];
        std::fs::write(
            self.path("jobs.json"),
            jobs.map(|job| format!("{job}\n")).concat(),
        )
        .expect("written");
        let id = self.ok(
            "coordinator",
            &[
                "run",
                "-p",
                user,
                "jobs.json",
                "--detach",
                "--host-timeout",
                "1h",
                "-q",
            ],
        );
        wait_for("a job runs", PATIENCE, || {
            (!asleep(mark).is_empty()).then_some(())
        });
        id.trim().to_owned()
    }

    fn outcomes(&self, batch: &str) -> Vec<String> {
        let results = self.ok("coordinator", &["results", "-p", "admin", batch]);
        let lines = results
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        lines
            .map(|line| {
                line["result"]["outcome"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect()
    }

    fn kill_coordinator(&mut self) {
        let mut child = self.coordinator.take().expect("a running coordinator");
        child.kill().expect("killed");
        let _ = child.wait();
    }
}

fn asleep(mark: u32) -> Vec<i32> {
    mezcal_tests::alive_with(&format!("sleep {mark}"))
}

#[test]
fn what_a_revoked_user_has_ends_and_whoever_revokes_hears_what_that_was() {
    let mark = 7_200_000 + std::process::id();
    let site = Site::with_sato();
    let batch = site.batch("sato", mark);
    site.token(&["--user", "sato", "--replace"]);
    let said = site.ok("coordinator", &["revoke", "-p", "admin", "--user", "sato"]);
    assert!(
        asleep(mark).is_empty(),
        "what ran is dead when the answer comes"
    );
    assert!(
        said.starts_with(
            "user sato: 1 certificate was revoked; 1 join token is void; 1 batch was \
            cancelled: jobs 1 on hosts"
        ),
        "{said}"
    );
    assert!(
        said.contains("1 waiting") && said.ends_with("0 alive\n"),
        "{said}"
    );
    assert_eq!(site.outcomes(&batch), ["cancelled", "cancelled"]);
    let out = site.run("coordinator", &["batches", "-p", "sato"], "");
    assert!(
        out.status.code() == Some(3) && text(&out.stderr).contains("revoked"),
        "{}",
        text(&out.stderr)
    );
    let again = site.ok("coordinator", &["revoke", "-p", "admin", "--user", "sato"]);
    assert!(
        again.starts_with("user sato: was revoked already, at 2") && !again.contains("batch"),
        "{again}"
    );
    // The user's batches may continue.
    site.join_as("sato");
    let kept = site.batch("sato", mark);
    let said = site.ok(
        "coordinator",
        &["revoke", "-p", "admin", "--user", "sato", "--keep-batches"],
    );
    assert!(
        said.contains("1 batch goes on (1 on hosts and 1 waiting)") && !asleep(mark).is_empty(),
        "{said}"
    );
    // Until an admin decides otherwise.
    let said = site.ok(
        "coordinator",
        &["revoke", "-p", "admin", "--user", "sato", "--json"],
    );
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert!(
        said["certificates"] == 0
            && said["batches"] == 1
            && said["running"] == 1
            && said["survivors"] == 0,
        "{said}"
    );
    assert!(asleep(mark).is_empty());
    assert_eq!(site.outcomes(&kept), ["cancelled", "cancelled"]);
    // For a host it reports the attempts that may still run there, with the remedies.
    site.batch("admin", mark);
    let said = site.ok("coordinator", &["revoke", "-p", "admin", "mezcal01.lab"]);
    assert!(
        said.contains("1 connection has ended; 1 attempt may run there until 2"),
        "{said}"
    );
    assert!(
        said.contains("`coordinator confirm-dead mezcal01.lab`"),
        "{said}"
    );
}

#[test]
fn an_admin_sees_with_status_what_the_whole_cluster_does_and_a_user_what_is_theirs() {
    let mark = 7_400_000 + std::process::id();
    let site = Site::with_sato();
    let (admins, satos) = (site.batch("admin", mark), site.batch("sato", mark));
    let status = |user: &str, args: &[&str]| {
        let all: Vec<&str> = ["status", "-p", user]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        site.ok("coordinator", &all)
    };
    let json = |user: &str| {
        serde_json::from_str::<serde_json::Value>(&status(user, &["--json"])).expect("JSON")
    };
    wait_for("both run", PATIENCE, || {
        (json("admin")["jobs_running"] == 2).then_some(())
    });
    let whole = json("admin");
    assert!(
        whole["everybody"] == true
            && whole["users"] == 2
            && whole["batches_running"] == 2
            && whole["jobs_waiting"] == 2,
        "{whole}"
    );
    let said = status("admin", &[]);
    assert!(
        said.contains("2 batches of 2 users have not ended; 2 of their jobs run, 2 wait")
            && said.contains(&satos),
        "{said}"
    );
    assert!(status("admin", &[&satos[..8]]).starts_with(&format!("batch {satos} of sato")));
    let own = json("sato");
    assert!(
        own["everybody"] == false && own["jobs_running"] == 1 && own["jobs_waiting"] == 1,
        "{own}"
    );
    assert!(
        own["batches"].as_array().is_some_and(|all| all.len() == 1)
            && own["batches"][0]["id"] == satos,
        "{own}"
    );
    let said = status("sato", &[]);
    assert!(
        said.contains("1 of your batches have not ended; 1 of their jobs run, 1 wait")
            && !said.contains(&admins),
        "{said}"
    );
    let others = site.run("coordinator", &["status", "-p", "sato", &admins], "");
    assert!(
        others.status.code() == Some(2)
            && text(&others.stderr).contains("batches of yours begin with"),
        "{}",
        text(&others.stderr)
    );
    site.ok("coordinator", &["cancel", "-p", "sato", "--all"]);
    site.ok("coordinator", &["cancel", "-p", "admin", "--all"]);
}

#[test]
fn a_user_who_has_engines_on_no_host_hears_so_at_once() {
    let mut site = Site::started("1h");
    assert!(
        site.join("mezcal01.lab", &site.token(&["--host", "mezcal01.lab"]))
            .status
            .success()
    );
    let config = site.path("mezcal01.lab/agent.toml");
    let mut file = std::fs::File::options()
        .append(true)
        .open(&config)
        .expect("joined");
    let engines = site.path("mezcal01.lab/engines");
    std::fs::create_dir(&engines).expect("made");
    writeln!(
        file,
        "run_as = \"user\"\nengines = \"{}\"",
        engines.display()
    )
    .expect("written");
    site.start_agent("mezcal01.lab");
    site.join_as("sato");
    wait_for("the host is there", PATIENCE, || {
        (site.connected().len() == 1).then_some(())
    });
    std::fs::write(site.path("jobs.json"), "{\"cmd\": \"true\"}\n").expect("written");
    let mut run = site.command(
        "coordinator",
        &["run", "-p", "sato", "jobs.json", "--host-timeout", "1h"],
    );
    let log = site.path("run.log");
    let mut run = run
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).expect("made"))
        .spawn()
        .expect("it starts");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    wait_for("it is said", PATIENCE, || {
        said()
            .contains("1 job waits for a host that runs jobs of sato (root enables mezcal-engines@sato.service there)")
            .then_some(())
    });
    mezcal_tests::signal(run.id() as i32, libc::SIGINT);
    wait_for("it has ended", PATIENCE, || {
        run.try_wait().expect("our child")
    });
}

#[test]
fn a_revocation_comes_to_its_end_though_the_coordinator_is_killed_in_its_middle() {
    let mark = 7_300_000 + std::process::id();
    let mut site = Site::with_sato();
    let batch = site.batch("sato", mark);
    // It cannot be proven yet that the job is dead.
    let agent = site.agents[0].id() as i32;
    mezcal_tests::signal(agent, libc::SIGSTOP);
    let mut revoke = site.command("coordinator", &["revoke", "-p", "admin", "--user", "sato"]);
    let mut revoke = revoke.stderr(Stdio::null()).spawn().expect("it starts");
    wait_for("it is decided", PATIENCE, || {
        site.log().contains("revoked").then_some(())
    });
    site.kill_coordinator();
    wait_for("the asker hears of it", PATIENCE, || {
        revoke.try_wait().expect("our child")
    });
    site.start();
    mezcal_tests::signal(agent, libc::SIGCONT);
    wait_for("what ran is dead", PATIENCE, || {
        asleep(mark).is_empty().then_some(())
    });
    wait_for("the batch has ended", PATIENCE, || {
        (site.outcomes(&batch).len() == 2).then_some(())
    });
    assert_eq!(site.outcomes(&batch), ["cancelled", "cancelled"]);
    let again = site.ok("coordinator", &["revoke", "-p", "admin", "--user", "sato"]);
    assert!(
        again.starts_with("user sato: was revoked already, at 2"),
        "{again}"
    );
}

#[test]
fn a_certificate_that_is_not_listed_does_not_count_until_it_is_imported() {
    let mut site = Site::new("1h");
    site.start();
    let out = site.run("coordinator", &["hosts", "-p", "admin"], "");
    assert!(
        out.status.code() == Some(3) && text(&out.stderr).contains("certs import"),
        "{}",
        text(&out.stderr)
    );
    site.ok(
        "coordinator",
        &[
            "certs",
            "import",
            "pki/issued.jsonl",
            "--config",
            "serve.toml",
        ],
    );
    site.ok("coordinator", &["hosts", "-p", "admin"]);
}

#[test]
fn a_connection_ends_with_its_certificate_and_whoever_has_its_key_gets_another() {
    let mut site = Site::started("4s");
    let token = site.token(&["--host", "mezcal01.lab"]);
    assert!(site.join("mezcal01.lab", &token).status.success());
    // It stays off until its certificate has expired.
    wait_for("it has expired", PATIENCE, || {
        let list = site.ok("coordinator", &["certs", "list", "-p", "admin"]);
        list.lines()
            .any(|l| l.contains("mezcal01.lab") && l.contains("expired"))
            .then_some(())
    });
    let (config, enrol) = (site.path("mezcal01.lab/agent.toml"), site.enrol_address());
    let mut file = std::fs::File::options()
        .append(true)
        .open(&config)
        .expect("joined");
    writeln!(file, "enrol = \"{enrol}\"").expect("written");
    site.start_agent("mezcal01.lab");
    wait_for("it is there", PATIENCE, || {
        site.log().contains("agent connected").then_some(())
    });
    assert!(
        site.log().contains("whose old one had expired"),
        "{}",
        site.log()
    );
    // Its certificate of four seconds expires before the agent looks for a new one: its connection
    // ends, and it connects again.
    wait_for("its connection has ended", PATIENCE, || {
        site.log().contains("has expired").then_some(())
    });
    wait_for("it has come again", PATIENCE, || {
        site.log().contains("connected again").then_some(())
    });
    // A revoked certificate is not renewed, expired or not.
    site.ok("coordinator", &["revoke", "-p", "admin", "mezcal01.lab"]);
    let log = || std::fs::read_to_string(site.path("mezcal01.lab.log")).unwrap_or_default();
    // The refusal reaches it if its certificate was still valid; otherwise there is no coordinator
    // that would renew it.
    wait_for("it is refused", PATIENCE, || {
        (log().contains("revoked or replaced") || log().contains("nobody answers")).then_some(())
    });
    wait_for("it is gone", PATIENCE, || {
        site.connected().is_empty().then_some(())
    });
    wait_for("it looks for another certificate", PATIENCE, || {
        log().contains("is not renewed").then_some(())
    });
    // A certificate that a person has put there is used at once, and none is requested.
    std::fs::remove_dir_all(site.path("mezcal01.lab/pki")).expect("removed");
    let out = site.join(
        "mezcal01.lab",
        &site.token(&["--host", "mezcal01.lab", "--replace"]),
    );
    assert!(out.status.success(), "{}", text(&out.stderr));
    wait_for("it takes that", PATIENCE, || {
        log()
            .contains("another certificate was put in place")
            .then_some(())
    });
    wait_for("it is there again", PATIENCE, || {
        (!site.connected().is_empty()).then_some(())
    });
}

#[test]
fn a_token_is_sent_to_no_other_coordinator_than_its_own() {
    let (site, other) = (Site::started("1h"), Site::started("1h"));
    let token = site.token(&["--host", "mezcal01.lab"]);
    // Another coordinator answers at the address: with its own certificate, it never sees the
    // token.
    other.token(&["--host", "mezcal01.lab"]);
    wait_for("it can be joined", PATIENCE, || {
        other.log().contains("can join").then_some(())
    });
    let out = {
        let (config, identity) = (
            "m/agent.toml",
            format!("{}/m/pki", site.dir.path().display()),
        );
        let address = other.enrol_address();
        let args = [
            "join",
            &address,
            "--token-file",
            "-",
            "--config",
            config,
            "--identity",
            &identity,
            "--name",
            "mezcal01.lab",
        ];
        site.run("agent", &args, &token)
    };
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    assert!(
        text(&out.stderr).contains("not the one that this token is for"),
        "{}",
        text(&out.stderr)
    );
    assert!(
        !other.log().contains("may not join"),
        "it was asked nothing: {}",
        other.log()
    );
    assert!(
        !site.path("m/agent.toml").exists() && !site.path("m/pki").exists(),
        "nothing was written"
    );
}

/// Sends a token from a loopback address that no other client uses, and returns the answer.
async fn guess(from: &str, site: &Site, token: &Token, secret: [u8; 16]) -> FromEnroller {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(site.path("pki/ca.pem")).expect("a root"))
        .expect("a root");
    let mut crypto = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .expect("TLS 1.3")
    .with_root_certificates(roots)
    .with_no_client_auth();
    crypto.alpn_protocols = vec![mezcal_common::wire::enrol::ALPN.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(
        QuicClientConfig::try_from(crypto).expect("TLS 1.3"),
    ));
    let endpoint = quinn::Endpoint::client(SocketAddr::new(from.parse().expect("an address"), 0))
        .expect("a socket");
    let to = site.enrol_address().parse().expect("an address");
    let one = CertificateDer::from_pem_file(site.path("pki/users/admin/cert.pem"))
        .expect("a certificate");
    let name = Identity::coordinator_dns(&Identity::from_der(&one).expect("one of ours").cluster);
    let connecting = endpoint
        .connect_with(config, to, &name)
        .expect("a configuration");
    let (mut send, mut receive) = connecting
        .await
        .expect("it is open")
        .open_bi()
        .await
        .expect("a stream");
    let (_, request) = mezcal_certs::request().expect("a key");
    let (token, program) = (token.id, "0.2.0".to_owned());
    let join = ToEnroller::Join {
        versions: (1, 1),
        program,
        token,
        secret,
        host: None,
        request: request.into(),
    };
    let mut frame = Vec::new();
    codec::encode_frame(&mut frame, &join).expect("small");
    send.write_all(&frame).await.expect("written");
    let mut answer = bytes::BytesMut::new();
    loop {
        if let Some(said) = codec::decode_frame(&mut answer).expect("an answer") {
            return said;
        }
        let chunk = receive
            .read_chunk(1 << 16, true)
            .await
            .expect("it answers")
            .expect("all of it");
        answer.extend_from_slice(&chunk.bytes);
    }
}

#[test]
fn whoever_guesses_tokens_is_slowed_down_and_nobody_else() {
    let site = Site::started("1h");
    let text_of = site.token(&["--host", "mezcal01.lab"]);
    let token = Token::parse(&text_of).expect("a token");
    wait_for("it can be joined", PATIENCE, || {
        site.log().contains("can join").then_some(())
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let refused = |said| match said {
        FromEnroller::Refused { reason } => reason,
        FromEnroller::Joined { .. } => panic!("a guess was right"),
    };
    let (mut looked_at, mut put_off) = (0, 0);
    for _ in 0..40 {
        let reason = refused(runtime.block_on(guess("127.0.0.9", &site, &token, [0; 16])));
        looked_at += u32::from(reason.contains("no such token"));
        put_off += u32::from(reason.contains("try again in"));
    }
    assert!(
        looked_at + put_off == 40 && looked_at < 10,
        "{looked_at} of 40 were looked at"
    );
    // Even the right one is not checked, and therefore not used up.
    runtime.block_on(async {
        while !refused(guess("127.0.0.9", &site, &token, [0; 16]).await).contains("try again in") {}
        assert!(
            refused(guess("127.0.0.9", &site, &token, token.secret).await).contains("try again in")
        );
    });
    // All other clients can join and are served.
    let out = site.join("mezcal01.lab", &text_of);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(
        site.ok("coordinator", &["hosts", "-p", "admin"])
            .contains("HOST")
    );
}

/// The certificates of a cluster, which live for seconds, are renewed again and again, and running
/// jobs do not notice.
#[test]
fn certificates_are_renewed_while_jobs_run() {
    let mut site = Site::started("12s");
    let token = site.token(&["--host", "mezcal01.lab"]);
    assert!(site.join("mezcal01.lab", &token).status.success());
    site.start_agent("mezcal01.lab");
    let site = site;
    let key = || std::fs::read_to_string(site.path("mezcal01.lab/pki/key.pem")).expect("a key");
    let first = key();
    let address = site.enrol_address();
    let token = site.token(&["--user", "okazaki"]);
    let out = site.run(
        "coordinator",
        &["join", &address, "--token-file", "-", "-p", "mezcal"],
        &token,
    );
    assert!(out.status.success(), "{}", text(&out.stderr));
    let users =
        || std::fs::read_to_string(site.path("config/mezcal/mezcal/key.pem")).expect("a key");
    let users_first = users();
    let job = "{\"cmd\": \"echo $MEZCAL_ATTEMPT >> began.$MEZCAL_BATCH; until test -e go; do sleep 0.1; done; cat began.$MEZCAL_BATCH\"}\n";
    std::fs::write(site.path("jobs.json"), job).expect("written");
    let batch = site
        .ok(
            "coordinator",
            &["run", "-p", "mezcal", "--detach", "jobs.json"],
        )
        .trim()
        .to_owned();
    // It stays connected for longer than the life of its first certificate, and of several that
    // other commands of its user get.
    let mut attached = site.command(
        "coordinator",
        &[
            "run",
            "-p",
            "mezcal",
            "jobs.json",
            "-o",
            "results.json",
            "-q",
        ],
    );
    let mut attached = attached.stdin(Stdio::null()).spawn().expect("it starts");
    let renewals = |of: &str| {
        site.log()
            .matches(&format!("a new certificate for the {of}"))
            .count()
    };
    // Long after the first one has expired.
    wait_for(
        "the agent's third certificate",
        Duration::from_secs(90),
        || {
            // A command that uses the user's certificate renews it on the way.
            site.ok("coordinator", &["status", "-p", "mezcal", &batch]);
            (renewals("agent mezcal01.lab") >= 3 && renewals("user okazaki") >= 2).then_some(())
        },
    );
    assert!(
        first != key() && users_first != users(),
        "with every certificate comes a new key"
    );
    std::fs::write(site.path("go"), "").expect("written");
    assert!(
        wait_for("the run ends", PATIENCE, || attached
            .try_wait()
            .expect("our child"))
        .success()
    );
    site.ok("coordinator", &["wait", "-p", "mezcal", &batch]);
    let results = site.ok("coordinator", &["results", "-p", "mezcal", &batch]);
    assert!(
        results.contains("\"stdout_tail\": \"1\\n\""),
        "it ran once, to its end: {results}"
    );
    let list = site.ok("coordinator", &["certs", "list", "-p", "admin"]);
    let good = list
        .lines()
        .filter(|l| l.contains("mezcal01.lab") && l.contains("until"))
        .count();
    assert!(
        (1..=2).contains(&good),
        "what has been replaced does not count: {list}"
    );
    assert!(
        !site.log().contains("agent mezcal01.lab has expired"),
        "{}",
        site.log()
    );
}

/// The first packets of a real client, held back so that the test decides from where and when they
/// are sent.
struct HeldClient {
    held: UdpSocket,
    client: SocketAddr,
}

impl HeldClient {
    /// A client, and its first datagram.
    fn new() -> (Self, Vec<u8>) {
        let held = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        held.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut crypto = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
        crypto.alpn_protocols = vec![mezcal_common::wire::enrol::ALPN.to_vec()];
        let config = quinn::ClientConfig::new(Arc::new(
            QuicClientConfig::try_from(crypto).expect("TLS 1.3"),
        ));
        let to = held.local_addr().expect("bound");
        // It gives up by itself.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address"))
                    .expect("a socket");
                let _ = endpoint
                    .connect_with(config, to, "coordinator.mezcal")
                    .expect("a configuration")
                    .await;
            });
        });
        let mut first = vec![0; 1500];
        let (length, client) = held.recv_from(&mut first).expect("a client begins");
        first.truncate(length);
        (Self { held, client }, first)
    }

    /// The client's reaction to this answer: its first datagram that is not a repetition of an
    /// earlier one.
    fn after(&self, answer: &[u8], before: &[u8]) -> Vec<u8> {
        self.held.send_to(answer, self.client).expect("sent");
        let mut next = vec![0; 1500];
        loop {
            let (length, _) = self.held.recv_from(&mut next).expect("it goes on");
            // Another destination: the one that a Retry names (RFC 9000 §17.2.5).
            if next[6..14] != before[6..14] {
                next.truncate(length);
                return next;
            }
        }
    }
}

/// All datagrams in answer to one datagram, until none has come for a while.
fn answers(socket: &UdpSocket, address: &str, datagram: &[u8]) -> Vec<Vec<u8>> {
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("set");
    socket.send_to(datagram, address).expect("sent");
    let mut all = Vec::new();
    let mut buffer = [0; 1500];
    while let Ok((length, _)) = socket.recv_from(&mut buffer) {
        all.push(buffer[..length].to_vec());
    }
    all
}

/// RFC 9000 §8.1: an address that has not been validated gets at most three times the bytes that it
/// has sent, and at the port for joining only the request to validate it.
#[test]
fn whoever_sends_in_anothers_name_makes_nobody_send_much_to_it() {
    let site = Site::started("1h");
    site.token(&["--host", "mezcal01.lab"]);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let (client, first) = HeldClient::new();
    let said = answers(&socket, &format!("127.0.0.1:{}", site.port), &first);
    let bytes: usize = said.iter().map(Vec::len).sum();
    assert!(
        bytes > 0 && bytes <= 3 * first.len(),
        "{bytes} for {}",
        first.len()
    );
    let said = answers(&socket, &site.enrol_address(), &first);
    assert!(
        said.len() == 1 && said[0].len() < 200 && said[0][0] & 0xf0 == 0xf0,
        "one Retry, and nothing else: {said:?}"
    );
    drop(client);
}

/// A token of validation counts for a while, from that address, in that life of the coordinator,
/// and nowhere else.
#[test]
fn an_address_is_shown_once_and_not_for_ever() {
    let mut site = Site::started("1h");
    site.token(&["--host", "mezcal01.lab"]);
    let address = site.enrol_address();
    let here = || UdpSocket::bind("127.0.0.1:0").expect("a socket");
    // A handshake continues with the coordinator's certificate; a refusal is a few bytes.
    let accepted = |said: &[Vec<u8>]| said.iter().map(Vec::len).sum::<usize>() > 600;
    let shown = || {
        let (socket, (client, first)) = (here(), HeldClient::new());
        let retry = answers(&socket, &address, &first).pop().expect("a Retry");
        (client.after(&retry, &first), socket)
    };
    let (datagram, socket) = shown();
    assert!(
        !accepted(&answers(&here(), &address, &datagram)),
        "from elsewhere"
    );
    assert!(
        accepted(&answers(&socket, &address, &datagram)),
        "from there"
    );
    let (late, late_socket) = shown();
    let (of_another_life, its_socket) = shown();
    // The time for which quinn accepts it.
    std::thread::sleep(Duration::from_secs(16));
    assert!(
        !accepted(&answers(&late_socket, &address, &late)),
        "too late"
    );
    let mut old = site.coordinator.take().expect("it runs");
    old.kill().expect("killed");
    let _ = old.wait();
    site.start();
    wait_for("the port is open again", PATIENCE, || {
        (site.log().matches("can join").count() > 1).then_some(())
    });
    assert!(
        !accepted(&answers(&its_socket, &address, &of_another_life)),
        "its key is not kept"
    );
}
