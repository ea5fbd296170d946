//! The dead letters' caps: bytes and age, oldest first.

use std::collections::BTreeMap;
use std::convert::Infallible;

use spool::{Control, DiscardReason, Error, Label, Letters, LettersEnd, Ranges, State, Tally};
use tracing::warn;

use super::committer::Committer;
use crate::clock::millis;
use crate::side::Letter;

/// So many letters at most are given up in one go: the doors wait meanwhile.
const BATCH: usize = 1024;
/// So many goes at one look.
const BATCHES: usize = 16;

impl Committer {
    /// Gives up the dead letters that are too old or too many.
    pub(super) fn bound_letters(&mut self) -> Result<(), Error> {
        for _ in 0..BATCHES {
            if !self.give_up_letters(true)? {
                break;
            }
        }
        Ok(())
    }

    /// Gives up dead letters above their own cap; whether there were any.
    pub(super) fn bound_letters_by_bytes(&mut self) -> Result<bool, Error> {
        self.give_up_letters(false)
    }

    fn give_up_letters(&mut self, by_age: bool) -> Result<bool, Error> {
        let limits = &self.parts.limits;
        let clock_ms = self.parts.clock.now().clock_ms;
        let bounds = Bounds {
            max_bytes: limits.dead_letters_max_bytes,
            before_clock_ms: if by_age { clock_ms.saturating_sub(millis(limits.dead_letters_max_age)) } else { 0 },
        };
        let (letters, labels) = self.parts.accounts.look(|state| (Known::of(state), state.labels.clone()));
        if letters.bytes == 0 || !by_age && letters.bytes <= bounds.max_bytes {
            return Ok(false);
        }
        let chosen = match self.choose(&letters, labels, bounds) {
            Ok(chosen) => chosen,
            Err(error) => {
                warn!(%error, "the dead letters can't be read; their limits wait");
                return Ok(false);
            }
        };
        let Ok(controls) = self.parts.accounts.enact(|_| Ok::<_, Infallible>(chosen));
        self.give_up(&controls)?;
        Ok(!controls.is_empty())
    }

    fn choose(&self, known: &Known, labels: Vec<Label>, bounds: Bounds) -> Result<Vec<Control>, Error> {
        let mut excess = known.bytes.saturating_sub(bounds.max_bytes);
        let mut whole = labels.into_iter().peekable();
        let mut copied = self.parts.side.letters(known.lowest);
        let mut next = copied.next(&known.settled)?;
        let mut controls = Vec::new();
        let mut numbers = Numbers::default();
        for _ in 0..BATCH {
            let oldest = match (whole.peek(), &next) {
                (Some(label), Some(letter)) => label.clock_ms.min(letter.aside.clock_ms),
                (Some(label), None) => label.clock_ms,
                (None, Some(letter)) => letter.aside.clock_ms,
                (None, None) => break,
            };
            let reason = match excess {
                _ if oldest < bounds.before_clock_ms => DiscardReason::DeadLetterAge,
                1.. => DiscardReason::DeadLetterCap,
                0 => break,
            };
            if let Some(label) = whole.next_if(|label| label.clock_ms == oldest) {
                excess = excess.saturating_sub(label.tally.bytes);
                controls.push(Control::SideSettled {
                    backend: label.backend,
                    letters: Letters::Segment(label.segment),
                    end: LettersEnd::Discarded(reason),
                    tally: label.tally,
                });
            } else if let Some(letter) = next.take() {
                // It was copied just now, and is not in the books yet.
                if known.places.get(&letter.aside.backend).is_some_and(|place| letter.numbers.end > *place) {
                    break;
                }
                excess = excess.saturating_sub(letter.tally.bytes);
                numbers.add(letter, reason);
                next = copied.next(&known.settled)?;
            }
        }
        controls.extend(numbers.controls());
        Ok(controls)
    }
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    max_bytes: u64,
    /// Letters that were set aside before this running clock are too old.
    before_clock_ms: u64,
}

/// What the books know of dead letters.
#[derive(Debug)]
struct Known {
    bytes: u64,
    lowest: u64,
    settled: Ranges,
    /// Behind the last letter in the books, by backend.
    places: BTreeMap<String, u64>,
}

impl Known {
    fn of(state: &State) -> Self {
        Self {
            bytes: state.accounts.values().map(|account| account.dead.bytes).sum(),
            lowest: state.side_lowest(),
            settled: state.side_settled.clone(),
            places: state.accounts.iter().map(|(name, account)| (name.clone(), account.side_place)).collect(),
        }
    }
}

/// Copied letters, by whose they are and why they go.
#[derive(Debug, Default)]
struct Numbers(Vec<(String, DiscardReason, Ranges, Tally)>);

impl Numbers {
    fn add(&mut self, letter: Letter, reason: DiscardReason) {
        let backend = letter.aside.backend;
        let found = self.0.iter_mut().find(|(name, because, ..)| *name == backend && *because == reason);
        match found {
            Some((_, _, numbers, tally)) => {
                numbers.insert(letter.numbers);
                *tally += letter.tally;
            }
            None => self.0.push((backend, reason, letter.numbers.into(), letter.tally)),
        }
    }

    fn controls(self) -> impl Iterator<Item = Control> {
        self.0.into_iter().map(|(backend, reason, numbers, tally)| Control::SideSettled {
            backend,
            letters: Letters::Numbers(numbers),
            end: LettersEnd::Discarded(reason),
            tally,
        })
    }
}
