//! Reading job lists: JSON Lines, one JSON array, or plain shell lines.
//!
//! The whole text stays in memory and jobs are spans of it, so a million jobs cost their text and
//! twelve bytes each. Everything is checked before anything starts, and all mistakes are reported
//! at once with file, line, column and key.

mod fault;
mod job;
mod keys;
pub mod locate;
mod made;
mod object;
mod order;
mod read;
mod shared;
mod spans;
pub(crate) mod surrogates;
pub mod template;
mod value;

pub use job::Job;
pub use object::{members, write_json};
pub(crate) use object::{write_octets, write_string};
pub use value::check_env_name;

use crate::jobs::locate::{Places, best_hosts};
use bytes::Bytes;
use job::{Unread, parse_object};
use mezcal_common::message::client::Submission;
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::job::{BatchContext, Command, MAX_CONTEXT};
use mezcal_common::model::octets;
use mezcal_common::wire::codec;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use template::Template;

/// The most errors of one input that are shown; the rest are counted.
const MAX_SHOWN: usize = 20;

/// The form of the input, and how it is read.
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
    /// Whether a job is a command, not an object.
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
    /// Makes the jobs, instead of a text that has them.
    made: Option<Template>,
    /// Numbers of the jobs in the input, if some jobs have been taken out.
    places: Option<Vec<u32>>,
    /// Directory for output of jobs without `out` and `err`, as [`octets`] has it.
    output_dir: Option<String>,
    /// Retries of jobs without `retries`.
    retries: u32,
    /// The most slots that a job takes, and the first job that takes so many.
    widest: (u16, u32),
    /// Jobs of Bakapara's that cannot run, and why: they get a result without being submitted.
    stillborn: HashMap<u32, String>,
    /// Oddities in the list that are not mistakes.
    warnings: Vec<String>,
    host_sets: HashMap<Vec<String>, u32>,
    /// The jobs that each job comes after, by its number.
    after: HashMap<u32, Vec<JobNumber>>,
    /// The jobs with inputs, and the hosts that each prefers because of them.
    inputs: BTreeMap<u32, Vec<String>>,
}

impl Jobs {
    /// Checks `bytes`, which come from `name`.
    ///
    /// # Errors
    /// Lines for the user, each with its place.
    pub fn read(name: &str, bytes: Vec<u8>, format: Format, retries: u32) -> Result<Self, String> {
        Self::read_behind(None, name, bytes, format, retries)
    }

    /// Checks one job of a stream, the `number`th. It may come after earlier jobs, by their
    /// numbers.
    ///
    /// # Errors
    /// Lines for the user, each with its place.
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

    /// Oddities in the list that are not mistakes, in lines for the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The files that jobs read, as paths; jobs without a directory start in `cd`.
    pub fn inputs(&self, cd: &str) -> HashSet<String> {
        self.inputs
            .keys()
            .filter_map(|number| self.parse(*number).ok())
            .flat_map(|job| absolute_inputs(&job, cd))
            .collect()
    }

    /// Lets jobs prefer the hosts that have their inputs, after those that they name themselves.
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

    /// The most slots that a job takes, and the number of the first job that takes so many.
    pub fn widest(&self) -> (u16, u32) {
        self.widest
    }

    /// The number of the first job without a directory, or with a relative one.
    pub fn first_without_directory(&self) -> Option<u32> {
        let has_one = |job: &Job| {
            job.spec
                .cd
                .as_deref()
                .is_some_and(|cd| Path::new(cd).is_absolute())
        };
        (1..=self.len() as u32).find(|number| !self.parse(*number).is_ok_and(|job| has_one(&job)))
    }

    /// The number of jobs.
    pub fn len(&self) -> usize {
        match (&self.made, &self.places) {
            (Some(template), None) => template.jobs(),
            (Some(_), Some(places)) => places.len(),
            (None, _) => self.spans.len(),
        }
    }

    /// True if there are no jobs, which [`Jobs::read`] refuses.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text of a job as it was in the input, or the object that a template makes.
    pub fn object(&self, number: u32) -> Cow<'_, str> {
        match &self.made {
            Some(template) => Cow::Owned(template.object(self.place(number))),
            None => Cow::Borrowed(self.text_of(number)),
        }
    }

    /// The text of a job as it was in the input.
    fn text_of(&self, number: u32) -> &str {
        let (start, length) = self.spans[number as usize - 1];
        &self.text[start..start + length as usize]
    }

    /// The number of a job in the whole list.
    fn place(&self, number: u32) -> u32 {
        let places = self.places.as_ref();
        places.map_or(number, |places| places[number as usize - 1])
    }

    /// A job as a JSON object, whatever the form of the input.
    pub fn as_object(&self, number: u32) -> String {
        match self.format.is_commands() {
            true => {
                let mut object = b"{\"cmd\": ".to_vec();
                write_octets(&mut object, &self.object(number));
                object.push(b'}');
                String::from_utf8(object).unwrap_or_default()
            }
            false => self.object(number).into_owned(),
        }
    }

    /// Takes out jobs that need not run, even if others come after them. The jobs that stay keep
    /// their name: the number that they had.
    pub fn retain(&mut self, keep: &[bool]) {
        let kept: Vec<u32> = (1..)
            .zip(keep)
            .filter(|(_, keep)| **keep)
            .map(|(number, _)| number)
            .collect();
        let new: HashMap<u32, u32> = kept.iter().copied().zip(1..).collect();
        if self.made.is_none() {
            self.spans = kept
                .iter()
                .map(|number| self.spans[*number as usize - 1])
                .collect();
        }
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
        self.places = Some(kept.into_iter().map(|number| self.place(number)).collect());
    }

    /// Sets the directory where jobs that have a new number keep the names of their output files.
    pub fn keep_names_in(&mut self, output_dir: Option<String>) {
        self.output_dir = output_dir;
    }

    /// The jobs that one comes after.
    pub fn comes_after(&self, number: u32) -> &[JobNumber] {
        self.after.get(&number).map_or(&[], Vec::as_slice)
    }

    /// The form of the input.
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
            // The output goes to the files that the whole list would use.
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

    /// Calls `stranger` for each key without a meaning.
    fn parse_with(&self, number: u32, stranger: &mut dyn FnMut(&str)) -> Result<Job, Unread> {
        if let Some(template) = &self.made {
            return Ok(Job::new(template.command(self.place(number))));
        }
        let text = self.text_of(number);
        match self.format {
            Format::Lines | Format::NulLines => Ok(Job::new(Command::Shell(text.to_owned()))),
            Format::Json => parse_object(text, true, stranger),
            Format::Bakapara => parse_object(text, false, stranger),
        }
    }
}

/// Why the context of a batch cannot be handed to an engine.
pub fn too_large(context: &BatchContext) -> Option<String> {
    (!codec::context_fits(context)).then(|| {
        format!(
            "what the jobs have in common is larger than {MAX_CONTEXT} bytes with its environment, or has too many entries; put data into files"
        )
    })
}

/// Inputs as absolute paths of the job; an input with a scheme (`s3://…`) stays as it is.
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

#[cfg(test)]
mod tests;
