"""More than there is room for: refused in words that make every client try again, in bounded memory, and nobody waits for another."""

import concurrent.futures
import contextlib
import gzip
import http.client
import os
import resource
import shlex
import socket
import threading
import time

import pytest

from peers import PATIENCE, wait_until
from peers.otlp import PROTOBUF, Answer, GrpcClient, HttpClient, make_request
from peers.process import descriptors, forget_peak, memory
from peers.raw import Http2, connect, frame, head, is_readable, read_response

MIB = 1 << 20
# What a connection may hold of bytes that no request has asked for (src/receive/connection.rs).
BUFFER = 64 << 10


@pytest.fixture
def many_descriptors():
    """Room for thousands of connections, here and in the daemons that are started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 8192 or hard == resource.RLIM_INFINITY, f"this test needs 8192 descriptors, and {hard} are allowed"
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def with_limits(make_daemon, receiver, request, in_flight):
    daemon = make_daemon([receiver.backend("otlp_grpc")])
    daemon.config["receive"].update(max_request_bytes=f"{request}MiB", max_in_flight_bytes=f"{in_flight}MiB")
    daemon.write_config()
    return daemon.start()


def test_strangers_who_say_nothing_do_not_shut_out_the_spool_socket(make_daemon, receiver, binary, directory):
    frugal = os.path.join(directory, "with-few-descriptors")
    with open(frugal, "w") as script:
        script.write(f'#!/bin/sh\nulimit -n 300\nexec {shlex.quote(str(binary))} "$@"\n')
    os.chmod(frugal, 0o700)
    daemon = make_daemon([receiver.backend("otlp_grpc")], binary=frugal).start()
    with contextlib.ExitStack() as open_ones:
        # More than are accepted; the others wait in the kernel.
        for _ in range(200):
            open_ones.enter_context(connect(daemon.port))
        # Each is answered while those before it stay.
        for _ in range(3):
            client = open_ones.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(PATIENCE)
            client.connect(os.path.join(daemon.directory, "spool.sock"))
            client.sendall(b"{}\n")
            assert client.recv(100) == b'{"ok":true,"record":null}\n'


class Slow:
    """A request of `total` bytes of which only the beginning is sent, over HTTP/1.1 or gRPC."""

    def __init__(self, port, total, protocol="http"):
        self.protocol = protocol
        if protocol == "http":
            self.socket = connect(port)
            self.stream = self.socket.makefile("rb")
            self.socket.sendall(head(content_type=PROTOBUF, content_length=total))
        else:
            self.connection = Http2(port)
            self.socket = self.connection.socket
            self.call = self.connection.call(data=frame(b"", length=total))

    def send(self, data):
        """False when the other side has closed."""
        try:
            for n in range(0, len(data), 16_000):
                piece = data[n : n + 16_000]
                self.socket.sendall(piece) if self.protocol == "http" else self.connection.data(self.call, piece)
            return True
        except (OSError, EOFError):
            return False

    def is_answered(self):
        return is_readable(self.socket) if self.protocol == "http" else self.connection.is_answered(self.call)

    def answer(self):
        """The HTTP status; for gRPC, where headers stay compressed, whether there was an answer."""
        if self.protocol == "http":
            status, headers, body = read_response(self.stream)
            return Answer(status == 200, status, headers, body)
        frames = self.connection.until_end_of(self.call)
        return Answer(False, frames[-1][0], {}, b"")

    def close(self):
        with contextlib.suppress(OSError):
            (self.stream if self.protocol == "http" else self.connection).close()
        with contextlib.suppress(OSError):
            self.socket.close()


def test_two_thousand_connections_and_sixty_four_large_slow_requests(make_daemon, receiver, many_descriptors, say):
    in_flight, connections, large = 192 * MIB, 2000, 64
    daemon = with_limits(make_daemon, receiver, 64, 192)
    pid = daemon.process.pid
    # What a daemon needs at all is there before: one request through every door.
    assert HttpClient(daemon.port).send(make_request(1)[0]).ok and GrpcClient(daemon.port).send(make_request(1)[0]).ok
    before = memory(pid, "VmRSS")
    forget_peak(pid)

    # Some say nothing, some the beginning of a head, some the beginning of HTTP/2.
    beginnings = [b"", b"POST /v1/traces HTTP/1.1\r\nHost: local", b"PRI * HTTP/2.0\r\n\r\nSM", head(content_type=PROTOBUF, content_length=100)]
    idle = []
    for n in range(connections - large):
        connection = connect(daemon.port)
        connection.sendall(beginnings[n % len(beginnings)])
        idle.append(connection)
    slow = [Slow(daemon.port, 64 * MIB - n, ["http", "grpc"][n % 2]) for n in range(large)]
    wait_until(lambda: (descriptors(pid) >= connections, descriptors(pid)), "all of them are accepted")

    # Four times what there is room for; each goes on until it is refused or has sent its share.
    def push(client):
        for _ in range(4 * in_flight // large // (MIB // 4)):
            if client.is_answered() or not client.send(bytes(MIB // 4)):
                return

    threads = [threading.Thread(target=push, args=(s,), daemon=True) for s in slow]
    for thread in threads:
        thread.start()
    # Meanwhile, and for a while after the budget is used up, small requests are served: slow ones delay nobody, and a
    # share is held for the small.
    served, rounds = 0, 20
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        while rounds > 0:
            rounds -= not any(thread.is_alive() for thread in threads)
            answers = list(pool.map(lambda _: HttpClient(daemon.port).send(make_request(1, padding=10_000)[0]), range(20)))
            assert {a.status for a in answers} == {200}
            served += len(answers)
    refused = wait_until(lambda: (daemon.status()["received"]["refused"]["full"], daemon.status()["received"]), "large ones are refused")
    grown = memory(pid) - before
    for client in [*slow, *idle]:
        client.close()

    bound = in_flight + connections * BUFFER + 32 * MIB
    say(f"2,000 connections, 64 of them with 64 MiB each, {in_flight // MIB} MiB allowed in flight: {served} small requests served, {refused} large ones refused; "
        f"resident memory {before / MIB:.0f} MiB before, at most {(before + grown) / MIB:.0f} MiB (bound {(before + bound) / MIB:.0f} MiB)")
    assert grown <= bound, f"{grown / MIB:.0f} MiB"
    wait_until(lambda: (descriptors(pid) < 100, descriptors(pid)), "the connections are gone")
    # All of the budget is back: a request that needs most of it passes.
    wait_until(lambda: HttpClient(daemon.port).send(make_request(1, padding=40 * MIB)[0]).ok, "a large request is taken again")


def test_announcements_cost_no_memory(make_daemon, receiver, many_descriptors, say):
    daemon = with_limits(make_daemon, receiver, 64, 256)
    pid = daemon.process.pid
    assert HttpClient(daemon.port).send(make_request(1)[0]).ok
    before, reserved = memory(pid, "VmRSS"), memory(pid, "VmSize")
    forget_peak(pid)
    streams = [Http2(daemon.port) for _ in range(10)]
    calls = [(c, c.call(data=frame(b"abc", length=64 * MIB))) for c in streams for _ in range(100)]
    plain = [Slow(daemon.port, 64 * MIB) for _ in range(1000)]
    for _ in range(2):  # in two pieces: it is at the second that they need a place of their own
        for client in plain:
            client.send(b"abc")
    for connection, call in calls:
        connection.data(call, b"def")
    # Behind all of them on its own connection, and behind a hundred on theirs: they have been read.
    for connection in streams:
        connection.until_end_of(connection.call(data=frame(b""), end=True))
    assert HttpClient(daemon.port).send(make_request(1)[0]).ok
    wait_until(lambda: (descriptors(pid) >= 1000, descriptors(pid)), "all of them are accepted")
    grown = memory(pid) - before
    say(f"2,000 requests that announce 64 MiB each, 125 GiB in all, and send 6 bytes: {grown / MIB:.0f} MiB more memory")
    assert grown <= 2000 * BUFFER / 2, f"{grown / MIB:.0f} MiB"
    # What is reserved and not touched is not resident, but a machine that does not overcommit refuses it. (Allocators
    # reserve generously for each of their few arenas.)
    reserved = memory(pid, "VmSize") - reserved
    assert reserved <= 1 << 30, f"{reserved / MIB:.0f} MiB of addresses"
    for client in [*streams, *plain]:
        client.close()


def occupied(daemon):
    """Requests that hold 19 of 21 MiB, and are never complete: of 24 MiB, one part in eight is for small ones."""
    held = []
    for mebibytes in (6, 6, 7):
        slow = Slow(daemon.port, (mebibytes + 1) * MIB)
        assert slow.send(bytes(mebibytes * MIB))
        held.append(slow)
    return held


def test_past_the_budget_large_requests_are_refused_at_once_and_small_ones_taken(make_daemon, receiver):
    daemon = with_limits(make_daemon, receiver, 8, 24)
    client, grpc_client = HttpClient(daemon.port), GrpcClient(daemon.port)
    large = make_request(1, padding=3 * MIB)[0]
    slow = occupied(daemon)
    refusal = wait_until(lambda: (a if not (a := client.send(large)).ok else False, a), "the budget is used up")
    assert refusal.status == 503 and float(refusal.headers.get("retry-after", 0)) <= 2
    assert b"receive.max_in_flight_bytes" in refusal.body and refusal.headers["content-type"] == PROTOBUF
    refusal = grpc_client.send(large)
    assert refusal.status == "UNAVAILABLE" and b"receive.max_in_flight_bytes" in refusal.body
    # Of what unfolds, what counts is what it becomes.
    bomb = make_request(1)[0]
    bomb.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="zeros").value.string_value = "0" * (3 * MIB)
    assert client.send(gzip.compress(bomb.SerializeToString()), headers={"Content-Encoding": "gzip"}).status == 503
    assert not any(s.is_answered() for s in slow), "those that were there first go on"
    # One part in eight is held for requests under 1 MiB.
    for _ in range(20):
        assert client.send(make_request(1, padding=MIB // 2)[0]).ok
        assert grpc_client.send(make_request(1, padding=MIB // 2)[0]).ok
    assert daemon.status()["received"]["refused"]["full"] >= 3
    slow[-1].close()
    slow[0].close()
    wait_until(lambda: client.send(large).ok, "there is room again")
    assert grpc_client.send(large).ok
    grpc_client.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_sdk_comes_again_when_it_is_refused_for_now(make_daemon, receiver, protocol):
    """The exporters of the OpenTelemetry SDK drop what they take for a final refusal (CONTRACT: 503 and UNAVAILABLE)."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExportResult

    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    daemon = with_limits(make_daemon, receiver, 8, 24)
    endpoint = daemon.http if protocol == "grpc" else f"{daemon.http}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=endpoint)
    slow = occupied(daemon)
    wait_until(lambda: not HttpClient(daemon.port).send(make_request(1, padding=3 * MIB)[0]).ok, "the budget is used up")
    span = TracerProvider().get_tracer("tests").start_span("large", attributes={"padding": "x" * (3 * MIB)})
    span.end()
    refused = daemon.status()["received"]["refused"]["full"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        result = pool.submit(exporter.export, [span])
        wait_until(lambda: daemon.status()["received"]["refused"]["full"] > refused, "the exporter is refused")
        for held in slow:
            held.close()
        assert result.result(60) is SpanExportResult.SUCCESS
    wait_until(lambda: receiver.has([f"{span.context.span_id:016x}"]), "its span arrives")
    exporter.shutdown()


def test_bodies_have_a_deadline_and_a_least_rate(make_daemon, receiver):
    """Those who send nothing more or next to nothing are told to come again; who is slow but steady has its time.

    Takes as long as the pauses that are allowed: half a minute. Nothing is asserted about it.
    """
    daemon = with_limits(make_daemon, receiver, 8, 64)
    silent = [Slow(daemon.port, MIB, p) for p in ("http", "grpc")]
    trickling = [Slow(daemon.port, MIB, p) for p in ("http", "grpc")]
    for client in silent:
        client.send(bytes(100_000))
    request, ids = make_request(1, padding=2 * MIB)
    body = request.SerializeToString()
    steady = Slow(daemon.port, len(body))
    sent, piece, deadline = 0, 48 << 10, time.monotonic() + 120
    while not (sent >= len(body) and all(c.is_answered() for c in [*silent, *trickling])):
        assert time.monotonic() < deadline, "still waiting for whoever sends too slowly"
        for client in trickling:
            client.is_answered() or client.send(b"\n")
        if sent < len(body):
            assert steady.send(body[sent : sent + piece]), "a steady client was cut off"
            sent += piece
        time.sleep(1)  # the pace of the clients, not a wait for the daemon
    for client in [*silent, *trickling]:
        answer = client.answer()
        if client.protocol == "http":
            assert answer.status == 503 and b"too slowly" in answer.body
        else:
            assert answer.status in (Http2.HEADERS, Http2.RST_STREAM)
    assert steady.answer().ok
    wait_until(lambda: receiver.has(ids), "the steady one's span arrives")
    for client in [*silent, *trickling, steady]:
        client.close()


def test_a_stop_does_not_wait_for_whoever_is_slow_and_nobody_is_told_to_drop_anything(make_daemon, receiver):
    daemon = with_limits(make_daemon, receiver, 8, 64)
    slow = [Slow(daemon.port, MIB, ["http", "grpc"][n % 2]) for n in range(50)]
    for client in slow:
        client.send(bytes(10_000))
    acknowledged, refusals, done = [], [], threading.Event()

    def go_on(client):
        while not done.is_set():
            request, ids = make_request(1)
            try:
                answer = client.send(request)
            except OSError:
                return  # closed: every SDK comes again
            except http.client.HTTPException:
                return
            if answer.ok:
                acknowledged.extend(ids)
            else:
                refusals.append(answer.status)
                return

    clients = [HttpClient(daemon.port, timeout=30) for _ in range(4)] + [GrpcClient(daemon.port, timeout=30) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as pool:
        ends = [pool.submit(go_on, c) for c in clients]
        wait_until(lambda: len(acknowledged) > 50, "requests are taken")
        daemon.terminate()  # says so when it takes more than ten seconds
        done.set()
        for end in ends:
            end.result(60)
    assert set(refusals) <= {503, "UNAVAILABLE"}, refusals
    for client in [*slow, *clients]:
        client.close()
    daemon.start()
    wait_until(lambda: receiver.has(acknowledged), "what was acknowledged is delivered")
