//! A disk in memory that keeps apart what a program sees and what was synced.
//!
//! What is promised is what POSIX promises, and no more. A file's bytes and length are safe after its own sync, a name
//! after the sync of its directory. Everything else may be lost at a power cut, be there, or be there in part: any
//! sector of 512 bytes of a write on its own, lengths and names each on their own. Only a rename is whole, and changes
//! of one name come in order. The sync of a new file does not make its name safe, which real file systems often do.
//!
//! The power goes at a chosen change: that one and all later ones fail, and what survived is decided at that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// The number of the root directory, as FUSE has it.
pub(crate) const ROOT: u64 = 1;
const SECTOR: usize = 512;

/// Why an operation failed; as the kernel knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    NoEntry,
    Exists,
    NotADirectory,
    IsADirectory,
    NotEmpty,
    NotSupported,
    /// The power is gone.
    PowerCut,
}

/// What lies on the disk, without names: they are in the directories.
type Nodes = BTreeMap<u64, Node>;
type Names = BTreeMap<OsString, u64>;

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) permissions: u16,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    File(File),
    Directory(Directory),
}

#[derive(Debug, Clone, Default)]
pub(crate) struct File {
    pub(crate) now: Vec<u8>,
    safe: Vec<u8>,
    /// What turns `safe` into `now`.
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Directory {
    pub(crate) now: Names,
    safe: Names,
    /// What turns `safe` into `now`.
    unsynced: Vec<Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Put { name: OsString, node: u64 },
    Gone { name: OsString },
    Renamed { from: OsString, to: OsString },
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.resize(*length, 0),
            Self::Write { at, bytes: written } => {
                let end = at + written.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*at..end].copy_from_slice(written);
            }
        }
    }

    /// Leaves of a write the sectors for which the coin says so, and of a length all or nothing.
    fn apply_torn(&self, bytes: &mut Vec<u8>, coin: &mut fastrand::Rng) {
        match self {
            Self::Length(_) if coin.bool() => self.apply(bytes),
            Self::Length(_) => {}
            Self::Write { at, bytes: written } => {
                let mut from = 0;
                while from < written.len() {
                    let to = written.len().min((at + from) / SECTOR * SECTOR + SECTOR - at);
                    if coin.bool() {
                        Self::Write { at: at + from, bytes: written[from..to].to_vec() }.apply(bytes);
                    }
                    from = to;
                }
            }
        }
    }
}

impl File {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        self.unsynced.drain(..).for_each(|change| change.apply(&mut self.safe));
    }

    fn survive(mut self, coin: &mut fastrand::Rng) -> Self {
        match coin.u8(..4) {
            0 => {}
            1 => self.sync(),
            2 => {
                self.unsynced.truncate(coin.usize(..=self.unsynced.len()));
                self.sync();
            }
            _ => self.unsynced.iter().for_each(|change| change.apply_torn(&mut self.safe, coin)),
        }
        Self { now: self.safe.clone(), safe: self.safe, unsynced: Vec::new() }
    }
}

impl Entry {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Put { name, node } => drop(names.insert(name.clone(), *node)),
            Self::Gone { name } => drop(names.remove(name)),
            Self::Renamed { from, to } => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }

    fn names(&self) -> impl Iterator<Item = &OsString> {
        let (first, second) = match self {
            Self::Put { name, .. } | Self::Gone { name } => (name, None),
            Self::Renamed { from, to } => (from, Some(to)),
        };
        std::iter::once(first).chain(second)
    }
}

impl Directory {
    fn change(&mut self, entry: Entry) {
        entry.apply(&mut self.now);
        self.unsynced.push(entry);
    }

    fn sync(&mut self) {
        self.unsynced.drain(..).for_each(|entry| entry.apply(&mut self.safe));
    }

    fn survive(mut self, coin: &mut fastrand::Rng) -> Self {
        let all = coin.u8(..3);
        // What came behind a lost change of the same name is lost too.
        let mut lost = BTreeSet::new();
        for entry in &self.unsynced {
            let kept = all == 0 || (all == 1 && coin.bool());
            if kept && entry.names().all(|name| !lost.contains(name)) {
                entry.apply(&mut self.safe);
            } else {
                lost.extend(entry.names().cloned());
            }
        }
        Self { now: self.safe.clone(), safe: self.safe, unsynced: Vec::new() }
    }
}

impl Node {
    fn file(permissions: u16) -> Self {
        Self { permissions, content: Content::File(File::default()) }
    }

    fn directory(permissions: u16) -> Self {
        Self { permissions, content: Content::Directory(Directory::default()) }
    }
}

#[derive(Debug)]
struct Inner {
    nodes: Nodes,
    next: u64,
    /// Changes and syncs so far.
    changes: u64,
    cut_at: Option<u64>,
    /// What the power cut left.
    left: Option<Nodes>,
    coin: fastrand::Rng,
}

/// The disk. All calls may come from any thread.
#[derive(Debug)]
pub(crate) struct Disk {
    inner: Mutex<Inner>,
    cut: Condvar,
}

type Result<T> = std::result::Result<T, Refused>;

impl Disk {
    /// An empty disk; the coin decides what survives.
    pub(crate) fn new(coin: fastrand::Rng) -> Self {
        Self::with(BTreeMap::from([(ROOT, Node::directory(0o755))]), coin)
    }

    fn with(nodes: Nodes, coin: fastrand::Rng) -> Self {
        let next = nodes.keys().max().map_or(ROOT, |node| node + 1);
        let inner = Inner { nodes, next, changes: 0, cut_at: None, left: None, coin };
        Self { inner: Mutex::new(inner), cut: Condvar::new() }
    }

    /// What the power cut left, as a disk to start from. Before a power cut: the disk as it is.
    pub(crate) fn after(&self) -> Self {
        let mut inner = self.lock();
        let nodes = inner.left.clone().unwrap_or_else(|| inner.nodes.clone());
        Self::with(nodes, inner.coin.fork())
    }

    /// The power goes `changes` changes from now.
    pub(crate) fn cut_in(&self, changes: u64) {
        let mut inner = self.lock();
        inner.cut_at = Some(inner.changes + changes);
    }

    /// Waits until the power went; false when it has not after so long.
    pub(crate) fn wait_for_cut(&self, patience: Duration) -> bool {
        let waited = self.cut.wait_timeout_while(self.lock(), patience, |inner| inner.left.is_none());
        !waited.expect("no panic under the lock").1.timed_out()
    }

    /// Changes and syncs so far.
    pub(crate) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Bytes in files.
    pub(crate) fn used(&self) -> u64 {
        let length = |node: &Node| match &node.content {
            Content::File(file) => file.now.len() as u64,
            Content::Directory(_) => 0,
        };
        self.lock().nodes.values().map(length).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic under the lock")
    }

    /// Looks at a node.
    pub(crate) fn look<T>(&self, node: u64, look: impl FnOnce(&Node) -> T) -> Result<T> {
        let inner = self.lock();
        if inner.left.is_some() {
            return Err(Refused::PowerCut);
        }
        inner.nodes.get(&node).map(look).ok_or(Refused::NoEntry)
    }

    /// The node of a name.
    pub(crate) fn find(&self, directory: u64, name: &OsStr) -> Result<u64> {
        self.look(directory, |node| match &node.content {
            Content::Directory(directory) => directory.now.get(name).copied().ok_or(Refused::NoEntry),
            Content::File(_) => Err(Refused::NotADirectory),
        })?
    }

    /// A change or a sync, unless the power goes at it.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> Result<T>) -> Result<T> {
        let mut inner = self.lock();
        if inner.left.is_none() && inner.cut_at == Some(inner.changes) {
            let left = inner.survive();
            inner.left = Some(left);
            self.cut.notify_all();
        }
        if inner.left.is_some() {
            return Err(Refused::PowerCut);
        }
        inner.changes += 1;
        change(&mut inner)
    }

    pub(crate) fn make_file(&self, directory: u64, name: &OsStr, permissions: u16) -> Result<u64> {
        self.change(|inner| inner.make(directory, name, Node::file(permissions)))
    }

    pub(crate) fn make_directory(&self, directory: u64, name: &OsStr, permissions: u16) -> Result<u64> {
        self.change(|inner| inner.make(directory, name, Node::directory(permissions)))
    }

    pub(crate) fn remove(&self, directory: u64, name: &OsStr, is_directory: bool) -> Result<()> {
        self.change(|inner| {
            let node = *inner.directory(directory)?.now.get(name).ok_or(Refused::NoEntry)?;
            match (&inner.nodes[&node].content, is_directory) {
                (Content::Directory(_), false) => return Err(Refused::IsADirectory),
                (Content::File(_), true) => return Err(Refused::NotADirectory),
                (Content::Directory(found), true) if !found.now.is_empty() => return Err(Refused::NotEmpty),
                _ => {}
            }
            inner.directory(directory)?.change(Entry::Gone { name: name.to_owned() });
            Ok(())
        })
    }

    /// Inside one directory only: what a rename over two leaves after a power cut is not modelled.
    pub(crate) fn rename(&self, directory: u64, from: &OsStr, to: &OsStr, replace: bool) -> Result<()> {
        self.change(|inner| {
            let directory = inner.directory(directory)?;
            if !directory.now.contains_key(from) {
                return Err(Refused::NoEntry);
            }
            if !replace && directory.now.contains_key(to) {
                return Err(Refused::Exists);
            }
            directory.change(Entry::Renamed { from: from.to_owned(), to: to.to_owned() });
            Ok(())
        })
    }

    pub(crate) fn write(&self, node: u64, at: usize, bytes: &[u8]) -> Result<()> {
        self.change(|inner| {
            inner.file(node)?.change(Change::Write { at, bytes: bytes.to_vec() });
            Ok(())
        })
    }

    pub(crate) fn set_length(&self, node: u64, length: usize) -> Result<()> {
        self.change(|inner| {
            inner.file(node)?.change(Change::Length(length));
            Ok(())
        })
    }

    /// Makes room up to `length`; the file grows to it.
    pub(crate) fn allocate(&self, node: u64, length: usize) -> Result<()> {
        self.change(|inner| {
            let file = inner.file(node)?;
            if file.now.len() < length {
                file.change(Change::Length(length));
            }
            Ok(())
        })
    }

    pub(crate) fn set_permissions(&self, node: u64, permissions: u16) -> Result<()> {
        self.change(|inner| {
            inner.nodes.get_mut(&node).ok_or(Refused::NoEntry)?.permissions = permissions;
            Ok(())
        })
    }

    pub(crate) fn sync(&self, node: u64) -> Result<()> {
        self.change(|inner| {
            match &mut inner.nodes.get_mut(&node).ok_or(Refused::NoEntry)?.content {
                Content::File(file) => file.sync(),
                Content::Directory(directory) => directory.sync(),
            }
            Ok(())
        })
    }
}

impl Inner {
    fn file(&mut self, node: u64) -> Result<&mut File> {
        match &mut self.nodes.get_mut(&node).ok_or(Refused::NoEntry)?.content {
            Content::File(file) => Ok(file),
            Content::Directory(_) => Err(Refused::IsADirectory),
        }
    }

    fn directory(&mut self, node: u64) -> Result<&mut Directory> {
        match &mut self.nodes.get_mut(&node).ok_or(Refused::NoEntry)?.content {
            Content::Directory(directory) => Ok(directory),
            Content::File(_) => Err(Refused::NotADirectory),
        }
    }

    fn make(&mut self, directory: u64, name: &OsStr, made: Node) -> Result<u64> {
        let node = self.next;
        let directory = self.directory(directory)?;
        if directory.now.contains_key(name) {
            return Err(Refused::Exists);
        }
        directory.change(Entry::Put { name: name.to_owned(), node });
        self.nodes.insert(node, made);
        self.next += 1;
        Ok(node)
    }

    /// What a power cut leaves now: of every node what was synced and what luck kept, as far as a name leads to it.
    fn survive(&mut self) -> Nodes {
        let mut left = Nodes::new();
        let mut reached = vec![ROOT];
        while let Some(node) = reached.pop() {
            let Node { permissions, content } = self.nodes[&node].clone();
            let content = match content {
                Content::File(file) => Content::File(file.survive(&mut self.coin)),
                Content::Directory(directory) => {
                    let directory = directory.survive(&mut self.coin);
                    reached.extend(directory.now.values());
                    Content::Directory(directory)
                }
            };
            left.insert(node, Node { permissions, content });
        }
        left
    }
}

fn names(disk: &Disk) -> Vec<String> {
    let listed = disk.look(ROOT, |node| match &node.content {
        Content::Directory(directory) => directory.now.keys().map(|name| name.to_string_lossy().into_owned()).collect(),
        Content::File(_) => Vec::new(),
    });
    listed.expect("the power is there")
}

fn content(disk: &Disk, name: &str) -> Option<Vec<u8>> {
    let node = disk.find(ROOT, OsStr::new(name)).ok()?;
    disk.look(node, |node| match &node.content {
        Content::File(file) => Some(file.now.clone()),
        Content::Directory(_) => None,
    })
    .ok()?
}

/// The disk after a power cut at the next change.
fn cut(disk: &Disk) -> Disk {
    disk.cut_in(0);
    assert_eq!(disk.sync(ROOT), Err(Refused::PowerCut));
    assert!(disk.wait_for_cut(Duration::ZERO));
    disk.after()
}

/// All that many seeds leave of what `fill` does.
fn outcomes<T: Ord>(fill: impl Fn(&Disk), see: impl Fn(&Disk) -> T) -> BTreeSet<T> {
    (0..200)
        .map(|seed| {
            let disk = Disk::new(fastrand::Rng::with_seed(seed));
            fill(&disk);
            see(&cut(&disk))
        })
        .collect()
}

#[test]
fn what_was_synced_survives_and_the_rest_may() {
    let fill = |disk: &Disk| {
        let node = disk.make_file(ROOT, OsStr::new("a"), 0o600).expect("made");
        disk.write(node, 0, &[1; 1024]).expect("written");
        disk.sync(node).expect("synced");
        disk.sync(ROOT).expect("synced");
        disk.write(node, 0, &[2; 1024]).expect("written");
    };
    let seen = outcomes(fill, |disk| content(disk, "a").map(|bytes| (bytes.len(), bytes[0], bytes[1023])));
    let any = [(1, 1), (1, 2), (2, 1), (2, 2)].map(|(first, last)| Some((1024, first, last)));
    assert_eq!(seen, BTreeSet::from(any), "each sector old or new");
}

#[test]
fn a_name_is_safe_after_the_sync_of_its_directory_only() {
    let synced_file = |disk: &Disk| {
        let node = disk.make_file(ROOT, OsStr::new("a"), 0o600).expect("made");
        disk.write(node, 0, b"x").expect("written");
        disk.sync(node).expect("synced");
    };
    assert_eq!(outcomes(synced_file, |disk| content(disk, "a")), BTreeSet::from([None, Some(b"x".to_vec())]));
    let synced_name = |disk: &Disk| {
        let node = disk.make_file(ROOT, OsStr::new("a"), 0o600).expect("made");
        disk.sync(ROOT).expect("synced");
        disk.write(node, 0, b"x").expect("written");
    };
    assert_eq!(outcomes(synced_name, |disk| content(disk, "a")), BTreeSet::from([Some(vec![]), Some(b"x".to_vec())]));
}

#[test]
fn a_rename_is_whole() {
    let fill = |disk: &Disk| {
        disk.make_file(ROOT, OsStr::new("a"), 0o600).expect("made");
        disk.sync(ROOT).expect("synced");
        disk.rename(ROOT, OsStr::new("a"), OsStr::new("b"), true).expect("renamed");
        disk.remove(ROOT, OsStr::new("b"), false).expect("removed");
    };
    let all = [vec![], vec!["a".to_owned()], vec!["b".to_owned()]];
    assert_eq!(outcomes(fill, names), BTreeSet::from(all), "the removal never without the rename");
}
