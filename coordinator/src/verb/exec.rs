//! `coordinator exec`: one command, once on each named host, with its output as it comes.

use crate::client::Remote;
use crate::client::ask;
use crate::client::beside::until;
use crate::client::context::{GRACE, absolute, current_umask};
use crate::client::names;
use crate::client::profile::ProfileArgs;
use crate::client::said::Said;
use crate::client::signals::Signals;
use crate::exit::{self, Exit};
use crate::report::notice::describe;
use clap_complete::ArgValueCompleter;
use mezcal_common::message::agent::Stream;
use mezcal_common::message::client::{BatchTerms, Selector, Submission, ToClient, ToService};
use mezcal_common::model::duration::parse_duration;
use mezcal_common::model::escape::for_terminal;
use mezcal_common::model::hosts;
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::job::{BatchContext, Capture, Command, JobSpec, Stop};
use mezcal_common::model::octets;
use mezcal_common::model::outcome::{JobResult, WaitStatus};
use mezcal_common::wire::codec;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How long commands that have begun may take to end when the others cannot run, or nobody reads
/// their output.
const GIVE_UP: Duration = Duration::from_secs(10);

/// Its two ways, when it is called as a verb of `program`.
pub(crate) fn usage(program: &str) -> String {
    format!(
        "{program} exec [OPTIONS] <HOSTS> -- <CMD>...\n       {program} exec [OPTIONS] --all -- <CMD>..."
    )
}

/// Run one command once on each named host.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Hosts or ranges: mezcal[01-12]
    #[arg(value_name = "HOSTS", required_unless_present = "all", add = ArgValueCompleter::new(names::hosts))]
    pub hosts: Option<String>,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
    /// On every connected host
    #[arg(long, conflicts_with = "hosts")]
    pub all: bool,
    /// Join the words and give them to bash
    #[arg(long)]
    pub shell: bool,
    /// Directory to run in (default: this one)
    #[arg(long, value_name = "DIR")]
    pub cd: Option<PathBuf>,
    /// Longest run
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// How long to wait for a host that is not connected
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "5m")]
    pub host_timeout: Duration,
    /// Which cluster
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Before all other jobs of the same user; before the jobs of others only as far as the
/// coordinator's `max_priority` allows.
const PRIORITY: i32 = i32::MAX;

/// Runs the verb; 0 only if the command ended with 0 on every host.
///
/// # Errors
/// [`Exit`].
pub fn run(args: &ExecArgs) -> Result<u8, Exit> {
    let (address, identity) = args.profile.remote()?;
    let hosts = args
        .hosts
        .as_deref()
        .map(hosts::expand)
        .transpose()
        .map_err(Exit::usage)?;
    let words: Vec<_> = args
        .command
        .iter()
        .map(|word| octets::text(word.as_bytes().to_vec()))
        .collect();
    let command = if args.shell {
        Command::Shell(words.join(" "))
    } else {
        Command::Argv(words)
    };
    let runtime = mezcal_common::system::runtime::start(None).map_err(Exit::usage)?;
    runtime.block_on(async {
        let signals = Signals::new()?;
        let mut remote = Remote::connect(&address, &identity).await?;
        let hosts = match hosts {
            Some(hosts) => hosts,
            None => ask::hosts(&mut remote)
                .await?
                .into_iter()
                .filter(|h| h.connected)
                .map(|h| h.name)
                .collect(),
        };
        if hosts.is_empty() {
            return Err(Exit::unreachable(format!(
                "no host is connected to the coordinator at {address}"
            )));
        }
        let mut exec = Exec::new(hosts);
        let status = exec.drive(&mut remote, signals, args, command).await?;
        remote.leave().await;
        Ok(status)
    })
}

struct Exec {
    batch: BatchId,
    hosts: Vec<String>,
    width: usize,
    /// Incomplete lines, by job and stream.
    partial: Vec<[Vec<u8>; 2]>,
    done: usize,
    failed: bool,
    /// Output can no longer be written.
    muted: bool,
}

impl Exec {
    fn new(hosts: Vec<String>) -> Self {
        let width = hosts.iter().map(|h| h.chars().count()).max().unwrap_or(0);
        let partial = hosts.iter().map(|_| [Vec::new(), Vec::new()]).collect();
        Self {
            batch: BatchId::random(),
            hosts,
            width,
            partial,
            done: 0,
            failed: false,
            muted: false,
        }
    }

    async fn drive(
        &mut self,
        remote: &mut Remote,
        mut signals: Signals,
        args: &ExecArgs,
        command: Command,
    ) -> Result<u8, Exit> {
        self.submit(remote, args, command).await?;
        let requests = remote.port.requests.clone();
        let (mut signalled, mut failure): (Option<u8>, Option<Exit>) = (None, None);
        let mut give_up = None;
        while self.done < self.hosts.len() {
            tokio::select! {
                number = signals.next() => {
                    let grace = if signalled.is_none() { GRACE } else { Duration::ZERO };
                    signalled.get_or_insert(number);
                    let _ = requests.send(self.cancel(Stop::after(grace))).await;
                }
                answer = remote.port.answers.recv() => match answer {
                    Some(answer) => match self.answer(answer, &mut signals).await {
                        Ok(Some(reply)) => {
                            let _ = requests.send(reply).await;
                        }
                        Ok(None) => {}
                        // Each request gets its own refusal; the first one has already cancelled
                        // the commands.
                        Err(_) if failure.is_some() => {}
                        Err(e) => {
                            // The output has no reader any more: end the commands, then ourselves.
                            self.muted = true;
                            failure = Some(e);
                            give_up = Some(Instant::now() + GIVE_UP);
                            let _ = requests.send(self.cancel(Stop::after(GRACE))).await;
                        }
                    },
                    None => return Err(Exit::unreachable(remote.why_lost().await)),
                },
                () = until(give_up) => break,
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        Ok(match signalled {
            Some(number) => 128 + number,
            None if self.failed => exit::FAILED,
            None => 0,
        })
    }

    /// Opens the batch and hands over a job for each host.
    async fn submit(&self, remote: &Remote, args: &ExecArgs, command: Command) -> Result<(), Exit> {
        let cd = absolute(args.cd.as_deref().unwrap_or(Path::new("")))?;
        let context = BatchContext {
            timeout: args.timeout,
            capture: Capture::Stream,
            ..BatchContext::new(self.batch, cd, current_umask())
        };
        if !codec::spec_fits(&JobSpec::new(command.clone())) {
            return Err(Exit::usage(
                "the command is too long, or has too many words; put data into files",
            ));
        }
        let requests = &remote.port.requests;
        let terms = BatchTerms {
            once: true,
            ..BatchTerms::new(context, args.host_timeout)
        };
        let _ = requests.send(ToService::Open { terms, have: 0 }).await;
        let spec = codec::encode_body(&JobSpec::new(command))
            .map_err(|e| Exit::usage(format!("the command is too long: {e}")))?;
        for (i, host) in self.hosts.iter().enumerate() {
            let job = JobNumber(i as u32 + 1);
            let hosts = Some(i as u32);
            let submission = Submission {
                hosts,
                priority: PRIORITY,
                ..Submission::new(job, spec.clone())
            };
            let message = ToService::Submit {
                batch: self.batch,
                host_sets: vec![vec![host.clone()]],
                jobs: vec![submission],
            };
            let _ = requests.send(message).await;
        }
        let _ = requests.send(ToService::Close { batch: self.batch }).await;
        Ok(())
    }

    /// Cancels the batch; the results, not the answer, show the effect.
    fn cancel(&self, stop: Stop) -> ToService {
        ToService::Cancel {
            request: 0,
            what: vec![Selector::Batch(self.batch.to_string())],
            stop,
        }
    }

    async fn answer(
        &mut self,
        answer: ToClient,
        signals: &mut Signals,
    ) -> Result<Option<ToService>, Exit> {
        let batch = self.batch;
        match Said::of(answer) {
            Some(Said::Output { job, stream, data }) => {
                self.print(job, stream, &data, signals).await?;
                Ok(Some(ToService::OutputTaken {
                    batch,
                    job,
                    bytes: data.len() as u32,
                }))
            }
            Some(Said::Results(results)) => {
                for (job, result) in results {
                    self.done += 1;
                    self.result(job, &result, signals).await?;
                }
                Ok(Some(ToService::Taken {
                    batch,
                    results: self.done as u64,
                }))
            }
            Some(Said::Notice(notice)) => {
                tell!("coordinator: {}", for_terminal(&describe(&notice)));
                Ok(None)
            }
            Some(Said::Refused(reason)) => Err(Exit::unreachable(format!(
                "the coordinator refused a request: {reason}"
            ))),
            Some(
                Said::Fleet { .. }
                | Said::Opened { .. }
                | Said::Accepted { .. }
                | Said::Hosts(..)
                | Said::Cancelled { .. },
            )
            | None => Ok(None),
        }
    }

    /// Prints whole lines, each with the host before it; a job's lines are never mixed within
    /// themselves.
    async fn print(
        &mut self,
        job: JobNumber,
        stream: Stream,
        data: &[u8],
        signals: &mut Signals,
    ) -> Result<(), Exit> {
        let index = job.0 as usize - 1;
        let Some(partial) = self.partial.get_mut(index) else {
            return Ok(());
        };
        let partial = &mut partial[usize::from(stream == Stream::Err)];
        partial.extend_from_slice(data);
        let end = match partial.iter().rposition(|b| *b == b'\n') {
            Some(end) => end + 1,
            // An endless line is printed in pieces.
            None if partial.len() >= MAX_LINE => partial.len(),
            None => return Ok(()),
        };
        let lines: Vec<u8> = partial.drain(..end).collect();
        self.write(index, stream, &lines, signals).await
    }

    /// Writes outside the loop, which keeps the connection alive while a reader takes its time.
    async fn write(
        &self,
        index: usize,
        stream: Stream,
        lines: &[u8],
        signals: &mut Signals,
    ) -> Result<(), Exit> {
        if self.muted {
            return Ok(());
        }
        let text = self.prefixed(index, stream, lines);
        let writing = tokio::task::spawn_blocking(move || match stream {
            Stream::Out => std::io::stdout()
                .write_all(&text)
                .and_then(|()| std::io::stdout().flush()),
            Stream::Err => std::io::stderr().write_all(&text),
        });
        let written = tokio::select! {
            written = writing => written.unwrap_or(Ok(())),
            // The reader holds everything up: leave. The coordinator cancels the jobs of a client
            // that vanished.
            number = signals.next() => std::process::exit(128 + i32::from(number)),
        };
        written.map_err(|e| Exit::unwritten(&e))
    }

    fn prefixed(&self, index: usize, stream: Stream, lines: &[u8]) -> Vec<u8> {
        let terminal = match stream {
            Stream::Out => std::io::stdout().is_terminal(),
            Stream::Err => std::io::stderr().is_terminal(),
        };
        let mut text = Vec::with_capacity(lines.len() * 2);
        for line in lines.split_inclusive(|b| *b == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            text.extend_from_slice(
                format!("{:<width$}: ", self.hosts[index], width = self.width).as_bytes(),
            );
            if terminal {
                text.extend_from_slice(for_terminal(&String::from_utf8_lossy(line)).as_bytes());
            } else {
                text.extend_from_slice(line);
            }
            text.push(b'\n');
        }
        text
    }

    async fn result(
        &mut self,
        job: JobNumber,
        result: &JobResult,
        signals: &mut Signals,
    ) -> Result<(), Exit> {
        let index = job.0 as usize - 1;
        for stream in [Stream::Out, Stream::Err] {
            let rest = self
                .partial
                .get_mut(index)
                .map(|p| std::mem::take(&mut p[usize::from(stream == Stream::Err)]));
            if let Some(rest) = rest.filter(|r| !r.is_empty()) {
                self.write(index, stream, &rest, signals).await?;
            }
        }
        if !result.outcome.succeeded() {
            self.failed = true;
            let how = match (&result.outcome.error, result.outcome.status) {
                (Some(error), _) => for_terminal(error).into_owned(),
                (None, Some(WaitStatus::Exited(code))) => format!("exit status {code}"),
                (None, Some(WaitStatus::Signaled(signal))) => format!("killed by signal {signal}"),
                (None, None) => result.outcome.ended.as_str().to_owned(),
            };
            tell!("{:<width$}: [{how}]", self.hosts[index], width = self.width);
        }
        Ok(())
    }
}

/// The most bytes of an incomplete line that are kept back.
const MAX_LINE: usize = 64 * 1024;
