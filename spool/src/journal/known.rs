//! Damage that was met, added up.

use std::collections::BTreeMap;

use crate::{Damage, Ranges, Tally};

/// Segments of which damage is remembered, and ranges in each. Damage beyond is reported where it is met, and not added
/// up: a bound on memory, far above what a disk shows that can be used at all.
const SEGMENTS_MAX: usize = 4096;
const RANGES_MAX: usize = 4096;

/// Damage that a start or a reader met, each record once.
#[derive(Debug, Default)]
pub(super) struct Known {
    segments: BTreeMap<u64, InSegment>,
}

#[derive(Debug, Default)]
struct InSegment {
    records: Ranges,
    tally: Tally,
    /// It is the file that is damaged; otherwise records are missing before it.
    in_file: bool,
}

impl Known {
    pub(super) fn note(&mut self, damage: &Damage) {
        if self.segments.len() >= SEGMENTS_MAX && !self.segments.contains_key(&damage.segment) {
            return;
        }
        let known = self.segments.entry(damage.segment).or_default();
        known.in_file |= damage.records.is_empty() || damage.offset > 0;
        if known.records.iter().len() >= RANGES_MAX {
            return;
        }
        for part in known.records.missing_in(damage.records.clone()).collect::<Vec<_>>() {
            known.tally += damage.tally_in(&part);
            known.records.insert(part);
        }
    }

    /// Takes out of the count, now and later, what was written off.
    pub(super) fn write_off(&mut self, records: &BTreeMap<u64, Ranges>) {
        for (segment, records) in records {
            let known = self.segments.entry(*segment).or_default();
            records.iter().for_each(|range| known.records.insert(range));
        }
    }

    /// Whether there is damage in a segment's file.
    pub(super) fn is_damaged(&self, segment: u64) -> bool {
        self.segments.get(&segment).is_some_and(|known| known.in_file)
    }

    /// All of it.
    pub(super) fn tally(&self) -> Tally {
        self.segments.values().fold(Tally::default(), |sum, known| sum.plus(known.tally))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::damage::Share;

    fn damage(records: std::ops::Range<u64>, total: Tally) -> Damage {
        let over = records.end - records.start;
        Damage { segment: 1, records, offset: 0, received: None, share: Share { total, over, before: 0 } }
    }

    #[test]
    fn what_was_met_twice_counts_once() {
        let mut known = Known::default();
        let whole = damage(5..15, Tally { records: 10, units: 33, ..Tally::default() });
        known.note(&whole.from(9).expect("a part"));
        known.note(&whole);
        known.note(&whole);
        assert_eq!(known.tally(), whole.tally());
        known.note(&Damage::of_facts(2, 4096));
        known.note(&Damage::missing(3, 20..21));
        assert!(!known.is_damaged(1) && known.is_damaged(2) && !known.is_damaged(3) && !known.is_damaged(4));
        assert_eq!(known.tally(), whole.tally().plus(Tally { records: 1, units: 1, ..Tally::default() }));
    }
}
