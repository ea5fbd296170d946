//! The memory that requests may hold while they are received, decompressed, transcoded and written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::intake::Refusal;

/// Requests under this size may use the whole budget; larger ones leave them a share.
const SMALL: u64 = 1 << 20;

/// One part in this many of the budget is out of reach of large requests, so that a few of them never shut out the
/// many small ones.
const SHARE_FOR_SMALL: u64 = 8;

/// What a request costs beside its body: its task, its headers and its place in the intake.
const OVERHEAD: u64 = 4 << 10;

/// `receive.max_in_flight_bytes`, shared by all doors; cheap to clone.
///
/// Bytes are charged as they arrive, never as they are announced, so that an announcement costs nothing. The request
/// that would exceed the budget is refused and can be sent again; it is never parked, because parked requests hold
/// what they already charged and can starve each other for ever.
#[derive(Debug, Clone)]
pub struct Budget {
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes, none of them used.
    pub fn new(limit: u64) -> Self {
        Self { pool: Arc::new(Pool { limit, used: AtomicU64::new(0) }) }
    }

    /// What is charged now.
    pub fn used(&self) -> u64 {
        self.pool.used.load(Ordering::Relaxed)
    }

    /// The most that a large request can ever hold.
    pub(super) fn most_for_large(&self) -> u64 {
        let limit = self.pool.limit;
        (limit - limit / SHARE_FOR_SMALL).saturating_sub(OVERHEAD)
    }

    /// Admits one request that holds nothing yet.
    pub(super) fn open(&self) -> Result<Charge, Refusal> {
        let mut charge = Charge { pool: Arc::clone(&self.pool), charged: 0, large: false };
        charge.hold(0)?;
        Ok(charge)
    }
}

/// What one request holds of the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    pool: Arc<Pool>,
    charged: u64,
    /// Once large, always large: a request that shrank after decompression is not small again.
    large: bool,
}

impl Charge {
    /// Says how long the request will be, without charging for it: a request known to be large is not to fill the
    /// share of the small ones while it arrives.
    pub(super) fn announce(&mut self, total: u64) {
        self.large |= total >= SMALL;
    }

    /// From now on the request holds `bytes`; on refusal it holds what it held before.
    pub(super) fn hold(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.announce(bytes);
        let wanted = bytes.saturating_add(OVERHEAD);
        if wanted <= self.charged {
            self.pool.used.fetch_sub(self.charged - wanted, Ordering::Relaxed);
        } else {
            let more = wanted - self.charged;
            let limit = self.pool.limit;
            let ceiling = if self.large { limit - limit / SHARE_FOR_SMALL } else { limit };
            self.pool
                .used
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                    used.checked_add(more).filter(|&after| after <= ceiling)
                })
                .map_err(|_| Refusal::Busy { limit })?;
        }
        self.charged = wanted;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.pool.used.fetch_sub(self.charged, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_charged_is_given_back() -> Result<(), Refusal> {
        let budget = Budget::new(16 * MIB);
        let mut charge = budget.open()?;
        assert_eq!(budget.used(), OVERHEAD);
        charge.hold(5 * MIB)?;
        assert_eq!(budget.used(), 5 * MIB + OVERHEAD);
        charge.hold(2 * MIB)?;
        assert_eq!(budget.used(), 2 * MIB + OVERHEAD);
        drop(charge);
        assert_eq!(budget.used(), 0);
        Ok(())
    }

    #[test]
    fn a_refused_growth_changes_nothing() -> Result<(), Refusal> {
        let budget = Budget::new(8 * MIB);
        let mut charge = budget.open()?;
        charge.hold(MIB)?;
        assert_eq!(charge.hold(9 * MIB), Err(Refusal::Busy { limit: 8 * MIB }));
        assert_eq!(charge.hold(u64::MAX), Err(Refusal::Busy { limit: 8 * MIB }));
        assert_eq!(budget.used(), MIB + OVERHEAD);
        Ok(())
    }

    #[test]
    fn large_requests_leave_a_share_for_small_ones() -> Result<(), Refusal> {
        let budget = Budget::new(16 * MIB);
        let mut large = budget.open()?;
        large.hold(13 * MIB)?;
        assert!(large.hold(14 * MIB).is_err());
        // Announced as large, though little of it is there yet.
        let mut arriving = budget.open()?;
        arriving.announce(10 * MIB);
        assert!(arriving.hold(MIB).is_err());
        let mut small = budget.open()?;
        small.hold(MIB - 1)?;
        Ok(())
    }
}
