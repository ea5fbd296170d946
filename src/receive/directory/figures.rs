//! What is known of the drop directory, for `status`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::{Mutex, MutexGuard};

use spool::FileId;

use crate::status::{Directory, DirectoryState, LeftFile};

/// So many of the files that are left alone are shown.
const MOST_SHOWN: usize = 20;

/// Shared with `status`.
#[derive(Debug)]
pub struct Figures {
    inner: Mutex<Directory>,
}

/// Files that are left where they are, and why.
#[derive(Debug, Default)]
pub(super) struct Left {
    files: BTreeMap<OsString, (Option<FileId>, String)>,
}

impl Figures {
    /// Of the directory at `path`, of which nothing is known yet.
    #[must_use]
    pub fn new(path: String) -> Self {
        let directory = Directory { path, state: DirectoryState::Missing, ..Directory::default() };
        Self { inner: Mutex::new(directory) }
    }

    /// All of them now.
    #[must_use]
    pub fn report(&self) -> Directory {
        self.lock().clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Directory)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Directory> {
        self.inner.lock().expect("held for moments that cannot panic")
    }
}

impl Left {
    /// Notes why a file is left; true when that is new.
    pub(super) fn note(&mut self, name: &OsString, id: Option<FileId>, reason: &str) -> bool {
        let known = self.files.insert(name.clone(), (id, reason.to_owned()));
        known.is_none_or(|known| known.0 != id || known.1 != reason)
    }

    /// It is not left any more.
    pub(super) fn forget(&mut self, name: &OsString) {
        self.files.remove(name);
    }

    /// Only files of these names are there.
    pub(super) fn retain(&mut self, there: impl Fn(&OsString) -> bool) {
        self.files.retain(|name, _| there(name));
    }

    pub(super) fn show(&self, directory: &mut Directory) {
        directory.left = self.files.len() as u64;
        let show = |(name, (_, reason)): (&OsString, &(Option<FileId>, String))| LeftFile {
            name: name.to_string_lossy().into_owned(),
            reason: reason.clone(),
        };
        directory.left_files = self.files.iter().take(MOST_SHOWN).map(show).collect();
    }
}
