"""The peers by themselves, without the daemon: when one of these fails, the fault is not the daemon's."""

import json

import grpc
import pytest

from peers import wait_until
from peers.otlp import GrpcClient, HttpClient, make_request, request_as_json, spans_of
from peers.programs import FULL, as_spans, direct_traces, otel_environment, run_app


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_receiver_gets_what_the_sdk_sends(receiver, directory, protocol):
    port = receiver.grpc_port if protocol == "grpc" else receiver.http_port
    result = run_app("otel_app.py", directory, otel_environment(protocol, f"http://127.0.0.1:{port}", "gzip"), arguments=["20"])
    expected = as_spans(result)
    assert len(expected) == 60
    assert receiver.by_id() == expected


def test_the_receiver_answers_by_script_and_goes_down_and_up(receiver):
    http_client, grpc_client = HttpClient(receiver.http_port), GrpcClient(receiver.grpc_port, timeout=5)
    receiver.script.extend([503, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
    request, ids = make_request(3)
    assert http_client.send(request).status == 503
    assert grpc_client.send(request).status == "UNAVAILABLE"
    exhausted = grpc_client.send(request)
    assert exhausted.status == "RESOURCE_EXHAUSTED" and "grpc-status-details-bin" in exhausted.headers
    assert receiver.ids() == {}
    receiver.down()
    with pytest.raises(OSError):
        http_client.send(request)
    assert grpc_client.send(request).status == "UNAVAILABLE"
    receiver.up()
    assert http_client.send(request).ok
    wait_until(lambda: grpc_client.send(request).ok, "the gRPC port is open again")
    assert receiver.ids() == dict.fromkeys(ids, 2)


def test_json_requests_follow_the_specification():
    request, ids = make_request(2)
    spans = json.loads(request_as_json(request))["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert [s["spanId"] for s in spans] == ids
    assert spans[1]["parentSpanId"] == ids[0] and len(spans[0]["traceId"]) == 32
    assert spans[0]["kind"] == 1 and spans[0]["startTimeUnixNano"] == "1700000000000000000"
    assert [s.name for s in spans_of(request)] == ["span", "span"]


@pytest.mark.parametrize("package", ["full", "light"])
def test_both_mlflow_packages_log_the_same_to_the_server(mlflow_server, directory, light_python, package):
    """Pins what test_mlflow.py compares with: three traces of 4, 2 and 1 spans, in which nothing is missing."""
    python = FULL if package == "full" else light_python
    found = direct_traces(mlflow_server, directory, python, f"peers {package}")
    assert {name: len(t["spans"]) for name, t in found.items()} == {"answer 0": 4, "failing 0": 2, "completion 0": 1}
    answer = found["answer 0"]["spans"]["answer 0"]["attributes"]
    assert answer["app.digits"] == '"42"' and answer["app.zero"] == "0" and answer["app.none"] == "null"
    assert found["answer 0"]["tokens"]["total_tokens"] == 120
    assert found["failing 0"]["state"].endswith("ERROR")
