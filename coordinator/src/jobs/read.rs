//! From the text of a list to jobs: the keys of every job, and all mistakes in the list.

use super::fault::Fault;
use super::job::{Job, Unread};
use super::keys::Strangers;
use super::object::members;
use super::order::Dependant;
use super::shared::SharedOutputs;
use super::spans::{elements, lines, offset_in, pieces, position};
use super::{Format, Jobs, MAX_SHOWN};
use mezcal_common::model::job::{Command, MAX_ARG_STRLEN, MAX_SPEC, SHELL_PREFIX};
use mezcal_common::model::octets;
use mezcal_common::wire::codec;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

impl Jobs {
    /// `earlier`: the number of earlier jobs of a stream; `None`: this is a list.
    pub(super) fn read_behind(
        earlier: Option<u32>,
        name: &str,
        bytes: Vec<u8>,
        format: Format,
        retries: u32,
    ) -> Result<Self, String> {
        let text = match format {
            // Commands may contain names of files, which are bytes.
            Format::Lines | Format::NulLines => octets::text(bytes),
            Format::Json | Format::Bakapara => String::from_utf8(bytes).map_err(|e| {
                let at = e.utf8_error().valid_up_to();
                let (line, column) = position(&e.as_bytes()[..at]);
                format!("{name}:{line}:{column}: not UTF-8 text")
            })?,
        };
        let spans = match format {
            Format::Lines => lines(&text),
            // `octets` writes a NUL as two.
            Format::NulLines => pieces(&text, "\0\0"),
            Format::Json | Format::Bakapara => {
                match text
                    .trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n'])
                    .starts_with('[')
                {
                    true => elements(name, &text)?,
                    false => lines(&text),
                }
            }
        };
        if spans.is_empty() {
            return Err(format!("{name}: no jobs in it"));
        }
        if spans.len() > u32::MAX as usize {
            return Err(format!("{name}: more than {} jobs", u32::MAX));
        }
        let mut jobs = Self {
            text,
            spans,
            format,
            made: None,
            retries,
            places: None,
            output_dir: None,
            widest: (1, 1),
            stillborn: HashMap::new(),
            warnings: Vec::new(),
            host_sets: HashMap::new(),
            after: HashMap::new(),
            inputs: BTreeMap::new(),
        };
        let mut reading = Reading::default();
        for index in 0..jobs.spans.len() {
            let start = jobs.spans[index].0;
            reading.job(&mut jobs, index as u32 + 1, start);
        }
        let after = std::mem::take(&mut reading.comes_after);
        let wrong = jobs.put_in_order(earlier, &reading.labels, after, !reading.illegible);
        let wrong = wrong
            .into_iter()
            .map(|(at, why)| (at, format!("key \"after\": {why}")));
        reading.faults.extend(wrong);
        if !reading.faults.is_empty() {
            return Err(reading.errors(name, &jobs));
        }
        jobs.warnings.extend(reading.strangers.warnings());
        jobs.warnings.extend(reading.shared.warning(&jobs.after));
        Ok(jobs)
    }

    /// Place, in bytes of a job's text, of the first key that `why` names.
    fn place_of_stillborn(&self, number: u32, why: &str) -> usize {
        let text = self.text_of(number);
        if self.format.is_commands() {
            return text.find("\0\0").unwrap_or(0);
        }
        let key = why.split('`').nth(1).unwrap_or_default();
        let members = members(text).unwrap_or_default();
        members
            .iter()
            .find(|(name, _)| name == key)
            .map_or(0, |(_, raw)| offset_in(text, raw.get()))
    }
}

/// The state of reading a list after some of its jobs.
#[derive(Default)]
struct Reading {
    /// Jobs by their `id`.
    labels: HashMap<String, u32>,
    comes_after: Vec<Dependant>,
    /// Mistakes by their place in the text.
    faults: Vec<(usize, String)>,
    /// Some job could be read.
    json_seen: bool,
    /// Some job may have an `id` that cannot be read.
    illegible: bool,
    strangers: Strangers,
    shared: SharedOutputs,
}

impl Reading {
    /// Reads one job, whose text begins at `start`.
    fn job(&mut self, jobs: &mut Jobs, number: u32, start: usize) {
        let mut has_run = false;
        let mut stranger = |key: &str| {
            has_run |= key == "result";
            self.strangers.count(key);
        };
        let job = match jobs.parse_with(number, &mut stranger) {
            Ok(job) => job,
            Err(unread) => return self.unread(unread, number, start),
        };
        self.json_seen = true;
        for set in [&job.hosts, &job.prefer].into_iter().flatten() {
            let next = jobs.host_sets.len() as u32;
            jobs.host_sets.entry(set.clone()).or_insert(next);
        }
        if let Some(why) = stillborn(&job, jobs.text_of(number).len()) {
            match jobs.format {
                Format::Bakapara => drop(jobs.stillborn.insert(number, why)),
                Format::Json | Format::Lines | Format::NulLines => {
                    let at = start + jobs.place_of_stillborn(number, &why);
                    self.faults.push((at, why));
                }
            }
        }
        if jobs.format == Format::Json {
            self.shared.add(number, &job);
        }
        if job.slots > jobs.widest.0 {
            jobs.widest = (job.slots, number);
        }
        if !job.inputs.is_empty() {
            jobs.inputs.insert(number, Vec::new());
        }
        if !job.after.is_empty() {
            self.comes_after.push(Dependant {
                number,
                names: job.after,
                at: start + job.after_at,
                has_run,
            });
        }
        if let Some(label) = job.spec.label {
            match self.labels.entry(label) {
                Entry::Occupied(known) => {
                    let why = format!("id {:?} is used twice", known.key());
                    self.faults.push((start, why));
                }
                Entry::Vacant(free) => drop(free.insert(number)),
            }
        }
    }

    fn unread(&mut self, unread: Unread, number: u32, start: usize) {
        let faults = unread.faults.into_iter();
        self.faults
            .extend(faults.map(|Fault { at, text }| (start + at, text)));
        if let Some(label) = unread.label {
            self.labels.entry(label).or_insert(number);
        }
        self.illegible |= unread.illegible;
    }

    /// All mistakes, in lines for the user.
    fn errors(mut self, name: &str, jobs: &Jobs) -> String {
        self.faults.sort_by_key(|(at, _)| *at);
        let shown = self.faults.iter().take(MAX_SHOWN).map(|(at, text)| {
            let (line, column) = position(&jobs.text.as_bytes()[..*at]);
            format!("{name}:{line}:{column}: {text}")
        });
        let mut errors: Vec<String> = shown.collect();
        if self.faults.len() > errors.len() {
            errors.push(format!(
                "{name}: and {} more errors",
                self.faults.len() - errors.len()
            ));
        }
        if !self.json_seen && !jobs.text_of(1).starts_with(['{', '[']) {
            errors.push(format!("{name} does not look like JSON; if it holds one shell command per line, add --lines"));
        }
        errors.join("\n")
    }
}

/// Why no host could start this job: it gets a result without a run.
pub(super) fn stillborn(job: &Job, text_length: usize) -> Option<String> {
    let limit = |what: &str, length: usize| {
        format!(
            "{what} is {length} bytes long; the kernel takes {} at most for one argument (MAX_ARG_STRLEN, execve(2))",
            MAX_ARG_STRLEN - 1
        )
    };
    let length = |text: &str| octets::of(text).len();
    let has_nul = |text: &str| text.contains('\0') && octets::of(text).contains(&0);
    match &job.spec.command {
        Command::Shell(cmd) if length(cmd) + SHELL_PREFIX.len() >= MAX_ARG_STRLEN => {
            return Some(limit("`cmd`", length(cmd)));
        }
        Command::Shell(cmd) if has_nul(cmd) => {
            return Some("`cmd` contains a NUL byte, which no command can".into());
        }
        Command::Argv(words) => {
            if let Some(long) = words
                .iter()
                .map(|w| length(w))
                .find(|length| *length >= MAX_ARG_STRLEN)
            {
                return Some(limit("a word of `argv`", long));
            }
            if words.iter().any(|w| has_nul(w)) {
                return Some("`argv` contains a NUL byte, which no command can".into());
            }
        }
        Command::Shell(_) => {}
    }
    let paths = [
        ("cd", &job.spec.cd),
        ("out", &job.spec.out),
        ("err", &job.spec.err),
        ("stdin", &job.spec.stdin),
    ];
    if let Some((key, _)) = paths
        .iter()
        .find(|(_, path)| path.as_deref().is_some_and(has_nul))
    {
        return Some(format!("`{key}` contains a NUL byte, which no path can"));
    }
    if job
        .spec
        .env
        .iter()
        .any(|(name, value)| has_nul(name) || has_nul(value))
    {
        return Some("`env` contains a NUL byte".into());
    }
    // A word takes at least three bytes of the text, and counts for eight more: only long texts
    // have to be measured.
    if text_length < MAX_SPEC / 2 {
        return None;
    }
    (!codec::spec_fits(&job.spec)).then(|| {
        format!("the job is larger than {MAX_SPEC} bytes with its environment, or has too many words; put data into files")
    })
}
