//! Tables: a template and arguments, and the commands that they make.

use super::*;
use std::ffi::OsString;

fn words(list: &[&str]) -> Vec<OsString> {
    list.iter().map(OsString::from).collect()
}

fn template(template: &[&str], arguments: &[&str], manner: Manner) -> Result<Template, String> {
    let source = Source::words("`:::`".into(), words(arguments));
    let texts: Vec<String> = template.iter().map(|word| (*word).to_owned()).collect();
    Template::new(&texts, Sources::new(vec![source], manner)?)
}

fn first(text: &str, argument: &str) -> Result<String, String> {
    let made = template(&[text], &[argument], Manner::default())?;
    made.check_job(1)?;
    Ok(match made.command(1) {
        Command::Shell(command) => command,
        Command::Argv(words) => words.join("|"),
    })
}

#[test]
fn shell_commands_quote_arguments_for_their_place() {
    let rows = [
        ("gzip -9 {}", "a.log", "gzip -9 a.log"),
        ("gzip -9", "a.log", "gzip -9 a.log"),
        ("gzip -9  \n", "a b", "gzip -9 'a b'"),
        ("mv {} {.}.{#}", "d/x y.c", "mv 'd/x y.c' 'd/x y'.'1'"),
        ("echo {/} {//} {/.} {..}", "d/a.b.c", "echo a.b.c d a.b d/a"),
        ("echo {1} {1/.}", "d/a.b", "echo d/a.b a"),
        ("echo '{}'", "it's", "echo 'it'\\''s'"),
        ("echo \"{}\"", "it's $(x)", "echo \"it's \\$(x)\""),
        ("echo $'{}'", "it's \\", "echo $'it\\'s \\\\'"),
        ("echo $\"{}\"", "$x", "echo $\"\\$x\""),
        (
            "echo \"$(ls '{}' \"{}\" {})\"",
            "a'b$",
            "echo \"$(ls 'a'\\''b$' \"a'b\\$\" 'a'\\''b$')\"",
        ),
        ("x={}; echo ${x%.c}", "a c", "x='a c'; echo ${x%.c}"),
        ("a{}b {}{} {1}_", "x", "a'x'b 'x''x' 'x'_"),
        (
            "$y{} $1{} \"$y{}\" \"$1{}\"",
            "x",
            "$y'x' $1'x' \"$y\"\"x\" \"$1x\"",
        ),
        ("{}>f", "2", "'2'>f"),
        // What stands beside them would change them.
        ("echo {1..{}} {-{}}", "3", "echo {1..'3'} {-'3'}"),
        ("{}=1 {}+=1 {}(a)", "x", "'x'=1 'x'+=1 'x'(a)"),
        ("echo ~-{} ~+{}", "1", "echo ~-'1' ~+'1'"),
        ("echo {}.gz d/{} --x={}", "a", "echo a.gz d/a --x=a"),
        ("arr[1+{}]=x", "5", "arr[1+5]=x"),
        (
            "f 2>&1 {} >&2; f {} >&2",
            "a b",
            "f 2>&1 'a b' >&2; f 'a b' >&2",
        ),
        ("(f >&2) && f {}", "a b", "(f >&2) && f 'a b'"),
        ("echo {} ;# it's", "a b", "echo 'a b' ;# it's"),
        (
            "\techo {} # it's\n # it's\necho {}",
            "a b",
            "\techo 'a b' # it's\n # it's\necho 'a b'",
        ),
        (
            "printf $'\\x1b[1m{} \\\\x{}'",
            "a",
            "printf $'\\x1b[1ma \\\\xa'",
        ),
        (
            "echo $(( {} * 2 )) $[{}+1]",
            "21",
            "echo $(( 21 * 2 )) $[21+1]",
        ),
        ("(cd {//} && ls {/})", "a/b c", "(cd a && ls 'b c')"),
        ("cat <<< {}", "a b", "cat <<< 'a b'"),
        (
            "echo {%} '{%}' \"{%}\"",
            "x",
            "echo $((MEZCAL_SLOT + 1)) ''$((MEZCAL_SLOT + 1))'' \"$((MEZCAL_SLOT + 1))\"",
        ),
        ("echo a#{} # what", "x y", "echo a#'x y' # what"),
        ("echo \\\\{}", "x y", "echo \\\\'x y'"),
        // Braces that are not ours.
        ("awk '{print $1}' {}", "f", "awk '{print $1}' f"),
        ("awk '{print ${}}' f", "2", "awk '{print $2}' f"),
        (
            "echo ${x} ${1} ${#} {a,b} {}",
            "f",
            "echo ${x} ${1} ${#} {a,b} f",
        ),
        (
            "echo {1..3} {01} {x} {-1} {...} { }",
            "f",
            "echo {1..3} {01} {x} {-1} {...} { } f",
        ),
        ("grep -E 'a{3,3}' {}", "f", "grep -E 'a{3,3}' f"),
        (
            "find {} -exec echo \\{} \\;",
            "d",
            "find d -exec echo \\{} \\;",
        ),
        ("echo \"${x:-{a}}\" {}", "f", "echo \"${x:-{a}}\" f"),
        ("echo '${1}' '${}'", "f", "echo '${1}' '$f'"),
        ("echo \\${}", "f", "echo \\$f"),
        (
            "case $x in a) echo '{}';; esac",
            "b'",
            "case $x in a) echo 'b'\\''';; esac",
        ),
        ("echo \\ #'\n{}'", "it's", "echo \\ #'\nit'\\''s'"),
        ("if true; then {}; fi", "time", "if true; then 'time'; fi"),
        ("[[ {} == -n ]]", "-n", "[[ '-n' == -n ]]"),
        // Lines that go on are joined before they are read.
        ("echo a \\\n {}", "x y", "echo a  'x y'"),
        ("echo a \\\n--b={}", "x y", "echo a --b='x y'"),
        ("true \\\n# it's\necho {}", "x y", "true # it's\necho 'x y'"),
        ("echo \"a \\\nb {}\"", "$x", "echo \"a b \\$x\""),
        ("echo 'a\\\n' {} # \\\n", "x y", "echo 'a\\\n' 'x y' # \\\n"),
        (
            "x={}; cat <<E\na\\\nb\nE",
            "x y",
            "x='x y'; cat <<E\na\\\nb\nE",
        ),
    ];
    for (text, argument, expected) in rows {
        assert_eq!(first(text, argument).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn places_where_nothing_can_be_quoted_are_refused() {
    let rows = [
        ("echo `ls {}`", "x", "stands in `…`"),
        ("echo \"`ls {}`\"", "x", "stands in `…`"),
        ("echo ${x:-{}}", "x", "stands in ${…}"),
        ("echo \"${x#{}}\"", "x", "stands in ${…}"),
        ("echo x # {}", "x", "stands in a comment"),
        ("cat <<E\n{}\nE", "x", "here-document"),
        ("cat <<-'E' # {\n{}\nE", "x", "here-document"),
        (
            "echo ${}",
            "x",
            "character 6 of the template: {} has a $ before it",
        ),
        ("echo \"${/.}\"", "x", "write \\$"),
        ("echo $((a[{}]))", "$(id)", "whole numbers"),
        ("echo $[a[1]+{}]", "x", "whole numbers"),
        ("((i={}))", "", "whole numbers"),
        (
            "echo \"$(case x in x) echo;; esac; echo '{}')\"",
            "x",
            "only bash itself",
        ),
        ("echo \"${x:-'}'} '{}'\"", "x", "only bash itself"),
        ("echo \"${x:-$'}'} '{}'\"", "x", "only bash itself"),
        (
            "((true # '\n); echo ' ) ; echo '{}'",
            "x",
            "only bash itself",
        ),
        (
            "echo {2}",
            "x",
            "{2} in the template: a job has 1 argument at most",
        ),
        (
            "x=1 ;\\\n#'\necho {}",
            "x",
            "a backslash at the end of a line",
        ),
        (
            "echo \"$\\\n(echo {})\"",
            "x",
            "character 8 of the template",
        ),
        ("echo {}\\\n", "x", "a backslash at the end of a line"),
        (
            "echo ${x:- \\\n} {}",
            "x",
            "a backslash at the end of a line",
        ),
        ("f >&{}", "x", "comes after >&"),
        ("f 2>& {}", "x", "comes after >&"),
        ("f >&\"a {}\"", "x", "comes after >&"),
        ("f >& \"$(echo {})\"", "x", "comes after >&"),
        ("f >& \\\n {}", "x", "comes after >&"),
        ("f >&", "x", "ends with >&"),
        ("echo $(date)#'\n{}'", "x", "comes after a #"),
        ("x=(a b)#'\n{}'", "x", "comes after a #"),
        ("f;#'\necho {}", "x", "comes after a #"),
        ("f &#'\necho {}", "x", "comes after a #"),
        ("(#'\necho {})", "x", "comes after a #"),
        ("(#'\necho)", "x", "comes after a #"),
        ("[[ $l =~ ^(#|$) ]] && echo {}", "x", "comes after a #"),
        ("[[ $l =~ a #' ]] && echo {}", "x", "comes after a #"),
        ("rm -f !(#*) {}", "x", "comes after a #"),
        ("rm -f !(a #*) {}", "x", "comes after a #"),
        ("a[1 #'\n{}']=x", "x", "comes after a #"),
        ("# C:\\\n# it's\necho {}", "x", "a comment with a backslash"),
        ("echo $'\\x{}'", "x", "comes after an escape"),
        ("echo $'\\0{}'", "x", "comes after an escape"),
        ("echo $'\\u00e{}'", "x", "comes after an escape"),
        ("echo $'\\c{}'", "x", "comes after an escape"),
        ("echo 'x", "x", "is not closed"),
        ("echo x # y", "x", "a comment"),
        ("echo x # y\n", "\nx", "a comment"),
        ("echo x\\ ", "x", "a backslash"),
        ("echo x\\", "x", "a backslash"),
        ("cat <<E\nE\n", "x", "a here-document"),
    ];
    for (text, argument, said) in rows {
        let why = first(text, argument).expect_err(text);
        assert!(why.contains(said), "{text}: {why}");
    }
}

#[test]
fn where_bash_evaluates_only_whole_numbers_can_stand() {
    let evaluated = [
        "[[ 1 -eq {} ]]",
        "[[ {} -lt 5 ]]",
        "[[ ( x == y || 1 -ge \"{}\" ) ]]",
        "[[ -n x &&\n '{}' -ne 3 ]]",
        "[[ {}\"a ]] b\" -eq 1 ]]",
        "[[ -v {} ]]",
        "let x={}",
        "builtin let 'x={}' y=1",
        "let x=1 2>&1 y={}",
        "let",
        "arr[{}]=x",
        "arr[\"{}\"]=x",
        "arr=([{}]=x)",
        "arr[1+{}]=x",
        "x=1; unset {}",
        "unset 'a[{}]'",
        "read {} <<< x",
        "declare {}",
        "declare \"a[{}]=1\"",
        "declare -i x={}",
        "f() { local -ri x; x={}; }",
        "test -v {}",
        "if [ -v \"a[{}]\" ]; then :; fi",
        "printf -v {} x",
        "printf -v 'a[{}]' x",
        "echo $(let x={})",
        "a[1|{}]=x",
        "a[1&{}]=x",
        "a[1;\n{}]=x",
        "a=([1|{}]=x)",
        "a=([ 1|{}]=x)",
        "declare -a x={}",
        "local -A x={}",
        "test -v\t{}",
        "printf\t-v\t{} x",
        "\\let x={}",
        "\"let\" x={}",
        "l'e't x={}",
        "$'let' x={}",
        "read<f {}",
        "RANDOM={}",
        "export OPTIND={}",
        "read x SRANDOM <<< {}",
        "HISTCMD+={}",
    ];
    for text in evaluated {
        let why = first(text, "a[$(id)]").expect_err(text);
        assert!(why.contains("whole numbers"), "{text}: {why}");
        assert!(first(text, "-17").is_ok(), "{text}");
        let why = first(text, "08").expect_err(text);
        assert!(why.contains("octal"), "{text}: {why}");
    }
    for text in [
        "[[ {} == x ]] && [ $x -eq 1 ]",
        "[[ '{}' == x ]]; [[ 1 -eq 1 ]] && echo {}",
        "[[ $(wc -l < {}) -gt 5 ]]",
        "[[ \"{}\" == x ]]",
        "[ 1 -eq {} ]",
        "let x=1; echo {}",
        "let x=$(f {}) y=2",
        "x=(a[1]); echo {}",
        "ls a[1-9] {}",
        "grep 'x[{}]' f",
        "export X={}",
        "export X=\"a {}\"",
        "local x=$(basename {})",
        "read x < {}",
        "read x <<< {}",
        "printf -v x %s {}",
        "test -n {}",
        "awk -v x={}",
        "outlet {}",
        "declare -r x={}",
        "test x-v {}",
        "echo $RANDOM {}",
    ] {
        assert!(first(text, "a[$(id)]").is_ok(), "{text}");
    }
    for text in ["echo $((10#{}))", "let x=10#{}", "[[ 1 -eq 10#{} ]]"] {
        assert!(first(text, "08").is_ok(), "{text}");
        assert!(first(text, "x").is_err(), "{text}");
    }
    assert!(first("echo $(({}))", "08").is_err_and(|why| why.contains("octal")));
    assert_eq!(first("echo $(({}))", "0").as_deref(), Ok("echo $((0))"));
}

#[test]
fn several_words_are_started_without_a_shell() {
    let each = |n| Manner {
        each: Some(n),
        ..Manner::default()
    };
    type Texts = &'static [&'static str];
    let rows: [(Texts, Texts, Manner, Texts); 9] = [
        (&["wc", "-l"], &["a b"], each(1), &["wc", "-l", "a b"]),
        (
            &["cp", "{}", "o/{/.}.{#}"],
            &["d/a'b.c"],
            each(1),
            &["cp", "d/a'b.c", "o/a'b.1"],
        ),
        (
            &["echo", "'{}'", "$x", "*"],
            &["a"],
            each(1),
            &["echo", "'a'", "$x", "*"],
        ),
        (
            &["echo", "{}"],
            &["a", "b c"],
            each(2),
            &["echo", "a", "b c"],
        ),
        (
            &["echo", "-n"],
            &["a", "b c"],
            each(2),
            &["echo", "-n", "a", "b c"],
        ),
        (
            &["echo", "x{}y"],
            &["1", "2", "3"],
            each(3),
            &["echo", "x1", "2", "3y"],
        ),
        (
            &["echo", "{2}{1}", "", "{3}"],
            &["a", "b"],
            each(3),
            &["echo", "ba", "", ""],
        ),
        (
            &["echo", "${1}", "\\{}", "{}"],
            &["a"],
            each(1),
            &["echo", "${1}", "\\{}", "a"],
        ),
        (
            &["awk", "{print $1}", "{}"],
            &[""],
            each(1),
            &["awk", "{print $1}", ""],
        ),
    ];
    for (text, arguments, manner, expected) in rows {
        let made = template(text, arguments, manner).expect("a template");
        let expected = expected.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(made.command(1), Command::Argv(expected), "{text:?}");
    }
    let made = template(&["my prog", "-s{%}", "{}", ""], &["it's"], each(1)).expect("a template");
    let command = "exec -- 'my prog' '-s'$((MEZCAL_SLOT + 1)) 'it'\\''s' ''";
    assert_eq!(made.command(1), Command::Shell(command.into()));
}

#[test]
fn arguments_in_a_script_of_another_shell_cause_a_warning() {
    let warns = |words: &[&str]| {
        let made = template(words, &["x"], Manner::default()).expect("a template");
        made.warnings().join("\n")
    };
    for words in [
        ["sh", "-c", "echo {}"],
        ["/bin/bash", "-ec", "echo '{}'"],
        ["zsh", "-c", "{}"],
    ] {
        let said = warns(&words);
        assert!(said.contains("becomes part of a script"), "{words:?}");
        assert!(said.contains("'… \"$1\"' "), "{said}");
    }
    for text in ["trap 'rm {}' EXIT", "f; trap \"a; rm {}\" 0; g"] {
        let said = warns(&[text]);
        assert!(said.contains("which `trap` reads"), "{text}: {said}");
    }
    for words in [
        &["trap 'rm \"$x\"' EXIT; f {}"][..],
        &["x={}; trap 'rm \"$x\"' EXIT"],
        &["strap {}"],
        &["sh", "-c", "echo \"$1\"", "sh", "{}"],
        &["sh", "-c", "echo \"$0\""],
        &["sh", "-x", "{}"],
        &["grep", "-c", "{}"],
        &["echo {}"],
    ] {
        assert_eq!(warns(words), "", "{words:?}");
    }
}

#[test]
fn several_arguments_are_several_words() {
    let manner = || Manner {
        each: Some(2),
        ..Manner::default()
    };
    let rows = [
        ("echo {}", ["echo 'a b' c", "echo d"]),
        ("echo", ["echo 'a b' c", "echo d"]),
        ("echo '{}'", ["echo 'a b c'", "echo 'd'"]),
        ("echo {2}-{1}", ["echo c-'a b'", "echo ''-'d'"]),
        ("echo {#}", ["echo 1", "echo 2"]),
    ];
    for (text, expected) in rows {
        let made = template(&[text], &["a b", "c", "d"], manner()).expect("a template");
        let found = [1, 2].map(|number| made.command(number));
        assert_eq!(found, expected.map(|e| Command::Shell(e.into())), "{text}");
    }
    let made = template(&["echo"], &["a b", "c", "d"], manner()).expect("a template");
    assert_eq!(
        made.object(1),
        r#"{"cmd": "echo 'a b' c", "args": ["a b", "c"]}"#
    );
    assert_eq!(made.object(2), r#"{"cmd": "echo d", "args": ["d"]}"#);
}

#[test]
fn columns_have_names() {
    let manner = || Manner {
        columns: ColumnSeparator::read(",").ok(),
        header: true,
        each: None,
    };
    let rows = [
        ("f {name} {age} {1}", "f 'ann b' 3 'ann b'"),
        ("f {}", "f 'ann b' 3"),
        ("f {name.} {other}", "f 'ann b' {other}"),
        ("f ${name} {age}", "f ${name} 3"),
    ];
    for (text, expected) in rows {
        let made = template(&[text], &["name,age", "ann b,3"], manner()).expect("a template");
        assert_eq!(made.jobs(), 1);
        assert_eq!(made.command(1), Command::Shell(expected.into()), "{text}");
    }
    for (text, said) in [
        (
            "f {nome}",
            "{nome} in the template: no column is called so; is {name} meant?",
        ),
        ("f {Name/.}", "is {name} meant?"),
        ("f {qr}", "is {q\\u{8}r} meant?"),
    ] {
        for words in [&[text][..], &["f", text]] {
            let made = template(words, &["name,q\u{8}r,age", "a,b,3"], manner());
            assert!(
                made.as_ref().is_err_and(|why| why.contains(said)),
                "{made:?}"
            );
        }
    }
    let twice = template(&["{x}"], &["x,x", "1,2"], manner());
    assert!(twice.is_err_and(|why| why == "{x}: two columns are called \"x\""));
}

#[test]
fn bytes_that_are_no_text_stay_as_they_are() {
    let made = |text: &str| {
        let source = Source::pieces("f".into(), b"caf\xe9 x.c\0".to_vec());
        let sources = Sources::new(vec![source], Manner::default()).expect("sources");
        Template::new(&[text.to_owned()], sources).expect("a template")
    };
    let expected = Command::Shell("f 'caf\0\u{e9} x'".into());
    assert_eq!(made("f {.}").command(1), expected);
    let made = made("f");
    assert_eq!(
        made.object(1),
        "{\"cmd\": \"f 'caf\\udce9 x.c'\", \"args\": [\"caf\\udce9 x.c\"]}"
    );
}

#[test]
fn no_command_is_longer_than_the_bound() {
    let all = ["''''", "\"$\\\"", "a", "$$$$$$$"];
    for text in ["{}", "'{}'{1}", "\"{}\" {1.} {2/} {%}", "$'{}' {#}"] {
        for each in 1..4 {
            let manner = Manner {
                each: Some(each.max(2)),
                ..Manner::default()
            };
            let made = template(&[text], &all, manner).expect("a template");
            let bound = made.longest().expect("no arithmetic");
            for number in 1..=made.jobs() as u32 {
                let Command::Shell(command) = made.command(number) else {
                    panic!("{text}");
                };
                assert!(
                    command.len() <= bound,
                    "{text}: {} > {bound}",
                    command.len()
                );
            }
        }
    }
}
