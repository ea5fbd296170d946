//! The side journal: where records go that a lane sets aside, so that the place can move over them.
//!
//! Records that a lane gives up one by one are copied; whole segments that were not delivered in time are kept as they
//! are, under a second name in `labelled/`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use spool::{Aside, Draft, Error, Keep, Kept, Label, Now, Record, SegmentInfo, Shared, State, Step, Writer};
use tracing::debug;

/// How often making room for what is to be kept back is tried again after it failed.
const PREPARE_AGAIN: Duration = Duration::from_secs(10);

/// The directory of whole segments, inside that of the side journal.
pub const LABELLED: &str = "labelled";

/// The one writer of the side journal, shared by all lanes. They come here seldom.
#[derive(Debug)]
pub struct Side {
    writer: Mutex<Option<Writer>>,
    /// Not before then is more kept back, because there was no room.
    prepare_at: Mutex<Instant>,
    shared: Shared,
    labelled: Kept,
    /// The segments in `labelled`, with their sizes.
    sizes: Mutex<BTreeMap<u64, u64>>,
    /// Where they have their first name, as long as a backend needs it.
    journal: Shared,
    spool_id: u64,
}

/// A dead letter that was copied, as far as limits look at it.
#[derive(Debug)]
pub struct Letter {
    /// Its number in the side journal, and the numbers before it that nothing has.
    pub numbers: Range<u64>,
    /// Whose it is.
    pub aside: Aside,
    /// What it weighs.
    pub tally: spool::Tally,
    /// Wall clock of receipt.
    pub received_ns: u64,
}

impl Side {
    /// Takes the writer of an opened side journal, and the segments that are kept beside it. Of these, those that no
    /// label names are removed: a start was cut short between name and label, or label and removal.
    ///
    /// # Errors
    /// [`Error`] of the file system.
    pub fn new(
        writer: Writer,
        labelled: Kept,
        labels: &[Label],
        journal: Shared,
        spool_id: u64,
    ) -> Result<Self, Error> {
        let (named, orphans): (Vec<_>, Vec<_>) =
            labelled.list()?.into_iter().partition(|(id, _)| labels.iter().any(|label| label.segment == *id));
        labelled.remove(&orphans.into_iter().map(|(id, _)| id).collect::<Vec<_>>())?;
        let shared = writer.shared().clone();
        let sizes = Mutex::new(named.into_iter().collect());
        let prepare_at = Mutex::new(Instant::now());
        Ok(Self { writer: Mutex::new(Some(writer)), prepare_at, shared, labelled, sizes, journal, spool_id })
    }

    /// Copies records into the side journal, each with why it is there, and returns their numbers there when they are
    /// durable. Blocks for a sync.
    ///
    /// # Errors
    /// [`Error::Full`]: nothing was copied. Any other error means that the daemon must end.
    pub fn put(&self, records: Vec<(Record, Aside)>, now: Now) -> Result<Range<u64>, Error> {
        let mut writer = self.writer();
        let writer = writer.as_mut().ok_or(Error::Poisoned)?;
        for (record, aside) in records {
            let envelope = spool::Envelope { aside: Some(aside), ..record.envelope };
            writer.stage(Draft { envelope, payload: record.payload });
        }
        Ok(writer.commit(now, &mut || self.state(now))?.records)
    }

    /// Keeps whole segments; they are durable under their second names when this returns.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`] of the file system. No harm is done.
    pub fn keep(&self, segments: &[SegmentInfo]) -> Result<(), Error> {
        self.journal.keep_copies(segments, &self.labelled)?;
        self.sizes().extend(segments.iter().map(|info| (info.id, info.file_bytes)));
        Ok(())
    }

    /// The copied letters from a number on, oldest first.
    #[must_use]
    pub fn letters(&self, from: u64) -> Letters {
        Letters::of(&self.shared, from)
    }

    /// Removes what no backend has as a dead letter any more. `state` must be durable.
    ///
    /// # Errors
    /// [`Error::Io`] of the file system; it can be tried again.
    pub fn reclaim(&self, state: &State) -> Result<(), Error> {
        if let Some(writer) = self.writer().as_mut() {
            writer.reclaim(state.side_lowest(), Keep::default())?;
        }
        let kept = |id: &u64| state.labels.iter().any(|label| label.segment == *id);
        let gone: Vec<u64> = self.sizes().keys().copied().filter(|id| !kept(id)).collect();
        self.labelled.remove(&gone)?;
        self.sizes().retain(|id, _| !gone.contains(id));
        Ok(())
    }

    /// Whether nothing is missing of what is kept back for a full disk, or nothing can be done about it now.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        let prepare_at = *self.prepare_at.lock().expect("held for a moment");
        self.writer().as_ref().is_none_or(|writer| writer.kept_back_missing() == 0) || Instant::now() < prepare_at
    }

    /// Bytes by which its files may still grow for what is to be kept back.
    #[must_use]
    pub fn kept_back_missing(&self) -> u64 {
        self.writer().as_ref().map_or(0, Writer::kept_back_missing)
    }

    /// One step towards what is kept back for a full disk. Blocks for a sync.
    pub fn prepare(&self) {
        if let Some(Err(error)) = self.writer().as_mut().map(Writer::prepare) {
            debug!(%error, "cannot keep space back now");
            *self.prepare_at.lock().expect("held for a moment") = Instant::now() + PREPARE_AGAIN;
        }
    }

    /// The segments that are kept whole.
    #[must_use]
    pub fn labelled(&self) -> Vec<u64> {
        self.sizes().keys().copied().collect()
    }

    /// The copied letters, for readers.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Bytes on disk that the journal does not hold under another name.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let journal = self.journal.segments();
        let sizes = self.sizes();
        let alone = sizes.iter().filter(|(id, _)| journal.binary_search_by_key(*id, |segment| segment.id).is_err());
        self.shared.file_bytes() + alone.map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// Closes it in order; nothing can be put there afterwards.
    ///
    /// # Errors
    /// [`Error`] of the file system.
    pub fn close(&self, now: Now) -> Result<(), Error> {
        let writer = self.writer().take();
        match writer {
            Some(writer) => writer.close(now, &self.state(now)),
            None => Ok(()),
        }
    }

    /// What its own checkpoints say: whose it is. Everything else is in the main journal.
    fn state(&self, now: Now) -> State {
        State { clock_ms: now.clock_ms, spool_id: self.spool_id, ..State::default() }
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().expect("the side journal's writer does not panic")
    }

    fn sizes(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.sizes.lock().expect("the list is locked for moments that cannot panic")
    }
}

/// Walks the copied letters, oldest first.
#[derive(Debug)]
pub struct Letters {
    reader: spool::Reader,
    /// Behind the last letter that was returned.
    from: u64,
}

impl Letters {
    /// The letters of a side journal from a number on.
    #[must_use]
    pub fn of(side: &Shared, from: u64) -> Self {
        Self { reader: side.reader(from), from }
    }

    /// The next letter that is not among `settled`.
    ///
    /// # Errors
    /// [`Error::Io`] of the file system.
    pub fn next(&mut self, settled: &spool::Ranges) -> Result<Option<Letter>, Error> {
        loop {
            match self.reader.step()? {
                Step::Record(record) if !settled.contains(record.number) => {
                    let tally = record.tally();
                    let Some(aside) = record.envelope.aside else { continue };
                    let numbers = self.from..record.number + 1;
                    self.from = numbers.end;
                    return Ok(Some(Letter { numbers, aside, tally, received_ns: record.envelope.received_ns }));
                }
                Step::Record(record) => self.from = record.number + 1,
                // What can't be read goes with the next letter; whose it was is not known.
                Step::Damaged(_) => {}
                Step::End => return Ok(None),
            }
        }
    }
}
