"""A small disk of its own, really mounted, and somebody else's file that fills it."""

import os
import subprocess

from . import wait_until

MIB = 1 << 20
BYTES = 64 * MIB


class SmallDisk:
    """A file system of 64 MiB: `tmpfs`, or `ext4` in a file that the kernel loops back as a disk. For root only."""

    def __init__(self, kind, directory):
        assert os.geteuid() == 0, "this test mounts a file system: it must run as root"
        self.kind = kind
        self.path = os.path.join(directory, "disk")
        self.image = os.path.join(directory, "disk.image")
        self.foreign = os.path.join(self.path, "foreign")

    def mount(self):
        os.makedirs(self.path)
        if self.kind == "tmpfs":
            _run("mount", "-t", "tmpfs", "-o", f"size={BYTES}", "tmpfs", self.path)
        else:
            with open(self.image, "wb") as f:
                f.truncate(BYTES)
            # No blocks for root alone: to the daemon the disk is as full as `df` says.
            _run("mkfs.ext4", "-q", "-F", "-m", "0", self.image)
            _run("mount", "-o", "loop", self.image, self.path)
        return self

    def unmount(self):
        """At the end, whatever happened. A daemon that was just killed may hold it for a moment."""

        def unmounted():
            subprocess.run(["umount", self.path], capture_output=True, timeout=60)
            return not os.path.ismount(self.path)

        try:
            wait_until(unmounted, f"{self.path} is unmounted", timeout=10)
        except AssertionError:
            _run("umount", "--lazy", self.path)
            raise

    def free(self):
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    def fill(self):
        """Takes whatever is free, to the last block."""
        with open(self.foreign, "ab", buffering=0) as f:
            for size in (MIB, 4096, 1):
                try:
                    while True:
                        f.write(b"\xff" * size)
                except OSError as e:
                    assert e.errno in (28, 122), e  # ENOSPC, EDQUOT
            # Only now is it known that there is a place for every block.
            os.fsync(f.fileno())

    def make_room(self):
        os.remove(self.foreign)

    def used_below(self, directory):
        """What `du` says of the files there: blocks, not lengths."""
        total = 0
        for where, _, files in os.walk(directory):
            for name in files:
                try:
                    total += os.lstat(os.path.join(where, name)).st_blocks * 512
                except FileNotFoundError:
                    pass  # the daemon removed it meanwhile
        return total


def _run(*command):
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, f"`{' '.join(command)}` failed, and this test needs it: {done.stderr}"
