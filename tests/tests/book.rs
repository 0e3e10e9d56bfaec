//! The pages for readers: links lead somewhere, and reference pages agree with the programs.
//!
//! `MEZCAL_WRITE_BOOK=1 cargo test -p mezcal-tests --test book` rewrites the reference pages.

use mezcal_tests::programs::program;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Columns of the help texts in the pages.
const COLUMNS: &str = "100";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Compares a page with its generated text, or rewrites it.
fn page(path: &str, text: &str) {
    if std::env::var_os("MEZCAL_WRITE_BOOK").is_some() {
        std::fs::write(root().join(path), text).expect("written");
    }
    let stands = std::fs::read_to_string(root().join(path)).unwrap_or_default();
    let differs = stands.lines().zip(text.lines()).find(|(a, b)| a != b);
    assert!(
        stands == text,
        "{path} is stale, first here: {differs:?}; MEZCAL_WRITE_BOOK=1 with this test writes it anew"
    );
}

fn help(file: &Path, verbs: &[&str]) -> String {
    let mut command = Command::new(file);
    command
        .args(verbs)
        .arg("--help")
        .env_clear()
        .env("COLUMNS", COLUMNS);
    let out = command.output().expect("it runs");
    assert!(out.status.success(), "{verbs:?}");
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    text.lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// The subcommands that this help lists.
fn verbs_of(help: &str) -> Vec<String> {
    let commands = help
        .split("\nCommands:\n")
        .nth(1)
        .and_then(|rest| rest.split("\n\n").next())
        .unwrap_or_default();
    let names = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

fn describe(out: &mut String, file: &Path, name: &str, installed: &str, verbs: &[&str]) {
    let said = help(file, verbs).replace(&format!("Usage: {name}"), &format!("Usage: {installed}"));
    let title = std::iter::once(&installed)
        .chain(verbs)
        .copied()
        .collect::<Vec<_>>()
        .join(" ");
    let _ = write!(
        out,
        "{} {title}\n\n```text\n{said}```\n",
        "#".repeat(if verbs.is_empty() { 1 } else { 2 })
    );
    for verb in verbs_of(&said) {
        out.push('\n');
        describe(out, file, name, installed, &[verbs, &[&verb]].concat());
    }
}

#[test]
fn pages_of_options_say_what_the_programs_say() {
    for (name, installed) in [
        ("coordinator", "coordinator"),
        ("agent", "mezcal-agent"),
        ("certs", "mezcal-certs"),
    ] {
        let mut text = String::new();
        describe(&mut text, &program(name), name, installed, &[]);
        page(&format!("docs/reference/{installed}.md"), &text);
    }
}

/// The keys of a configuration file with their descriptions, from the type that it is read into.
fn keys_of(source: &str, name: &str) -> Vec<(String, String)> {
    let text = read(source);
    let start = text
        .find(&format!("struct {name} {{"))
        .unwrap_or_else(|| panic!("{source} has no {name}"));
    let (mut keys, mut said) = (Vec::new(), String::new());
    for line in text[start..]
        .lines()
        .skip(1)
        .map(str::trim)
        .take_while(|line| *line != "}")
    {
        if let Some(doc) = line.strip_prefix("/// ") {
            said.push_str(if said.is_empty() { "" } else { " " });
            said.push_str(doc);
        } else if let Some((key, _)) = line
            .trim_start_matches("pub ")
            .split_once(": ")
            .filter(|_| !line.starts_with('#'))
        {
            keys.push((key.to_owned(), std::mem::take(&mut said)));
        }
    }
    assert!(
        keys.len() > 2 && keys.iter().all(|(_, said)| said.ends_with('.')),
        "{source}: {keys:?}"
    );
    keys
}

#[test]
fn the_page_of_configuration_keys_says_what_their_types_say() {
    let mut text = "# Configuration files\n\nAll are TOML. A key that is not here is an error. Durations are texts like `\"90s\"`, `\"10m\"`, `\"30d\"`.\n\
                    `--config FILE` or `MEZCAL_CONFIG` names another file than the default. `systemd/samples` has the\n\
                    files of a host and of a coordinator with comments; packages install them.\n"
        .to_owned();
    for (title, source, name) in [
        (
            "`/etc/mezcal/coordinator.toml`",
            "coordinator/src/service/config.rs",
            "CoordinatorConfig",
        ),
        (
            "`/etc/mezcal/agent.toml`",
            "agent/src/config.rs",
            "AgentConfig",
        ),
        (
            "`/etc/mezcal/engines.toml`",
            "agent/src/verb/engines.rs",
            "EnginesConfig",
        ),
        (
            "`~/.config/mezcal/profiles/NAME.toml`",
            "coordinator/src/client/profile.rs",
            "ProfileFile",
        ),
    ] {
        let _ = write!(text, "\n## {title}\n\n| key | meaning |\n|---|---|\n");
        for (key, said) in keys_of(source, name) {
            let _ = writeln!(text, "| `{key}` | {} |", said.trim_end_matches('.'));
        }
    }
    page("docs/reference/configuration.md", &text);
}

#[test]
fn each_metric_is_on_its_page() {
    let (source, page) = (
        read("coordinator/src/service/counters.rs"),
        read("docs/reference/metrics.md"),
    );
    let names: Vec<&str> = source
        .split("register(")
        .skip(1)
        .filter_map(|rest| rest.split('"').nth(1))
        .collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(
            page.contains(&format!("{name}`")) || page.contains(&format!("{name}_total`")),
            "docs/reference/metrics.md lacks {name}"
        );
    }
}

#[test]
fn each_key_of_jobs_and_results_is_on_its_page() {
    let known = read("coordinator/src/jobs/keys.rs");
    let list = known
        .split("const KNOWN")
        .nth(1)
        .and_then(|rest| rest.split("];").next())
        .expect("a list");
    let keys: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    assert!(keys.len() > 15, "{keys:?}");
    let jobs = read("docs/jobs.md");
    for key in keys {
        assert!(
            jobs.contains(&format!("| `{key}`"))
                || jobs.contains(&format!("`{key}` |"))
                || jobs.contains(&format!(", `{key}`")),
            "docs/jobs.md lacks {key}"
        );
    }
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("jobs"), "true\n").expect("written");
    let mut command = Command::new(program("coordinator"));
    let out = command
        .args(["run", "--local", "-q", "--lines", "jobs"])
        .current_dir(dir.path())
        .output()
        .expect("it runs");
    let line: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let results = read("docs/results.md");
    for key in line["result"].as_object().expect("an object").keys() {
        assert!(
            results.contains(&format!("`{key}`")),
            "docs/results.md lacks {key}"
        );
    }
}

/// Markdown files of the repository, from its root.
fn markdown() -> Vec<PathBuf> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("readable").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() && !["target", ".git"].iter().any(|skipped| name == *skipped) {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "md") {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    walk(&root(), &mut out);
    out
}

/// Text without code.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let kept = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    });
    kept.map(|line| line.split('`').step_by(2).collect::<String>() + "\n")
        .collect()
}

/// The anchor of a heading, for links.
fn anchor(heading: &str) -> String {
    let kept = heading
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    for path in markdown() {
        let text = std::fs::read_to_string(&path).expect("readable");
        for link in prose(&text)
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if link.contains("://") {
                continue;
            }
            checked += 1;
            let (file, at) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                path.clone()
            } else {
                path.parent().expect("a folder").join(file)
            };
            assert!(target.exists(), "{}: {link} leads nowhere", path.display());
            if !at.is_empty() {
                let there = std::fs::read_to_string(&target).expect("readable");
                let headings: HashSet<String> = there
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .map(|line| anchor(line.trim_start_matches('#')))
                    .collect();
                assert!(
                    headings.contains(at),
                    "{}: {link} has no such heading: {headings:?}",
                    path.display()
                );
            }
        }
    }
    assert!(checked > 50, "{checked} links");
}

#[test]
fn the_book_lists_all_of_its_pages() {
    let summary = read("docs/SUMMARY.md");
    for path in markdown() {
        let Ok(name) = path.strip_prefix(root().join("docs")) else {
            continue;
        };
        let name = name.display().to_string();
        if name != "SUMMARY.md" && !name.starts_with("benchmarks/") {
            assert!(
                summary.contains(&format!("]({name})")),
                "docs/SUMMARY.md does not list {name}"
            );
        }
    }
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 120, "{lines} lines: the rest belongs into docs/");
}
