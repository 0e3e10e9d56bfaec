//! Host names and ranges: `mezcal[01-12,20].cl.ecei.tohoku.ac.jp`.

use std::fmt;
use std::net::Ipv6Addr;

/// Most names that one list may stand for: far above the size of any cluster, far below a harmful
/// size.
pub const MAX_HOSTS: usize = 65_536;

/// Why a host list cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// A bracket without its partner, or one inside another.
    #[error("unbalanced brackets in host list {0:?}")]
    Brackets(String),
    /// `[12-01]`, `[a-b]`, `[]`, `[0-10/0]`.
    #[error(
        "{part:?} is not a range of numbers, in host list {text:?}; write [01-12], [1,3,5], or [0-10/2] for each second one"
    )]
    Range {
        /// The range.
        part: String,
        /// The whole list.
        text: String,
    },
    /// More than [`MAX_HOSTS`].
    #[error("host list {0:?} stands for more than {MAX_HOSTS} hosts")]
    TooMany(String),
    /// A character that no host name has.
    #[error("{0:?} is not a host name: letters, digits, '-', '_' and '.' make one")]
    Name(String),
    /// It begins like an option, or like the names that some tools exclude from a list.
    #[error(
        "{0:?} is not a host name, since none begins with '-'; to leave a host out, leave it out \
         of the list"
    )]
    Dash(String),
    /// A colon outside an IPv6 address: usually a port.
    #[error(
        "{0:?} is not a host name: a ':' is part of an IPv6 address only; a host is named without a port"
    )]
    Colon(String),
    /// Nothing between two commas.
    #[error("empty name in host list {0:?}")]
    Empty(String),
}

/// Expands a list with ranges, in order, without repeats: as Slurm, pdsh and ClusterShell's nodeset
/// print them, separated by commas or white space, with steps (`[0-10/2]`). Zero padding is kept;
/// names come out in lower case.
///
/// # Errors
/// [`HostsError`] names the part that cannot be read.
pub fn expand(text: &str) -> Result<Vec<String>, HostsError> {
    let mut seen = std::collections::HashSet::new();
    let mut out = Vec::new();
    for item in split_outside_brackets(text, |c| c == ',')? {
        let item = item.trim();
        if item.is_empty() {
            return Err(HostsError::Empty(text.into()));
        }
        for name in split_outside_brackets(item, char::is_whitespace)?
            .into_iter()
            .filter(|name| !name.is_empty())
        {
            for name in expand_one(name, text)? {
                let name = normalise(&name)?;
                if seen.insert(name.clone()) {
                    out.push(name);
                }
                if out.len() > MAX_HOSTS {
                    return Err(HostsError::TooMany(text.into()));
                }
            }
        }
    }
    Ok(out)
}

/// A single name in the form in which names are compared: lower case, no trailing dot; of an IPv6
/// address the shortest form (RFC 5952).
///
/// # Errors
/// [`HostsError::Name`], [`HostsError::Dash`], [`HostsError::Colon`] or [`HostsError::Empty`].
pub fn normalise(name: &str) -> Result<String, HostsError> {
    let trimmed = name.strip_suffix('.').unwrap_or(name);
    if trimmed.is_empty() {
        return Err(HostsError::Empty(name.into()));
    }
    if trimmed.len() > 253
        || !trimmed
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':'))
    {
        return Err(HostsError::Name(name.into()));
    }
    if trimmed.starts_with('-') {
        return Err(HostsError::Dash(name.into()));
    }
    if trimmed.contains(':') {
        let address: Result<Ipv6Addr, _> = trimmed.parse();
        return address
            .map(|address| address.to_string())
            .map_err(|_| HostsError::Colon(name.into()));
    }
    Ok(trimmed.to_ascii_lowercase())
}

/// The first label of a name: `mezcal03` of `mezcal03.cl.ecei.tohoku.ac.jp`. Addresses have none.
pub fn short(name: &str) -> Option<&str> {
    let (first, _) = name.split_once('.')?;
    (!first.is_empty() && !first.contains(':') && !first.bytes().all(|b| b.is_ascii_digit()))
        .then_some(first)
}

/// The known host that a name means, written short or in full: the host of exactly that name; else
/// the one whose full name begins with it, or whose short name it begins with. `None`: no host.
///
/// # Errors
/// The hosts that it may mean, if there are several.
pub fn meant<'a>(
    wanted: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Result<Option<&'a str>, Vec<&'a str>> {
    let (mut alike, label) = (std::collections::BTreeSet::new(), short(wanted));
    for host in known {
        if host == wanted {
            return Ok(Some(host));
        }
        if short(host) == Some(wanted) || label == Some(host) {
            alike.insert(host);
        }
    }
    match alike.len() {
        0 | 1 => Ok(alike.pop_first()),
        _ => Err(alike.into_iter().collect()),
    }
}

fn split_outside_brackets(
    text: &str,
    separates: impl Fn(char) -> bool,
) -> Result<Vec<&str>, HostsError> {
    let (mut depth, mut from, mut parts) = (0u32, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' if depth == 0 => return Err(HostsError::Brackets(text.into())),
            ']' => depth -= 1,
            c if depth == 0 && separates(c) => {
                parts.push(&text[from..i]);
                from = i + c.len_utf8();
            }
            _ => {}
        }
        if depth > 1 {
            return Err(HostsError::Brackets(text.into()));
        }
    }
    if depth != 0 {
        return Err(HostsError::Brackets(text.into()));
    }
    parts.push(&text[from..]);
    Ok(parts)
}

fn expand_one(item: &str, whole: &str) -> Result<Vec<String>, HostsError> {
    let mut names = vec![String::new()];
    let mut rest = item;
    while let Some((before, after)) = rest.split_once('[') {
        let (ranges, tail) = after
            .split_once(']')
            .ok_or_else(|| HostsError::Brackets(whole.into()))?;
        let mut numbers = Vec::new();
        for part in ranges.split(',') {
            numbers.extend(numbers_of(part.trim(), whole)?);
            if numbers.len().saturating_mul(names.len()) > MAX_HOSTS {
                return Err(HostsError::TooMany(whole.into()));
            }
        }
        names = names
            .iter()
            .flat_map(|n| numbers.iter().map(move |d| format!("{n}{before}{d}")))
            .collect();
        rest = tail;
    }
    Ok(names.into_iter().map(|n| n + rest).collect())
}

fn numbers_of(part: &str, whole: &str) -> Result<Vec<String>, HostsError> {
    let bad = || HostsError::Range {
        part: part.into(),
        text: whole.into(),
    };
    let number = |s: &str| -> Result<u64, HostsError> {
        if s.is_empty() || s.len() > 18 || !s.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        s.parse().map_err(|_| bad())
    };
    let (range, step) = match part.split_once('/') {
        Some((range, step)) if range.contains('-') => (range, number(step)?),
        Some(_) => return Err(bad()),
        None => (part, 1),
    };
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (number(low)?, number(high)?);
    if first > last || step == 0 {
        return Err(bad());
    }
    if last - first >= MAX_HOSTS as u64 {
        return Err(HostsError::TooMany(whole.into()));
    }
    let width = if low.starts_with('0') { low.len() } else { 0 };
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    Ok((first..=last)
        .step_by(step)
        .map(|n| format!("{n:0width$}"))
        .collect())
}

/// Shows a list of names folded back into ranges where neighbours differ in one run of digits only.
pub struct Folded<'a>(pub &'a [String]);

impl fmt::Display for Folded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut i = 0;
        while i < self.0.len() {
            if i > 0 {
                f.write_str(",")?;
            }
            let Some((before, first, after)) = parts(&self.0[i]) else {
                f.write_str(&self.0[i])?;
                i += 1;
                continue;
            };
            let mut last = first;
            let mut j = i + 1;
            while let Some((b, d, a)) = self.0.get(j).and_then(|n| parts(n)) {
                let follows = last
                    .parse::<u64>()
                    .ok()
                    .zip(d.parse::<u64>().ok())
                    .is_some_and(|(x, y)| x + 1 == y);
                let same_width =
                    d.len() == first.len() || !first.starts_with('0') && !d.starts_with('0');
                if b != before || a != after || !follows || !same_width {
                    break;
                }
                last = d;
                j += 1;
            }
            if j == i + 1 {
                f.write_str(&self.0[i])?
            } else {
                write!(f, "{before}[{first}-{last}]{after}")?
            }
            i = j;
        }
        Ok(())
    }
}

/// Splits a name at the last run of digits in its first label.
fn parts(name: &str) -> Option<(&str, &str, &str)> {
    let label = name.find('.').unwrap_or(name.len());
    let end = name[..label].rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = name[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |i| i + 1);
    (end - start <= 18).then(|| (&name[..start], &name[start..end], &name[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_keep_their_zero_padding() {
        let names = expand("mezcal[09-11,20].cl.ecei.tohoku.ac.jp, Extra").expect("readable");
        let tail = ".cl.ecei.tohoku.ac.jp";
        let expected =
            ["mezcal09", "mezcal10", "mezcal11", "mezcal20"].map(|n| format!("{n}{tail}"));
        assert_eq!(names[..4], expected);
        assert_eq!(names[4], "extra");
        assert_eq!(
            Folded(&names).to_string(),
            "mezcal[09-11].cl.ecei.tohoku.ac.jp,mezcal20.cl.ecei.tohoku.ac.jp,extra"
        );
        assert_eq!(
            expand("r[1-2]n[01-02]").expect("readable"),
            ["r1n01", "r1n02", "r2n01", "r2n02"]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for bad in [
            "a[1-",
            "a]1[",
            "a[[1]]",
            "a[2-1]",
            "a[x]",
            "a[]",
            "a,,b",
            "",
            " ",
            "a[0-99999999]",
            "a[1-300]b[1-300]",
            "é",
        ] {
            assert!(expand(bad).is_err(), "{bad}");
        }
        let why = expand("a[0-10/0]").expect_err("no step").to_string();
        assert_eq!(
            why,
            "\"0-10/0\" is not a range of numbers, in host list \"a[0-10/0]\"; write [01-12], [1,3,5], or [0-10/2] for each second one"
        );
    }

    /// Lists as Slurm 22.05.8 (`scontrol show hostnames`), pdsh 2.34 and ClusterShell 1.10.1
    /// (`nodeset -e`) read them; where they differ, as most do.
    #[test]
    fn what_other_tools_write_stands_for_the_same_hosts() {
        let table = [
            ("a[1-3]", "a1 a2 a3"),
            ("a[8-11]", "a8 a9 a10 a11"),
            ("a[08-11]", "a08 a09 a10 a11"),
            ("a[00-02]", "a00 a01 a02"),
            ("a[098-101]", "a098 a099 a100 a101"),
            ("a[98-0101]", "a98 a99 a100 a101"),
            ("a[1,3,5-6]", "a1 a3 a5 a6"),
            ("a[3,1,2]", "a3 a1 a2"),
            ("a[1-3,2]", "a1 a2 a3"),
            ("a1,a1,a2", "a1 a2"),
            ("a[1, 3]", "a1 a3"),
            ("r[1-2]n[01-02]", "r1n01 r1n02 r2n01 r2n02"),
            ("a[1-2][3-4]", "a13 a14 a23 a24"),
            (
                "a[1-2]b[1-2]c[1-2]",
                "a1b1c1 a1b1c2 a1b2c1 a1b2c2 a2b1c1 a2b1c2 a2b2c1 a2b2c2",
            ),
            ("a[0-1]-ib", "a0-ib a1-ib"),
            ("a[1-2].x.org", "a1.x.org a2.x.org"),
            ("a[1-3]5", "a15 a25 a35"),
            ("A[1-2]", "a1 a2"),
            // Steps, as `nodeset -f --autostep=3` writes them.
            ("a[0-10/2]", "a0 a2 a4 a6 a8 a10"),
            ("a[1-9/4,20]", "a1 a5 a9 a20"),
            ("a[01-08/3]", "a01 a04 a07"),
            ("a[5-6/7]", "a5"),
            // As printed by `nodeset -e`, `scontrol show hostnames` and `$SLURM_JOB_NODELIST`.
            ("a1 a2 a3", "a1 a2 a3"),
            ("a1\na2\n", "a1 a2"),
            (
                "cn[001-003,007],gpu-[1-2],login",
                "cn001 cn002 cn003 cn007 gpu-1 gpu-2 login",
            ),
            ("a[1-2] b", "a1 a2 b"),
        ];
        for (text, names) in table {
            assert_eq!(expand(text).expect(text).join(" "), names, "{text:?}");
        }
        let refused = [
            "a[0-10/x]",
            "a[4/2]",
            "a[1:3]",
            "a[0:10:2]",
            "a[3-1]",
            "a[-1-2]",
            "a[1-3",
            "a[1-5]!a3",
            "a[1-5],-a3",
            "@all",
        ];
        let no_hosts = [
            "user@a[1-2]",
            "a[1-2]:22",
            "a1,,a2",
            ",a1",
            "a1,",
            "a[1-70000]",
            "a[99999999999999999999]",
            "a[a-c]",
            "a[1-2/-1]",
        ];
        for text in refused.into_iter().chain(no_hosts) {
            expand(text).expect_err(text);
        }
    }

    #[test]
    fn what_begins_with_a_dash_or_has_a_port_is_no_host_name() {
        let why = |text| expand(text).expect_err(text).to_string();
        assert!(why("vm,-vm").contains("\"-vm\" is not a host name, since none begins with '-'"));
        assert!(why("a[1-5],-a3").contains("\"-a3\""));
        assert!(why("vm:22").contains("without a port"));
        assert!(why("a[1-2]:22").contains("\"a1:22\""));
        assert_eq!(
            expand("::1,FE80:0::0:1,a-1").expect("addresses are names"),
            ["::1", "fe80::1", "a-1"]
        );
    }

    proptest! {
        #[test]
        fn folding_and_expanding_gives_the_same_names(first in 0u32..300, count in 1u32..40, width in 1usize..5) {
            let names: Vec<String> = (first..first + count).map(|n| format!("h{n:0width$}.x")).collect();
            let folded = Folded(&names).to_string();
            prop_assert_eq!(expand(&folded).expect("folded names are readable"), names);
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = expand(&text);
        }
    }
}
