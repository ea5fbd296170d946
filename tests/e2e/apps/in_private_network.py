"""Runs a command in a network of its own, where every port is free: in_private_network.py [--join PID] [--user NAME] -- COMMAND

For root only. With --join it enters the network of that process instead of making one.
"""

import argparse
import ctypes
import fcntl
import os
import pwd
import socket
import struct

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40

parser = argparse.ArgumentParser()
parser.add_argument("--join", type=int)
parser.add_argument("--user")
parser.add_argument("command", nargs="+")
arguments = parser.parse_args()

libc = ctypes.CDLL(None, use_errno=True)
if arguments.join:
    with open(f"/proc/{arguments.join}/ns/net") as namespace:
        done = libc.setns(namespace.fileno(), CLONE_NEWNET)
else:
    done = libc.unshare(CLONE_NEWNET)
if done != 0:
    raise OSError(ctypes.get_errno(), "no network namespace: " + os.strerror(ctypes.get_errno()))
if not arguments.join:
    with socket.socket() as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP | IFF_RUNNING))
if arguments.user:
    user = pwd.getpwnam(arguments.user)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
os.execvp(arguments.command[0], arguments.command)
