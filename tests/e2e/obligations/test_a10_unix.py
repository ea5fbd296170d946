"""A10: Unix domain sockets, as a receiver serves them."""

import os
import stat

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from peers import wait_until
from peers.door import unique
from peers.otlp import PROTOBUF
from peers.programs import as_spans, peer, run_program
from peers.raw import call, curl, frame


def test_a10_1_the_mode_is_as_configured_and_the_path_goes_with_the_daemon(make_daemon):
    daemon = make_daemon(receive={})
    path = daemon.config["receive"]["socket"]["path"]
    daemon.config["receive"]["socket"]["mode"] = "0620"
    daemon.write_config()
    daemon.start()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o620
    daemon.terminate()
    assert not os.path.exists(path)


def test_a10_1_a_stale_socket_is_replaced_and_a_live_one_is_not(make_daemon):
    daemon, other = make_daemon(), make_daemon()
    path = daemon.config["receive"]["socket"]["path"]
    daemon.start()
    daemon.kill9()
    assert os.path.exists(path), "nothing stale is left behind"
    daemon.start()
    live = os.stat(path).st_ino
    other.config["receive"]["socket"]["path"] = path
    other.write_config()
    assert other.spawn().wait(60) == 71
    assert path in other.log() and os.stat(path).st_ino == live
    url = ["--unix-socket", path, "-H", f"Content-Type: {PROTOBUF}", "http://localhost/v1/traces"]
    assert curl(url, b"").status == 200


def test_a10_1_a_path_that_is_too_long_is_named(make_daemon):
    daemon = make_daemon()
    path = os.path.join(daemon.directory, "x" * 100)
    daemon.config["receive"]["socket"]["path"] = path
    daemon.write_config()
    assert daemon.spawn().wait(60) != 0
    assert path in daemon.log() and "107" in daemon.log()


def test_a10_3_curl_and_node(door):
    request, name = unique()
    url = ["--unix-socket", door.socket, "-H", f"Content-Type: {PROTOBUF}", "http://localhost/v1/traces"]
    assert curl(url, request.SerializeToString()).status == 200
    door.span_named(name)
    request, name = unique()
    assert call(0, frame(request.SerializeToString()), socket=door.socket).status == 0
    door.span_named(name)


@pytest.mark.parametrize("app", ["node", "go"])
def test_a10_3_grpc_js_and_grpc_go(door, tmp_path, app):
    target = f"unix://{door.socket}"
    command, variable = {"node": (["node", peer("node", "app.js")], "OTEL_EXPORTER_OTLP_ENDPOINT"), "go": ([peer("go", "program")], "APP_TARGET")}[app]
    environment = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_INSECURE": "true", variable: target}
    expected = as_spans(run_program([*command, "5"], tmp_path, environment))
    wait_until(lambda: door.receiver.has(expected), "every span arrived")


def test_a10_4_grpcio_with_an_authority(door):
    """Without it grpcio sends the percent-encoded path, which HTTP/2 does not allow in an authority."""
    request, name = unique()
    channel = grpc.insecure_channel(f"unix:{door.socket}", options=[("grpc.default_authority", "localhost")])
    trace_service_pb2_grpc.TraceServiceStub(channel).Export(request, timeout=30)
    channel.close()
    door.span_named(name)


@pytest.mark.parametrize("host", ["localhost", "evil.example", "", "a b", "%2Frun%2Fspool.sock"])
def test_a10_5_any_host_will_do(door, host):
    request, name = unique()
    options = ["--unix-socket", door.socket, "-H", f"Host: {host}" if host else "Host;", "-H", f"Content-Type: {PROTOBUF}"]
    assert curl([*options, "http://localhost/v1/traces"], request.SerializeToString()).status == 200
    door.span_named(name)
