//! What came in, in figures.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::refusal::Counted;
use crate::accounts::Accounts;

/// Counts of everything received since the start, shared by all doors.
#[derive(Debug, Default)]
pub struct Received {
    requests: AtomicU64,
    traces: AtomicU64,
    spans: AtomicU64,
    bytes: AtomicU64,
    full: AtomicU64,
    invalid: AtomicU64,
    too_large: AtomicU64,
    unavailable: AtomicU64,
    metrics: Dropped,
    logs: Dropped,
    looped: Dropped,
}

/// A signal that is answered with success, counted and dropped.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    requests: AtomicU64,
    said: AtomicBool,
}

/// The counts at one moment; `received` of `status --json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests with traces that were acknowledged, empty ones included.
    pub requests: u64,
    /// Traces in them; a trace that comes in several requests counts in each.
    pub traces: u64,
    /// Spans in them.
    pub spans: u64,
    /// Bytes in them, as stored.
    pub bytes: u64,
    /// Refused because the spool, the disk or the receive budget is full.
    pub full: u64,
    /// Refused because the data is wrong.
    pub invalid: u64,
    /// Refused because it is over `receive.max_request_bytes`.
    pub too_large: u64,
    /// Refused because the daemon stops, the journal failed, or the client sent too slowly.
    pub unavailable: u64,
    /// Requests with metrics, answered with success and dropped.
    pub metrics: u64,
    /// Requests with logs, answered with success and dropped.
    pub logs: u64,
    /// Refused because they had passed this daemon before.
    pub looped: u64,
}

impl Received {
    /// The counts now. Not one instant's: a request may be in some of them and not yet in others.
    pub fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            requests: read(&self.requests),
            traces: read(&self.traces),
            spans: read(&self.spans),
            bytes: read(&self.bytes),
            full: read(&self.full),
            invalid: read(&self.invalid),
            too_large: read(&self.too_large),
            unavailable: read(&self.unavailable),
            metrics: read(&self.metrics.requests),
            logs: read(&self.logs.requests),
            looped: read(&self.looped.requests),
        }
    }

    /// Puts what was refused into the books, which keep it over restarts.
    pub fn enter(&self, accounts: &Accounts) {
        let Totals { full, invalid, too_large, .. } = self.totals();
        accounts.set_refused(full, invalid, too_large);
    }

    /// One request was acknowledged.
    pub(super) fn took(&self, traces: u64, spans: u64, bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.traces.fetch_add(traces, Ordering::Relaxed);
        self.spans.fetch_add(spans, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// One request was refused.
    pub(super) fn refused(&self, why: Counted) {
        let counter = match why {
            Counted::Full => &self.full,
            Counted::Invalid => &self.invalid,
            Counted::TooLarge => &self.too_large,
            Counted::Unavailable => &self.unavailable,
            Counted::Looped => {
                if self.looped.count() {
                    tracing::warn!(
                        "a request came back that this daemon had sent on: daemons ship to each other, and these \
                         requests are refused; take one of the backends out"
                    );
                }
                return;
            }
            Counted::No => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// One request with metrics was dropped.
    pub(super) fn metrics(&self) -> &Dropped {
        &self.metrics
    }

    /// One request with logs was dropped.
    pub(super) fn logs(&self) -> &Dropped {
        &self.logs
    }
}

impl Dropped {
    /// Counts one request; true for the first, which is worth a line in the log.
    pub(super) fn count(&self) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed);
        !self.said.swap(true, Ordering::Relaxed)
    }
}
