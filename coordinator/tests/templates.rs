//! Templates on the command line, and what shells see of their arguments.

use proptest::prelude::*;
use serde_json::Value;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// `coordinator run` in `dir`, with this on standard input.
fn run(dir: &Path, words: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    // Keeps profiles of the person who runs the tests out.
    command
        .arg("run")
        .args(words)
        .current_dir(dir)
        .env("XDG_CONFIG_HOME", dir.join("no-config"))
        .env_remove("MEZCAL_PROFILE");
    fed(command, input)
}

fn fed(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    // A program that refuses its command line does not read.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let out = child.wait_with_output().expect("it ends");
    writer.join().expect("written");
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Commands of the jobs that a dry run prints: `cmd`, or the words of `argv` with | between.
fn commands(out: &Output) -> Vec<String> {
    let command = |line: &str| {
        let job: Value = serde_json::from_str(line).expect("JSON");
        let word = |word: &Value| word.as_str().expect("a text").to_owned();
        match job["argv"].as_array() {
            Some(words) => words.iter().map(word).collect::<Vec<_>>().join("|"),
            None => word(&job["cmd"]),
        }
    };
    text(&out.stdout).lines().map(command).collect()
}

fn write(dir: &Path, name: &str, content: &[u8]) {
    std::fs::write(dir.join(name), content).expect("written");
}

#[test]
fn arguments_come_from_every_source() {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "ab", b"a\nb\n");
    write(dir.path(), "12", b"1\n2");
    write(dir.path(), "nul", b"x y\0z\nz\0");
    write(dir.path(), "table", b"name\tage\nann b\t3\nbob\t4\n");
    write(dir.path(), "dos", b"\xef\xbb\xbfname,age\r\nann,3\r\n\r\n");
    let input: &[u8] = b"p q\nr\n";
    let rows: [(&[&str], &str); 24] = [
        (&["echo {}", ":::", "a", "b c"], "echo a;echo 'b c'"),
        (&["echo", "{}", ":::", "a", "b c"], "echo|a;echo|b c"),
        (&["-j2", "--", "echo", "-n", ":::", "-q"], "echo|-n|-q"),
        (&["echo", "-j2", ":::", "-j3"], "echo|-j2|-j3"),
        (&["echo {}", "::::", "ab"], "echo a;echo b"),
        (
            &["echo {}", "::::", "ab", "12"],
            "echo a 1;echo a 2;echo b 1;echo b 2",
        ),
        (
            &["echo {2}{1}", "::::", "ab", "::::+", "12"],
            "echo '1''a';echo '2''b'",
        ),
        (
            &["echo {}", ":::", "a", "b", ":::+", "1", "2", ":::", "X"],
            "echo a 1 X;echo b 2 X",
        ),
        (&["-a", "ab", "echo {}"], "echo a;echo b"),
        (&["-a", "ab", "echo", ":::", "1"], "echo a 1;echo b 1"),
        (&["-a", "-", "echo {}"], "echo 'p q';echo r"),
        (&["echo {}", "::::", "-"], "echo 'p q';echo r"),
        (&["-0", "echo {}"], "echo 'p q\nr\n'"),
        (&["-0", "-a", "nul", "echo {}"], "echo 'x y';echo 'z\nz'"),
        (&["--array", "1-5:2", "./go"], "./go 1;./go 3;./go 5"),
        (
            &["--array", "1-2", "go {1} {2}", ":::", "a"],
            "go 1 a;go 2 a",
        ),
        (
            &[
                "--colsep",
                "\\t",
                "--header",
                "echo {name} {2}",
                "::::",
                "table",
            ],
            "echo 'ann b' 3;echo bob 4",
        ),
        (
            &["--header", ":", "-C", "\\t", "echo {age}", "::::", "table"],
            "echo 3;echo 4",
        ),
        (
            &["--header", "echo {x}-{y}", ":::", "x", "1", ":::", "y", "2"],
            "echo 1-'2'",
        ),
        (
            &["--header", "-C,", "go {age} {name}", "::::", "dos"],
            "go 3 ann",
        ),
        (
            &["-C,", "go {2} {1}", "::::", "dos"],
            "go age name;go 3 ann",
        ),
        (
            &["-N2", "mv", "{1}", "{2}", ":::", "a", "b", "c"],
            "mv|a|b;mv|c|",
        ),
        (
            &["-N", "2", "echo", "-n", ":::", "a", "b", "c"],
            "echo|-n|a|b;echo|-n|c",
        ),
        (
            &["gzip -9 {} > {/.}.gz # {x}", ":::", "d/a b.c"],
            "gzip -9 'd/a b.c' > 'a b'.gz # {x}",
        ),
    ];
    for (words, expected) in rows {
        let words = [&["--dry-run", "-q"], words].concat();
        let out = run(dir.path(), &words, input);
        assert_eq!(
            out.status.code(),
            Some(0),
            "{words:?}: {}",
            text(&out.stderr)
        );
        assert_eq!(commands(&out).join(";"), expected, "{words:?}");
        assert_eq!(text(&out.stderr), "", "{words:?}");
    }
}

#[test]
fn mistakes_are_named_with_their_place() {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "ab", b"a\nb\n");
    write(dir.path(), "short", b"a,b\nc\n");
    write(dir.path(), "nul", b"a\nb\0c\n");
    let rows: [(&[&str], &str); 30] = [
        (
            &["gzip {}", "-j4", ":::", "a"],
            "options go before the template",
        ),
        (&["gzip {}", "x", ":::", "a"], "as one word, or none of it"),
        (&[":::", "a"], "there is no template"),
        (&["", ":::", "a"], "word 1 of the template is empty"),
        (&["-a", "ab"], "there is no template"),
        (&["echo {}"], "coordinator run 'echo {}' ::: ARGUMENT…"),
        (
            &["echo {}"],
            "printf '%s\\n' 'echo {}' | coordinator run --lines -",
        ),
        (&["gzip", "-9", "{}"], "`gzip -9 {} ::: ARGUMENT…`"),
        (&["-N0", "echo", ":::", "a"], "0 is not in 1..=100000"),
        (
            &["echo", ":::", "a", "b", ":::+", "1"],
            "argument 2 of `:::` number 1: it has no counterpart in `:::` number 2",
        ),
        (
            &["echo", "::::", "ab", ":::+", "1"],
            "ab:2: it has no counterpart",
        ),
        (&["echo", ":::+", "1"], "begin with `:::`"),
        (&["echo", "::::"], "`::::` has no file after it"),
        (
            &["echo", "::::", "none"],
            "cannot read the arguments in none",
        ),
        (
            &["--colsep", ",", "echo {2}", "::::", "short"],
            "short:2: 1 column, and the template has {2}, column 2",
        ),
        (&["echo {}", "::::", "nul"], "nul:2: a NUL byte"),
        (
            &["echo {2}", ":::", "a"],
            "{2} in the template: a job has 1 argument at most",
        ),
        (
            &["echo `ls {}`", ":::", "a"],
            "character 10 of the template: {} stands in `…`",
        ),
        (&["-0", "echo", ":::", "a"], "-a - reads standard input"),
        (
            &["echo", "::::", "-", "-"],
            "two sources are standard input",
        ),
        (
            &["--lines", "echo", ":::", "a"],
            "--lines is for a job list",
        ),
        (
            &["--stream", "echo {}", ":::", "a"],
            "--stream is for a job list",
        ),
        (
            &["--stream", "--array", "1-2", "echo"],
            "--stream is for a job list",
        ),
        (
            &["--stream", "-a", "ab", "echo"],
            "--stream is for a job list",
        ),
        (&["echo {}", "-a", "ab"], "options go before the template"),
        (
            &["echo {}", "--array", "1-2"],
            "options go before the template",
        ),
        (&["--header", "ab"], "--header is for a template"),
        (
            &["--header", "echo {nam}", ":::", "name", "x"],
            "{nam} in the template: no column is called so; is {name} meant?",
        ),
        (
            &["--header", "echo", "{Name}", ":::", "name", "x"],
            "is {name} meant?",
        ),
        (&["--array", "9-1", "echo"], "goes from 9 down to 1"),
    ];
    for (words, said) in rows {
        let out = run(dir.path(), words, b"");
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{words:?}: {stderr}");
        assert!(stderr.contains(said), "{words:?}: {stderr}");
        assert_eq!(text(&out.stdout), "", "{words:?}");
    }
}

#[test]
fn no_file_with_arguments_is_written_and_results_are_as_private_as_they() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    write(dir, "arguments", b"a\n");
    write(dir, "others", b"b\n");
    for words in [
        &["-a", "arguments", "-o", "arguments", "--force", "echo"][..],
        &[
            "-a",
            "others",
            "-a",
            "arguments",
            "-o",
            "./arguments",
            "--force",
            "echo",
        ],
        &["-l", "arguments", "echo", "::::", "others", "arguments"],
        &[
            "-o",
            "arguments",
            "--force",
            "echo",
            ":::",
            "x",
            "::::+",
            "arguments",
        ],
    ] {
        let out = run(dir, words, b"");
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{words:?}: {said}");
        assert!(said.contains("arguments is the input, too"), "{said}");
        let kept = std::fs::read(dir.join("arguments")).expect("readable");
        assert_eq!(kept, b"a\n", "{words:?}");
    }
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(dir.join("arguments"), private).expect("it is ours");
    let words = [
        "-q",
        "-a",
        "others",
        "-a",
        "arguments",
        "-o",
        "results",
        "true",
    ];
    let out = run(dir, &words, b"");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let mode = std::fs::metadata(dir.join("results"))
        .expect("written")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn without_arguments_nothing_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "empty", b"");
    write(dir.path(), "header", b"x\n");
    let rows: [&[&str]; 6] = [
        &["touch ran", ":::"],
        &["touch ran", "::::", "empty"],
        &["-0", "touch ran"],
        &["-a", "-", "touch ran"],
        &["touch ran {2}", ":::", "a", ":::"],
        &["--header", "touch {x}", "::::", "header"],
    ];
    for words in rows {
        let out = run(dir.path(), words, b"");
        assert_eq!(
            out.status.code(),
            Some(0),
            "{words:?}: {}",
            text(&out.stderr)
        );
        assert!(text(&out.stderr).contains("nothing was run"), "{words:?}");
        assert_eq!(text(&out.stdout), "", "{words:?}");
    }
    assert!(!dir.path().join("ran").exists());
}

#[test]
fn a_job_list_means_what_it_did() {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "jobs", b"{\"cmd\": \"echo a\"}\n");
    write(dir.path(), "lines", b"echo a\0");
    write(dir.path(), "a {list", b"{\"cmd\": \"echo a\"}\n");
    let rows: [&[&str]; 6] = [
        &["jobs", "-q", "-j2"],
        &["-q", "a {list"],
        &["lines", "--lines", "-0", "-q"],
        &["-0", "lines", "--lines", "-q"],
        &["-q", "-i", "jobs"],
        &["-q", "--", "jobs"],
    ];
    for words in rows {
        let out = run(dir.path(), words, b"");
        assert_eq!(
            out.status.code(),
            Some(0),
            "{words:?}: {}",
            text(&out.stderr)
        );
        let line: Value = serde_json::from_slice(&out.stdout).expect("a result");
        assert_eq!(line["result"]["stdout_tail"], "a\n", "{words:?}");
        assert_eq!(line.get("args"), None, "{words:?}");
    }
    let out = run(dir.path(), &["--dry-run", "--lines", "-0", "lines"], b"");
    assert_eq!(text(&out.stdout), "{\"cmd\": \"echo a\"}\n");
    let args =
        b"{\"cmd\": \"ls\", \"args\": [\"-l\"]}\n{\"cmd\": \"f 'a b'\", \"args\": [\"a b\"]}\n";
    let out = run(dir.path(), &["--dry-run"], args);
    assert_eq!(out.stdout, args);
    let said = text(&out.stderr);
    assert!(
        said.contains("\"args\" in 1 job means nothing; is \"argv\" meant?"),
        "{said}"
    );
}

#[test]
fn results_have_the_arguments_and_resume_by_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let arguments = [":::", "it's", "b", "c d"];
    let start = |options: &[&str], template: &str| {
        let words = [options, &["-q", "-o", "r.jsonl", template], &arguments].concat();
        run(dir.path(), &words, b"").status.code()
    };
    let results = || -> Vec<(String, i64)> {
        let lines = std::fs::read_to_string(dir.path().join("r.jsonl")).expect("readable");
        let mut all: Vec<_> = lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
            .map(|job| {
                (
                    job["args"].to_string(),
                    job["result"]["code"].as_i64().expect("a code"),
                )
            })
            .collect();
        all.sort();
        all
    };
    let template = "echo {#} {} >> ran; [ {} != b ] || [ -e good ]";
    assert_eq!(start(&[], template), Some(1));
    let expected = |code| {
        [("[\"b\"]", code), ("[\"c d\"]", 0), ("[\"it's\"]", 0)]
            .map(|(args, code)| (args.to_owned(), code))
    };
    assert_eq!(results(), expected(1));
    write(dir.path(), "good", b"");
    assert_eq!(start(&["--resume"], template), Some(0));
    assert_eq!(results(), expected(0));
    let ran = std::fs::read_to_string(dir.path().join("ran")).expect("readable");
    let mut ran: Vec<&str> = ran.lines().collect();
    ran.sort_unstable();
    assert_eq!(ran, ["1 it's", "2 b", "2 b", "3 c d"]);
    // A results file, and what a dry run prints, are job lists of the same jobs.
    let printed = run(
        dir.path(),
        &[&["--dry-run", template][..], &arguments].concat(),
        b"",
    );
    let again = run(
        dir.path(),
        &["-q", "-o", "r.jsonl", "--resume"],
        &printed.stdout,
    );
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    let now = std::fs::read_to_string(dir.path().join("ran")).expect("readable");
    assert_eq!(now.lines().count(), 4, "nothing runs again");
}

#[test]
fn the_slot_counts_from_one() {
    let dir = tempfile::tempdir().expect("a directory");
    for template in [
        &["echo {%} '{%}' \"{%}\""][..],
        &["printf", "%s %s ", "{%}", "{%}"],
    ] {
        let words = [&["-q", "-j1"], template, &[":::", "a"]].concat();
        let out = run(dir.path(), &words, b"");
        let line: Value = serde_json::from_slice(&out.stdout).expect("a result");
        let wrote = line["result"]["stdout_tail"].as_str().expect("a text");
        assert!(wrote.starts_with("1 1 "), "{line}");
    }
}

/// Templates that write their argument with a NUL byte after it, in all quotes.
const WRITERS: [&str; 17] = [
    "printf '%s\\0' \\\n {}",
    "true \\\n# it's\nprintf '%s\\0' {}",
    "printf '%s\\0' \\\n\"$(printf %s '{}' \\\n; echo .)\" | tr -d '\\n' | sed 's/[.]\\x00/\\x00/'",
    "printf '%s\\0' {}",
    "printf '%s\\0'",
    "printf '%s\\0' {1}",
    "printf '%s\\0' '{}'",
    "printf '%s\\0' \"{}\"",
    "printf '%s\\0' ''{}\"\"",
    "x={}; printf '%s\\0' \"$x\"",
    "x=\"{}\"; printf '%s\\0' \"${x}\"",
    "e=; printf '%s\\0' $e{} # a comment",
    "e=; printf '%s\\0' \"$e{}\"",
    "(printf '%s\\0' '{}')",
    "if true; then\n printf '%s\\0' {}; fi",
    "printf '%s\\0' \"$(printf %s '{}'; echo .)\" | tr -d '\\n' | sed 's/[.]\\x00/\\x00/'",
    "printf '%s\\0' \"$(printf %s \"{}\")\"",
];

/// One that only bash knows.
const OF_BASH: &str = "printf '%s\\0' $'{}'";

/// The start of nearly all that a shell reads as something else.
const HOSTILE: [&[u8]; 30] = [
    b"'",
    b"\"",
    b"\\",
    b"$",
    b"`",
    b"$(echo x)",
    b"`echo x`",
    b"\n",
    b" ",
    b"\t",
    b"#",
    b";",
    b"&",
    b"|",
    b"<",
    b">",
    b"(",
    b")",
    b"{}",
    b"{a,b}",
    b"*",
    b"?",
    b"~",
    b"!",
    b"=",
    b"-",
    b"a",
    b"%s",
    "\u{e9}".as_bytes(),
    b"\xe9",
];

/// What a shell writes that runs the jobs one after the other.
fn written(dir: &Path, shell: &str, template: &str, arguments: &[Vec<u8>]) -> Vec<u8> {
    let mut input = arguments.join(&0);
    input.push(0);
    let out = run(dir, &["--dry-run", "-q", "-0", template], &input);
    assert_eq!(
        out.status.code(),
        Some(0),
        "{template}: {}",
        text(&out.stderr)
    );
    let mut script = Vec::new();
    for line in text(&out.stdout).lines() {
        // A byte that is no text is a lone surrogate in JSON, which serde_json refuses.
        let marked = line.replace("\\udce9", "\\u0000");
        let job: Value = serde_json::from_str(&marked).expect("JSON");
        let command = job["cmd"].as_str().expect("a text");
        script.extend(command.bytes().map(|b| if b == 0 { 0xe9 } else { b }));
        script.push(b'\n');
    }
    let mut command = Command::new(shell);
    command
        .args(["-c", "eval \"$(cat; echo :)\""])
        .current_dir(dir);
    command.env("LC_ALL", "C.UTF-8");
    let out = fed(command, &script);
    assert_eq!(text(&out.stderr), "", "{template}");
    out.stdout
}

fn arrives(dir: &Path, shell: &str, template: &str, arguments: &[Vec<u8>]) {
    let mut expected = Vec::new();
    for argument in arguments {
        // The text of `$(…)` ends before the line ends at its end.
        let cut = template.contains("\"$(printf %s \"{}\")\"");
        let end = argument.iter().rposition(|b| !cut || *b != b'\n');
        expected.extend_from_slice(&argument[..end.map_or(0, |end| end + 1)]);
        expected.push(0);
    }
    if template.contains("tr -d") {
        expected.retain(|b| *b != b'\n');
    }
    let found = written(dir, shell, template, arguments);
    let differs = found
        .split(|b| *b == 0)
        .zip(expected.split(|b| *b == 0))
        .find(|(a, b)| a != b);
    assert!(
        found == expected,
        "{shell} {template}: {:?}",
        differs.map(|(a, b)| (text(a), text(b)))
    );
}

#[test]
fn shells_see_every_pair_of_special_characters_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut arguments: Vec<Vec<u8>> = HOSTILE.iter().map(|one| one.to_vec()).collect();
    for one in HOSTILE {
        arguments.extend(HOSTILE.iter().map(|other| [one, other].concat()));
    }
    for template in WRITERS {
        arrives(dir.path(), "bash", template, &arguments);
        arrives(dir.path(), "sh", template, &arguments);
    }
    arrives(dir.path(), "bash", OF_BASH, &arguments);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shells_see_arguments_as_they_are(
        arguments in prop::collection::vec(
            prop::collection::vec(prop::sample::select(&HOSTILE[..]), 1..12).prop_map(|parts| parts.concat()),
            100,
        )
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        for template in WRITERS {
            arrives(dir.path(), "bash", template, &arguments);
        }
        arrives(dir.path(), "bash", OF_BASH, &arguments);
    }
}

#[test]
fn no_line_that_goes_on_hides_what_surrounds_an_argument() {
    let dir = tempfile::tempdir().expect("a directory");
    for (template, argument) in [
        ("x=1 ;\\\n#'\necho {}", "$(touch PWNED)"),
        ("echo \"$\\\n(echo {})\"", "\"; touch PWNED; \""),
        ("echo \"$\\\n(echo {})\"", "x; touch PWNED"),
        (
            "echo \"$(ca\\\nse x in x) echo {};; esac)\"",
            "x; touch PWNED",
        ),
        ("cat <\\\n<E >/dev/null\n'\nE\necho {}", "x; touch PWNED; '"),
        ("echo $\\\n[1+{}]", "a[$(touch PWNED)]"),
        ("echo $(\\\n(1+{}))", "a[$(touch PWNED)]"),
        ("(\\\n(x=1+{}))", "a[$(touch PWNED)]"),
    ] {
        let out = run(dir.path(), &["-q", template, ":::", argument], b"");
        let said = text(&out.stderr);
        assert!(!dir.path().join("PWNED").exists(), "{template}");
        assert_eq!(out.status.code(), Some(2), "{template}: {said}");
        assert!(
            said.contains("a backslash at the end of a line"),
            "{template}: {said}"
        );
    }
    let known = "true \\\n# it's\necho {}";
    let out = run(dir.path(), &["-q", known, ":::", "$(touch PWNED)"], b"");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(!dir.path().join("PWNED").exists());
}

#[test]
fn what_bash_may_read_in_two_ways_is_refused_before_a_place() {
    let dir = tempfile::tempdir().expect("a directory");
    for (template, argument) in [
        ("echo >&{}", "$(touch PWNED)"),
        ("echo >& \"{}\"", "$(touch PWNED)"),
        ("echo $(date)#'\n{}'", "$(touch PWNED)"),
        ("x=(a b)#'\n{}'", "$(touch PWNED)"),
        (
            "while [[ $l =~ ^(#.*)$ ]]; do break; done; printf 'a\n' {} \"it's\"",
            "$(touch PWNED)",
        ),
        (
            "[[ $l =~ ^(#|$) ]] && printf '%s\n%s' {} \"it's\"",
            "$(touch PWNED)",
        ),
        ("rm -f !(#*) \"\n\" {} \"it's\"", "$(touch PWNED)"),
        ("# C:\\\n# it's\necho {}", "$(touch PWNED)"),
        ("a[1 #'\n{}']=x", "a[$(touch PWNED)]"),
        ("a[1|{}]=x", "a[$(touch PWNED)]"),
        ("a[1&{}]=x", "a[$(touch PWNED)]"),
        ("a=([1|{}]=x)", "a[$(touch PWNED)]"),
        ("RANDOM={}", "a[$(touch PWNED)]"),
        ("\\let x={}", "a[$(touch PWNED)]"),
        ("declare -a x={}", "([$(touch PWNED)]=1)"),
    ] {
        let out = run(dir.path(), &["-q", template, ":::", argument], b"");
        let said = text(&out.stderr);
        assert!(!dir.path().join("PWNED").exists(), "{template}");
        assert_eq!(out.status.code(), Some(2), "{template}: {said}");
    }
}

#[test]
fn a_script_of_another_shell_causes_a_warning() {
    let dir = tempfile::tempdir().expect("a directory");
    let words = ["--dry-run", "sh", "-c", "echo {}", ":::", "a"];
    let out = run(dir.path(), &words, b"");
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{said}");
    assert!(said.contains("becomes part of a script"), "{said}");
    assert_eq!(commands(&out), ["sh|-c|echo a"]);
}

#[test]
fn a_dry_run_prints_what_options_say_about_jobs() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = ["--dry-run", "--timeout", "1m30s", "--retries", "2"];
    let rows: [(&[&str], &str); 4] = [
        (
            &["echo {}", ":::", "a"],
            r#"{"cmd": "echo a", "args": ["a"], "timeout": 90, "retries": 2}"#,
        ),
        (
            &["echo", "{}", ":::", "a"],
            r#"{"argv": ["echo", "a"], "args": ["a"], "timeout": 90, "retries": 2}"#,
        ),
        (
            &["--lines", "-"],
            r#"{"cmd": "{\"cmd\": \"x\"}", "timeout": 90, "retries": 2}"#,
        ),
        // A job list may say it for each job.
        (&["-"], r#"{"cmd": "x"}"#),
    ];
    for (words, expected) in rows {
        let words = [&options, words].concat();
        let out = run(dir.path(), &words, b"{\"cmd\": \"x\"}\n");
        assert_eq!(text(&out.stdout), format!("{expected}\n"), "{words:?}");
        let read = run(dir.path(), &["--dry-run"], &out.stdout);
        assert_eq!(read.stdout, out.stdout, "{}", text(&read.stderr));
    }
}

#[test]
fn no_argument_is_evaluated() {
    let dir = tempfile::tempdir().expect("a directory");
    for template in [
        "[[ 1 -eq {} ]]",
        "[[ '{}' -lt 2 ]]",
        "let x={}",
        "arr[{}]=1",
        "arr=([{}]=1)",
        "[[ -v {} ]]",
        "test -v {}",
        "declare -i x={}",
        "printf -v {} x",
        "unset {}",
        "read {} <<< x",
    ] {
        let words = ["-q", template, ":::", "a[$(touch PWNED)]"];
        let out = run(dir.path(), &words, b"");
        let said = text(&out.stderr);
        assert!(!dir.path().join("PWNED").exists(), "{template}");
        assert_eq!(out.status.code(), Some(2), "{template}: {said}");
        assert!(
            said.contains("job 1 of the template: {} stands in arithmetic or in the name"),
            "{template}: {said}"
        );
    }
}

#[test]
fn programs_without_a_shell_see_arguments_as_they_are() {
    let dir = tempfile::tempdir().expect("a directory");
    let arguments: Vec<Vec<u8>> = HOSTILE.iter().map(|one| one.to_vec()).collect();
    let mut input = arguments.join(&0);
    input.push(0);
    let words = ["-q", "-k", "-0", "printf", "%s|%s", "{}", "x{}"];
    let out = run(dir.path(), &words, &input);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let lines = text(&out.stdout);
    for (line, argument) in lines.lines().zip(&arguments) {
        let line: Value = serde_json::from_str(&line.replace("\\udce9", "\u{fffd}")).expect("JSON");
        let argument = text(argument);
        assert_eq!(
            line["result"]["stdout_tail"],
            format!("{argument}|x{argument}"),
            "{line}"
        );
    }
    assert_eq!(lines.lines().count(), arguments.len());
    // The words of a template may be of any bytes, too.
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    let word = std::ffi::OsString::from_vec(b"caf\xe9".to_vec());
    command
        .args(["run", "--dry-run", "echo"])
        .arg(word)
        .args([":::", "a"]);
    let out = fed(command, b"");
    assert_eq!(
        text(&out.stdout),
        "{\"argv\": [\"echo\", \"caf\\udce9\", \"a\"], \"args\": [\"a\"]}\n"
    );
}
