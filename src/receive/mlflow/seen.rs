//! Which spans came in lately by MLflow's own posts.
//!
//! An SDK that posts spans also asks, at the end of a trace, whether the server has them; if not, it uploads them in a
//! file. So an answer that errs must err to no: twice is harmless, never is not. This is a view in memory, of bounded
//! size, and what it has forgotten was not seen.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::route::TraceId;

/// Identifies a span within its trace.
pub(in crate::receive) type SpanId = [u8; 8];

/// Spans that are remembered, of all traces together. About 32 bytes each.
const SPANS_MAX: usize = 200_000;
/// The end of a trace may come in before its last spans, which the SDK sends at the same time.
const WAIT: Duration = Duration::from_millis(500);

/// The spans that came in lately.
#[derive(Debug)]
pub(in crate::receive) struct Seen {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    traces: HashMap<TraceId, HashSet<SpanId>>,
    /// In order of their first span.
    order: VecDeque<TraceId>,
    spans: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Self { inner: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Seen {
    /// Spans are durable.
    pub(in crate::receive) fn note(&self, spans: impl IntoIterator<Item = (TraceId, SpanId)>) {
        let mut inner = self.inner.lock().expect("locked for moments that cannot panic");
        for (trace, span) in spans {
            inner.note(trace, span, SPANS_MAX);
        }
        drop(inner);
        self.changed.send_replace(());
    }

    /// How many spans of a trace came in.
    pub(in crate::receive) fn count(&self, trace: &TraceId) -> usize {
        self.inner.lock().expect("locked for moments that cannot panic").traces.get(trace).map_or(0, HashSet::len)
    }

    /// Whether so many spans of a trace came in, or do in a moment.
    pub(in crate::receive) async fn has(&self, trace: &TraceId, spans: usize) -> bool {
        let mut changed = self.changed.subscribe();
        let come = changed.wait_for(|()| self.count(trace) >= spans);
        timeout(WAIT, come).await.is_ok()
    }
}

impl Inner {
    fn note(&mut self, trace: TraceId, span: SpanId, spans_max: usize) {
        let Self { traces, order, spans } = self;
        let known = traces.entry(trace).or_insert_with(|| {
            order.push_back(trace);
            HashSet::new()
        });
        *spans += usize::from(known.insert(span));
        while *spans > spans_max
            && let Some(oldest) = order.pop_front()
        {
            *spans -= traces.remove(&oldest).map_or(0, |forgotten| forgotten.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_trace_is_forgotten_first_and_the_same_span_counts_once() {
        let mut inner = Inner::default();
        for (trace, span) in [(1, 1), (1, 2), (1, 2), (2, 1), (1, 3)] {
            inner.note([trace; 16], [span; 8], 4);
        }
        assert_eq!((inner.spans, inner.traces[&[1; 16]].len()), (4, 3));
        inner.note([3; 16], [1; 8], 4);
        assert_eq!((inner.spans, inner.traces.len(), inner.order.len()), (2, 2, 2));
        assert!(!inner.traces.contains_key(&[1; 16]));
        // One trace alone can be over the bound, too.
        for span in 0..9 {
            inner.note([4; 16], [span; 8], 4);
        }
        assert!(inner.spans <= 4 && inner.traces.len() == inner.order.len());
    }

    #[tokio::test(start_paused = true)]
    async fn spans_that_come_a_moment_later_are_waited_for() {
        let seen = Seen::default();
        let trace = [1; 16];
        let later = async {
            tokio::time::sleep(WAIT / 2).await;
            seen.note([(trace, [1; 8]), (trace, [2; 8])]);
        };
        let (has, ()) = tokio::join!(seen.has(&trace, 2), later);
        assert!(has);
        assert!(!seen.has(&trace, 3).await, "the third never comes");
    }
}
