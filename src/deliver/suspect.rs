//! Whether a record that was refused alone is to blame.
//!
//! A refusal says nothing about whose fault it is: a server with a full disk answers 500 to everything. A record is
//! convicted only when another one was accepted since it was first refused, and it was refused again; where the
//! answer may be the server's own trouble (5xx, INTERNAL, UNKNOWN), only at the third refusal, the last at least ten
//! seconds after the first.

use std::time::{Duration, Instant};

/// So many suspects in a row without any success between: it is the backend, not the records.
pub(super) const BREAKER: u32 = 20;

const DOUBTFUL_REFUSALS: u32 = 3;
const DOUBTFUL_APART: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The case against one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    first_refused: Instant,
    refusals: u32,
    doubtful: bool,
    /// How many deliveries the lane had seen at the first refusal.
    successes_before: u64,
}

impl Case {
    /// Opened when a record is refused alone for the first time.
    pub(super) fn open(now: Instant, doubtful: bool, successes: u64) -> Self {
        Self { first_refused: now, refusals: 1, doubtful, successes_before: successes }
    }

    /// Refused once more.
    pub(super) fn refused_again(&mut self, doubtful: bool) {
        self.refusals = self.refusals.saturating_add(1);
        self.doubtful = doubtful;
    }

    /// Whether the record is to blame, when the lane has seen `successes` deliveries.
    pub(super) fn is_convicted(&self, now: Instant, successes: u64) -> bool {
        let another_was_accepted = successes > self.successes_before;
        let often = if self.doubtful {
            self.refusals >= DOUBTFUL_REFUSALS && now.duration_since(self.first_refused) >= DOUBTFUL_APART
        } else {
            self.refusals >= 2
        };
        another_was_accepted && often
    }

    /// How long to wait before it is tried again: growing, but at least once a minute.
    pub(super) fn pause(&self) -> Duration {
        let doubled = 1_u32.checked_shl(self.refusals - 1).unwrap_or(u32::MAX);
        RETRY_FIRST.saturating_mul(doubled).min(RETRY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_record_is_never_convicted() {
        let start = Instant::now();
        let mut case = Case::open(start, false, 5);
        for _ in 0..100 {
            case.refused_again(false);
        }
        assert!(!case.is_convicted(start + Duration::from_secs(3600), 5), "nothing else was accepted");
        assert!(case.is_convicted(start, 6));
    }

    #[test]
    fn one_refusal_is_not_enough() {
        let start = Instant::now();
        assert!(!Case::open(start, false, 0).is_convicted(start + Duration::from_secs(60), 9));
    }

    #[test]
    fn what_may_be_the_servers_trouble_needs_three_refusals_and_ten_seconds() {
        let start = Instant::now();
        let mut case = Case::open(start, true, 0);
        case.refused_again(true);
        assert!(!case.is_convicted(start + Duration::from_secs(60), 1), "two refusals");
        case.refused_again(true);
        assert!(!case.is_convicted(start + Duration::from_secs(9), 1), "too soon");
        assert!(case.is_convicted(start + Duration::from_secs(10), 1));
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        let mut case = Case::open(Instant::now(), true, 0);
        let mut pauses = vec![case.pause().as_secs()];
        for _ in 0..40 {
            case.refused_again(true);
            pauses.push(case.pause().as_secs());
        }
        assert_eq!(&pauses[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses.last(), Some(&60));
    }
}
