//! Hosts on one machine: a network and a UTS namespace each, joined by a bridge in a namespace of
//! its own.
//!
//! Where namespaces are not permitted, hosts are only names and all share loopback; the reason is
//! printed. With `MEZCAL_REQUIRE_NAMESPACES` set (as `.ci/run` does) that is a failure.

use crate::wait_for;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The domain of all hosts.
pub const DOMAIN: &str = "cl.ecei.tohoku.ac.jp";

/// The hosts `mezcal00` (the coordinator's), `mezcal01` and so on.
pub struct Lab {
    hosts: Vec<Holder>,
    bridge: Option<Holder>,
}

/// The process that keeps a namespace.
struct Holder {
    child: Child,
    net: Option<std::path::PathBuf>,
}

impl Lab {
    /// Makes `mezcal00` and `count` more hosts.
    pub fn new(count: usize) -> Self {
        match why_not() {
            None => Self::with_namespaces(count),
            Some(reason) => {
                assert!(
                    std::env::var_os("MEZCAL_REQUIRE_NAMESPACES").is_none(),
                    "namespaces are required here: {reason}"
                );
                crate::say_skipped(&format!(
                    "network namespaces ({reason}): hosts share loopback"
                ));
                Self {
                    hosts: Vec::new(),
                    bridge: None,
                }
            }
        }
    }

    fn with_namespaces(count: usize) -> Self {
        let bridge = Holder::start("bridge");
        let mut batch = String::from(
            "link set lo up\nlink add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\nlink set br0 up\n",
        );
        let hosts: Vec<Holder> = (0..=count).map(|n| Holder::start(&host_name(n))).collect();
        for (n, host) in hosts.iter().enumerate() {
            batch.push_str(&format!(
                "link add h{n} type veth peer name eth0 netns {}\nlink set h{n} master br0 up\n",
                host.child.id()
            ));
        }
        bridge.ip(&batch);
        for (n, host) in hosts.iter().enumerate() {
            host.ip(&format!(
                "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\n",
                address(n)
            ));
        }
        Self {
            hosts,
            bridge: Some(bridge),
        }
    }

    /// True if each host has namespaces of its own.
    pub fn is_real(&self) -> bool {
        self.bridge.is_some()
    }

    /// The address of a host.
    pub fn address(&self, host: usize) -> String {
        if self.is_real() {
            address(host)
        } else {
            "127.0.0.1".into()
        }
    }

    /// A command that runs on a host.
    pub fn command(&self, host: usize, program: &std::path::Path) -> Command {
        match self.hosts.get(host) {
            Some(holder) => {
                let mut command = Command::new("nsenter");
                command
                    .args(["-n", "-u", "-t", &holder.child.id().to_string(), "--"])
                    .arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    /// A host's network namespace, if it has one.
    pub fn network(&self, host: usize) -> Option<std::path::PathBuf> {
        self.hosts
            .get(host)
            .map(|holder| format!("/proc/{}/ns/net", holder.child.id()).into())
    }

    /// A function that moves the calling thread to a host's network namespace, if there is one.
    pub fn entrance(&self, host: usize) -> impl Fn() + Send + 'static {
        let net = self.network(host);
        move || {
            if let Some(net) = &net {
                let file = std::fs::File::open(net).expect("a namespace");
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind))
                    .expect("root may enter it");
            }
        }
    }

    /// Takes a host's link down or up; the host notices only silence.
    pub fn set_link(&self, host: usize, up: bool) {
        if let Some(bridge) = &self.bridge {
            bridge.ip(&format!(
                "link set h{host} {}\n",
                if up { "up" } else { "down" }
            ));
        }
    }

    /// Pids of everything on a host except its holder.
    pub fn processes(&self, host: usize) -> Vec<i32> {
        let Some(holder) = self.hosts.get(host) else {
            return Vec::new();
        };
        let of = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        crate::pids()
            .filter(|pid| {
                *pid != holder.child.id() as i32 && of(*pid) == holder.net && holder.net.is_some()
            })
            .collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in 0..self.hosts.len() {
            // By namespace: only processes of this lab can be in there.
            for pid in self.processes(host) {
                crate::signal(pid, libc::SIGKILL);
            }
        }
        for holder in self.hosts.iter_mut().chain(&mut self.bridge) {
            let _ = holder.child.kill();
            let _ = holder.child.wait();
        }
    }
}

impl Holder {
    #[expect(
        clippy::disallowed_methods,
        reason = "a few holders, started once; the programs under test never fork like this"
    )]
    fn start(name: &str) -> Self {
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            "--uts",
            "--",
            "sh",
            "-c",
            "hostname \"$1\" && exec sleep infinity",
            "sh",
            name,
        ]);
        command.stdin(Stdio::null());
        // SAFETY: prctl(2) is async-signal-safe. The holder ends with the test's thread even if it
        // is not dropped.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().expect("unshare starts");
        let pid = child.id();
        wait_for("a namespace", Duration::from_secs(10), || {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .ok()
                .filter(|c| c.trim() == "sleep")
        });
        Self {
            child,
            net: std::fs::read_link(format!("/proc/{pid}/ns/net")).ok(),
        }
    }

    fn ip(&self, batch: &str) {
        use std::io::Write;
        let mut ip = Command::new("nsenter")
            .args([
                "-n",
                "-t",
                &self.child.id().to_string(),
                "--",
                "ip",
                "-batch",
                "-",
            ])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nsenter starts");
        ip.stdin
            .take()
            .expect("a pipe")
            .write_all(batch.as_bytes())
            .expect("ip reads");
        assert!(
            ip.wait().expect("ip ends").success(),
            "ip did not take:\n{batch}"
        );
    }
}

/// A host's full name.
pub fn host_name(n: usize) -> String {
    format!("mezcal{n:02}.{DOMAIN}")
}

fn address(n: usize) -> String {
    format!("10.77.0.{}", n + 1)
}

fn why_not() -> Option<String> {
    let tried = Command::new("unshare")
        .args(["--net", "--uts", "--", "true"])
        .output();
    match tried {
        Ok(out) if !out.status.success() => {
            return Some(String::from_utf8_lossy(&out.stderr).trim().to_owned());
        }
        Err(e) => return Some(format!("unshare: {e}")),
        Ok(_) => {}
    }
    match Command::new("ip").arg("-V").output() {
        Ok(out) if out.status.success() => None,
        _ => Some("the program ip (package iproute2) is not installed".into()),
    }
}
