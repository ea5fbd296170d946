"""An OTLP backend that keeps every span and answers as it is told."""

import collections
import gzip
import socket
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc

from . import free_port
from .otlp import PROTOBUF, spans_of


class OtlpReceiver:
    """gRPC on one port, HTTP on another, both into the same store.

    * `script`: answers to give before anything succeeds, first come first served: HTTP statuses (int) or
      grpc.StatusCode. Each goes to the next request of its protocol.
    * `refuse`: a function of the spans of a request that returns an answer, or None to take it. For bad records.
    * `down()` and `up()`: closes the ports, and opens the same ones again.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.grpc_port, self.http_port = free_port(), free_port()
        self.spans = []  # in order of arrival, with repetitions
        self.arrivals = collections.defaultdict(list)  # span id -> monotonic times
        self.requests = []  # (protocol, headers, answer)
        self.bodies = []  # of HTTP requests, decompressed
        self.script = collections.deque()
        self.refuse = lambda spans: None
        self.running = False

    # --- life ---

    def up(self):
        assert not self.running
        self._grpc = grpc.server(
            futures.ThreadPoolExecutor(16),
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
        )
        service_grpc.add_TraceServiceServicer_to_server(_Servicer(self), self._grpc)
        assert self._grpc.add_insecure_port(f"127.0.0.1:{self.grpc_port}") == self.grpc_port
        self._grpc.start()
        handler = type("Handler", (_Handler,), {"receiver": self})
        self._http = _HttpServer(("127.0.0.1", self.http_port), handler)
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.running = True
        return self

    def down(self):
        if self.running:
            self.running = False
            self._grpc.stop(grace=0).wait()
            self._http.shutdown()
            self._http.close_all()

    # --- addresses, as backends of the daemon ---

    def backend(self, kind, **more):
        endpoint = {"otlp_grpc": f"http://127.0.0.1:{self.grpc_port}", "otlp_http": f"http://127.0.0.1:{self.http_port}"}[kind]
        return {"name": kind, "kind": kind, "endpoint": endpoint, **more}

    # --- what happened ---

    def ids(self):
        """Span ids with how often each arrived."""
        with self.lock:
            return {k: len(v) for k, v in self.arrivals.items()}

    def has(self, ids):
        """For wait_until: whether all of these spans arrived, and how many are missing."""
        missing = set(ids) - self.ids().keys()
        return not missing, f"{len(missing)} of {len(set(ids))} spans missing"

    def by_id(self):
        with self.lock:
            return {s.span_id: s for s in self.spans}

    # --- answering ---

    def _take(self, protocol, scripted_type, headers, request):
        spans = spans_of(request)
        with self.lock:
            answer = next((a for a in self.script if isinstance(a, scripted_type)), None)
            if answer is not None:
                self.script.remove(answer)
            else:
                answer = self.refuse(spans)
            self.requests.append((protocol, headers, answer))
            if answer is None:
                now = time.monotonic()
                self.spans.extend(spans)
                for s in spans:
                    self.arrivals[s.span_id].append(now)
        return answer


class _Servicer(service_grpc.TraceServiceServicer):
    def __init__(self, receiver):
        self.receiver = receiver

    def Export(self, request, context):
        answer = self.receiver._take("grpc", grpc.StatusCode, dict(context.invocation_metadata()), request)
        if answer is None:
            return service.ExportTraceServiceResponse()
        if answer is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # With RetryInfo it means "later"; without it "never".
            status = status_pb2.Status(code=answer.value[0], message="scripted")
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromMilliseconds(100)
            status.details.add().Pack(info)
            context.abort_with_status(rpc_status.to_status(status))
        context.abort(answer, "scripted")


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, *arguments):
        self.connections = set()
        super().__init__(*arguments)

    def process_request(self, request, address):
        self.connections.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def close_all(self):
        """A server that goes away takes its kept-alive connections along."""
        self.server_close()
        for c in list(self.connections):
            try:
                c.shutdown(socket.SHUT_RDWR)  # both ways: nothing that is still under way may be taken
            except OSError:
                pass

    def handle_error(self, request, address):
        pass  # a peer that was killed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body leave in two writes
    receiver = None

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self._chunks()
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path != "/v1/traces" or self.headers.get("Content-Type") != PROTOBUF:
            return self._answer(404 if self.path != "/v1/traces" else 415)
        request = service.ExportTraceServiceRequest.FromString(body)
        self.receiver.bodies.append(body)
        self._answer(self.receiver._take("http", int, {k.lower(): v for k, v in self.headers.items()}, request) or 200)

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status):
        message = service.ExportTraceServiceResponse() if status == 200 else status_pb2.Status(message="scripted")
        content = message.SerializeToString()
        self.send_response(status)
        self.send_header("Content-Type", PROTOBUF)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass
