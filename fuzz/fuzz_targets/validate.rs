//! The validator accepts nothing that prost refuses, and counts as prost does. What it accepted can be taken apart and
//! shown as JSON, and both are accepted again.

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use tracespool::otlp;

fuzz_target!(|request: &[u8]| {
    let Ok(summary) = otlp::validate(request) else { return };
    let decoded = ExportTraceServiceRequest::decode(request).expect("prost takes what was accepted");
    let spans: Vec<_> = decoded.resource_spans.iter().flat_map(|rs| &rs.scope_spans).flat_map(|ss| &ss.spans).collect();
    assert_eq!(summary.spans as usize, spans.len(), "spans");
    let ids: BTreeSet<_> = spans.iter().map(|span| span.trace_id.as_slice()).filter(|id| !id.is_empty()).collect();
    assert!(summary.trace_ids.iter().map(|id| &id[..]).eq(ids), "trace ids, sorted");

    let parts = otlp::split::by_span(request);
    for part in &parts {
        let part = otlp::validate(part).expect("a part is a request");
        assert!(part.spans <= summary.spans);
    }
    let mut json = Vec::new();
    otlp::json::from_wire(request, &mut json);
    let again = otlp::json::to_wire(&json).expect("our own JSON is taken");
    let again = otlp::validate(&again).expect("and becomes a request");
    assert_eq!((again.spans, again.trace_ids), (summary.spans, summary.trace_ids));
});
