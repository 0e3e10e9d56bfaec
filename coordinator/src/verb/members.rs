//! `coordinator token`, `revoke`, `certs` and `join`: who is in the cluster.

use crate::client::ask::{self, done};
use crate::client::names::expand;
use crate::client::profile::{self, ProfileArgs};
use crate::exit::{self, Exit, chain};
use crate::report::format::{counted, show};
use crate::report::table::{NO_NUMBERS, table, time};
use crate::service::REVOKED_AT_ONCE;
use crate::service::config::{CoordinatorConfig, DEFAULT_PATH};
use crate::store::{self, CertificateRow, Refusal, Registry};
use clap::Subcommand;
use mezcal_common::message::client::{CancelSummary, Member, RevokedMember, ToClient, ToService};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::duration::{format_duration, parse_duration};
use mezcal_common::model::escape::for_terminal;
use mezcal_common::model::identity::Role;
use mezcal_common::system::account;
use mezcal_common::system::config::read_toml;
use mezcal_common::system::files::{Directory, PRIVATE, PlaceError};
use mezcal_common::wire::tls::Credentials;
use serde::Deserialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Make, list and delete join tokens: each lets one host or user join once.
#[derive(Debug, clap::Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Make a token for each host or user; it is shown only once
    Create {
        /// For hosts, as names or ranges: new ones by the full names that their jobs will be sent
        /// to, as mezcal[01-12].example.org
        #[arg(long, value_name = "HOST", required_unless_present = "user")]
        host: Vec<String>,
        /// For users
        #[arg(long, value_name = "NAME", conflicts_with = "host")]
        user: Vec<String>,
        /// How long it is valid
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
        /// It replaces the certificate that the host or user has: for a machine that was installed
        /// anew
        #[arg(long)]
        replace: bool,
        /// One JSON object per token
        #[arg(long)]
        json: bool,
        /// Which cluster
        #[command(flatten)]
        profile: ProfileArgs,
    },
    /// Show tokens that are valid, or were valid lately
    List {
        /// One JSON object per token
        #[arg(long)]
        json: bool,
        /// Which cluster
        #[command(flatten)]
        profile: ProfileArgs,
    },
    /// Delete an unused token
    Delete {
        /// Its id, as the list shows it
        id: String,
        /// Which cluster
        #[command(flatten)]
        profile: ProfileArgs,
    },
}

/// Revoke all certificates of hosts or users: their connections end at once, and the batches of
/// users are cancelled.
#[derive(Debug, clap::Args)]
pub struct RevokeArgs {
    /// Hosts, as names or ranges
    #[arg(value_name = "HOST", required_unless_present = "user")]
    pub hosts: Vec<String>,
    /// A user instead
    #[arg(long, value_name = "NAME", conflicts_with = "hosts")]
    pub user: Vec<String>,
    /// The user's batches go on
    #[arg(long, requires = "user")]
    pub keep_batches: bool,
    /// Also if no admin with a valid certificate is left then
    #[arg(long)]
    pub force: bool,
    /// One JSON object per host or user
    #[arg(long)]
    pub json: bool,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

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
        /// Its name; without a name, refused certificates are listed
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
        /// The list of issued certificates that `mezcal certs issue` keeps (issued.jsonl); - is standard
        /// input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The coordinator's configuration file
        #[arg(long, default_value = DEFAULT_PATH, env = "MEZCAL_CONFIG", value_name = "FILE")]
        config: PathBuf,
    },
}

/// Join a cluster as a user: get a certificate for a token, and make a profile.
#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    /// The coordinator's host, and its port for joining if that is not 7434
    #[arg(value_name = "HOST[:PORT]")]
    pub address: String,
    /// File that holds the token; - reads it from standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// The profile to make
    #[arg(short, long, value_name = "NAME", default_value = profile::DEFAULT)]
    pub profile: String,
    /// Get a new certificate also if the profile has a valid one
    #[arg(long)]
    pub force: bool,
}

/// Runs `token`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn token(args: &TokenArgs) -> Result<u8, Exit> {
    match &args.verb {
        TokenVerb::Create {
            host,
            user,
            ttl,
            replace,
            json,
            profile,
        } => {
            let (member, names) = members(host, user)?;
            let request = ToService::CreateTokens {
                request: 1,
                member,
                names,
                ttl: *ttl,
                replace: *replace,
            };
            let tokens = ask::once(profile, request, |said| match said {
                ToClient::TokensCreated { tokens, .. } => Some(tokens),
                _ => None,
            });
            let tokens = tokens?.map_err(Exit::usage)?;
            let alone = tokens.len() == 1;
            print(tokens.iter().map(|(name, token)| {
                match (json, alone) {
                    (true, _) => {
                        serde_json::json!({word(member): name, "token": token, "ttl_seconds": ttl.as_secs(), "replace": replace})
                            .to_string()
                    }
                    (false, true) => token.clone(),
                    (false, false) => format!("{name} {token}"),
                }
            }))
        }
        TokenVerb::List { json, profile } => {
            let rows = ask::pages(
                profile,
                ToService::Tokens { request: 1 },
                |said| match said {
                    ToClient::Tokens { tokens, more, .. } => Some((tokens, more)),
                    _ => None,
                },
            )?;
            let now = WallTime::now();
            if *json {
                return print(rows.iter().map(|t| {
                    serde_json::json!({
                        "id": t.id, word(t.member): t.name, "expires": time(t.expires), "used": t.used.map(time), "replace": t.replace,
                    })
                    .to_string()
                }));
            }
            listing(
                ["ID", "FOR", "NAME", "STATE"],
                rows.iter().map(|t| {
                    let state = match (t.used, t.expires > now) {
                        (Some(at), _) => format!("used {}", time(at)),
                        (None, true) => format!("good until {}", time(t.expires)),
                        (None, false) => format!("over since {}", time(t.expires)),
                    };
                    [t.id.clone(), word(t.member).into(), t.name.clone(), state]
                }),
            )
        }
        TokenVerb::Delete { id, profile } => done(
            profile,
            ToService::DeleteToken {
                request: 1,
                id: id.clone(),
            },
        ),
    }
}

/// Runs `revoke`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn revoke(args: &RevokeArgs) -> Result<u8, Exit> {
    let (member, names) = members(&args.hosts, &args.user)?;
    let (keep_batches, force) = (args.keep_batches, args.force);
    let mut revoked = Vec::new();
    for names in names.chunks(REVOKED_AT_ONCE) {
        let request = ToService::RevokeMembers {
            request: 1,
            member,
            names: names.to_vec(),
            keep_batches,
            force,
        };
        let members = ask::once(&args.profile, request, |said| match said {
            ToClient::Revoked { members, .. } => Some(members),
            _ => None,
        });
        revoked.extend(members?.map_err(Exit::usage)?);
    }
    let (failed, ended): (Vec<_>, Vec<_>) = revoked
        .into_iter()
        .partition(|row: &RevokedMember| row.failed.is_some());
    let now = WallTime::now();
    print(ended.iter().map(|row| match args.json {
        true => revoked_json(member, row),
        false => revoked_in_words(member, row, args.keep_batches, now),
    }))?;
    if !failed.is_empty() {
        let reasons: Vec<String> = failed.into_iter().filter_map(|row| row.failed).collect();
        return Err(Exit::usage(reasons.join("\n")));
    }
    let alive = ended
        .iter()
        .any(|row| row.cancel.survivors > 0 || row.cancel.unreachable > 0);
    Ok(if alive { exit::FAILED } else { 0 })
}

fn revoked_json(member: Member, row: &RevokedMember) -> String {
    serde_json::json!({
        word(member): row.name, "certificates": row.certificates, "tokens": row.tokens, "revoked_before": row.before.map(time),
        "connections": row.connections, "batches": row.batches, "running": row.running, "waiting": row.waiting, "killed": row.cancel.killed,
        "survivors": row.cancel.survivors, "unreachable": row.cancel.unreachable, "fenced_seconds": row.cancel.fenced_for.as_secs(),
        "held": row.held, "held_seconds": row.held_for.as_secs(),
    })
    .to_string()
}

fn revoked_in_words(member: Member, row: &RevokedMember, kept: bool, now: WallTime) -> String {
    let name = for_terminal(&row.name);
    let mut parts = Vec::new();
    match (row.certificates, row.before) {
        (0, Some(before)) => parts.push(format!("was revoked already, at {}", time(before))),
        (0, None) => parts.push("it had no certificate".to_owned()),
        (count, _) => parts.push(counted(
            count,
            "certificate counts no more",
            "certificates count no more",
        )),
    }
    if row.tokens > 0 {
        parts.push(counted(
            row.tokens,
            "join token is void",
            "join tokens are void",
        ));
    }
    if row.connections > 0 {
        parts.push(counted(
            row.connections,
            "connection has ended",
            "connections have ended",
        ));
    }
    let jobs = format!("{} on hosts and {} waiting", row.running, row.waiting);
    match (row.batches, kept) {
        (0, _) => {}
        (batches, true) => parts.push(format!(
            "{} ({jobs})",
            counted(batches, "batch goes on", "batches go on")
        )),
        (batches, false) => {
            let CancelSummary {
                killed,
                survivors,
                unreachable,
                fenced_for,
                ..
            } = row.cancel;
            let batches = counted(batches, "batch was cancelled", "batches were cancelled");
            let mut text =
                format!("{batches}: jobs {jobs}, {killed} processes killed, {survivors} alive");
            if unreachable > 0 {
                let span = format_duration(Duration::from_secs(fenced_for.as_secs()));
                let _ = write!(
                    text,
                    "; {} out of reach and may go on for {span}",
                    counted(unreachable, "is", "are")
                );
            }
            parts.push(text);
        }
    }
    if row.held > 0 {
        let until = WallTime(
            now.0
                .saturating_add(row.held_for.as_micros().min(i64::MAX as u128) as i64),
        );
        parts.push(format!(
            "{} until {}, when its lease is surely over; then their jobs run elsewhere, or after `coordinator confirm-dead {name}`",
            counted(row.held, "attempt may run there", "attempts may run there"),
            time(until)
        ));
    }
    format!("{} {name}: {}", word(member), parts.join("; "))
}

/// Runs `certs`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn certs(args: &CertsArgs) -> Result<u8, Exit> {
    match &args.verb {
        CertsVerb::List { json, profile } => {
            let rows = ask::certificates(profile)?;
            let now = WallTime::now();
            if *json {
                return print(rows.iter().map(|c| {
                    serde_json::json!({
                        "serial": c.serial, word(c.member): c.name, "expires": time(c.expires), "revoked": c.revoked.map(time),
                    })
                    .to_string()
                }));
            }
            listing(
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
    let wall = |seconds: i64| WallTime(seconds.saturating_mul(1_000_000));
    let Some(host) = host else {
        let rows = refused.iter().map(|(name, s)| {
            [
                name.clone(),
                s.serial.clone(),
                time(wall(s.expires)),
                time(wall(s.seen)),
            ]
        });
        return listing(["HOST", "SERIAL", "UNTIL", "REFUSED"], rows);
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
                "no certificate of {host} was refused since the store was restored; `coordinator certs adopt` shows those that were"
            ),
            false => {
                let serials: Vec<&str> = own.iter().map(|(_, s)| s.serial.as_str()).collect();
                format!(
                    "several certificates came with the name {host}, and one may be stolen: `openssl x509 -serial` on the host says which is its \
                     own, and --serial takes that ({})",
                    serials.join(", ")
                )
            }
        }));
    };
    with_registry(&state, |registry| registry.adopt(meant, &stranger.serial))?;
    tell!(
        "the certificate {} of {meant} counts now, and no other of that host; it comes back by itself within five minutes",
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
            // A coordinator and an issuer prove themselves by the root.
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

/// Does something with the list of the coordinator of this host, as the account that it belongs to.
fn with_registry<T>(
    state: &Path,
    act: impl FnOnce(&Registry) -> Result<T, Refusal>,
) -> Result<T, Exit> {
    // What root made there, the coordinator could not use. Where it is has to be known before: its
    // owner would look elsewhere.
    account::act_as_owner(state).map_err(|e| {
        Exit::usage(format!(
            "cannot act as the owner of {}: {e}",
            state.display()
        ))
    })?;
    let registry = store::registry(state).map_err(|e| Exit::usage(chain(&e)))?;
    act(&registry).map_err(|e| Exit::usage(chain(&e)))
}

/// Runs `join`.
///
/// # Errors
/// Exit 2 for the token and the files, 3 for the coordinator.
pub fn join(args: &JoinArgs) -> Result<u8, Exit> {
    let file = profile::file(&args.profile)?;
    let (dir, known) = profile::place_of(&args.profile, &file)?;
    if !args.force && file.exists() && Credentials::load(&dir, Role::User).is_ok() {
        tell!(
            "coordinator: the profile {} has a certificate that is good; --force gets another one",
            args.profile
        );
        return Ok(0);
    }
    let token = mezcal_certs::read_token(&args.token_file).map_err(Exit::usage)?;
    // Whatever can fail here fails before the token is spent.
    let ready = |path: &Path| {
        let place = Directory::make(path, PRIVATE)?;
        place.try_writing().map(|()| place)
    };
    let cannot = |e: PlaceError| Exit::usage(chain(&e));
    let keys = ready(&dir).map_err(cannot)?;
    let profiles = ready(file.parent().unwrap_or(Path::new("."))).map_err(cannot)?;
    let runtime = mezcal_common::system::runtime::start(None).map_err(Exit::usage)?;
    let joined = runtime.block_on(mezcal_certs::join(&args.address, &token, Role::User, None));
    let joined = match joined {
        Ok(joined) => joined,
        Err(e) => {
            keys.discard();
            return Err(Exit::unreachable(chain(&e)));
        }
    };
    joined
        .issued
        .write_into(&keys, None)
        .map_err(|e| Exit::usage(chain(&e)))?;
    // What a person has written there stays.
    if !known {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let text = format!("coordinator = \"{}\"\n", joined.coordinator);
        profiles
            .replace(&name, text.as_bytes(), 0o644, None)
            .map_err(cannot)?;
    }
    tell!(
        "coordinator: joined as {}; `coordinator hosts{}` shows the hosts",
        joined.name,
        match args.profile.as_str() {
            profile::DEFAULT => String::new(),
            name => format!(" -p {name}"),
        }
    );
    if let Some(clock) = joined.clock {
        tell!("coordinator: {clock}; commands work when that is mended");
    }
    Ok(0)
}

fn members(host: &[String], user: &[String]) -> Result<(Member, Vec<String>), Exit> {
    if !user.is_empty() {
        return Ok((Member::User, user.to_vec()));
    }
    Ok((Member::Host, expand(host)?))
}

fn word(member: Member) -> &'static str {
    match member {
        Member::Host => "host",
        Member::User => "user",
    }
}

fn print(lines: impl Iterator<Item = String>) -> Result<u8, Exit> {
    let text: String = lines.flat_map(|line| [line, "\n".into()]).collect();
    show(&text)?;
    Ok(0)
}

fn listing<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Result<u8, Exit> {
    show(&table(head, rows, NO_NUMBERS))?;
    Ok(0)
}
