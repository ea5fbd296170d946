//! Opening the books at a start: the journal's state, what the ledger knows better, what the side journal holds.

use std::collections::BTreeMap;

use spool::{Account, Control, Error, Kept, Label, Letters, LettersEnd, Now, Shared, State, Step, Tally, Writer};
use tracing::error;

use crate::accounts::Accounts;
use crate::config::{Backend, StartAt};
use crate::ledger::{self, Books};

/// What the journal's last checkpoint does not know yet: what the ledger has seen since, what came in, and what lanes
/// set aside.
pub(super) fn recover(state: &mut State, ledger: Books, journal: &Shared, side: &Shared) -> Result<(), Error> {
    ledger::merge(state, ledger);
    // A place that the ledger knows better may stand at a number that a start skipped.
    journal.finish_skipped(state);
    count_received(state, journal)?;
    count_aside(state, side)
}

/// Counts as damaged the dead letters of whole segments that are gone from where they were kept.
pub(super) fn miss_labelled(state: &mut State, kept: &Kept) -> Result<(), Error> {
    let there: Vec<u64> = kept.list()?.into_iter().map(|(id, _)| id).collect();
    let missing: Vec<_> = state.labels.iter().filter(|label| !there.contains(&label.segment)).cloned().collect();
    for Label { segment, backend, tally, .. } in missing {
        error!(segment, backend, records = tally.records, "dead letters are gone from {}", kept.dir().display());
        let letters = Letters::Segment(segment);
        state.apply(&Control::SideSettled { backend, letters, end: LettersEnd::Damaged, tally });
    }
    Ok(())
}

/// Counts what lanes set aside after the last checkpoint: a record that is in the side journal needs nothing more,
/// although the place may not have moved over it yet.
pub(super) fn count_aside(state: &mut State, side: &Shared) -> Result<(), Error> {
    let Some(from) = state.accounts.values().map(|account| account.side_place).min() else { return Ok(()) };
    let mut reader = side.reader(from).lossy();
    loop {
        match reader.step()? {
            Step::Record(record) => {
                let tally = record.tally();
                let Some(aside) = record.envelope.aside else { continue };
                let Some(account) = state.accounts.get_mut(&aside.backend) else { continue };
                if record.number < account.side_place {
                    continue;
                }
                account.side_place = record.number + 1;
                if account.is_finished(aside.record) {
                    // It was given up while it was copied; the copy is nobody's.
                    state.side_settled.insert(record.number..record.number + 1);
                } else {
                    account.dead += tally;
                    account.finish(aside.record..aside.record + 1);
                }
            }
            Step::Damaged(damage) => error!(
                segment = damage.segment,
                offset = damage.offset,
                records = damage.tally().records,
                "dead letters can't be read from the side journal"
            ),
            Step::End => break,
        }
    }
    Ok(())
}

/// Entries of the side journal that exist now are counted, or are none of a new backend's.
pub(super) fn close_aside(state: &mut State, side: &Shared) {
    for account in state.accounts.values_mut() {
        account.side_place = account.side_place.max(side.next_record());
    }
}

/// Counts what came in after the last checkpoint. At a start that follows kill -9 this is about a second's worth.
pub(super) fn count_received(state: &mut State, journal: &Shared) -> Result<(), Error> {
    let uncounted = journal.tally_from(state.received.counted_to)?;
    state.received.count(uncounted, journal.next_record());
    Ok(())
}

/// Notes which backends are in the configuration now and were not, and the other way round. Staged only.
pub(super) fn enrol(state: &mut State, backends: &[Backend], writer: &mut Writer, now: Now) {
    let (first, next) = (writer.shared().first_record(), writer.shared().next_record());
    // What came in while there was no backend at all belongs to the first one there is.
    let from_now = state.owed_to_nobody().map_or(next, |record| record.max(first));
    let mut controls = Vec::new();
    let mut is_first = state.accounts.is_empty();
    for backend in backends {
        let name = backend.name.clone();
        let start = match (state.accounts.get(&name), backend.start_at) {
            (Some(account), _) if !account.is_removed() => continue,
            (None, StartAt::Oldest) => first,
            (None, StartAt::Auto) if is_first => first,
            (Some(_), _) | (None, StartAt::Now | StartAt::Auto) => from_now,
        };
        is_first = false;
        controls.push(Control::BackendAdded { name, start });
    }
    for (name, account) in &state.accounts {
        if !account.is_removed() && !backends.iter().any(|backend| backend.name == *name) {
            controls.push(Control::BackendRemoved { name: name.clone(), end: next });
        }
    }
    for control in &controls {
        state.apply(control);
        writer.stage_control(control, now);
    }
}

/// Tells the books what each backend waits for.
pub(super) fn open(state: &State, journal: &Shared, backends: &[Backend], accounts: &Accounts) -> Result<(), Error> {
    // One walk over the journal for all places there are.
    let places: Vec<u64> = state.accounts.values().flat_map(places).collect();
    let from = journal.tallies_from(&places)?;
    for (name, account) in &state.accounts {
        accounts.open(name, waiting(account, &from), backends.iter().any(|backend| backend.name == *name));
    }
    Ok(())
}

/// Every place from which on it must be known what is there.
fn places(account: &Account) -> impl Iterator<Item = u64> {
    let finished = account.finished.iter().flat_map(|range| [range.start, range.end]);
    [account.place, account.end].into_iter().chain(finished)
}

fn waiting(account: &Account, from: &BTreeMap<u64, Tally>) -> Tally {
    let from = |place: u64| from.get(&place).copied().unwrap_or_default();
    let mut waiting = from(account.place);
    for range in account.finished.iter() {
        waiting -= from(range.start).less(from(range.end));
    }
    if account.is_removed() {
        waiting -= from(account.end.max(account.place));
    }
    waiting
}
