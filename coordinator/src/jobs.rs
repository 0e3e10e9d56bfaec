//! Reading job lists: JSON Lines, one JSON array, or plain shell lines.
//!
//! The whole text stays in memory and jobs are spans of it, so a million jobs cost their text and
//! twelve bytes each. Everything is checked before anything starts, and all that is wrong is
//! reported at once with file, line, column and key.

mod keys;
pub mod locate;
mod object;
mod shared;
pub(crate) mod surrogates;

use object::members_with;
pub use object::{members, write_json};
pub(crate) use object::{write_octets, write_string};

use crate::jobs::locate::{Places, best_hosts};
use bytes::Bytes;
use keys::Strangers;
use mezcal_common::message::client::{RetryOn, Submission};
use mezcal_common::model::duration::{from_seconds, parse_duration};
use mezcal_common::model::hosts;
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::job::{
    BatchContext, Command, JobSpec, Leftover, MAX_AFTER, MAX_ARG_STRLEN, MAX_CONTEXT, MAX_SPEC,
    RESERVED_ENV, SHELL_PREFIX,
};
use mezcal_common::model::octets;
use mezcal_common::model::outcome::Ended;
use mezcal_common::wire::codec;
use serde_json::value::RawValue;
use shared::SharedOutputs;
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

/// Bytes of the names in one job's `host`: the list has to fit a message.
const MAX_HOST_LIST: usize = 512 * 1024;

/// What can have bytes in it that are no text.
const OF_BYTES: [&str; 8] = ["cmd", "argv", "cd", "out", "err", "stdin", "env", "inputs"];

/// Errors of one input that are shown; the rest are counted.
const MAX_SHOWN: usize = 20;

/// How the input is written and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON Lines or one array, all keys.
    Json,
    /// The same, but only Bakapara's five keys mean something.
    Bakapara,
    /// One shell command per line.
    Lines,
    /// Shell commands that end with NUL bytes.
    NulLines,
}

impl Format {
    /// Whether a job is a command and no object.
    pub fn is_commands(self) -> bool {
        match self {
            Format::Lines | Format::NulLines => true,
            Format::Json | Format::Bakapara => false,
        }
    }
}

/// A checked job list.
#[derive(Debug)]
pub struct Jobs {
    text: String,
    spans: Vec<(usize, u32)>,
    format: Format,
    /// Places in the input, where some jobs of it have been taken out.
    places: Option<Vec<u32>>,
    /// Where output of jobs goes that name no files, as [`octets`] has it.
    output_dir: Option<String>,
    /// Retries of jobs that name none.
    retries: u32,
    /// The most slots that a job takes, and the first one that does.
    widest: (u16, u32),
    /// Jobs of Bakapara's that cannot run, and why: they get a result without being submitted.
    stillborn: HashMap<u32, String>,
    /// What is odd about the list, and no mistake.
    warnings: Vec<String>,
    host_sets: HashMap<Vec<String>, u32>,
    /// What jobs come after, by number.
    after: HashMap<u32, Vec<JobNumber>>,
    /// Which jobs have inputs, and the hosts that they prefer on account of them.
    inputs: BTreeMap<u32, Vec<String>>,
}

/// One job, read.
#[derive(Debug)]
pub struct Job {
    /// What an engine needs.
    pub spec: JobSpec,
    /// Hosts that may run it; none: any.
    pub hosts: Option<Vec<String>>,
    /// Hosts that it prefers, best first; none: it does not mind.
    pub prefer: Option<Vec<String>>,
    /// Files that it reads.
    pub inputs: Vec<String>,
    /// Higher goes first.
    pub priority: i32,
    /// Slots that it takes.
    pub slots: u16,
    /// Further attempts.
    pub retries: Option<u32>,
    /// Which failures are worth one; none: all.
    pub retry_on: Vec<RetryOn>,
    /// Before the first of them.
    pub retry_delay: Duration,
    /// Jobs that have to succeed first, as the user names them.
    pub after: Vec<String>,
    /// Where those stand in the job's text, in bytes.
    after_at: usize,
}

impl Job {
    fn new(command: Command) -> Self {
        Self {
            spec: JobSpec::new(command),
            hosts: None,
            prefer: None,
            inputs: Vec::new(),
            priority: 0,
            slots: 1,
            retries: None,
            retry_on: Vec::new(),
            retry_delay: Duration::ZERO,
            after: Vec::new(),
            after_at: 0,
        }
    }
}

/// One thing that is wrong with a job.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    /// Bytes from the start of the job's text.
    at: usize,
    text: String,
}

/// A job that has mistakes.
#[derive(Debug)]
struct Unread {
    faults: Vec<Fault>,
    /// Its `id`: others may come after it.
    label: Option<String>,
    /// Whether it may have an `id` that cannot be read.
    illegible: bool,
}

impl From<Fault> for Unread {
    fn from(fault: Fault) -> Self {
        Self {
            faults: vec![fault],
            label: None,
            illegible: true,
        }
    }
}

impl Jobs {
    /// Checks `bytes`, which come from `name`.
    ///
    /// # Errors
    /// Lines for the reader, each with its place.
    pub fn read(name: &str, bytes: Vec<u8>, format: Format, retries: u32) -> Result<Self, String> {
        Self::read_behind(None, name, bytes, format, retries)
    }

    /// Checks one job of a stream, the `number`th. It may come after those that have come before
    /// it, by their numbers.
    ///
    /// # Errors
    /// As above.
    pub fn read_next(
        number: u32,
        bytes: Vec<u8>,
        format: Format,
        retries: u32,
    ) -> Result<Self, String> {
        Self::read_behind(
            Some(number.saturating_sub(1)),
            &format!("job {number}"),
            bytes,
            format,
            retries,
        )
    }

    /// `earlier`: how many jobs of a stream have come before; none: this is a list.
    fn read_behind(
        earlier: Option<u32>,
        name: &str,
        bytes: Vec<u8>,
        format: Format,
        retries: u32,
    ) -> Result<Self, String> {
        let text = match format {
            // Commands may have names of files in them, which are bytes.
            Format::Lines | Format::NulLines => octets::text(bytes),
            Format::Json | Format::Bakapara => String::from_utf8(bytes).map_err(|e| {
                let at = e.utf8_error().valid_up_to();
                let (line, column) = place(&e.as_bytes()[..at]);
                format!("{name}:{line}:{column}: not UTF-8 text")
            })?,
        };
        let spans = match format {
            Format::Lines => lines(&text),
            // As `octets` has a NUL.
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
        let mut labels: HashMap<String, u32> = HashMap::new();
        let mut comes_after: Vec<Follower> = Vec::new();
        // By their place in the text.
        let mut faults: Vec<(usize, String)> = Vec::new();
        let (mut json_seen, mut ids_are_known) = (false, true);
        let (mut strangers, mut shared) = (Strangers::default(), SharedOutputs::default());
        for index in 0..jobs.spans.len() {
            let (number, start) = (index as u32 + 1, jobs.spans[index].0);
            let mut has_run = false;
            let mut stranger = |key: &str| {
                has_run |= key == "result";
                strangers.count(key);
            };
            let job = match jobs.parse_with(number, &mut stranger) {
                Ok(job) => job,
                Err(Unread {
                    faults: found,
                    label,
                    illegible,
                }) => {
                    faults.extend(
                        found
                            .into_iter()
                            .map(|Fault { at, text }| (start + at, text)),
                    );
                    label.map(|label| labels.entry(label).or_insert(number));
                    ids_are_known &= !illegible;
                    continue;
                }
            };
            json_seen = true;
            for set in [&job.hosts, &job.prefer].into_iter().flatten() {
                let next = jobs.host_sets.len() as u32;
                jobs.host_sets.entry(set.clone()).or_insert(next);
            }
            if let Some(why) = stillborn(&job, jobs.object(number).len()) {
                match format {
                    Format::Bakapara => drop(jobs.stillborn.insert(number, why)),
                    Format::Json | Format::Lines | Format::NulLines => {
                        faults.push((start + jobs.place_of_stillborn(number, &why), why))
                    }
                }
            }
            if format == Format::Json {
                shared.add(number, &job);
            }
            if job.slots > jobs.widest.0 {
                jobs.widest = (job.slots, number);
            }
            if !job.inputs.is_empty() {
                jobs.inputs.insert(number, Vec::new());
            }
            if !job.after.is_empty() {
                let (names, at) = (job.after, start + job.after_at);
                comes_after.push(Follower {
                    number,
                    names,
                    at,
                    has_run,
                });
            }
            if let Some(label) = job.spec.label {
                match labels.entry(label) {
                    Entry::Occupied(known) => {
                        faults.push((start, format!("id {:?} is used twice", known.key())))
                    }
                    Entry::Vacant(free) => drop(free.insert(number)),
                }
            }
        }
        let wrong = jobs.put_in_order(earlier, &labels, comes_after, ids_are_known);
        faults.extend(
            wrong
                .into_iter()
                .map(|(at, why)| (at, format!("key \"after\": {why}"))),
        );
        if faults.is_empty() {
            jobs.warnings.extend(strangers.warnings());
            jobs.warnings.extend(shared.warning(&jobs.after));
            return Ok(jobs);
        }
        faults.sort_by_key(|(at, _)| *at);
        let shown = faults.iter().take(MAX_SHOWN).map(|(at, text)| {
            let (line, column) = place(&jobs.text.as_bytes()[..*at]);
            format!("{name}:{line}:{column}: {text}")
        });
        let mut errors: Vec<String> = shown.collect();
        if faults.len() > errors.len() {
            errors.push(format!(
                "{name}: and {} more errors",
                faults.len() - errors.len()
            ));
        }
        if !json_seen && !jobs.object(1).starts_with(['{', '[']) {
            errors.push(format!("{name} does not look like JSON; if it holds one shell command per line, add --lines"));
        }
        Err(errors.join("\n"))
    }

    /// Where in a job's text the key stands that `why` names first, in bytes.
    fn place_of_stillborn(&self, number: u32, why: &str) -> usize {
        let text = self.object(number);
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

    /// What is odd about the list, and no mistake, in lines for the reader.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Finds the jobs that others come after, and makes sure that none comes after itself. What is
    /// wrong, each with its place in the text. Unless all `ids_are_known`, a name that is not found
    /// may be that of a job that cannot be read.
    fn put_in_order(
        &mut self,
        earlier: Option<u32>,
        labels: &HashMap<String, u32>,
        wanted: Vec<Follower>,
        ids_are_known: bool,
    ) -> Vec<(usize, String)> {
        let count = self.spans.len() as u32;
        let (mut wrong, mut places) = (Vec::new(), HashMap::new());
        let mut elsewhere = 0u64;
        for Follower {
            number,
            names,
            at,
            has_run,
        } in wanted
        {
            places.insert(number, at);
            let (mut before, mut seen) = (Vec::new(), HashSet::new());
            for name in names {
                // As everywhere: an `id` goes before a number. A stream, which has no end, does not
                // keep those.
                let label = if earlier.is_none() {
                    labels.get(&name).copied()
                } else {
                    None
                };
                if label.is_none() && has_run && earlier.is_none() {
                    // What it came after is in the list that it ran in.
                    match name.parse::<u32>() {
                        Ok(_) => wrong.push((at, NUMBER_OF_ANOTHER_LIST.to_owned())),
                        Err(_) => elsewhere += 1,
                    }
                    continue;
                }
                let found = label.or_else(|| {
                    name.parse()
                        .ok()
                        .filter(|n| (1..=earlier.unwrap_or(count)).contains(n))
                });
                match found {
                    Some(found) if !seen.insert(found) => {}
                    Some(found) => before.push(JobNumber(found)),
                    None if earlier.is_some() => {
                        wrong.push((
                            at,
                            format!("no job with the number {name:?} came before it in this stream, which knows no ids"),
                        ));
                    }
                    None if ids_are_known => {
                        wrong.push((at, format!("there is no job {name:?} in this list")))
                    }
                    None => {}
                }
            }
            if before.len() > MAX_AFTER {
                let count = before.len();
                wrong.push((at, format!("{count} jobs are too many to come after: at most {MAX_AFTER}; let some gather others")));
            }
            self.after.insert(number, before);
        }
        if earlier.is_some() {
            return wrong;
        }
        if elsewhere > 0 {
            let names = if elsewhere == 1 { "name" } else { "names" };
            self.warnings.push(format!("{elsewhere} {names} in `after` of jobs with results: no such job is in this list, so they are taken to have succeeded"));
        }
        // Kahn's algorithm (CACM 1962) over the jobs that come after others.
        let mut open: HashMap<u32, usize> = HashMap::new();
        let mut followers: HashMap<u32, Vec<u32>> = HashMap::new();
        for (number, before) in &self.after {
            let waits = before.iter().filter(|b| self.after.contains_key(&b.0));
            open.insert(*number, waits.clone().count());
            waits.for_each(|b| followers.entry(b.0).or_default().push(*number));
        }
        let mut free: Vec<u32> = open
            .iter()
            .filter(|(_, n)| **n == 0)
            .map(|(number, _)| *number)
            .collect();
        while let Some(number) = free.pop() {
            open.remove(&number);
            for follower in followers.remove(&number).unwrap_or_default() {
                if let Some(left) = open.get_mut(&follower) {
                    *left -= 1;
                    if *left == 0 {
                        free.push(follower);
                    }
                }
            }
        }
        let mut circle: Vec<u32> = open.into_keys().collect();
        circle.sort();
        if let Some(first) = circle.first() {
            let members: Vec<String> = circle
                .iter()
                .take(MAX_SHOWN)
                .map(ToString::to_string)
                .collect();
            let at = places.get(first).copied().unwrap_or(0);
            wrong.push((
                at,
                format!(
                    "this job comes after itself, in a circle among jobs {}",
                    members.join(", ")
                ),
            ));
        }
        wrong
    }

    /// The files that jobs read, as they see them when those without a directory start in `cd`.
    pub fn inputs(&self, cd: &str) -> HashSet<String> {
        self.inputs
            .keys()
            .filter_map(|number| self.parse(*number).ok())
            .flat_map(|job| absolute_inputs(&job, cd))
            .collect()
    }

    /// Jobs prefer the hosts that have their inputs, after those that they name themselves.
    pub fn locate(&mut self, cd: &str, places: &Places) {
        for number in self.inputs.keys().copied().collect::<Vec<_>>() {
            let Ok(job) = self.parse(number) else {
                continue;
            };
            let mut prefer = job.prefer.clone().unwrap_or_default();
            for host in best_hosts(&absolute_inputs(&job, cd), places) {
                if !prefer.contains(&host) {
                    prefer.push(host);
                }
            }
            if !prefer.is_empty() {
                let next = self.host_sets.len() as u32;
                self.host_sets.entry(prefer.clone()).or_insert(next);
            }
            self.inputs.insert(number, prefer);
        }
    }

    /// The most slots that a job takes, and the number of the first one that does.
    pub fn widest(&self) -> (u16, u32) {
        self.widest
    }

    /// The number of the first job that says in part or not at all where it starts.
    pub fn first_without_directory(&self) -> Option<u32> {
        let has_one = |job: &Job| {
            job.spec
                .cd
                .as_deref()
                .is_some_and(|cd| Path::new(cd).is_absolute())
        };
        (1..=self.len() as u32).find(|number| !self.parse(*number).is_ok_and(|job| has_one(&job)))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// True if there are none, which [`Jobs::read`] refuses.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The text of a job as it was in the input.
    pub fn object(&self, number: u32) -> &str {
        let (start, length) = self.spans[number as usize - 1];
        &self.text[start..start + length as usize]
    }

    /// The same as a JSON object, however the input was written.
    pub fn as_object(&self, number: u32) -> String {
        match self.format.is_commands() {
            true => {
                let mut object = b"{\"cmd\": ".to_vec();
                write_octets(&mut object, self.object(number));
                object.push(b'}');
                String::from_utf8(object).unwrap_or_default()
            }
            false => self.object(number).to_owned(),
        }
    }

    /// Takes out jobs that need not run, of which others may come after. What is left keeps its
    /// name: the number that it had.
    pub fn retain(&mut self, keep: &[bool]) {
        let kept: Vec<u32> = (1..)
            .zip(keep)
            .filter(|(_, keep)| **keep)
            .map(|(number, _)| number)
            .collect();
        let new: HashMap<u32, u32> = kept.iter().copied().zip(1..).collect();
        self.spans = kept
            .iter()
            .map(|number| self.spans[*number as usize - 1])
            .collect();
        let moved = |number: &u32| new.get(number).copied();
        self.stillborn = self
            .stillborn
            .drain()
            .filter_map(|(number, why)| Some((moved(&number)?, why)))
            .collect();
        self.inputs = std::mem::take(&mut self.inputs)
            .into_iter()
            .filter_map(|(n, hosts)| Some((moved(&n)?, hosts)))
            .collect();
        let still = |before: Vec<JobNumber>| {
            before
                .iter()
                .filter_map(|b| moved(&b.0).map(JobNumber))
                .collect()
        };
        self.after = self
            .after
            .drain()
            .filter_map(|(number, before)| Some((moved(&number)?, still(before))))
            .collect();
        let places = self.places.take();
        let place = |number: u32| {
            places
                .as_ref()
                .map_or(number, |places| places[number as usize - 1])
        };
        self.places = Some(kept.into_iter().map(place).collect());
    }

    /// Has jobs that have lost their places keep the names of their files in this directory.
    pub fn keep_names_in(&mut self, output_dir: Option<String>) {
        self.output_dir = output_dir;
    }

    /// The jobs that one comes after.
    pub fn comes_after(&self, number: u32) -> &[JobNumber] {
        self.after.get(&number).map_or(&[], Vec::as_slice)
    }

    /// How the input was written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The command of a job, for people.
    pub fn title(&self, number: u32) -> String {
        let title = match self.parse(number).map(|job| job.spec.command) {
            Ok(Command::Shell(cmd)) => cmd,
            Ok(Command::Argv(words)) => words.join(" "),
            Err(_) => String::new(),
        };
        octets::shown(&title).into_owned()
    }

    /// All sets of hosts that jobs name, in the order of their indices.
    pub fn host_sets(&self) -> Vec<Vec<String>> {
        let mut sets: Vec<(&Vec<String>, u32)> = self
            .host_sets
            .iter()
            .map(|(set, index)| (set, *index))
            .collect();
        sets.sort_by_key(|(_, index)| *index);
        sets.into_iter().map(|(set, _)| set.clone()).collect()
    }

    /// A job as it is submitted.
    pub fn submission(&self, number: u32) -> Option<Submission> {
        let mut parsed = self.parse(number).ok()?;
        let place = self
            .places
            .as_ref()
            .and_then(|places| places.get(number as usize - 1));
        if let (None, Some(place)) = (&parsed.spec.label, place) {
            // Its output goes where that of the list as it was has gone.
            for (file, extension) in [(&mut parsed.spec.out, "out"), (&mut parsed.spec.err, "err")]
            {
                if file.is_none() {
                    let dir = self.output_dir.as_ref();
                    *file = dir.map(|dir| format!("{dir}/{place}.{extension}"));
                }
            }
            parsed.spec.label = Some(place.to_string());
        }
        let stillborn = self.stillborn.get(&number).cloned();
        let spec = if stillborn.is_some() {
            Bytes::new()
        } else {
            codec::encode_body(&parsed.spec).ok()?
        };
        let index =
            |set: Option<Vec<String>>| set.and_then(|set| self.host_sets.get(&set).copied());
        let located = self
            .inputs
            .get(&number)
            .filter(|hosts| !hosts.is_empty())
            .cloned();
        let (hosts, prefer) = (index(parsed.hosts), index(located.or(parsed.prefer)));
        let retries = parsed.retries.unwrap_or(self.retries);
        let label = parsed.spec.label;
        let (retry_on, retry_delay, priority, slots) = (
            parsed.retry_on,
            parsed.retry_delay,
            parsed.priority,
            parsed.slots,
        );
        let after = self.after.get(&number).cloned().unwrap_or_default();
        let submission = Submission::new(JobNumber(number), spec);
        Some(Submission {
            label,
            hosts,
            prefer,
            priority,
            slots,
            retries,
            retry_on,
            retry_delay,
            after,
            stillborn,
            ..submission
        })
    }

    fn parse(&self, number: u32) -> Result<Job, Unread> {
        self.parse_with(number, &mut |_| {})
    }

    /// Tells `stranger` each key that means nothing.
    fn parse_with(&self, number: u32, stranger: &mut dyn FnMut(&str)) -> Result<Job, Unread> {
        let text = self.object(number);
        match self.format {
            Format::Lines | Format::NulLines => Ok(Job::new(Command::Shell(text.to_owned()))),
            Format::Json => parse_object(text, true, stranger),
            Format::Bakapara => parse_object(text, false, stranger),
        }
    }
}

/// Line and column, both from 1, of the end of `before`; columns count characters.
fn place(before: &[u8]) -> (usize, usize) {
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let start = before
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |i| i + 1);
    (
        line,
        String::from_utf8_lossy(&before[start..]).chars().count() + 1,
    )
}

/// Spans of lines that are not blank, without surrounding white space.
fn lines(text: &str) -> Vec<(usize, u32)> {
    pieces(text, "\n")
}

fn pieces(text: &str, end: &str) -> Vec<(usize, u32)> {
    let mut spans = Vec::new();
    for line in text.split(end) {
        let body = line.trim_start_matches('\u{feff}').trim_ascii();
        if !body.is_empty() {
            let at = offset_in(text, body);
            spans.push((at, body.len() as u32));
        }
    }
    spans
}

/// Spans of the elements of one array.
fn elements(name: &str, text: &str) -> Result<Vec<(usize, u32)>, String> {
    let body = text.trim_start_matches('\u{feff}');
    let all: Vec<&RawValue> = serde_json::from_str(body).map_err(|e| {
        let reason = without_place(&e);
        format!(
            "{name}:{}:{}: {reason}, in a JSON array of jobs",
            e.line(),
            e.column()
        )
    })?;
    Ok(all
        .iter()
        .map(|raw| (offset_in(text, raw.get()), raw.get().len() as u32))
        .collect())
}

fn offset_in(text: &str, part: &str) -> usize {
    part.as_ptr() as usize - text.as_ptr() as usize
}

fn without_place(e: &serde_json::Error) -> String {
    let text = e.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// A job that comes after others, as it was read.
struct Follower {
    number: u32,
    names: Vec<String>,
    /// Where they stand in the text, in bytes.
    at: usize,
    /// It has a result, of another list.
    has_run: bool,
}

/// Results come in the order in which jobs end.
const NUMBER_OF_ANOTHER_LIST: &str = "the number means a place in the list that this result is of; \
    give the jobs of that list an `id`, or run that list again with --resume or --resume-failed";

/// Why what the jobs of a batch have in common cannot be handed to an engine.
pub fn too_large(context: &BatchContext) -> Option<String> {
    (!codec::context_fits(context)).then(|| {
        format!(
            "what the jobs have in common is larger than {MAX_CONTEXT} bytes with its environment, or has too many entries; put data into files"
        )
    })
}

/// Why this job can only be answered, not run: nobody could start it.
fn stillborn(job: &Job, text_length: usize) -> Option<String> {
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
    // A word takes three bytes of the text at least, and counts for eight more: only long texts
    // have to be measured.
    if text_length < MAX_SPEC / 2 {
        return None;
    }
    (!codec::spec_fits(&job.spec)).then(|| {
        format!("the job is larger than {MAX_SPEC} bytes with its environment, or has too many words; put data into files")
    })
}

fn parse_object(text: &str, modern: bool, stranger: &mut dyn FnMut(&str)) -> Result<Job, Unread> {
    if !text.starts_with('{') {
        let kind = match serde_json::from_str::<serde_json::Value>(text) {
            Ok(_) => "a job must be an object like {\"cmd\": \"…\"}".to_owned(),
            Err(e) => format!("not JSON: {}", without_place(&e)),
        };
        return Err(Fault { at: 0, text: kind }.into());
    }
    let mut faults = Vec::new();
    let mut twice = |key: &str, value: &RawValue| {
        if modern {
            let text_of_fault = format!(
                "key {key:?}: it is there twice in this job; which one counts, JSON does not say"
            );
            faults.push(Fault {
                at: offset_in(text, value.get()),
                text: text_of_fault,
            });
        }
    };
    let members = members_with(text, &mut twice).map_err(|e| {
        let before: usize = text
            .split_inclusive('\n')
            .take(e.line().saturating_sub(1))
            .map(str::len)
            .sum();
        let at = (before + e.column().saturating_sub(1)).min(text.len());
        let at = (0..=at)
            .rev()
            .find(|i| text.is_char_boundary(*i))
            .unwrap_or(0);
        Fault {
            at,
            text: format!("not JSON: {}", without_place(&e)),
        }
    })?;
    let mut job = Job::new(Command::Shell(String::new()));
    let mut command: Option<Command> = None;
    for (key, raw) in members {
        let read = member(&mut job, &mut command, text, &key, raw, modern, stranger);
        faults.extend(read.err().map(|fault| Fault {
            text: half_character(&key, raw).unwrap_or(fault.text),
            ..fault
        }));
    }
    match command {
        Some(command) => job.spec.command = command,
        // A mistake in it has been told.
        None if faults.iter().any(|fault| {
            fault.text.starts_with("key \"cmd\"") || fault.text.starts_with("key \"argv\"")
        }) => {}
        None => faults.push(Fault {
            at: 0,
            text: "no `cmd` in this job, and no `argv` (a list of words)".into(),
        }),
    }
    if faults.is_empty() {
        Ok(job)
    } else {
        Err(Unread {
            faults,
            label: job.spec.label,
            illegible: false,
        })
    }
}

/// What is wrong with the value of a key that has half of a character, if that is why it cannot be
/// read.
fn half_character(key: &str, raw: &RawValue) -> Option<String> {
    let why = match surrogates::from_json(raw.get()) {
        Err(unit) => format!(
            "\\u{unit:04x} alone is half of a character; only \\udc80 to \\udcff can stand alone, for bytes 80 to ff that are no UTF-8 (PEP 383)"
        ),
        Ok(Cow::Borrowed(_)) => return None,
        Ok(Cow::Owned(_)) if OF_BYTES.contains(&key) => return None,
        // What is text has no lone surrogates at all.
        Ok(Cow::Owned(_)) => serde_json::from_str::<serde_json::Value>(raw.get()).err().map(|_| {
            format!(
                "is not UTF-8: it has a byte (\\udc80 to \\udcff, PEP 383) that is no text, which only {} can have",
                OF_BYTES.join(", ")
            )
        })?,
    };
    Some(format!("key {key:?}: {why}"))
}

/// One key of a job.
fn member(
    job: &mut Job,
    command: &mut Option<Command>,
    text: &str,
    key: &str,
    raw: &RawValue,
    modern: bool,
    stranger: &mut dyn FnMut(&str),
) -> Result<(), Fault> {
    let at = offset_in(text, raw.get());
    let fault = |what: String| Fault {
        at,
        text: format!("key {key:?}: {what}"),
    };
    let of_bytes = match OF_BYTES
        .contains(&key)
        .then(|| surrogates::from_json(raw.get()))
    {
        Some(Ok(Cow::Owned(text))) => RawValue::from_string(text).ok(),
        Some(Ok(Cow::Borrowed(_)) | Err(_)) | None => None,
    };
    let raw = of_bytes.as_deref().unwrap_or(raw);
    let string = || {
        serde_json::from_str::<String>(raw.get())
            .map_err(|_| fault(format!("must be a string, not {}", kind(raw))))
    };
    let seconds = || {
        let parsed = match raw.get().parse::<f64>() {
            Ok(n) => from_seconds(n),
            Err(_) => parse_duration(
                &string().map_err(|_| fault(format!("must be a duration, not {}", kind(raw))))?,
            ),
        };
        parsed.map_err(&fault)
    };
    let whole = |range: Range<i64>| {
        let n = raw.get().parse::<i64>().ok().filter(|n| range.contains(n));
        n.ok_or_else(|| {
            fault(format!(
                "must be a whole number from {} to {}",
                range.start,
                range.end - 1
            ))
        })
    };
    match key {
        "cmd" => {
            if command.is_some() {
                return Err(fault("a job has either `cmd` or `argv`".into()));
            }
            *command = Some(Command::Shell(string()?));
        }
        "cd" => job.spec.cd = Some(path(string()?).map_err(fault)?),
        "out" => job.spec.out = Some(path(string()?).map_err(fault)?),
        "err" => job.spec.err = Some(path(string()?).map_err(fault)?),
        "host" => {
            let hosts = host_list(raw, modern).map_err(&fault)?;
            if hosts.is_empty() && modern {
                return Err(fault("names no host; leave it out if any will do".into()));
            }
            job.hosts = Some(hosts);
        }
        _ if !modern => {}
        "argv" => {
            if command.is_some() {
                return Err(fault("a job has either `cmd` or `argv`".into()));
            }
            let words: Vec<String> = serde_json::from_str(raw.get())
                .map_err(|_| fault("must be a list of strings".into()))?;
            if words.first().is_none_or(String::is_empty) {
                return Err(fault("must begin with the program's name".into()));
            }
            *command = Some(Command::Argv(words));
        }
        "id" => {
            let label = string().or_else(|_| whole(i64::MIN..i64::MAX).map(|n| n.to_string()));
            let label = label.map_err(|_| {
                fault(format!(
                    "must be a string or a whole number, not {}",
                    kind(raw)
                ))
            })?;
            if label.is_empty() || label.contains('\0') || label == "." || label == ".." {
                return Err(fault(
                    "cannot be an id: it names files and environment values".into(),
                ));
            }
            job.spec.label = Some(label);
        }
        "prefer" => {
            job.prefer = Some(host_list(raw, modern).map_err(fault)?).filter(|set| !set.is_empty())
        }
        "name" => drop(string()?),
        "env" => job.spec.env = environment(raw).map_err(fault)?,
        "stdin" => job.spec.stdin = Some(path(string()?).map_err(fault)?),
        "timeout" => {
            let timeout: Duration = seconds()?;
            if timeout.is_zero() {
                return Err(fault("must be greater than zero".into()));
            }
            job.spec.timeout = Some(timeout);
        }
        "leftover" => {
            job.spec.leftover = Some(match string()?.as_str() {
                "kill" => Leftover::Kill,
                "wait" => Leftover::Wait,
                _ => return Err(fault("must be \"kill\" or \"wait\"".into())),
            });
        }
        "inputs" => {
            job.inputs = names(raw).map_err(|_| {
                fault(format!(
                    "must be a path or a list of them, not {}",
                    kind(raw)
                ))
            })?;
        }
        "after" => (job.after, job.after_at) = (names(raw).map_err(fault)?, at),
        "retry_on" => job.retry_on = retry_rules(raw).map_err(fault)?,
        "retry_delay" => job.retry_delay = seconds()?,
        "retries" => job.retries = Some(whole(0..1001)? as u32),
        "priority" => job.priority = whole(i64::from(i32::MIN)..i64::from(i32::MAX) + 1)? as i32,
        "slots" => job.slots = whole(1..i64::from(u16::MAX) + 1)? as u16,
        // Unknown keys are the user's own.
        key => match keys::foreign(key) {
            Some(why) => return Err(fault(why)),
            None => stranger(key),
        },
    }
    Ok(())
}

/// Inputs as the job sees them; what names another place by a scheme stays as it is.
fn absolute_inputs(job: &Job, cd: &str) -> Vec<String> {
    let dir = Path::new(cd).join(job.spec.cd.as_deref().unwrap_or_default());
    let absolute = |path: &String| {
        if path.contains("://") {
            path.clone()
        } else {
            dir.join(path).to_string_lossy().into_owned()
        }
    };
    job.inputs.iter().map(absolute).collect()
}

/// One job or several, each by its `id` or number.
fn names(raw: &RawValue) -> Result<Vec<String>, String> {
    let name = |value: &RawValue| match value.get().as_bytes() {
        [b'"', ..] => serde_json::from_str(value.get()).ok(),
        // As they are written, but that -0 is 0.
        [b'-' | b'0'..=b'9', ..] => Some(
            value
                .get()
                .parse::<i64>()
                .map_or_else(|_| value.get().to_owned(), |n| n.to_string()),
        ),
        _ => None,
    };
    let all: Option<Vec<String>> = match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
        Ok(list) => list.into_iter().map(name).collect(),
        Err(_) => name(raw).map(|name| vec![name]),
    };
    all.ok_or_else(|| {
        format!(
            "must be a job's id or number, or a list of them, not {}",
            kind(raw)
        )
    })
}

/// Exit statuses, negative signal numbers, and outcomes by their words.
fn retry_rules(raw: &RawValue) -> Result<Vec<RetryOn>, String> {
    let rules = names(raw).map_err(|_| {
        format!(
            "must be a list of exit statuses and outcomes, not {}",
            kind(raw)
        )
    })?;
    let failures = [
        Ended::Exited,
        Ended::Signaled,
        Ended::Timeout,
        Ended::OutOfMemory,
        Ended::StartFailed,
    ];
    let rule = |text: &String| {
        if let Ok(code) = text.parse::<i32>() {
            return Ok(RetryOn::Code(code));
        }
        let known = failures
            .iter()
            .find(|ended| ended.as_str() == text)
            .copied()
            .map(RetryOn::Outcome);
        known.ok_or_else(|| {
            let words: Vec<&str> = failures.iter().map(|ended| ended.as_str()).collect();
            format!(
                "{text:?} is neither an exit status nor one of {}",
                words.join(", ")
            )
        })
    };
    rules.iter().map(rule).collect()
}

fn path(text: String) -> Result<String, String> {
    if text.is_empty() {
        Err("cannot be an empty path".into())
    } else {
        Ok(text)
    }
}

fn host_list(raw: &RawValue, modern: bool) -> Result<Vec<String>, String> {
    let names = if let Ok(one) = serde_json::from_str::<String>(raw.get()) {
        hosts::expand(&one).map_err(|e| e.to_string())?
    } else if let Ok(list) = serde_json::from_str::<Vec<String>>(raw.get()) {
        let mut all = Vec::new();
        for item in list {
            all.extend(hosts::expand(&item).map_err(|e| e.to_string())?);
        }
        all
    } else if let Ok(map) =
        serde_json::from_str::<HashMap<String, serde::de::IgnoredAny>>(raw.get())
        && !modern
    {
        // Bakapara asked a dictionary for its keys.
        map.into_keys()
            .map(|k| hosts::normalise(&k).map_err(|e| e.to_string()))
            .collect::<Result<_, _>>()?
    } else {
        return Err(format!(
            "must be a host name or a list of them, not {}",
            kind(raw)
        ));
    };
    if names.iter().map(String::len).sum::<usize>() > MAX_HOST_LIST {
        return Err(format!(
            "names {} hosts; that is too long a list for one job",
            names.len()
        ));
    }
    let mut seen = HashSet::new();
    Ok(names
        .into_iter()
        .filter(|n| seen.insert(n.clone()))
        .collect())
}

fn environment(raw: &RawValue) -> Result<Vec<(String, String)>, String> {
    let mut twice = None;
    let members = members_with(raw.get(), &mut |name, _| twice = Some(name.to_owned()));
    let members =
        members.map_err(|_| format!("must be an object of strings, not {}", kind(raw)))?;
    if let Some(name) = twice {
        return Err(format!(
            "{name:?} is there twice; which one counts, JSON does not say"
        ));
    }
    let mut env = Vec::new();
    for (name, value) in members {
        let value: String = serde_json::from_str(value.get())
            .map_err(|_| format!("{name:?} must be a string, not {}", kind(value)))?;
        check_env_name(&name)?;
        env.push((name.into_owned(), value));
    }
    Ok(env)
}

/// Checks the name of an environment variable that a user wants to set.
///
/// # Errors
/// For the reader.
pub fn check_env_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains('=') {
        return Err(format!(
            "{name:?} cannot be the name of an environment variable"
        ));
    }
    if RESERVED_ENV.contains(&name) {
        return Err(format!("{name} is set by Mezcal itself"));
    }
    Ok(())
}

fn kind(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests;
