//! How long to wait after trouble.

use std::time::Duration;

/// The longest that a server's own wish is honoured.
const HINT_MAX: Duration = Duration::from_secs(600);

/// Exponential backoff with full jitter: a random pause between nothing and a ceiling that doubles with every failure.
/// Full jitter spreads a fleet over the whole interval, so that a server that comes back meets few at once
/// ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    initial: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max: max.max(initial), failures: 0 }
    }

    /// The pause after one more failure. `hint` is the server's own wish, a lower bound; `fraction` in `0.0..1.0` is
    /// the caller's random number.
    pub(super) fn next(&mut self, hint: Option<Duration>, fraction: f64) -> Duration {
        let doubled = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let ceiling = self.initial.saturating_mul(doubled).min(self.max);
        self.failures = self.failures.saturating_add(1).min(31);
        let wish = hint.unwrap_or_default().min(HINT_MAX);
        // A tenth of the ceiling at least: a pause of nothing would hammer.
        let pause = ceiling.mul_f64(fraction.clamp(0.1, 1.0));
        pause.max(wish)
    }

    /// After success the next trouble begins small again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum_and_starts_again_after_success() {
        let mut backoff = Backoff::new(SECOND, 30 * SECOND);
        let pauses: Vec<_> = (0..7).map(|_| backoff.next(None, 1.0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        backoff.reset();
        assert_eq!(backoff.next(None, 1.0), SECOND);
        for _ in 0..100 {
            assert!(backoff.next(None, 1.0) <= 30 * SECOND, "many failures do not overflow");
        }
    }

    #[test]
    fn jitter_shortens_and_the_servers_wish_is_a_lower_bound() {
        let mut backoff = Backoff::new(10 * SECOND, 30 * SECOND);
        assert_eq!(backoff.next(None, 0.5), 5 * SECOND);
        assert_eq!(backoff.next(None, 0.0), 2 * SECOND, "never nothing");
        assert_eq!(backoff.next(Some(60 * SECOND), 0.5), 60 * SECOND);
        assert_eq!(backoff.next(Some(3600 * SECOND), 0.5), HINT_MAX, "an absurd wish is cut");
    }
}
