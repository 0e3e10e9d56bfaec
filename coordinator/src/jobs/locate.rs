//! Where the inputs of jobs are: a command of the user answers, and its answers become preferred
//! hosts.
//!
//! The command (`locate` of the profile, run by `sh -c`) reads paths on standard input, one a line,
//! and writes lines of a path and the hosts that have it, `path host…`, best first or with weights
//! as `host=BYTES`. Each path is asked for once. A path without an answer, or without one in time,
//! just has no place.

use mezcal_common::model::limits;
use mezcal_common::model::octets;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Time for all answers: a run should not wait longer to find its data than a few jobs take to
/// fetch it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most paths for one process.
const AT_A_TIME: usize = 10_000;
/// The most hosts that one job prefers.
const MAX_HOSTS: usize = 16;

/// The hosts of each path, with weights.
pub type Places = HashMap<String, Vec<(String, f64)>>;

/// Asks for the hosts of these paths.
///
/// # Errors
/// For the user: the command cannot be run, fails, or takes too long. Its answers until then are
/// lost.
pub fn ask(command: &str, paths: &HashSet<String>) -> Result<Places, String> {
    let deadline = Instant::now() + PATIENCE;
    let mut sorted: Vec<&String> = paths.iter().filter(|path| !path.contains('\n')).collect();
    sorted.sort();
    let mut places = Places::new();
    for some in sorted.chunks(AT_A_TIME) {
        let answer = ask_some(command, some, deadline)?;
        for line in answer.lines() {
            if let Some((path, hosts)) = split(line, paths) {
                places.insert(path, hosts);
            }
        }
    }
    Ok(places)
}

fn ask_some(command: &str, paths: &[&String], deadline: Instant) -> Result<String, String> {
    let cannot = |e: std::io::Error| format!("cannot run {command:?}: {}", limits::named(e));
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(cannot)?;
    let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let text: Vec<u8> = paths
        .iter()
        .flat_map(|path| [&octets::of(path)[..], b"\n"].concat())
        .collect();
    // Writes and reads at once: the command may answer before it has read everything. Paths that it
    // does not read get no answer.
    let thread = || std::thread::Builder::new();
    thread()
        .spawn(move || stdin.take().map(|mut stdin| stdin.write_all(&text)))
        .map_err(cannot)?;
    let (sender, answer) = mpsc::channel();
    let read = move || {
        let mut text = Vec::new();
        let read = stdout.map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut text));
        // The receiver is gone after the deadline.
        let _ = sender.send(read.map(|_| octets::text(text)));
    };
    thread().spawn(read).map_err(cannot)?;
    let text = match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Ok(text)) => text,
        Ok(Err(e)) => return Err(format!("{command:?} cannot be heard: {e}")),
        Err(_) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("{command:?} has not answered within {PATIENCE:?}"));
        }
    };
    match child.wait().map_err(cannot)? {
        status if status.success() => Ok(text),
        status => Err(format!("{command:?} failed: {status}")),
    }
}

/// Splits an answer: paths may have spaces, so the longest beginning that was asked for counts.
fn split(line: &str, asked: &HashSet<String>) -> Option<(String, Vec<(String, f64)>)> {
    let ends = line
        .char_indices()
        .rev()
        .filter(|(_, c)| *c == ' ' || *c == '\t')
        .map(|(at, _)| at);
    let end = std::iter::once(line.len())
        .chain(ends)
        .find(|at| asked.contains(&line[..*at]))?;
    let hosts = line[end..]
        .split_ascii_whitespace()
        .enumerate()
        .map(|(i, word)| match word.split_once('=') {
            Some((host, weight)) => (host.to_owned(), weight.parse().unwrap_or(1.0)),
            // Best first: each host is worth a little less than the one before.
            None => (word.to_owned(), 1.0 - i as f64 * 1e-3),
        });
    Some((line[..end].to_owned(), hosts.collect()))
}

/// The hosts that have most of these inputs, best first.
pub fn best_hosts(inputs: &[String], places: &Places) -> Vec<String> {
    let mut weights: BTreeMap<String, f64> = BTreeMap::new();
    for (host, weight) in inputs.iter().filter_map(|path| places.get(path)).flatten() {
        if let Ok(name) = mezcal_common::model::hosts::normalise(host) {
            *weights.entry(name).or_default() += weight;
        }
    }
    let mut hosts: Vec<(String, f64)> = weights.into_iter().collect();
    hosts.sort_by(|a, b| b.1.total_cmp(&a.1));
    hosts
        .into_iter()
        .take(MAX_HOSTS)
        .map(|(name, _)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(paths: &[&str]) -> HashSet<String> {
        paths.iter().map(|p| (*p).to_owned()).collect()
    }

    #[test]
    fn answers_are_matched_with_what_was_asked() {
        let asked = set(&["/a", "/a b", "/c"]);
        assert_eq!(
            split("/a b h1 h2=500", &asked),
            Some((
                "/a b".into(),
                vec![("h1".into(), 1.0), ("h2".into(), 500.0)]
            ))
        );
        assert_eq!(split("/a", &asked), Some(("/a".into(), vec![])));
        assert_eq!(split("/d h1", &asked), None);
        assert_eq!(split("", &asked), None);
    }

    #[test]
    fn the_host_with_most_of_the_data_is_best() {
        let places = Places::from([
            (
                "/a".to_owned(),
                vec![("h1".to_owned(), 100.0), ("h2".to_owned(), 10.0)],
            ),
            ("/b".to_owned(), vec![("H2.".to_owned(), 200.0)]),
        ]);
        assert_eq!(
            best_hosts(&["/a".into(), "/b".into(), "/c".into()], &places),
            ["h2", "h1"]
        );
    }

    #[test]
    fn a_command_is_asked_and_its_failures_are_said() {
        let places =
            ask("while read -r p; do echo \"$p h1\"; done", &set(&["/x y"])).expect("answered");
        assert_eq!(places["/x y"][0].0, "h1");
        assert!(
            ask("exit 3", &set(&["/x"]))
                .expect_err("it fails")
                .contains("exit status: 3")
        );
    }
}
