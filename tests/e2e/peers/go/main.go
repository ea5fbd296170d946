// An application with the plain OpenTelemetry SDK for Go. Protocol, endpoint and compression come from the usual
// variables. The last line is JSON: every span as the SDK itself saw it, in the form of apps/otel_app.py.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"strconv"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

type span struct {
	TraceID    string         `json:"trace_id"`
	SpanID     string         `json:"span_id"`
	ParentID   string         `json:"parent_id"`
	Name       string         `json:"name"`
	Kind       int            `json:"kind"`
	Status     []any          `json:"status"`
	Start      int64          `json:"start"`
	End        int64          `json:"end"`
	Attributes map[string]any `json:"attributes"`
	Events     [][]any        `json:"events"`
	Links      [][]any        `json:"links"`
	Scope      string         `json:"scope"`
	Resource   map[string]any `json:"resource"`
}

func plain(attributes []attribute.KeyValue) map[string]any {
	values := map[string]any{}
	for _, a := range attributes {
		values[string(a.Key)] = a.Value.AsInterface()
	}
	return values
}

// The SDK and OTLP number the outcomes differently.
var outcomes = map[codes.Code]int{codes.Unset: 0, codes.Ok: 1, codes.Error: 2}

func seen(s tracetest.SpanStub) span {
	parent := ""
	if s.Parent.HasSpanID() {
		parent = s.Parent.SpanID().String()
	}
	events, links := [][]any{}, [][]any{}
	for _, e := range s.Events {
		events = append(events, []any{e.Name, e.Time.UnixNano(), plain(e.Attributes)})
	}
	for _, l := range s.Links {
		links = append(links, []any{l.SpanContext.TraceID().String(), l.SpanContext.SpanID().String(), plain(l.Attributes)})
	}
	return span{
		TraceID: s.SpanContext.TraceID().String(), SpanID: s.SpanContext.SpanID().String(), ParentID: parent,
		Name: s.Name, Kind: int(s.SpanKind), Status: []any{outcomes[s.Status.Code], s.Status.Description},
		Start: s.StartTime.UnixNano(), End: s.EndTime.UnixNano(),
		Attributes: plain(s.Attributes), Events: events, Links: links,
		Scope: s.InstrumentationScope.Name, Resource: plain(s.Resource.Attributes()),
	}
}

func exporter(ctx context.Context) (sdk.SpanExporter, error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL") == "grpc" {
		// The variables have no way to name a Unix socket to this SDK; code has.
		if target := os.Getenv("APP_TARGET"); target != "" {
			return otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(target), otlptracegrpc.WithInsecure())
		}
		return otlptracegrpc.New(ctx)
	}
	return otlptracehttp.New(ctx)
}

func main() {
	ctx := context.Background()
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Fatal(err) }))
	traces, err := strconv.Atoi(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	out, err := exporter(ctx)
	if err != nil {
		log.Fatal(err)
	}
	memory := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(
		sdk.WithResource(resource.NewSchemaless(attribute.String("service.name", "shop-ü"), attribute.Int("replicas", 3))),
		sdk.WithSyncer(memory),
		sdk.WithBatcher(out, sdk.WithMaxExportBatchSize(64), sdk.WithBlocking()),
	)
	tracer := provider.Tracer("shop.checkout")

	var previous trace.SpanContext
	for n := range traces {
		options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
			attribute.Int64("cart.items", int64(n)), attribute.Int64("large", 1<<62+int64(n)), attribute.Float64("cart.total", float64(n)*1.5),
			attribute.Bool("vip", n%2 == 0), attribute.StringSlice("tags", []string{"a", "ß"}), attribute.String("note", "naïve ☕"),
			attribute.Int64Slice("seq", []int64{1, 2}), attribute.Float64Slice("shares", []float64{0.25, 1}))}
		if previous.IsValid() {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: previous, Attributes: []attribute.KeyValue{attribute.String("why", "follows")}}))
		}
		inside, root := tracer.Start(ctx, "checkout "+strconv.Itoa(n), options...)
		previous = root.SpanContext()
		_, charge := tracer.Start(inside, "charge", trace.WithSpanKind(trace.SpanKindClient))
		charge.AddEvent("retry", trace.WithAttributes(attribute.Int("attempt", 1)))
		if n%5 == 0 {
			charge.RecordError(errors.New("declined"))
			charge.SetStatus(codes.Error, "declined")
		}
		charge.End()
		_, ship := tracer.Start(inside, "ship", trace.WithSpanKind(trace.SpanKindProducer))
		ship.End()
		root.End()
	}
	spans := []span{}
	for _, s := range memory.GetSpans() {
		spans = append(spans, seen(s))
	}
	if err := provider.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"spans": spans}); err != nil {
		log.Fatal(err)
	}
}
