//! Reading around what the medium does not give back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::DiskFile;
use crate::segment::BLOCK;

/// A file of which a block that can't be read reads as zeros, so that checksums tell what was in it. A failed read is
/// repeated block by block.
#[derive(Debug, Clone)]
pub(crate) struct Lossy {
    file: Arc<dyn DiskFile>,
    met: Arc<Met>,
}

#[derive(Debug, Default)]
struct Met {
    good: AtomicBool,
    bad: AtomicBool,
}

impl Lossy {
    pub(crate) fn new(file: Arc<dyn DiskFile>) -> Self {
        Self { file, met: Arc::default() }
    }

    /// Whether reads failed, and not one gave anything: that is a disk which does not answer rather than a bad block.
    pub(crate) fn is_dead(&self) -> bool {
        self.met.bad.load(Ordering::Relaxed) && !self.met.good.load(Ordering::Relaxed)
    }

    fn read_block(&self, part: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.file.read_at(part, offset) {
            Err(error) if is_of_the_medium(&error) => {
                self.met.bad.store(true, Ordering::Relaxed);
                part.fill(0);
                let left = self.file.length()?.saturating_sub(offset);
                Ok(usize::try_from(left).unwrap_or(usize::MAX).min(part.len()))
            }
            other => self.note(other),
        }
    }

    fn note(&self, read: io::Result<usize>) -> io::Result<usize> {
        if read.as_ref().is_ok_and(|count| *count > 0) {
            self.met.good.store(true, Ordering::Relaxed);
        }
        read
    }
}

/// What a bad block, or a file system that found one, answers.
pub(crate) fn is_of_the_medium(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::IO, Errno::NODATA, Errno::BADMSG, Errno::ILSEQ, Errno::UCLEAN, Errno::REMOTEIO];
    error.raw_os_error().is_some_and(|code| codes.iter().any(|known| known.raw_os_error() == code))
}

impl DiskFile for Lossy {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.file.read_at(buffer, offset) {
            Err(error) if is_of_the_medium(&error) => {}
            other => return self.note(other),
        }
        let mut filled = 0;
        while filled < buffer.len() {
            let at = offset + filled as u64;
            let to_next = usize::try_from(BLOCK - at % BLOCK).expect("a block fits memory");
            let end = (filled + to_next).min(buffer.len());
            let count = self.read_block(&mut buffer[filled..end], at)?;
            filled += count;
            if count == 0 || filled < end {
                break;
            }
        }
        Ok(filled)
    }

    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.file.write_at(parts, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.file.allocate(length)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.file.truncate(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}
