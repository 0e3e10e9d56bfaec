//! The directory of a cluster: the root's certificate and key, and a record of every certificate
//! that was made.

use crate::authority::Authority;
use crate::replace::Issued;
use crate::{CertsError, der_of};
use mezcal_common::model::identity::{self, Role};
use mezcal_common::system::files::{Directory, PRIVATE};
use rustix::fs::OFlags;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A cluster's directory: `ca.pem`, `ca-key.pem`, and `issued.jsonl`, which records every
/// certificate that was made.
pub struct ClusterDir(PathBuf);

impl ClusterDir {
    /// Makes a new cluster in `dir`.
    ///
    /// # Errors
    /// [`CertsError::Exists`] if there is one, and errors of writing.
    pub fn init(dir: &Path, name: &str) -> Result<(Self, Authority), CertsError> {
        if dir.join("ca-key.pem").exists() || dir.join("ca.pem").exists() {
            return Err(CertsError::Exists(dir.join("ca.pem")));
        }
        let (authority, key) = Authority::create(name)?;
        let made = Directory::make(dir, PRIVATE)?;
        made.replace("ca-key.pem", key.as_bytes(), 0o600, None)?;
        made.replace("ca.pem", authority.root().as_bytes(), 0o644, None)?;
        Ok((Self(dir.into()), authority))
    }

    /// Opens the cluster in `dir`.
    ///
    /// # Errors
    /// [`CertsError::NoCluster`], or the error of its files.
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

    /// The default directory of a certificate: `agents/HOST`, `users/NAME`, `coordinator`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::days;
    use mezcal_common::wire::tls::Credentials;
    use std::os::unix::fs::PermissionsExt;

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
}
