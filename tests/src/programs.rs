//! The programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The programs of this workspace.
const NAMES: [&str; 6] = [
    "mezcal",
    "coordinator",
    "agent",
    "certs",
    "hostile",
    "false_keeper",
];

/// The kinds of the program `hostile`, as its first argument.
pub const HOSTILE_KINDS: [&str; 12] = [
    "background",
    "setsid",
    "daemon",
    "deaf",
    "masked",
    "stopped",
    "bomb",
    "chain",
    "breeder",
    "holder",
    "zombies",
    "mover",
];

/// Path of an up-to-date program of this workspace, in the profile of the running test.
pub fn program(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let exe = std::env::current_exe().expect("a test knows its own path");
        let profile = |d: &&Path| {
            d.file_name()
                .is_some_and(|n| n == "debug" || n == "release")
        };
        let dir = exe
            .ancestors()
            .find(profile)
            .expect("tests run from a target directory")
            .to_path_buf();
        // `cargo test` has built the programs for their own tests; with `-p mezcal-tests` they may
        // be old or missing.
        let oldest = NAMES
            .iter()
            .map(|name| modified(&dir.join(name)))
            .min()
            .flatten();
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let newest = [
            "common",
            "certs",
            "agent",
            "coordinator",
            "tests/src/bin",
            "Cargo.lock",
        ]
        .iter()
        .filter_map(|d| newest_below(&root.join(d)))
        .max();
        if oldest < newest {
            build(root, dir.ends_with("release"));
        }
        dir
    });
    dir.join(name)
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn newest_below(path: &Path) -> Option<SystemTime> {
    match std::fs::read_dir(path) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|e| newest_below(&e.path()))
            .max(),
        Err(_) => modified(path),
    }
}

fn build(root: &Path, release: bool) {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build
        .args([
            "build",
            "--quiet",
            "--bins",
            "--workspace",
            "--manifest-path",
        ])
        .arg(root.join("Cargo.toml"));
    if release {
        build.arg("--release");
    }
    // Cargo's variables about the package under test would make build scripts (ring's) run again,
    // and everything after them.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_CRATE_",
            "CARGO_BIN_",
            "CARGO_PRIMARY_",
        ]
        .iter()
        .any(|p| name.starts_with(p))
        {
            build.env_remove(name);
        }
    }
    assert!(
        build.status().expect("cargo runs").success(),
        "the programs build"
    );
}
