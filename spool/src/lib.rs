//! A segmented, checksummed, group-committed write-ahead journal.
//!
//! # Design constraints
//! - **Durable means synced.** [`Writer::commit`] returns only after `fdatasync`; what it returned for is there after
//!   any crash of the process or the machine.
//! - **One writer, many readers.** Readers see a record only once it is durable.
//! - **Nothing is appended behind doubt.** Every start opens a new segment. Bytes of which it is not known whether
//!   they reached the disk are written again and synced, never trusted.
//! - **A written block is never written again** (but for purging): commit groups begin on 4 KiB boundaries, so no
//!   later write shares a disk block with an acknowledged record.
//! - **Record numbers** are `u64`, dense within a run, never used twice.
//! - **Synchronous.** No threads, no clock, no randomness, no runtime: time is passed in as [`Now`], the file system
//!   is reached through [`disk::Disk`] alone.
//! - **Start-up reads no payload** but that of one last commit group: footers and group headers carry the counts. After
//!   a stop that was not in order, the unwritten rest of the last segment is read too.
//!
//! With the feature `sim` there is a simulated disk, `disk::sim::SimDisk`, which counts calls, fails them, and loses
//! what was not synced; this crate's own crash tests run on it.
//!
//! Every byte on disk is described in `FORMAT.md` beside this crate.
//!
//! # Example
//! ```
//! use std::sync::Arc;
//! use bytes::Bytes;
//! use spool::{Draft, Envelope, Journal, Now, Options, State, Step, disk::OsDisk};
//!
//! # fn main() -> Result<(), spool::Error> {
//! # let dir = tempfile::tempdir().expect("a temporary directory");
//! # let path = dir.path().join("journal");
//! let opened = Journal::open(Arc::new(OsDisk), &path, Options::default(), 0)?;
//! let (mut writer, shared) = (opened.writer, opened.shared);
//!
//! writer.stage(Draft { envelope: Envelope::default(), payload: Bytes::from_static(b"hello") });
//! let committed = writer.commit(Now::default(), &mut State::default)?;
//! assert_eq!(committed.records, 1..2);
//!
//! let mut reader = shared.reader(1);
//! let Step::Record(record) = reader.step()? else { panic!("a committed record can be read") };
//! assert_eq!(&record.payload[..], b"hello");
//! # Ok(())
//! # }
//! ```

mod damage;
pub mod disk;
mod drop_file;
mod envelope;
mod error;
mod experiments;
mod frame;
mod group;
mod journal;
mod ranges;
mod segment;
mod state;
mod tally;
mod tlv;

pub use damage::Damage;
pub use drop_file::{DropFile, FileId};
pub use envelope::{Aside, Call, Door, Envelope, Kind, Reason, SourceRange};
pub use error::Error;
pub use experiments::PromisedExperiment;
pub use frame::Record;
pub use journal::{
    Committed, Draft, Durability, Erased, Inspected, Journal, Keep, Kept, KeptBack, Opened, Options, Reader, Reclaimed,
    Recovery, Repaired, RepairedSegment, SegmentInfo, Shared, Step, Torn, Verified, VerifiedSegment, Watch, Writer,
    repair, verify,
};
pub use ranges::Ranges;
pub use segment::Stream;
pub use state::{Account, Control, DiscardReason, Discarded, Label, Letters, LettersEnd, Received, State};
pub use tally::Tally;

/// The time as the caller has it; the crate owns no clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Wall clock, nanoseconds since 1970. May jump; used for selection and display only.
    pub wall_ns: u64,
    /// Running clock of this spool in milliseconds: time in service, which never jumps and stands still while down.
    pub clock_ms: u64,
}

/// Rounds up to a multiple of `unit`, a power of two.
pub(crate) const fn round_up(value: u64, unit: u64) -> u64 {
    value.next_multiple_of(unit)
}
