//! What gives way when there is no room, and what has waited too long.
//!
//! Facts first: what is given up is noted in the books under their lock, synced into the journal together with them, and
//! only then may a segment go.

use std::collections::BTreeSet;

use spool::{Control, DiscardReason, Error, Label, SegmentInfo, State, Tally};
use tracing::warn;

use super::Command;
use super::committer::Committer;
use crate::accounts::{NeedsEach, Weighed};
use crate::config::WhenFull;

impl Committer {
    /// Does what it is asked.
    pub(super) fn obey(&mut self, command: Command) -> Result<(), Error> {
        let (recorded, done) = match command {
            Command::Record { controls, done } => (self.give_up(&controls)?, done),
            Command::Expire { label, before_clock_ms, discard, done } => {
                (self.expire(&label, before_clock_ms, discard)?, done)
            }
        };
        if recorded {
            // Who left does not want the answer.
            let _ = done.send(());
        }
        Ok(())
    }

    /// Makes durable what was given up.
    pub(super) fn give_up(&mut self, controls: &[Control]) -> Result<bool, Error> {
        self.losses.count_all(controls);
        self.record(controls)
    }

    /// Frees the oldest segment, or some dead letters, if the operator's settings allow it; whether they did.
    pub(super) fn give_way_in_bytes(&mut self) -> Result<bool, Error> {
        let Some(oldest) = self.parts.writer.shared().segments().first().copied().filter(|oldest| oldest.sealed) else {
            return self.bound_letters_by_bytes();
        };
        let limits = &self.parts.limits;
        let needs = self.parts.accounts.look(|state| Needs::of(state, &oldest));
        if needs.0.is_empty() {
            // Either it waits for the first backend there will be, or all are past it, and that has only to be durable.
            return self.checkpoint_frees(&oldest);
        }
        let all_are_removed = needs.are_all(|need| need.is_removed);
        let all_give_way = needs.are_all(|need| need.is_removed || limits.giving.contains(&need.backend));
        let oldest_goes = all_give_way || limits.when_full == WhenFull::DiscardOldest;
        if !all_are_removed && self.bound_letters_by_bytes()? {
            return Ok(true);
        }
        if !oldest_goes {
            return Ok(false);
        }
        let names: BTreeSet<String> = needs.0.into_iter().map(|need| need.backend).collect();
        let Some(controls) = self.discard(&oldest, DiscardReason::QueueCap, &|name| names.contains(name))? else {
            return Ok(false);
        };
        Ok(self.give_up(&controls)? && !controls.is_empty())
    }

    /// Trims backlogs to `spool.max_traces`, less what is `asked`, where the operator's settings allow it.
    pub(super) fn give_way_in_traces(&mut self, asked: u64) -> Result<bool, Error> {
        let limits = &self.parts.limits;
        let Some(max) = limits.max_traces else { return Ok(false) };
        let mut backlogs = Vec::new();
        for (name, waiting) in self.parts.accounts.waiting() {
            let is_removed = self.parts.accounts.account(&name).is_some_and(|account| account.is_removed());
            let may_give_way =
                is_removed || limits.giving.contains(&name) || limits.when_full == WhenFull::DiscardOldest;
            backlogs.push(Backlog { name, traces: waiting.traces, may_give_way });
        }
        let over = over(backlogs, max, asked);
        let room = max.saturating_sub(asked);
        let mut gave_way = false;
        for name in over {
            // A little more than need be, so that not every request pays for looking.
            gave_way |= self.trim(&name, room - room / 16, |tally| tally.traces)?;
        }
        Ok(gave_way)
    }

    /// Trims the backlogs of backends to their own caps.
    pub(super) fn bound_backlogs(&mut self) -> Result<(), Error> {
        if self.parts.limits.max_backlog_bytes.is_empty() {
            return Ok(());
        }
        let waiting = self.parts.accounts.waiting();
        for (name, max) in self.parts.limits.max_backlog_bytes.clone() {
            if waiting.get(&name).is_some_and(|waiting| waiting.bytes > max) {
                self.trim(&name, max - max / 16, |tally| tally.bytes)?;
            }
        }
        Ok(())
    }

    /// Discards a backend's oldest debts until `measure` of what waits is `max` at most; whether anything was.
    fn trim(&mut self, name: &str, max: u64, measure: fn(&Tally) -> u64) -> Result<bool, Error> {
        let mut controls = Vec::new();
        for segment in self.parts.writer.shared().segments() {
            let waiting = self.parts.accounts.waiting().get(name).copied().unwrap_or_default();
            let excess = measure(&waiting).saturating_sub(max);
            let Some(account) = self.parts.accounts.account(name).filter(|_| excess > 0) else { break };
            if segment.next_record <= account.place {
                continue;
            }
            let each = match self.parts.writer.shared().weigh(&segment) {
                Ok(each) => each,
                Err(error) => {
                    warn!(backend = name, %error, "cannot read what is to be given up");
                    break;
                }
            };
            let mut sum = 0;
            let mut end = account.place;
            for (number, tally) in each.iter().filter(|(number, _)| !account.is_finished(*number)) {
                if sum >= excess {
                    break;
                }
                sum += measure(tally);
                end = number + 1;
            }
            let span = segment.first_record.max(account.place)..if sum < excess { segment.next_record } else { end };
            let inside = each.iter().filter(|(number, _)| span.contains(number));
            let total = inside.fold(Tally::default(), |sum, (_, tally)| sum.plus(*tally));
            let records = Weighed { span, total, each: Some(&each) };
            let found = self.parts.accounts.discard(&records, DiscardReason::QueueCap, |other| other == name);
            controls.extend(found.unwrap_or_default());
        }
        self.give_up(&controls)?;
        Ok(!controls.is_empty())
    }

    /// Gives up whole segments that a backend did not take in time, from its place on.
    fn expire(&mut self, label: &Label, before_clock_ms: u64, discard: bool) -> Result<bool, Error> {
        let Some(account) = self.parts.accounts.account(&label.backend) else { return Ok(true) };
        let expired: Vec<SegmentInfo> = self
            .parts
            .writer
            .shared()
            .segments()
            .into_iter()
            .skip_while(|segment| segment.next_record <= account.place)
            .take_while(|segment| segment.sealed && segment.clock_ms.1 < before_clock_ms)
            .collect();
        if !discard && let Err(error) = self.parts.side.keep(&expired) {
            warn!(backend = label.backend, %error, "segments can't be kept as dead letters now; they stay where they are");
            return Ok(false);
        }
        let mut controls = Vec::new();
        for segment in &expired {
            let found = if discard {
                self.discard(segment, DiscardReason::RetryTimeout, &|name| name == label.backend)?
            } else {
                let label = Label { segment: segment.id, received_ns: segment.wall_ns.0, ..label.clone() };
                self.weighed(segment, |records, committer| committer.parts.accounts.relabel(records, &label))?
            };
            let Some(found) = found else { break };
            controls.extend(found);
        }
        let recorded = self.give_up(&controls)?;
        self.bound_letters()?;
        Ok(recorded)
    }

    /// Gives up what is left of a segment for some backends. `None` when it can't be read.
    fn discard(
        &mut self,
        segment: &SegmentInfo,
        reason: DiscardReason,
        chosen: &dyn Fn(&str) -> bool,
    ) -> Result<Option<Vec<Control>>, Error> {
        self.weighed(segment, |records, committer| committer.parts.accounts.discard(records, reason, chosen))
    }

    /// Lets `decide` see what a segment weighs, and its records only if they are needed: whole segments are given up by
    /// what their footers say.
    fn weighed(
        &mut self,
        segment: &SegmentInfo,
        decide: impl Fn(&Weighed<'_>, &mut Self) -> Result<Vec<Control>, NeedsEach>,
    ) -> Result<Option<Vec<Control>>, Error> {
        let span = segment.first_record..segment.next_record;
        let mut records = Weighed { span, total: segment.tally, each: None };
        if let Ok(controls) = decide(&records, self) {
            return Ok(Some(controls));
        }
        let each = match self.parts.writer.shared().weigh(segment) {
            Ok(each) => each,
            Err(error) => {
                warn!(%error, "cannot read what is to be given up");
                return Ok(None);
            }
        };
        records.each = Some(&each);
        Ok(decide(&records, self).ok())
    }
}

/// What waits for a backend.
#[derive(Debug)]
struct Backlog {
    name: String,
    traces: u64,
    may_give_way: bool,
}

/// Whose backlogs have to shrink so that there is room for `asked` traces below `max`. Nobody's where that would not help:
/// the request is too large by itself, or another backlog in the way may not shrink.
fn over(backlogs: Vec<Backlog>, max: u64, asked: u64) -> Vec<String> {
    let over = backlogs.into_iter().filter(|backlog| backlog.traces.saturating_add(asked) > max);
    let names = over.map(|backlog| backlog.may_give_way.then_some(backlog.name)).collect::<Option<Vec<_>>>();
    names.filter(|_| asked <= max).unwrap_or_default()
}

/// Who still waits for records of a segment.
#[derive(Debug)]
struct Needs(Vec<Need>);

#[derive(Debug)]
struct Need {
    backend: String,
    is_removed: bool,
}

impl Needs {
    fn of(state: &State, segment: &SegmentInfo) -> Self {
        let waiting = state.accounts.iter().filter(|(_, account)| account.lowest_needed() < segment.next_record);
        let need = |(name, account): (&String, &spool::Account)| Need {
            backend: name.clone(),
            is_removed: account.is_removed(),
        };
        Self(waiting.map(need).collect())
    }

    fn are_all(&self, which: impl Fn(&Need) -> bool) -> bool {
        self.0.iter().all(which)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_given_up_for_a_request_that_is_refused_all_the_same() {
        let over = |backlogs: &[(&str, u64, bool)], asked| {
            let backlog = |(name, traces, may_give_way): &(&str, u64, bool)| Backlog {
                name: (*name).to_owned(),
                traces: *traces,
                may_give_way: *may_give_way,
            };
            over(backlogs.iter().map(backlog).collect(), 10, asked)
        };
        let two = [("gives", 8, true), ("keeps", 5, false)];
        assert_eq!(over(&two, 2), [""; 0], "there is room");
        assert_eq!(over(&two, 3), ["gives"]);
        assert_eq!(over(&two, 6), [""; 0], "the other is in the way, too");
        assert_eq!(over(&[("gives", 8, true)], 10), ["gives"]);
        assert_eq!(over(&[("gives", 8, true)], 11), [""; 0], "it never fits");
    }
}
