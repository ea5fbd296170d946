"""A2: obligations of a receiver that speaks gRPC. grpcio is the client, or bytes are where no library would send them."""

import gzip

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

from peers import wait_until
from peers.door import LIMIT, REFUSED, exactly, unique
from peers.otlp import GrpcClient
from peers.process import descriptors
from peers.raw import Http2, call, frame

NO_RETRY = {"grpc-status-details-bin", "google.rpc.retryinfo-bin"}


def test_a2_1_export_is_served(door):
    request, name = unique()
    client = GrpcClient(door.port)
    assert client.stub.Export(request, timeout=30) == service.ExportTraceServiceResponse()
    client.close()
    door.span_named(name)


def test_a2_2_a_message_over_the_limit_is_resource_exhausted_and_not_to_be_retried(door):
    answer = door.call(exactly(LIMIT + 1, REFUSED))
    assert answer.status == "RESOURCE_EXHAUSTED" and b"receive.max_request_bytes" in answer.body
    assert not NO_RETRY & answer.headers.keys()


@pytest.mark.parametrize("length", [LIMIT + 1, 64 << 20, 0xFFFFFFFF])
def test_a2_2_an_announced_length_over_the_limit_is_answered_before_the_message_is_there(door, length):
    answer = call(door.port, frame(b"abc", length=length))
    assert answer.status == 8 and not NO_RETRY & answer.headers.keys()


def test_a2_2_a_bomb_is_resource_exhausted(door):
    answer = door.call(exactly(64 * LIMIT, REFUSED), grpc.Compression.Gzip)
    assert answer.status == "RESOURCE_EXHAUSTED" and not NO_RETRY & answer.headers.keys()


def test_a2_4_what_is_no_request_is_an_invalid_argument(door):
    for message in [b"\xff", b"\x0a\x05\x12", b"\x0b", b"\x0a\x02\x12\x01"]:
        assert call(door.port, frame(message)).status == 3, message
    for body in [b"", b"\0\0\0", frame(b"abc", length=5), frame(b"") * 2, frame(b"abc", length=2)]:
        assert call(door.port, body).status == 3, body


def test_a2_7_an_encoding_that_is_not_served_is_unimplemented_and_the_served_ones_are_named(door):
    answer = call(door.port, frame(b"x", flag=1), grpc_encoding="snappy")
    assert answer.status == 12
    assert {"gzip", "zstd", "identity"} <= set(answer.headers["grpc-accept-encoding"].split(","))


@pytest.mark.parametrize("message", [b"plain", gzip.compress(b"")[:-1], gzip.compress(b"abc")[:-9] + bytes(9), gzip.compress(b"") + b"?"])
def test_a2_8_corrupt_compressed_data_is_refused_for_good(door, message):
    for encoding in ["gzip", "deflate", "zstd"]:
        assert call(door.port, frame(message, flag=1), grpc_encoding=encoding).status == 3


def test_a2_8_the_connection_goes_on_behind_a_refusal(door):
    good, name = unique()
    connection = Http2(door.port)
    ends = {}
    for message, flag in [(b"not gzip", 1), (b"\xff", 0), (good.SerializeToString(), 0)]:
        stream = connection.call(data=frame(message, flag), end=True, grpc_encoding="gzip")
        frames = connection.until_end_of(stream)
        ends[stream] = [kind for kind, _ in frames]
    connection.close()
    refused = [Http2.HEADERS]
    assert list(ends.values()) == [refused, refused, [Http2.HEADERS, Http2.DATA, Http2.HEADERS]]
    door.span_named(name)


def test_a2_9_gzip_of_many_members_is_decoded_fully(door):
    request, name = unique(padding=10_000)
    payload = request.SerializeToString()
    members = b"".join(gzip.compress(payload[n : n + 1000]) for n in range(0, len(payload), 1000))
    assert call(door.port, frame(members, flag=1), grpc_encoding="gzip").status == 0
    door.arrived(payload)
    # The last member is missing its end: nothing of it may be taken.
    answer = call(door.port, frame(members[:-4], flag=1), grpc_encoding="gzip")
    assert answer.status == 3
    assert len(door.spans_named(name)) == 1


def test_a2_10_metrics_and_logs_are_taken_and_dropped_and_said_once_and_nothing_else_is_served(door):
    """The obligation says UNIMPLEMENTED; the contract says success, because an SDK logs an error every minute otherwise."""
    channel = grpc.insecure_channel(f"127.0.0.1:{door.port}")
    for _ in range(3):
        metrics_service_pb2_grpc.MetricsServiceStub(channel).Export(metrics_service_pb2.ExportMetricsServiceRequest(), timeout=30)
        logs_service_pb2_grpc.LogsServiceStub(channel).Export(logs_service_pb2.ExportLogsServiceRequest(), timeout=30)
    for path in ["/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export", "/grpc.health.v1.Health/Check", "/x"]:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(path)(b"", timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    channel.close()
    log = door.daemon.log()
    assert log.count("an app sends metrics") == 1 and log.count("an app sends logs") == 1


def test_a2_11_calls_that_are_given_up_leave_the_daemon_consistent(door):
    pid = door.daemon.process.pid
    before = descriptors(pid)
    sent = []
    for n in range(100):
        client = GrpcClient(door.port)
        request, name = unique(padding=20_000)
        call = client.stub.Export.future(request, timeout=0.001 * (n % 10 + 1))
        sent.append((call, name))
        if n % 3 == 0:
            call.cancel()
        client.close()
    # Begun by hand, so that it is certain that half a message is there when the connection ends.
    for _ in range(50):
        connection = Http2(door.port)
        connection.call(data=frame(bytes(1000), length=100_000))
        connection.close()
    wait_until(lambda: (descriptors(pid) <= before, descriptors(pid)), "the connections are gone")
    for call, name in sent:
        if not call.cancelled() and call.code() == grpc.StatusCode.OK:
            door.span_named(name)
    # Not stored twice, and whatever was stored is delivered: the fixture balances the books.
    door.daemon.wait_drained()
    assert all(len(door.spans_named(name)) <= 1 for _, name in sent[::10])
