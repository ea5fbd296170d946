//! The side journal: where records go that a lane sets aside, so that the place can move over them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use spool::{Aside, Draft, Error, Now, Record, Shared, State, Writer};
use tracing::debug;

/// The one writer of the side journal, shared by all lanes. They come here seldom.
#[derive(Debug)]
pub struct Side {
    writer: Mutex<Option<Writer>>,
    /// Not before then is more kept back, because there was no room.
    prepare_at: Mutex<Instant>,
    shared: Shared,
}

/// How often making room for what is to be kept back is tried again after it failed.
const PREPARE_AGAIN: Duration = Duration::from_secs(10);

impl Side {
    /// Takes the writer of an opened side journal.
    #[must_use]
    pub fn new(writer: Writer) -> Arc<Self> {
        let shared = writer.shared().clone();
        Arc::new(Self { writer: Mutex::new(Some(writer)), prepare_at: Mutex::new(Instant::now()), shared })
    }

    /// What its readers are made from.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Copies records into the side journal, each with why it is there, and returns the number behind the last when
    /// they are durable. Blocks for a sync.
    ///
    /// # Errors
    /// [`Error::Full`]: nothing was copied. Any other error means that the daemon must end.
    pub fn put(&self, records: Vec<(Record, Aside)>, now: Now) -> Result<u64, Error> {
        let mut writer = self.writer.lock().expect("the side journal's writer does not panic");
        let writer = writer.as_mut().ok_or(Error::Poisoned)?;
        for (record, aside) in records {
            let envelope = spool::Envelope { aside: Some(aside), ..record.envelope };
            writer.stage(Draft { envelope, payload: record.payload });
        }
        Ok(writer.commit(now, &mut || State { clock_ms: now.clock_ms, ..State::default() })?.records.end)
    }

    /// Whether nothing is missing of what is kept back for a full disk, or nothing can be done about it now.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        let writer = self.writer.lock().expect("the side journal's writer does not panic");
        let prepare_at = *self.prepare_at.lock().expect("held for a moment");
        writer.as_ref().is_none_or(|writer| writer.kept_back_missing() == 0) || Instant::now() < prepare_at
    }

    /// One step towards what is kept back for a full disk. Blocks for a sync.
    pub fn prepare(&self) {
        let mut writer = self.writer.lock().expect("the side journal's writer does not panic");
        if let Some(Err(error)) = writer.as_mut().map(Writer::prepare) {
            debug!(%error, "cannot keep space back now");
            *self.prepare_at.lock().expect("held for a moment") = Instant::now() + PREPARE_AGAIN;
        }
    }

    /// Bytes on disk.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.shared.file_bytes()
    }

    /// Closes it in order; nothing can be put there afterwards.
    ///
    /// # Errors
    /// [`Error`] of the file system.
    pub fn close(&self, now: Now) -> Result<(), Error> {
        let writer = self.writer.lock().expect("the side journal's writer does not panic").take();
        match writer {
            Some(writer) => writer.close(now, &State { clock_ms: now.clock_ms, ..State::default() }),
            None => Ok(()),
        }
    }
}
