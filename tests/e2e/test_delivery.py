"""A plain OpenTelemetry SDK on one side, OTLP backends on the other."""

import gzip
import json
import os
import time
import zlib

import grpc
import pytest

from peers import wait_until
from peers.daemon import assert_balanced
from peers.otlp import GrpcClient, HttpClient, make_request, request_as_json
from peers.programs import as_spans, otel_environment, run_app


@pytest.mark.parametrize("ship", ["otlp_grpc", "otlp_http"])
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_every_span_arrives_as_it_was_sent(make_daemon, receiver, directory, protocol, ship):
    daemon = make_daemon([receiver.backend(ship)]).start()
    result = run_app("otel_app.py", directory, otel_environment(protocol, daemon.http), arguments=["200"])
    expected = as_spans(result)
    assert len(expected) == 600
    wait_until(lambda: receiver.has(expected), "every span arrived")
    assert receiver.by_id() == expected
    assert set(receiver.ids().values()) == {1}, "a span was delivered twice though nothing went wrong"
    assert daemon.wait_drained()["delivered"]["spans"] == 600
    assert {r[0] for r in receiver.requests} == {"grpc" if ship == "otlp_grpc" else "http"}


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_compression_of_what_is_shipped(make_daemon, receiver, compression):
    daemon = make_daemon([receiver.backend(k, compression=compression) for k in ["otlp_grpc", "otlp_http"]]).start()
    request, ids = make_request(3, padding=5000)
    assert HttpClient(daemon.port).send(request).ok
    wait_until(lambda: (receiver.ids() == dict.fromkeys(ids, 2), receiver.ids()), "both backends got the spans")
    headers = next(h for protocol, h, _ in receiver.requests if protocol == "http")
    assert headers.get("content-encoding", "none") == compression


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_what_the_doors_take(make_daemon, receiver, compression):
    """gRPC, HTTP with protobuf and with JSON, POST to / as well, all on one port."""
    daemon = make_daemon([receiver.backend("otlp_grpc")]).start()
    pack = {None: lambda b: b, "gzip": gzip.compress, "deflate": zlib.compress}[compression]
    headers = {"Content-Encoding": compression} if compression else {}
    sent = []
    for path in ["/v1/traces", "/"]:
        client = HttpClient(daemon.port, path)
        request, ids = make_request(2)
        answer = client.send(pack(request.SerializeToString()), headers=headers)
        assert answer.ok and answer.headers["content-type"] == "application/x-protobuf", answer
        sent += ids
        request, ids = make_request(2)
        answer = client.send(pack(request_as_json(request).encode()), "application/json", headers)
        assert answer.ok and answer.headers["content-type"].startswith("application/json"), answer
        sent += ids
    client = GrpcClient(daemon.port)
    how = {None: grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip, "deflate": None}[compression]
    if how is not None:  # gRPC takes no deflate
        request, ids = make_request(2)
        assert client.send(request, how).ok
        sent += ids
    client.close()
    wait_until(lambda: (receiver.ids() == dict.fromkeys(sent, 1), receiver.ids()), "every span arrived once")


def test_bad_requests_are_refused_for_good(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    client = HttpClient(daemon.port)
    for body in [b"\xff\xff garbage", b"\x0a\x05ab"]:
        answer = client.send(body)
        assert answer.status == 400, f"{body!r} was answered with {answer.status}"
    assert client.send("{", "application/json").status == 400
    assert client.send(b"", "text/plain").status == 415
    assert HttpClient(daemon.port, "/v1/nothing").send(b"").status == 404
    # An id of a length that decoders refuse.
    request, _ = make_request(1)
    request.resource_spans[0].scope_spans[0].spans[0].span_id = b"\1" * 7
    grpc_client = GrpcClient(daemon.port)
    assert client.send(request).status == 400
    assert grpc_client.send(request).status == "INVALID_ARGUMENT"
    status = daemon.status()
    assert status["received"]["refused"]["invalid"] >= 4, status["received"]
    assert status["spool"]["records"] == 0 and receiver.ids() == {}
    # The connection and the daemon survived all that.
    request, ids = make_request(1)
    assert client.send(request).ok
    wait_until(lambda: receiver.has(ids), "a good request after bad ones arrives")
    grpc_client.close()


@pytest.mark.parametrize(
    "kind, script",
    [
        ("otlp_http", [503, 429, 502, 408, 504]),
        ("otlp_grpc", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE]),
    ],
)
def test_retryable_answers_are_retried(make_daemon, receiver, kind, script):
    receiver.script.extend(script)
    daemon = make_daemon([receiver.backend(kind)]).start()
    client, sent = HttpClient(daemon.port), []
    for _ in range(20):
        request, ids = make_request(2)
        assert client.send(request).ok
        sent += ids
    wait_until(lambda: (receiver.ids() == dict.fromkeys(sent, 1), receiver.ids()), "every span arrived exactly once")
    account = daemon.wait_drained()
    assert not receiver.script, f"answers that were never asked for: {receiver.script}"
    assert account["delivered"]["spans"] == 40 and account["state"] == "up"


@pytest.mark.parametrize("kind, refusal", [("otlp_http", 400), ("otlp_grpc", grpc.StatusCode.INVALID_ARGUMENT)])
def test_a_record_that_is_refused_for_ever_delays_nobody(make_daemon, receiver, kind, refusal):
    receiver.refuse = lambda spans: refusal if any(s.name == "poison" for s in spans) else None
    receiver.down()  # so that good and bad meet in one batch
    daemon = make_daemon([receiver.backend(kind)]).start()
    client, good = HttpClient(daemon.port), []
    for n in range(21):
        request, ids = make_request(2, name="poison" if n == 10 else "good")
        assert client.send(request).ok
        good += ids if n != 10 else []
    receiver.up()
    wait_until(lambda: receiver.has(good), "every good span arrived")
    account = daemon.wait_drained(timeout=120)
    assert account["dead"]["records"] == 1 and account["dead"]["spans"] == 2, account
    assert account["delivered"]["spans"] == 40
    daemon.restart()
    assert daemon.backend()["dead"]["records"] == 1, "the dead letter did not survive a restart"
    assert_balanced(daemon.backend())


@pytest.mark.parametrize("kind, answer", [("otlp_http", 401), ("otlp_grpc", grpc.StatusCode.PERMISSION_DENIED)])
def test_a_backend_that_wants_the_operator_blocks_and_keeps_everything(make_daemon, receiver, kind, answer):
    receiver.refuse = lambda spans: answer
    daemon = make_daemon([receiver.backend(kind)]).start()
    request, ids = make_request(2)
    assert HttpClient(daemon.port).send(request).ok
    blocked = wait_until(
        lambda: (daemon.backend() if daemon.backend()["state"] == "blocked" else False, daemon.backend()), "the backend is blocked"
    )
    assert blocked["backlog"]["spans"] == 2 and blocked["dead"]["records"] == 0 and blocked["last_error"], blocked
    receiver.refuse = lambda spans: None
    wait_until(lambda: receiver.has(ids), "delivered once the backend is put right")
    assert daemon.wait_drained()["state"] == "up"


@pytest.mark.parametrize("kind, answer", [("otlp_http", 413), ("otlp_http", 400), ("otlp_grpc", grpc.StatusCode.INTERNAL)])
def test_a_backend_that_refuses_everything_condemns_nothing(make_daemon, receiver, kind, answer):
    receiver.refuse = lambda spans: answer
    daemon = make_daemon([receiver.backend(kind)]).start()
    client, sent = HttpClient(daemon.port), []
    for _ in range(30):
        request, ids = make_request(1)
        assert client.send(request).ok
        sent += ids
    blocked = wait_until(
        lambda: (daemon.backend() if daemon.backend()["state"] == "blocked" else False, daemon.backend()), "the backend is blocked"
    )
    assert blocked["backlog"]["records"] == 30 and blocked["dead"]["records"] == 0, blocked
    receiver.refuse = lambda spans: None
    wait_until(lambda: receiver.has(sent), "delivered once the backend is put right")
    account = daemon.wait_drained()
    assert account["dead"]["records"] == 0 and account["delivered"]["spans"] == 30, account
    assert_balanced(account)


def test_what_comes_while_no_backend_is_configured_waits_for_the_next_one(make_daemon, receiver):
    small = {"segment_bytes": "64KiB", "keep_delivered": "0s"}
    daemon = make_daemon([receiver.backend("otlp_http")], spool=small).start()
    request, first = make_request(1)
    assert HttpClient(daemon.port).send(request).ok
    wait_until(lambda: receiver.has(first), "delivered")
    daemon.wait_drained()
    daemon.terminate()

    configured = daemon.config["backend"]
    # As a service: an ordinary user's daemon would make a `file` backend of its own.
    service = {"INVOCATION_ID": "0" * 32}
    daemon.config["backend"] = []
    daemon.write_config()
    daemon.start(**service)
    removed = daemon.status()["backends"][0]
    assert removed["state"] == "removed" and removed["owed"] == 1
    client, waiting = HttpClient(daemon.port), []
    # Segments that nobody needs go with the checkpoint of every second: traffic over a few of them.
    end = time.monotonic() + 3
    while time.monotonic() < end:
        request, ids = make_request(1, padding=16384)
        assert client.send(request).ok
        waiting += ids
    removed = daemon.status()["backends"][0]
    assert removed["owed"] == 1 and removed["backlog"]["records"] == 0, "a removed backend is owed nothing new"
    daemon.kill9()
    daemon.start(**service)
    daemon.terminate()

    daemon.config["backend"] = configured
    daemon.write_config()
    daemon.start()
    wait_until(lambda: receiver.has(waiting), "delivered when there is a backend again")
    assert_balanced(daemon.wait_drained())


def test_a_dead_backend_does_not_delay_another(make_daemon, receiver, directory):
    file = os.path.join(directory, "traces.jsonl")
    daemon = make_daemon([receiver.backend("otlp_http"), {"name": "file", "kind": "file", "path": file}]).start()
    receiver.down()
    client, sent = HttpClient(daemon.port), []
    for _ in range(50):
        request, ids = make_request(2)
        assert client.send(request).ok
        sent += ids
    account = daemon.wait_drained(name="file")
    assert account["delivered"]["spans"] == 100
    waiting = daemon.backend("otlp_http")
    assert waiting["backlog"]["spans"] == 100 and waiting["delivered"]["spans"] == 0
    assert sorted(_ids_in_file(file)) == sorted(sent)
    receiver.up()
    wait_until(lambda: receiver.has(sent), "the other backend has everything too")
    assert daemon.wait_drained(name="otlp_http")["delivered"]["spans"] == 100


def _ids_in_file(path):
    with open(path) as f:
        for line in f:
            for rs in json.loads(line)["resourceSpans"]:
                for ss in rs["scopeSpans"]:
                    yield from (s["spanId"] for s in ss["spans"])
