//! What the kernel tells about the directory: files that are complete, and that events were lost.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use notify::event::{AccessKind, AccessMode, Flag, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// So many names are remembered; beyond it the directory is looked through instead.
const MOST_NAMES: usize = 100_000;

/// What was heard and not fetched yet. Shared with the thread that hears it.
#[derive(Debug, Default)]
pub(super) struct Heard {
    inner: Mutex<Inner>,
    /// Something was heard.
    pub(super) news: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    complete: VecDeque<OsString>,
    known: HashSet<OsString>,
    lost: bool,
}

impl Heard {
    /// The names of files that were moved in or closed after writing, in order, and whether there may be more of which
    /// nothing was heard.
    pub(super) fn fetch(&self) -> (VecDeque<OsString>, bool) {
        let inner = std::mem::take(&mut *self.lock());
        (inner.complete, inner.lost)
    }

    fn hear(&self, event: notify::Result<Event>) {
        let mut inner = self.lock();
        match event {
            Ok(event) if event.attrs.flag() == Some(Flag::Rescan) => inner.lost = true,
            Ok(event) => match event.kind {
                // Our own opening and reading is among what is reported, and counts for nothing.
                EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
                    let Some(name) = event.paths.first().and_then(|path| path.file_name()) else { return };
                    if inner.complete.len() == MOST_NAMES {
                        inner.lost = true;
                    } else if inner.known.insert(name.to_owned()) {
                        inner.complete.push_back(name.to_owned());
                    } else {
                        return;
                    }
                }
                _ => return,
            },
            Err(_) => inner.lost = true,
        }
        drop(inner);
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("held for moments that cannot panic")
    }
}

/// Listens as long as it lives.
///
/// # Errors
/// Nothing is watched: because a limit of the kernel is reached, or the file system has no such events.
pub(super) fn watch(path: &Path, heard: &Arc<Heard>) -> Result<RecommendedWatcher, String> {
    let listener = Arc::clone(heard);
    let watcher = notify::recommended_watcher(move |event| listener.hear(event));
    let watched = watcher.and_then(|mut watcher| {
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watched.map_err(|error| match &error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            "the limit of watches is reached (raise sysctl fs.inotify.max_user_watches)".to_owned()
        }
        notify::ErrorKind::Io(source) if source.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            "the limit of watchers is reached (raise sysctl fs.inotify.max_user_instances)".to_owned()
        }
        _ => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, name: &str) -> Event {
        Event::new(kind).add_path(Path::new("/drop").join(name))
    }

    #[test]
    fn only_what_completes_a_file_is_news_and_each_name_once() {
        let heard = Heard::default();
        for kind in [
            EventKind::Create(notify::event::CreateKind::File),
            EventKind::Modify(ModifyKind::Data(notify::event::DataChange::Any)),
            EventKind::Access(AccessKind::Open(AccessMode::Any)),
            EventKind::Access(AccessKind::Close(AccessMode::Read)),
            EventKind::Modify(ModifyKind::Name(RenameMode::From)),
        ] {
            heard.hear(Ok(event(kind, "a.json")));
        }
        assert_eq!(heard.fetch(), (VecDeque::new(), false));
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let moved = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        for (kind, name) in [(closed, "b"), (moved, "a"), (closed, "a"), (moved, "b")] {
            heard.hear(Ok(event(kind, name)));
        }
        assert_eq!(heard.fetch(), (["b".into(), "a".into()].into(), false));
        heard.hear(Ok(event(closed, "a")));
        assert_eq!(heard.fetch().0.len(), 1, "what was fetched may be heard again");
    }

    #[test]
    fn lost_events_are_said() {
        let heard = Heard::default();
        heard.hear(Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        assert!(heard.fetch().1);
        heard.hear(Err(notify::Error::generic("trouble")));
        assert!(heard.fetch().1);
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        (0..=MOST_NAMES).for_each(|number| heard.hear(Ok(event(closed, &number.to_string()))));
        let (names, lost) = heard.fetch();
        assert_eq!((names.len(), lost), (MOST_NAMES, true));
    }
}
