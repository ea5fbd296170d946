//! How many requests may be under way.

/// Additive increase, multiplicative decrease: grows by one with every clean round trip up to the ceiling, falls to one
/// after trouble. A fleet must not flatten a server that just came back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Concurrency {
    ceiling: usize,
    allowed: usize,
}

impl Concurrency {
    pub(super) fn new(ceiling: usize) -> Self {
        Self { ceiling: ceiling.max(1), allowed: 1 }
    }

    pub(super) fn allowed(self) -> usize {
        self.allowed
    }

    pub(super) fn success(&mut self) {
        self.allowed = (self.allowed + 1).min(self.ceiling);
    }

    pub(super) fn trouble(&mut self) {
        self.allowed = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_step_by_step_and_falls_to_one() {
        let mut concurrency = Concurrency::new(3);
        let mut seen = vec![concurrency.allowed()];
        for _ in 0..4 {
            concurrency.success();
            seen.push(concurrency.allowed());
        }
        concurrency.trouble();
        seen.push(concurrency.allowed());
        assert_eq!(seen, [1, 2, 3, 3, 3, 1]);
        assert_eq!(Concurrency::new(0).allowed(), 1);
    }
}
