//! `coordinator join`: an identity for a user, by a token.

use crate::client::profile::{self};
use crate::exit::{Exit, chain};
use mezcal_common::model::identity::Role;
use mezcal_common::system::files::{self, Directory, PRIVATE, PlaceError};
use mezcal_common::wire::tls::Credentials;
use std::path::{Path, PathBuf};

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
    /// Get a new certificate even if the profile has a valid one
    #[arg(long)]
    pub force: bool,
}

/// Runs `join`.
///
/// # Errors
/// Exit 2 for the token and the files, 3 for the coordinator.
pub fn run(args: &JoinArgs) -> Result<u8, Exit> {
    let file = profile::file(&args.profile)?;
    let (dir, known) = profile::place_of(&args.profile, &file)?;
    if !args.force && file.exists() && Credentials::load(&dir, Role::User).is_ok() {
        tell!(
            "coordinator: the profile {} has a valid certificate; --force gets another one",
            args.profile
        );
        return Ok(0);
    }
    let token = mezcal_certs::read_token(&args.token_file).map_err(Exit::usage)?;
    // Everything that can fail here fails before the token is spent.
    let ready = |path: &Path| {
        let place = Directory::make(path, PRIVATE)?;
        place.try_writing().map(|()| place)
    };
    let cannot = |e: PlaceError| Exit::usage(chain(&e));
    let keys = ready(&dir).map_err(cannot)?;
    let profiles = ready(files::parent(&file)).map_err(cannot)?;
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
    // An existing profile, which a person may have edited, stays.
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
        tell!("coordinator: {clock}; commands work when that is fixed");
    }
    Ok(0)
}
