//! A job list that a template makes.

use super::read::stillborn;
use super::template::Template;
use super::{Format, Jobs, MAX_SHOWN};
use mezcal_common::model::job::{MAX_ARG_STRLEN, SHELL_PREFIX};
use std::collections::{BTreeMap, HashMap};

impl Jobs {
    /// The jobs of a template.
    ///
    /// # Errors
    /// Lines for the user, each with its job.
    pub fn made(template: Template, retries: u32) -> Result<Self, String> {
        let number_of_jobs = template.jobs() as u32;
        let room = MAX_ARG_STRLEN - SHELL_PREFIX.len();
        let all_fit = template.longest().is_some_and(|bytes| bytes < room);
        let warnings = template.warnings().to_vec();
        let jobs = Self {
            text: String::new(),
            spans: Vec::new(),
            format: Format::Json,
            made: Some(template),
            retries,
            places: None,
            output_dir: None,
            widest: (1, 1),
            stillborn: HashMap::new(),
            warnings,
            host_sets: HashMap::new(),
            after: HashMap::new(),
            inputs: BTreeMap::new(),
        };
        if all_fit {
            return Ok(jobs);
        }
        let mut wrong = (1..=number_of_jobs).filter_map(|number| {
            let why = jobs.why_not(number)?;
            Some(format!("job {number} of the template: {why}"))
        });
        let mut shown: Vec<String> = wrong.by_ref().take(MAX_SHOWN).collect();
        let more = wrong.count();
        if more > 0 {
            shown.push(format!("and {more} more errors"));
        }
        match shown.is_empty() {
            true => Ok(jobs),
            false => Err(shown.join("\n")),
        }
    }

    /// Why a job cannot be made, or started by any host.
    fn why_not(&self, number: u32) -> Option<String> {
        let template = self.made.as_ref()?;
        let job = self.parse(number).ok()?;
        let unfit = template.check_job(number).err();
        unfit.or_else(|| stillborn(&job, usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::{Array, Manner, Source, Sources};
    use super::*;
    use mezcal_common::model::ids::JobNumber;
    use std::ffi::OsString;

    fn made(text: &str, source: Source) -> Result<Jobs, String> {
        let sources = Sources::new(vec![source], Manner::default())?;
        Jobs::made(Template::new(&[text.to_owned()], sources)?, 0)
    }

    #[test]
    fn jobs_that_stay_keep_their_arguments_and_numbers() {
        let array = Array::read("5-9").expect("numbers");
        let mut jobs = made("f {} {#}", Source::numbers("n".into(), array)).expect("jobs");
        jobs.retain(&[false, true, false, true, true]);
        assert_eq!((jobs.len(), jobs.is_empty()), (3, false));
        assert_eq!(jobs.object(2), r#"{"cmd": "f 8 4", "args": ["8"]}"#);
        assert_eq!(jobs.as_object(2), jobs.object(2));
        let submitted = jobs.submission(2).expect("a job");
        assert_eq!(submitted.job, JobNumber(2));
        assert_eq!(submitted.label.as_deref(), Some("4"));
        jobs.retain(&[false, true, true]);
        assert_eq!(jobs.object(1), r#"{"cmd": "f 8 4", "args": ["8"]}"#);
        assert_eq!((jobs.len(), jobs.title(2)), (2, "f 9 5".to_owned()));
    }

    #[test]
    fn every_job_that_cannot_start_is_named() {
        let long = "x".repeat(MAX_ARG_STRLEN);
        let words = ["a", &long, "b", &long].map(OsString::from).to_vec();
        let why = made("f", Source::words("w".into(), words)).expect_err("too long");
        assert_eq!(why.lines().count(), 2, "{why}");
        assert!(why.starts_with("job 2 of the template: `cmd` is"), "{why}");
        let words = ["1", "x"].map(OsString::from).to_vec();
        let why = made("echo $(({}+1))", Source::words("w".into(), words)).expect_err("no number");
        assert_eq!(
            why,
            "job 2 of the template: {} stands in arithmetic or in the name of a variable, where only whole numbers are safe, and would be \"x\""
        );
    }
}
