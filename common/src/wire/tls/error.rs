//! Why a certificate cannot be used, in words that name its file.

use crate::model::identity::{Identity, IdentityError, Role};
use std::path::PathBuf;

/// Why credentials cannot be used. Each message names the file and the way out.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {}; `mezcal certs issue` makes cert.pem, key.pem and ca.pem", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The key is open to others.
    #[error("{} can be read by others (mode {mode:03o}): run `chmod 600 {}`", path.display(), path.display())]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key is somebody else's.
    #[error("{} belongs to uid {owner}, not to uid {us} that runs this: run `chown -h {us} {}`", path.display(), path.display())]
    KeyOwner {
        /// The key file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who runs this.
        us: u32,
    },
    /// Not PEM, or not what the file should hold.
    #[error("{} does not hold {what} in PEM form", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The certificate says nothing, or something odd, of its holder.
    #[error("{} is not a Mezcal certificate", path.display())]
    Identity {
        /// The certificate file.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// The certificate is for something else.
    #[error("{} is the certificate of the {found}, but {wanted} certificate is needed here: make one with `mezcal certs issue {}`", path.display(), issue(*role))]
    Role {
        /// The certificate file.
        path: PathBuf,
        /// Whose certificate it is.
        found: Identity,
        /// What is needed, with its article.
        wanted: &'static str,
        /// The role needed.
        role: Role,
    },
    /// The certificate is for another key.
    #[error("{} is not the certificate of the key in {}: if no files that belong together are left, {}", path.display(), key.display(), anew(*role))]
    Pair {
        /// The certificate file.
        path: PathBuf,
        /// The key file.
        key: PathBuf,
        /// Whose they should be.
        role: Role,
    },
    /// Before or after its time.
    #[error("{} {}: make a new one with `mezcal certs issue` (now: {now})", path.display(), when)]
    Validity {
        /// The certificate file.
        path: PathBuf,
        /// What is wrong.
        when: String,
        /// The present.
        now: String,
    },
    /// The certificate was not signed by this root.
    #[error("{} was not issued by the root in {}: the two are of different clusters", path.display(), ca.display())]
    Root {
        /// The certificate file.
        path: PathBuf,
        /// The root's file.
        ca: PathBuf,
    },
    /// rustls refuses the pair.
    #[error("{} and its key cannot be used together", path.display())]
    Tls {
        /// The certificate file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

fn issue(role: Role) -> &'static str {
    match role {
        Role::Agent => "agent HOST",
        Role::User => "user NAME",
        Role::Coordinator => "coordinator",
    }
}

/// The way out for whoever has nothing that a new certificate could be made from.
fn anew(role: Role) -> &'static str {
    match role {
        Role::Agent => {
            "join again with a token of `coordinator token create --replace --host HOST`"
        }
        Role::User => "join again with a token of `coordinator token create --replace --user NAME`",
        Role::Coordinator => "make new ones with `mezcal certs issue coordinator`",
    }
}
