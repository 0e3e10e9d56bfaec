//! Durations as people write them: a number of seconds, or `1h30m` (jiff's friendly format).

use std::time::Duration;

/// A year: longer timeouts are a mistake of units, and bounding them keeps deadline arithmetic
/// exact.
pub const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads `90`, `0.5`, `90s`, `1h30m`, `1d12h`, `2w`, `PT1H`, `1:30:00` and `1-12:00:00`
/// (days-hours:minutes:seconds, as Slurm writes it). A day is 24 hours, a week 7 days. A number
/// without a unit is seconds.
///
/// # Errors
/// The mistake in `text`, as part of a sentence.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return from_seconds(seconds);
    }
    let clock = text.contains(|c: char| c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_digit() || ":-.".contains(c));
    let duration = if clock && !text.starts_with('-') {
        from_clock(text)?
    } else {
        from_units(text)?
    };
    if duration > MAX_DURATION {
        return Err(format!("{text:?} is longer than a year (365 days)"));
    }
    Ok(duration)
}

/// Numbers with units, in jiff's friendly format or that of ISO 8601.
fn from_units(text: &str) -> Result<Duration, String> {
    let odd = || format!("{text:?} is not a duration; write seconds (90) or units (1h30m, 2d, 1w)");
    let span: jiff::Span = text.parse().map_err(|_| odd())?;
    if span.is_negative() {
        return Err(format!("{text:?} is negative"));
    }
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(format!(
            "{text:?} has months or years, which differ in length; write days (30d)"
        ));
    }
    // A span that is too long to count in seconds is longer than a year, too.
    let signed = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours());
    signed.ok().map_or(Ok(Duration::MAX), |signed| {
        Duration::try_from(signed).map_err(|_| odd())
    })
}

/// `H:MM:SS`, `H:MM:SS.5`, `D-HH`, `D-HH:MM` and `D-HH:MM:SS`.
fn from_clock(text: &str) -> Result<Duration, String> {
    let odd = || {
        format!(
            "{text:?} is not a duration; write units (1h30m), 1:30:00, or days-hours:minutes:seconds (1-12:00:00)"
        )
    };
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (Some(days.parse::<u64>().map_err(|_| odd())?), clock),
        None => (None, text),
    };
    let parts: Vec<&str> = clock.split(':').collect();
    if days.is_none() && parts.len() == 2 {
        return Err(format!(
            "{text:?} can mean minutes and seconds (as in Slurm) or hours and minutes; write {0}m{1}s or {0}h{1}m",
            parts[0], parts[1]
        ));
    }
    if (days.is_none() && parts.len() != 3) || parts.len() > 3 {
        return Err(odd());
    }
    let whole =
        |part: Option<&&str>| part.map_or(Ok(0), |part| part.parse::<u64>().map_err(|_| odd()));
    let (hours, minutes) = (whole(parts.first())?, whole(parts.get(1))?);
    let seconds = parts
        .get(2)
        .map_or(Ok(0.0), |part| part.parse::<f64>().map_err(|_| odd()))?;
    for (what, value, most) in [
        ("hours", hours as f64, 24.0),
        ("minutes", minutes as f64, 60.0),
        ("seconds", seconds, 60.0),
    ] {
        if value >= most && (what != "hours" || days.is_some()) {
            return Err(format!(
                "{text:?} has {value} {what}, which have to be below {most} there; write units (90m, 36h)"
            ));
        }
    }
    let whole = days
        .unwrap_or(0)
        .saturating_mul(86_400)
        .saturating_add(hours.saturating_mul(3600))
        .saturating_add(minutes * 60);
    Duration::try_from_secs_f64(seconds)
        .map(|seconds| Duration::from_secs(whole).saturating_add(seconds))
        .map_err(|_| odd())
}

/// A number of seconds as a duration.
///
/// # Errors
/// The number is negative, not finite, or beyond [`MAX_DURATION`].
pub fn from_seconds(seconds: f64) -> Result<Duration, String> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(d) if d <= MAX_DURATION => Ok(d),
        _ => Err(format!(
            "{seconds} is not a number of seconds between 0 and a year"
        )),
    }
}

/// A duration as [`parse_duration`] reads it: `8h`, `1m 30s`, `250ms`.
pub fn format_duration(duration: Duration) -> String {
    format!(
        "{:#}",
        jiff::SignedDuration::try_from(duration.min(MAX_DURATION)).expect("a year fits")
    )
}

/// For `#[serde(with)]` on `Option<Duration>` fields of configuration files: a number or a string.
pub mod serde_text {
    use serde::{Deserialize, Deserializer, de::Error};
    use std::time::Duration;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Seconds(f64),
        Words(String),
    }

    /// Reads either form.
    ///
    /// # Errors
    /// The deserializer's own, or a duration that [`super::parse_duration`] refuses.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        match Text::deserialize(d)? {
            Text::Seconds(s) => super::from_seconds(s),
            Text::Words(w) => super::parse_duration(&w),
        }
        .map(Some)
        .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_units_are_read() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration(" 0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
    }

    #[test]
    fn what_is_written_is_read() {
        for (millis, text) in [
            (0, "0s"),
            (250, "250ms"),
            (1_500, "1s 500ms"),
            (28_800_000, "8h"),
            (5_430_000, "1h 30m 30s"),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(
                (format_duration(duration).as_str(), parse_duration(text)),
                (text, Ok(duration))
            );
        }
    }

    /// Spellings of other tools with their meanings: Slurm 22.05, systemd 252, coreutils 9.1,
    /// humantime 2, pytimeparse 1.1.10.
    // Long: a table of what each tool writes.
    #[test]
    fn what_other_tools_write_means_the_same_or_is_refused() {
        let same = [
            ("90", 90.0),
            ("1.5", 1.5),
            (".5", 0.5),
            ("1e3", 1000.0),
            ("0", 0.0),
            ("+5", 5.0),
            ("1s", 1.0),
            ("90s", 90.0),
            ("90m", 5400.0),
            ("1h30m", 5400.0),
            ("1h 30m", 5400.0),
            ("1h, 30m", 5400.0),
            ("1.5h", 5400.0),
            ("1d", 86_400.0),
            ("1d12h", 129_600.0),
            ("1 day", 86_400.0),
            ("2 days 3 hours", 183_600.0),
            ("1w", 604_800.0),
            ("2 weeks", 1_209_600.0),
            ("1w2d", 777_600.0),
            ("365d", 31_536_000.0),
            ("1 hour", 3600.0),
            ("1 hr", 3600.0),
            ("2hrs", 7200.0),
            ("5 minutes", 300.0),
            ("1min 30s", 90.0),
            ("1h2m3.5s", 3723.5),
            ("100ms", 0.1),
            ("100us", 0.0001),
            ("100µs", 0.0001),
            ("PT1H30M", 5400.0),
            ("PT90S", 90.0),
            ("P1D", 86_400.0),
            ("P1DT2H", 93_600.0),
            ("P2W", 1_209_600.0),
            ("+1h", 3600.0),
            ("1:00:00", 3600.0),
            ("1:0:0", 3600.0),
            ("01:30:00", 5400.0),
            ("00:00:01.5", 1.5),
            ("100:00:00", 360_000.0),
            ("1-0", 86_400.0),
            ("1-02", 93_600.0),
            ("1-02:30", 95_400.0),
            ("1-02:30:00", 95_400.0),
            ("7-00:00:00", 604_800.0),
        ];
        for (text, seconds) in same {
            assert_eq!(
                parse_duration(text).map(|d| d.as_secs_f64()),
                Ok(seconds),
                "{text}"
            );
        }
        let refused = [
            // Two minutes in Slurm, 90 seconds or 90 minutes elsewhere.
            ("1:30", "write 1m30s or 1h30m"),
            ("30:00", "write 30m00s or 30h00m"),
            ("1:60:00", "60 minutes"),
            ("00:00:90", "90 seconds"),
            ("00:90:00", "90 minutes"),
            ("1-24:00:00", "24 hours"),
            ("1-00:00:60", "60 seconds"),
            ("1:2:3:4", "is not a duration"),
            ("1-2-3", "is not a duration"),
            ("1::", "is not a duration"),
            ("366d", "longer than a year"),
            ("400d", "longer than a year"),
            ("53w", "longer than a year"),
            ("9999-00:00:00", "longer than a year"),
            ("18446744073709551615-23", "longer than a year"),
            ("99999999h", "longer than a year"),
            ("-5s", "is negative"),
            ("1 month", "months or years"),
            ("1y", "months or years"),
            ("1h ago", "is negative"),
            ("1M", "is not a duration"),
            ("1h30", "is not a duration"),
            ("30m1h", "is not a duration"),
            ("1h1h", "is not a duration"),
            ("never", "is not a duration"),
            ("unlimited", "is not a duration"),
            ("0x10", "is not a duration"),
            ("1_000", "is not a duration"),
            ("", "is not a duration"),
            ("-", "is not a duration"),
            (":", "is not a duration"),
            ("-1-0", "is not a duration"),
        ];
        for (text, why) in refused {
            let said = parse_duration(text).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn no_text_panics() {
        for text in [
            "9".repeat(400),
            format!("{}:00:00", u64::MAX),
            format!("0:{}:0", u64::MAX),
            "1-".repeat(100),
            "٣d".into(),
        ] {
            // The message does not matter here.
            let _ = parse_duration(&text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "-1", "soon", "nan", "inf", "1e30", "-5s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
