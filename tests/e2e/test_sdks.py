"""OpenTelemetry SDKs of other languages: each brings encoders and HTTP stacks of its own."""

import pytest

from peers import wait_until
from peers.programs import as_spans, otel_environment, peer, run_program

TRACES = 100


def node():
    return ["node", peer("node", "app.js")]


def go():
    return [peer("go", "program")]


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize(
    "app, protocol",
    [(node, "grpc"), (node, "http/protobuf"), (node, "http/json"), (go, "grpc"), (go, "http/protobuf")],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_every_span_arrives_as_the_sdk_made_it(make_daemon, receiver, directory, app, protocol, compression):
    daemon = make_daemon([receiver.backend("otlp_grpc")]).start()
    environment = otel_environment(protocol, daemon.http, compression)
    expected = as_spans(run_program([*app(), str(TRACES)], directory, environment))
    assert len(expected) == 3 * TRACES
    wait_until(lambda: receiver.has(expected), "every span arrived")
    assert receiver.by_id() == expected
    assert set(receiver.ids().values()) == {1}, "a span was delivered twice though nothing went wrong"
    assert daemon.status()["received"]["refused"] == {"full": 0, "invalid": 0, "too_large": 0}
