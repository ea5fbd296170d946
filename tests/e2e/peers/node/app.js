// An application with the plain OpenTelemetry SDK for Node. Protocol, endpoint and compression come from the usual
// variables. The last line is JSON: every span as the SDK itself saw it, in the form of apps/otel_app.py. Times are
// strings in it, because they are past what a number of JavaScript can hold.
import { SpanKind, SpanStatusCode, context, diag, trace } from '@opentelemetry/api';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { BatchSpanProcessor, InMemorySpanExporter, SimpleSpanProcessor, TracerProvider } from '@opentelemetry/sdk-trace';

const packages = { grpc: 'grpc', 'http/protobuf': 'proto', 'http/json': 'http' };
const name = packages[process.env.OTEL_EXPORTER_OTLP_PROTOCOL];
const { OTLPTraceExporter } = await import(`@opentelemetry/exporter-trace-otlp-${name}`);

// The SDK drops what it can't send, and says so only here.
const fail = (...words) => {
  console.error(...words);
  process.exitCode = 1;
};
diag.setLogger({ verbose() {}, debug() {}, info() {}, warn: fail, error: fail });

const traces = Number(process.argv[2]);
const memory = new InMemorySpanExporter();
const provider = new TracerProvider({
  resource: resourceFromAttributes({ 'service.name': 'shop-ü', replicas: 3 }),
  spanProcessors: [
    new SimpleSpanProcessor({ exporter: memory }),
    new BatchSpanProcessor({ exporter: new OTLPTraceExporter(), maxExportBatchSize: 64, maxQueueSize: 100_000 }),
  ],
});
const tracer = provider.getTracer('shop.checkout');

let previous;
for (let n = 0; n < traces; n++) {
  const root = tracer.startSpan(`checkout ${n}`, {
    kind: SpanKind.SERVER,
    links: previous ? [{ context: previous, attributes: { why: 'follows' } }] : [],
    attributes: {
      'cart.items': n, large: 2 ** 53 - 1, negative: -n, 'cart.total': n * 1.5 + 0.25, vip: n % 2 === 0,
      tags: ['a', 'ß'], note: 'naïve ☕ \u0000 "\\', seq: [1, 2],
    },
  });
  previous = root.spanContext();
  const inside = trace.setSpan(context.active(), root);
  const charge = tracer.startSpan('charge', { kind: SpanKind.CLIENT }, inside);
  charge.addEvent('retry', { attempt: 1 });
  if (n % 5 === 0) {
    charge.recordException(new Error('declined'));
    charge.setStatus({ code: SpanStatusCode.ERROR, message: 'declined' });
  }
  charge.end();
  tracer.startSpan('ship', { kind: SpanKind.PRODUCER }, inside).end();
  root.end();
}

const nanoseconds = ([seconds, rest]) => String(BigInt(seconds) * 1_000_000_000n + BigInt(rest));
const spans = memory.getFinishedSpans().map((s) => ({
  trace_id: s.spanContext().traceId,
  span_id: s.spanContext().spanId,
  parent_id: s.parentSpanContext?.spanId ?? '',
  name: s.name,
  kind: s.kind + 1, // OTLP counts from "unspecified"
  status: [s.status.code, s.status.message ?? ''],
  start: nanoseconds(s.startTime),
  end: nanoseconds(s.endTime),
  attributes: s.attributes,
  events: s.events.map((e) => [e.name, nanoseconds(e.time), e.attributes ?? {}]),
  links: s.links.map((l) => [l.context.traceId, l.context.spanId, l.attributes ?? {}]),
  scope: s.instrumentationScope.name,
  resource: s.resource.attributes,
}));
await provider.shutdown();
console.log(JSON.stringify({ spans }));
