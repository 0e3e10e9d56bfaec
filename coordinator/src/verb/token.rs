//! `coordinator token`: the join tokens of hosts and users.

use crate::client::ask::{self, done};
use crate::client::names::{members, word};
use crate::client::profile::ProfileArgs;
use crate::exit::Exit;
use crate::report::table::{show_lines, show_table, time};
use clap::Subcommand;
use mezcal_common::message::client::{ToClient, ToService};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::duration::parse_duration;
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
        /// For hosts, as names or ranges; give new hosts the full names that jobs will use, such as
        /// mezcal[01-12].example.org
        #[arg(long, value_name = "HOST", required_unless_present = "user")]
        host: Vec<String>,
        /// For users
        #[arg(long, value_name = "NAME", conflicts_with = "host")]
        user: Vec<String>,
        /// How long a token is valid
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
        /// The token replaces the certificate that the host or user has, as after a reinstallation
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
        /// The token's id, as `token list` shows it
        id: String,
        /// Which cluster
        #[command(flatten)]
        profile: ProfileArgs,
    },
}

/// Runs `token`.
///
/// # Errors
/// Exit 2 and 3 as everywhere.
pub fn run(args: &TokenArgs) -> Result<u8, Exit> {
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
            show_lines(tokens.iter().map(|(name, token)| {
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
        TokenVerb::List { json, profile } => list(*json, profile),
        TokenVerb::Delete { id, profile } => done(
            profile,
            ToService::DeleteToken {
                request: 1,
                id: id.clone(),
            },
        ),
    }
}

fn list(json: bool, profile: &ProfileArgs) -> Result<u8, Exit> {
    let rows = ask::pages(
        profile,
        ToService::Tokens { request: 1 },
        |said| match said {
            ToClient::Tokens { tokens, more, .. } => Some((tokens, more)),
            _ => None,
        },
    )?;
    let now = WallTime::now();
    if json {
        return show_lines(rows.iter().map(|t| {
                    serde_json::json!({
                        "id": t.id, word(t.member): t.name, "expires": time(t.expires), "used": t.used.map(time), "replace": t.replace,
                    })
                    .to_string()
                }));
    }
    show_table(
        ["ID", "FOR", "NAME", "STATE"],
        rows.iter().map(|t| {
            let state = match (t.used, t.expires > now) {
                (Some(at), _) => format!("used {}", time(at)),
                (None, true) => format!("valid until {}", time(t.expires)),
                (None, false) => format!("expired {}", time(t.expires)),
            };
            [t.id.clone(), word(t.member).into(), t.name.clone(), state]
        }),
    )
}
