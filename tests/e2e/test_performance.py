"""A smoke test of the speed: printed, not asserted, so that the path stays fast from the first day.

Sixteen clients post requests of 16 KB over HTTP to the release binary, whose state lies on a real disk (target/). Beside it stands
what the disk itself can do with plain writes: one request per sync, and sixteen per sync, which is what group commit can reach.
"""

import multiprocessing
import os
import shutil
import socket
import threading
import time

import pytest

from conftest import REPOSITORY
from peers.otlp import make_request

CLIENTS, PROCESSES = 16, 4
REQUEST_BYTES = 16 * 1024
SECONDS = 5.0


def _client(port, until, latencies):
    """One connection, a prepared request, new ids each time: as little work as possible beside the daemon."""
    request, (span_id,) = make_request(1, padding=REQUEST_BYTES - 150)
    body = bytearray(request.SerializeToString())
    trace_id = request.resource_spans[0].scope_spans[0].spans[0].trace_id
    at_trace, at_span = body.index(trace_id), body.index(bytes.fromhex(span_id))
    head = f"POST /v1/traces HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/x-protobuf\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (began := time.perf_counter()) < until:
            body[at_trace : at_trace + 16] = os.urandom(16)
            body[at_span : at_span + 8] = os.urandom(8)
            s.sendall(head + body)
            answer = s.recv(4096)
            while b"\r\n\r\n" not in answer:
                more = s.recv(4096)
                assert more, "the daemon closed the connection"
                answer += more
            assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
            latencies.append(time.perf_counter() - began)


def _process(port, seconds, gate, results):
    gate.wait()
    until, lists = time.perf_counter() + seconds, [[] for _ in range(CLIENTS // PROCESSES)]
    threads = [threading.Thread(target=_client, args=(port, until, latencies)) for latencies in lists]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    results.put([x for latencies in lists for x in latencies])


def drive(port, seconds):
    """All clients for so long; returns the latencies and the time that passed."""
    context = multiprocessing.get_context("spawn")  # grpc is loaded here, and does not survive a fork
    gate, results = context.Barrier(PROCESSES + 1), context.Queue()
    processes = [context.Process(target=_process, args=(port, seconds, gate, results), daemon=True) for _ in range(PROCESSES)]
    for p in processes:
        p.start()
    gate.wait(120)
    began = time.perf_counter()
    latencies = [x for _ in processes for x in results.get(timeout=120)]
    passed = time.perf_counter() - began
    for p in processes:
        p.join(30)
        assert p.exitcode == 0
    return sorted(latencies), passed


def plain_disk(path, block, seconds=2.0):
    """Blocks a second that a plain loop of write and fdatasync gets onto this disk."""
    data, n = os.urandom(block), 0
    with open(path, "wb", buffering=0) as f:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            f.write(data)
            os.fdatasync(f.fileno())
            n += 1
        passed = time.perf_counter() - began
    os.unlink(path)
    return n / passed


@pytest.fixture
def on_disk():
    """A directory on the disk of the repository: the temporary directory may well be memory."""
    path = os.path.join(REPOSITORY, "target", f"perf-{os.getpid()}")
    os.makedirs(path)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_speed(make_daemon, release_binary, on_disk, say):
    single = plain_disk(os.path.join(on_disk, "plain"), REQUEST_BYTES)
    grouped = plain_disk(os.path.join(on_disk, "plain"), CLIENTS * REQUEST_BYTES) * CLIENTS
    daemon = make_daemon(
        [{"name": "file", "kind": "file", "path": os.path.join(on_disk, "traces.jsonl")}],
        binary=release_binary,
        state_dir=os.path.join(on_disk, "state"),
    ).start()
    latencies, passed = drive(daemon.port, SECONDS)
    n = len(latencies)
    assert n >= CLIENTS, "not every client got an answer"  # the one thing that is asserted: it measured something
    rate = n / passed
    began = time.perf_counter()
    account = daemon.wait_drained(timeout=120)
    assert account["delivered"]["spans"] == n, f"{n} acknowledged, {account['delivered']['spans']} delivered"
    say(
        f"{CLIENTS} clients x {REQUEST_BYTES // 1024} KB: {rate:.0f} requests/s, {rate * REQUEST_BYTES / 1e6:.0f} MB/s, "
        f"p50 {latencies[n // 2] * 1e3:.1f} ms, p99 {latencies[n * 99 // 100] * 1e3:.1f} ms; "
        f"file backend done {time.perf_counter() - began:.1f} s later"
    )
    say(
        f"the disk alone, write + fdatasync: {single:.0f} requests/s one by one (daemon: {rate / single:.2f} x), "
        f"{grouped:.0f} requests/s sixteen at a time (daemon: {rate / grouped:.2f} x)"
    )
