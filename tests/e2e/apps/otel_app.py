"""An application with the plain OpenTelemetry SDK. Protocol, endpoint and compression come from the usual variables.

The last line is JSON: every span as the SDK itself saw it, so that nothing has to be assumed about what it sends.
"""

import json
import os
import sys

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

if (os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"]) == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
else:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

traces = int(sys.argv[1]) if len(sys.argv) > 1 else 50

provider = TracerProvider(resource=Resource.create({"service.name": "shop-ü", "service.version": "1.2.3", "replicas": 3}))
memory = InMemorySpanExporter()
provider.add_span_processor(SimpleSpanProcessor(memory))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), max_export_batch_size=64))
tracer = provider.get_tracer("shop.checkout", "0.9")

previous = None
for n in range(traces):
    links = [Link(previous, {"why": "follows"})] if previous else []
    with tracer.start_as_current_span(f"checkout {n}", kind=SpanKind.SERVER, links=links) as root:
        previous = root.get_span_context()
        root.set_attributes({"cart.items": n, "cart.total": n * 1.5, "vip": n % 2 == 0, "tags": ["a", "ß"], "note": "naïve ☕", "seq": [1, 2]})
        with tracer.start_as_current_span("charge", kind=SpanKind.CLIENT) as span:
            span.add_event("retry", {"attempt": 1})
            if n % 5 == 0:
                span.record_exception(RuntimeError("declined"))
                span.set_status(Status(StatusCode.ERROR, "declined"))
        with tracer.start_as_current_span("ship", kind=SpanKind.PRODUCER):
            pass

provider.shutdown()


def plain(attributes):
    return {k: list(v) if isinstance(v, tuple) else v for k, v in (attributes or {}).items()}


print(
    json.dumps(
        {"spans": [
            {
                "trace_id": f"{s.context.trace_id:032x}",
                "span_id": f"{s.context.span_id:016x}",
                "parent_id": f"{s.parent.span_id:016x}" if s.parent else "",
                "name": s.name,
                "kind": s.kind.value + 1,  # OTLP counts from "unspecified"
                "status": [s.status.status_code.value, s.status.description or ""],
                "start": s.start_time,
                "end": s.end_time,
                "attributes": plain(s.attributes),
                "events": [[e.name, e.timestamp, plain(e.attributes)] for e in s.events],
                "links": [[f"{l.context.trace_id:032x}", f"{l.context.span_id:016x}", plain(l.attributes)] for l in s.links],
                "scope": s.instrumentation_scope.name,
                "resource": plain(s.resource.attributes),
            }
            for s in memory.get_finished_spans()
        ]}
    )
)
