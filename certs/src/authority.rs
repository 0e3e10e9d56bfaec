//! The makers of certificates: a root, and an issuer below it.
//!
//! Every certificate gets an explicit validity, a random serial and exactly one role, because
//! rcgen's defaults (1975 to 4096, a serial derived from the key, no usage) would quietly allow too
//! much.

use crate::replace::Issued;
use crate::{days, der_of};
use mezcal_common::model::identity::{self, Identity, IdentityError, Role};
use mezcal_common::system::files::PlaceError;
use mezcal_common::wire::tls::CredentialsError;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PublicKeyData, SanType, SerialNumber, SigningKey,
};
use ring::rand::SecureRandom;
use std::path::{Path, PathBuf};
use std::time::Duration;
use time::OffsetDateTime;

/// Certificates start this long before now, so that a host whose clock is a little behind accepts
/// them.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Life of a root: longer than any cluster's hardware.
const ROOT_DAYS: u32 = 3650;

/// Why a certificate cannot be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file cannot be read or written.
    #[error("cannot {verb} {}", path.display())]
    File {
        /// The operation.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A place that others have changed, or could change.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The directory holds a cluster already.
    #[error("{} exists: this directory holds a cluster already; choose another one", .0.display())]
    Exists(PathBuf),
    /// The directory holds no cluster.
    #[error("{} holds no cluster: make one with `mezcal certs init {} --cluster NAME`", .0.display(), .0.display())]
    NoCluster(PathBuf),
    /// A name that no certificate may carry.
    #[error(
        "{0:?} cannot be a name in a certificate: lower-case letters, digits, '-', '_' and '.' may"
    )]
    Name(String, #[source] IdentityError),
    /// An error of rcgen.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// The issuer's own files do not exist.
    #[error("{} holds no issuer; `mezcal certs issue issuer` makes cert.pem, key.pem and ca.pem", .0.display())]
    NoIssuer(PathBuf),
    /// No peer would accept certificates that it signs.
    #[error(
        "the issuer's certificate does not belong to the key beside it: put the two that belong \
         together there, or make new ones"
    )]
    Pair,
    /// An expired issuer cannot make valid certificates.
    #[error(
        "the issuer's own certificate has expired: make a new one with `mezcal certs issue issuer`"
    )]
    Expired,
    /// The bytes to sign are not a request, or not signed with its own key.
    #[error("not a certificate signing request that its own key has signed")]
    Request(#[source] rcgen::Error),
    /// A certificate that cannot be used.
    #[error("the new certificate cannot be used")]
    Useless(#[from] CredentialsError),
    /// The system gives no randomness.
    #[error("the system's random generator failed")]
    Random,
}

/// A certificate for a key that another process holds.
pub struct Signed {
    /// The leaf and the certificates between it and the root, in PEM form.
    pub cert: String,
    /// The root, in PEM form.
    pub ca: String,
}

/// A new key, and the request to certify it: `(key, request)`, in PEM form and as DER. The request
/// asks for no name: the authority that signs it decides who its holder is.
///
/// # Errors
/// [`CertsError::Make`].
pub fn request() -> Result<(String, Vec<u8>), CertsError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

/// Signs with a key (PEM).
///
/// # Errors
/// [`CertsError::Make`]: the text is not a key.
pub fn sign(key: &str, message: &[u8]) -> Result<Vec<u8>, CertsError> {
    Ok(SigningKey::sign(&KeyPair::from_pem(key)?, message)?)
}

/// A root or an issuer with its key: makes certificates of one cluster.
pub struct Authority {
    cluster: String,
    ca: String,
    /// The certificate between the leaves and the root, in PEM form: the issuer's, or empty for a
    /// root.
    between: String,
    /// Latest end of its certificates. Seconds since the Unix epoch.
    until: i64,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new root for a new cluster. The cluster's id is `name` and random letters, so that two
    /// clusters of the same name never mix.
    ///
    /// Returns the authority and the root's private key in PEM form.
    ///
    /// # Errors
    /// [`CertsError::Name`], [`CertsError::Make`].
    pub fn create(name: &str) -> Result<(Self, String), CertsError> {
        let mut random = [0; 4];
        fill_random(&mut random)?;
        let cluster = format!("{name}-{:08x}", u32::from_be_bytes(random));
        named(&cluster, Role::Coordinator, "")?;
        let key = KeyPair::generate()?;
        let key_pem = key.serialize_pem();
        let mut params = base_params(&cluster, days(ROOT_DAYS))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = CertifiedIssuer::self_signed(params, key)?;
        let ca = root.pem();
        Ok((Self::from_pem(&ca, &key_pem)?, key_pem))
    }

    /// An authority from its root certificate and key.
    ///
    /// # Errors
    /// [`CertsError::Make`], [`CertsError::Pair`].
    pub fn from_pem(ca: &str, key: &str) -> Result<Self, CertsError> {
        Self::new(ca, "", key)
    }

    fn new(ca: &str, between: &str, key: &str) -> Result<Self, CertsError> {
        let own = if between.is_empty() { ca } else { between };
        let key = KeyPair::from_pem(key)?;
        let of_key = mezcal_common::model::token::sha256(&key.subject_public_key_info());
        if der_of(own).and_then(|der| identity::key_hash(&der)) != Some(of_key) {
            return Err(CertsError::Pair);
        }
        let issuer = Issuer::from_ca_cert_pem(own, key)?;
        let cluster = der_of(ca)
            .and_then(|der| identity::details(&der).ok())
            .map(|d| d.common_name)
            .unwrap_or_default();
        named(&cluster, Role::Coordinator, "")?;
        let (_, until) = der_of(own)
            .and_then(|der| identity::validity(&der).ok())
            .unwrap_or_default();
        Ok(Self {
            cluster,
            ca: ca.into(),
            between: between.into(),
            until,
            issuer,
        })
    }

    /// The issuer in `dir`, as [`crate::ClusterDir::issue_issuer`] made it.
    ///
    /// # Errors
    /// [`CertsError::NoIssuer`], or the error of its files.
    pub fn load(dir: &Path) -> Result<Self, CertsError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound => CertsError::NoIssuer(dir.into()),
                _ => CertsError::File {
                    verb: "read",
                    path,
                    source,
                },
            })
        };
        Self::new(&read("ca.pem")?, &read("cert.pem")?, &read("key.pem")?)
    }

    /// An issuer below this root, which can make only leaves of this cluster.
    ///
    /// # Errors
    /// [`CertsError::Make`], [`CertsError::Random`].
    pub fn issuer(&self, life: u32) -> Result<Issued, CertsError> {
        let mut params = base_params(&format!("{} issuer", self.cluster), days(life))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.use_authority_key_identifier_extension = true;
        // Only DNS names can be constrained: webpki knows no constraints of URIs.
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(format!("{}.mezcal", self.cluster))],
            excluded_subtrees: vec![],
        });
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            cert: cert.pem(),
            key: key.serialize_pem(),
            ca: self.ca.clone(),
        })
    }

    /// The root, in PEM form.
    pub fn root(&self) -> &str {
        &self.ca
    }

    /// The cluster's id.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// When its own certificate expires, and with it all certificates that it makes; in seconds
    /// since the Unix epoch.
    pub fn until(&self) -> i64 {
        self.until
    }

    /// Makes a key and a certificate for it.
    ///
    /// # Errors
    /// [`CertsError::Name`], [`CertsError::Make`], [`CertsError::Random`].
    pub fn issue(&self, role: Role, name: &str, life: u32) -> Result<Issued, CertsError> {
        self.issue_for(role, name, days(life))
    }

    pub(crate) fn issue_for(
        &self,
        role: Role,
        name: &str,
        life: Duration,
    ) -> Result<Issued, CertsError> {
        let key = KeyPair::generate()?;
        let cert = self.leaf(role, name, life, &key)?;
        Ok(Issued {
            cert,
            key: key.serialize_pem(),
            ca: self.ca.clone(),
        })
    }

    /// Certifies the key of a request (DER). All other fields of the request are ignored.
    ///
    /// # Errors
    /// [`CertsError::Request`], and those of [`Authority::issue`].
    pub fn sign(
        &self,
        role: Role,
        name: &str,
        life: Duration,
        request: &[u8],
    ) -> Result<Signed, CertsError> {
        let request = CertificateSigningRequestParams::from_der(&request.to_vec().into())
            .map_err(CertsError::Request)?;
        let cert = self.leaf(role, name, life, &request.public_key)?;
        Ok(Signed {
            cert,
            ca: self.ca.clone(),
        })
    }

    fn leaf(
        &self,
        role: Role,
        name: &str,
        life: Duration,
        key: &impl PublicKeyData,
    ) -> Result<String, CertsError> {
        let id = named(&self.cluster, role, name)?;
        let mut params = base_params(if name.is_empty() { role.as_str() } else { name }, life)?;
        let until =
            OffsetDateTime::from_unix_timestamp(self.until).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        params.not_after = params.not_after.min(until);
        if params.not_after <= OffsetDateTime::now_utc() && !life.is_zero() {
            return Err(CertsError::Expired);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params
            .subject_alt_names
            .push(SanType::URI(id.uri().try_into()?));
        params.extended_key_usages = match role {
            Role::Coordinator => {
                params.subject_alt_names.push(SanType::DnsName(
                    Identity::coordinator_dns(&self.cluster).try_into()?,
                ));
                vec![ExtendedKeyUsagePurpose::ServerAuth]
            }
            Role::Agent | Role::User => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        Ok(params.signed_by(key, &self.issuer)?.pem() + &self.between)
    }
}

fn named(cluster: &str, role: Role, name: &str) -> Result<Identity, CertsError> {
    Identity::new(cluster, role, name)
        .map_err(|e| CertsError::Name(if name.is_empty() { cluster } else { name }.into(), e))
}

fn base_params(common_name: &str, life: Duration) -> Result<CertificateParams, CertsError> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE.min(life / 10);
    params.not_after = now + life;
    let mut serial = [0; 16];
    fill_random(&mut serial)?;
    // RFC 5280 §4.1.2.2: a positive integer.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn fill_random(bytes: &mut [u8]) -> Result<(), CertsError> {
    ring::rand::SystemRandom::new()
        .fill(bytes)
        .map_err(|_| CertsError::Random)
}

#[cfg(test)]
mod tests;
