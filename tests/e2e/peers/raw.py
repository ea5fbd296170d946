"""Clients below the level of libraries, for requests that no library makes: bytes on sockets, and curl."""

import json
import os
import re
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
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self._frame(self.SETTINGS, 0, 0, b""))
        self.stream = self.socket.makefile("rb")
        assert self.read()[0] == self.SETTINGS
        # Its windows hold from here on.
        self.socket.sendall(self._frame(self.SETTINGS, 1, 0, b""))

    def read(self):
        """The next frame: kind, flags, stream, payload. Headers stay compressed."""
        start = self.stream.read(9)
        if len(start) < 9:
            raise EOFError("the connection ended")
        return start[3], start[4], int.from_bytes(start[5:]), self.stream.read(int.from_bytes(start[:3]))

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
        frames = []
        while True:
            kind, flags, of, payload = self.read()
            if of == stream and kind != self.WINDOW_UPDATE:
                frames.append((kind, payload))
                if kind == self.RST_STREAM or flags & 1:
                    return frames

    def call(self, path=EXPORT, data=b"", end=False, content_type="application/grpc", **headers):
        """Opens a stream and sends the beginning of its body; returns the stream."""
        stream, self.next = self.next, self.next + 2
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "content-type": content_type, "te": "trailers", **headers}
        block = b"".join(self._field(k.replace("_", "-"), v) for k, v in fields.items())
        self.socket.sendall(self._frame(self.HEADERS, 4, stream, block) + self._frame(self.DATA, int(end), stream, data))
        return stream

    def data(self, stream, data, end=False):
        self.socket.sendall(self._frame(self.DATA, int(end), stream, data))

    def close(self):
        self.stream.close()
        self.socket.close()
