//! The identity of a certificate's holder: one role URI in the subject alternative names, plus the
//! extended key usage that fits it.

use std::fmt;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The role of a certificate's holder. Rights are not in the certificate; the role and the name
/// are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A host's agent. Name: the host's.
    Agent,
    /// A person or program that submits batches.
    User,
    /// The coordinator. It has no name.
    Coordinator,
}

impl Role {
    /// The role as written in the URI.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::User => "user",
            Role::Coordinator => "coordinator",
        }
    }
}

/// The identity in a certificate: `spiffe://CLUSTER/agent/HOST`, `spiffe://CLUSTER/user/NAME`,
/// `spiffe://CLUSTER/coordinator`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster's random id.
    pub cluster: String,
    /// The holder's role.
    pub role: Role,
    /// Host or user name; empty for the coordinator.
    pub name: String,
}

/// Why a certificate gives no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not X.509.
    #[error("not a certificate")]
    NotACertificate,
    /// No role URI, or several of them.
    #[error("it has {0} role URIs in its subject alternative names; a Mezcal certificate has one")]
    Uris(usize),
    /// The URI is not of a Mezcal form.
    #[error(
        "its role URI {0:?} is not of the form spiffe://CLUSTER/agent/HOST, …/user/NAME or …/coordinator"
    )]
    Uri(String),
    /// The key usage does not fit the role. webpki takes an absent usage for every usage; Mezcal
    /// does not.
    #[error("its extended key usage does not fit the role {0}")]
    Usage(&'static str),
}

impl Identity {
    /// An identity from its parts.
    ///
    /// # Errors
    /// [`IdentityError::Uri`] if a part has characters other than lower-case letters, digits, `-`,
    /// `_` and `.`.
    pub fn new(cluster: &str, role: Role, name: &str) -> Result<Self, IdentityError> {
        let id = Self {
            cluster: cluster.into(),
            role,
            name: name.into(),
        };
        Self::from_uri(&id.uri())
    }

    /// The URI that goes into the certificate.
    pub fn uri(&self) -> String {
        match self.role {
            Role::Coordinator => format!("spiffe://{}/coordinator", self.cluster),
            role => format!("spiffe://{}/{}/{}", self.cluster, role.as_str(), self.name),
        }
    }

    /// Reads the URI of a certificate.
    ///
    /// # Errors
    /// [`IdentityError::Uri`].
    pub fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        let bad = || IdentityError::Uri(uri.into());
        let plain = |s: &str| {
            (1..=253).contains(&s.len())
                && !s.starts_with('.')
                && !s.contains("..")
                && s.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
                })
        };
        let rest = uri.strip_prefix("spiffe://").ok_or_else(bad)?;
        let parts: Vec<&str> = rest.split('/').collect();
        if !parts.iter().all(|p| plain(p)) {
            return Err(bad());
        }
        let (role, name) = match parts[..] {
            // A list of hosts could not name it.
            [_, "agent", name] if !name.starts_with('-') => (Role::Agent, name),
            [_, "user", name] => (Role::User, name),
            [_, "coordinator"] => (Role::Coordinator, ""),
            _ => return Err(bad()),
        };
        Ok(Self {
            cluster: parts[0].into(),
            role,
            name: name.into(),
        })
    }

    /// Reads the identity of a DER certificate and checks that its key usage fits.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, cert) =
            X509Certificate::from_der(der).map_err(|_| IdentityError::NotACertificate)?;
        let san = cert
            .subject_alternative_name()
            .map_err(|_| IdentityError::NotACertificate)?;
        let uris: Vec<&str> = san
            .iter()
            .flat_map(|ext| &ext.value.general_names)
            .filter_map(|name| {
                if let GeneralName::URI(uri) = name {
                    Some(*uri)
                } else {
                    None
                }
            })
            .collect();
        let [uri] = uris[..] else {
            return Err(IdentityError::Uris(uris.len()));
        };
        let id = Self::from_uri(uri)?;
        let usage = cert
            .extended_key_usage()
            .map_err(|_| IdentityError::NotACertificate)?;
        let fits = usage.is_some_and(|u| match id.role {
            Role::Coordinator => u.value.server_auth && !u.value.client_auth && !u.value.any,
            Role::Agent | Role::User => u.value.client_auth && !u.value.server_auth && !u.value.any,
        });
        if fits {
            Ok(id)
        } else {
            Err(IdentityError::Usage(id.role.as_str()))
        }
    }

    /// The constant DNS name of a cluster's coordinator certificate: agents check it instead of an
    /// address, so the coordinator can move.
    pub fn coordinator_dns(cluster: &str) -> String {
        format!("coordinator.{cluster}.mezcal")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Coordinator => write!(f, "coordinator of {}", self.cluster),
            role => write!(f, "{} {} of {}", role.as_str(), self.name, self.cluster),
        }
    }
}

/// The validity of a DER certificate in seconds since the Unix epoch: (not before, not after).
///
/// # Errors
/// [`IdentityError::NotACertificate`].
pub fn validity(der: &[u8]) -> Result<(i64, i64), IdentityError> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|_| IdentityError::NotACertificate)?;
    Ok((
        cert.validity().not_before.timestamp(),
        cert.validity().not_after.timestamp(),
    ))
}

/// SHA-256 of a DER certificate's public key (its SubjectPublicKeyInfo). `None` if the bytes are
/// not a certificate.
pub fn key_hash(der: &[u8]) -> Option<[u8; 32]> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    Some(crate::model::token::sha256(cert.public_key().raw))
}

/// Whether `signature` is a signature of `message` by the key of this certificate (DER): ECDSA with
/// P-256 and SHA-256, in ASN.1.
pub fn has_signed(der: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let Ok((_, cert)) = X509Certificate::from_der(der) else {
        return false;
    };
    let key = ring::signature::UnparsedPublicKey::new(
        &ring::signature::ECDSA_P256_SHA256_ASN1,
        cert.public_key().subject_public_key.data.as_ref(),
    );
    key.verify(message, signature).is_ok()
}

/// Details of a certificate that `certs show` prints beyond its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Subject distinguished name.
    pub subject: String,
    /// Issuer distinguished name.
    pub issuer: String,
    /// Common name of the subject.
    pub common_name: String,
    /// Whether it is a certificate authority.
    pub is_ca: bool,
}

/// Reads the details of a DER certificate.
///
/// # Errors
/// [`IdentityError::NotACertificate`].
pub fn details(der: &[u8]) -> Result<Details, IdentityError> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|_| IdentityError::NotACertificate)?;
    let common_name = cert
        .subject()
        .iter_common_name()
        .find_map(|cn| cn.as_str().ok())
        .unwrap_or_default()
        .to_owned();
    Ok(Details {
        serial: cert
            .raw_serial()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect(),
        subject: cert.subject().to_string(),
        issuer: cert.issuer().to_string(),
        common_name,
        is_ca: cert.is_ca(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_of_other_forms_are_refused() {
        for good in [
            "spiffe://m-1/agent/mezcal01.cl.ecei.tohoku.ac.jp",
            "spiffe://m/user/okazaki",
            "spiffe://m/coordinator",
        ] {
            assert_eq!(Identity::from_uri(good).expect(good).uri(), good);
        }
        for bad in [
            "spiffe://m/admin/x",
            "http://m/user/x",
            "spiffe://m/user/",
            "spiffe://m/user/X",
            "spiffe://m/user/a%2fb",
            "spiffe://m/user/..",
            "spiffe:///user/x",
            "spiffe://m/coordinator/x",
            "spiffe://m/user/x/y",
            "spiffe://m/agent/-vm",
            "spiffe://m/user/é",
        ] {
            assert!(Identity::from_uri(bad).is_err(), "{bad}");
        }
    }
}
