//! Profiles: where the cluster is, and the user's identity there.

use crate::exit::{Exit, chain};
use mezcal_common::system::config::{expand_home, read_toml};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The profile without `--profile`.
pub const DEFAULT: &str = "default";

/// `~/.config/mezcal/profiles/NAME.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileFile {
    /// `HOST:PORT` of a running coordinator.
    pub coordinator: Option<String>,
    /// Address on which `run` itself is the coordinator, instead of `coordinator`.
    pub listen: Option<SocketAddr>,
    /// Directory of `cert.pem`, `key.pem` and `ca.pem`.
    pub identity: Option<PathBuf>,
    /// A line of bash before every `cmd`.
    pub setup: Option<String>,
    /// A command that reads paths on standard input and writes lines `path host…`: where the
    /// `inputs` of jobs are.
    pub locate: Option<String>,
    /// A table of environment variables for every job.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// Where jobs run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// On this host, in an agent of our own.
    Embedded,
    /// On agents that connect to us.
    Listen {
        /// The address to listen on.
        address: SocketAddr,
        /// A coordinator's credentials.
        identity: PathBuf,
    },
    /// With a running coordinator.
    Remote {
        /// HOST:PORT.
        coordinator: String,
        /// A user's credentials.
        identity: PathBuf,
    },
}

/// A profile with the options of this command.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Where its jobs run.
    pub cluster: Cluster,
    /// A line of bash before every `cmd`.
    pub setup: Option<String>,
    /// A command that says where files are.
    pub locate: Option<String>,
    /// Environment of every job.
    pub env: Vec<(String, String)>,
}

/// What the command line says about it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ProfileArgs {
    /// Profile: ~/.config/mezcal/profiles/NAME.toml
    #[arg(
        help_heading = "Cluster",
        short,
        long,
        env = "MEZCAL_PROFILE",
        value_name = "NAME"
    )]
    pub profile: Option<String>,
    /// Directory of cert.pem, key.pem and ca.pem, instead of the profile's
    #[arg(help_heading = "Cluster", long, value_name = "DIR")]
    pub identity: Option<PathBuf>,
}

impl ProfileArgs {
    /// Reads the profile; `listen` overrides its cluster, and `local` asks for an embedded run.
    ///
    /// # Errors
    /// Exit 2 naming the file and the fault, with the profiles that exist.
    pub fn resolve(&self, local: bool, listen: Option<SocketAddr>) -> Result<Profile, Exit> {
        let dir = profiles_dir();
        let name = self.profile.as_deref().unwrap_or(DEFAULT);
        let path = dir.join(format!("{name}.toml"));
        let file = if path.exists() {
            read_toml::<ProfileFile>(&path).map_err(|e| Exit::usage(chain(&e)))?
        } else if self.profile.is_some() && name != DEFAULT {
            return Err(Exit::usage(format!(
                "no profile {name:?}: {} does not exist; {}",
                path.display(),
                known_profiles(&dir)
            )));
        } else {
            ProfileFile::default()
        };
        let identity = self
            .identity
            .clone()
            .or(file.identity)
            .map_or_else(|| config_dir().join(name), |dir| expand_home(&dir));
        let cluster = match (local, listen.or(file.listen), file.coordinator) {
            (true, _, _) => Cluster::Embedded,
            (false, Some(_), Some(_)) if listen.is_none() => {
                return Err(Exit::usage(format!(
                    "{} has both `coordinator` and `listen`; keep one of them",
                    path.display()
                )));
            }
            (false, Some(address), _) => Cluster::Listen { address, identity },
            (false, None, Some(coordinator)) => Cluster::Remote {
                coordinator,
                identity,
            },
            (false, None, None) => Cluster::Embedded,
        };
        Ok(Profile {
            cluster,
            setup: file.setup,
            locate: file.locate,
            env: file.env.into_iter().collect(),
        })
    }

    /// The running coordinator that verbs without an embedded form need.
    ///
    /// # Errors
    /// Exit 2 if the profile names none.
    pub fn remote(&self) -> Result<(String, PathBuf), Exit> {
        match self.resolve(false, None)?.cluster {
            Cluster::Remote {
                coordinator,
                identity,
            } => Ok((coordinator, identity)),
            Cluster::Embedded | Cluster::Listen { .. } => {
                let dir = profiles_dir();
                let name = self.profile.as_deref().unwrap_or(DEFAULT);
                Err(Exit::usage(format!(
                    "this needs a running coordinator: write `coordinator = \"HOST:PORT\"` into {}, or name a profile with -p; {}",
                    dir.join(format!("{name}.toml")).display(),
                    known_profiles(&dir)
                )))
            }
        }
    }
}

/// The file of a new profile.
///
/// # Errors
/// Exit 2: the name cannot be a file's.
pub(crate) fn file(name: &str) -> Result<PathBuf, Exit> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(Exit::usage(format!(
            "{name:?} cannot be the name of a profile, which is a file name without a path"
        )));
    }
    Ok(profiles_dir().join(format!("{name}.toml")))
}

/// The directory for the certificate of that profile, and whether the profile exists already.
///
/// # Errors
/// Exit 2: the file cannot be read, or its profile does not name a running coordinator.
pub(crate) fn place_of(name: &str, file: &Path) -> Result<(PathBuf, bool), Exit> {
    let usual = config_dir().join(name);
    // A link that leads nowhere exists, too.
    if file.symlink_metadata().is_err() {
        return Ok((usual, false));
    }
    let known = read_toml::<ProfileFile>(file).map_err(|e| Exit::usage(chain(&e)))?;
    if known.coordinator.is_none() {
        let shown = file.display();
        return Err(Exit::usage(format!(
            "{shown} names no running coordinator: write `coordinator = \"HOST:PORT\"` into it, or remove it"
        )));
    }
    Ok((known.identity.map_or(usual, |dir| expand_home(&dir)), true))
}

fn config_dir() -> PathBuf {
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|d| Path::new(d).is_absolute())
        .map(PathBuf::from);
    base.unwrap_or_else(|| expand_home(Path::new("~/.config")))
        .join("mezcal")
}

fn profiles_dir() -> PathBuf {
    config_dir().join("profiles")
}

fn known_profiles(dir: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            Some(
                entry
                    .ok()?
                    .file_name()
                    .to_str()?
                    .strip_suffix(".toml")?
                    .to_owned(),
            )
        })
        .collect();
    names.sort();
    if names.is_empty() {
        format!("there are no profiles in {}", dir.display())
    } else {
        format!("profiles are: {}", names.join(", "))
    }
}
