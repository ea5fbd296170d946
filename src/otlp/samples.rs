//! Random messages and real ones, for the tests of this module.
#![expect(clippy::unwrap_used, reason = "tests")]

pub(super) use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest as Request;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::wire::{LEN, put_length, put_tag};

/// One real request in every flavour.
pub(super) struct Sample {
    pub(super) name: &'static str,
    pub(super) pb: &'static [u8],
    pub(super) json: &'static [u8],
    pub(super) typed: &'static [u8],
    /// As read back from the server.
    pub(super) trace: &'static [u8],
    /// As uploaded by the SDK.
    pub(super) artifact: &'static [u8],
}

macro_rules! sample {
    ($name:literal) => {
        Sample {
            name: $name,
            pb: include_bytes!(concat!("../../tests/data/", $name, ".otlp.pb")),
            json: include_bytes!(concat!("../../tests/data/", $name, ".otlp.json")),
            typed: include_bytes!(concat!("../../tests/data/", $name, ".mlflow-logspans.pb")),
            trace: include_bytes!(concat!("../../tests/data/", $name, ".mlflow-trace.json")),
            artifact: include_bytes!(concat!("../../tests/data/", $name, ".mlflow-traces.json")),
        }
    };
}

pub(super) const SAMPLES: [Sample; 3] = [sample!("nested"), sample!("error"), sample!("llm")];

pub(super) fn decode(request: &[u8]) -> Request {
    prost::Message::decode(request).unwrap()
}

/// Puts bytes into nested messages of these field numbers, the outermost first.
pub(super) fn wrap(numbers: &[u32], content: &[u8]) -> Vec<u8> {
    numbers.iter().rev().fold(content.to_vec(), |content, number| {
        let mut out = Vec::new();
        put_tag(&mut out, *number, LEN);
        put_length(&mut out, content.len());
        out.extend_from_slice(&content);
        out
    })
}

/// The value of an attribute, if it is a string.
pub(super) fn text_of(attribute: &KeyValue) -> Option<&str> {
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-z.]{0,8}", 1 => any::<String>(), 1 => Just("service.name".to_owned())]
}

fn value() -> impl Strategy<Value = AnyValue> {
    let scalar = prop_oneof![
        text().prop_map(Value::StringValue),
        any::<bool>().prop_map(Value::BoolValue),
        any::<i64>().prop_map(Value::IntValue),
        any::<f64>().prop_map(Value::DoubleValue),
        Just(Value::DoubleValue(f64::INFINITY)),
        Just(Value::DoubleValue(-0.0)),
        vec(any::<u8>(), 0..9).prop_map(Value::BytesValue),
        any::<i32>().prop_map(Value::StringValueStrindex),
    ];
    let leaf = option::weighted(0.9, scalar).prop_map(|value| AnyValue { value });
    leaf.prop_recursive(4, 16, 4, |inner| {
        let list = vec(inner.clone(), 0..4).prop_map(|values| Value::ArrayValue(ArrayValue { values }));
        let pair = (text(), option::of(inner)).prop_map(|(key, value)| KeyValue { key, value, key_strindex: 0 });
        let map = vec(pair, 0..4).prop_map(|values| Value::KvlistValue(KeyValueList { values }));
        prop_oneof![list, map].prop_map(|value| AnyValue { value: Some(value) })
    })
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    let index = prop_oneof![3 => Just(0), 1 => any::<i32>()];
    let pair = (text(), option::weighted(0.9, value()), index);
    vec(pair.prop_map(|(key, value, key_strindex)| KeyValue { key, value, key_strindex }), 0..4)
}

fn id(size: usize) -> impl Strategy<Value = Vec<u8>> {
    // Few different ones, so that spans share traces.
    prop_oneof![
        6 => (0_u8..4).prop_map(move |byte| vec![byte; size]),
        2 => vec(any::<u8>(), size),
        1 => Just(Vec::new())
    ]
}

fn count() -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(0), 1 => any::<u32>()]
}

fn event() -> impl Strategy<Value = Event> {
    (any::<u64>(), text(), attributes(), count()).prop_map(
        |(time_unix_nano, name, attributes, dropped_attributes_count)| Event {
            time_unix_nano,
            name,
            attributes,
            dropped_attributes_count,
        },
    )
}

fn link() -> impl Strategy<Value = Link> {
    (id(16), id(8), text(), attributes(), count(), count()).prop_map(
        |(trace_id, span_id, trace_state, attributes, dropped_attributes_count, flags)| Link {
            trace_id,
            span_id,
            trace_state,
            attributes,
            dropped_attributes_count,
            flags,
        },
    )
}

fn span() -> impl Strategy<Value = Span> {
    let head = (id(16), id(8), text(), id(8), count(), text(), any::<i32>());
    let times = (any::<u64>(), any::<u64>());
    let status = option::of((text(), any::<i32>()).prop_map(|(message, code)| Status { message, code }));
    let rest = (attributes(), count(), vec(event(), 0..3), count(), vec(link(), 0..3), count(), status);
    (head, times, rest).prop_map(|(head, times, rest)| Span {
        trace_id: head.0,
        span_id: head.1,
        trace_state: head.2,
        parent_span_id: head.3,
        flags: head.4,
        name: head.5,
        kind: head.6,
        start_time_unix_nano: times.0,
        end_time_unix_nano: times.1,
        attributes: rest.0,
        dropped_attributes_count: rest.1,
        events: rest.2,
        dropped_events_count: rest.3,
        links: rest.4,
        dropped_links_count: rest.5,
        status: rest.6,
    })
}

fn scope_spans() -> impl Strategy<Value = ScopeSpans> {
    let scope =
        (text(), text(), attributes(), count()).prop_map(|(name, version, attributes, dropped_attributes_count)| {
            InstrumentationScope { name, version, attributes, dropped_attributes_count }
        });
    (option::of(scope), vec(span(), 0..4), text()).prop_map(|(scope, spans, schema_url)| ScopeSpans {
        scope,
        spans,
        schema_url,
    })
}

fn resource() -> impl Strategy<Value = Resource> {
    let entity = (text(), text(), vec(text(), 0..3), vec(text(), 0..3)).prop_map(
        |(schema_url, r#type, id_keys, description_keys)| EntityRef { schema_url, r#type, id_keys, description_keys },
    );
    (attributes(), count(), vec(entity, 0..2)).prop_map(|(attributes, dropped_attributes_count, entity_refs)| {
        Resource { attributes, dropped_attributes_count, entity_refs }
    })
}

/// Any request that the validator must take.
pub(super) fn request() -> impl Strategy<Value = Request> {
    let resource_spans = (option::of(resource()), vec(scope_spans(), 0..3), text())
        .prop_map(|(resource, scope_spans, schema_url)| ResourceSpans { resource, scope_spans, schema_url });
    vec(resource_spans, 0..3).prop_map(|resource_spans| Request { resource_spans })
}
