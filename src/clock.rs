//! The running clock: how long this spool has been in service.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use spool::Now;

/// Continues where the last checkpoint stopped, stands still while the daemon is down, and never jumps.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    base_ms: u64,
    started: Instant,
}

impl Clock {
    /// Goes on from `base_ms`, what the journal's last checkpoint says.
    #[must_use]
    pub fn from(base_ms: u64) -> Self {
        Self { base_ms, started: Instant::now() }
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { wall_ns: wall_ns(), clock_ms: self.base_ms + millis(self.started.elapsed()) }
    }

    /// Since this process took the spool into service.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The wall clock, nanoseconds since 1970.
#[must_use]
pub fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The moment that a wall clock reading stands for.
#[must_use]
pub fn wall_time(ns: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(ns)
}

/// A duration in whole milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
