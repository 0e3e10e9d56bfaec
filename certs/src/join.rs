//! Joining a cluster: a key made here, a token sent to the right coordinator, and a certificate
//! that is checked before it is used.

use crate::{CertsError, Issued, can_replace, replace, request, sign};
use mezcal_common::model::identity::{Identity, Role};
use mezcal_common::model::token::Token;
use mezcal_common::wire::endpoint::ConnectError;
use mezcal_common::wire::enrol::{self, FromEnroller};
use mezcal_common::wire::tls::{Credentials, CredentialsError, IdentityFiles, first_certificate};
use std::path::Path;

/// Why a host or user has not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is no coordinator, or it is the wrong one.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The coordinator refuses us.
    #[error("the coordinator at {address} refuses: {reason}")]
    Refused {
        /// The coordinator's address.
        address: String,
        /// The coordinator's message.
        reason: String,
    },
    /// The certificate that it gave us cannot be used.
    #[error("the certificate from {address} cannot be used")]
    Useless {
        /// The coordinator's address.
        address: String,
        /// The reason.
        source: CredentialsError,
    },
    /// The root that it gave us is not the one of the token.
    #[error("the root from {0} is not the one that the token is for")]
    OtherRoot(String),
    /// The expired credentials of this host cannot be read.
    #[error(transparent)]
    Here(#[from] CredentialsError),
    /// No key could be made, or no file written.
    #[error(transparent)]
    Certs(#[from] CertsError),
}

impl JoinError {
    /// Whether waiting does not help, because a person has to change something first.
    pub fn needs_a_person(&self) -> bool {
        match self {
            JoinError::Connect(e) => e.needs_a_person(),
            JoinError::Refused { .. }
            | JoinError::Useless { .. }
            | JoinError::OtherRoot(_)
            | JoinError::Here(_)
            | JoinError::Certs(_) => true,
        }
    }
}

/// The credentials and addresses that a coordinator has given us.
pub struct Joined {
    /// Certificate, key and root.
    pub issued: Issued,
    /// Our name, as the certificate has it.
    pub name: String,
    /// HOST:PORT for agents and clients.
    pub coordinator: String,
    /// Why it cannot be used yet, if so: this host's clock disagrees with the coordinator's. The
    /// certificate is valid all the same.
    pub clock: Option<String>,
}

/// Requests a certificate of this role from the coordinator at `HOST` or `HOST:PORT`. The key
/// leaves this process only into the files that [`Issued::write`] makes.
///
/// # Errors
/// [`JoinError`]. Nothing is sent to a coordinator of another cluster.
pub async fn join(
    address: &str,
    token: &Token,
    role: Role,
    host: Option<String>,
) -> Result<Joined, JoinError> {
    let (place, address) = match address.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && !host.ends_with(':') => {
            (host.to_owned(), address.to_owned())
        }
        Some(_) | None => (address.to_owned(), format!("{address}:{}", enrol::PORT)),
    };
    let (key, request) = request()?;
    let (cert, ca, port) = match enrol::join(&address, token, host, request).await? {
        FromEnroller::Joined { cert, ca, port } => (cert, ca, port),
        FromEnroller::Refused { reason } => {
            return Err(JoinError::Refused {
                address,
                reason: mezcal_common::model::escape::for_terminal(&reason).into_owned(),
            });
        }
    };
    let pinned = first_certificate(ca.as_bytes())
        .and_then(|der| mezcal_common::model::identity::key_hash(&der))
        == Some(token.root);
    if !pinned {
        return Err(JoinError::OtherRoot(address));
    }
    let checked = Credentials::from_pem(
        cert.as_bytes(),
        key.as_bytes(),
        ca.as_bytes(),
        role,
        Path::new(&address),
    );
    let (name, clock) = match checked {
        Ok(checked) => (checked.identity().name.clone(), None),
        // It has just been made. Rejecting it would waste the token.
        Err(CredentialsError::Validity { when, now, .. }) => {
            let holder =
                first_certificate(cert.as_bytes()).and_then(|der| Identity::from_der(&der).ok());
            let clock = format!(
                "the new certificate {when}, and this host's clock says {now}: one of the two clocks is wrong"
            );
            (
                holder.map(|holder| holder.name).unwrap_or_default(),
                Some(clock),
            )
        }
        Err(source) => return Err(JoinError::Useless { address, source }),
    };
    Ok(Joined {
        issued: Issued { cert, key, ca },
        name,
        coordinator: format!("{place}:{port}"),
        clock,
    })
}

/// Requests another certificate in the place of the expired one in `dir`, whose key is there, from
/// the coordinator at HOST:PORT, and puts it there.
///
/// # Errors
/// [`JoinError`]; the old files stay.
pub async fn renew_expired(address: &str, dir: &Path, role: Role) -> Result<(), JoinError> {
    let files = IdentityFiles::read(dir)?;
    can_replace(dir)?;
    let root = first_certificate(&files.ca)
        .and_then(|der| mezcal_common::model::identity::key_hash(&der))
        .unwrap_or_default();
    let (new_key, request) = request()?;
    let signature = sign(&String::from_utf8_lossy(&files.key), &request)?;
    let certificate = first_certificate(&files.cert).unwrap_or_default();
    match enrol::renew(address, root, certificate, request, signature).await? {
        FromEnroller::Joined { cert, .. } => Ok(replace(dir, role, cert, new_key)?),
        FromEnroller::Refused { reason } => {
            let reason = mezcal_common::model::escape::for_terminal(&reason).into_owned();
            Err(JoinError::Refused {
                address: address.into(),
                reason,
            })
        }
    }
}

/// Reads a token from a file, or from standard input for `-`: never from an argument, which all
/// users of the host can see.
///
/// # Errors
/// The reason, in words.
pub fn read_token(file: &Path) -> Result<Token, String> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin().lock())
            .map_err(|e| format!("cannot read the token from standard input: {e}"))?
    } else {
        std::fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?
    };
    Token::parse(&text).map_err(|e| e.to_string())
}
