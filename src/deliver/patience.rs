//! How long a spool that can't be read is waited for.

use std::time::{Duration, Instant};

/// A bad block fails for good; a disk that is reset, or a network file system that went away, is back in less.
const PATIENCE: Duration = Duration::from_secs(180);
/// A machine that slept in between has not tried often.
const FAILURES_MIN: u32 = 5;

/// The failures in a row.
#[derive(Debug, Default)]
pub(super) struct Patience {
    since: Option<Instant>,
    failures: u32,
}

impl Patience {
    /// Counts a failure, and says whether there were enough for long enough.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        self.failures += 1;
        self.failures >= FAILURES_MIN && now.duration_since(since) >= PATIENCE
    }

    /// It was read.
    pub(super) fn renew(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_after_several_failures_over_several_minutes() {
        let start = Instant::now();
        let mut patience = Patience::default();
        let often = (0..20).map(|_| patience.is_over(start)).collect::<Vec<_>>();
        assert!(!often.contains(&true), "all at one moment");
        assert!(patience.is_over(start + PATIENCE));
        patience.renew();
        let seldom = (0..4).map(|turn| patience.is_over(start + turn * PATIENCE)).collect::<Vec<_>>();
        assert!(!seldom.contains(&true), "few, far apart");
        assert!(patience.is_over(start + 4 * PATIENCE));
    }
}
