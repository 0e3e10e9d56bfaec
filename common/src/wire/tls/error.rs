//! Why a certificate cannot be used, in words that name its file.

use crate::model::identity::{Identity, IdentityError, Role};
use std::path::PathBuf;

/// Why credentials cannot be used. Each message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {}; `mezcal certs issue` makes cert.pem, key.pem and ca.pem", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The key file can be read by others.
    #[error("{} can be read by others (mode {mode:03o}): run `chmod 600 {}`", path.display(), path.display())]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file belongs to another account.
    #[error("{} belongs to uid {owner}, not to uid {us} that runs this: run `chown -h {us} {}`", path.display(), path.display())]
    KeyOwner {
        /// The key file.
        path: PathBuf,
        /// The owner's uid.
        owner: u32,
        /// The uid of this process.
        us: u32,
    },
    /// Not PEM, or not the content that the file should have.
    #[error("{} does not hold {what} in PEM form", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// The content that it should have.
        what: &'static str,
    },
    /// The certificate has no identity, or one of a strange form.
    #[error("{} is not a Mezcal certificate", path.display())]
    Identity {
        /// The certificate file.
        path: PathBuf,
        /// The reason.
        source: IdentityError,
    },
    /// The certificate is of another role.
    #[error("{} is the certificate of the {found}, but {wanted} certificate is needed here: make one with `mezcal certs issue {}`", path.display(), issue(*role))]
    Role {
        /// The certificate file.
        path: PathBuf,
        /// Identity of its holder.
        found: Identity,
        /// The kind of certificate that is needed, with its article.
        wanted: &'static str,
        /// The role that is needed.
        role: Role,
    },
    /// The certificate is for another key.
    #[error("{} is not the certificate of the key in {}: if you have no files that belong \
        together, {}", path.display(), key.display(), anew(*role))]
    Pair {
        /// The certificate file.
        path: PathBuf,
        /// The key file.
        key: PathBuf,
        /// The role of their holder.
        role: Role,
    },
    /// The certificate is not valid yet, or has expired.
    #[error("{} {}: make a new one with `mezcal certs issue` (now: {now})", path.display(), when)]
    Validity {
        /// The certificate file.
        path: PathBuf,
        /// The predicate of the message.
        when: String,
        /// The present time.
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
    /// rustls refuses certificate and key.
    #[error("{} and its key cannot be used together", path.display())]
    Tls {
        /// The certificate file.
        path: PathBuf,
        /// The error of rustls.
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

/// The remedy where nothing is left from which a certificate could be renewed.
fn anew(role: Role) -> &'static str {
    match role {
        Role::Agent => {
            "join again with a token of `coordinator token create --replace --host HOST`"
        }
        Role::User => "join again with a token of `coordinator token create --replace --user NAME`",
        Role::Coordinator => "make new ones with `mezcal certs issue coordinator`",
    }
}
