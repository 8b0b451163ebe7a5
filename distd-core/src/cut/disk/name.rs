//! Names of partitions that stay the same from release to release.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::Partition;

/// Characters between the parts of a label.
const BETWEEN: [char; 5] = ['-', '_', '.', ' ', ':'];

/// Longest part of a label in a name, characters; a GPT has room for 36.
const LABEL_MAX: usize = 36;

/// Returns a name for each partition, different for each.
///
/// Two slots of a system get one name, the second with a number behind. Numbers follow the versions
/// in the labels, so that the newer of two old systems has the name of the newer of two new ones;
/// blank partitions come last, so that the only system of a disk has the name without a number,
/// whichever slot it is in.
pub(super) fn names(partitions: &[Partition], blank: &[bool]) -> Vec<String> {
    let mut order: Vec<usize> = (0..partitions.len()).collect();
    order.sort_by(|a, b| {
        let labels = by_version(&partitions[*a].label, &partitions[*b].label);
        blank[*a].cmp(&blank[*b]).then(labels).then(a.cmp(b))
    });
    let mut names = vec![String::new(); partitions.len()];
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for index in order {
        let base = base(&partitions[index]);
        let count = counts.entry(base.clone()).or_default();
        *count += 1;
        names[index] = if *count == 1 { base } else { format!("{base}~{count}") };
    }
    names
}

/// Returns the use of a partition as far as its type or label tells, without slot and version.
fn base(partition: &Partition) -> String {
    if let Some(role) = partition.role {
        return role.to_owned();
    }
    let label: String =
        partition.label.chars().take(LABEL_MAX).map(|c| if c == '/' { '-' } else { c }).collect();
    let mut rest = label.trim();
    while let Some(shorter) = without_last_part(rest) {
        rest = shorter;
    }
    if rest.is_empty() { "partition".to_owned() } else { rest.to_lowercase() }
}

/// Removes a version or the letter of a slot from the end of a label; `None` if there is none.
fn without_last_part(label: &str) -> Option<&str> {
    let digits = label.trim_end_matches(|c: char| c.is_ascii_digit());
    if digits.len() < label.len() {
        let front = digits.trim_end_matches(BETWEEN);
        let before_v = front.strip_suffix('v').filter(|before| before.ends_with(BETWEEN));
        return Some(before_v.unwrap_or(front).trim_end_matches(BETWEEN));
    }
    let (front, last) = label.char_indices().next_back().map(|(at, last)| (&label[..at], last))?;
    let before = front.chars().next_back()?;
    // `root_a`, `rootA`, but not the last letter of a word.
    let is_slot = BETWEEN.contains(&before) && last.is_ascii_alphabetic()
        || before.is_ascii_lowercase() && matches!(last, 'A' | 'B');
    is_slot.then(|| front.trim_end_matches(BETWEEN))
}

/// Compares texts, and numbers in them by value.
fn by_version(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let ((number_a, rest_a), (number_b, rest_b)) = (number(a), number(b));
        if number_a.is_empty() || number_b.is_empty() {
            match (a.split_first(), b.split_first()) {
                (Some((x, rest_a)), Some((y, rest_b))) if x == y => (a, b) = (rest_a, rest_b),
                (x, y) => return x.map(|(x, _)| x).cmp(&y.map(|(y, _)| y)),
            }
            continue;
        }
        match number_a.len().cmp(&number_b.len()).then(number_a.cmp(number_b)) {
            Ordering::Equal => (a, b) = (rest_a, rest_b),
            other => return other,
        }
    }
}

/// Splits the digits off the front of a text, without leading zeros.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let len = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(len);
    let zeros = digits.iter().take_while(|byte| **byte == b'0').count().min(len.saturating_sub(1));
    (&digits[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(labels: &[(&str, bool)]) -> Vec<String> {
        let partition = |(label, _): &(&str, bool)| Partition {
            range: 0..1,
            padding: 0,
            role: None,
            label: (*label).to_owned(),
        };
        let partitions: Vec<_> = labels.iter().map(partition).collect();
        let blank: Vec<_> = labels.iter().map(|(_, blank)| *blank).collect();
        names(&partitions, &blank)
    }

    #[test]
    fn a_slot_and_a_version_are_no_part_of_a_name() {
        for (label, name) in [
            ("root-1.2", "root"),
            ("root_a", "root"),
            ("rootfsB", "rootfs"),
            ("system-b_2024.11.3", "system"),
            ("Data", "data"),
            ("usr-v12", "usr"),
            ("", "partition"),
            ("a", "a"),
            ("12", "partition"),
            ("var/lib", "var-lib"),
        ] {
            assert_eq!(named(&[(label, false)]), [name], "{label}");
        }
    }

    #[test]
    fn numbers_follow_versions_and_blank_slots_come_last() {
        assert_eq!(named(&[("root-1.10", false), ("root-1.9", false)]), ["root~2", "root"]);
        assert_eq!(named(&[("root-a", true), ("root-b", false)]), ["root~2", "root"]);
        assert_eq!(named(&[("root-a", false), ("esp", false), ("root-b", true)]), ["root", "esp", "root~2"]);
        assert_eq!(named(&[("x", false), ("x", false), ("x", false)]), ["x", "x~2", "x~3"]);
    }
}
