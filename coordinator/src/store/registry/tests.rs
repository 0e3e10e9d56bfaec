//! Tests of renewals and revocations, and of rows that are forgotten.

use super::{CertificateRow, RENEWABLE, Refusal, Registry, now, serial, serial_and_end};
use crate::store::Store;
use mezcal_certs::Authority;
use mezcal_common::model::identity::{Identity, Role};
use std::time::{Duration, Instant};

use super::renewal::{ON_THEIR_WAY, RENEWAL_PAUSE};

struct Site {
    registry: Registry,
    authority: Authority,
    _dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (authority, _) = Authority::create("mezcal").expect("created");
        let registry = Store::open(dir.path())
            .expect("a store")
            .registry(true)
            .expect("a registry");
        Self {
            registry,
            authority,
            _dir: dir,
        }
    }

    fn certificate(&self, role: Role, name: &str, life: Duration) -> Vec<u8> {
        let (_, request) = mezcal_certs::request().expect("a key");
        let pem = self
            .authority
            .sign(role, name, life, &request)
            .expect("signed")
            .cert;
        mezcal_certs::der_of(&pem).expect("a certificate")
    }

    /// A certificate that is on the list.
    fn listed(&self, role: Role, name: &str, life: Duration) -> Vec<u8> {
        let der = self.certificate(role, name, life);
        let (serial, expires) = serial_and_end(&der).expect("readable");
        let row = CertificateRow {
            serial,
            role,
            name: name.into(),
            expires,
            revoked: None,
        };
        self.registry.import(&[row]).expect("imported");
        der
    }

    fn renew(&self, now: Instant, old: &[u8], life: Duration) -> Result<Vec<u8>, Refusal> {
        let holder = Identity::from_der(old).expect("an identity");
        let sign = |role, name: &str| {
            let (_, request) = mezcal_certs::request().expect("a key");
            self.authority
                .sign(role, name, life, &request)
                .map(|signed| signed.cert)
                .map_err(|e| e.to_string())
        };
        self.registry
            .renew_at(now, old, &holder, sign)
            .map(|pem| mezcal_certs::der_of(&pem).expect("a certificate"))
    }

    fn counts(&self, der: &[u8]) -> bool {
        self.registry
            .admits(der, &Identity::from_der(der).expect("an identity"))
            .is_ok()
    }
}

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn a_holder_gets_one_certificate_in_a_while() {
    let site = Site::new();
    let (okazaki, sato) = (
        site.listed(Role::User, "okazaki", 30 * DAY),
        site.listed(Role::User, "sato", 30 * DAY),
    );
    let begin = Instant::now();
    let made = (0..1000)
        .filter(|n| {
            site.renew(begin + Duration::from_millis(*n), &okazaki, 30 * DAY)
                .is_ok()
        })
        .count();
    assert_eq!(made, 1);
    assert!(
        site.renew(begin, &sato, 30 * DAY).is_ok(),
        "that is somebody else"
    );
    assert!(
        site.renew(begin + RENEWAL_PAUSE, &okazaki, 30 * DAY)
            .is_ok()
    );
    // A certificate whose life is a minute has to be renewed in half of that, even if an answer is
    // lost.
    let short = site.listed(Role::Agent, "h1", Duration::from_secs(60));
    assert!(site.renew(begin, &short, Duration::from_secs(60)).is_ok());
    assert!(
        site.renew(
            begin + Duration::from_secs(1),
            &short,
            Duration::from_secs(60)
        )
        .is_err()
    );
    assert!(
        site.renew(
            begin + Duration::from_secs(5),
            &short,
            Duration::from_secs(60)
        )
        .is_ok()
    );
}

#[test]
fn of_a_users_certificates_those_that_end_last_count() {
    let site = Site::new();
    let first = site.listed(Role::User, "okazaki", 10 * DAY);
    let (mut now, mut all) = (Instant::now(), vec![first.clone()]);
    for n in 1..=20 {
        now += RENEWAL_PAUSE;
        all.push(
            site.renew(now, &first, (10 + n) * DAY)
                .expect("another one"),
        );
    }
    let counting: Vec<usize> = (0..all.len()).filter(|n| site.counts(&all[*n])).collect();
    assert_eq!(
        counting,
        [0, 14, 15, 16, 17, 18, 19, 20],
        "that with which they were asked for, and the newest"
    );
}

#[test]
fn whichever_answer_a_host_had_is_good() {
    let site = Site::new();
    let old = site.listed(Role::Agent, "h1", 30 * DAY);
    let ask = |n: u32| {
        site.renew(Instant::now() + n * RENEWAL_PAUSE, &old, 30 * DAY)
            .expect("another one")
    };
    let asked: Vec<_> = (0..ON_THEIR_WAY).map(ask).collect();
    assert!(asked.iter().chain([&old]).all(|der| site.counts(der)));
    site.registry.used(&asked[0]).expect("the first was late");
    assert!(
        site.counts(&asked[0]) && !asked[1..].iter().chain([&old]).any(|der| site.counts(der)),
        "of one host one counts"
    );
    assert!(
        site.renew(Instant::now() + 9 * RENEWAL_PAUSE, &old, DAY)
            .is_err(),
        "nor does what is asked for with an old one"
    );
    // A host that asks without end has few.
    let many: Vec<_> = (20..40)
        .map(|n| {
            site.renew(Instant::now() + n * RENEWAL_PAUSE, &asked[0], n * DAY)
                .expect("made")
        })
        .collect();
    assert_eq!(
        many.iter().filter(|der| site.counts(der)).count(),
        ON_THEIR_WAY as usize
    );
    assert!(site.counts(&many[19]) && site.counts(&asked[0]));
}

#[test]
fn whoever_did_not_get_the_answer_can_ask_again_though_the_old_certificate_is_over() {
    for role in [Role::Agent, Role::User] {
        let site = Site::new();
        let old = site.listed(role, "okazaki", Duration::ZERO);
        let holder = Identity::from_der(&old).expect("an identity");
        assert!(
            site.registry.is_renewable(&old, &holder).is_err(),
            "its key has not been seen"
        );
        site.registry.used(&old).expect("it comes");
        assert!(site.registry.any_renewable().expect("readable"));
        let mut now = Instant::now();
        for _ in 0..3 {
            now += RENEWAL_PAUSE;
            let lost = site.renew(now, &old, 30 * DAY).expect("another one");
            assert!(
                site.counts(&lost) && site.registry.any_renewable().expect("readable"),
                "it may not have it: {role:?}"
            );
            site.registry
                .is_renewable(&old, &holder)
                .expect("nor anything else");
        }
        let new = site
            .renew(now + RENEWAL_PAUSE, &old, 30 * DAY)
            .expect("another one");
        site.registry.used(&new).expect("it comes with it");
        assert!(
            !site.registry.any_renewable().expect("readable"),
            "nobody is missing: {role:?}"
        );
    }
}

#[test]
fn connections_hear_of_what_has_ended_and_of_nothing_else() {
    let site = Site::new();
    let (okazaki, sato) = (
        site.listed(Role::User, "okazaki", DAY),
        site.listed(Role::User, "sato", DAY),
    );
    let mut ended = site.registry.ended();
    site.registry
        .create_tokens([0; 32], Role::Agent, &["h1".into()], DAY, false)
        .expect("made");
    site.listed(Role::User, "endo", DAY);
    site.renew(Instant::now(), &okazaki, DAY)
        .expect("another one");
    assert!(
        !ended.has_changed().expect("it is there"),
        "none of these ends a connection"
    );
    site.registry
        .revoke(Role::User, "sato", None)
        .expect("revoked");
    assert!(ended.has_changed().expect("it is there"));
    let ended = ended.borrow_and_update();
    let has = |der: &[u8]| ended.contains(&serial(der).expect("readable"));
    assert_eq!((has(&okazaki), has(&sato)), (false, true));
}

#[test]
fn what_is_over_is_forgotten() {
    let site = Site::new();
    let good = site.listed(Role::User, "okazaki", DAY);
    let row = |serial: &str, expires: i64| CertificateRow {
        serial: serial.into(),
        role: Role::User,
        name: "sato".into(),
        expires: now() + expires,
        revoked: None,
    };
    site.registry
        .import(&[row("01", -1), row("02", -RENEWABLE - 10)])
        .expect("imported");
    site.renew(Instant::now(), &good, DAY).expect("another one");
    let serials = || -> Vec<String> {
        site.registry
            .certificates()
            .expect("a list")
            .into_iter()
            .map(|c| c.serial)
            .collect()
    };
    assert!(
        serials().contains(&"01".into()) && !serials().contains(&"02".into()),
        "the first can be renewed yet"
    );
    site.registry
        .revoke(Role::User, "sato", None)
        .expect("revoked");
    site.renew(Instant::now() + RENEWAL_PAUSE, &good, DAY)
        .expect("another one");
    assert!(!serials().contains(&"01".into()));
}
