"""kill -9, SIGTERM, a lost ledger: what was acknowledged is delivered."""

import os
import random
import shutil
import time

from peers import SEED, wait_until
from peers.daemon import assert_balanced
from peers.otlp import HttpClient, Load, make_request

KILLS = 12
# The contract allows what was delivered in the last second before a kill; the rest is for a machine that is busy.
REDELIVERED_SECONDS = 1.0 + 3.0


def test_kill_9_under_load_loses_nothing_acknowledged(make_daemon, receiver, say):
    rng = random.Random(SEED)
    daemon = make_daemon([receiver.backend("otlp_grpc")]).start()
    load = Load(daemon.port, seed=SEED).start()
    kills = []
    try:
        for n in range(KILLS):
            # Something must have been acknowledged in this life, or the kill proves nothing.
            before = load.acknowledged_count()
            wait_until(lambda: load.acknowledged_count() > before + 20, f"requests are acknowledged in life {n + 1}")
            # Every third life has no backend, so that a backlog is killed as well.
            if n % 3 == 1:
                receiver.down()
            lasts = time.monotonic() + rng.uniform(0.02, 1.0)
            wait_until(lambda: time.monotonic() >= lasts, "it is time to kill", interval=0.005)
            kills.append(time.monotonic())
            daemon.kill9()
            if not receiver.running:
                receiver.up()
            daemon.start()
    finally:
        load.stop()
    assert load.refusals.keys() <= {503, "UNAVAILABLE"}, f"refused with {load.refusals}"

    wait_until(lambda: receiver.has(load.acknowledged), "everything acknowledged is delivered", timeout=120)
    account = daemon.wait_drained(timeout=120)
    delivered = receiver.ids()
    lost, invented = load.acknowledged - delivered.keys(), delivered.keys() - load.sent
    again = {i: n for i, n in delivered.items() if n > 1}
    say(
        f"kill -9 x {KILLS} (seed {SEED}): {len(load.sent)} spans sent, {len(load.acknowledged)} acknowledged, "
        f"{len(delivered)} delivered, {len(lost)} lost, {len(again)} delivered again"
    )
    assert not lost and not invented, f"lost {sorted(lost)[:5]}, never sent {sorted(invented)[:5]}"
    assert account["dead"]["records"] == 0 and account["damaged"] == 0, account

    # Delivered again only for a kill, and only what had been delivered just before it. Most lives here are shorter than
    # that; what is older is held by test_the_ledger_may_be_deleted, which kills as well.
    with receiver.lock:
        times = {i: receiver.arrivals[i] for i in again}
    for span_id, arrivals in times.items():
        for first, second in zip(arrivals, arrivals[1:]):
            excused = any(first - 0.5 <= k <= second and k - first <= REDELIVERED_SECONDS for k in kills)
            assert excused, f"span {span_id} delivered again after {second - first:.1f} s without a kill that excuses it"


def test_sigterm_under_load_keeps_everything(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    load = Load(daemon.port, seed=SEED).start()
    try:
        for _ in range(3):
            before = load.acknowledged_count()
            wait_until(lambda: load.acknowledged_count() > before + 50, "requests are acknowledged")
            daemon.terminate()
            daemon.start()
    finally:
        load.stop()
    assert load.refusals.keys() <= {503, "UNAVAILABLE"}, f"refused with {load.refusals}"
    wait_until(lambda: receiver.has(load.acknowledged), "everything acknowledged is delivered")
    account = daemon.wait_drained()
    delivered = receiver.ids()
    assert delivered.keys() <= load.sent
    # The backend answers at once, so a clean stop has the time to hear what became of the requests in flight.
    again = [i for i, n in delivered.items() if n > 1]
    assert not again, f"{len(again)} of {len(delivered)} spans were delivered again though every stop was clean"
    assert account["delivered"]["spans"] == len(delivered)


def test_sigterm_with_the_backend_down_keeps_everything(make_daemon, receiver):
    receiver.down()
    daemon = make_daemon([receiver.backend("otlp_grpc")]).start()
    client, sent = HttpClient(daemon.port), []
    for _ in range(100):
        request, ids = make_request(2)
        assert client.send(request).ok
        sent += ids
    daemon.terminate()
    daemon.start()
    assert daemon.backend()["backlog"]["spans"] == 200
    assert_balanced(daemon.backend())
    receiver.up()
    wait_until(lambda: (receiver.ids() == dict.fromkeys(sent, 1), f"{len(receiver.ids())} of 200"), "everything is delivered, once")
    assert daemon.wait_drained()["delivered"]["spans"] == 200


def test_the_ledger_may_be_deleted(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    client = HttpClient(daemon.port)

    def send(requests):
        ids = [i for request, ids in (make_request(2) for _ in range(requests)) if client.send(request).ok for i in ids]
        assert len(ids) == 2 * requests
        return ids

    # Delivered long before, delivered just before, and waiting, when the ledger goes.
    early = send(50)
    wait_until(lambda: receiver.has(early), "the first spans arrived")
    daemon.wait_drained()
    settled = time.monotonic() + REDELIVERED_SECONDS
    wait_until(lambda: time.monotonic() >= settled, "the first delivery is no longer recent")
    late = send(50)
    wait_until(lambda: receiver.has(late), "more spans arrived")
    receiver.down()
    waiting = send(50)

    daemon.kill9()
    ledger = os.path.join(daemon.state_dir, "ledger")
    assert os.path.isdir(ledger), f"no ledger in {os.listdir(daemon.state_dir)}"
    shutil.rmtree(ledger)
    receiver.up()
    daemon.start()

    wait_until(lambda: receiver.has(early + late + waiting), "everything arrived")
    account = daemon.wait_drained()
    counts = receiver.ids()
    assert {counts[i] for i in early} == {1}, "spans delivered long before were delivered again"
    assert {counts[i] for i in late} <= {1, 2} and {counts[i] for i in waiting} <= {1, 2}
    assert account["owed"] == 300, f"the accounts did not survive the loss of the ledger: {account}"


def test_the_accounts_survive_restarts(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_grpc")]).start()
    total = 0
    for stop in [daemon.terminate, daemon.kill9, daemon.terminate]:
        client = HttpClient(daemon.port)
        for _ in range(30):
            assert client.send(make_request(3)[0]).ok
            total += 3
        account = daemon.wait_drained()
        assert account["owed"] == total, account
        stop()
        daemon.start()
        account = daemon.wait_drained()
        assert account["owed"] == account["delivered"]["spans"] == total, account
        assert daemon.status()["spool"]["records"] == 0
