"""What the tests put around the daemon.

    apps (apps/*.py, processes of their own)  ->  Daemon  ->  OtlpReceiver or MlflowServer

* `Daemon` starts, kills, stops and questions the binary under test.
* `OtlpReceiver` is a backend built on grpcio and http.server, which share nothing with the daemon's own stack. It keeps
  every span and its answers can be scripted.
* `MlflowServer` is a real `mlflow server`.
* `collector_process` is a real OpenTelemetry Collector; `go/`, `node/` and `collector/` beside it are the sources of peers that
  `tests/run` builds in `target/peers`, with versions pinned by go.sum and package-lock.json.
* `otlp` makes small requests and turns received ones into plain values.

Everything lives on loopback. Addresses are taken from below the kernel's ephemeral range, so that a server that is
down for a moment does not lose its port to somebody's outgoing connection. Nothing sleeps for luck: `wait_until` polls a
condition up to a deadline, and says what it saw last.
"""

import os
import random
import socket
import time

# Deadlines are for a busy machine with two cores; a passing test never comes near them.
PATIENCE = 60.0

SEED = int(os.environ.get("TRACESPOOL_TEST_SEED") or random.SystemRandom().randrange(1 << 32))

_used_ports = set()


def free_port():
    """A port that nobody listens on and that the kernel will not hand out by itself."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as f:
        top = min(int(f.read().split()[0]), 32768)
    for _ in range(1000):
        port = random.SystemRandom().randrange(10000, top)
        if port in _used_ports:
            continue
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        _used_ports.add(port)
        return port
    raise AssertionError("no free port found between 10000 and %d" % top)


def wait_until(condition, what, timeout=PATIENCE, interval=0.05):
    """Polls `condition` until it returns something true, and returns that.

    `condition` may return (done, seen): `seen` is reported when time runs out. An exception counts as "not yet".
    """
    deadline = time.monotonic() + timeout
    seen = None
    while True:
        try:
            result = condition()
            if isinstance(result, tuple):
                result, seen = result
            if result:
                return result
        except (OSError, AssertionError) as e:
            seen = repr(e)
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout:.0f} s still not: {what}" + (f"; last seen: {seen}" if seen is not None else ""))
        time.sleep(interval)
