//! Tests of reading job lists.

use super::*;
use mezcal_common::message::client::RetryOn;
use mezcal_common::model::job::MAX_ARG_STRLEN;
use proptest::prelude::*;
use std::time::Duration;

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
    assert_eq!(
        job.hosts,
        Some(vec!["b1".into(), "b2".into(), "a.x".into()])
    );
    assert_eq!(
        (job.priority, job.retries, job.spec.timeout),
        (-5, Some(2), Some(Duration::from_secs(90)))
    );
    assert_eq!(
        (job.spec.label.as_deref(), job.spec.env),
        (Some("12"), vec![("K".into(), "v".into())])
    );
    assert_eq!(
        one("{\"cmd\":\"x\",\"timeout\":0.5}").spec.timeout,
        Some(Duration::from_millis(500))
    );
    assert_eq!(
        one("{\"argv\":[\"a\",\"b c\"]}").spec.command,
        Command::Argv(vec!["a".into(), "b c".into()])
    );
}

#[test]
fn bakaparas_format_gives_meaning_to_five_keys_only() {
    let text = "{\"cmd\":\"x\",\"argv\":1,\"timeout\":\"never\",\"after\":[],\"host\":{\"h1\":1}}";
    let jobs = Jobs::read("in", text.as_bytes().to_vec(), Format::Bakapara, 0)
        .expect("unknown keys are echoed");
    assert_eq!(jobs.parse(1).expect("a job").hosts, Some(vec!["h1".into()]));
}

#[test]
fn places_count_lines_and_characters() {
    let said = read("{\"cmd\": \"x\"}\n\n  {\"名\": \"東京\", \"cmd\": 3}\n").expect_err("wrong");
    assert_eq!(said, "in:3:22: key \"cmd\": must be a string, not a number");
    let said = read("[\n{\"cmd\": \"x\"},\n {\"cmd\": null}]").expect_err("wrong");
    assert_eq!(said, "in:3:10: key \"cmd\": must be a string, not null");
    let said =
        Jobs::read("in", b"{\"cmd\": \"\xff\"}".to_vec(), Format::Json, 0).expect_err("wrong");
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
    let text = b"{\"cmd\":\"first\",\"cmd\":\"last\"}".to_vec();
    let jobs = Jobs::read("in", text, Format::Bakapara, 0).expect("as Bakapara took it");
    assert_eq!(
        jobs.parse(1).expect("a job").spec.command,
        Command::Shell("last".into())
    );
}

#[test]
fn all_mistakes_of_a_list_are_told_at_once_and_in_order() {
    let long = "x".repeat(MAX_ARG_STRLEN);
    let list = [
        r#"{"cmd":"a","id":"a","after":["z","y"]}"#.to_owned(),
        r#"{"cmd":1,"timeout":"soon","retries":-1,"id":"b"}"#.to_owned(),
        r#"{"cmd":"c\u0000","id":"c","after":"a"}"#.to_owned(),
        r#"{"cmd":"d","host":[]}"#.to_owned(),
        format!(r#"{{"argv":["e","{long}"]}}"#),
        r#"{"id":"a","cmd":"f","env":{"A":"b\u0000"}}"#.to_owned(),
        r#"{"cmd":"g","id":"g","after":"h"}"#.to_owned(),
        r#"{"cmd":"h","id":"h","after":"g"}"#.to_owned(),
        r#"{"cmd":"i","memory":"50M","gpus":1}"#.to_owned(),
        r#"{"cmd":"j","c\u006dd":"j","x_mine":{"a":1,"a":2},"env":{"A":"1","A":"2"}}"#.to_owned(),
    ];
    let said = read(&list.join("\n")).expect_err("wrong");
    let said: Vec<&str> = said.lines().collect();
    let wanted = [
        ("in:1:29: ", "there is no job \"z\""),
        ("in:1:29: ", "there is no job \"y\""),
        ("in:2:8: ", "key \"cmd\": must be a string"),
        ("in:2:20: ", "key \"timeout\""),
        ("in:2:37: ", "key \"retries\""),
        ("in:3:8: ", "NUL byte"),
        ("in:4:19: ", "key \"host\": names no host"),
        ("in:5:9: ", "131072 bytes long"),
        ("in:6:1: ", "id \"a\" is used twice"),
        ("in:6:27: ", "NUL byte"),
        (
            "in:7:29: ",
            "comes after itself, in a circle among jobs 7, 8",
        ),
        ("in:9:21: ", "\"x_memory\""),
        ("in:9:34: ", "\"x_gpus\""),
        ("in:10:23: ", "key \"cmd\": it is there twice"),
        ("in:10:56: ", "key \"env\": \"A\" is there twice"),
    ];
    for (place, what) in wanted {
        assert!(
            said.iter()
                .any(|line| line.starts_with(place) && line.contains(what)),
            "{place}{what}\n{said:#?}"
        );
    }
    assert_eq!(said.len(), wanted.len(), "{said:#?}");
}

#[test]
fn bakaparas_list_is_taken_as_bakapara_took_it() {
    let text = "{\"cmd\":\"a\\u0000\",\"host\":[],\"memory\":1,\"timout\":2}\n";
    let jobs = Jobs::read("in", text.as_bytes().to_vec(), Format::Bakapara, 0).expect("taken");
    assert!(
        jobs.submission(1)
            .is_some_and(|job| job.stillborn.is_some())
    );
    assert!(jobs.warnings().is_empty());
}

#[test]
fn minus_zero_is_zero_wherever_a_number_is_read() {
    let jobs = read(
        r#"{"cmd":"x","id":-0,"retry_on":[-0,-9],"retries":1}
{"cmd":"y","after":-0}"#,
    )
    .expect("taken");
    assert_eq!(
        jobs.parse(1).expect("a job").retry_on,
        [RetryOn::Code(0), RetryOn::Code(-9)]
    );
    let far = read(r#"{"cmd":"y","after":123456789012345678901}"#).expect_err("no such job");
    assert!(
        far.contains("there is no job \"123456789012345678901\""),
        "{far}"
    );
}

#[test]
fn slips_are_warned_of_once_with_their_count() {
    let jobs =
        read(&"{\"cmd\":\"x\",\"timout\":1,\"x_timout\":1,\"comment\":\"mine\"}\n".repeat(3))
            .expect("taken");
    let [warning] = jobs.warnings() else {
        panic!("{:?}", jobs.warnings())
    };
    assert!(
        warning.contains("\"timout\" in 3 jobs") && warning.contains("\"timeout\""),
        "{warning}"
    );
}

#[test]
fn jobs_that_write_one_file_at_once_are_named() {
    let warning = |list: &[&str]| {
        read(&list.join("\n"))
            .expect("taken")
            .warnings()
            .first()
            .cloned()
    };
    let (a, b) = (
        r#"{"cmd":"a","id":"a","out":"log"}"#,
        r#"{"cmd":"b","err":"./log"}"#,
    );
    assert!(warning(&[a, b]).is_some_and(|said| said.contains("jobs 1 and 2 both write log")));
    let apart = [
        r#"{"cmd":"b","err":"log","after":"a"}"#,
        r#"{"cmd":"b","cd":"d","out":"log"}"#,
        r#"{"cmd":"b","host":"h1","out":"log"}"#,
        r#"{"cmd":"b","out":"log2","err":"log2"}"#,
    ];
    for apart in apart {
        assert_eq!(warning(&[a, apart]), None, "{apart}");
    }
    let chain = [
        a,
        r#"{"cmd":"m","id":"m","after":"a"}"#,
        r#"{"cmd":"b","out":"log","after":"m"}"#,
    ];
    assert_eq!(
        warning(&chain),
        None,
        "one comes after the other by way of a third"
    );
}

#[test]
fn python_writes_strings_like_this() {
    let mut out = Vec::new();
    write_json(
        &mut out,
        "{\"a\":\"\\u6771\u{4eac}\\/\\n\u{1f600}\u{7f}\",\"n\" : [1.50 ,-0,1E3]}",
        true,
    );
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
fn args_only_come_back_and_look_odd_beside_a_program_alone() {
    for (job, warned) in [
        (r#"{"cmd": "ls", "args": ["-l"]}"#, true),
        (r#"{"cmd": "f 'caf\udce9'", "args": ["caf\udce9"]}"#, false),
        (r#"{"cmd": "./a.sh", "args": ["./a.sh"]}"#, false),
        (r#"{"argv": ["f", "x"], "args": ["x"]}"#, false),
        (r#"{"cmd": "train", "args": {"seed": 7}}"#, false),
    ] {
        let jobs = read(job).expect(job);
        assert_eq!(jobs.object(1), job);
        let warnings = jobs.warnings().join("\n");
        assert_eq!(warnings.contains("is \"argv\" meant?"), warned, "{job}");
    }
}

#[test]
fn a_job_that_no_engine_could_read_is_a_mistake_of_the_list() {
    let job = |words: usize| format!("{{\"argv\": [\"true\"{}]}}\n", ", \"ab\"".repeat(words));
    assert!(read(&job(50_000)).is_ok());
    let said = read(&job(110_000)).expect_err("no engine could read it");
    assert!(said.contains("too many words"), "{said}");
}

#[test]
fn an_object_of_many_keys_is_read_as_fast_as_one_of_few() {
    let keys: String = (0..200_000).map(|n| format!("\"k{n}\":{n},")).collect();
    let text = format!("{{{keys}\"k7\":\"again\",\"\\u006b8\":\"too\"}}");
    let begin = std::time::Instant::now();
    let members = members(&text).expect("an object");
    // Comparing each key with all earlier ones would take a minute and more.
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(members.len(), 200_000);
    // The last value stands, at the first place, however the key is written.
    assert_eq!((&*members[7].0, members[7].1.get()), ("k7", "\"again\""));
    assert_eq!((&*members[8].0, members[8].1.get()), ("k8", "\"too\""));
    assert_eq!(
        (&*members[199_999].0, members[199_999].1.get()),
        ("k199999", "199999")
    );
}
