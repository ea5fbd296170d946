"""A1: obligations of a receiver on both transports."""

import concurrent.futures
import gzip
import zlib

import grpc
import pyarrow
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

from peers.daemon import assert_balanced
from peers.door import JSON, LIMIT, REFUSED, exactly, noise, status_of, unique
from peers.otlp import PROTOBUF, GrpcClient, HttpClient, make_request, request_as_json
from peers.raw import call, curl, frame
from peers.wire import field, varint


def zstd(data):
    return pyarrow.Codec("zstd").compress(data).to_pybytes()


CODINGS = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("transport", ["grpc", "protobuf", "json"])
def test_a1_1_compressed_and_plain_requests_on_every_transport(door, transport, coding):
    request, name = unique()
    payload = request.SerializeToString()
    if transport == "grpc":
        answer = call(door.port, frame(CODINGS[coding](payload), flag=int(coding != "identity")), grpc_encoding=coding)
        assert answer.status == 0, answer
    elif transport == "protobuf":
        assert door.post(CODINGS[coding](payload), content_encoding=coding).ok
    else:
        assert door.post(CODINGS[coding](request_as_json(request).encode()), JSON, content_encoding=coding).ok
    assert door.span_named(name) == request.resource_spans[0].scope_spans[0].spans[0]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size, taken", [(LIMIT, True), (LIMIT + 1, False)])
@pytest.mark.parametrize("transport", ["grpc", "protobuf"])
def test_a1_2_the_limit_is_exact_before_and_after_decompression(door, transport, size, taken, coding):
    payload = exactly(size, "limit" if taken else REFUSED).SerializeToString()
    body = CODINGS[coding](payload)
    assert coding == "identity" or len(body) < LIMIT // 10, "what is tested is the limit after decompression"
    before = door.refused()["too_large"]
    if transport == "grpc" and coding == "identity":
        assert door.call(service.ExportTraceServiceRequest.FromString(payload)).status == ("OK" if taken else "RESOURCE_EXHAUSTED")
    elif transport == "grpc":
        answer = call(door.port, frame(body, flag=1), grpc_encoding=coding)
        assert answer.status == (0 if taken else 8), answer
    else:
        answer = door.post(body, content_encoding=coding)
        assert answer.status == (200 if taken else 413)
        assert taken or status_of(answer).message
    assert door.refused()["too_large"] == before + (not taken)


def test_a1_2_a_compressed_body_over_the_limit_on_the_wire_is_refused_though_it_would_unfold_to_less(door):
    # Stored blocks, and members of nothing: 1.2 MB on the wire, a small request inside.
    body = gzip.compress(unique()[0].SerializeToString()) + 60_000 * gzip.compress(b"", mtime=0)
    assert len(body) > LIMIT
    assert door.post(body, content_encoding="gzip").status == 413
    # In gRPC the prefix says it all.
    answer = call(door.port, frame(body[:1000], flag=1, length=len(body)), grpc_encoding="gzip")
    assert answer.status == 8


EMPTY = {
    "nothing": service.ExportTraceServiceRequest(),
    "resource": service.ExportTraceServiceRequest(resource_spans=[{"resource": {"attributes": [{"key": "a"}]}, "schema_url": "x"}]),
    "scope": service.ExportTraceServiceRequest(resource_spans=[{"scope_spans": [{"scope": {"name": "s"}}, {}]}, {}]),
}


@pytest.mark.parametrize("request_", EMPTY.values(), ids=EMPTY)
def test_a1_3_and_4_requests_without_spans_succeed_and_leave_nothing(door, request_):
    before = door.daemon.backend()
    assert door.post(request_.SerializeToString()).ok
    document = "{}" if request_ == EMPTY["nothing"] else '{"resourceSpans":[{"scopeSpans":[{"scope":{"name":"s"}},{}]},{}]}'
    assert door.post(document, JSON).ok
    assert door.call(request_).ok
    assert door.daemon.backend()["owed"] == before["owed"], "a record without spans was stored"


def test_a1_5_success_leaves_everything_unset(door):
    answer = door.post(unique()[0].SerializeToString())
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"", PROTOBUF)
    answer = door.post(request_as_json(unique()[0]), JSON)
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"{}", JSON)
    answer = call(door.port, frame(unique()[0].SerializeToString()))
    assert (answer.body, answer.status) == (bytes(5), 0)


@pytest.mark.parametrize("transport", ["grpc", "protobuf", "json"])
def test_a1_6_and_7_a_request_is_taken_whole_or_refused_whole(door, transport):
    """One bad span among fifty good ones: no partial success, and none of them is shipped (the fixture looks)."""
    request, _ = make_request(50, name=REFUSED)
    request.resource_spans[0].scope_spans[0].spans[31].span_id = b"\1" * 7
    if transport == "grpc":
        assert door.call(request).status == "INVALID_ARGUMENT"
    else:
        json = transport == "json"
        answer = door.post(request_as_json(request) if json else request.SerializeToString(), JSON if json else PROTOBUF)
        assert answer.status == 400


def test_a1_8_the_answer_to_a_huge_refused_request_is_small(door):
    request, _ = make_request(1, name=REFUSED)
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.attributes.add(key=noise(500_000)).value.string_value = noise(300_000)
    span.span_id = b"\1" * 9
    for body, content_type in [(request.SerializeToString(), PROTOBUF), (request_as_json(request), JSON), (noise(LIMIT), PROTOBUF)]:
        answer = door.post(body, content_type)
        assert answer.status == 400 and len(answer.body) < 1024
    answer = door.call(request)
    assert answer.status == "INVALID_ARGUMENT" and len(answer.body) < 1024


def test_a1_13_invalid_data_is_refused_for_good_in_the_encoding_of_the_request(door):
    before = door.refused()["invalid"]
    for body, content_type in [(b"\xff", PROTOBUF), (b"\x0a\x05\x12", PROTOBUF), (b"{", JSON), (b'{"resourceSpans":7}', JSON), (b"", JSON)]:
        answer = door.post(body, content_type)
        assert (answer.status, answer.headers["content-type"]) == (400, content_type)
        status = status_of(answer)
        assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0] and status.message
        assert "retry-after" not in answer.headers
    answer = call(door.port, frame(b"\xff"))
    assert answer.status == 3 and answer.headers["grpc-message"]
    assert door.refused()["invalid"] == before + 6


def test_a1_14_many_calls_on_one_connection_and_many_connections_are_all_served(door):
    client = GrpcClient(door.port)
    pairs = [unique() for _ in range(200)]
    calls = [client.stub.Export.future(request, timeout=60) for request, _ in pairs]
    assert [c.exception() for c in calls] == [None] * len(calls)
    client.close()

    def own_connection(pair):
        return HttpClient(door.port).send(pair[0]).ok

    more = [unique() for _ in range(100)]
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        assert all(pool.map(own_connection, more))
    for _, name in [*pairs[::40], *more[::20]]:
        door.span_named(name)


def test_a1_15_unknown_fields_are_kept_byte_for_byte(door):
    unknown = b"".join(
        [
            varint(777 << 3 | 0) + b"\x96\x01",
            varint(778 << 3 | 1) + b"12345678",
            field(779, b"\xff\xfe not UTF-8"),
            varint(780 << 3 | 5) + b"1234",
            varint(781 << 3 | 3) + b"\x08\x01" + varint(781 << 3 | 4),  # a group
            varint(777 << 3 | 0) + b"\x80\x80\x00",  # a varint longer than need be
        ]
    )
    value = field(1, b"v") + unknown
    attribute = field(1, b"k") + field(2, value) + unknown
    # Fields out of order, and one that is there twice.
    span = unknown + field(5, b"first") + field(9, attribute) + field(1, b"t" * 16) + field(2, b"s" * 8) + field(5, b"unknown fields")
    payload = field(1, unknown + field(2, unknown + field(2, span)) + field(1, field(1, attribute) + unknown)) + unknown
    assert door.post(payload).ok
    door.arrived(payload)
    answer = call(door.port, frame(gzip.compress(payload), flag=1), grpc_encoding="gzip")
    assert answer.status == 0


def test_a1_15_unknown_names_and_enum_numbers_are_no_error(door):
    request, name = unique()
    request.resource_spans[0].scope_spans[0].spans[0].kind = 99
    request.resource_spans[0].scope_spans[0].spans[0].status.code = 7
    assert door.post(request.SerializeToString()).ok
    assert door.span_named(name) == request.resource_spans[0].scope_spans[0].spans[0]
    request, name = unique()
    document = request_as_json(request).replace('"kind": 1', '"kind": 99, "unknown": {"deep": [[{"a": null}]], "b": 1e400}')
    assert door.post(document, JSON).ok
    assert door.span_named(name).kind == 99


def test_a1_16_indexes_into_a_string_table_are_no_error(door):
    request, name = unique()
    span = field(5, name.encode()) + field(9, b"\x18\x05" + field(2, b"\x40\x07"))  # key_strindex, string_value_strindex
    assert door.post(field(1, field(2, field(2, span)))).ok
    assert door.span_named(name)


def test_a1_17_all_bits_of_flags_are_kept(door):
    request, name = unique()
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.flags = 0xFFFFFFFF
    span.links.add(trace_id=b"t" * 16, span_id=b"s" * 8, flags=0xABCDEF01)
    assert door.call(request).ok
    assert door.span_named(name) == span
    document, name = unique()
    text = request_as_json(document).replace('"kind": 1', '"kind": 1, "flags": 4294967295')
    assert door.post(text, JSON).ok
    assert door.span_named(name).flags == 0xFFFFFFFF


@pytest.mark.parametrize("listener", ["first", "second", "socket"])
def test_a1_18_grpc_and_http_on_every_listener(door, listener):
    where = {"first": [], "second": [], "socket": ["--unix-socket", door.socket]}[listener]
    port = door.second_port if listener == "second" else door.port
    for options, version, data in [
        (["-H", f"Content-Type: {PROTOBUF}", f"http://127.0.0.1:{port}/v1/traces"], "1.1", bytes),
        (["-H", f"Content-Type: {PROTOBUF}", "--http2-prior-knowledge", f"http://127.0.0.1:{port}/v1/traces"], "2", bytes),
        (["-H", "Content-Type: application/grpc", "--http2-prior-knowledge", f"http://127.0.0.1:{port}/opentelemetry.proto.collector.trace.v1.TraceService/Export"], "2", frame),
    ]:
        request, name = unique()
        answer = curl([*where, *options], data(request.SerializeToString()))
        assert (answer.status, answer.version) == (200, version)
        assert data is not frame or answer.headers["grpc-status"] == "0"
        door.span_named(name)


def test_a1_10_the_accounts_balance_after_all_that(door):
    assert_balanced(door.daemon.wait_drained())
