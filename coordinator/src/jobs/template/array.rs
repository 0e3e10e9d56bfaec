//! Numbers as arguments: `--array 1-1000`, `0-15:4`, `1,3,5-7`.

/// The most numbers: each makes a job.
const MAX: u64 = u32::MAX as u64;

/// Numbers in the order in which they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array(Vec<Range>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    step: u64,
    count: u64,
}

impl Array {
    /// Reads `A-B`, `A-B:STEP`, `A`, or several of them with commas between.
    ///
    /// # Errors
    /// A line for the user.
    pub fn read(text: &str) -> Result<Self, String> {
        let ranges: Vec<Range> = text.split(',').map(range).collect::<Result<_, _>>()?;
        let all = ranges
            .iter()
            .fold(0, |sum: u64, r| sum.saturating_add(r.count));
        match all <= MAX {
            true => Ok(Self(ranges)),
            false => Err(format!("{all} numbers are too many jobs (at most {MAX})")),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|range| range.count as usize).sum()
    }

    /// Never: no text has no numbers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number at this place, from 0.
    pub(super) fn get(&self, index: usize) -> Option<u64> {
        let mut left = index as u64;
        for range in &self.0 {
            if left < range.count {
                return Some(range.first + left * range.step);
            }
            left -= range.count;
        }
        None
    }

    /// The longest of them, as text.
    pub(super) fn longest(&self) -> usize {
        let last = self
            .0
            .iter()
            .map(|range| range.first + (range.count - 1) * range.step);
        last.max().unwrap_or(0).to_string().len()
    }
}

fn range(text: &str) -> Result<Range, String> {
    let form = || format!("{text:?} is not of the form A-B, A-B:STEP or A");
    let number = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.ok_or_else(form)
    };
    if let Some((_, at_once)) = text.split_once('%') {
        return Err(format!(
            "%{at_once} means nothing here: -j says how many jobs run at a time"
        ));
    }
    let (range, step) = text.split_once(':').unwrap_or((text, "1"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last, step): (u64, u64, u64) = (number(first)?, number(last)?, number(step)?);
    if last < first {
        return Err(format!(
            "{text:?} goes from {first} down to {last}; write the smaller number first"
        ));
    }
    if step == 0 {
        return Err(format!("{text:?} has the step 0; the smallest is 1"));
    }
    Ok(Range {
        first,
        step,
        count: ((last - first) / step).saturating_add(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_that_were_written() {
        let rows = [
            ("1-3", vec![1, 2, 3]),
            ("0-15:4", vec![0, 4, 8, 12]),
            ("7", vec![7]),
            ("1,3,5-7", vec![1, 3, 5, 6, 7]),
            ("5-5", vec![5]),
            ("008-010", vec![8, 9, 10]),
        ];
        for (text, numbers) in rows {
            let array = Array::read(text).expect("numbers");
            let all: Vec<u64> = (0..array.len()).filter_map(|at| array.get(at)).collect();
            assert_eq!(all, numbers, "{text}");
            assert_eq!(array.get(numbers.len()), None, "{text}");
        }
        assert_eq!(Array::read("5-1000,7").map(|array| array.longest()), Ok(4));
        for bad in [
            "",
            "a",
            "1-",
            "-3",
            "1-2-3",
            "3-1",
            "1-9:0",
            "1-9%2",
            "+1-2",
            "1,,2",
            "1-9:",
            "0-4294967295",
            "0-18446744073709551615",
            "18446744073709551616",
        ] {
            assert!(Array::read(bad).is_err(), "{bad}");
        }
    }
}
