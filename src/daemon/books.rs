//! Opening the books at a start: the journal's state, what the ledger knows better, what the side journal holds.

use std::collections::BTreeMap;

use spool::{Account, Control, Error, Now, Shared, State, Step, Tally, Writer};

use tracing::error;

use crate::accounts::Accounts;
use crate::config::{Backend, StartAt};

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
                if !account.is_finished(aside.record) {
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
    let mut from = Cache { journal, known: BTreeMap::new() };
    for (name, account) in &state.accounts {
        let waiting = from.waiting(account)?;
        accounts.open(name, waiting, backends.iter().any(|backend| backend.name == *name));
    }
    Ok(())
}

/// `tally_from`, asked once for each place.
struct Cache<'a> {
    journal: &'a Shared,
    known: BTreeMap<u64, Tally>,
}

impl Cache<'_> {
    fn from(&mut self, place: u64) -> Result<Tally, Error> {
        match self.known.get(&place) {
            Some(tally) => Ok(*tally),
            None => {
                let tally = self.journal.tally_from(place)?;
                self.known.insert(place, tally);
                Ok(tally)
            }
        }
    }

    fn waiting(&mut self, account: &Account) -> Result<Tally, Error> {
        let mut waiting = self.from(account.place)?;
        for range in account.finished.iter() {
            waiting -= self.from(range.start)?.less(self.from(range.end)?);
        }
        if account.is_removed() {
            waiting -= self.from(account.end)?;
        }
        Ok(waiting)
    }
}
