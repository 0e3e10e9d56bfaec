//! Rules about the source itself: arrows between crates, one owner for each outside dependency,
//! pure cores.

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
        ("rcgen", "certs/src/lib.rs"),
        ("sysinfo", "agent/src/supervisor/host.rs"),
        ("rusqlite", "coordinator/src/store"),
        ("axum", "coordinator/src/service/http.rs"),
        ("prometheus_client", "coordinator/src/service/observe.rs"),
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

#[test]
fn cores_have_no_clock_no_lock_and_no_io() {
    let cores = [
        "agent/src/engine.rs",
        "agent/src/keeper.rs",
        "agent/src/supervisor.rs",
        "coordinator/src/scheduler.rs",
    ];
    let is_core =
        |name: &str| cores.contains(&name) || name.starts_with("coordinator/src/scheduler/");
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
