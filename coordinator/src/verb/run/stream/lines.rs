//! Lines of a stream: one thread reads and parses them, another one writes the output.

use crate::jobs::{Format, Jobs, members};
use bytes::Bytes;
use mezcal_common::message::client::Submission;
use mezcal_common::model::escape::json_for_terminal;
use mezcal_common::model::ids::JobNumber;
use serde::Deserialize;
use serde_json::Value;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use tokio::sync::mpsc;

/// Longest line of the input, in bytes.
const MAX_LINE: u64 = 8 << 20;
/// Size of the read buffer, in bytes.
const BUFFER: usize = 256 * 1024;
/// The most lines that the reading thread hands over together.
const LINES: usize = 1024;

/// A line that is not a job.
#[derive(Debug, Deserialize)]
#[serde(tag = "control", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Control {
    /// No more jobs will come.
    Close,
    /// Kills these jobs, or all. The answer repeats `request`.
    Cancel {
        jobs: Option<Vec<u32>>,
        grace: Option<String>,
        signal: Option<String>,
        request: Option<Value>,
    },
    /// Asks for the hosts. The answer repeats `request`.
    Hosts { request: Option<Value> },
}

/// A result of the reading thread.
pub(super) enum Line {
    /// A job, and the sets of hosts to which its indices refer.
    Job(Box<Submission>, Vec<Vec<String>>),
    Control(Control),
    /// A line that is neither, and the reason.
    Refused(String),
    /// No more can be read, and the reason.
    Broken(String),
}

/// Makes jobs of lines.
pub(super) struct Parser {
    pub(super) format: Format,
    pub(super) retries: u32,
    /// The most slots that a job can take.
    pub(super) widest: u16,
    /// Number of the last job.
    pub(super) number: u32,
}

impl Parser {
    /// Parses a line. A line that is not a control line is a job: a mistake in it becomes its
    /// result.
    fn parse(&mut self, line: Vec<u8>) -> Line {
        match control(&line) {
            Some(Ok(control)) => return Line::Control(control),
            Some(Err(why)) => return Line::Refused(why),
            None => {}
        }
        self.number += 1;
        let job = JobNumber(self.number);
        match self.job(line) {
            Ok((submission, sets)) => Line::Job(Box::new(Submission { job, ..submission }), sets),
            Err(why) => Line::Job(
                Box::new(Submission {
                    stillborn: Some(why),
                    ..Submission::new(job, Bytes::new())
                }),
                Vec::new(),
            ),
        }
    }

    fn job(&self, line: Vec<u8>) -> Result<(Submission, Vec<Vec<String>>), String> {
        if line.trim_ascii_start().first() != Some(&b'{') {
            return Err("each line of a stream is one JSON object".into());
        }
        let jobs = Jobs::read_next(self.number, line, self.format, self.retries)?;
        let (slots, _) = jobs.widest();
        if slots > self.widest {
            return Err(format!(
                "it takes {slots} slots, and this run has {}; -j {slots} gives it as many",
                self.widest
            ));
        }
        let submission = jobs.submission(1).ok_or("it cannot be read")?;
        Ok((submission, jobs.host_sets()))
    }
}

/// A control line, or the mistake in it: an object with the key `control` and no command.
fn control(line: &[u8]) -> Option<Result<Control, String>> {
    // Nearly all lines are jobs, without the word.
    let text = std::str::from_utf8(line)
        .ok()
        .filter(|text| text.contains("\"control\""))?;
    let keys = members(text).ok()?;
    let has = |wanted: &str| keys.iter().any(|(key, _)| key == wanted);
    if !has("control") || has("cmd") || has("argv") {
        return None;
    }
    Some(serde_json::from_str(text).map_err(|e| format!("not a control line: {e}")))
}

/// Reads lines until they end or nobody wants more.
pub(super) fn read(input: impl Read, to: &mpsc::Sender<Vec<Line>>, mut parser: Parser) {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let mut handful = Vec::new();
    loop {
        let mut line = Vec::new();
        let read = input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        let broken = match &read {
            Err(e) => Some(format!("cannot read standard input: {e}")),
            Ok(n) if *n as u64 == MAX_LINE => Some(format!(
                "a line after job {} is longer than {MAX_LINE} bytes",
                parser.number
            )),
            Ok(_) => None,
        };
        let over = broken.is_some() || line.is_empty();
        match broken {
            Some(why) => handful.push(Line::Broken(why)),
            None if line.trim_ascii().is_empty() => {}
            None => handful.push(parser.parse(line)),
        }
        // A client that waits for a result before its next line must not wait for more lines.
        let waiting = over || handful.len() == LINES || !input.buffer().contains(&b'\n');
        if waiting && !handful.is_empty() && to.blocking_send(std::mem::take(&mut handful)).is_err()
        {
            return;
        }
        if over {
            return;
        }
    }
}

/// Writes the output that comes, and reports the number of results written.
pub(super) fn write(
    mut from: mpsc::Receiver<(Vec<u8>, u64)>,
    to: &mpsc::UnboundedSender<std::io::Result<u64>>,
) {
    let mut output = std::io::stdout().lock();
    let terminal = output.is_terminal();
    while let Some((lines, results)) = from.blocking_recv() {
        let written = match terminal {
            true => {
                output.write_all(json_for_terminal(&String::from_utf8_lossy(&lines)).as_bytes())
            }
            false => output.write_all(&lines),
        };
        let written = written.and_then(|()| output.flush());
        let failed = written.is_err();
        if to.send(written.map(|()| results)).is_err() || failed {
            return;
        }
    }
}
