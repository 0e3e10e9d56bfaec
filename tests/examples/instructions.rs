//! Instructions per thing, counted by callgrind (valgrind): the same on a noisy machine.
//!
//! `instructions` counts, and shows how far that is from the table that is checked in; the exit
//! status is 1 if anything costs more than a tenth more. `instructions --write` writes the table.
//! Counts belong to one compiler: they change a little with the next.

use mezcal_tests::micro::{CASES, COUNT, Case, measured};
use std::path::Path;
use std::process::{Command, ExitCode};

/// What may be more without being called a regression.
const TOLERANCE: f64 = 1.1;
const HEAD: &str = "# Instructions per thing\n\nWritten by `cargo run --release -p mezcal-tests --example instructions -- --write` (callgrind).\n\n| | instructions |\n|---|---:|\n";

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    if let Some(unknown) = argument
        .as_deref()
        .filter(|word| *word != "--write" && CASES.iter().all(|case| case.name != *word))
    {
        eprintln!("instructions: what is {unknown:?}? Nothing, or --write");
        return ExitCode::from(2);
    }
    if let Some(case) = CASES
        .iter()
        .find(|case| Some(case.name) == argument.as_deref())
    {
        let mut work = (case.prepare)();
        measured(&mut work);
        return ExitCode::SUCCESS;
    }
    if let Err(e) = Command::new("valgrind").arg("--version").output() {
        eprintln!("instructions: valgrind cannot be started: {e} (Debian: apt install valgrind)");
        return ExitCode::from(2);
    }
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks/instructions.md");
    let counts: Vec<(&str, u64)> = CASES.iter().map(|case| (case.name, count(case))).collect();
    if argument.as_deref() == Some("--write") {
        let rows: String = counts
            .iter()
            .map(|(name, count)| format!("| {name} | {count} |\n"))
            .collect();
        std::fs::write(&table, format!("{HEAD}{rows}")).expect("the table can be written");
    }
    let before = std::fs::read_to_string(&table).unwrap_or_default();
    let known = |name: &str| {
        let cells = before.lines().filter_map(|line| {
            line.strip_prefix("| ")?
                .strip_suffix(" |")?
                .split_once(" | ")
        });
        cells
            .filter(|(cell, _)| *cell == name)
            .find_map(|(_, count)| count.parse::<u64>().ok())
    };
    let mut worse = false;
    for (name, count) in counts {
        let ratio = known(name).map(|before| count as f64 / before.max(1) as f64);
        worse |= ratio.is_some_and(|ratio| ratio > TOLERANCE);
        println!(
            "{name:<44} {count:>7}  {}",
            ratio.map_or("new".into(), |ratio| format!("{ratio:.3}"))
        );
    }
    ExitCode::from(u8::from(worse))
}

/// Instructions per thing, by this program itself under valgrind.
fn count(case: &Case) -> u64 {
    let own = std::env::current_exe().expect("the path of this program");
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--toggle-collect=*micro*measured*",
        ])
        .arg(own)
        .arg(case.name);
    let output = valgrind.output().expect("it could be started before");
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| {
        line.split_once("Collected : ")?
            .1
            .trim()
            .parse::<u64>()
            .ok()
    });
    collected.unwrap_or_else(|| panic!("callgrind counted nothing for {:?}:\n{said}", case.name))
        / COUNT as u64
}
