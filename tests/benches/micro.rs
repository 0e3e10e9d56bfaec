//! The clock's side of `micro`: `cargo bench -p mezcal-tests`. Times are of one thing: a job, a
//! placement, a line.

use divan::Bencher;
use divan::counter::ItemsCount;
use mezcal_tests::micro::{CASES, COUNT, Case, measured};

fn main() {
    divan::main();
}

/// Each piece of work on [`COUNT`] things.
#[divan::bench(args = CASES)]
fn of_a_thousand(bencher: Bencher, case: &Case) {
    bencher
        .counter(ItemsCount::new(COUNT))
        .with_inputs(case.prepare)
        .bench_local_refs(|work| measured(work));
}
