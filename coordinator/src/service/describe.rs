//! A stored job as the JSON object that it could have been read from. Keys without a meaning never
//! left their client.

use crate::jobs::surrogates;
use crate::store::Described;
use mezcal_common::message::client::RetryOn;
use mezcal_common::model::hosts::Folded;
use mezcal_common::model::job::{Command, JobSpec, Leftover};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;

/// The object, with an absolute directory, which means the same from anywhere.
pub fn describe_job(job: &Described, batch_cd: &str) -> String {
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| drop(object.insert(key.into(), value));
    if let Some(label) = &job.submission.label {
        set("id", json!(label));
    }
    if let Some(spec) = &job.spec {
        describe_spec(spec, batch_cd, &mut set);
    }
    let submission = &job.submission;
    job.hosts
        .0
        .iter()
        .for_each(|hosts| set("host", json!(Folded(hosts).to_string())));
    // The order of hosts matters.
    job.hosts
        .1
        .iter()
        .for_each(|hosts| set("prefer", json!(hosts)));
    if submission.priority != 0 {
        set("priority", json!(submission.priority));
    }
    if submission.slots != 1 {
        set("slots", json!(submission.slots));
    }
    if submission.retries != 0 {
        set("retries", json!(submission.retries));
    }
    if !submission.retry_on.is_empty() {
        let rule = |rule: &RetryOn| match rule {
            RetryOn::Code(code) => json!(code),
            RetryOn::Outcome(ended) => json!(ended.as_str()),
        };
        set(
            "retry_on",
            Value::Array(submission.retry_on.iter().map(rule).collect()),
        );
    }
    if !submission.retry_delay.is_zero() {
        set("retry_delay", seconds(submission.retry_delay));
    }
    surrogates::to_json(Value::Object(object).to_string())
}

fn describe_spec(spec: &JobSpec, batch_cd: &str, set: &mut dyn FnMut(&str, Value)) {
    match &spec.command {
        Command::Shell(text) => set("cmd", json!(text)),
        Command::Argv(words) => set("argv", json!(words)),
    }
    // A slash stays a slash in the form of `octets`, too.
    set(
        "cd",
        json!(
            Path::new(batch_cd)
                .join(spec.cd.as_deref().unwrap_or_default())
                .to_string_lossy()
        ),
    );
    for (key, value) in [
        ("out", &spec.out),
        ("err", &spec.err),
        ("stdin", &spec.stdin),
    ] {
        value.iter().for_each(|path| set(key, json!(path)));
    }
    if !spec.env.is_empty() {
        set(
            "env",
            Value::Object(
                spec.env
                    .iter()
                    .map(|(name, value)| (name.clone(), json!(value)))
                    .collect(),
            ),
        );
    }
    spec.timeout
        .iter()
        .for_each(|timeout| set("timeout", seconds(*timeout)));
    match spec.leftover {
        Some(Leftover::Kill) => set("leftover", json!("kill")),
        Some(Leftover::Wait) => set("leftover", json!("wait")),
        None => {}
    }
}

fn seconds(duration: Duration) -> Value {
    let whole = duration.subsec_nanos() == 0;
    if whole {
        json!(duration.as_secs())
    } else {
        json!(duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mezcal_common::message::client::Submission;
    use mezcal_common::model::ids::JobNumber;
    use mezcal_common::model::job::JobSpec;
    use mezcal_common::model::octets;

    #[test]
    fn names_that_are_no_utf_8_are_as_they_were_given() {
        let name = octets::text(b"caf\xe9".to_vec());
        let command = Command::Argv(vec!["cat".into(), name.clone()]);
        let spec = JobSpec {
            cd: Some(name.clone()),
            env: vec![("V".into(), name)],
            ..JobSpec::new(command)
        };
        let submission = Submission::new(JobNumber(1), bytes::Bytes::new());
        let job = Described {
            submission,
            spec: Some(spec),
            hosts: (None, None),
            ended: None,
        };
        let text = r#"{"argv":["cat","caf\udce9"],"cd":"/home/caf\udce9","env":{"V":"caf\udce9"}}"#;
        assert_eq!(describe_job(&job, "/home"), text);
    }
}
