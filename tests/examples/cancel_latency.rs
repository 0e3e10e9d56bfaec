//! How long a cancel takes, from the client's request to the acknowledgement that nothing is left,
//! and what is left then.
//!
//! `cancel_latency [ROUNDS]`: on 12 hosts of 4 slots, rounds of 48 running `sleep`s, then rounds of
//! 48 hostile jobs (about 300 processes), in both containments. Prints milliseconds, and survivors
//! as /proc has them.

use mezcal_common::message::client::{BatchTerms, Selector, Submission, ToClient, ToService};
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::job::{BatchContext, Command, JobSpec, Stop};
use mezcal_common::wire::codec;
use mezcal_coordinator::client::Remote;
use mezcal_tests::alive_with;
use mezcal_tests::cluster::Cluster;
use mezcal_tests::programs::{HOSTILE_KINDS, program};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Jobs at a time: 12 × 4.
const JOBS: usize = 48;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [containment, address, identity, kind, rounds] = args.as_slice() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        return runtime.block_on(client(
            containment,
            address,
            identity.as_ref(),
            kind,
            rounds.parse().expect("a number"),
        ));
    }
    let rounds = args.first().map_or("50", String::as_str);
    for containment in ["cgroup2", "subreaper"] {
        let cluster = Cluster::with(12, 4, containment, "10m").start();
        for (kind, rounds) in [("sleep", rounds), ("hostile", "7")] {
            let own = std::env::current_exe().expect("a program knows its path");
            let mut command = cluster.lab.command(0, &own);
            let identity: PathBuf = cluster.path("pki/users/okazaki");
            command.args([
                containment,
                &cluster.address(),
                &identity.display().to_string(),
                kind,
                rounds,
            ]);
            assert!(command.status().expect("it runs").success());
        }
        cluster.finish();
    }
}

async fn client(containment: &str, address: &str, identity: &Path, kind: &str, rounds: usize) {
    let mut remote = match Remote::connect(address, identity).await {
        Ok(remote) => remote,
        Err(e) => panic!("{}", e.message),
    };
    let mark = format!("31622{}", std::process::id());
    let hostile = program("hostile").display().to_string();
    let (mut times, mut killed, mut left, mut processes) = (Vec::new(), 0, 0, 0);
    for _ in 0..rounds {
        let batch = BatchId::random();
        let terms = BatchTerms::new(
            BatchContext::new(batch, "/".into(), 0o22),
            Duration::from_secs(60),
        );
        let jobs = (0..JOBS).map(|i| {
            let words = match kind {
                // It sleeps for as many seconds as the mark says.
                "sleep" => vec!["sleep".to_owned(), mark.clone()],
                _ => vec![
                    hostile.clone(),
                    HOSTILE_KINDS[i % HOSTILE_KINDS.len()].to_owned(),
                    mark.clone(),
                ],
            };
            let spec = codec::encode_body(&JobSpec::new(Command::Argv(words))).expect("small");
            Submission::new(JobNumber(i as u32 + 1), spec)
        });
        let requests = remote.port.requests.clone();
        let submit = ToService::Submit {
            batch,
            host_sets: vec![],
            jobs: jobs.collect(),
        };
        for message in [
            ToService::Open { terms, have: 0 },
            submit,
            ToService::Close { batch },
        ] {
            requests.send(message).await.expect("connected");
        }
        let enough = if kind == "sleep" { JOBS } else { 270 };
        while alive_with(&mark).len() < enough {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        processes += alive_with(&mark).len();
        let begin = Instant::now();
        let what = vec![Selector::Batch(batch.to_string())];
        requests
            .send(ToService::Cancel {
                request: 1,
                what,
                stop: Stop::NOW,
            })
            .await
            .expect("connected");
        let mut results = 0;
        let mut done = false;
        while !done || results < JOBS {
            match remote.port.answers.recv().await.expect("connected") {
                ToClient::Cancelled { summary, .. } => {
                    times.push(begin.elapsed());
                    left += alive_with(&mark).len();
                    assert_eq!((summary.jobs, summary.survivors), (JOBS as u64, 0));
                    killed += summary.killed;
                    done = true;
                }
                ToClient::Results {
                    batch,
                    results: more,
                }
                | ToClient::CountedResults {
                    batch,
                    results: more,
                } => {
                    results += more.len();
                    let taken = ToService::Taken {
                        batch,
                        results: results as u64,
                    };
                    requests.send(taken).await.expect("connected");
                }
                _ => {}
            }
        }
    }
    remote.leave().await;
    times.sort();
    let at =
        |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    println!(
        "{containment:>9} {kind:>7}, {rounds} rounds: median {:.1} ms, p99 {:.1} ms, longest {:.1} ms; {:.0} processes each, {:.0} killed, {left} survivors in all",
        at(0.5),
        at(0.99),
        at(1.0),
        processes as f64 / rounds as f64,
        killed as f64 / rounds as f64,
    );
}
