//! Tables for people, and the texts of their cells: spans of time, instants, sizes.

use crate::exit::Exit;
use crate::report::format::show;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::escape::for_terminal;
use std::ops::Range;
use std::time::Duration;

/// For a table without columns of numbers.
pub(crate) const NO_NUMBERS: Range<usize> = 0..0;

/// Prints lines as the whole output of a verb; returns its status.
pub(crate) fn show_lines(lines: impl Iterator<Item = String>) -> Result<u8, Exit> {
    let text: String = lines.flat_map(|line| [line, "\n".into()]).collect();
    show(&text)?;
    Ok(0)
}

/// Prints a table without numbers as the whole output of a verb; returns its status.
pub(crate) fn show_table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Result<u8, Exit> {
    show(&table(head, rows, NO_NUMBERS))?;
    Ok(0)
}

/// Rows below a head; the columns in `right` are aligned right.
pub(crate) fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
    right: Range<usize>,
) -> String {
    // Names, versions and reasons come from other hosts and users.
    let safe = |row: [String; N]| row.map(|cell| for_terminal(&cell).into_owned());
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned))
        .chain(rows)
        .map(safe)
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|r| r[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(i, cell)| {
                if right.contains(&i) {
                    format!("{cell:>0$}", widths[i])
                } else {
                    format!("{cell:<0$}", widths[i])
                }
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

pub(crate) fn gib(bytes: u64) -> String {
    format!("{:.1}G", bytes as f64 / f64::from(1 << 30))
}

/// A span of time in its two greatest units.
pub(crate) fn span(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// An instant in RFC 3339.
pub(crate) fn time(at: WallTime) -> String {
    jiff::Timestamp::from_microsecond(at.0).map_or_else(|_| at.0.to_string(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_shown_of_their_cells() {
        let rows = [["7", "okazaki", "good"], ["12", "a\x1bb", "revoked"]];
        let rows = || rows.map(|row| row.map(str::to_owned)).into_iter();
        let head = ["N", "NAME", "STATE"];
        assert_eq!(
            table(head, rows(), 0..1),
            " N  NAME      STATE\n 7  okazaki   good\n12  a\\u{1b}b  revoked\n"
        );
        assert_eq!(
            table(head, rows(), NO_NUMBERS),
            "N   NAME      STATE\n7   okazaki   good\n12  a\\u{1b}b  revoked\n"
        );
    }
}
