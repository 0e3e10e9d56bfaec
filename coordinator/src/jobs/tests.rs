//! Job lists as they come.

use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Result<Jobs, String> {
    Jobs::read("in", text.as_bytes().to_vec(), Format::Json, 0)
}

fn one(text: &str) -> Job {
    read(text).expect(text).parse(1).expect(text)
}

#[test]
fn every_key_is_understood() {
    let job = one(
        "{\"cmd\":\"x\",\"cd\":\"d\",\"out\":\"o\",\"err\":\"e\",\"host\":[\"b[1-2]\",\"A.x\"],\"id\":12,\"env\":{\"K\":\"v\"},\
         \"stdin\":\"i\",\"timeout\":\"1m30s\",\"retries\":2,\"priority\":-5,\"slots\":4,\"name\":\"n\",\"other\":[1]}",
    );
    assert_eq!(job.spec.command, Command::Shell("x".into()));
    assert_eq!(job.hosts, Some(vec!["b1".into(), "b2".into(), "a.x".into()]));
    assert_eq!((job.priority, job.retries, job.spec.timeout), (-5, Some(2), Some(Duration::from_secs(90))));
    assert_eq!((job.spec.label.as_deref(), job.spec.env), (Some("12"), vec![("K".into(), "v".into())]));
    assert_eq!(one("{\"cmd\":\"x\",\"timeout\":0.5}").spec.timeout, Some(Duration::from_millis(500)));
    assert_eq!(one("{\"argv\":[\"a\",\"b c\"]}").spec.command, Command::Argv(vec!["a".into(), "b c".into()]));
}

#[test]
fn bakaparas_format_gives_meaning_to_five_keys_only() {
    let text = "{\"cmd\":\"x\",\"argv\":1,\"timeout\":\"never\",\"after\":[],\"host\":{\"h1\":1}}";
    let jobs = Jobs::read("in", text.as_bytes().to_vec(), Format::Bakapara, 0).expect("unknown keys are echoed");
    assert_eq!(jobs.parse(1).expect("a job").hosts, Some(vec!["h1".into()]));
}

#[test]
fn places_count_lines_and_characters() {
    let said = read("{\"cmd\": \"x\"}\n\n  {\"名\": \"東京\", \"cmd\": 3}\n").expect_err("wrong");
    assert_eq!(said, "in:3:22: key \"cmd\": must be a string, not a number");
    let said = read("[\n{\"cmd\": \"x\"},\n {\"cmd\": null}]").expect_err("wrong");
    assert_eq!(said, "in:3:10: key \"cmd\": must be a string, not null");
    let said = Jobs::read("in", b"{\"cmd\": \"\xff\"}".to_vec(), Format::Json, 0).expect_err("wrong");
    assert_eq!(said, "in:1:10: not UTF-8 text");
}

#[test]
fn many_errors_are_counted_not_listed() {
    let said = read(&"{}\n".repeat(50)).expect_err("wrong");
    assert_eq!(said.lines().count(), MAX_SHOWN + 1);
    assert!(said.ends_with("and 30 more errors"), "{said}");
}

#[test]
fn a_repeated_key_is_pythons_last_one() {
    assert_eq!(one("{\"cmd\":\"first\",\"cmd\":\"last\"}").spec.command, Command::Shell("last".into()));
}

#[test]
fn python_writes_strings_like_this() {
    let mut out = Vec::new();
    write_json(&mut out, "{\"a\":\"\\u6771\u{4eac}\\/\\n\u{1f600}\u{7f}\",\"n\" : [1.50 ,-0,1E3]}", true);
    let expected = "{\"a\": \"\\u6771\\u4eac/\\n\\ud83d\\ude00\\u007f\", \"n\": [1.50, -0, 1E3]}";
    assert_eq!(String::from_utf8(out).expect("ASCII"), expected);
}

proptest! {
    #[test]
    fn no_input_panics(text in "[\\[\\]{}\":, a-z0-9\\\\\n\u{e9}]{0,80}") {
        for format in [Format::Json, Format::Bakapara, Format::Lines] {
            let _ = Jobs::read("in", text.clone().into_bytes(), format, 0);
        }
    }

    #[test]
    fn rewriting_json_keeps_its_value(value in json()) {
        let text = serde_json::to_string_pretty(&value).expect("written");
        for ascii in [false, true] {
            let mut out = Vec::new();
            write_json(&mut out, &text, ascii);
            prop_assert!(!out.contains(&b'\n'));
            prop_assert_eq!(&serde_json::from_slice::<serde_json::Value>(&out).expect("JSON"), &value);
        }
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        ".{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            proptest::collection::vec((".{0,6}", inner), 0..5)
                .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
        ]
    })
}

#[test]
fn a_job_that_no_engine_could_read_is_answered_before_it_starts() {
    let job = |words: usize| format!("{{\"argv\": [\"true\"{}]}}\n", ", \"ab\"".repeat(words));
    let stillborn = |words| read(&job(words)).expect("a list").submission(1).expect("there").stillborn;
    assert_eq!(stillborn(50_000), None);
    let why = stillborn(110_000).expect("it cannot run");
    assert!(why.contains("too many words"), "{why}");
}
