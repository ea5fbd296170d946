"""An OTLP/gRPC server that does as it is told.

The script, the first argument, is a JSON list of answers; each call takes the next one, and the last one stays:

    rejected, message    a partial success
    code, message        a refusal with this gRPC code
    retry_seconds        with a RetryInfo of that delay
    raw                  the answer is this text instead of a message
    hang                 no answer until the call is cancelled

The second argument is the address, 127.0.0.1:0 or unix:PATH. With further arguments CERT KEY [CLIENT_CA] the server
speaks TLS. The first line on standard output is the port, and each call is one line of JSON there.
"""

import json
import sys
import threading
from concurrent import futures

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
script = json.loads(sys.argv[1])
turn = threading.Lock()


def export(body, context):
    request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
    spans = [s.name for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
    with turn:
        answer = script.pop(0) if len(script) > 1 else script[0]
        metadata = {name: str(value) for name, value in context.invocation_metadata()}
        remaining = context.time_remaining()
        print(json.dumps({"spans": spans, "metadata": metadata, "peer": context.peer(), "remaining": remaining}), flush=True)
    if answer.get("hang"):
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait()
        return b""
    if "raw" in answer:
        return answer["raw"].encode()
    if "code" in answer:
        code = next(c for c in grpc.StatusCode if c.value[0] == answer["code"])
        if "retry_seconds" in answer:
            info = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=answer["retry_seconds"]))
            detail = any_pb2.Any()
            detail.Pack(info)
            status = status_pb2.Status(code=answer["code"], details=[detail])
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, answer.get("message", ""))
    response = trace_service_pb2.ExportTraceServiceResponse()
    if "rejected" in answer:
        response.partial_success.rejected_spans = answer["rejected"]
        response.partial_success.error_message = answer.get("message", "")
    return response.SerializeToString()


# Bytes in, bytes out: the message is parsed above, so that a request which is not one fails there.
handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
address = sys.argv[2]
if len(sys.argv) > 4:
    with open(sys.argv[3], "rb") as cert, open(sys.argv[4], "rb") as key:
        pair = (key.read(), cert.read())
    ca = open(sys.argv[5], "rb").read() if len(sys.argv) > 5 else None
    port = server.add_secure_port(address, grpc.ssl_server_credentials([pair], ca, ca is not None))
else:
    port = server.add_insecure_port(address)
server.start()
print(port, flush=True)
server.wait_for_termination()
