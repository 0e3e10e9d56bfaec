//! Sources together: which arguments each job has. Nothing is kept for each job: its arguments are
//! found by its number.

use super::source::{ColumnSeparator, Source};
use std::borrow::Cow;

/// How the arguments of sources become those of jobs.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// Arguments have columns, and this between them.
    pub columns: Option<ColumnSeparator>,
    /// The first argument of each source has the names of its columns.
    pub header: bool,
    /// So many combinations make one job; without: one.
    pub each: Option<u32>,
}

/// All sources, combined.
#[derive(Debug)]
pub struct Sources {
    parts: Vec<Part>,
    columns: Option<ColumnSeparator>,
    /// So many combinations make one job.
    each: usize,
    /// The number of combinations.
    combinations: usize,
    /// Columns of all sources.
    width: usize,
}

/// One source among others.
#[derive(Debug)]
struct Part {
    source: Source,
    /// 1 if the first argument is a header.
    header: usize,
    names: Vec<String>,
    /// The most columns that an argument has.
    width: usize,
    /// It goes in step with the part before it.
    linked: bool,
    /// After so many combinations its next argument comes.
    stride: usize,
}

impl Part {
    fn new(source: Source, manner: &Manner) -> Self {
        let header = usize::from(manner.header && source.can_have_header());
        let split = |text: &str| match &manner.columns {
            Some(separator) => separator.split(text).len(),
            None => 1,
        };
        let names = match (&manner.columns, header) {
            (_, 0) => Vec::new(),
            (Some(separator), _) => separator
                .split(&source.get(0))
                .into_iter()
                .map(str::to_owned)
                .collect(),
            (None, _) => vec![source.get(0).into_owned()],
        };
        let width = match &manner.columns {
            Some(_) => (0..source.len())
                .map(|at| split(&source.get(at)))
                .max()
                .unwrap_or(1),
            None => 1,
        };
        Self {
            linked: source.linked,
            source,
            header,
            names,
            width,
            stride: 1,
        }
    }

    fn len(&self) -> usize {
        self.source.len() - self.header
    }
}

impl Sources {
    /// # Errors
    /// A line for the user: an argument cannot be one, linked sources differ in length, or there
    /// are too many combinations.
    pub fn new(sources: Vec<Source>, manner: Manner) -> Result<Self, String> {
        let mut parts: Vec<Part> = Vec::new();
        for source in sources {
            if let Some(at) = source.first_nul() {
                return Err(format!(
                    "{}: a NUL byte, which no argument of a command can contain (-0: arguments end with NUL bytes)",
                    source.place(at)
                ));
            }
            let part = Part::new(source, &manner);
            if let (true, Some(before)) = (part.linked, parts.last()) {
                check_link(before, &part)?;
            }
            parts.push(part);
        }
        // The last source changes fastest.
        let mut combinations: usize = 1;
        for part in parts.iter_mut().rev() {
            part.stride = combinations;
            if !part.linked {
                combinations = combinations.saturating_mul(part.len());
            }
        }
        let each = manner.each.unwrap_or(1) as usize;
        if combinations.div_ceil(each) > u32::MAX as usize {
            return Err(format!(
                "the sources have more than {} combinations, too many jobs for one run",
                u32::MAX
            ));
        }
        Ok(Self {
            width: parts.iter().map(|part| part.width).sum(),
            parts,
            columns: manner.columns,
            each,
            combinations,
        })
    }

    /// The number of jobs.
    pub fn jobs(&self) -> usize {
        self.combinations.div_ceil(self.each)
    }

    /// The names of columns by their position; empty: it has none.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names = Vec::with_capacity(self.width);
        for part in &self.parts {
            let missing = part.width - part.names.len();
            names.extend(part.names.iter().cloned());
            names.extend(std::iter::repeat_n(String::new(), missing));
        }
        names
    }

    /// The arguments of a job, from 0, by their position. `None`: an argument has fewer columns than
    /// others, or the last job has fewer arguments.
    pub(super) fn of_job(&self, job: usize) -> Vec<Option<Cow<'_, str>>> {
        let mut arguments = Vec::with_capacity(self.width * self.each);
        for combination in job * self.each..(job + 1) * self.each {
            if combination >= self.combinations {
                arguments.extend(std::iter::repeat_n(None, self.width));
                continue;
            }
            for part in &self.parts {
                let argument = part
                    .source
                    .get(part.header + combination / part.stride % part.len());
                let Some(separator) = &self.columns else {
                    arguments.push(Some(argument));
                    continue;
                };
                let end = arguments.len() + part.width;
                match argument {
                    Cow::Borrowed(text) => {
                        let columns = separator.split(text).into_iter();
                        arguments.extend(columns.map(|column| Some(Cow::Borrowed(column))));
                    }
                    Cow::Owned(number) => arguments.push(Some(Cow::Owned(number))),
                }
                arguments.resize(end, None);
            }
        }
        arguments
    }

    /// The most bytes that all arguments of a job have, and that one of them has.
    pub(super) fn longest(&self) -> (usize, usize) {
        let longest = self.parts.iter().map(|part| part.source.longest());
        let sum: usize = longest.clone().sum();
        (
            sum.saturating_mul(self.each),
            longest.max().unwrap_or_default(),
        )
    }

    /// The most arguments that a job has.
    pub(super) fn most(&self) -> usize {
        self.width.saturating_mul(self.each)
    }

    /// Checks that each job has an argument at `position`, from 1, where the template has `text`.
    ///
    /// # Errors
    /// A line for the user.
    pub(super) fn check(&self, position: u32, text: &str) -> Result<(), String> {
        let position = position as usize;
        if position > self.most() {
            let have = match self.most() {
                1 => "1 argument".to_owned(),
                most => format!("{most} arguments"),
            };
            return Err(format!(
                "{text} in the template: a job has {have} at most (in a regular expression, {{{position},{position}}} is the same count and not a replacement string)"
            ));
        }
        let mut column = (position - 1) % self.width;
        let part = self.parts.iter().find(|part| {
            let here = column < part.width;
            column -= if here { 0 } else { part.width };
            here
        });
        let (Some(part), Some(separator)) = (part, &self.columns) else {
            return Ok(());
        };
        let columns = |at: &usize| separator.split(&part.source.get(*at)).len();
        let Some(short) = (part.header..part.source.len()).find(|at| columns(at) <= column) else {
            return Ok(());
        };
        let has = match columns(&short) {
            1 => "1 column".to_owned(),
            n => format!("{n} columns"),
        };
        Err(format!(
            "{}: {has}, and the template has {text}, column {}",
            part.source.place(short),
            column + 1
        ))
    }
}

/// Checks that linked sources have equally many arguments.
fn check_link(before: &Part, part: &Part) -> Result<(), String> {
    let ((longer, shorter), at) = match before.len().cmp(&part.len()) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less => ((part, before), before.len()),
        std::cmp::Ordering::Greater => ((before, part), part.len()),
    };
    Err(format!(
        "{}: it has no counterpart in {}, to which it is linked: {} and {} arguments",
        longer.source.place(longer.header + at),
        shorter.source.name(),
        longer.len(),
        shorter.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn source(text: &str, linked: bool) -> Source {
        let words = text.split_whitespace().map(OsString::from).collect();
        Source::words(format!("`{text}`"), words).linked(linked)
    }

    fn jobs(sources: Vec<Source>, manner: Manner) -> Result<Vec<String>, String> {
        let sources = Sources::new(sources, manner)?;
        let job = |job: usize| {
            let arguments = sources.of_job(job).into_iter();
            let arguments = arguments.map(|argument| argument.unwrap_or(Cow::Borrowed("-")));
            arguments.collect::<Vec<_>>().join(" ")
        };
        Ok((0..sources.jobs()).map(job).collect())
    }

    #[test]
    fn sources_are_combined_and_linked() {
        let plain = Manner::default;
        let each = |n| Manner {
            each: Some(n),
            ..plain()
        };
        let comma = || Manner {
            columns: Some(ColumnSeparator::Text(",".into())),
            ..plain()
        };
        let header = || Manner {
            header: true,
            ..comma()
        };
        type Given<'a> = &'a [(&'a str, bool)];
        let rows: [(Given<'_>, Manner, &str); 12] = [
            (&[("a b", false)], plain(), "a|b"),
            (
                &[("a b", false), ("1 2", false)],
                plain(),
                "a 1|a 2|b 1|b 2",
            ),
            (&[("a b", false), ("1 2", true)], plain(), "a 1|b 2"),
            (
                &[("a b", false), ("1 2", true), ("X Y", false)],
                plain(),
                "a 1 X|a 1 Y|b 2 X|b 2 Y",
            ),
            (
                &[("X Y", false), ("a b", false), ("1 2", true), ("p q", true)],
                plain(),
                "X a 1 p|X b 2 q|Y a 1 p|Y b 2 q",
            ),
            (&[("a b", false), ("", false)], plain(), ""),
            (&[("a b c", false)], each(2), "a b|c -"),
            (
                &[("a b", false), ("1 2", false)],
                each(2),
                "a 1 a 2|b 1 b 2",
            ),
            (&[("a,b c", false)], comma(), "a b|c -"),
            (&[("a,b c,d", false), ("1", false)], comma(), "a b 1|c d 1"),
            (&[("x,y a,b c,d", false)], header(), "a b|c d"),
            (&[("x a b", false), ("y 1", false)], header(), "a 1|b 1"),
        ];
        for (given, manner, expected) in rows {
            let sources = given.iter().map(|(text, linked)| source(text, *linked));
            let found = jobs(sources.collect(), manner).expect("jobs");
            assert_eq!(found.join("|"), expected, "{given:?}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let linked = |a, b| jobs(vec![source(a, false), source(b, true)], Manner::default());
        assert_eq!(
            linked("a b c", "1 2"),
            Err("argument 3 of `a b c`: it has no counterpart in `1 2`, to which it is linked: 3 and 2 arguments".into())
        );
        assert!(linked("", "1").is_err_and(|why| why.starts_with("argument 1 of `1`")));
        let nul = Source::lines("f".into(), b"a\nb\0c".to_vec());
        assert!(
            jobs(vec![nul], Manner::default())
                .is_err_and(|why| why.starts_with("f:2: a NUL byte") && why.contains("-0"))
        );
        let many = || {
            Source::numbers(
                "--array".into(),
                super::super::array::Array::read("1-70000").expect("numbers"),
            )
        };
        assert!(jobs(vec![many(), many()], Manner::default()).is_err());
        let manner = Manner {
            columns: Some(ColumnSeparator::Text(",".into())),
            ..Manner::default()
        };
        let lines = Source::lines("f".into(), b"a,b\nc\n".to_vec());
        let sources = Sources::new(vec![lines], manner).expect("sources");
        assert_eq!(sources.check(1, "{1}"), Ok(()));
        assert_eq!(
            sources.check(2, "{2}"),
            Err("f:2: 1 column, and the template has {2}, column 2".into())
        );
        assert!(
            sources
                .check(3, "{3}")
                .is_err_and(|why| why.contains("{3,3}"))
        );
    }
}
