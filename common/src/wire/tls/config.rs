//! TLS configurations: which side has to present a certificate, and which certificates are
//! accepted.

use super::Credentials;
use super::error::CredentialsError;
use crate::model::identity::{Identity, Role};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::Path;
use std::sync::Arc;

/// For a client that knows only the hash of the root's public key.
pub(in crate::wire) fn pinned_client_config(pin: [u8; 32], protocol: &[u8]) -> ClientConfig {
    let tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin }))
        .with_no_client_auth();
    connecting(tls, protocol)
}

/// Settings of all listeners: their protocols, no tickets, no early data.
fn serving(mut tls: ServerConfig, protocols: &[&[u8]]) -> ServerConfig {
    tls.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    tls.max_early_data_size = 0;
    tls
}

/// Settings of all connecting sides: the protocol, no resumption, no early data.
fn connecting(mut tls: ClientConfig, protocol: &[u8]) -> ClientConfig {
    tls.alpn_protocols = vec![protocol.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    tls.enable_early_data = false;
    tls
}

/// Accepts the coordinator of the cluster whose root has a public key with this hash: the usual
/// checks, with that root found by its hash among the certificates that the peer sends.
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

pub(super) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Credentials {
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

    pub(in crate::wire) fn server_config(
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

    /// For applicants, who have no certificate yet; they are sent the root, too.
    pub(in crate::wire) fn enrol_config(
        &self,
        protocol: &[u8],
    ) -> Result<ServerConfig, CredentialsError> {
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

    pub(in crate::wire) fn client_config(
        &self,
        protocol: &[u8],
    ) -> Result<ClientConfig, CredentialsError> {
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
