//! The programs under test.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Path of a program of this workspace, built in the profile of the running test.
pub fn program(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let exe = std::env::current_exe().expect("a test knows its own path");
        let dir = exe
            .ancestors()
            .find(|d| d.file_name().is_some_and(|n| n == "debug" || n == "release"))
            .expect("tests run from a target directory")
            .to_path_buf();
        // With `cargo test` they are built already; with `-p mezcal-tests` they may be old or missing.
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--bins", "--workspace", "--manifest-path"]);
        build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
        if dir.ends_with("release") {
            build.arg("--release");
        }
        // What cargo tells tests about their own package would make build scripts (ring's) run again, and everything after them.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"].iter().any(|p| name.starts_with(p))
            {
                build.env_remove(name);
            }
        }
        assert!(build.status().expect("cargo runs").success(), "the programs build");
        dir
    });
    dir.join(name)
}
