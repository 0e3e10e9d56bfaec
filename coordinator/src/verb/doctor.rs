//! `coordinator doctor`: whether the coordinator of this host, and the cluster that it sees, are
//! well. It changes nothing.

use crate::client::ask::{self, Standings};
use crate::client::converse_for;
use crate::client::profile::ProfileArgs;
use crate::exit::{Exit, FAILED};
use crate::report::format::show;
use crate::service::config::{CoordinatorConfig, DEFAULT_PATH};
use crate::service::listen::holder_of;
use mezcal_common::doctor::{self, Finding};
use mezcal_common::message::client::HostStatus;
use mezcal_common::model::hosts::Folded;
use mezcal_common::model::identity::Role;
use mezcal_common::model::outcome::Containment;
use mezcal_common::system::account;
use mezcal_common::system::config::{expand_home, read_toml};
use mezcal_common::version::is_older;
use mezcal_common::wire::tls::{Credentials, first_certificate};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the coordinator may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Free space that a store should have, in bytes.
const SPACE: u64 = 1 << 30;
/// A datagram that every Ethernet carries, and tunnels over it: QUIC probes above its 1200 bytes
/// (RFC 9000 §14) and settles on the largest size that gets through.
const DATAGRAM: u16 = 1300;
/// Seconds. A clock that is further off makes times of results hard to compare, and certificates
/// early or late.
const CLOCK: f64 = 2.0;

/// Check the coordinator of this host and its cluster, and say what to do about each fault.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// The coordinator's configuration file, if it is on this host
    #[arg(long, default_value = DEFAULT_PATH, env = "MEZCAL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// One JSON object per finding
    #[arg(long)]
    pub json: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Runs the verb.
///
/// # Errors
/// Exit 1 if something is wrong.
pub fn run(args: &DoctorArgs) -> Result<u8, Exit> {
    let mut findings = Vec::new();
    if args.config.exists() {
        findings.extend(service(&args.config));
    } else {
        findings.push(Finding::fine(
            "configuration",
            format!(
                "{} does not exist: no coordinator of this host",
                args.config.display()
            ),
        ));
    }
    findings.extend(cluster(&args.profile));
    let text = match args.json {
        false => doctor::table(&findings),
        true => findings
            .iter()
            .map(|f| serde_json::json!(f).to_string() + "\n")
            .collect(),
    };
    show(&text)?;
    Ok(if doctor::is_well(&findings) {
        0
    } else {
        FAILED
    })
}

/// Findings about the coordinator of this host.
fn service(path: &Path) -> Vec<Finding> {
    let config: CoordinatorConfig = match read_toml(path) {
        Ok(config) => config,
        Err(e) => {
            return vec![doctor::configuration(
                &e,
                "/usr/share/doc/mezcal-coordinator/examples/coordinator.toml is one to begin with",
            )];
        }
    };
    let mut all = vec![match config.fault() {
        Some(why) => Finding::wrong(
            "configuration",
            format!("{why}, in {}", path.display()),
            "the coordinator does not start with this: change it",
        ),
        None => Finding::fine("configuration", path.display().to_string()),
    }];
    let identity = expand_home(&config.identity);
    let state = config.state_dir();
    // The account that runs the service owns its state.
    let owner = std::fs::metadata(&state)
        .ok()
        .map(|meta| meta.uid())
        .filter(|uid| *uid != 0)
        .and_then(account::of);
    let issuer = config.issuer.as_ref().map(|dir| expand_home(dir));
    if let Some(owner) = &owner {
        let own = ["ca.pem", "cert.pem", "key.pem"].map(|name| identity.join(name));
        let issuers = issuer
            .iter()
            .flat_map(|dir| ["cert.pem", "key.pem"].map(|name| dir.join(name)));
        let files: Vec<PathBuf> = [path.to_owned()]
            .into_iter()
            .chain(own)
            .chain(issuers)
            .collect();
        all.extend(doctor::unreadable("configuration", &owner.name, &files));
    }
    match Credentials::load(&identity, Role::Coordinator) {
        Ok(own) => all.push(doctor::certificate_end(
            "certificate",
            own.certificate(),
            false,
            "`mezcal certs issue coordinator`, where the root's key is, makes another one; `systemctl reload mezcal-coordinator` takes it up",
        )),
        Err(e) => all.push(doctor::credentials("certificate", &e, "`mezcal certs issue coordinator`, where the root's key is, makes one")),
    }
    all.push(issuer_of(issuer.as_deref()));
    all.push(doctor::space("store", &state, SPACE));
    all.push(match holder_of(config.listen.port()) {
        Some(holder) => Finding::fine("service", format!("udp {} is held by {holder}", config.listen)),
        None => Finding::wrong(
            "service",
            format!("nobody listens on udp {}", config.listen),
            "systemctl start mezcal-coordinator; `journalctl -u mezcal-coordinator` says why it does not run",
        ),
    });
    all.push(doctor::udp_buffers());
    all.push(doctor::clock());
    all
}

/// Finding about the issuer of certificates for hosts and users that join.
fn issuer_of(dir: Option<&Path>) -> Finding {
    let Some(dir) = dir else {
        return Finding::doubtful(
            "issuer",
            "none: hosts and users cannot join by tokens, and nothing is renewed",
            "`mezcal certs issue issuer`, where the root's key is, and `issuer` in coordinator.toml",
        );
    };
    let file = dir.join("cert.pem");
    let anew = "`mezcal certs issue issuer`, where the root's key is, makes another one; `systemctl restart mezcal-coordinator` takes it up";
    match std::fs::read(&file) {
        Ok(pem) => match first_certificate(&pem) {
            Some(der) => doctor::certificate_end("issuer", &der, false, anew),
            None => Finding::wrong(
                "issuer",
                format!("{} holds no certificate in PEM form", file.display()),
                anew,
            ),
        },
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            doctor::doubtful_for_us("issuer", &file)
        }
        Err(e) => Finding::wrong(
            "issuer",
            format!("cannot read {}: {e}", file.display()),
            anew,
        ),
    }
}

/// Findings about the cluster that the user's profile names.
fn cluster(profile: &ProfileArgs) -> Vec<Finding> {
    let (address, identity) = match profile.remote() {
        Ok(remote) => remote,
        Err(e) => {
            return vec![Finding::doubtful(
                "profile",
                e.message,
                "coordinator join with a token makes one",
            )];
        }
    };
    let mut all = Vec::new();
    match Credentials::load(&identity, Role::User) {
        Ok(own) => all.push(doctor::certificate_end(
            "profile",
            own.certificate(),
            true,
            "coordinator join with a token gets another one",
        )),
        Err(e) => all.push(doctor::credentials(
            "profile",
            &e,
            "coordinator join with a token gets another one",
        )),
    }
    match converse_for(PATIENCE, profile, async |remote| {
        Ok((ask::hosts(remote).await?, ask::standings(remote).await?))
    }) {
        Ok((hosts, standings)) => all.extend(fleet(&address, &hosts, &standings)),
        Err(e) => {
            let fix = match doctor::speaks_of_time(&e.message) {
                true => {
                    "compare the clocks: `date -u` here and there; `timedatectl set-ntp true` \
                     where it is off. If both are right, a certificate has expired"
                }
                false if e.message.contains("refused") => {
                    "coordinator join with a token gets another certificate"
                }
                false => "is `coordinator serve` running there, and does UDP get through?",
            };
            all.push(Finding::wrong("coordinator", e.message, fix));
        }
    }
    all
}

/// Findings from the status that the coordinator has of all hosts.
// Long: one independent finding after the other.
fn fleet(address: &str, all_hosts: &[HostStatus], standings: &Standings) -> Vec<Finding> {
    let names = |pick: &dyn Fn(&HostStatus) -> bool| -> Vec<String> {
        all_hosts
            .iter()
            .filter(|h| pick(h))
            .map(|h| h.name.clone())
            .collect()
    };
    let mut all = vec![Finding::fine(
        "coordinator",
        format!(
            "{address} answers; {} of {} hosts are connected",
            names(&|h| h.connected).len(),
            all_hosts.len()
        ),
    )];
    let mut say = |what, hosts: Vec<String>, seen: &str, fix: &str| {
        if !hosts.is_empty() {
            all.push(Finding::doubtful(
                what,
                format!("{seen}: {}", Folded(&hosts)),
                fix,
            ));
        }
    };
    let standing = |h: &HostStatus| standings.get(&h.name);
    let revoked = |h: &HostStatus| standing(h).is_some_and(|standing| standing.revoked.is_some());
    let unseen = |h: &HostStatus| standing(h).is_some_and(|standing| !standing.seen);
    say(
        "hosts",
        names(&revoked),
        "revoked",
        "`coordinator forget-host` takes them off the list; `coordinator provision --replace` lets them join again",
    );
    say(
        "hosts",
        names(&|h| !h.connected && !revoked(h) && unseen(h)),
        "not seen since the coordinator was started",
        "`mezcal-agent doctor` there says why; if they are gone for good, `coordinator confirm-dead` gives their jobs to others at once, and \
         `coordinator forget-host` takes them off the list",
    );
    say(
        "hosts",
        names(&|h| !h.connected && !revoked(h) && !unseen(h)),
        "not connected",
        "`mezcal-agent doctor` there says why; if they are gone for good, `coordinator confirm-dead` gives their jobs to others at once, and \
         `coordinator forget-host` takes them off the list",
    );
    say(
        "hosts",
        names(&|h| h.drained.is_some()),
        "being drained",
        "`coordinator undrain` when they are well again",
    );
    say(
        "hosts",
        names(&|h| h.quarantined.is_some()),
        "fail all jobs that they get",
        "`coordinator hosts` shows why",
    );
    let off =
        |h: &HostStatus| h.connected && h.clock_offset.is_some_and(|offset| offset.abs() > CLOCK);
    let (wrong, timed) = (
        names(&off),
        names(&|h| h.connected && h.clock_offset.is_some()).len(),
    );
    let fix = match wrong.len() > 1 && wrong.len() == timed {
        true => "all of them: it is the coordinator's own clock; `timedatectl set-ntp true` there",
        false => "`timedatectl set-ntp true` there, or start the site's time service",
    };
    say(
        "clocks",
        wrong,
        &format!("more than {CLOCK} s off the coordinator's"),
        fix,
    );
    let loose = |h: &HostStatus| h.connected && h.containment == Containment::Subreaper;
    say(
        "containment",
        names(&loose),
        "hold jobs by their process tree alone",
        "`mezcal-agent doctor` there says what is missing for control groups of version 2",
    );
    let narrow = |h: &HostStatus| h.datagram.is_some_and(|bytes| bytes < DATAGRAM);
    let seen = format!("datagrams of {DATAGRAM} bytes do not reach them");
    say(
        "path",
        names(&narrow),
        &seen,
        "the path there is slow but works; look for a tunnel, and check the MTU of its ends (ip \
         link)",
    );
    let old = |h: &HostStatus| {
        let engines = standing(h).map_or(&[][..], |standing| &standing.engines);
        h.connected && ask::others(h, engines).any(|version| is_older(version, &h.program))
    };
    say(
        "engines",
        names(&old),
        "engines older than their agent",
        "nothing: they take no new jobs, and are replaced when the jobs that run there have ended; \
         restart them to replace them at once",
    );
    let other = |h: &HostStatus| h.connected && h.program != mezcal_common::VERSION;
    say(
        "versions",
        names(&other),
        &format!("not of version {}", mezcal_common::VERSION),
        "`coordinator provision` with an archive of that version, or a package of it, brings them there",
    );
    all
}
