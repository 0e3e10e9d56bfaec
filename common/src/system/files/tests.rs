//! Directories, links and files of others, made in a directory of the test's own. Cases that need
//! another account run as root only.

use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

/// Another account: `daemon` on most systems.
const OTHER: u32 = 1;

/// Whether this test runs as root; if not, its output says what was skipped.
fn root_or_say_why() -> bool {
    if us() != 0 {
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED in {name}: only root can make files of others"
        );
    }
    us() == 0
}

fn dir(path: PathBuf, mode: u32, owner: u32) -> PathBuf {
    std::fs::create_dir(&path).expect("made");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
    if owner != us() {
        std::os::unix::fs::chown(&path, Some(owner), None).expect("chown");
    }
    path
}

fn link(to: &Path, path: &Path, owner: u32) {
    symlink(to, path).expect("made");
    if owner != us() {
        std::os::unix::fs::lchown(path, Some(owner), None).expect("lchown");
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).expect("there").mode() & 0o7777
}

#[test]
fn a_directory_of_our_own_is_made_closed_and_is_found_again() {
    let tmp = tempfile::tempdir().expect("a directory");
    let path = tmp.path().join("mezcal/engines");
    let made = Directory::own(&path).expect("made");
    assert_eq!(
        (mode(&path), mode(&tmp.path().join("mezcal"))),
        (0o700, 0o700)
    );
    made.try_writing().expect("written");
    assert_eq!(
        std::fs::read_dir(&path).expect("readable").count(),
        0,
        "nothing is left of the try"
    );
    Directory::own(&path).expect("found").discard();
    assert!(path.exists(), "it was there before");
    Directory::own(&path.join("more/below"))
        .expect("made")
        .discard();
    assert!(
        path.join("more").exists() && !path.join("more/below").exists(),
        "what was made is taken back"
    );
    Directory::existing_own(&path).expect("found");
    // Like a link of root or of our own in a place that only they can write to.
    symlink(tmp.path().join("mezcal"), tmp.path().join("link")).expect("made");
    Directory::own(&tmp.path().join("link/engines/../engines")).expect("found");
    let none = Directory::existing_own(&tmp.path().join("none")).expect_err("not there");
    assert!(
        matches!(none, PlaceError::Failed { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    );
    std::fs::write(tmp.path().join("file"), "").expect("written");
    Directory::own(&tmp.path().join("file")).expect_err("no directory");
    symlink("circle", tmp.path().join("circle")).expect("made");
    Directory::own(&tmp.path().join("circle")).expect_err("no end");
}

#[test]
fn a_directory_that_others_can_change_is_refused_with_the_way_out() {
    let tmp = tempfile::tempdir().expect("a directory");
    let open = dir(tmp.path().join("open"), 0o777, us());
    let said = Directory::own(&open).expect_err("refused").to_string();
    assert!(
        said.contains("mode 777") && said.contains(&format!("chmod go-w {}", open.display())),
        "{said}"
    );
    let said = Directory::own(&open.join("below"))
        .expect_err("refused")
        .to_string();
    assert!(said.contains("mode 777"), "what is above it, too: {said}");
    assert!(!open.join("below").exists(), "nothing was made");
    let group = dir(tmp.path().join("group"), 0o770, us());
    Directory::own(&group).expect_err("a group is others, too");
    let shared = dir(tmp.path().join("shared"), 0o1777, us());
    Directory::own(&shared.join("mezcal")).expect("as in /tmp");
}

#[test]
fn a_directory_of_somebody_elses_is_refused_with_its_owner() {
    if !root_or_say_why() {
        return;
    }
    let tmp = tempfile::tempdir().expect("a directory");
    let shared = dir(tmp.path().join("tmp"), 0o1777, 0);
    let planted = dir(shared.join("mezcal-0"), 0o777, OTHER);
    for path in [planted.clone(), planted.join("engines")] {
        let said = Directory::own(&path).expect_err("refused").to_string();
        let named = format!(
            "{} belongs to {}, not to {}",
            planted.display(),
            called(OTHER),
            called(0)
        );
        assert!(
            said.starts_with(&named) && said.contains("choose another place"),
            "{said}"
        );
    }
    assert!(!planted.join("engines").exists(), "nothing was made in it");
    // Ours, but in a directory of theirs: they could put another one in its place.
    dir(planted.join("engines"), 0o700, 0);
    Directory::own(&planted.join("engines")).expect_err("refused");
}

#[test]
fn links_are_followed_only_where_nobody_else_can_make_any() {
    if !root_or_say_why() {
        return;
    }
    let tmp = tempfile::tempdir().expect("a directory");
    let victim = dir(tmp.path().join("victim"), 0o755, 0);
    let theirs = dir(tmp.path().join("theirs"), 0o700, OTHER);
    link(&victim, &theirs.join("pki"), OTHER);
    link(&victim, &theirs.join("roots"), 0);
    let shared = dir(tmp.path().join("tmp"), 0o1777, 0);
    link(&victim, &shared.join("theirs"), OTHER);
    link(&victim, &shared.join("roots"), 0);
    link(&shared.join("theirs"), &tmp.path().join("detour"), 0);
    for refused in [
        theirs.join("pki"),
        theirs.join("roots"),
        theirs.join("pki/below"),
        shared.join("theirs"),
        tmp.path().join("detour"),
    ] {
        let said = Directory::make(&refused, PRIVATE)
            .expect_err("refused")
            .to_string();
        assert!(
            said.contains("is a link") && said.contains("not followed"),
            "{said}"
        );
    }
    assert_eq!(
        std::fs::read_dir(&victim).expect("readable").count(),
        0,
        "nothing was made there"
    );
    Directory::make(&shared.join("roots"), PRIVATE).expect("a link of root's own");
    // A directory of theirs may be used, if a user has named it: files are made there, and links of
    // theirs are not followed.
    let mut made = Directory::make(&theirs.join("real"), PRIVATE).expect("made");
    made.give_to((OTHER, OTHER)).expect("given");
    assert_eq!(
        std::fs::metadata(theirs.join("real")).expect("there").uid(),
        OTHER
    );
    let mut another =
        Directory::make(&dir(theirs.join("stranger"), 0o700, 2), PRIVATE).expect("found");
    another
        .give_to((OTHER, OTHER))
        .expect_err("it is nobody's to give");
}

#[test]
fn a_file_is_replaced_whatever_lies_at_its_name_and_beside_it() {
    let tmp = tempfile::tempdir().expect("a directory");
    let victim = tmp.path().join("victim");
    std::fs::write(&victim, "untouched").expect("written");
    let path = dir(tmp.path().join("dir"), 0o700, us());
    let dir = Directory::own(&path).expect("found");
    symlink(&victim, path.join("key.pem")).expect("made");
    symlink(&victim, path.join("key.pem.new")).expect("made");
    dir.replace("key.pem", b"secret", 0o600, None)
        .expect("replaced");
    assert_eq!(
        std::fs::read_to_string(&victim).expect("there"),
        "untouched"
    );
    assert_eq!(
        std::fs::read_to_string(path.join("key.pem")).expect("there"),
        "secret"
    );
    assert_eq!(
        (
            mode(&path.join("key.pem")),
            std::fs::read_dir(&path).expect("readable").count()
        ),
        (0o600, 1)
    );
    symlink(&victim, path.join("lock")).expect("made");
    let said = dir.lock_file("lock").expect_err("refused").to_string();
    assert!(said.contains("is a link"), "{said}");
    dir.lock_file("other.lock").expect("made");
    dir.lock_file("other.lock").expect("found");
    assert_eq!(mode(&path.join("other.lock")), 0o600);
}

#[test]
fn a_rewrite_keeps_the_mode_and_writes_through_no_link_beside_the_file() {
    let tmp = tempfile::tempdir().expect("a directory");
    let (victim, file) = (tmp.path().join("victim"), tmp.path().join("results.jsonl"));
    std::fs::write(&victim, "untouched").expect("written");
    std::fs::write(&file, "old").expect("written");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).expect("chmod");
    symlink(&victim, tmp.path().join("results.jsonl.new")).expect("made");
    symlink("results.jsonl", tmp.path().join("link")).expect("made");
    rewrite(&tmp.path().join("link"), b"new").expect("rewritten");
    assert_eq!(
        std::fs::read_to_string(&victim).expect("there"),
        "untouched"
    );
    assert_eq!(std::fs::read_to_string(&file).expect("there"), "new");
    assert_eq!(mode(&file), 0o640);
    assert!(tmp.path().join("link").is_symlink());
    assert_eq!(
        std::fs::read_dir(tmp.path()).expect("readable").count(),
        4,
        "nothing is left beside it"
    );
}
