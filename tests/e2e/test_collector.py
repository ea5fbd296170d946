"""A real OpenTelemetry Collector on either side: as the client of the daemon, and as its backend."""

import collections
import os
import random

import pytest

from peers import SEED, wait_until
from peers.collector_process import Collector
from peers.daemon import assert_balanced
from peers.otlp import HttpClient, make_request
from peers.programs import as_spans, otel_environment, run_app
from peers.wire import I32, I64, LEN, VARINT, field, in_request, tag, varint


@pytest.fixture
def make_collector(request, directory):
    made = []

    def make(exporters=None):
        collector = Collector(os.path.join(directory, f"c{len(made)}"), exporters)
        made.append(collector)
        request.node.logs = [*getattr(request.node, "logs", []), ("log of the Collector", collector.log)]
        return collector

    yield make
    for collector in made:
        collector.kill()


def exporters_to(daemon, **more):
    """Every exporter, encoding and compression of the Collector that a tracespool takes."""
    every = {}
    for compression in ["none", "gzip", "zstd"]:
        every[f"otlp/{compression}"] = {"endpoint": daemon.grpc, "tls": {"insecure": True}, "compression": compression}
    for encoding in ["proto", "json"]:
        for compression in ["none", "gzip", "zstd", "deflate", "zlib"]:
            every[f"otlphttp/{encoding}-{compression}"] = {"endpoint": daemon.http, "encoding": encoding, "compression": compression}
    return {name: {**exporter, **more} for name, exporter in every.items()}


def test_a_collector_hands_over_every_span_in_every_encoding(make_daemon, make_collector, receiver, directory):
    daemon = make_daemon([receiver.backend("otlp_grpc")]).start()
    exporters = exporters_to(daemon)
    collector = make_collector(exporters).up()
    environment = otel_environment("grpc", f"http://127.0.0.1:{collector.grpc_port}")
    expected = as_spans(run_app("otel_app.py", directory, environment, arguments=["50"]))
    assert len(expected) == 150
    wait_until(lambda: (set(receiver.ids().values()) == {len(exporters)}, receiver.ids()), "every exporter handed over every span")
    assert receiver.ids().keys() == expected.keys()
    for span in receiver.spans:
        assert span == expected[span.span_id]
    assert daemon.status()["received"]["refused"] == {"full": 0, "invalid": 0, "too_large": 0}
    collector.down()


def test_a_collector_sends_again_what_was_refused_for_now(make_daemon, make_collector, receiver):
    """Its verdict on our refusals: what it takes for a final one it drops."""
    receiver.down()
    full = {"max_bytes": "16MiB", "segment_bytes": "1MiB", "min_free_disk": "64MiB"}
    daemon = make_daemon([receiver.backend("otlp_grpc")], spool=full).start()
    client, sent = HttpClient(daemon.port), []
    while (answer := client.send((made := make_request(1, padding=65536))[0])).ok:
        sent += made[1]
    assert answer.status == 503
    retry = {"initial_interval": "100ms", "max_interval": "500ms"}
    exporters = {k: v for k, v in exporters_to(daemon, retry_on_failure=retry).items() if k in ("otlp/gzip", "otlphttp/proto-gzip", "otlphttp/json-none")}
    collector = make_collector(exporters).up()
    to_collector = HttpClient(collector.http_port)
    request, ids = make_request(5, padding=65536)
    assert to_collector.send(request).ok
    refused = daemon.status()["received"]["refused"]["full"]
    # Each of the exporters has been refused, some of them more than once.
    wait_until(
        lambda: (daemon.status()["received"]["refused"]["full"] >= refused + 2 * len(exporters), daemon.status()["received"]),
        "the exporters try again",
    )
    assert "Dropping data" not in collector.log()
    receiver.up()
    wait_until(lambda: receiver.has(sent), "what was taken before is delivered")
    wait_until(
        lambda: ({receiver.ids().get(i) for i in ids} == {len(exporters)}, collector.log()[-500:]), "every exporter came through in the end"
    )
    daemon.wait_drained()


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("kind", ["otlp_grpc", "otlp_http"])
def test_a_collector_as_a_backend_holds_every_span(make_daemon, make_collector, directory, kind, compression):
    collector = make_collector().up()
    port = collector.grpc_port if kind == "otlp_grpc" else collector.http_port
    daemon = make_daemon([{"name": "collector", "kind": kind, "endpoint": f"http://127.0.0.1:{port}", "compression": compression}]).start()
    expected = as_spans(run_app("otel_app.py", directory, otel_environment("http/protobuf", daemon.http), arguments=["50"]))
    wait_until(lambda: (len(collector.spans()) >= len(expected), len(collector.spans())), "the Collector's file holds every span")
    assert {s.span_id: s for s in collector.spans()} == expected
    assert len(collector.spans()) == len(expected), "a span is there twice though nothing went wrong"
    account = daemon.wait_drained()
    assert account["delivered"]["spans"] == len(expected) and account["state"] == "up"


def test_a_collector_that_goes_away_misses_nothing(make_daemon, make_collector):
    collector = make_collector().up()
    endpoints = {"otlp_grpc": collector.grpc_port, "otlp_http": collector.http_port}
    daemon = make_daemon([{"name": k, "kind": k, "endpoint": f"http://127.0.0.1:{p}"} for k, p in endpoints.items()]).start()
    client, sent = HttpClient(daemon.port), []
    for n in range(60):
        if n == 20:
            collector.down()
        if n == 40:
            collector.up()
        request, ids = make_request(2)
        assert client.send(request).ok
        sent += ids

    def complete():
        held = [s.span_id for s in collector.spans()]
        return all(held.count(i) >= 2 for i in sent), f"{len(held)} of {2 * len(sent)}"

    wait_until(complete, "both backends have all of it")
    for name in endpoints:
        assert_balanced(daemon.wait_drained(name=name))


PLACES = [(), (1,), (1, 1), (1, 1, 1), (1, 1, 3), (1, 2), (1, 2, 1), (1, 2, 2), (1, 2, 2, 9), (1, 2, 2, 9, 2), (1, 2, 2, 9, 2, 5), (1, 2, 2, 9, 2, 6), (1, 2, 2, 11), (1, 2, 2, 13), (1, 2, 2, 15)]


def strange_request(rng, samples):
    """A real request with a strange field behind it, somewhere in its depths."""
    # No groups: proto3 has none, and the Collector's decoder does not get over one, whatever the specification says.
    wire_type = rng.choice([VARINT, I64, LEN, I32])
    content = {
        VARINT: lambda: varint(rng.choice([0, 1, 300, 2**31, 2**63, 2**64 - 1])),
        I64: lambda: rng.randbytes(8),
        LEN: lambda: field(1, rng.choice([b"", b"a", b"\xff", "é".encode(), bytes(8), bytes(16), rng.randbytes(5), field(2, b"")]))[1:],
        I32: lambda: rng.randbytes(4),
    }
    number = rng.choice([*range(1, 18), 1000, 19_500, 2**29 - 1])
    return rng.choice(samples) + in_request(*rng.choice(PLACES))(tag(number, wire_type) + content[wire_type]())


def test_whatever_is_acknowledged_a_collector_takes(make_daemon, make_collector, receiver):
    """Go's decoder and Python's judge what the door accepted: a request that one of them refuses is a dead letter there."""
    collector = make_collector().up()
    backends = [{"name": "collector", "kind": "otlp_http", "endpoint": f"http://127.0.0.1:{collector.http_port}"}, receiver.backend("otlp_grpc")]
    daemon = make_daemon(backends).start()
    data = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data")
    samples = []
    for name in sorted(os.listdir(data)):
        if name.endswith(".pb"):
            with open(os.path.join(data, name), "rb") as f:
                samples.append(f.read())
    rng = random.Random(SEED)
    client, verdicts = HttpClient(daemon.port), collections.Counter()
    for _ in range(2000):
        verdicts[client.send(strange_request(rng, samples)).status] += 1
    assert verdicts.keys() == {200, 400} and min(verdicts.values()) > 200, verdicts
    for backend in ("collector", "otlp_grpc"):
        account = daemon.wait_drained(name=backend)
        assert account["dead"]["records"] == 0 and account["rejected"]["spans"] == 0, account
        assert account["delivered"]["records"] == verdicts[200]
