//! TLS 1.3 with certificates on both sides: reading credentials, and the two rustls configurations.
//!
//! Tickets, resumption and 0-RTT are off: a resumed session would not verify the client's
//! certificate again.

use crate::model::identity::{Identity, IdentityError, Role, validity};
use crate::system::files;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A certificate, its key and the root that the peer must descend from.
pub struct Credentials {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) root: CertificateDer<'static>,
    identity: Identity,
    origin: String,
}

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

/// What is in the files of one directory, all of one time: a renewal puts another directory in the
/// place of the whole.
pub struct IdentityFiles {
    /// Of `cert.pem`.
    pub cert: Vec<u8>,
    /// Of `key.pem`.
    pub key: Vec<u8>,
    /// Of `ca.pem`.
    pub ca: Vec<u8>,
    key_stat: Stat,
}

/// Where a directory is while another takes its place, for file systems that cannot exchange the
/// two: beside it, with this at its name's end.
pub const SET_ASIDE: &str = "old";

/// Whoever exchanged two directories in steps may have been killed between them: the old one comes
/// back. If they are still at it, theirs fails.
fn put_back(dir: &Path) {
    let begin = format!(
        ".{}.",
        dir.file_name().unwrap_or_default().to_string_lossy()
    );
    for entry in std::fs::read_dir(files::parent(dir))
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path();
        let aside = entry.file_name().to_string_lossy().starts_with(&begin)
            && path.extension().is_some_and(|e| e == SET_ASIDE);
        if aside && files::is_our_directory(&path).unwrap_or(false) {
            let _ = std::fs::rename(&path, dir);
        }
    }
}

impl IdentityFiles {
    /// Reads them.
    ///
    /// # Errors
    /// [`CredentialsError::Read`].
    pub fn read(dir: &Path) -> Result<Self, CredentialsError> {
        let failed = |e: Errno| CredentialsError::Read {
            path: dir.join("cert.pem"),
            source: e.into(),
        };
        let open = || {
            rustix::fs::open(
                dir,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        loop {
            let opened = match open() {
                Err(Errno::NOENT) => {
                    put_back(dir);
                    open()
                }
                opened => opened,
            };
            let opened = opened.map_err(failed)?;
            let read = Self::read_in(&opened, dir);
            let gone = |e: &CredentialsError| matches!(e, CredentialsError::Read { source, .. } if source.kind() == ErrorKind::NotFound);
            if !read.as_ref().is_err_and(gone) {
                return read;
            }
            let place = |stat: Stat| (stat.st_dev, stat.st_ino);
            // Else another one has come into its place, and this one is being removed.
            let ours = place(rustix::fs::fstat(&opened).map_err(failed)?);
            if rustix::fs::stat(dir).is_ok_and(|now| place(now) == ours) {
                return read;
            }
        }
    }

    fn read_in(opened: &OwnedFd, dir: &Path) -> Result<Self, CredentialsError> {
        let read = |name: &str| {
            let read = || {
                let mut file = File::from(rustix::fs::openat(
                    opened,
                    name,
                    OFlags::RDONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?);
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                Ok((bytes, rustix::fs::fstat(&file)?))
            };
            read().map_err(|source| CredentialsError::Read {
                path: dir.join(name),
                source,
            })
        };
        let ((cert, _), (key, key_stat), (ca, _)) =
            (read("cert.pem")?, read("key.pem")?, read("ca.pem")?);
        Ok(Self {
            cert,
            key,
            ca,
            key_stat,
        })
    }
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

    /// The same checks for credentials that never were in files; `dir` only names them in messages.
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
        // Of what is no pair no date is of interest: it cannot be renewed either.
        match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider()) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(CredentialsError::Pair {
                    path: cert_path,
                    key: key_path,
                    role,
                });
            }
            Err(source) => {
                return Err(CredentialsError::Tls {
                    path: cert_path,
                    source,
                });
            }
        }
        check_validity(&cert_path, leaf)?;
        check_validity(&ca_path, &root)?;
        let links = chain
            .iter()
            .chain([&root])
            .map(|der| crate::model::identity::details(der))
            .collect::<Result<Vec<_>, _>>();
        if !links.is_ok_and(|links| {
            links
                .windows(2)
                .all(|pair| pair[0].issuer == pair[1].subject)
        }) {
            return Err(CredentialsError::Root {
                path: cert_path,
                ca: ca_path,
            });
        }
        Ok(Self {
            chain,
            key,
            root,
            identity,
            origin: dir.display().to_string(),
        })
    }

    /// Who these credentials make us.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The certificate, as DER.
    pub fn certificate(&self) -> &[u8] {
        &self.chain[0]
    }

    /// When the first of its certificates ends, from the leaf up to the root; in seconds since the
    /// Unix epoch.
    pub fn until(&self) -> i64 {
        let ends = self
            .chain
            .iter()
            .chain([&self.root])
            .filter_map(|der| validity(der).ok());
        ends.map(|(_, until)| until).min().unwrap_or_default()
    }

    /// The directory that they come from, for messages.
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

    fn roots(&self) -> Result<Arc<RootCertStore>, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        Ok(Arc::new(roots))
    }

    fn unusable(&self, source: rustls::Error) -> CredentialsError {
        CredentialsError::Tls {
            path: Path::new(&self.origin).join("cert.pem"),
            source,
        }
    }

    pub(super) fn server_config(
        &self,
        protocols: &[&[u8]],
    ) -> Result<ServerConfig, CredentialsError> {
        let build = || {
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                self.roots()?,
                provider(),
            )
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
            let tls = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(verifier)
                .with_single_cert(self.chain.clone(), self.key.clone_key())?;
            Ok(serving(tls, protocols))
        };
        build().map_err(|e| self.unusable(e))
    }

    /// For those who have no certificate yet; they get to see the root, too.
    pub(super) fn enrol_config(&self, protocol: &[u8]) -> Result<ServerConfig, CredentialsError> {
        let build = || {
            let chain = self.chain.iter().chain([&self.root]).cloned().collect();
            let tls = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_no_client_auth()
                .with_single_cert(chain, self.key.clone_key())?;
            Ok(serving(tls, &[protocol]))
        };
        build().map_err(|e| self.unusable(e))
    }

    /// SHA-256 of the root's public key: what tokens pin.
    pub fn root_pin(&self) -> [u8; 32] {
        crate::model::identity::key_hash(&self.root).unwrap_or_default()
    }

    pub(super) fn client_config(&self, protocol: &[u8]) -> Result<ClientConfig, CredentialsError> {
        let build = || {
            let tls = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(self.roots()?)
                .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
            Ok(connecting(tls, protocol))
        };
        build().map_err(|e| self.unusable(e))
    }
}

/// For whoever knows of a cluster only the hash of its root's public key.
pub(super) fn pinned_client_config(pin: [u8; 32], protocol: &[u8]) -> ClientConfig {
    let tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin }))
        .with_no_client_auth();
    connecting(tls, protocol)
}

/// What every listener has: its protocols, no tickets, no early data.
fn serving(mut tls: ServerConfig, protocols: &[&[u8]]) -> ServerConfig {
    tls.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    tls.max_early_data_size = 0;
    tls
}

/// What everybody who connects has: the protocol, no resumption, no early data.
fn connecting(mut tls: ClientConfig, protocol: &[u8]) -> ClientConfig {
    tls.alpn_protocols = vec![protocol.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    tls.enable_early_data = false;
    tls
}

/// Accepts the coordinator of the cluster whose root has a public key with this hash: the usual
/// checks, with that root found by its hash among what the peer shows.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
}

impl rustls::client::danger::ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        ocsp: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let pinned =
            |der: &&CertificateDer<'_>| crate::model::identity::key_hash(der) == Some(self.pin);
        let root = others
            .iter()
            .find(pinned)
            .ok_or_else(|| rustls::Error::General("its root has another key".into()))?;
        let of = Identity::from_der(leaf).map_err(|e| rustls::Error::General(e.to_string()))?;
        if of.role != Role::Coordinator {
            return Err(rustls::Error::General(format!("it is the {of}")));
        }
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            provider(),
        )
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
        let name = Identity::coordinator_dns(&of.cluster)
            .try_into()
            .map_err(|_| rustls::Error::General("no name".into()))?;
        verifier.verify_server_cert(leaf, others, &name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            leaf,
            signature,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The first certificate of a PEM text, as DER.
pub fn first_certificate(pem: &[u8]) -> Option<Vec<u8>> {
    CertificateDer::from_pem_slice(pem)
        .ok()
        .map(|der| der.to_vec())
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
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
