//! `--halt`: when to give the rest of a batch up, in GNU Parallel's words (parallel(1)).

use mezcal_common::message::client::{Halt, HaltCount, HaltWhy};

/// Reads `never`, `WHEN,WHY=N` or `WHEN,WHY=N%`; also the short forms 0 (never), 1 (`soon,fail=1`)
/// and 2 (`now,fail=1`).
///
/// # Errors
/// A message for the user.
pub(crate) fn parse(text: &str) -> Result<Option<Halt>, String> {
    let text = match text {
        "never" | "0" => return Ok(None),
        "1" => "soon,fail=1",
        "2" => "now,fail=1",
        other => other,
    };
    read(text).map(Some).ok_or_else(|| {
        "write never, or WHEN,WHY=HOW-MANY: soon or now, then fail, success or done, then a number or a percentage, as in now,fail=1".into()
    })
}

fn read(text: &str) -> Option<Halt> {
    let (when, rest) = text.split_once(',')?;
    let now = match when {
        "now" => true,
        "soon" => false,
        _ => return None,
    };
    let (why, count) = rest.split_once('=')?;
    let why = match why {
        "fail" => HaltWhy::Fail,
        "success" => HaltWhy::Success,
        "done" => HaltWhy::Done,
        _ => return None,
    };
    let count = match count.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent
                .parse()
                .ok()
                .filter(|p| (0.0..=100.0).contains(p) && *p > 0.0)?;
            HaltCount::Share((percent * 100.0).round().max(1.0) as u32)
        }
        None => HaltCount::Jobs(count.parse().ok().filter(|n| *n > 0)?),
    };
    Some(Halt { now, why, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_gnu_parallel_writes_them() {
        let halt = |now, why, count| Ok(Some(Halt { now, why, count }));
        assert_eq!(parse("never"), Ok(None));
        assert_eq!(
            parse("now,fail=1"),
            halt(true, HaltWhy::Fail, HaltCount::Jobs(1))
        );
        assert_eq!(parse("2"), halt(true, HaltWhy::Fail, HaltCount::Jobs(1)));
        assert_eq!(
            parse("soon,success=3"),
            halt(false, HaltWhy::Success, HaltCount::Jobs(3))
        );
        assert_eq!(
            parse("soon,done=12.5%"),
            halt(false, HaltWhy::Done, HaltCount::Share(1250))
        );
        for wrong in [
            "",
            "now",
            "now,fail",
            "now,fail=0",
            "later,fail=1",
            "now,fail=101%",
            "now,fail=0%",
            "now,fail=-1",
            "now,lost=1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
