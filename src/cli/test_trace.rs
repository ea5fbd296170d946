//! The small marked trace of `send --test`.

use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;

/// A trace that nobody can take for a real one.
pub(super) struct TestTrace {
    /// 32 hex digits.
    pub id: String,
    /// The request.
    pub request: Vec<u8>,
}

impl TestTrace {
    /// A root and its child, which ended at `now`.
    pub(super) fn new(now: SystemTime) -> Self {
        // An id of zeros would be invalid.
        let trace_id = fastrand::u128(1..).to_be_bytes().to_vec();
        let root_id = fastrand::u64(1..).to_be_bytes().to_vec();
        let nanos = |back: Duration| {
            let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(back);
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        };
        let span = |id: Vec<u8>, parent: Vec<u8>, name: &str, start, end| Span {
            trace_id: trace_id.clone(),
            span_id: id,
            parent_span_id: parent,
            name: name.into(),
            kind: SpanKind::Internal as i32,
            start_time_unix_nano: nanos(start),
            end_time_unix_nano: nanos(end),
            attributes: vec![attribute("tracespool.test", Value::BoolValue(true))],
            status: Some(Status { code: StatusCode::Ok as i32, message: String::new() }),
            ..Span::default()
        };
        let ms = Duration::from_millis;
        let child_id = fastrand::u64(1..).to_be_bytes().to_vec();
        let spans = vec![
            span(root_id.clone(), Vec::new(), "tracespool test", ms(20), ms(0)),
            span(child_id, root_id, "tracespool test child", ms(15), ms(5)),
        ];
        let scope = InstrumentationScope {
            name: "tracespool".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        };
        let resource = Resource {
            attributes: vec![attribute("service.name", Value::StringValue("tracespool-test".into()))],
            ..Resource::default()
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(resource),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }],
                schema_url: String::new(),
            }],
        };
        let id = trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { id, request: request.encode_to_vec() }
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_root_with_a_child_and_both_are_marked() {
        let test = TestTrace::new(SystemTime::now());
        let request = ExportTraceServiceRequest::decode(&test.request[..]).expect("decoded");
        let spans = &request.resource_spans[0].scope_spans[0].spans;
        assert_eq!(spans.len(), 2);
        assert!(spans[0].parent_span_id.is_empty());
        assert_eq!(spans[1].parent_span_id, spans[0].span_id);
        for span in spans {
            assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
            assert!(span.start_time_unix_nano < span.end_time_unix_nano);
            assert_eq!(span.attributes[0].key, "tracespool.test");
        }
        assert_eq!(test.id.len(), 32);
        assert_ne!(test.id, TestTrace::new(SystemTime::now()).id);
    }
}
