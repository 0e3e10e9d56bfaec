//! Where a job starts and where its output goes: the same answer for the engine that opens the
//! files and for the agent that reads them later.

use mezcal_common::model::ids::{AttemptId, JobNumber};
use mezcal_common::model::job::{BatchContext, JobSpec};
use mezcal_common::model::{octets, token};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Bytes of an `id` that stay readable in a file name: with a suffix and an extension well below
/// NAME_MAX (255 bytes, limits.h).
const READABLE: usize = 200;
/// The longest `id` whose capitals are told by a mask: the mask then has fewer than the 16 digits
/// of a hash.
const MASKED: usize = 60;

/// A file that takes one output stream of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutputFile {
    /// The batch's directory for output, if it has one; it is made if it is missing.
    pub(crate) dir: Option<PathBuf>,
    /// Relative to the job's directory.
    pub(crate) path: PathBuf,
}

/// A path of a job.
pub(crate) fn path(text: &str) -> PathBuf {
    OsString::from_vec(octets::of(text).into_owned()).into()
}

/// The job's directory.
pub(crate) fn directory(spec: &JobSpec, context: &BatchContext) -> PathBuf {
    path(&context.cd).join(path(spec.cd.as_deref().unwrap_or_default()))
}

/// The user's `id`, or the job's number.
pub(crate) fn label(spec: &JobSpec, attempt: AttemptId) -> String {
    spec.label
        .clone()
        .unwrap_or_else(|| attempt.key.job.to_string())
}

/// The file of standard output; none: it goes into a pipe of the engine's.
pub(crate) fn out(
    spec: &JobSpec,
    attempt: AttemptId,
    context: &BatchContext,
) -> Option<OutputFile> {
    file(spec.out.as_deref(), "out", spec, attempt, context)
}

/// The file of standard error; none: it goes into a pipe of the engine's.
pub(crate) fn err(
    spec: &JobSpec,
    attempt: AttemptId,
    context: &BatchContext,
) -> Option<OutputFile> {
    file(spec.err.as_deref(), "err", spec, attempt, context)
}

fn file(
    own: Option<&str>,
    extension: &str,
    spec: &JobSpec,
    attempt: AttemptId,
    context: &BatchContext,
) -> Option<OutputFile> {
    let dir = context.output_dir.as_deref().map(path);
    if let Some(own) = own.map(path) {
        return Some(OutputFile {
            // A job that is run again may be told the name that it had in the batch's directory.
            dir: dir.filter(|dir| own.parent() == Some(dir)),
            path: own,
        });
    }
    let dir = dir?;
    let name = stem(spec.label.as_deref(), attempt.key.job);
    Some(OutputFile {
        path: dir.join(format!("{name}.{extension}")),
        dir: Some(dir),
    })
}

/// The name of a job's output in the batch's directory, without its extension. Any two jobs of a
/// batch have different ones, also where file names are the same in capitals and small letters or
/// in different normal forms of Unicode.
///
/// An `id` of `a-z 0-9 . _ -` is its own name, and a job without one has its number. Other names
/// have a `~`: capitals add the mask of their places (`Ab` is `Ab~1`, `aB` is `aB~2`); every other
/// character becomes `_`, with the first 64 bits of the SHA-256 of the `id`.
fn stem(label: Option<&str>, number: JobNumber) -> String {
    let Some(label) = label else {
        return number.to_string();
    };
    let is_number = !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit());
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let starts_well = label.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let plain = starts_well && label.len() <= READABLE && label.bytes().all(is_plain);
    let capitals = label.bytes().any(|b| b.is_ascii_uppercase());
    if plain && !capitals && (!is_number || label == number.to_string()) {
        return label.to_owned();
    }
    if plain && capitals && label.len() <= MASKED {
        let mask = label
            .bytes()
            .enumerate()
            .filter(|(_, b)| b.is_ascii_uppercase())
            .fold(0u64, |mask, (at, _)| mask | 1 << at);
        return format!("{label}~{mask:x}");
    }
    let readable: String = label
        .bytes()
        .take(READABLE)
        .map(|b| if is_plain(b) { b as char } else { '_' })
        .collect();
    format!(
        "{}~{}",
        readable.trim_start_matches(['.', '-']),
        token::hex(&token::sha256(label.as_bytes())[..8])
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn names_of_output_differ_however_ids_are_alike() {
        let long = [
            "x".repeat(300),
            format!("{}y", "x".repeat(300)),
            "X".repeat(300),
            "é".repeat(150),
        ];
        let labels = [
            "a/b", "a_b", "a b", "a:b", "a\\b", "a.b", "A/B", "A_B", "a_B", "A_b", "4", "04", "5",
            "5~0", "x", "X", "x~1", "", ".", "..", "...", "-", "-x", "_", "é", "e\u{301}", "É",
            "ß", "ss", "SS", "İ", "i", "I", "\u{212a}", "k", "K", "a\nb", "a\tb", "CON", "x.out",
            "x.err", "東京", "\u{fb01}", "fi",
        ];
        let mut seen = HashMap::new();
        // Each label is the id of some job, and there are jobs without ids.
        let labelled = labels
            .iter()
            .copied()
            .chain(long.iter().map(String::as_str))
            .map(|label| (Some(label), JobNumber(1000)));
        for (label, number) in labelled.chain((1..=20).map(|number| (None, JobNumber(number)))) {
            let name = stem(label, number);
            assert!(
                name.len() + ".out".len() <= 255 && name.is_ascii() && !name.contains('/'),
                "{label:?}: {name}"
            );
            assert!(
                !name.starts_with(['.', '-']) && !name.is_empty(),
                "{label:?}: {name}"
            );
            let other = seen.insert(name.to_ascii_lowercase(), (label, number));
            assert_eq!(other, None, "{label:?} has the name of another job: {name}");
        }
    }

    #[test]
    fn common_ids_are_their_own_names() {
        for id in ["a", "sample-01", "x_y", "chr1.fa.gz", "2014-12-21"] {
            assert_eq!(stem(Some(id), JobNumber(7)), id);
        }
        assert_eq!(stem(None, JobNumber(7)), "7");
        assert_eq!(stem(Some("7"), JobNumber(7)), "7", "its own number");
        assert_eq!(stem(Some("SRR12"), JobNumber(7)), "SRR12~7");
        assert_eq!(stem(Some("a/b"), JobNumber(7)), "a_b~c14cddc033f64b9d");
        assert!(
            stem(Some("8"), JobNumber(7)).starts_with("8~"),
            "job 8 may have no id"
        );
    }
}
