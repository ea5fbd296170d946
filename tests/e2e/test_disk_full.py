"""A disk that is really full: the daemon refuses, stays, delivers what it has, starts again, and heals by itself."""

import json
import os
import threading

import pytest

from peers import SEED, wait_until
from peers.daemon import assert_balanced
from peers.otlp import GrpcClient, HttpClient, Load, make_request
from peers.small_disk import MIB, SmallDisk

# Small segments, so that room is asked for often; nothing kept for replay, so that delivery gives it back.
SPOOL = {"segment_bytes": "1MiB", "min_free_disk": "0B", "keep_delivered": "0s"}


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request, directory):
    disk = SmallDisk(request.param, directory).mount()
    yield disk
    disk.unmount()


@pytest.fixture
def make_daemon_on(small_disk, make_daemon):
    """make_daemon_on(backends, **spool): a daemon whose state lies on the small disk, and nothing else of it."""

    def make(backends, **spool):
        state = os.path.join(small_disk.path, "state")
        daemon = make_daemon(backends, state_dir=state, spool={**SPOOL, **spool})
        daemon.state_dir = state
        return daemon

    return make


class FileBackend:
    """A `file` backend on another disk, which can be made unreachable: a file stands where its directory should be."""

    def __init__(self, directory):
        self.directory = os.path.join(directory, "out")
        self.config = {"name": "file", "kind": "file", "path": os.path.join(self.directory, "traces.jsonl")}

    def block(self):
        with open(self.directory, "w"):
            pass

    def unblock(self):
        os.remove(self.directory)

    def ids(self):
        found = set()
        for name in os.listdir(self.directory) if os.path.isdir(self.directory) else []:
            with open(os.path.join(self.directory, name)) as f:
                for line in f:
                    if line.endswith("\n"):
                        for rs in json.loads(line)["resourceSpans"]:
                            found.update(s["spanId"] for ss in rs["scopeSpans"] for s in ss["spans"])
        return found


def send_until_refused(daemon, most=16 * MIB, size=30_000):
    """Sends until there is no room; returns the ids of what was acknowledged, and the refusal."""
    client, acknowledged = HttpClient(daemon.port), []
    for _ in range(most // size):
        request, ids = make_request(1, padding=size)
        answer = client.send(request)
        if not answer.ok:
            return acknowledged, answer
        acknowledged += ids
    raise AssertionError(f"{most / MIB:.0f} MiB were acknowledged and the disk is full")


def assert_refused(answer):
    assert answer.status == 503, answer
    assert float(answer.headers.get("retry-after", 0)) <= 2, "SDKs drop a batch when they are told to wait for long"


def taken(daemon):
    """Whether a request is acknowledged now: its ids."""
    request, ids = make_request(1)
    answer = HttpClient(daemon.port).send(request)
    return ids if answer.ok else (False, answer)


def test_a_disk_that_fills_under_load_is_ridden_out(small_disk, make_daemon_on, receiver, say):
    receiver.down()
    daemon = make_daemon_on([receiver.backend("otlp_grpc")]).start()
    load = Load(daemon.port, seed=SEED, paddings=[100, 2000, 20_000]).start()
    try:
        wait_until(lambda: load.acknowledged_count() > 100, "requests are acknowledged")
        small_disk.fill()
        wait_until(lambda: ({503, "UNAVAILABLE"} <= load.refusals.keys(), load.refusals), "both kinds of clients are refused")
        assert daemon.process.poll() is None, "a full disk ended the daemon"
        assert daemon.status()["received"]["refused"]["full"] > 0
        # What is there is delivered, though not a block is free.
        full = set(load.acknowledged)
        receiver.up()
        wait_until(lambda: (receiver.has(full), f"{len(receiver.ids())} of {len(full)} spans"), "the backlog is delivered while the disk is full")
        small_disk.make_room()
        before = load.acknowledged_count()
        wait_until(lambda: load.acknowledged_count() > before + 50, "the doors take requests again by themselves")
    finally:
        load.stop()
    assert load.refusals.keys() == {503, "UNAVAILABLE"}, load.refusals
    wait_until(lambda: receiver.has(load.acknowledged), "everything acknowledged is delivered")
    account = daemon.wait_drained()
    assert account["damaged"] == account["dead"]["records"] == 0, account
    assert receiver.ids().keys() <= load.sent
    say(f"{small_disk.kind}: {len(load.acknowledged)} spans acknowledged, refused {load.refusals}")
    daemon.terminate()


def test_what_is_kept_for_replay_gives_way_to_a_full_disk(small_disk, make_daemon_on, receiver):
    daemon = make_daemon_on([receiver.backend("otlp_http")], keep_delivered="24h").start()
    client, sent = HttpClient(daemon.port), []
    for _ in range(8 * MIB // 30_000):
        request, ids = make_request(1, padding=30_000)
        assert client.send(request).ok
        sent += ids
    wait_until(lambda: receiver.has(sent), "all is delivered")
    daemon.wait_drained()
    assert small_disk.used_below(daemon.state_dir) > 8 * MIB, "it is kept"
    small_disk.fill()
    more = []
    for _ in range(4 * MIB // 30_000):
        request, ids = make_request(1, padding=30_000)
        answer = client.send(request)
        assert answer.ok, f"refused, {answer}, though {small_disk.used_below(daemon.state_dir) / MIB:.1f} MiB are only kept"
        more += ids
    wait_until(lambda: receiver.has(more), "and that is delivered")
    daemon.wait_drained()


def test_it_starts_on_a_full_disk(small_disk, make_daemon_on, directory):
    backend = FileBackend(directory)
    backend.block()
    daemon = make_daemon_on([backend.config]).start()
    acknowledged = []

    def take(sent):
        ids, refusal = sent
        acknowledged.extend(ids)
        assert_refused(refusal)

    request, ids = make_request(3)
    assert HttpClient(daemon.port).send(request).ok
    acknowledged += ids

    # Two segments beside the one in use, made when there is nothing else to do.
    def kept_back():
        used = small_disk.used_below(os.path.join(daemon.state_dir, "journal"))
        return used >= 3 * MIB, f"{used / MIB:.2f} MiB in the journal"

    wait_until(kept_back, "room for starts is kept back")
    small_disk.fill()
    take(send_until_refused(daemon))
    # Each start needs a little room; it must be there each time, with a disk that is filled again in between.
    for _ in range(4):
        daemon.kill9()
        small_disk.fill()
        daemon.start()
        small_disk.fill()
        take(send_until_refused(daemon))
    grpc_client = GrpcClient(daemon.port)
    assert grpc_client.send(make_request(1, padding=2 * MIB)[0]).status == "UNAVAILABLE"
    grpc_client.close()

    # And stopped in order, too.
    daemon.terminate()
    small_disk.fill()
    backend.unblock()
    daemon.start()
    delivered = lambda: (backend.ids() >= set(acknowledged), f"{len(backend.ids())} of {len(acknowledged)} spans")
    wait_until(delivered, "what was acknowledged is delivered on the full disk")
    small_disk.make_room()
    acknowledged += wait_until(lambda: taken(daemon), "the doors take requests again")
    wait_until(delivered, "and deliver them")
    account = daemon.wait_drained()
    assert account["damaged"] == account["dead"]["records"] == 0, account


def test_it_refuses_before_the_disk_is_full(small_disk, make_daemon_on, receiver):
    receiver.down()
    daemon = make_daemon_on([receiver.backend("otlp_grpc")], min_free_disk="32MiB").start()
    _, refusal = send_until_refused(daemon, most=64 * MIB)
    assert_refused(refusal)
    # The rest is for others on this disk: less may be free by what the ledger took since, never by a segment.
    assert small_disk.free() > 31 * MIB, f"{small_disk.free() / MIB:.1f} MiB are left of 32"
    grpc_client = GrpcClient(daemon.port)
    assert grpc_client.send(make_request(1, padding=30_000)[0]).status == "UNAVAILABLE"
    grpc_client.close()
    receiver.up()
    wait_until(lambda: taken(daemon), "delivery makes room again")
    daemon.wait_drained()


def test_the_cap_holds_on_disk_and_space_comes_back(small_disk, make_daemon_on, receiver, say):
    receiver.down()
    cap = 16 * MIB
    daemon = make_daemon_on([receiver.backend("otlp_grpc")], max_bytes="16MiB").start()
    most, stop = [0], threading.Event()

    def watch():
        while not stop.wait(0.005):
            most[0] = max(most[0], small_disk.used_below(daemon.state_dir))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    load = Load(daemon.port, seed=SEED, paddings=[2000, 20_000, 60_000]).start()
    try:
        wait_until(lambda: {503, "UNAVAILABLE"} <= load.refusals.keys(), "the spool is full")
        # A start begins a segment, and recovery may write a group again: the cap holds there too.
        for _ in range(3):
            daemon.kill9()
            daemon.start()
        refused = sum(load.refusals.values())
        wait_until(lambda: sum(load.refusals.values()) > refused + 20, "it is full after the starts as well")
    finally:
        load.stop()
    receiver.up()
    wait_until(lambda: receiver.has(load.acknowledged), "everything acknowledged is delivered")
    daemon.wait_drained()
    # Six clients send at most five spans of 60 kB: more than that is in no commit group.
    group = 6 * 5 * 60_000
    assert most[0] <= cap + group, f"{most[0] / MIB:.2f} MiB lay on disk; the cap is 16 MiB"
    assert most[0] > cap // 2, f"only {most[0] / MIB:.2f} MiB were ever used: the cap was not tried"

    def returned():
        used = small_disk.used_below(daemon.state_dir)
        return used < cap // 2, f"{used / MIB:.2f} MiB"

    wait_until(returned, "the space is given back")
    used = small_disk.used_below(daemon.state_dir)
    say(f"{small_disk.kind}: at most {most[0] / MIB:.2f} MiB of 16, {used / MIB:.2f} MiB after delivery")
    assert_balanced(daemon.backend())
    stop.set()
    watcher.join(10)
