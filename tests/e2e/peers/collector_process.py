"""A real OpenTelemetry Collector (peers/collector, built by tests/run) as a process."""

import base64
import json
import os
import signal
import socket
import subprocess

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

from . import PATIENCE, free_port, wait_until
from .otlp import spans_of
from .programs import peer

IDS = ("traceId", "spanId", "parentSpanId")


class Collector:
    """Receives OTLP over gRPC and HTTP, and exports to `exporters`, each as the Collector's configuration has it.

    Without exporters it is a backend: a file holds every span.
    """

    def __init__(self, directory, exporters=None):
        self.directory = str(directory)
        os.makedirs(self.directory, exist_ok=True)
        self.grpc_port, self.http_port = free_port(), free_port()
        self.file = os.path.join(self.directory, "traces.jsonl")
        self.log_file = os.path.join(self.directory, "collector.log")
        self.exporters = exporters or {"file": {"path": self.file, "append": True, "flush_interval": "50ms"}}
        self.process = None

    def up(self):
        protocols = {"grpc": {"endpoint": f"127.0.0.1:{self.grpc_port}"}, "http": {"endpoint": f"127.0.0.1:{self.http_port}"}}
        config = {
            "receivers": {"otlp": {"protocols": protocols}},
            "exporters": self.exporters,
            "service": {"pipelines": {"traces": {"receivers": ["otlp"], "exporters": list(self.exporters)}}},
        }
        path = os.path.join(self.directory, "collector.yaml")
        with open(path, "w") as f:
            json.dump(config, f)  # JSON is YAML
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                [peer("collector", "program"), "--config", f"file:{path}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._is_ready, "the Collector is ready")
        return self

    def _is_ready(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the Collector ended with {self.process.returncode}: {self.log()[-2000:]}")
        for port in (self.grpc_port, self.http_port):
            socket.create_connection(("127.0.0.1", port), 1).close()
        return True

    def down(self):
        """SIGTERM: it sends what it still has, within limits."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)

    def log(self):
        with open(self.log_file, errors="replace") as f:
            return f.read()

    def spans(self):
        """What the file holds now; the last line may still be in the making."""
        if not os.path.exists(self.file):
            return []
        with open(self.file) as f:
            lines = [line for line in f if line.endswith("\n")]
        return [span for line in lines for span in spans_of(request_of_json(line))]


def request_of_json(line):
    """OTLP JSON as a message. Protobuf's own JSON has base64 where OTLP has hex."""

    def to_base64(value):
        if isinstance(value, list):
            return [to_base64(v) for v in value]
        if isinstance(value, dict):
            return {k: base64.b64encode(bytes.fromhex(v)).decode() if k in IDS else to_base64(v) for k, v in value.items()}
        return value

    return json_format.ParseDict(to_base64(json.loads(line)), service.ExportTraceServiceRequest())
