//! Rules about the source itself: one owner for each outside dependency, arrows between the wings of
//! the coordinator, verbs that stand alone, pure cores.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Rust sources below a folder, with their text. Tests beside the code are left out.
fn sources(folder: &str) -> Vec<(String, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs")
                && path.file_name().is_some_and(|n| n != "tests.rs")
            {
                out.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(folder), &mut paths);
    let name = |p: &Path| {
        p.strip_prefix(root())
            .expect("below the root")
            .display()
            .to_string()
    };
    paths
        .iter()
        .map(|p| (name(p), std::fs::read_to_string(p).expect("readable")))
        .collect()
}

fn all() -> Vec<(String, String)> {
    ["common/src", "certs/src", "agent/src", "coordinator/src"]
        .iter()
        .flat_map(|f| sources(f))
        .collect()
}

/// Code without comments and without the unit tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    text.lines()
        .filter(|l| !l.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn each_outside_dependency_has_one_owner() {
    let owners = [
        ("quinn", "common/src/wire/"),
        ("rustls", "common/src/wire/"),
        ("bincode", "common/src/wire/codec.rs"),
        ("x509_parser", "common/src/model/identity.rs"),
        ("rcgen", "certs/src/authority.rs"),
        ("sysinfo", "agent/src/supervisor/host.rs"),
        ("rusqlite", "coordinator/src/store"),
        ("axum", "coordinator/src/service/http.rs"),
        ("prometheus_client", "coordinator/src/service/counters.rs"),
        ("indicatif", "coordinator/src/report/progress.rs"),
        ("mezcal_agent", "coordinator/src/client/embedded.rs"),
    ];
    for (name, text) in all() {
        if name.ends_with("src/main.rs") {
            continue;
        }
        for (dependency, owner) in owners {
            // The program for everything has the agent's command beside the coordinator's.
            if (name.as_str(), dependency) == ("coordinator/src/bin/mezcal.rs", "mezcal_agent") {
                continue;
            }
            let named = code(&text).contains(&format!("{dependency}::"));
            assert!(
                !named || name.starts_with(owner),
                "{name} names {dependency}, which belongs to {owner}"
            );
        }
    }
}

/// The first names of the paths in `code` that begin with `start`: of `crate::verb::run` and the
/// like with `crate::` it is `verb`. A group in braces has no name.
fn named_below<'a>(code: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    code.split(start).skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

/// Whether a file has tests and nothing else.
fn is_of_tests(name: &str) -> bool {
    name.contains("/tests/")
}

#[test]
fn no_verb_knows_another_one() {
    for (name, text) in sources("coordinator/src/verb") {
        let (below, code) = (&name["coordinator/src/verb/".len()..], code(&text));
        let own = below.split(['/', '.']).next();
        for other in named_below(&code, "crate::verb::") {
            assert!(
                own == Some(other),
                "{name} names the verb {other:?}: what two verbs need lies in client, report or jobs"
            );
        }
        let others = if below.contains('/') {
            "super::super::"
        } else {
            "super::"
        };
        assert!(
            !code.contains(others),
            "{name} looks at other verbs by {others}"
        );
    }
}

/// The wings of the coordinator, and which of the others each may name.
const WINGS: [(&str, &[&str]); 9] = [
    ("cli", &["client", "exit", "verb"]),
    ("verb", &["client", "exit", "jobs", "report"]),
    ("client", &["exit", "jobs"]),
    ("report", &["exit", "jobs"]),
    ("jobs", &[]),
    ("service", &["exit", "jobs", "scheduler", "store"]),
    ("store", &["exit", "scheduler"]),
    ("scheduler", &[]),
    ("exit", &[]),
];

/// Files that may name more: where a client has a coordinator in its own process, or on its own
/// host.
const DOORS: [(&str, &[&str]); 8] = [
    ("client.rs", &["service"]),
    ("client/cluster.rs", &["service"]),
    ("client/embedded.rs", &["scheduler", "service"]),
    ("verb/certs.rs", &["service", "store"]),
    ("verb/doctor.rs", &["service"]),
    ("verb/manage.rs", &["service", "store"]),
    ("verb/revoke.rs", &["service"]),
    ("verb/serve.rs", &["scheduler", "service", "store"]),
];

#[test]
fn the_wings_of_the_coordinator_name_only_those_below_them() {
    let mut used = BTreeSet::new();
    let files = sources("coordinator/src").into_iter();
    for (name, text) in files.filter(|(name, _)| !is_of_tests(name)) {
        let file = &name["coordinator/src/".len()..];
        // Programs, and the list of wings.
        if ["main.rs", "lib.rs", "early.rs", "bin/mezcal.rs"].contains(&file) {
            continue;
        }
        let wing = file.split(['/', '.']).next().unwrap_or_default();
        let (_, below) = WINGS
            .iter()
            .find(|(known, _)| *known == wing)
            .unwrap_or_else(|| panic!("{name} is in no wing"));
        let doors = DOORS.iter().find(|(door, _)| *door == file);
        for other in named_below(&code(&text), "crate::").filter(|other| *other != wing) {
            let by_door = doors.is_some_and(|(_, more)| more.contains(&other));
            used.extend(by_door.then(|| (file.to_owned(), other.to_owned())));
            assert!(
                below.contains(&other) || by_door,
                "{name} names {other:?}, which is not below {wing} (ARCHITECTURE.md)"
            );
        }
    }
    for (file, more) in DOORS {
        for other in more {
            let pair = (file.to_owned(), (*other).to_owned());
            assert!(
                used.contains(&pair),
                "{file} does not name {other} any more"
            );
        }
    }
}

/// What has a core: the file of this name and the folder beside it.
const CORES: [&str; 5] = [
    "agent/src/engine",
    "agent/src/keeper",
    "agent/src/supervisor",
    "certs/src/renewal",
    "coordinator/src/scheduler",
];

/// What lies in the folders of cores and drives them, or asks the kernel for them: files of these
/// names and what is in the folders beside them.
const DRIVERS: [&str; 22] = [
    "agent/src/engine/clone",
    "agent/src/engine/counters",
    "agent/src/engine/driver",
    "agent/src/engine/environment",
    "agent/src/engine/open",
    "agent/src/engine/processes",
    "agent/src/engine/program",
    "agent/src/engine/spawn",
    "agent/src/engine/wait",
    "agent/src/keeper/driver",
    "agent/src/keeper/start",
    "agent/src/supervisor/connection",
    "agent/src/supervisor/driver",
    "agent/src/supervisor/generations",
    "agent/src/supervisor/greeting",
    "agent/src/supervisor/host",
    "agent/src/supervisor/keepers",
    "agent/src/supervisor/links",
    "agent/src/supervisor/logs",
    "agent/src/supervisor/renewal",
    "agent/src/supervisor/standing",
    "agent/src/supervisor/users",
];

#[test]
fn cores_have_no_clock_no_lock_and_no_io() {
    for driver in DRIVERS {
        let file = root().join(format!("{driver}.rs"));
        assert!(file.exists(), "{driver}.rs is not there");
    }
    let is_core = |name: &str| {
        let of = |part: &&str| {
            let rest = name.strip_prefix(*part);
            rest.is_some_and(|rest| rest.starts_with(['.', '/']))
        };
        CORES.iter().any(of) && !DRIVERS.iter().any(of)
    };
    let forbidden = [
        "::now()",
        "std::fs",
        "std::net",
        "std::thread",
        "std::process",
        "std::sync::Mutex",
        "tokio",
        "rustix",
        "libc::",
        "async ",
        ".await",
        "unsafe",
        "getrandom",
        "println!",
    ];
    for (name, text) in all().into_iter().filter(|(name, _)| is_core(name)) {
        for word in forbidden {
            assert!(
                !code(&text).contains(word),
                "{name}, a pure core, contains {word:?}"
            );
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for (name, text) in all() {
        assert!(
            text.starts_with("//!"),
            "{name} does not begin with its own description"
        );
    }
}

#[test]
fn what_the_design_calls_something_else_is_not_used() {
    for (name, text) in all() {
        for word in ["worker", "master", "Manager", "Helper"] {
            // The one sentence that ops people search for.
            let text = text.replace("persistent worker", "");
            // A key that other programs know, which is refused.
            let text = text.replace("(\"worker\", ", "");
            assert!(
                !text.contains(word),
                "{name} says {word:?}; see the glossary in common/src/lib.rs"
            );
        }
    }
}
