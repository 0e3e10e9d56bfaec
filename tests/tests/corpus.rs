//! The inputs that the fuzzers have found interesting, tried again without the fuzzers.

use std::path::Path;

fn each(target: &str, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let files: Vec<_> = std::fs::read_dir(&dir)
        .expect("a corpus")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(
        files.len() > 20,
        "{} holds {} files",
        dir.display(),
        files.len()
    );
    for file in files {
        println!("{}", file.display());
        check(&std::fs::read(&file).expect("readable"));
    }
}

#[test]
fn frames() {
    each("frames", mezcal_tests::fuzz::frames);
}

#[test]
fn job_files() {
    each("job_file", mezcal_tests::fuzz::job_file);
}
