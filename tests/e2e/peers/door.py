"""One daemon for all tests of a module: they only send, and look at what arrives at its backend."""

import os
import uuid

from google.protobuf import json_format
from google.rpc import status_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

from . import wait_until
from .otlp import PROTOBUF, GrpcClient, HttpClient, make_request

JSON = "application/json"
LIMIT = 1 << 20
# The name of spans that must never arrive.
REFUSED = "refused"


class Door:
    """A daemon in front of a backend that keeps the very bytes it gets."""

    def __init__(self, daemon, receiver):
        self.daemon, self.receiver = daemon, receiver
        self.port, self.second_port = daemon.port, daemon.second_port
        self.socket = daemon.config["receive"]["socket"]["path"]

    def post(self, body, content_type=PROTOBUF, path="/v1/traces", **headers):
        client = HttpClient(self.port, path)
        try:
            return client.send(body, content_type, {k.replace("_", "-"): v for k, v in headers.items()})
        finally:
            client.close()

    def call(self, request, compression=None):
        client = GrpcClient(self.port)
        try:
            return client.send(request, compression)
        finally:
            client.close()

    def arrived(self, payload):
        """Waits until exactly these bytes are part of a request to the backend."""
        wait_until(lambda: any(payload in body for body in self.receiver.bodies), "the payload arrived byte for byte")

    def spans_named(self, name):
        """All spans of that name that the backend has, as messages."""
        requests = [service.ExportTraceServiceRequest.FromString(body) for body in self.receiver.bodies]
        return [s for r in requests for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans if s.name == name]

    def span_named(self, name):
        found = wait_until(lambda: self.spans_named(name), f"span {name} arrived")
        assert len(found) == 1
        return found[0]

    def refused(self):
        return self.daemon.status()["received"]["refused"]


def unique(**more):
    """A request of one span whose name nobody else uses; returns message and name."""
    name = uuid.uuid4().hex
    return make_request(1, name=name, **more)[0], name


def exactly(size, name="exactly"):
    """A request of exactly `size` bytes once it is encoded."""
    request, _ = make_request(1, name=name)
    text = request.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="filler").value
    text.string_value = "a" * (size - 200)
    for _ in range(4):  # each length in front of the text may grow by a byte
        text.string_value += "a" * (size - request.ByteSize())
        if request.ByteSize() > size:
            text.string_value = text.string_value[: size - request.ByteSize()]
    assert request.ByteSize() == size
    return request


def status_of(answer):
    """The google.rpc.Status of a refusal, by the media type of the answer."""
    if answer.headers["content-type"] == PROTOBUF:
        return status_pb2.Status.FromString(answer.body)
    assert answer.headers["content-type"] == JSON, answer.headers
    return json_format.Parse(answer.body, status_pb2.Status())


def noise(size):
    return os.urandom(size // 2 + 1).hex()[:size]
