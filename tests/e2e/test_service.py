"""What systemd sees: the unit, readiness, the watchdog."""

import os
import re
import shutil
import socket
import subprocess

from conftest import REPOSITORY
from peers import wait_until

UNIT = os.path.join(REPOSITORY, "systemd", "tracespool.service")


def unit_for(directory, binary):
    """The unit with the path of the binary under test: verify insists that it exists."""
    with open(UNIT) as f:
        text = f.read()
    assert "ExecStart=/usr/bin/tracespool run\n" in text
    path = os.path.join(directory, "tracespool.service")
    with open(path, "w") as f:
        f.write(text.replace("/usr/bin/tracespool", binary))
    return path


def test_the_unit_is_valid(directory, binary):
    done = subprocess.run(["systemd-analyze", "verify", unit_for(directory, binary)], capture_output=True, text=True, timeout=60)
    # Unknown settings are only warned about; they count all the same.
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "tracespool" in line]
    assert done.returncode == 0 and not ours, done.stderr


def test_the_sockets_are_valid(directory, binary):
    service = unit_for(directory, binary)
    path = os.path.join(directory, "tracespool.socket")
    shutil.copy(os.path.join(REPOSITORY, "systemd", "tracespool.socket"), path)
    done = subprocess.run(["systemd-analyze", "verify", path, service], capture_output=True, text=True, timeout=60)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "tracespool" in line]
    assert done.returncode == 0 and not ours, done.stderr


def test_the_sandbox_leaves_little_open(directory, binary):
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit_for(directory, binary)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, "exposure is over 2.0:\n" + "\n".join(line for line in done.stdout.splitlines() if not line.startswith("✓"))
    assert float(re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)[1]) <= 2.0


def test_systemd_is_told(make_daemon, receiver):
    """READY=1 once the doors are open, the watchdog is fed, STOPPING=1 at the end."""
    daemon = make_daemon([receiver.backend("otlp_http")])
    path = os.path.join(daemon.directory, "notify.sock")
    said = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(path)
        s.setblocking(False)

        def heard(word):
            while True:
                try:
                    said.extend(s.recv(4096).decode().splitlines())
                except BlockingIOError:
                    return word in said, said

        daemon.spawn(NOTIFY_SOCKET=path, WATCHDOG_USEC="1000000")
        wait_until(lambda: heard("READY=1"), "READY=1")
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=5):
            pass  # ready means that this works at once
        said.clear()
        for _ in range(3):
            said.clear()
            wait_until(lambda: heard("WATCHDOG=1"), "WATCHDOG=1", timeout=5)
        daemon.terminate()
        assert heard("STOPPING=1")[0], said
