//! The article's run: 12 hosts of 4 slots, 100 times `sleep 10` (or as many seconds as the argument
//! says). Prints the wall time of the `run` process, and how long the agents took to connect.

use mezcal_tests::cluster::Cluster;
use std::time::{Duration, Instant};

fn main() {
    let seconds = std::env::args().nth(1).unwrap_or_else(|| "10".into());
    let mut cluster = Cluster::new(12, 4);
    cluster.start_agents();
    // Long enough for every agent to have reached its longest pause between two attempts.
    std::thread::sleep(Duration::from_secs(5));
    cluster.start_coordinator();
    let listening = Instant::now();
    while cluster
        .log_text("coordinator")
        .matches("agent connected")
        .count()
        < 12
    {
        std::thread::sleep(Duration::from_millis(2));
    }
    println!(
        "12 agents connected {:.3} s after the coordinator listened",
        listening.elapsed().as_secs_f64()
    );
    std::fs::write(
        cluster.path("jobs.json"),
        format!("{{\"cmd\": \"sleep {seconds}\"}}\n").repeat(100),
    )
    .expect("written");
    let begin = Instant::now();
    let out = cluster.run(&[
        "run",
        "-p",
        "mezcal",
        "jobs.json",
        "-o",
        "results.json",
        "-q",
    ]);
    println!(
        "100 x sleep {seconds} on 12 hosts x 4 slots: {:.3} s, {}",
        begin.elapsed().as_secs_f64(),
        out.status
    );
    cluster.finish();
}
