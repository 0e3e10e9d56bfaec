//! The Python package on a cluster. Its own tests (python/tests) run on one machine.

use mezcal_tests::cluster::Cluster;
use mezcal_tests::programs::program;
use std::path::Path;
use std::process::Command;

#[test]
fn the_articles_session_works_line_by_line() {
    let package = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../python"));
    if !Command::new("python3")
        .arg("--version")
        .output()
        .is_ok_and(|out| out.status.success())
    {
        return mezcal_tests::say_skipped("the Python package: there is no python3");
    }
    let cluster = Cluster::running(12, 4);
    let mut command = cluster.lab.command(0, Path::new("python3"));
    command
        .args([
            "-m",
            "doctest",
            "-o",
            "ELLIPSIS",
            "-o",
            "NORMALIZE_WHITESPACE",
        ])
        .arg(package.join("tests/article.txt"))
        .env("PYTHONPATH", package.join("src"))
        .env("MEZCAL_COORDINATOR", program("coordinator"))
        .env("XDG_CONFIG_HOME", cluster.path("config"))
        .current_dir(cluster.path(""));
    let out = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    cluster.finish();
}
