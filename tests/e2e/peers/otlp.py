"""Small OTLP requests, and received ones as plain values."""

import http.client
import json
import os
import select
import threading
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc

PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class Span:
    """A span as it arrived, with nothing of protobuf left in it."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    status: tuple  # code, message
    start: int
    end: int
    attributes: dict = field(hash=False)
    events: list = field(hash=False)  # (name, time, attributes)
    links: list = field(hash=False)  # (trace_id, span_id, attributes)
    scope: str
    resource: dict = field(hash=False)


def plain(any_value):
    """An AnyValue as a Python value; bytes stay bytes, so that no two types look alike."""
    kind = any_value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(v) for v in any_value.array_value.values]
    if kind == "kvlist_value":
        return plain_map(any_value.kvlist_value.values)
    return getattr(any_value, kind)


def plain_map(pairs):
    return {kv.key: plain(kv.value) for kv in pairs}


def spans_of(request):
    """Every span of an ExportTraceServiceRequest."""
    return [
        Span(
            trace_id=s.trace_id.hex(),
            span_id=s.span_id.hex(),
            parent_id=s.parent_span_id.hex(),
            name=s.name,
            kind=s.kind,
            status=(s.status.code, s.status.message),
            start=s.start_time_unix_nano,
            end=s.end_time_unix_nano,
            attributes=plain_map(s.attributes),
            events=[(e.name, e.time_unix_nano, plain_map(e.attributes)) for e in s.events],
            links=[(l.trace_id.hex(), l.span_id.hex(), plain_map(l.attributes)) for l in s.links],
            scope=ss.scope.name,
            resource=plain_map(rs.resource.attributes),
        )
        for rs in request.resource_spans
        for ss in rs.scope_spans
        for s in ss.spans
    ]


def make_request(spans=1, name="span", padding=0, service_name="tests"):
    """A request of one trace; returns the message and its span ids. `padding` bytes of noise go into each span."""
    request = service.ExportTraceServiceRequest()
    rs = request.resource_spans.add()
    a = rs.resource.attributes.add(key="service.name")
    a.value.string_value = service_name
    ss = rs.scope_spans.add()
    ss.scope.name = "tests"
    trace_id, root, ids = os.urandom(16), b"", []
    for n in range(spans):
        s = ss.spans.add(
            trace_id=trace_id,
            span_id=os.urandom(8),
            parent_span_id=root,
            name=name,
            kind=1,
            start_time_unix_nano=1_700_000_000_000_000_000 + n,
            end_time_unix_nano=1_700_000_000_100_000_000 + n,
        )
        root = root or s.span_id
        if padding:
            s.attributes.add(key="padding").value.string_value = os.urandom(padding // 2 + 1).hex()[:padding]
        ids.append(s.span_id.hex())
    return request, ids


@dataclass
class Answer:
    """What the door said: `ok`, and for a refusal the HTTP status or the name of the gRPC code."""

    ok: bool
    status: object
    headers: dict
    body: bytes = b""


class HttpClient:
    """One connection that is opened again after trouble. Raises OSError or HTTPException when there was no answer."""

    def __init__(self, port, path="/v1/traces", timeout=30):
        self.port, self.path, self.timeout = port, path, timeout
        self.connection = None

    def send(self, request, content_type=PROTOBUF, headers=()):
        if isinstance(request, str):
            body = request.encode()  # http.client by itself takes Latin-1
        else:
            body = request if isinstance(request, bytes) else request.SerializeToString()
        # An idle connection with something to read was closed by the other side: the daemon was stopped in between.
        if self.connection is not None and select.select([self.connection.sock], [], [], 0)[0]:
            self.close()
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
            self.connection.request("POST", self.path, body, {"Content-Type": content_type, **dict(headers)})
            response = self.connection.getresponse()
            content = response.read()
            if response.will_close:
                self.close()
            return Answer(response.status == 200, response.status, {k.lower(): v for k, v in response.getheaders()}, content)
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class GrpcClient:
    """A channel of its own. Raises OSError when there was no answer from the daemon itself."""

    def __init__(self, port, timeout=30):
        self.timeout = timeout
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{port}",
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                # After a kill the next attempt must not wait for grpcio's default of up to two minutes.
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self.stub = service_grpc.TraceServiceStub(self.channel)

    def send(self, request, compression=None):
        try:
            self.stub.Export(request, timeout=self.timeout, compression=compression)
            return Answer(True, "OK", {})
        except grpc.RpcError as e:
            return Answer(False, e.code().name, dict(e.trailing_metadata() or ()), (e.details() or "").encode())

    def close(self):
        self.channel.close()


def request_as_json(request):
    """OTLP JSON as the specification has it: the protobuf mapping, but with ids in hex and enums as integers."""
    from google.protobuf import json_format

    message = json_format.MessageToDict(request, use_integers_for_enums=True)
    for rs, rs_json in zip(request.resource_spans, message["resourceSpans"]):
        for ss, ss_json in zip(rs.scope_spans, rs_json["scopeSpans"]):
            for s, s_json in zip(ss.spans, ss_json["spans"]):
                s_json["traceId"], s_json["spanId"] = s.trace_id.hex(), s.span_id.hex()
                if s.parent_span_id:
                    s_json["parentSpanId"] = s.parent_span_id.hex()
    return json.dumps(message)


class Load:
    """Threads that send small requests until told to stop, and remember what was sent and what was acknowledged."""

    def __init__(self, port, http=4, grpc=2, seed=0, paddings=(0, 100, 2000)):
        self.paddings = paddings
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.sent, self.acknowledged, self.errors = set(), set(), []
        self.refusals = {}
        clients = [HttpClient(port, timeout=10) for _ in range(http)] + [GrpcClient(port, timeout=10) for _ in range(grpc)]
        self.threads = [threading.Thread(target=self._work, args=(c, seed + n), daemon=True) for n, c in enumerate(clients)]

    def _work(self, client, seed):
        import random

        rng = random.Random(seed)
        while not self.stopping.is_set():
            request, ids = make_request(rng.randint(1, 5), padding=rng.choice(self.paddings))
            with self.lock:
                self.sent.update(ids)
            try:
                answer = client.send(request)
            except (OSError, http.client.HTTPException):
                answer = None
            except Exception as e:  # a bug of the test must not look like a quiet client
                self.errors.append(repr(e))
                return
            with self.lock:
                if answer is not None and answer.ok:
                    self.acknowledged.update(ids)
                elif answer is not None:
                    self.refusals[answer.status] = self.refusals.get(answer.status, 0) + 1
            if answer is None or not answer.ok:
                self.stopping.wait(0.02)  # the daemon is down: do not burn the core it needs to start
        client.close()

    def start(self):
        for t in self.threads:
            t.start()
        return self

    def acknowledged_count(self):
        with self.lock:
            return len(self.acknowledged)

    def stop(self):
        self.stopping.set()
        for t in self.threads:
            t.join(30)
            assert not t.is_alive(), "a client hangs: an answer never came"
        assert not self.errors, self.errors
