//! The cluster's public-key infrastructure: one root, an issuer below it, and leaves for
//! coordinator, agents and users.
//!
//! The root's key stays offline. Coordinators that let hosts and users join have an issuer's.
//!
//! The only code that names rcgen. Every certificate gets an explicit validity, a random serial and
//! exactly one role, because rcgen's defaults (1975 to 4096, a serial derived from the key, no
//! usage) would quietly allow what they should not.

pub mod cli;
mod join;

pub use join::{JoinError, Joined, join, read_token, renew_expired};

use mezcal_common::model::identity::{self, Identity, IdentityError, Role};
use mezcal_common::system::files::{self, Directory, Owner, PRIVATE, PlaceError};
use mezcal_common::wire::tls::{Credentials, CredentialsError, SET_ASIDE};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PublicKeyData, SanType, SerialNumber, SigningKey,
};
use ring::rand::SecureRandom;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};
use time::OffsetDateTime;

/// Certificates start this long before now, so that a host whose clock is a little behind accepts
/// them.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Life of a root: longer than any cluster's hardware.
const ROOT_DAYS: u32 = 3650;
/// Default life of agents' and users' certificates.
pub const LEAF_DAYS: u32 = 30;
/// Default life of a coordinator's certificate.
pub const COORDINATOR_DAYS: u32 = 90;
/// Default life of an issuer.
pub const ISSUER_DAYS: u32 = 365;
/// Nobody takes this long to put a certificate into the place of another.
const TAKES_LESS: Duration = Duration::from_secs(3600);
/// Seconds of a day.
const DAY: u64 = 86_400;

/// Why a certificate cannot be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file cannot be read or written.
    #[error("cannot {verb} {}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A place where others have made something, or might.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A cluster is there already.
    #[error("{} exists: this directory holds a cluster already; choose another one", .0.display())]
    Exists(PathBuf),
    /// No cluster is there.
    #[error("{} holds no cluster: make one with `mezcal certs init {} --cluster NAME`", .0.display(), .0.display())]
    NoCluster(PathBuf),
    /// A name that no certificate may carry.
    #[error(
        "{0:?} cannot be a name in a certificate: lower-case letters, digits, '-', '_' and '.' may"
    )]
    Name(String, #[source] IdentityError),
    /// rcgen's.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// The issuer's own files.
    #[error("{} holds no issuer; `mezcal certs issue issuer` makes cert.pem, key.pem and ca.pem", .0.display())]
    NoIssuer(PathBuf),
    /// What it signed nobody would accept.
    #[error(
        "the certificate that should sign others is not that of the key beside it: put both back from where they came, or make new ones"
    )]
    Pair,
    /// An issuer that is over cannot make anything that lasts.
    #[error(
        "the issuer's own certificate has expired: make a new one with `mezcal certs issue issuer`"
    )]
    Expired,
    /// What should be signed is no request, or not signed with its own key.
    #[error("not a certificate signing request that its own key has signed")]
    Request(#[source] rcgen::Error),
    /// A certificate that cannot be used.
    #[error("the new certificate is of no use")]
    Useless(#[from] CredentialsError),
    /// No randomness.
    #[error("the system's random generator failed")]
    Random,
}

/// A certificate with its key and root, as the three files `cert.pem`, `key.pem` and `ca.pem` hold
/// them.
pub struct Issued {
    /// The leaf.
    pub cert: String,
    /// Its private key.
    pub key: String,
    /// The root.
    pub ca: String,
}

impl Issued {
    /// Writes the three files into `dir`, which is made with mode 0700; the key has 0600 from its
    /// first byte. Files that are there are replaced, each by a rename.
    ///
    /// # Errors
    /// [`CertsError::Place`].
    pub fn write(&self, dir: &Path) -> Result<(), CertsError> {
        self.write_into(&Directory::make(dir, PRIVATE)?, None)
    }

    /// The same in a directory that is open, for the account whose they should be.
    ///
    /// # Errors
    /// [`CertsError::Place`].
    pub fn write_into(&self, dir: &Directory, owner: Option<Owner>) -> Result<(), CertsError> {
        for (name, text, mode) in [
            ("key.pem", &self.key, 0o600),
            ("ca.pem", &self.ca, 0o644),
            ("cert.pem", &self.cert, 0o644),
        ] {
            dir.replace(name, text.as_bytes(), mode, owner)?;
        }
        Ok(())
    }
}

/// Puts a new certificate and its key in the place of those in `dir`, after a look at whether they
/// are of use: both at once, whatever happens.
///
/// # Errors
/// [`CertsError`]; the old ones stay.
pub fn replace(dir: &Path, role: Role, cert: String, key: String) -> Result<(), CertsError> {
    let path = dir.join("ca.pem");
    let ca = std::fs::read_to_string(&path).map_err(|source| CertsError::File {
        verb: "read",
        path,
        source,
    })?;
    Credentials::from_pem(cert.as_bytes(), key.as_bytes(), ca.as_bytes(), role, dir)?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    // Several of a user's commands may do this at once.
    let new = format!(".{name}.{}.new", std::process::id());
    let beside = dir.with_file_name(&new);
    let failed = |source: std::io::Error| CertsError::File {
        verb: "replace",
        path: dir.into(),
        source,
    };
    // Of a try that was interrupted; whatever somebody else has put there is not looked into.
    for left in left_beside(dir, &name, TAKES_LESS) {
        if files::is_our_directory(&left)? {
            keep_others(&left, dir)
                .and_then(|()| std::fs::remove_dir_all(&left))
                .map_err(failed)?;
        }
    }
    let parent = Directory::existing(files::parent(dir))?;
    // Root may do this for the account whose they are.
    let owner = if rustix::process::geteuid().is_root() {
        Some(Directory::existing(dir)?.owner())
    } else {
        None
    };
    let mut made = parent.create_new(&new)?;
    Issued { cert, key, ca }.write_into(&made, owner)?;
    made.sync();
    if let Some(owner) = owner {
        made.give_to(owner)?;
    }
    let here = rustix::fs::CWD;
    let exchanged = match rustix::fs::renameat_with(
        here,
        &beside,
        here,
        dir,
        rustix::fs::RenameFlags::EXCHANGE,
    ) {
        // As on NFS (rename(2), RENAME_EXCHANGE).
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => exchange(&beside, dir),
        exchanged => exchanged.map_err(Into::into),
    };
    if let Err(e) = exchanged {
        let _ = std::fs::remove_dir_all(&beside);
        return Err(failed(e));
    }
    // The new one is there, whatever becomes of the old one's directory: the next renewal looks
    // after it again.
    if keep_others(&beside, dir).is_ok() {
        let _ = std::fs::remove_dir_all(&beside);
    }
    // Whoever revokes the old one when the new one is seen must not find the old one here after a
    // power failure.
    parent.sync();
    Ok(())
}

/// Whether [`replace`] could put something there: tried before anybody is asked for it.
///
/// # Errors
/// [`CertsError::Place`].
pub fn can_replace(dir: &Path) -> Result<(), CertsError> {
    Ok(Directory::existing(files::parent(dir))?.try_writing()?)
}

/// Whatever else was kept beside a certificate stays beside it.
fn keep_others(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if !["key.pem", "ca.pem", "cert.pem"]
            .iter()
            .any(|ours| entry.file_name() == *ours)
        {
            std::fs::rename(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Directories of this account's that were left by whoever was killed while they put a certificate
/// into the place of that in `dir`: those of this process's number, and those that have been there
/// for as long as `rest`.
fn left_beside(dir: &Path, name: &str, rest: Duration) -> Vec<PathBuf> {
    let is_left = |path: &Path| {
        // A rename counts, and what is in the directory does not.
        let since = std::fs::symlink_metadata(path)
            .map(|meta| UNIX_EPOCH + Duration::new(meta.ctime() as u64, meta.ctime_nsec() as u32));
        since.is_ok_and(|since| since.elapsed().is_ok_and(|ago| ago >= rest))
            && files::is_our_directory(path).unwrap_or(false)
    };
    let number = |path: &Path| {
        let rest = path
            .file_name()?
            .to_str()?
            .strip_prefix(&format!(".{name}."))?;
        rest.strip_suffix(".new")
            .or_else(|| rest.strip_suffix(&format!(".{SET_ASIDE}")))?
            .parse::<u32>()
            .ok()
    };
    let entries = std::fs::read_dir(files::parent(dir))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    entries
        .filter(|path| {
            number(path).is_some_and(|number| number == std::process::id() || is_left(path))
        })
        .collect()
}

fn third(beside: &Path) -> PathBuf {
    beside.with_extension(SET_ASIDE)
}

/// Has two directories change places, where the file system cannot do that at once.
fn exchange(beside: &Path, dir: &Path) -> std::io::Result<()> {
    let third = third(beside);
    std::fs::rename(dir, &third)?;
    if let Err(e) = std::fs::rename(beside, dir) {
        let _ = std::fs::rename(&third, dir);
        return Err(e);
    }
    std::fs::rename(&third, beside)
}

/// A certificate for a key that somebody else holds.
pub struct Signed {
    /// The leaf and what is between it and the root, in PEM form.
    pub cert: String,
    /// The root.
    pub ca: String,
}

/// A new key, and the request to certify it: `(key, request)`, in PEM form and as DER. The request
/// asks for no name: whoever signs it decides who its holder is.
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
/// [`CertsError::Make`]: it is no key.
pub fn sign(key: &str, message: &[u8]) -> Result<Vec<u8>, CertsError> {
    Ok(SigningKey::sign(&KeyPair::from_pem(key)?, message)?)
}

/// A root or an issuer with its key: makes certificates of one cluster.
pub struct Authority {
    cluster: String,
    ca: String,
    /// What stands between the leaves and the root, in PEM form: the issuer's certificate, or
    /// nothing.
    between: String,
    /// Nothing that it makes lives longer. Seconds since the Unix epoch.
    until: i64,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new root for a new cluster. The cluster's id is `name` and random letters, so that two
    /// clusters of one name never mix.
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

    /// The issuer in `dir`, as [`ClusterDir::issue_issuer`] made it.
    ///
    /// # Errors
    /// [`CertsError::NoIssuer`], or what is wrong with its files.
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

    /// An issuer below this root, which can make leaves of this cluster and nothing else.
    ///
    /// # Errors
    /// [`CertsError::Make`], [`CertsError::Random`].
    pub fn issuer(&self, life: u32) -> Result<Issued, CertsError> {
        let mut params = base_params(&format!("{} issuer", self.cluster), days(life))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.use_authority_key_identifier_extension = true;
        // Of other names none can be constrained: webpki knows no constraints of URIs.
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

    /// When its own certificate ends, and with it whatever it makes; in seconds since the Unix
    /// epoch.
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

    fn issue_for(&self, role: Role, name: &str, life: Duration) -> Result<Issued, CertsError> {
        let key = KeyPair::generate()?;
        let cert = self.leaf(role, name, life, &key)?;
        Ok(Issued {
            cert,
            key: key.serialize_pem(),
            ca: self.ca.clone(),
        })
    }

    /// Certifies the key of a request (DER). Whatever else the request asks for is ignored.
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

/// A cluster's directory: `ca.pem`, `ca-key.pem`, and `issued.jsonl`, which records every
/// certificate that was made.
pub struct ClusterDir(PathBuf);

impl ClusterDir {
    /// Makes a new cluster in `dir`.
    ///
    /// # Errors
    /// [`CertsError::Exists`] if there is one, and whatever stands in the way of writing.
    pub fn init(dir: &Path, name: &str) -> Result<(Self, Authority), CertsError> {
        if dir.join("ca-key.pem").exists() || dir.join("ca.pem").exists() {
            return Err(CertsError::Exists(dir.join("ca.pem")));
        }
        let (authority, key) = Authority::create(name)?;
        let made = Directory::make(dir, PRIVATE)?;
        made.replace("ca-key.pem", key.as_bytes(), 0o600, None)?;
        made.replace("ca.pem", authority.ca.as_bytes(), 0o644, None)?;
        Ok((Self(dir.into()), authority))
    }

    /// Opens the cluster in `dir`.
    ///
    /// # Errors
    /// [`CertsError::NoCluster`], or what is wrong with its files.
    pub fn open(dir: &Path) -> Result<(Self, Authority), CertsError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound => CertsError::NoCluster(dir.into()),
                _ => CertsError::File {
                    verb: "read",
                    path,
                    source,
                },
            })
        };
        let authority = Authority::from_pem(&read("ca.pem")?, &read("ca-key.pem")?)?;
        Ok((Self(dir.into()), authority))
    }

    /// Where the files of a certificate go unless told otherwise: `agents/HOST`, `users/NAME`,
    /// `coordinator`.
    pub fn place(&self, role: Role, name: &str) -> PathBuf {
        match role {
            Role::Agent => self.0.join("agents").join(name),
            Role::User => self.0.join("users").join(name),
            Role::Coordinator => self.0.join("coordinator"),
        }
    }

    /// Makes a certificate, records it, and writes its files to `out`, or to [`ClusterDir::place`].
    ///
    /// # Errors
    /// [`CertsError`].
    pub fn issue(
        &self,
        authority: &Authority,
        role: Role,
        name: &str,
        life: Duration,
        out: Option<&Path>,
    ) -> Result<PathBuf, CertsError> {
        let issued = authority.issue_for(role, name, life)?;
        let place = out.map_or_else(|| self.place(role, name), Path::to_path_buf);
        // Recorded first: a certificate that exists without a record could not be revoked.
        self.record(&issued, role.as_str(), name)?;
        issued.write(&place)?;
        Ok(place)
    }

    /// Makes an issuer, records it, and writes its files to `out`, or to `issuer`.
    ///
    /// # Errors
    /// [`CertsError`].
    pub fn issue_issuer(
        &self,
        authority: &Authority,
        days: u32,
        out: Option<&Path>,
    ) -> Result<PathBuf, CertsError> {
        let issued = authority.issuer(days)?;
        let place = out.map_or_else(|| self.0.join("issuer"), Path::to_path_buf);
        self.record(&issued, "issuer", "")?;
        issued.write(&place)?;
        Ok(place)
    }

    fn record(&self, issued: &Issued, role: &str, name: &str) -> Result<(), CertsError> {
        let path = self.0.join("issued.jsonl");
        let der = der_of(&issued.cert).unwrap_or_default();
        let (_, not_after) = identity::validity(&der).unwrap_or_default();
        let serial = identity::details(&der)
            .map(|d| d.serial)
            .unwrap_or_default();
        let expires = jiff::Timestamp::from_second(not_after)
            .map(|t| t.to_string())
            .unwrap_or_default();
        let line =
            serde_json::json!({"serial": serial, "role": role, "name": name, "expires": expires});
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{line}"))
            .map_err(|source| CertsError::File {
                verb: "write",
                path,
                source,
            })
    }
}

/// The first certificate of a PEM text, as DER.
pub fn der_of(pem: &str) -> Option<Vec<u8>> {
    mezcal_common::wire::tls::first_certificate(pem.as_bytes())
}

fn named(cluster: &str, role: Role, name: &str) -> Result<Identity, CertsError> {
    Identity::new(cluster, role, name)
        .map_err(|e| CertsError::Name(if name.is_empty() { cluster } else { name }.into(), e))
}

/// So many of them.
pub fn days(number: u32) -> Duration {
    Duration::from_secs(u64::from(number) * DAY)
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
mod tests {
    use super::*;
    use mezcal_common::wire::tls::IdentityFiles;
    use std::os::unix::fs::PermissionsExt;

    fn lives(pem: &str) -> i64 {
        let (from, until) =
            identity::validity(&der_of(pem).expect("a certificate")).expect("a validity");
        until - from
    }

    #[test]
    fn every_certificate_has_its_own_validity_serial_and_role() {
        let (authority, _) = Authority::create("mezcal").expect("created");
        let a = authority
            .issue(Role::Agent, "mezcal01.cl.ecei.tohoku.ac.jp", 30)
            .expect("issued");
        let b = authority
            .issue(Role::Agent, "mezcal01.cl.ecei.tohoku.ac.jp", 30)
            .expect("issued");
        assert_eq!(lives(&a.cert), 30 * 86_400 + 300);
        let serial = |pem: &str| {
            identity::details(&der_of(pem).expect("der"))
                .expect("details")
                .serial
        };
        assert_ne!(serial(&a.cert), serial(&b.cert));
        let id = Identity::from_der(&der_of(&a.cert).expect("der")).expect("identity");
        assert_eq!(
            (id.role, id.name.as_str()),
            (Role::Agent, "mezcal01.cl.ecei.tohoku.ac.jp")
        );
        assert!(id.cluster.starts_with("mezcal-"));
        assert!(authority.issue(Role::User, "Not A Name", 30).is_err());
        assert!(Authority::create("Bad Name").is_err());
    }

    #[test]
    fn a_new_certificate_takes_the_place_of_the_old_one_and_of_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let identity = dir.path().join("mezcal");
        let (authority, _) = Authority::create("mezcal").expect("created");
        authority
            .issue(Role::User, "okazaki", 1)
            .expect("issued")
            .write(&identity)
            .expect("written");
        std::fs::create_dir(identity.join("profiles")).expect("made");
        std::fs::write(identity.join("profiles/mezcal.toml"), "kept").expect("written");
        let new = authority.issue(Role::User, "okazaki", 1).expect("issued");
        // Of another key it does not.
        let (old, (other, _)) = (
            std::fs::read_to_string(identity.join("key.pem")).expect("there"),
            request().expect("a key"),
        );
        let refused = replace(&identity, Role::User, new.cert.clone(), other).expect_err("no pair");
        assert!(
            matches!(refused, CertsError::Useless(CredentialsError::Pair { .. })),
            "{refused:?}"
        );
        assert_eq!(
            std::fs::read_to_string(identity.join("key.pem")).expect("there"),
            old
        );
        // Some were interrupted; of others nobody knows yet.
        let interrupted = |number: u32| dir.path().join(format!(".mezcal.{number}.new"));
        for (number, file) in [(std::process::id(), "more"), (0, "theirs")] {
            std::fs::create_dir(interrupted(number)).expect("made");
            std::fs::write(interrupted(number).join(file), "kept").expect("written");
        }
        std::fs::create_dir(dir.path().join(".mezcal.no.new")).expect("made");
        assert_eq!(
            left_beside(&identity, "mezcal", TAKES_LESS),
            [interrupted(std::process::id())]
        );
        assert_eq!(
            left_beside(&identity, "mezcal", Duration::ZERO).len(),
            2,
            "later on they are left, too"
        );
        std::fs::remove_dir(dir.path().join(".mezcal.no.new")).expect("removed");
        replace(&identity, Role::User, new.cert.clone(), new.key).expect("replaced");
        assert_eq!(
            std::fs::read_to_string(identity.join("more")).expect("there"),
            "kept"
        );
        std::fs::remove_dir_all(interrupted(0)).expect("left to whoever is at it");
        assert_eq!(
            std::fs::read_to_string(identity.join("cert.pem")).expect("there"),
            new.cert
        );
        assert_eq!(
            std::fs::read_to_string(identity.join("profiles/mezcal.toml")).expect("there"),
            "kept"
        );
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("readable").count(),
            1,
            "nothing is left beside it"
        );
        // In steps.
        let other = dir.path().join("other.new");
        std::fs::create_dir(&other).expect("made");
        exchange(&other, &identity).expect("exchanged");
        assert!(other.join("profiles").exists() && !identity.join("profiles").exists());
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("readable").count(),
            2,
            "nothing else is left"
        );
        assert!(
            exchange(&dir.path().join("none"), &identity).is_err() && identity.exists(),
            "it is put back"
        );
        // Killed between two steps.
        std::fs::rename(&identity, third(&dir.path().join(".mezcal.1.new"))).expect("renamed");
        assert!(
            IdentityFiles::read(&identity).is_err() && identity.exists(),
            "it is put back, and is the empty one"
        );
    }

    #[test]
    fn whoever_reads_while_a_certificate_is_replaced_finds_a_pair() {
        let dir = tempfile::tempdir().expect("a directory");
        let identity = dir.path().join("mezcal");
        let (authority, _) = Authority::create("mezcal").expect("created");
        authority
            .issue(Role::User, "okazaki", 1)
            .expect("issued")
            .write(&identity)
            .expect("written");
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    Credentials::load(&identity, Role::User)
                        .map(|_| ())
                        .expect("a pair");
                }
            });
            for _ in 0..200 {
                let new = authority.issue(Role::User, "okazaki", 1).expect("issued");
                replace(&identity, Role::User, new.cert, new.key).expect("replaced");
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            reader.join().expect("it found a pair each time");
        });
    }

    #[test]
    fn nothing_is_signed_with_a_key_that_is_not_the_issuers() {
        let ((root, _), (_, other)) = (
            Authority::create("mezcal").expect("created"),
            Authority::create("mezcal").expect("created"),
        );
        assert!(matches!(
            Authority::from_pem(root.root(), &other),
            Err(CertsError::Pair)
        ));
    }

    #[test]
    fn an_issuer_signs_what_a_request_is_allowed_and_not_what_it_asks_for() {
        let (root, _) = Authority::create("mezcal").expect("created");
        let tmp = tempfile::tempdir().expect("a directory");
        root.issuer(365)
            .expect("made")
            .write(tmp.path())
            .expect("written");
        let issuer = Authority::load(tmp.path()).expect("usable");
        assert_eq!(issuer.cluster(), root.cluster());
        // Somebody who would like to be more than they are.
        let key = KeyPair::generate().expect("a key");
        let mut wish = CertificateParams::default();
        wish.subject_alt_names.push(SanType::URI(
            format!("spiffe://{}/coordinator", root.cluster())
                .try_into()
                .expect("a URI"),
        ));
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wish.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let request = wish.serialize_request(&key).expect("a request");
        let life = Duration::from_secs(3600);
        let signed = issuer
            .sign(Role::Agent, "mezcal01", life, request.der())
            .expect("signed");
        let der = der_of(&signed.cert).expect("der");
        let id = Identity::from_der(&der).expect("an identity");
        assert_eq!((id.role, id.name.as_str()), (Role::Agent, "mezcal01"));
        let details = identity::details(&der).expect("details");
        assert!(!details.is_ca);
        assert_eq!(lives(&signed.cert), 3600 + 300);
        let usable = |role| {
            Credentials::from_pem(
                signed.cert.as_bytes(),
                key.serialize_pem().as_bytes(),
                signed.ca.as_bytes(),
                role,
                Path::new("d"),
            )
        };
        usable(Role::Agent)
            .map(|_| ())
            .expect("it descends from the root");
        let mut forged = request.der().to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(matches!(
            issuer.sign(Role::Agent, "mezcal01", life, &forged),
            Err(CertsError::Request(_))
        ));
        // Nothing outlives its issuer.
        let long = issuer
            .sign(
                Role::User,
                "okazaki",
                Duration::from_secs(4000 * DAY),
                request.der(),
            )
            .expect("signed");
        assert!(lives(&long.cert) <= 365 * 86_400 + 300);
    }

    #[test]
    fn a_certificate_without_its_one_usage_and_its_one_name_says_nothing() {
        let (root, _) = Authority::create("mezcal").expect("created");
        let key = KeyPair::generate().expect("a key");
        let uri = |role: &str| {
            SanType::URI(
                format!("spiffe://{}/{role}", root.cluster())
                    .try_into()
                    .expect("a URI"),
            )
        };
        let (client, server) = (
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        );
        let cases = [
            (vec![uri("agent/a")], vec![], "extended key usage"),
            (
                vec![uri("agent/a")],
                vec![client.clone(), server.clone()],
                "extended key usage",
            ),
            (
                vec![uri("agent/a")],
                vec![server.clone()],
                "extended key usage",
            ),
            (
                vec![uri("coordinator")],
                vec![client.clone()],
                "extended key usage",
            ),
            (
                vec![uri("agent/a"), uri("user/b")],
                vec![client.clone()],
                "2 role URIs",
            ),
            (vec![], vec![client.clone()], "0 role URIs"),
            (
                vec![uri("agent/../coordinator")],
                vec![client.clone()],
                "role URI",
            ),
            (vec![uri("agent/A")], vec![client], "role URI"),
        ];
        for (names, usages, why) in cases {
            let mut params = base_params("x", days(1)).expect("parameters");
            (params.subject_alt_names, params.extended_key_usages) = (names.clone(), usages);
            let cert = params
                .signed_by(&key, &root.issuer)
                .expect("signed by the right root");
            let refused = Identity::from_der(cert.der())
                .expect_err("refused")
                .to_string();
            assert!(refused.contains(why), "{names:?}: {refused}");
        }
    }

    #[test]
    fn a_directory_remembers_what_was_issued_and_keeps_keys_private() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = tmp.path().join("pki");
        let (cluster, authority) = ClusterDir::init(&dir, "mezcal").expect("made");
        assert!(matches!(
            ClusterDir::init(&dir, "mezcal"),
            Err(CertsError::Exists(_))
        ));
        let place = cluster
            .issue(&authority, Role::User, "okazaki", days(30), None)
            .expect("issued");
        let mode = |p: &Path| std::fs::metadata(p).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&place.join("key.pem")), 0o600);
        assert_eq!(mode(&dir.join("ca-key.pem")), 0o600);
        let (again, authority) = ClusterDir::open(&dir).expect("opened");
        again
            .issue(&authority, Role::Coordinator, "", days(90), None)
            .expect("issued");
        assert_eq!(
            std::fs::read_to_string(dir.join("issued.jsonl"))
                .expect("recorded")
                .lines()
                .count(),
            2
        );
        Credentials::load(&place, Role::User)
            .map(|_| ())
            .expect("usable");
        let wrong = Credentials::load(&place, Role::Agent)
            .err()
            .expect("wrong role")
            .to_string();
        assert!(
            wrong.contains("cert.pem") && wrong.contains("certs issue agent"),
            "{wrong}"
        );
        std::fs::set_permissions(
            place.join("key.pem"),
            std::fs::Permissions::from_mode(0o644),
        )
        .expect("chmod");
        let open = Credentials::load(&place, Role::User)
            .err()
            .expect("open key")
            .to_string();
        assert!(open.contains("chmod 600"), "{open}");
    }

    #[test]
    fn an_expired_certificate_is_named_with_its_date() {
        let (authority, _) = Authority::create("mezcal").expect("created");
        let issued = authority.issue(Role::User, "okazaki", 0).expect("issued");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let load = || {
            Credentials::from_pem(
                issued.cert.as_bytes(),
                issued.key.as_bytes(),
                issued.ca.as_bytes(),
                Role::User,
                Path::new("d"),
            )
        };
        let error = loop {
            // It ends with the second in which it was made.
            if let Err(e) = load() {
                break e.to_string();
            }
            assert!(std::time::Instant::now() < deadline, "it never expires");
            std::thread::yield_now();
        };
        assert!(
            error.contains("d/cert.pem expired at 20") && error.contains("certs issue"),
            "{error}"
        );
    }
}
