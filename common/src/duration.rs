//! Durations as people write them: a number of seconds, or `1h30m` (jiff's friendly format).

use std::time::Duration;

/// A year: longer timeouts are a mistake of units, and bounding them keeps deadline arithmetic exact.
pub const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads `90`, `0.5`, `90s`, `1h30m`.
///
/// # Errors
/// What is wrong with `text`, as a sentence part.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let duration = match text.parse::<f64>() {
        Ok(seconds) => from_seconds(seconds)?,
        Err(_) => {
            let signed: jiff::SignedDuration =
                text.parse().map_err(|_| format!("{text:?} is not a duration; write seconds (90) or units (1h30m)"))?;
            Duration::try_from(signed).map_err(|_| format!("{text:?} is negative"))?
        }
    };
    if duration > MAX_DURATION {
        return Err(format!("{text:?} is longer than a year"));
    }
    Ok(duration)
}

/// A number of seconds as a duration.
///
/// # Errors
/// Negative, not finite, or beyond [`MAX_DURATION`].
pub fn from_seconds(seconds: f64) -> Result<Duration, String> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(d) if d <= MAX_DURATION => Ok(d),
        _ => Err(format!("{seconds} is not a number of seconds between 0 and a year")),
    }
}

/// A duration as [`parse_duration`] reads it: `8h`, `1m 30s`, `250ms`.
pub fn format_duration(duration: Duration) -> String {
    format!("{:#}", jiff::SignedDuration::try_from(duration.min(MAX_DURATION)).expect("a year fits"))
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
        for (millis, text) in [(0, "0s"), (250, "250ms"), (1_500, "1s 500ms"), (28_800_000, "8h"), (5_430_000, "1h 30m 30s")] {
            let duration = Duration::from_millis(millis);
            assert_eq!((format_duration(duration).as_str(), parse_duration(text)), (text, Ok(duration)));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "-1", "soon", "nan", "inf", "1e30", "-5s", "400d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
