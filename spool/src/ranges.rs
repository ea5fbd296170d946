//! A set of numbers, kept as ranges.

use std::ops::Range;

/// Numbers as ranges that ascend and do not touch: short where the numbers lie close together, as those of records do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds all numbers of a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let from = self.0.partition_point(|other| other.end < range.start);
        let to = self.0.partition_point(|other| other.start <= range.end);
        let merged =
            self.0[from..to].iter().fold(range, |all, other| all.start.min(other.start)..all.end.max(other.end));
        self.0.splice(from..to, [merged]);
    }

    /// Takes out all numbers of a range.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let from = self.0.partition_point(|other| other.end <= range.start);
        let to = self.0.partition_point(|other| other.start < range.end);
        let (Some(first), Some(last)) = (self.0.get(from), to.checked_sub(1).and_then(|last| self.0.get(last))) else {
            return;
        };
        let left = [first.start..range.start, range.end..last.end];
        if from < to {
            self.0.splice(from..to, left.into_iter().filter(|part| !part.is_empty()));
        }
    }

    /// Whether a number is in it.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        let at = self.0.partition_point(|range| range.end <= number);
        self.0.get(at).is_some_and(|range| range.start <= number)
    }

    /// Whether any number of a range is in it.
    #[must_use]
    pub fn touches(&self, range: &Range<u64>) -> bool {
        let at = self.0.partition_point(|other| other.end <= range.start);
        self.0.get(at).is_some_and(|other| other.start < range.end && !range.is_empty())
    }

    /// The parts of `range` that are not in it, ascending.
    pub fn missing_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.0.partition_point(|other| other.end <= range.start);
        let mut inside = self.0[first..].iter().take_while(move |other| other.start < range.end);
        let mut from = Some(range.start);
        std::iter::from_fn(move || {
            let start = from?;
            let (end, next) = match inside.next() {
                Some(other) => (other.start, Some(other.end)),
                None => (range.end, None),
            };
            from = next;
            Some(start..end)
        })
        .filter(|part| !part.is_empty())
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + ExactSizeIterator {
        self.0.iter().cloned()
    }

    /// Whether there is no number in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lowest range.
    #[must_use]
    pub fn first(&self) -> Option<Range<u64>> {
        self.0.first().cloned()
    }

    /// Behind the highest number.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        self.0.last().map(|range| range.end)
    }

    /// How many numbers are in it.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }
}

impl From<Range<u64>> for Ranges {
    fn from(range: Range<u64>) -> Self {
        let mut set = Self::default();
        set.insert(range);
        set
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(ranges: T) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_equals_a_set(changes in prop::collection::vec((any::<bool>(), 0_u64..60, 0_u64..9), 0..60)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (adds, start, length) in changes {
                let range = start..start + length;
                if adds {
                    ranges.insert(range.clone());
                    set.extend(range);
                } else {
                    ranges.remove(range.clone());
                    set.retain(|number| !range.contains(number));
                }
                prop_assert!(ranges.iter().flatten().eq(set.iter().copied()));
                prop_assert!(ranges.0.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert!(ranges.iter().all(|range| !range.is_empty()));
                prop_assert_eq!(ranges.count(), set.len() as u64);
                for number in 0..70 {
                    prop_assert_eq!(ranges.contains(number), set.contains(&number));
                }
                for range in [0..start, start..start + 3, 7..7, 20..60] {
                    prop_assert_eq!(ranges.touches(&range), range.clone().any(|number| set.contains(&number)));
                }
                for from in [0, start, start + 3] {
                    let missing = ranges.missing_in(from..50).flatten();
                    prop_assert!(missing.eq((from..50).filter(|number| !set.contains(number))));
                }
            }
        }
    }
}
