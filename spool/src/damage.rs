//! What can't be read, and how much it is.

use std::ops::Range;

use crate::Tally;

/// A stretch of the journal that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: u64,
    /// The numbers of the records lost, perhaps with some that no record had; empty when only facts were hit.
    pub records: Range<u64>,
    /// First damaged byte, as far as known.
    pub offset: u64,
    /// When the records were received at the earliest and latest by the wall clock, nanoseconds since 1970; `None` where
    /// nothing is known.
    pub received: Option<(u64, u64)>,
    pub(crate) share: Share,
}

impl Damage {
    /// A fact, or what else is no record.
    pub(crate) fn of_facts(segment: u64, offset: u64) -> Self {
        Self { segment, records: 0..0, offset, received: None, share: Share::default() }
    }

    /// Records that are in no file, of which nothing is known but their numbers.
    pub(crate) fn missing(segment: u64, records: Range<u64>) -> Self {
        let count = records.end.saturating_sub(records.start);
        Self { segment, records, offset: 0, received: None, share: Share::unknown(count, count) }
    }

    /// How much was lost. Exact where the counts of what was lost together are known, and all of it is meant.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally_in(&self.records)
    }

    /// The part of that which falls to the records of a range.
    #[must_use]
    pub fn tally_in(&self, records: &Range<u64>) -> Tally {
        let inside = |number: u64| number.clamp(self.records.start, self.records.end.max(self.records.start));
        let place = |number: u64| inside(number) - self.records.start;
        self.share.between(place(records.start), place(records.end.max(records.start)))
    }

    /// What of it lies at or behind `place`; `None` when nothing does.
    pub(crate) fn from(&self, place: u64) -> Option<Self> {
        if place <= self.records.start {
            return Some(self.clone());
        }
        let records = place..self.records.end;
        let share = self.share.behind(place - self.records.start);
        (!records.is_empty()).then(|| Self { records, share, ..self.clone() })
    }
}

/// A part of what was lost together. How much each single record was is not known; each gets an even part, in a way that
/// the parts of any cut add up to the whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// What was lost together.
    pub(crate) total: Tally,
    /// How many numbers that is spread over,
    pub(crate) over: u64,
    /// and how many of them come before this part.
    pub(crate) before: u64,
}

impl Share {
    /// One record of which all is known.
    pub(crate) fn one(total: Tally) -> Self {
        Self { total, over: 1, before: 0 }
    }

    /// `records` of which nothing is known, spread over `numbers`.
    pub(crate) fn unknown(records: u64, numbers: u64) -> Self {
        Self { total: Tally { records, units: records, ..Tally::default() }, over: numbers, before: 0 }
    }

    /// The part behind the next `count` numbers.
    pub(crate) fn behind(self, count: u64) -> Self {
        Self { before: self.before.saturating_add(count), ..self }
    }

    fn between(self, from: u64, to: u64) -> Tally {
        self.up_to(to).less(self.up_to(from))
    }

    /// What falls to this part's first `count` numbers, and all before them.
    fn up_to(self, count: u64) -> Tally {
        let numbers = u128::from(self.before.saturating_add(count).min(self.over));
        let part = |whole: u64| match u128::from(self.over) {
            0 => 0,
            over => u64::try_from(u128::from(whole) * numbers / over).unwrap_or(whole),
        };
        let Tally { records, traces, spans, units, bytes } = self.total;
        Tally {
            records: part(records),
            traces: part(traces),
            spans: part(spans),
            units: part(units),
            bytes: part(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn damage(records: Range<u64>, total: Tally) -> Damage {
        let over = records.end - records.start;
        Damage { segment: 1, records, offset: 0, received: None, share: Share { total, over, before: 0 } }
    }

    proptest! {
        #[test]
        fn the_parts_of_any_cut_add_up(
            start in 0_u64..50, length in 1_u64..40, cuts in prop::collection::vec(0_u64..100, 0..5),
            (units, bytes) in (0_u64..1000, any::<u64>()),
        ) {
            let total = Tally { records: length, units, bytes, ..Tally::default() };
            let whole = damage(start..start + length, total);
            prop_assert_eq!(whole.tally(), total);
            let mut cuts = cuts;
            cuts.extend([0, 100]);
            cuts.sort_unstable();
            let parts = cuts.windows(2).map(|pair| whole.tally_in(&(pair[0]..pair[1])));
            prop_assert_eq!(parts.fold(Tally::default(), Tally::plus), total);
            for cut in cuts {
                let rest = whole.from(cut).map_or(Tally::default(), |rest| rest.tally());
                prop_assert_eq!(rest.plus(whole.tally_in(&(0..cut))), total);
            }
        }
    }
}
