//! `agent join`: this host's key and certificate, and its configuration file.

use crate::config::{AgentConfig, DEFAULT_PATH, own_state};
use crate::supervisor::greeting::{Greeting, greet};
use anyhow::Context;
use mezcal_common::model::escape::chain;
use mezcal_common::model::hosts;
use mezcal_common::model::identity::Role;
use mezcal_common::system::account;
use mezcal_common::system::config::{host_name, read_toml};
use mezcal_common::system::files::{self, Directory, Owner, PRIVATE};
use mezcal_common::system::output::print;
use mezcal_common::wire::tls::Credentials;
use std::path::{Path, PathBuf};

/// The account that installed agents run as, if the package has made it.
pub(crate) const ACCOUNT: &str = "mezcal-agent";
/// Where root's agents keep their key.
const IDENTITY: &str = "/var/lib/mezcal-agent/pki";

/// Join a cluster: make this host's key, and get its certificate for a token.
#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    /// The coordinator's host, and its port for joining if that is not 7434
    #[arg(value_name = "HOST[:PORT]")]
    pub address: String,
    /// File that holds the token; - reads it from standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// The configuration file, made if it does not exist (default: /etc/mezcal/agent.toml; without
    /// root ~/.local/state/mezcal-agent/HOST/agent.toml, or in /var/tmp if the home is on a network
    /// file system)
    #[arg(long, env = "MEZCAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory for cert.pem, key.pem and ca.pem (default: the one in the configuration file, else
    /// /var/lib/mezcal-agent/pki, or beside the configuration file without root)
    #[arg(long, value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// Name of this host (default: its host name); it has to match the token's
    #[arg(long, value_name = "HOST")]
    pub name: Option<String>,
    /// Jobs at a time, for a new configuration file (default: the CPUs)
    #[arg(long, value_name = "N")]
    pub slots: Option<u16>,
    /// Get a new certificate even if there is a valid one; a token of `coordinator token create
    /// --replace` does so without this
    #[arg(long)]
    pub force: bool,
    /// Report as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Joins, or finds that this host has joined.
///
/// # Errors
/// An error text for the user.
pub fn run(args: &JoinArgs) -> anyhow::Result<()> {
    let root = rustix::process::geteuid().is_root();
    let name = hosts::normalise(&args.name.clone().unwrap_or_else(host_name))
        .context("this host's name; give it with --name")?;
    // The name that this host calls itself, whatever name the command was given: its agent looks
    // for its files without being told.
    let own = own_state(&host_name());
    let files = Files::of(args, root, &own)?;
    let (config, known, identity) = (files.config, files.known, files.identity);
    // A certificate that looks good here may have been revoked, and a token may be there to replace
    // it: the coordinator has to decide that.
    let had = known
        .as_ref()
        .filter(|_| !args.force)
        .zip(Credentials::load(&identity, Role::Agent).ok());
    let token = match (mezcal_certs::read_token(&args.token_file), &had) {
        (Ok(token), _) => token,
        // A person who runs the command again may have thrown the token away.
        (Err(_), Some((_, credentials))) => {
            let name = &credentials.identity().name;
            say(args, false, name, &config, &identity)?;
            return Ok(());
        }
        (Err(why), None) => anyhow::bail!(why),
    };
    // Everything that can fail here fails before the token is spent.
    let account = if root { account::named(ACCOUNT) } else { None };
    let owner = account.as_ref().map(|account| (account.uid, account.gid));
    if !root && (args.identity.is_none() || args.config.is_none()) {
        // The directory may be in /var/tmp, where anybody may have made it.
        Directory::own(&own)?;
    }
    let keys = keys(&identity, owner)?;
    let place = match &known {
        Some(_) => None,
        None => Some(place_of(&config)?),
    };
    let runtime = mezcal_common::system::runtime::start(None)?;
    let joining = mezcal_certs::join(&args.address, &token, Role::Agent, Some(name));
    let joined = match runtime.block_on(joining) {
        Ok(joined) => joined,
        Err(e) => {
            if let Some((known, credentials)) = &had {
                let remark = goes_on(known, credentials, e.into())?;
                let name = &credentials.identity().name;
                say(args, false, name, &config, &identity)?;
                tell!("agent: {remark}");
                return Ok(());
            }
            keys.discard();
            return Err(e.into());
        }
    };
    joined.issued.write_into(&keys, owner)?;
    keys.sync();
    if let Some(place) = &place {
        let runtime = (!root && args.identity.is_none()).then(|| own.join("run"));
        let (coordinator, runtime) = (&joined.coordinator, runtime.as_deref());
        let text = configuration(coordinator, &identity, args.slots, owner.is_some(), runtime);
        write_configuration(place, &config, &text)?;
    }
    say(args, true, &joined.name, &config, &identity)?;
    remark(root, known, &joined, &config);
    Ok(())
}

/// Where the files of this host are, or will be.
struct Files {
    config: PathBuf,
    /// The contents of the configuration file, if it is there.
    known: Option<AgentConfig>,
    identity: PathBuf,
}

impl Files {
    fn of(args: &JoinArgs, root: bool, own: &Path) -> anyhow::Result<Self> {
        let config = args.config.clone().unwrap_or_else(|| match root {
            true => PathBuf::from(DEFAULT_PATH),
            false => own.join("agent.toml"),
        });
        let known = config
            .exists()
            .then(|| read_toml::<AgentConfig>(&config))
            .transpose()?;
        let identity = args
            .identity
            .clone()
            .or_else(|| known.as_ref().map(|known| known.identity.clone()))
            .unwrap_or_else(|| match root {
                true => PathBuf::from(IDENTITY),
                false => own.join("pki"),
            });
        Ok(Self {
            config,
            known,
            identity,
        })
    }
}

/// The directory of the key, owned by the account that will use it.
fn keys(identity: &Path, owner: Option<Owner>) -> anyhow::Result<Directory> {
    let mut keys = Directory::make(identity, PRIVATE)?;
    if let Some(owner) = owner {
        keys.give_to(owner)
            .with_context(|| format!("the key has to belong to {ACCOUNT}"))?;
    }
    keys.try_writing()?;
    Ok(keys)
}

/// The directory of a configuration file that is not there yet.
fn place_of(config: &Path) -> anyhow::Result<Directory> {
    let place = Directory::make(files::parent(config), 0o755)?;
    place.try_writing()?;
    Ok(place)
}

fn write_configuration(place: &Directory, config: &Path, text: &str) -> anyhow::Result<()> {
    let name = config.file_name().unwrap_or_default().to_string_lossy();
    place.replace(&name, text.as_bytes(), 0o644, None)?;
    place.sync();
    Ok(())
}

/// The steps that are left to do on a host that has joined, and the settings that do not fit
/// together.
fn remark(root: bool, known: Option<AgentConfig>, joined: &mezcal_certs::Joined, config: &Path) {
    if !root {
        tell!(
            "agent: `mezcal agent at-boot` has the agent started at boot, or says what is missing \
             for that; without it this agent does not come back after a reboot"
        );
    }
    if let Some(known) = known.filter(|known| known.coordinator != joined.coordinator) {
        let (old, new) = (known.coordinator, &joined.coordinator);
        tell!(
            "agent: {} names the coordinator {old}, and the certificate came from {new}: is that the same one?",
            config.display()
        );
    }
    if let Some(clock) = &joined.clock {
        tell!("agent: {clock}; the agent can be started when that is fixed");
    }
}

/// A token has not helped a host that has a certificate already. That is as it should be unless
/// that certificate does not count any more: a remark.
fn goes_on(
    known: &AgentConfig,
    credentials: &Credentials,
    why: anyhow::Error,
) -> anyhow::Result<String> {
    let unused = format!("the token was not used: {}", chain(&*why));
    match greet(&known.coordinator, credentials) {
        Ok(_) => Ok(unused),
        Err(Greeting::Refused(refused) | Greeting::Other(refused)) => Err(why.context(format!(
            "this host's certificate is not accepted any more: {refused}"
        ))),
        Err(Greeting::Lost(lost)) => Ok(format!(
            "{unused}; and the coordinator could not be asked whether the certificate is valid: \
             {lost}"
        )),
    }
}

fn configuration(
    coordinator: &str,
    identity: &Path,
    slots: Option<u16>,
    as_users: bool,
    runtime: Option<&Path>,
) -> String {
    let quoted = |value: &str| toml::Value::from(value).to_string();
    let mut text = format!(
        "coordinator = {}\nidentity = {}\n",
        quoted(coordinator),
        quoted(&identity.to_string_lossy())
    );
    if let Some(runtime) = runtime {
        // The runtime directory of a login session goes with the session.
        text.push_str(&format!(
            "runtime = {}\n",
            quoted(&runtime.to_string_lossy())
        ));
    }
    if as_users {
        text.push_str("run_as = \"user\"   # those whose mezcal-engines@USER.service is enabled\n");
    }
    text.push_str(
        &slots.map_or("# slots = 4      # default: the CPUs\n".into(), |slots| {
            format!("slots = {slots}\n")
        }),
    );
    text
}

fn say(
    args: &JoinArgs,
    new: bool,
    name: &str,
    config: &Path,
    identity: &Path,
) -> anyhow::Result<()> {
    if args.json {
        let object = serde_json::json!({"host": name, "joined": new, "config": config, "identity": identity});
        print(object)?;
    } else if new {
        tell!(
            "agent: joined as {name}; configured by {}, key in {}",
            config.display(),
            identity.display()
        );
    } else {
        tell!(
            "agent: this host has joined already, as {name} ({}); --force gets another certificate",
            identity.display()
        );
    }
    Ok(())
}
