//! The content of certificates, and certificates that cannot be made.

use super::*;
use mezcal_common::wire::tls::Credentials;

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
    // A request for more rights than its sender has.
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
    // No certificate outlives its issuer.
    let long = issuer
        .sign(
            Role::User,
            "okazaki",
            Duration::from_secs(4000 * crate::DAY),
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
        // It expires with the second in which it was made.
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
