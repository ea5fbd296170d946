"""Says of each request on standard input whether Python's protobuf (upb) decodes it: 1 or 0, a byte each.

A request is a length of four bytes, most significant first, and its bytes.
"""

import sys

from google.protobuf.internal import api_implementation
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

assert api_implementation.Type() == "upb", "another decoder than the one that is meant"

while head := sys.stdin.buffer.read(4):
    request = sys.stdin.buffer.read(int.from_bytes(head, "big"))
    try:
        ExportTraceServiceRequest.FromString(request)
        verdict = b"1"
    except DecodeError:
        verdict = b"0"
    sys.stdout.buffer.write(verdict)
