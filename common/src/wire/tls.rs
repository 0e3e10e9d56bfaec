//! TLS 1.3 with certificates on both sides: reading credentials, and the two rustls configurations.
//!
//! Tickets, resumption and 0-RTT are off: a resumed session would not verify the client's
//! certificate again.

mod config;
mod error;
mod files;

pub(super) use config::pinned_client_config;
use config::provider;
pub use error::CredentialsError;
pub use files::{IdentityFiles, SET_ASIDE};

use crate::model::identity::{Identity, Role, validity};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};

/// A certificate, its key and the root that the peer must descend from.
pub struct Credentials {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) root: CertificateDer<'static>,
    identity: Identity,
    origin: String,
}

impl Credentials {
    /// Reads `cert.pem`, `key.pem` and `ca.pem` of `dir`, and checks everything that can be checked
    /// without a peer.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn load(dir: &Path, role: Role) -> Result<Self, CredentialsError> {
        let files = IdentityFiles::read(dir)?;
        let (key_path, us) = (dir.join("key.pem"), rustix::process::geteuid().as_raw());
        let (owner, mode) = (files.key_stat.st_uid, files.key_stat.st_mode & 0o777);
        if owner != us && us != 0 {
            return Err(CredentialsError::KeyOwner {
                path: key_path,
                owner,
                us,
            });
        }
        if mode & 0o077 != 0 {
            return Err(CredentialsError::KeyMode {
                path: key_path,
                mode,
            });
        }
        Self::from_pem(&files.cert, &files.key, &files.ca, role, dir)
    }

    /// The same checks for credentials that are not in files; `dir` only names them in messages.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn from_pem(
        cert: &[u8],
        key: &[u8],
        ca: &[u8],
        role: Role,
        dir: &Path,
    ) -> Result<Self, CredentialsError> {
        let (cert_path, key_path, ca_path) = (
            dir.join("cert.pem"),
            dir.join("key.pem"),
            dir.join("ca.pem"),
        );
        let pem = |path: &PathBuf, what| CredentialsError::Pem {
            path: path.clone(),
            what,
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<_, _>>()
            .map_err(|_| pem(&cert_path, "a certificate"))?;
        let leaf = chain
            .first()
            .ok_or_else(|| pem(&cert_path, "a certificate"))?;
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|_| pem(&key_path, "a private key"))?;
        let root =
            CertificateDer::from_pem_slice(ca).map_err(|_| pem(&ca_path, "a certificate"))?;
        let identity = Identity::from_der(leaf).map_err(|source| CredentialsError::Identity {
            path: cert_path.clone(),
            source,
        })?;
        if identity.role != role {
            let wanted = match role {
                Role::Agent => "an agent's",
                Role::User => "a user's",
                Role::Coordinator => "a coordinator's",
            };
            return Err(CredentialsError::Role {
                path: cert_path,
                found: identity,
                wanted,
                role,
            });
        }
        let new = Self {
            chain,
            key,
            root,
            identity,
            origin: dir.display().to_string(),
        };
        // Before the dates: a certificate without its key cannot be renewed either.
        new.check_pair(&cert_path, key_path)?;
        check_validity(&cert_path, new.certificate())?;
        check_validity(&ca_path, &new.root)?;
        if !new.descends() {
            return Err(CredentialsError::Root {
                path: cert_path,
                ca: ca_path,
            });
        }
        Ok(new)
    }

    /// Fails if the key is not that of the certificate.
    fn check_pair(&self, cert_path: &Path, key: PathBuf) -> Result<(), CredentialsError> {
        let path = cert_path.into();
        let pair = CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider());
        match pair {
            Ok(_) => Ok(()),
            Err(rustls::Error::InconsistentKeys(_)) => Err(CredentialsError::Pair {
                path,
                key,
                role: self.identity.role,
            }),
            Err(source) => Err(CredentialsError::Tls { path, source }),
        }
    }

    /// Whether each certificate names the next one as its issuer, up to the root.
    fn descends(&self) -> bool {
        let links = self
            .chain
            .iter()
            .chain([&self.root])
            .map(|der| crate::model::identity::details(der))
            .collect::<Result<Vec<_>, _>>();
        links.is_ok_and(|links| {
            links
                .windows(2)
                .all(|pair| pair[0].issuer == pair[1].subject)
        })
    }

    /// Our identity by these credentials.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The certificate, as DER.
    pub fn certificate(&self) -> &[u8] {
        &self.chain[0]
    }

    /// When the first of its certificates expires, from the leaf up to the root; in seconds since
    /// the Unix epoch.
    pub fn until(&self) -> i64 {
        let ends = self
            .chain
            .iter()
            .chain([&self.root])
            .filter_map(|der| validity(der).ok());
        ends.map(|(_, until)| until).min().unwrap_or_default()
    }

    /// The directory that they were read from, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// A secret that stays the same as long as the key does, different for each `purpose`
    /// (HMAC-SHA256 with the private key).
    pub(super) fn derived_secret(&self, purpose: &str) -> [u8; 32] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.key.secret_der());
        let mut out = [0; 32];
        out.copy_from_slice(ring::hmac::sign(&key, purpose.as_bytes()).as_ref());
        out
    }

    /// SHA-256 of the root's public key: the pin in tokens.
    pub fn root_pin(&self) -> [u8; 32] {
        crate::model::identity::key_hash(&self.root).unwrap_or_default()
    }
}

/// The first certificate of a PEM text, as DER.
pub fn first_certificate(pem: &[u8]) -> Option<Vec<u8>> {
    CertificateDer::from_pem_slice(pem)
        .ok()
        .map(|der| der.to_vec())
}

fn check_validity(path: &Path, der: &[u8]) -> Result<(), CredentialsError> {
    let (from, until) = validity(der).map_err(|source| CredentialsError::Identity {
        path: path.into(),
        source,
    })?;
    let show = |seconds: i64| {
        jiff::Timestamp::from_second(seconds)
            .map_or_else(|_| seconds.to_string(), |t| t.to_string())
    };
    let now = jiff::Timestamp::now().as_second();
    let when = if now > until {
        format!("expired at {}", show(until))
    } else if now < from {
        format!(
            "is not valid before {} (is this host's clock right?)",
            show(from)
        )
    } else {
        return Ok(());
    };
    Err(CredentialsError::Validity {
        path: path.into(),
        when,
        now: show(now),
    })
}
