//! What stays of the text of a job that has ended and is in no store: where its output went, for
//! whoever asks for that.

use bytes::Bytes;
use mezcal_common::model::job::{Command, JobSpec};
use mezcal_common::wire::codec;

/// Shorter texts stay as they are: what could be left out is less than what it takes to find it.
const SHORT: usize = 256;

/// The text without what was run.
pub(super) fn ended(text: &Bytes) -> Bytes {
    if text.len() <= SHORT {
        return text.clone();
    }
    // One that cannot be read has not run, and has no output.
    let Ok(JobSpec {
        label,
        cd,
        out,
        err,
        ..
    }) = codec::decode_exact(text)
    else {
        return Bytes::new();
    };
    codec::encode_body(&JobSpec {
        label,
        cd,
        out,
        err,
        ..JobSpec::new(Command::Shell(String::new()))
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_job_that_has_ended_stays_where_its_output_is() {
        let whereabouts = JobSpec {
            label: Some("l".into()),
            cd: Some("/d".into()),
            out: Some("o".into()),
            err: Some("e".into()),
            ..JobSpec::new(Command::Shell(String::new()))
        };
        let long = JobSpec {
            command: Command::Shell("x".repeat(4000)),
            env: vec![("K".into(), "v".repeat(4000))],
            stdin: Some("i".into()),
            ..whereabouts.clone()
        };
        let text = ended(&codec::encode_body(&long).expect("small"));
        assert!(text.len() < 50, "{}", text.len());
        assert_eq!(
            codec::decode_exact::<JobSpec>(&text).expect("a job"),
            whereabouts
        );
        let short = codec::encode_body(&JobSpec {
            command: Command::Shell("true".into()),
            ..whereabouts
        })
        .expect("small");
        assert_eq!(ended(&short), short);
        assert_eq!(ended(&vec![255; 1000].into()), Bytes::new());
    }
}
