//! Versions of programs, as peers report them.

/// Whether a program of this version is older than that one, compared number by number. An empty
/// version is older than any: programs before 0.2 report none.
pub fn is_older(version: &str, than: &str) -> bool {
    numbers(version) < numbers(than)
}

fn numbers(version: &str) -> Vec<u64> {
    let release = version.split(['-', '+']).next().unwrap_or_default();
    release
        .split('.')
        .map_while(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_number_by_number() {
        for (older, newer) in [
            ("", "0.1.0"),
            ("0.1.0", "0.2.0"),
            ("0.9.0", "0.10.0"),
            ("0.2", "0.2.0"),
            ("0.2.0", "1.0.0"),
        ] {
            assert!(
                is_older(older, newer) && !is_older(newer, older),
                "{older} {newer}"
            );
        }
        assert!(!is_older("0.2.0", "0.2.0") && !is_older("0.2.0-1", "0.2.0"));
        assert!(
            is_older("nonsense", "0.1.0"),
            "whoever says that is no version of ours"
        );
    }
}
