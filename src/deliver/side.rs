//! The side journal: where records go that a lane sets aside, so that the place can move over them.

use std::sync::{Arc, Mutex};

use spool::{Aside, Draft, Error, Now, Record, State, Writer};

/// The one writer of the side journal, shared by all lanes. They come here seldom.
#[derive(Debug)]
pub struct Side {
    writer: Mutex<Option<Writer>>,
}

impl Side {
    /// Takes the writer of an opened side journal.
    #[must_use]
    pub fn new(writer: Writer) -> Arc<Self> {
        Arc::new(Self { writer: Mutex::new(Some(writer)) })
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

    /// Bytes on disk.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let writer = self.writer.lock().expect("the side journal's writer does not panic");
        writer.as_ref().map_or(0, |writer| writer.shared().file_bytes())
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
