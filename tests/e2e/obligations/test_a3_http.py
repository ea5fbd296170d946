"""A3: obligations of a receiver that speaks HTTP."""

import gzip
import socket
import struct
import zlib

import pytest

from peers import wait_until
from peers.door import JSON, LIMIT, REFUSED, exactly, noise, status_of, unique
from peers.otlp import PROTOBUF, Answer, request_as_json
from peers.process import descriptors
from peers.raw import connect, curl, head, read_response


def exchange(door, data):
    """What is answered to these bytes, on a connection of its own."""
    with connect(door.port) as connection, connection.makefile("rb") as stream:
        connection.sendall(data)
        status, headers, body = read_response(stream)
        return Answer(status == 200, status, headers, body)


def request_of(body, **headers):
    return head(content_type=PROTOBUF, content_length=len(body), **headers) + body


def test_a3_1_traces_are_posted_to_v1_traces(door):
    request, name = unique()
    assert door.post(request, path="/v1/traces").ok
    door.span_named(name)
    # Contract: also to /, where MLflow posts when the endpoint has no path.
    request, name = unique()
    assert door.post(request, path="/").ok
    door.span_named(name)


class TestA3_2HttpVersionsAndFramings:
    def test_a3_2_chunked(self, door):
        request, name = unique()
        body = request.SerializeToString()
        chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(body[n : n + 50]), body[n : n + 50]) for n in range(0, len(body), 50))
        assert exchange(door, head(content_type=PROTOBUF, transfer_encoding="chunked") + chunks + b"0\r\nTrailer: x\r\n\r\n").ok
        door.span_named(name)

    def test_a3_2_kept_alive_and_pipelined(self, door):
        pairs = [unique() for _ in range(20)]
        with connect(door.port) as connection, connection.makefile("rb") as stream:
            connection.sendall(b"".join(request_of(r.SerializeToString()) for r, _ in pairs))
            assert [read_response(stream)[0] for _ in pairs] == [200] * len(pairs)
            connection.sendall(request_of(b"\xff"))
            assert read_response(stream)[0] == 400
            request, name = unique()
            connection.sendall(request_of(request.SerializeToString()))
            assert read_response(stream)[0] == 200, "the connection does not outlive a refusal"
        for _, one in [*pairs, (None, name)]:
            door.span_named(one)

    def test_a3_2_expect_100_continue(self, door):
        request, name = unique()
        body = request.SerializeToString()
        with connect(door.port) as connection, connection.makefile("rb") as stream:
            connection.sendall(head(content_type=PROTOBUF, content_length=len(body), expect="100-continue"))
            assert read_response(stream)[0] == 100
            connection.sendall(body)
            assert read_response(stream)[0] == 200
        door.span_named(name)
        # Who would be refused anyway is told so instead.
        with connect(door.port) as connection, connection.makefile("rb") as stream:
            connection.sendall(head(content_type=PROTOBUF, content_length=LIMIT + 1, expect="100-continue"))
            assert read_response(stream)[0] == 413

    @pytest.mark.parametrize("options, version", [(["--http2-prior-knowledge"], "2"), (["--http1.0"], "1"), (["--http1.1"], "1.1")])
    def test_a3_2_versions(self, door, options, version):
        request, name = unique()
        answer = curl([*options, "-H", f"Content-Type: {PROTOBUF}", f"http://localhost:{door.port}/v1/traces"], request.SerializeToString())
        assert (answer.status, answer.version) == (200, version)
        door.span_named(name)


@pytest.mark.parametrize(
    "content_type, json",
    [(PROTOBUF, False), (JSON, True), ("APPLICATION/JSON", True), ("application/json; charset=utf-8", True), ("Application/X-Protobuf;v=1", False)],
)
def test_a3_3_4_and_5_the_media_type_decides_in_any_case_and_without_parameters(door, content_type, json):
    request, name = unique()
    answer = door.post(request_as_json(request) if json else request.SerializeToString(), content_type)
    assert answer.ok and answer.headers["content-type"] == (JSON if json else PROTOBUF)
    door.span_named(name)
    answer = door.post(b"\xff", content_type)
    assert answer.status == 400 and answer.headers["content-type"] == (JSON if json else PROTOBUF)


def test_a3_6_success_is_exactly_200(door):
    assert door.post(unique()[0]).status == 200
    assert door.post(b"").status == 200
    assert door.post("{}", JSON).status == 200


# What is refused: path, method, headers, body; and the status.
REFUSALS = {
    "garbage": ("/v1/traces", "POST", {}, b"\xff\xff", 400),
    "not gzip": ("/v1/traces", "POST", {"content_encoding": "gzip"}, b"plain", 400),
    "unknown coding": ("/v1/traces", "POST", {"content_encoding": "br"}, b"", 400),
    "two codings": ("/v1/traces", "POST", {"content_encoding": "gzip, gzip"}, gzip.compress(gzip.compress(b"")), 400),
    "bad label": ("/v1/traces", "POST", {"x_mlflow_experiment_id": "a b"}, b"", 400),
    "foreign host": ("/v1/traces", "POST", {"host": "evil.example"}, b"", 403),
    "foreign origin": ("/v1/traces", "POST", {"origin": "https://evil.example"}, b"", 403),
    "unknown path": ("/v1/profiles", "POST", {}, b"", 404),
    "longer path": ("/v1/traces/", "POST", {}, b"", 404),
    "GET": ("/v1/traces", "GET", {}, b"", 405),
    "PUT": ("/v1/traces", "PUT", {}, b"", 405),
    "OPTIONS": ("/v1/traces", "OPTIONS", {}, b"", 405),
    "announced": ("/v1/traces", "POST", {"content_length": LIMIT + 1}, b"", 413),
    "bomb": ("/v1/traces", "POST", {"content_encoding": "gzip"}, gzip.compress(bytes(40 * LIMIT)), 413),
    "deflate bomb": ("/v1/traces", "POST", {"content_encoding": "deflate"}, zlib.compress(bytes(40 * LIMIT)), 413),
}


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a3_7_every_refusal_has_a_status_in_the_encoding_of_the_request(door, refusal, content_type):
    path, method, headers, body, status = REFUSALS[refusal]
    headers = {"content_length": len(body), "content_type": content_type, **headers}
    answer = exchange(door, head(path, method, **headers) + body)
    assert (answer.status, answer.headers["content-type"]) == (status, content_type)
    assert status_of(answer).message and status_of(answer).code
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/jsonl", "application/grpc-web", "application/grpc", "*/*"])
def test_a3_7_and_11_an_unknown_media_type_is_415_in_json(door, content_type):
    answer = exchange(door, head(content_type=content_type, content_length=0))
    assert (answer.status, answer.headers["content-type"]) == (415, JSON)
    assert status_of(answer).message


@pytest.mark.parametrize("body", [b"\x0a", b"\x0a\x02\x12", b"\x08\x01", b"\x0a\x04\x12\x02\x12\x05"])
def test_a3_8_undecodable_data_is_400(door, body):
    assert door.post(body).status == 400


def test_a3_9_a_body_over_the_limit_is_413(door):
    for headers in [{"content_length": LIMIT + 1}, {"content_length": 1 << 60}]:
        assert exchange(door, head(content_type=PROTOBUF, **headers)).status == 413
    # Sent whole before the answer is read, and in chunks that say nothing of the whole.
    big = exactly(4 * LIMIT, REFUSED).SerializeToString()
    assert door.post(big).status == 413
    chunked = ["-H", f"Content-Type: {PROTOBUF}", "-H", "Transfer-Encoding: chunked", "-H", "Expect:", f"http://localhost:{door.port}/v1/traces"]
    assert curl(chunked, big).status == 413


def test_a3_12_and_13_every_coding_is_decoded_or_refused(door):
    request, name = unique()
    plain = request.SerializeToString()
    for coding, body in [("gzip", gzip.compress(plain)), ("x-gzip", gzip.compress(plain)), ("deflate", zlib.compress(plain)),
                         ("deflate", zlib.compress(plain, wbits=-15)), ("identity", plain), ("", plain), ("GZIP", gzip.compress(plain))]:
        assert door.post(body, content_encoding=coding).ok, coding
    wait_until(lambda: len(door.spans_named(name)) == 7, "all of them arrived")
    for coding in ["gzip", "deflate", "zstd"]:
        assert door.post(b"{}", JSON, content_encoding=coding).status == 400
        assert door.post(plain, content_encoding=coding).status == 400
        assert door.post(b"", content_encoding=coding).status == 400


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a3_14_all_members_and_frames_are_read(door, coding):
    import pyarrow

    pack = {"gzip": gzip.compress, "zstd": lambda data: pyarrow.Codec("zstd").compress(data).to_pybytes()}[coding]
    request, name = unique(padding=20_000)
    payload = request.SerializeToString()
    parts = [pack(payload[n : n + 3000]) for n in range(0, len(payload), 3000)]
    assert door.post(b"".join(parts), content_encoding=coding).ok
    door.arrived(payload)
    for broken in [b"".join(parts)[:-1], b"".join(parts) + b"x", parts[0] + b"\0" + parts[1]]:
        assert door.post(broken, content_encoding=coding).status == 400
    assert len(door.spans_named(name)) == 1


def test_a3_15_answers_are_never_compressed(door):
    answer = door.post(noise(500), accept_encoding="gzip")
    assert answer.status == 400 and "content-encoding" not in answer.headers and status_of(answer).message


def test_a3_16_nothing_refuses_before_our_own_limit(door):
    assert door.post(exactly(LIMIT, "limit")).ok
    assert door.post(exactly(LIMIT, "limit"), x_filler=noise(10_000)).ok


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a3_18_a_body_that_ends_early_stores_nothing_and_frees_its_connection(door, coding):
    pid, owed = door.daemon.process.pid, door.daemon.backend()["owed"]
    before = descriptors(pid)
    body = unique(padding=5000)[0].SerializeToString()
    for cut in [0, 1, len(body) // 2, len(body) - 1]:
        with connect(door.port) as connection, connection.makefile("rb") as stream:
            if coding == "length":
                connection.sendall(head(content_type=PROTOBUF, content_length=len(body)) + body[:cut])
            else:
                connection.sendall(head(content_type=PROTOBUF, transfer_encoding="chunked") + b"%x\r\n" % len(body) + body[:cut])
            connection.shutdown(socket.SHUT_WR)
            try:
                assert read_response(stream)[0] == 400
            except EOFError:
                pass  # closing without an answer is as good
    # And by a reset instead of an end.
    connection = connect(door.port)
    connection.sendall(head(content_type=PROTOBUF, content_length=len(body)) + body[:-1])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    wait_until(lambda: (descriptors(pid) <= before, descriptors(pid)), "the connections are gone")
    assert door.daemon.backend()["owed"] == owed


class TestForeignHostsAndOrigins:
    """Contract: on TCP, requests that a web page may have made or led here are refused with 403 / PERMISSION_DENIED."""

    @pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:4318", "user@localhost", "a b"])
    def test_a_foreign_host_is_refused(self, door, host):
        assert exchange(door, head(host=host, content_type=PROTOBUF, content_length=0)).status in (400, 403)

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:4318", "[::1]", "x.localhost", ""])
    def test_an_own_host_is_taken(self, door, host):
        assert exchange(door, head(host=host, content_type=PROTOBUF, content_length=0)).ok

    @pytest.mark.parametrize("origin, status", [("https://evil.example", 403), ("http://localhost:3000", 403), ("null", None), ("http://localhost", 200)])
    def test_origins(self, door, origin, status):
        answer = exchange(door, head(origin=origin, content_type=PROTOBUF, content_length=0))
        assert answer.status == (status or answer.status) and answer.status in (200, 403)

    def test_a_foreign_host_or_origin_is_refused_in_grpc_and_http_2(self, door):
        for options, content_type in [(["-H", "Host: evil.example"], PROTOBUF), (["-H", "Origin: https://evil.example"], "application/grpc")]:
            url = f"http://127.0.0.1:{door.port}/" + ("v1/traces" if content_type == PROTOBUF else "opentelemetry.proto.collector.trace.v1.TraceService/Export")
            answer = curl(["--http2-prior-knowledge", *options, "-H", f"Content-Type: {content_type}", url], b"")
            assert answer.status == 403 or answer.headers.get("grpc-status") == "7", answer

    def test_a_spool_socket_asks_for_no_host(self, door):
        for host in ["evil.example", "any/thing", ""]:
            request, name = unique()
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(30)
                connection.connect(door.socket)
                connection.sendall(request_of(request.SerializeToString(), host=host))
                with connection.makefile("rb") as stream:
                    assert read_response(stream)[0] == 200
            door.span_named(name)
