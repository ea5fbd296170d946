"""Clients below the level of libraries, for requests that no library makes: bytes on sockets, and curl."""

import json
import os
import re
import select
import socket
import struct
import subprocess
from dataclasses import dataclass

from .programs import APPS

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def frame(message, flag=0, length=None):
    """A gRPC message with its prefix; `length` is what the prefix says, whatever is true."""
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


def connect(port, timeout=30):
    return socket.create_connection(("127.0.0.1", port), timeout)


def is_readable(connection):
    poll = select.poll()  # select itself can't take descriptors past 1,023
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def head(path="/v1/traces", method="POST", version="1.1", **headers):
    """The head of an HTTP request; `content_type="x"` is `Content-Type: x`, None leaves a header out."""
    headers = {"host": "localhost", **headers}
    lines = [f"{k.replace('_', '-')}: {v}" for k, v in headers.items() if v is not None]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode()


def read_response(stream):
    """One response from a connection's file; the connection goes on behind it. No answer at all is EOFError."""
    line = stream.readline()
    if not line:
        raise EOFError("the connection ended without an answer")
    status, headers = int(line.split()[1]), {}
    while (line := stream.readline().strip()):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    if status < 200:
        return status, headers, b""
    return status, headers, stream.read(int(headers["content-length"]))


@dataclass
class Curled:
    """The last response that curl saw: status, headers and trailers together, body."""

    version: str
    status: int
    headers: dict
    body: bytes
    connects: int


# Headers and trailers to standard error, the body to standard output, and behind it a line of figures.
CURL = ["-sS", "--max-time", "60", "--noproxy", "*", "-D", "/dev/stderr", "-w", "\n%{http_version} %{http_code} %{num_connects}"]


def curl(arguments, body=None):
    """One request, with `body` as its data."""
    data = ["--data-binary", "@-"] if body is not None else []
    done = subprocess.run(["curl", *CURL, *data, *arguments], input=body or b"", capture_output=True, timeout=90)
    content, _, last = done.stdout.rpartition(b"\n")
    assert done.returncode == 0, f"curl ended with {done.returncode}: {done.stderr.decode(errors='replace')}"
    version, status, connects = last.decode().split()
    headers = dict(re.findall(r"(?m)^([!-9;-~]+): ?(.*?)\r?$", done.stderr.decode()))
    return Curled(version, int(status), {k.lower(): v for k, v in headers.items()}, content, int(connects))


@dataclass
class Called:
    """The answer to a gRPC call; `status` as the number on the wire."""

    status: int
    headers: dict  # and trailers
    body: bytes


def call(port, body, path=EXPORT, socket=None, **headers):
    """A gRPC call with these bytes as its body; Node's own HTTP/2 is the client."""
    fields = {":path": path, "content-type": "application/grpc", "te": "trailers", **{k.replace("_", "-"): v for k, v in headers.items()}}
    what = {"origin": f"http://127.0.0.1:{port}", "socket": socket, "headers": fields}
    done = subprocess.run(["node", os.path.join(APPS, "http2_call.mjs"), json.dumps(what)], input=body, capture_output=True, timeout=90)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    answer = json.loads(done.stdout)
    assert answer["headers"].pop(":status") == 200
    headers = {**answer["headers"], **answer["trailers"]}
    return Called(int(headers["grpc-status"]), headers, bytes.fromhex(answer["body"]))


class Http2:
    """An HTTP/2 connection, frame by frame (RFC 9113)."""

    DATA, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE = 0, 1, 3, 4, 8

    def __init__(self, port):
        self.socket = connect(port)
        self.next = 1
        self.kept = []  # frames that were read while another was waited for
        self.windows = {0: 65_535}  # what may be sent, on the connection (0) and on each stream
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self._frame(self.SETTINGS, 0, 0, b""))
        kind, _, _, settings = self.read()
        assert kind == self.SETTINGS
        values = dict(struct.unpack(">HI", settings[n : n + 6]) for n in range(0, len(settings), 6))
        self.first_window = values.get(4, 65_535)
        # Its windows hold from here on.
        self.socket.sendall(self._frame(self.SETTINGS, 1, 0, b""))

    def _exactly(self, size):
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise EOFError("the connection ended")
            data += piece
        return data

    def read(self):
        """The next frame: kind, flags, stream, payload. Headers stay compressed."""
        start = self._exactly(9)
        kind, flags, stream, payload = start[3], start[4], int.from_bytes(start[5:]), self._exactly(int.from_bytes(start[:3]))
        if kind == self.WINDOW_UPDATE and stream in self.windows:
            self.windows[stream] += int.from_bytes(payload)
        return kind, flags, stream, payload

    def is_answered(self, stream):
        """Whether the answer has begun; waits for nothing."""
        while not any(of == stream for _, _, of, _ in self.kept) and is_readable(self.socket):
            self._keep(self.read())
        return any(of == stream for _, _, of, _ in self.kept)

    def _keep(self, frame):
        if frame[0] not in (self.WINDOW_UPDATE, self.SETTINGS):
            self.kept.append(frame)

    @staticmethod
    def _frame(kind, flags, stream, payload):
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    @staticmethod
    def _field(name, value):
        """A literal that is not indexed, with plain strings (RFC 7541, 6.2.2)."""
        assert len(name) < 127 and len(value) < 127
        return bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()

    def until_end_of(self, stream):
        """The frames that answer this stream, as kind and payload."""
        frames, kept = [], [f for f in self.kept if f[2] == stream]
        while True:
            kind, flags, of, payload = kept.pop(0) if kept else self.read()
            if of == stream and kind != self.WINDOW_UPDATE:
                frames.append((kind, payload))
                if kind == self.RST_STREAM or flags & 1:
                    return frames

    def call(self, path=EXPORT, data=b"", end=False, content_type="application/grpc", **headers):
        """Opens a stream and sends the beginning of its body; returns the stream."""
        stream, self.next = self.next, self.next + 2
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "content-type": content_type, "te": "trailers", **headers}
        block = b"".join(self._field(k.replace("_", "-"), v) for k, v in fields.items())
        self.socket.sendall(self._frame(self.HEADERS, 4, stream, block))
        self.windows[stream] = self.first_window
        self.data(stream, data, end)
        return stream

    def data(self, stream, data, end=False):
        """Sends it as soon as the windows allow. An answer that comes before is a ConnectionError."""
        while min(self.windows[0], self.windows[stream]) < len(data):
            self._keep(self.read())
            if any(of == stream for _, _, of, _ in self.kept):
                raise ConnectionError("answered before all was sent")
        self.windows[0] -= len(data)
        self.windows[stream] -= len(data)
        self.socket.sendall(self._frame(self.DATA, int(end), stream, data))

    def close(self):
        self.socket.close()
