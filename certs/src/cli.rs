//! The `certs` command: makes and shows the certificates of a cluster. Its program is `main.rs`;
//! the program for everything contains it, too.

use crate::{COORDINATOR_DAYS, ClusterDir, ISSUER_DAYS, LEAF_DAYS};
use anyhow::{Context, bail};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use mezcal_common::model::escape::{for_terminal, json_for_terminal};
use mezcal_common::model::hosts;
use mezcal_common::model::identity::{self, Identity, Role};
use mezcal_common::system::output::{PIPE, Unwritten, print};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Make and show the certificates of a Mezcal cluster.
#[derive(Parser)]
#[command(name = "certs", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a new cluster: a root certificate and its key. Move the key to a safe place afterwards.
    Init {
        /// Directory to make.
        dir: PathBuf,
        /// Name of the cluster: lower-case letters, digits, '-'.
        #[arg(long)]
        cluster: String,
    },
    /// Make a certificate and its key.
    Issue {
        #[command(subcommand)]
        role: Issue,
    },
    /// Write the manual pages.
    #[command(hide = true)]
    Manual {
        /// Where to.
        dir: PathBuf,
    },
    /// Show the contents of a certificate.
    Show {
        /// A PEM file.
        file: PathBuf,
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct Common {
    /// The cluster's directory, as given to `mezcal certs init`.
    #[arg(long, default_value = ".", env = "MEZCAL_PKI")]
    dir: PathBuf,
    /// Days until the certificate expires (default: 30, a coordinator's 90, an issuer's 365).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: Option<u32>,
    /// Directory for cert.pem, key.pem and ca.pem (default: agents/HOST, users/NAME or coordinator
    /// below --dir; with several hosts a directory of that name is made for each).
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Issue {
    /// For the agents of hosts: one certificate for each.
    Agent {
        /// Names or ranges: mezcal[01-12].cl.ecei.tohoku.ac.jp
        hosts: String,
        #[command(flatten)]
        common: Common,
    },
    /// For a person or program that submits jobs.
    User {
        /// The name.
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// For the coordinator.
    Coordinator {
        #[command(flatten)]
        common: Common,
    },
    /// For the coordinator, so that it can issue certificates to hosts and users that join.
    Issuer {
        #[command(flatten)]
        common: Common,
    },
}

/// The command, under the name `name`, with the arguments after it.
pub fn main(name: &'static str, args: impl Iterator<Item = OsString>) -> ExitCode {
    let matches = Cli::command()
        .name(name)
        .bin_name(name)
        .get_matches_from([OsString::from(name)].into_iter().chain(args));
    let verb = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli.verb,
        Err(e) => e.exit(),
    };
    match run(verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if (e.downcast_ref::<Unwritten>()).is_some_and(Unwritten::has_no_reader) => {
            ExitCode::from(PIPE)
        }
        Err(e) => {
            for line in format!("{e:#}").lines() {
                tell!("certs: {}", for_terminal(line));
            }
            ExitCode::from(2)
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Init { dir, cluster } => {
            let (_, authority) = ClusterDir::init(&dir, &cluster)?;
            print(authority.cluster())?;
            tell!(
                "certs: made {}; keep ca-key.pem there safe, since anyone who has it can join the \
                 cluster",
                dir.display()
            );
            Ok(())
        }
        Verb::Issue { role } => match role {
            Issue::Agent { hosts, common } => {
                let names = hosts::expand(&hosts)?;
                issue(Role::Agent, &names, &common, LEAF_DAYS)
            }
            Issue::User { name, common } => issue(Role::User, &[name], &common, LEAF_DAYS),
            Issue::Coordinator { common } => issue(
                Role::Coordinator,
                &[String::new()],
                &common,
                COORDINATOR_DAYS,
            ),
            Issue::Issuer { common } => {
                let (cluster, authority) = ClusterDir::open(&common.dir)?;
                let days = common.days.unwrap_or(ISSUER_DAYS);
                let place = cluster.issue_issuer(&authority, days, common.out.as_deref())?;
                print(place.display())?;
                Ok(())
            }
        },
        Verb::Show { file, json } => show(&file, json),
        // The command's name where it is installed.
        Verb::Manual { dir } => Ok(clap_mangen::generate_to(
            Cli::command().name("mezcal-certs").bin_name("mezcal-certs"),
            dir,
        )?),
    }
}

fn issue(role: Role, names: &[String], common: &Common, default_days: u32) -> anyhow::Result<()> {
    let (cluster, authority) = ClusterDir::open(&common.dir)?;
    for name in names {
        let out = match &common.out {
            Some(out) if names.len() > 1 => Some(out.join(name)),
            other => other.clone(),
        };
        let place = cluster.issue(
            &authority,
            role,
            name,
            crate::days(common.days.unwrap_or(default_days)),
            out.as_deref(),
        )?;
        print(place.display())?;
    }
    Ok(())
}

fn show(file: &Path, json: bool) -> anyhow::Result<()> {
    let pem =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let Some(der) = crate::der_of(&pem) else {
        bail!("{} holds no certificate in PEM form", file.display())
    };
    let details = identity::details(&der)?;
    let (from, until) = identity::validity(&der)?;
    let time = |s| {
        jiff::Timestamp::from_second(s)
            .map(|t| t.to_string())
            .unwrap_or_default()
    };
    let days_left = (until - jiff::Timestamp::now().as_second()).div_euclid(86_400);
    let (identity, cluster) = match Identity::from_der(&der) {
        Ok(id) => (id.uri(), id.cluster),
        Err(_) if details.is_ca => ("root".into(), details.common_name.clone()),
        Err(e) => (format!("none: {e}"), String::new()),
    };
    if json {
        let object = serde_json::json!({
            "identity": identity, "cluster": cluster, "serial": details.serial, "subject": details.subject,
            "issuer": details.issuer, "not_before": time(from), "not_after": time(until), "days_left": days_left,
        });
        print(json_for_terminal(&object.to_string()))?;
    } else {
        print(format_args!(
            "identity    {}\ncluster     {}\nserial      {}\nissuer      {}\nnot before  {}\nnot after   {}  ({days_left} days left)",
            for_terminal(&identity),
            for_terminal(&cluster),
            details.serial,
            for_terminal(&details.issuer),
            time(from),
            time(until)
        ))?;
    }
    Ok(())
}
