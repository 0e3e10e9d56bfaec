//! `coordinator certs`: the valid certificates, and the way back after a store was restored.

use crate::client::ask::{self};
use crate::client::names::word;
use crate::client::profile::ProfileArgs;
use crate::exit::{Exit, chain};
use crate::report::table::{show_lines, show_table, time};
use crate::service::config::{CoordinatorConfig, DEFAULT_PATH};
use crate::store::{self, CertificateRow, Refusal, Registry};
use clap::Subcommand;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::identity::Role;
use mezcal_common::system::account;
use mezcal_common::system::config::read_toml;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// List valid certificates, or admit certificates that were made elsewhere.
#[derive(Debug, clap::Args)]
pub struct CertsArgs {
    #[command(subcommand)]
    verb: CertsVerb,
}

#[derive(Debug, Subcommand)]
enum CertsVerb {
    /// Show the certificates on the coordinator's list
    List {
        /// One JSON object per certificate
        #[arg(long)]
        json: bool,
        /// Which cluster
        #[command(flatten)]
        profile: ProfileArgs,
    },
    /// After a restore, on the coordinator's host: admit the certificate of a host that was renewed
    /// since the copy was made
    Adopt {
        /// The host's name; without it, refused certificates are listed
        #[arg(value_name = "HOST")]
        host: Option<String>,
        /// The serial number, if several certificates came with this name
        #[arg(long, value_name = "SERIAL", requires = "host")]
        serial: Option<String>,
        /// The coordinator's configuration file
        #[arg(long, default_value = DEFAULT_PATH, env = "MEZCAL_CONFIG", value_name = "FILE")]
        config: PathBuf,
    },
    /// On the coordinator's host: admit certificates that `mezcal certs issue` made
    Import {
        /// The list of issued certificates that `mezcal certs issue` keeps (issued.jsonl); - is
        /// standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The coordinator's configuration file
        #[arg(long, default_value = DEFAULT_PATH, env = "MEZCAL_CONFIG", value_name = "FILE")]
        config: PathBuf,
    },
}

/// Runs `certs`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn run(args: &CertsArgs) -> Result<u8, Exit> {
    match &args.verb {
        CertsVerb::List { json, profile } => {
            let rows = ask::certificates(profile)?;
            let now = WallTime::now();
            if *json {
                return show_lines(rows.iter().map(|c| {
                    serde_json::json!({
                        "serial": c.serial, word(c.member): c.name, "expires": time(c.expires), "revoked": c.revoked.map(time),
                    })
                    .to_string()
                }));
            }
            show_table(
                ["SERIAL", "OF", "NAME", "STATE"],
                rows.iter().map(|c| {
                    let state = match (c.revoked, c.expires > now) {
                        (Some(at), _) => format!("revoked {}", time(at)),
                        (None, true) => format!("until {}", time(c.expires)),
                        (None, false) => format!("expired {}", time(c.expires)),
                    };
                    [
                        c.serial.clone(),
                        word(c.member).into(),
                        c.name.clone(),
                        state,
                    ]
                }),
            )
        }
        CertsVerb::Adopt {
            host,
            serial,
            config,
        } => adopt(host.as_deref(), serial.as_deref(), config),
        CertsVerb::Import { file, config } => import(file, config),
    }
}

fn adopt(host: Option<&str>, serial: Option<&str>, config: &Path) -> Result<u8, Exit> {
    let config: CoordinatorConfig = read_toml(config).map_err(|e| Exit::usage(chain(&e)))?;
    let state = config.state_dir();
    let refused = with_registry(&state, |registry| {
        registry.strangers().map_err(Refusal::Store)
    })?;
    let Some(host) = host else {
        let rows = refused.iter().map(|(name, s)| {
            [
                name.clone(),
                s.serial.clone(),
                time(WallTime::of_seconds(s.expires)),
                time(WallTime::of_seconds(s.seen)),
            ]
        });
        return show_table(["HOST", "SERIAL", "UNTIL", "REFUSED"], rows);
    };
    let known = refused.iter().map(|(name, _)| name.as_str());
    let meant = mezcal_common::model::hosts::meant(host, known).map_err(|several| {
        Exit::usage(format!(
            "{host} may be any of {}; write the full name",
            several.join(",")
        ))
    })?;
    let meant = meant.unwrap_or(host);
    let own: Vec<_> = refused
        .iter()
        .filter(|(name, s)| *name == meant && serial.is_none_or(|serial| serial == s.serial))
        .collect();
    let [(_, stranger)] = own.as_slice() else {
        return Err(Exit::usage(match own.is_empty() {
            true => format!(
                "no certificate of {host} was refused since the store was restored; `coordinator \
                 certs adopt` lists the certificates that were"
            ),
            false => {
                let serials: Vec<&str> = own.iter().map(|(_, s)| s.serial.as_str()).collect();
                format!(
                    "several certificates came with the name {host}, and one may be stolen: give \
                     --serial the one that `openssl x509 -serial` shows on the host ({})",
                    serials.join(", ")
                )
            }
        }));
    };
    with_registry(&state, |registry| registry.adopt(meant, &stranger.serial))?;
    tell!(
        "the certificate {} of {meant} is valid now, and no other of that host; its agent connects \
         again by itself within five minutes",
        stranger.serial
    );
    Ok(0)
}

/// One line of `issued.jsonl`.
#[derive(Deserialize)]
struct IssuedLine {
    serial: String,
    role: String,
    name: String,
    expires: String,
}

fn import(file: &Path, config: &Path) -> Result<u8, Exit> {
    let config: CoordinatorConfig = read_toml(config).map_err(|e| Exit::usage(chain(&e)))?;
    let state = config.state_dir();
    let read = match file == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin().lock()),
        false => std::fs::read_to_string(file),
    };
    let text = read.map_err(|e| Exit::usage(format!("cannot read {}: {e}", file.display())))?;
    let mut rows = Vec::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let at = |e: &dyn std::fmt::Display| {
            Exit::usage(format!("{}:{}: {e}", file.display(), number + 1))
        };
        let issued: IssuedLine = serde_json::from_str(line).map_err(|e| at(&e))?;
        let expires: jiff::Timestamp = issued.expires.parse().map_err(|e| at(&e))?;
        let role = match issued.role.as_str() {
            "agent" => Role::Agent,
            "user" => Role::User,
            // Coordinators and issuers prove themselves by the root, not by this list.
            _ => continue,
        };
        rows.push(CertificateRow {
            serial: issued.serial,
            role,
            name: issued.name,
            expires: expires.as_second(),
            revoked: None,
        });
    }
    let new = with_registry(&state, |registry| registry.import(&rows))?;
    tell!(
        "{new} of {} certificates are new on the coordinator's list",
        rows.len()
    );
    Ok(0)
}

/// Runs `act` on the certificate list of this host's coordinator, as the account that owns it.
fn with_registry<T>(
    state: &Path,
    act: impl FnOnce(&Registry) -> Result<T, Refusal>,
) -> Result<T, Exit> {
    // The coordinator could not use files that root made there. The path has to be known before the
    // switch: its owner would look elsewhere.
    account::act_as_owner(state).map_err(|e| {
        Exit::usage(format!(
            "cannot act as the owner of {}: {e}",
            state.display()
        ))
    })?;
    let registry = store::registry(state).map_err(|e| Exit::usage(chain(&e)))?;
    act(&registry).map_err(|e| Exit::usage(chain(&e)))
}
