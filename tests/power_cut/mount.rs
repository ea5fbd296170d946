//! The disk as a file system that programs can use: each call of the kernel is one of the disk's.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::disk::{Content, Disk, Node, ROOT, Refused};

/// How long the kernel may remember an answer. Nothing changes but through the kernel.
const KNOWN: Duration = Duration::from_secs(3600);
/// What the disk says of its size; it has no limit.
const BYTES: u64 = 1 << 30;
const BLOCK: u32 = 4096;

/// Mounts the disk.
pub(crate) fn mount(disk: &Arc<Disk>, on: &Path) -> BackgroundSession {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("power-cut".to_owned()), MountOption::NoAtime];
    fuser::spawn_mount(Mounted(Arc::clone(disk)), on, &config)
        .expect("this test needs FUSE: /dev/fuse, and root or fusermount3 (Debian: fuse3)")
}

#[derive(Debug)]
struct Mounted(Arc<Disk>);

impl From<Refused> for Errno {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoEntry => Errno::ENOENT,
            Refused::Exists => Errno::EEXIST,
            Refused::NotADirectory => Errno::ENOTDIR,
            Refused::IsADirectory => Errno::EISDIR,
            Refused::NotEmpty => Errno::ENOTEMPTY,
            Refused::NotSupported => Errno::EOPNOTSUPP,
            Refused::PowerCut => Errno::EIO,
        }
    }
}

impl Mounted {
    fn attributes(&self, request: &Request, number: u64) -> Result<FileAttr, Refused> {
        self.0.look(number, |Node { permissions, content }| {
            let (kind, size, nlink) = match content {
                Content::File(file) => (FileType::RegularFile, file.now.len() as u64, 1),
                Content::Directory(_) => (FileType::Directory, 0, 2),
            };
            FileAttr {
                ino: INodeNo(number),
                size,
                blocks: size.div_ceil(512),
                atime: UNIX_EPOCH,
                mtime: UNIX_EPOCH,
                ctime: UNIX_EPOCH,
                crtime: UNIX_EPOCH,
                kind,
                perm: *permissions,
                nlink,
                uid: request.uid(),
                gid: request.gid(),
                rdev: 0,
                blksize: BLOCK,
                flags: 0,
            }
        })
    }

    fn entry(&self, request: &Request, found: Result<u64, Refused>, reply: ReplyEntry) {
        match found.and_then(|node| self.attributes(request, node)) {
            Ok(attributes) => reply.entry(&KNOWN, &attributes, Generation(0)),
            Err(refused) => reply.error(refused.into()),
        }
    }
}

fn done(result: Result<(), Refused>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(refused) => reply.error(refused.into()),
    }
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).expect("files are small")
}

/// The bits for user, group and others.
fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).expect("twelve bits")
}

impl Filesystem for Mounted {
    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(request, self.0.find(parent.0, name), reply);
    }

    fn getattr(&self, request: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(request, node.0) {
            Ok(attributes) => reply.attr(&KNOWN, &attributes),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = size.map_or(Ok(()), |size| self.0.set_length(node.0, position(size)));
        let set = set.and_then(|()| mode.map_or(Ok(()), |mode| self.0.set_permissions(node.0, permissions(mode))));
        match set.and_then(|()| self.attributes(request, node.0)) {
            Ok(attributes) => reply.attr(&KNOWN, &attributes),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        self.entry(request, self.0.make_directory(parent.0, name, permissions(mode)), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.0.remove(parent.0, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.0.remove(parent.0, name, true), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let known = flags.difference(RenameFlags::RENAME_NOREPLACE).is_empty() && parent == new_parent;
        let renamed = match known {
            true => self.0.rename(parent.0, name, new_name, !flags.contains(RenameFlags::RENAME_NOREPLACE)),
            false => Err(Refused::NotSupported),
        };
        done(renamed, reply);
    }

    fn create(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.0.make_file(parent.0, name, permissions(mode));
        match made.and_then(|node| self.attributes(request, node)) {
            Ok(attributes) => {
                reply.created(&KNOWN, &attributes, Generation(0), FileHandle(0), FopenFlags::empty());
            }
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.0.look(node.0, |node| match &node.content {
            Content::File(file) => {
                let from = position(offset).min(file.now.len());
                let to = (from + size as usize).min(file.now.len());
                Ok(file.now[from..to].to_vec())
            }
            Content::Directory(_) => Err(Refused::IsADirectory),
        });
        match read.flatten() {
            Ok(bytes) => reply.data(&bytes),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.write(node.0, position(offset), data) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("the kernel counts so too")),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.0.sync(node.0), reply);
    }

    fn fsyncdir(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.0.sync(node.0), reply);
    }

    fn readdir(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.0.look(node.0, |node| match &node.content {
            Content::Directory(directory) => Ok(directory.now.clone()),
            Content::File(_) => Err(Refused::NotADirectory),
        });
        let names = match listed.flatten() {
            Ok(names) => names,
            Err(refused) => return reply.error(refused.into()),
        };
        let dots = [".", ".."].map(|name| (OsStr::new(name), ROOT));
        let entries = dots.into_iter().chain(names.iter().map(|(name, node)| (name.as_os_str(), *node)));
        for (at, (name, node)) in (1..).zip(entries).skip(position(offset)) {
            let kind = match self.0.look(node, |node| matches!(node.content, Content::Directory(_))) {
                Ok(true) => FileType::Directory,
                Ok(false) => FileType::RegularFile,
                Err(refused) => return reply.error(refused.into()),
            };
            if reply.add(INodeNo(node), at, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (all, free) = (BYTES / u64::from(BLOCK), BYTES.saturating_sub(self.0.used()) / u64::from(BLOCK));
        reply.statfs(all, free, free, all, all, BLOCK, 255, BLOCK);
    }

    fn fallocate(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        done(
            if mode == 0 { self.0.allocate(node.0, position(offset + length)) } else { Err(Refused::NotSupported) },
            reply,
        );
    }
}
