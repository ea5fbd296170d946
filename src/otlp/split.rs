//! A validated request in parts.
//!
//! The parts are cut out of the wire: every span, and everything that stands around it, goes on byte for byte, also
//! fields that this daemon does not know. What stands around several spans is in each of their parts.
//!
//! A part can be nearly as large as the whole when a resource is, so [`traces`] and [`spans`] make one part at a time.

use std::collections::HashMap;

use super::wire::{FieldOnWire, Fields, LEN, Value, length_size, put_length, put_tag};

/// One request per trace, in order of first appearance; spans keep their resource and scope.
///
/// Spans without a trace id are together in one part. A request without spans is its only part.
pub fn by_trace(request: &[u8]) -> Vec<Vec<u8>> {
    traces(request).collect()
}

/// One request per span, in order.
///
/// A request without spans is its only part.
pub fn by_span(request: &[u8]) -> Vec<Vec<u8>> {
    spans(request).collect()
}

/// The parts of [`by_trace`], each made when it is asked for.
pub fn traces(request: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let mut groups: Vec<Vec<Place<'_>>> = Vec::new();
    let mut of_trace = HashMap::new();
    for place in places(request) {
        let group = *of_trace.entry(trace_id(place.span)).or_insert(groups.len());
        match groups.get_mut(group) {
            Some(group) => group.push(place),
            None => groups.push(vec![place]),
        }
    }
    parts(request, groups.into_iter())
}

/// The parts of [`by_span`], each made when it is asked for.
pub fn spans(request: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    parts(request, places(request).map(|place| vec![place]))
}

/// Trace id and span id of every span, in order; all zero where a span has none.
pub fn ids(request: &[u8]) -> impl Iterator<Item = ([u8; 16], [u8; 8])> {
    places(request).map(|place| {
        let span_id = inner(place.span, SPAN_ID).last().unwrap_or_default();
        (trace_id(place.span).try_into().unwrap_or_default(), span_id.try_into().unwrap_or_default())
    })
}

fn parts<'a>(request: &'a [u8], groups: impl Iterator<Item = Vec<Place<'a>>>) -> impl Iterator<Item = Vec<u8>> {
    let mut groups = groups.peekable();
    let whole = groups.peek().is_none().then(|| request.to_vec());
    whole.into_iter().chain(groups.map(|group| part(request, &group)))
}

const RESOURCE_SPANS: u32 = 1;
const SCOPE_SPANS: u32 = 2;
const SPANS: u32 = 2;
const TRACE_ID: u32 = 1;
const SPAN_ID: u32 = 2;

/// A span, and where it stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    resource_spans: &'a [u8],
    scope_spans: &'a [u8],
    span: &'a [u8],
}

fn places(request: &[u8]) -> impl Iterator<Item = Place<'_>> {
    inner(request, RESOURCE_SPANS).flat_map(|resource_spans| {
        inner(resource_spans, SCOPE_SPANS).flat_map(move |scope_spans| {
            inner(scope_spans, SPANS).map(move |span| Place { resource_spans, scope_spans, span })
        })
    })
}

/// The messages in the fields of this number.
fn inner(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    Fields::of(message).filter_map(move |field| content(&field, number))
}

fn content<'a>(field: &FieldOnWire<'a>, number: u32) -> Option<&'a [u8]> {
    match field.value {
        Value::Len(content) if field.number == number => Some(content),
        _ => None,
    }
}

/// The last one counts, as for every field that is not repeated.
fn trace_id(span: &[u8]) -> &[u8] {
    inner(span, TRACE_ID).last().unwrap_or_default()
}

/// The request with these spans alone. Places of one envelope stand together, since they are in the order of the wire.
fn part(request: &[u8], places: &[Place<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let same_resource = |a: &Place<'_>, b: &Place<'_>| std::ptr::eq(a.resource_spans, b.resource_spans);
    let same_scope = |a: &Place<'_>, b: &Place<'_>| std::ptr::eq(a.scope_spans, b.scope_spans);
    put_others(&mut out, request, RESOURCE_SPANS);
    for of_resource in places.chunk_by(same_resource) {
        let mut resource_spans = Vec::new();
        put_others(&mut resource_spans, of_resource[0].resource_spans, SCOPE_SPANS);
        for of_scope in of_resource.chunk_by(same_scope) {
            let mut scope_spans = Vec::new();
            put_others(&mut scope_spans, of_scope[0].scope_spans, SPANS);
            for place in of_scope {
                put_message(&mut scope_spans, SPANS, place.span);
            }
            put_message(&mut resource_spans, SCOPE_SPANS, &scope_spans);
        }
        put_message(&mut out, RESOURCE_SPANS, &resource_spans);
    }
    out
}

/// Everything in an envelope but what it is split by.
fn put_others(out: &mut Vec<u8>, envelope: &[u8], number: u32) {
    for field in Fields::of(envelope).filter(|field| content(field, number).is_none()) {
        out.extend_from_slice(field.whole);
    }
}

fn put_message(out: &mut Vec<u8>, number: u32, message: &[u8]) {
    out.reserve(1 + length_size(message.len()) + message.len());
    put_tag(out, number, LEN);
    put_length(out, message.len());
    out.extend_from_slice(message);
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::super::samples::{self, Request, SAMPLES, decode, wrap};
    use super::super::validate;
    use super::*;

    /// Every span with all that stands around it, in a form that can be sorted.
    fn with_surroundings(request: &Request) -> Vec<String> {
        let mut all = Vec::new();
        for resource_spans in &request.resource_spans {
            for scope_spans in &resource_spans.scope_spans {
                for span in &scope_spans.spans {
                    let resource_spans = ResourceSpans { scope_spans: Vec::new(), ..resource_spans.clone() };
                    let scope_spans = ScopeSpans { spans: Vec::new(), ..scope_spans.clone() };
                    all.push(format!("{resource_spans:?} {scope_spans:?} {span:?}"));
                }
            }
        }
        all.sort_unstable();
        all
    }

    fn all_spans(request: &Request) -> Vec<&Span> {
        request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).collect()
    }

    proptest! {
        #[test]
        fn parts_in_a_row_have_the_spans_of_the_whole(request in samples::request()) {
            let bytes = request.encode_to_vec();
            for parts in [by_trace(&bytes), by_span(&bytes)] {
                for part in &parts {
                    prop_assert!(validate(part).is_ok());
                }
                let row = decode(&parts.concat());
                prop_assert_eq!(with_surroundings(&row), with_surroundings(&request));
            }
        }

        #[test]
        fn a_part_is_one_trace_or_one_span(request in samples::request()) {
            let bytes = request.encode_to_vec();
            let mut order: Vec<&[u8]> = Vec::new();
            for span in all_spans(&request) {
                if !order.contains(&span.trace_id.as_slice()) {
                    order.push(&span.trace_id);
                }
            }
            let parts: Vec<Request> = by_trace(&bytes).iter().map(|part| decode(part)).collect();
            if order.is_empty() {
                prop_assert_eq!(&parts, std::slice::from_ref(&request));
            } else {
                prop_assert_eq!(parts.len(), order.len());
                for (part, id) in parts.iter().zip(order) {
                    prop_assert!(all_spans(part).iter().all(|span| span.trace_id == id));
                }
                let spans: Vec<Request> = by_span(&bytes).iter().map(|part| decode(part)).collect();
                let one_each: Vec<&Span> = spans.iter().flat_map(|part| all_spans(part)).collect();
                prop_assert_eq!(one_each, all_spans(&request));
                prop_assert!(spans.iter().all(|part| all_spans(part).len() == 1));
            }
        }
    }

    #[test]
    fn a_real_trace_has_as_many_parts_as_spans() {
        for sample in SAMPLES {
            assert_eq!(by_trace(sample.pb), [sample.pb], "{}", sample.name);
            assert_eq!(by_span(sample.pb).len(), all_spans(&decode(sample.pb)).len(), "{}", sample.name);
        }
    }

    #[test]
    fn what_is_unknown_goes_on_with_every_part() {
        let unknown = wrap(&[99], b"\xff");
        let span = |id: u8| wrap(&[2], &[wrap(&[1], &[id; 16]), unknown.clone()].concat());
        let scope = wrap(&[2], &[span(1), unknown.clone(), span(2), wrap(&[3], b"scope"), span(1)].concat());
        let request =
            [unknown.clone(), wrap(&[1], &[scope, unknown.clone(), wrap(&[3], b"resource")].concat())].concat();
        let part = |spans: &[Vec<u8>]| {
            let scope = wrap(&[2], &[&[unknown.clone(), wrap(&[3], b"scope")], spans].concat().concat());
            let resource = wrap(&[1], &[unknown.clone(), wrap(&[3], b"resource"), scope].concat());
            [unknown.clone(), resource].concat()
        };
        assert_eq!(by_trace(&request), [part(&[span(1), span(1)]), part(&[span(2)])]);
        assert_eq!(by_span(&request), [part(&[span(1)]), part(&[span(2)]), part(&[span(1)])]);
    }

    #[test]
    fn the_last_trace_id_of_a_span_counts() {
        let span = |ids: [u8; 2]| wrap(&[2], &ids.map(|id| wrap(&[1], &[id; 16])).concat());
        let request = wrap(&[1, 2], &[span([1, 2]), span([1, 3]), span([4, 2])].concat());
        let expected =
            [vec![span([1, 2]), span([4, 2])], vec![span([1, 3])]].map(|spans| wrap(&[1, 2], &spans.concat()));
        assert_eq!(by_trace(&request), expected);
    }

    #[test]
    fn a_request_without_spans_is_its_only_part() {
        for request in [&[][..], &[0x0a, 0], &[0x0a, 2, 0x12, 0]] {
            assert_eq!(by_trace(request), [request]);
            assert_eq!(by_span(request), [request]);
        }
    }
}
