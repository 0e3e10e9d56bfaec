//! What one placement costs the scheduler, by the number of queued jobs, hosts and sets of
//! preferred hosts: it should not grow with any.
//!
//! `placement` prints nanoseconds per round of one report, one acknowledgement and one pull that is
//! served, medians of five, for jobs that each prefer three random hosts; `placement JOBS HOSTS`
//! does one. `instructions` counts instructions, where the machine is noisy.

use mezcal_tests::placement::Placing;
use std::time::Instant;

const ROUNDS: usize = 20_000;

fn main() {
    let args: Vec<usize> = std::env::args()
        .skip(1)
        .map(|a| a.parse().expect("numbers: JOBS HOSTS"))
        .collect();
    if let [jobs, hosts] = args.as_slice() {
        let (nanoseconds, local) = measure(*jobs, *hosts);
        println!("{jobs} jobs, {hosts} hosts: {nanoseconds:.0} ns, {local:.1} % local");
        return;
    }
    for (jobs, hosts) in [
        (50_000, 10),
        (100_000, 10),
        (1_000_000, 10),
        (100_000, 100),
        (100_000, 1000),
        (100_000, 10_000),
        (1_000_000, 10_000),
    ] {
        let mut times: Vec<(f64, f64)> = (0..5).map(|_| measure(jobs, hosts)).collect();
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        println!(
            "{jobs:>9} jobs {hosts:>6} hosts: {:>6.0} ns per placement ({:.0} to {:.0}), {:.1} % local",
            times[2].0, times[0].0, times[4].0, times[2].1
        );
    }
}

/// Nanoseconds per placement, and the percentage that was local.
fn measure(jobs: usize, hosts: usize) -> (f64, f64) {
    let mut placing = Placing::new(hosts);
    placing.submit(jobs, true);
    placing.begin();
    let begin = Instant::now();
    placing.rounds(ROUNDS);
    (
        begin.elapsed().as_nanos() as f64 / ROUNDS as f64,
        placing.local_share() * 100.0,
    )
}
