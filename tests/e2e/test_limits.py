"""A full spool refuses, in words that make every client try again, and heals."""

import gzip
import os

from google.rpc import status_pb2

from peers import wait_until
from peers.daemon import assert_balanced, remove_directory
from peers.otlp import GrpcClient, HttpClient, make_request

KIB, MIB = 1 << 10, 1 << 20
# Small enough that a test fills it in a moment.
SMALL = {"max_bytes": "4MiB", "segment_bytes": "128KiB", "min_free_disk": "64MiB"}
SMALL_BYTES = 4 * MIB


def test_a_full_spool_refuses_and_heals(make_daemon, receiver):
    receiver.down()
    limit = 16 * MIB
    daemon = make_daemon([receiver.backend("otlp_grpc")], spool={"max_bytes": "16MiB", "segment_bytes": "1MiB", "min_free_disk": "64MiB"}).start()
    http_client, grpc_client = HttpClient(daemon.port), GrpcClient(daemon.port)

    acknowledged, refusal = [], None
    for _ in range(2 * limit // 65536):
        request, ids = make_request(1, padding=65536)
        answer = http_client.send(request)
        if not answer.ok:
            refusal = answer
            break
        acknowledged += ids
    assert refusal is not None, f"max_bytes is 16 MiB, and {len(acknowledged) * 65536 / MIB:.0f} MiB were taken"
    # A quarter of the cap at least must be of use, or the cap means nothing to an operator.
    assert len(acknowledged) * 65536 > limit // 4, f"full after {len(acknowledged)} requests of 64 KiB"
    assert refusal.status == 503
    assert float(refusal.headers.get("retry-after", 0)) <= 2, "SDKs drop a batch when they are told to wait for long"
    assert refusal.headers["content-type"] == "application/x-protobuf"
    assert "full" in status_pb2.Status.FromString(refusal.body).message
    assert grpc_client.send(make_request(1, padding=65536)[0]).status == "UNAVAILABLE"
    status = daemon.status()
    assert status["received"]["refused"]["full"] >= 2
    # max_bytes may be passed by one commit group, never more.
    assert status["spool"]["bytes"] <= limit + MIB, status["spool"]

    # It holds over a restart, too.
    daemon.kill9()
    daemon.start()
    assert daemon.status()["spool"]["bytes"] <= limit, "a start passes the cap"
    assert http_client.send(make_request(1, padding=65536)[0]).status == 503

    receiver.up()
    wait_until(lambda: receiver.has(acknowledged), "all that was acknowledged is delivered")

    def taken():
        request, ids = make_request(1, padding=65536)
        answer = http_client.send(request)
        return ids if answer.ok else (False, answer)

    again = wait_until(taken, "the doors take requests again")
    wait_until(lambda: receiver.has(again), "and deliver them")
    daemon.wait_drained()
    grpc_client.close()


def test_a_request_that_is_too_large_is_refused_for_good(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_grpc")])
    daemon.config["receive"]["max_request_bytes"] = "1MiB"
    daemon.write_config()
    daemon.start()
    large, _ = make_request(1, padding=2 * MIB)
    answer = HttpClient(daemon.port).send(large)
    assert answer.status == 413, answer.status
    grpc_client = GrpcClient(daemon.port)
    assert grpc_client.send(large).status == "RESOURCE_EXHAUSTED"
    # And after decompression: 2 MiB of zeros fit in a few KiB on the wire.
    bomb, _ = make_request(1)
    bomb.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="zeros").value.string_value = "0" * (2 * MIB)
    answer = HttpClient(daemon.port).send(gzip.compress(bomb.SerializeToString()), headers={"Content-Encoding": "gzip"})
    assert answer.status == 413, answer.status
    assert daemon.status()["received"]["refused"]["too_large"] == 3
    request, ids = make_request(1)
    assert grpc_client.send(request).ok
    wait_until(lambda: receiver.has(ids), "a small request passes")
    grpc_client.close()


def test_a_disk_that_is_nearly_full_refuses_and_heals(make_daemon, receiver):
    receiver.down()
    spool = {**SMALL, "min_free_disk": "1000TiB", "when_full": "discard_oldest"}
    daemon = make_daemon([receiver.backend("otlp_grpc")], spool=spool).start()
    client, acknowledged, answer = HttpClient(daemon.port), [], None
    for _ in range(8):
        request, ids = make_request(1, padding=32 * KIB)
        answer = client.send(request)
        if not answer.ok:
            break
        acknowledged += ids
    # The segment at hand has its space already; no further one is begun.
    assert len(acknowledged) <= 3 and answer.status == 503, answer
    assert "disk" in status_pb2.Status.FromString(answer.body).message, answer
    assert GrpcClient(daemon.port).send(request).status == "UNAVAILABLE"
    assert daemon.status()["received"]["refused"]["full"] == 2
    assert daemon.backend()["discarded"]["queue_cap"] == 0, "what is discarded would not help"
    daemon.config["spool"]["min_free_disk"] = "64MiB"
    daemon.write_config()
    daemon.restart()
    assert client.send(request).ok
    receiver.up()
    wait_until(lambda: receiver.has(acknowledged + ids), "all that was taken is delivered")


# --- what gives way ---


def send_all(daemon, count, padding=32 * KIB, spans=2, check=lambda: None):
    """Sends requests of some spans each, all of which must be taken; returns their span ids, oldest first."""
    client, sent = HttpClient(daemon.port), []
    for n in range(count):
        request, ids = make_request(spans, padding=padding // spans)
        answer = client.send(request)
        assert answer.ok, f"request {n} was refused: {answer.status} {answer.body!r}"
        sent += ids
        check()
    return sent


def within(daemon, limit):
    """max_bytes may be passed by one commit group, never more."""

    def check():
        spool = daemon.status()["spool"]
        assert spool["bytes"] <= limit + MIB, spool

    return check


def state_bytes(daemon):
    """What really lies on disk; a file with two names counts once."""
    sizes = {}
    for root, _, files in os.walk(daemon.state_dir):
        for name in files:
            try:
                s = os.stat(os.path.join(root, name))
            except FileNotFoundError:
                continue
            sizes[s.st_ino] = s.st_blocks * 512
    return sum(sizes.values())


def balanced(daemon, name=None):
    backend = daemon.backend(name)
    assert_balanced(backend)
    return backend


def test_the_oldest_give_way(make_daemon, receiver):
    receiver.down()
    daemon = make_daemon([receiver.backend("otlp_grpc")], spool={**SMALL, "when_full": "discard_oldest"}).start()
    sent = send_all(daemon, 300, check=within(daemon, SMALL_BYTES))
    assert state_bytes(daemon) <= SMALL_BYTES + 2 * MIB
    status = balanced(daemon)
    lost = status["discarded"]["queue_cap"]
    # At least a sixth is of use: two spare files of both journals, and a ledger, have their place in the small cap, too.
    assert status["owed"] == len(sent) and 0 < lost < len(sent) * 5 / 6, status
    assert daemon.status()["received"]["refused"]["full"] == 0
    # Said once a burst, with counts, not once a request.
    lines = [line for line in daemon.log().splitlines() if "a limit gave up records" in line]
    assert 1 <= len(lines) <= 10 and all("queue_cap" in line and "otlp_grpc" in line for line in lines), lines

    daemon.kill9()
    daemon.start()
    assert balanced(daemon)["discarded"]["queue_cap"] == lost
    receiver.up()
    status = daemon.wait_drained()
    # Those that are left are the newest, all of them, and each was counted once.
    assert set(sent[lost:]) <= receiver.ids().keys()
    assert status["delivered"]["spans"] == len(sent) - lost and status["owed"] == len(sent), status


def test_discards_and_deliveries_count_each_record_once(make_daemon, receiver):
    """Both go on at the same time, on the same records."""
    daemon = make_daemon([receiver.backend("otlp_grpc", batch_max_bytes="64KiB", workers=3)], spool={**SMALL, "when_full": "discard_oldest"}).start()
    sent = []
    for _ in range(6):
        receiver.down()
        sent += send_all(daemon, 60)
        receiver.up()
        sent += send_all(daemon, 60)
        assert_balanced(daemon.backend())
    status = daemon.wait_drained()
    assert status["owed"] == len(sent)
    assert status["discarded"]["queue_cap"] > 0, "nothing was discarded: the test shows nothing"
    assert status["delivered"]["spans"] + status["discarded"]["queue_cap"] == len(sent), status


def test_the_newest_give_way(make_daemon, receiver):
    receiver.down()
    daemon = make_daemon([receiver.backend("otlp_grpc")], spool={**SMALL, "when_full": "discard_newest"}).start()
    sent = send_all(daemon, 300, check=within(daemon, SMALL_BYTES))
    status = balanced(daemon)
    lost = status["discarded"]["queue_cap"]
    assert status["owed"] == len(sent) and 0 < lost < len(sent), status
    received = daemon.status()["received"]
    assert received["requests"] == 300 and received["spans"] == len(sent) and received["refused"]["full"] == 0, received
    assert "a limit gave up records" in daemon.log()
    daemon.restart()
    assert balanced(daemon)["discarded"]["queue_cap"] == lost
    receiver.up()
    daemon.wait_drained()
    assert set(sent[: len(sent) - lost]) <= receiver.ids().keys(), "those that were stored are the oldest"


def test_a_cap_in_traces_refuses_or_discards(make_daemon, receiver):
    receiver.down()
    daemon = make_daemon([receiver.backend("otlp_grpc")], spool={"max_traces": 40}).start()
    send_all(daemon, 40, padding=100)
    request, _ = make_request(1)
    answer = HttpClient(daemon.port).send(request)
    assert answer.status == 503 and "max_traces = 40" in status_pb2.Status.FromString(answer.body).message, answer
    assert daemon.status()["spool"]["traces"] == 40

    daemon.config["spool"]["when_full"] = "discard_oldest"
    daemon.write_config()
    daemon.restart()
    newest = send_all(daemon, 100, padding=100)
    status = balanced(daemon)
    assert 30 <= status["backlog"]["traces"] <= 40, status
    assert status["owed"] == 280 and status["discarded"]["queue_cap"] == 280 - status["backlog"]["spans"], status
    receiver.up()
    daemon.wait_drained()
    assert set(newest[-60:]) <= receiver.ids().keys()

    receiver.down()
    daemon.config["spool"]["when_full"] = "discard_newest"
    daemon.write_config()
    daemon.restart()
    oldest = send_all(daemon, 60, padding=100)
    status = balanced(daemon)
    assert status["backlog"]["traces"] == 40, status
    receiver.up()
    daemon.wait_drained()
    assert set(oldest[:80]) <= receiver.ids().keys() and not set(oldest[80:]) & receiver.ids().keys()


def test_a_backend_with_its_own_cap_never_makes_the_doors_refuse(make_daemon, receiver, directory):
    receiver.down()
    file = {"name": "file", "kind": "file", "path": os.path.join(directory, "traces.jsonl"), "rotate_bytes": "1GiB"}
    slow = receiver.backend("otlp_grpc", when_full="discard_oldest", max_backlog_bytes="512KiB")
    daemon = make_daemon([file, slow], spool=SMALL).start()
    sent = send_all(daemon, 300)
    wait_until(lambda: (daemon.backend("otlp_grpc")["backlog"]["bytes"] <= 512 * KIB, daemon.backend("otlp_grpc")), "its backlog is cut")
    daemon.wait_drained(name="file")
    assert balanced(daemon, "file")["delivered"]["spans"] == len(sent)
    assert sum(daemon.backend("file")["discarded"].values()) == 0, "another backend pays for it"
    status = balanced(daemon, "otlp_grpc")
    assert status["backlog"]["spans"] + status["discarded"]["queue_cap"] == len(sent), status
    assert status["backlog"]["bytes"] > 256 * KIB, "more was discarded than need be"
    receiver.up()
    daemon.wait_drained(name="otlp_grpc")
    assert set(sent[-10:]) <= receiver.ids().keys()


def test_a_backend_that_gives_way_does_so_at_the_cap_only(make_daemon, receiver, directory):
    receiver.down()
    file = {"name": "file", "kind": "file", "path": os.path.join(directory, "traces.jsonl"), "rotate_bytes": "1GiB"}
    daemon = make_daemon([file, receiver.backend("otlp_grpc", when_full="discard_oldest")], spool=SMALL).start()
    send_all(daemon, 20)
    assert balanced(daemon, "otlp_grpc")["discarded"]["queue_cap"] == 0
    client = HttpClient(daemon.port)
    for _ in range(280):
        request, _ = make_request(2, padding=16 * KIB)
        # The other backend may be a moment behind.
        wait_until(lambda: client.send(request).ok, "its debts give way", interval=0.05)
    daemon.wait_drained(name="file")
    assert balanced(daemon, "file")["delivered"]["spans"] == 600
    assert balanced(daemon, "otlp_grpc")["discarded"]["queue_cap"] > 0


def test_debts_of_a_removed_backend_give_way_before_anybody_is_refused(make_daemon, receiver, directory):
    receiver.down()
    other = {"name": "gone", "kind": "otlp_grpc", "endpoint": "http://127.0.0.1:1"}
    file = {"name": "file", "kind": "file", "path": os.path.join(directory, "traces.jsonl"), "rotate_bytes": "1GiB"}
    daemon = make_daemon([file, other], spool=SMALL).start()
    owed = len(send_all(daemon, 30))
    daemon.wait_drained(name="file")
    daemon.config["backend"] = [file]
    daemon.write_config()
    daemon.restart()
    assert balanced(daemon, "gone")["state"] == "removed"
    assert daemon.backend("gone")["backlog"]["spans"] == owed
    client = HttpClient(daemon.port)
    for _ in range(200):
        request, _ = make_request(2, padding=16 * KIB)
        wait_until(lambda: client.send(request).ok, "it gives way", interval=0.05)
    status = balanced(daemon, "gone")
    assert status["discarded"]["queue_cap"] == owed and status["backlog"]["records"] == 0, status
    daemon.wait_drained(name="file")
    assert sum(daemon.backend("file")["discarded"].values()) == 0


# --- dead letters ---


def refuse_bad(receiver):
    receiver.refuse = lambda spans: 400 if any(s.name == "bad" for s in spans) else None


def send_bad(daemon, count, padding=16 * KIB):
    """Sends records that the backend refuses, and returns when each is a dead letter, or was one."""
    client = HttpClient(daemon.port)
    for _ in range(count):
        assert client.send(make_request(1, name="bad", padding=padding)[0]).ok

    def condemned():
        # A record is convicted only where another one was taken since it was refused.
        assert client.send(make_request(1)[0]).ok
        status = daemon.backend()
        gone = status["discarded"]["dead_letter_cap"] + status["discarded"]["dead_letter_age"]
        return status["dead"]["spans"] + gone == count, status

    wait_until(condemned, "all are condemned", interval=0.2)
    daemon.wait_drained()


def test_dead_letters_keep_their_own_cap(make_daemon, receiver):
    refuse_bad(receiver)
    daemon = make_daemon(
        [receiver.backend("otlp_http")],
        spool={"segment_bytes": "64KiB", "max_bytes": "16MiB"},
        dead_letters={"max_bytes": "100KiB"},
    ).start()
    send_bad(daemon, 30)

    def capped():
        status = daemon.backend()
        dead, gone = status["dead"]["spans"], status["discarded"]["dead_letter_cap"]
        return dead + gone == 30 and status["dead"]["bytes"] <= 100 * KIB, status

    wait_until(capped, "the oldest dead letters are discarded", timeout=60)
    status = balanced(daemon)
    assert status["dead"]["records"] in (5, 6), status
    letters = daemon.status()["spool"]["dead_letters"]
    assert letters["records"] == status["dead"]["records"] and letters["max_bytes"] == 100 * KIB and letters["oldest_at"], letters
    side = os.path.join(daemon.state_dir, "side")

    def freed():
        segments = [n for n in os.listdir(side) if n.endswith(".seg")]
        return len(segments) <= 4, segments

    wait_until(freed, "the files of what was discarded are removed")
    daemon.kill9()
    daemon.start()
    again = daemon.status()["spool"]["dead_letters"]
    assert (again["records"], again["oldest_at"]) == (letters["records"], letters["oldest_at"])
    assert balanced(daemon)["discarded"] == status["discarded"]
    assert "dead_letter_cap" in daemon.log()


def test_dead_letters_grow_old_in_service(make_daemon, receiver):
    refuse_bad(receiver)
    daemon = make_daemon([receiver.backend("otlp_http")], dead_letters={"max_age": "4s"}).start()
    send_bad(daemon, 3)
    wait_until(lambda: (daemon.backend()["discarded"]["dead_letter_age"] == 3, daemon.backend()), "they are discarded", timeout=60)
    status = balanced(daemon)
    assert status["dead"]["records"] == 0, status
    letters = daemon.status()["spool"]["dead_letters"]
    assert letters["records"] == 0 and letters["oldest_at"] is None, letters
    daemon.kill9()
    daemon.start()
    assert balanced(daemon)["discarded"]["dead_letter_age"] == 3


# --- a whole backlog that expires ---

EXPIRING = {"max_bytes": "32MiB", "segment_bytes": "64KiB", "min_free_disk": "64MiB"}


def fill_and_expire(make_daemon, receiver, limit=32 * MIB, **config):
    """A backlog of some 200 segments for a backend that is down, and then is down for too long."""
    receiver.down()
    daemon = make_daemon([receiver.backend("otlp_grpc", **config.pop("backend", {}))], spool=EXPIRING, delivery={"retry_timeout": "1h"}, **config).start()
    sent = send_all(daemon, 200, padding=60_000)
    journal = os.path.join(daemon.state_dir, "journal")
    assert len([n for n in os.listdir(journal) if n.endswith(".seg")]) >= 190
    daemon.config["delivery"]["retry_timeout"] = "3s"
    daemon.write_config()
    daemon.restart()
    check = within(daemon, limit)

    def expired():
        check()
        status = daemon.backend()
        return status["backlog"]["records"] <= 2, status

    wait_until(expired, "the backlog expires", timeout=60, interval=0.05)
    return daemon, len(sent)


def test_a_backlog_that_expires_becomes_dead_letters_as_it_lies(make_daemon, receiver):
    daemon, sent = fill_and_expire(make_daemon, receiver)
    status = balanced(daemon)
    assert status["dead"]["spans"] + status["backlog"]["spans"] == sent and sum(status["discarded"].values()) == 0, status
    # Not copied: the files are those of the journal, by another name.
    labelled = os.path.join(daemon.state_dir, "side", "labelled")
    assert len(os.listdir(labelled)) >= 190
    letters = daemon.status()["spool"]["dead_letters"]
    assert letters["records"] >= 190 and letters["oldest_at"], letters
    assert state_bytes(daemon) < 20 * MIB, "it lies there twice"
    # Status shows the books, which are ahead of the disk for a moment; what is noted on disk makes the files go.
    journal = os.path.join(daemon.state_dir, "journal")
    wait_until(lambda: len([n for n in os.listdir(journal) if n.endswith(".seg")]) < 20, "the journal lets go of them")
    for stop in (daemon.kill9, daemon.terminate):
        stop()
        daemon.start()
        again = balanced(daemon)
        assert again["dead"]["spans"] >= status["dead"]["spans"] and again["owed"] == sent, again
        assert daemon.status()["spool"]["dead_letters"]["oldest_at"] == letters["oldest_at"]
    assert len(os.listdir(labelled)) >= 190


def test_a_backlog_that_expires_stays_in_the_cap_of_dead_letters(make_daemon, receiver):
    daemon, sent = fill_and_expire(make_daemon, receiver, dead_letters={"max_bytes": "3MiB"})
    wait_until(lambda: (daemon.backend()["dead"]["bytes"] <= 3 * MIB, daemon.backend()), "the rest is discarded")
    status = balanced(daemon)
    assert status["dead"]["bytes"] > 2 * MIB, status
    lost = status["discarded"]["dead_letter_cap"]
    assert lost + status["dead"]["spans"] + status["backlog"]["spans"] == sent, status
    # What keeps its room is not more than what is said to be there.
    labelled = os.path.join(daemon.state_dir, "side", "labelled")
    assert len(os.listdir(labelled)) <= status["dead"]["records"]
    daemon.kill9()
    daemon.start()
    assert balanced(daemon)["discarded"]["dead_letter_cap"] >= lost


def test_a_backlog_that_expires_is_discarded_where_nobody_wants_it(make_daemon, receiver):
    daemon, sent = fill_and_expire(make_daemon, receiver, backend={"after_retry_timeout": "discard"})
    status = balanced(daemon)
    assert status["dead"]["records"] == 0 and status["discarded"]["retry_timeout"] + status["backlog"]["spans"] == sent, status
    assert not os.listdir(os.path.join(daemon.state_dir, "side", "labelled"))
    daemon.kill9()
    daemon.start()
    again = balanced(daemon)
    assert again["discarded"]["retry_timeout"] >= status["discarded"]["retry_timeout"] and again["owed"] == sent, again


# --- whose state it is ---


def test_ledger_and_side_journal_of_another_spool_are_set_aside(make_daemon, receiver):
    refuse_bad(receiver)
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    send_bad(daemon, 2, padding=100)
    assert daemon.backend()["dead"]["records"] == 2
    daemon.terminate()
    # Somebody starts over, and forgets the rest.
    remove_directory(os.path.join(daemon.state_dir, "journal"))
    daemon.start()
    status = balanced(daemon)
    assert status["owed"] == 0 and status["dead"]["records"] == 0, "another spool's books were taken for this one's"
    assert daemon.status()["spool"]["dead_letters"]["records"] == 0
    names = os.listdir(daemon.state_dir)
    assert any(n.startswith("side.foreign-") for n in names) and any(n.startswith("ledger.damaged-") for n in names), names
    assert daemon.log().count("belongs to another spool") == 2, daemon.log()
    request, ids = make_request(1)
    assert HttpClient(daemon.port).send(request).ok
    wait_until(lambda: receiver.has(ids), "it goes on as a new spool")
    daemon.wait_drained()
    daemon.kill9()
    daemon.start()
    assert daemon.log().count("belongs to another spool") == 2, "said once"
    assert balanced(daemon)["delivered"]["spans"] == 1
