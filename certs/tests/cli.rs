//! The `certs` command as an ops team uses it.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

fn certs(dir: &std::path::Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_certs"))
        .args(args)
        .current_dir(dir)
        .env_remove("MEZCAL_PKI")
        .output()
        .expect("it runs")
}

#[test]
fn twelve_hosts_get_their_certificates_by_one_command() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    assert!(
        certs(dir, &["init", "pki", "--cluster", "mezcal"])
            .status
            .success()
    );
    let out = certs(
        dir,
        &[
            "issue",
            "agent",
            "mezcal[01-12].cl.ecei.tohoku.ac.jp",
            "--dir",
            "pki",
        ],
    );
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let places = String::from_utf8(out.stdout).expect("UTF-8");
    assert_eq!(places.lines().count(), 12);
    let place = dir.join(places.lines().nth(2).expect("a third"));
    assert!(place.ends_with("mezcal03.cl.ecei.tohoku.ac.jp"));
    assert_eq!(
        std::fs::metadata(place.join("key.pem"))
            .expect("a key")
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    let shown = certs(
        dir,
        &[
            "show",
            place.join("cert.pem").to_str().expect("UTF-8"),
            "--json",
        ],
    );
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert!(
        shown["identity"]
            .as_str()
            .is_some_and(|i| i.ends_with("/agent/mezcal03.cl.ecei.tohoku.ac.jp")),
        "{shown}"
    );
    // A second may begin between issuing and showing.
    assert!(
        shown["days_left"]
            .as_i64()
            .is_some_and(|d| (29..=30).contains(&d)),
        "{shown}"
    );
    let root = certs(dir, &["show", "pki/ca.pem"]);
    assert!(String::from_utf8_lossy(&root.stdout).contains("identity    root"));
}

#[test]
fn mistakes_are_named() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let said = |args: &[&str]| {
        let out = certs(dir, args);
        assert_eq!(out.status.code(), Some(2));
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(said(&["issue", "user", "okazaki"]).contains("certs init"));
    assert!(
        certs(dir, &["init", "pki", "--cluster", "mezcal"])
            .status
            .success()
    );
    assert!(said(&["init", "pki", "--cluster", "mezcal"]).contains("holds a cluster already"));
    assert!(said(&["issue", "user", "Bad Name", "--dir", "pki"]).contains("Bad Name"));
    assert!(said(&["issue", "agent", "h[2-1]", "--dir", "pki"]).contains("2-1"));
    assert!(said(&["show", "pki/ca-key.pem"]).contains("no certificate"));
    assert!(said(&["init", "other", "--cluster", "Not OK"]).contains("lower-case"));
}

#[test]
fn a_reader_that_has_left_ends_the_command_without_a_word() {
    let tmp = tempfile::tempdir().expect("a directory");
    for args in [
        &["init", "pki", "--cluster", "mezcal"][..],
        &["issue", "user", "sato", "--dir", "pki"],
        &["show", "pki/ca.pem"],
        &["show", "pki/ca.pem", "--json"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let out = Command::new(env!("CARGO_BIN_EXE_certs"))
            .args(args)
            .current_dir(tmp.path())
            .env_remove("MEZCAL_PKI")
            .stdout(writer)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!((out.status.code(), &*said), (Some(141), ""), "{args:?}");
    }
}
