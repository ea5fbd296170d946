//! What an MLflow server needs that OTLP does not say.

use std::collections::{HashMap, HashSet};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use super::json::{double, integer};
use super::token::Reader;
use super::validate::MAX_DEPTH;

/// A request that can't be decoded, though it was validated once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("request {index} of the batch can't be decoded")]
pub struct Undecodable {
    /// Which one, from 0.
    pub index: usize,
}

/// Prepares validated requests for one `POST /v1/traces` of an MLflow server.
///
/// - *Typed values.* MLflow's SDK writes span attributes to OTLP as JSON text (`"\"TOOL\""`, `"40"`), and to its own
///   server as typed values. The server unwraps text of strings, lists and objects, but not of numbers, booleans and
///   null. So the text of spans that MLflow made is decoded here, which gives what the SDK itself would have posted.
///   Text that is not JSON, or that protobuf can't hold without loss (integers beyond 64 bits, numbers beyond a double,
///   half a surrogate pair, nesting beyond what decoders take), stays as it is.
/// - *A name.* The server takes a trace's name from the tag `mlflow.traceName` alone, so a root span gets it as an
///   attribute, unless it has one. An all-zero parent id is no parent (W3C Trace Context), and is cleared: the server
///   would wait for that parent for ever.
/// - *No span twice*: the server would count its tokens twice. Of several with the same trace id and span id the last
///   one stays, in its place.
///
/// Spans without ids are left alone; the server refuses them, and which records go with them is the lane's to find out.
///
/// # Errors
/// A request is not what it was when it was validated.
pub fn prepare<'a>(requests: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>, Undecodable> {
    let mut batch = ExportTraceServiceRequest::default();
    for (index, request) in requests.enumerate() {
        batch.merge(request).map_err(|_| Undecodable { index })?;
    }
    drop_copies(&mut batch);
    for resource_spans in &mut batch.resource_spans {
        let of_mlflow = resource_spans.resource.as_ref().is_some_and(is_of_mlflow);
        for span in resource_spans.scope_spans.iter_mut().flat_map(|scope_spans| &mut scope_spans.spans) {
            if has_json_text(span, of_mlflow) {
                span.attributes.iter_mut().for_each(decode_attribute);
            }
            if span.parent_span_id.iter().all(|byte| *byte == 0) {
                span.parent_span_id.clear();
                name_trace(span);
            }
        }
    }
    Ok(batch.encode_to_vec())
}

const REQUEST_ID: &str = "mlflow.traceRequestId";
const TAG_PREFIX: &str = "mlflow.traceTag.";
const TRACE_NAME: &str = "mlflow.traceTag.mlflow.traceName";

/// Attributes that this program adds to a span of MLflow as they are.
const PLAIN: [&str; 2] = ["session.id", "user.id"];

fn drop_copies(batch: &mut ExportTraceServiceRequest) {
    let mut last: HashMap<(Vec<u8>, Vec<u8>), usize> = HashMap::new();
    let ids = |span: &Span| (span.trace_id.clone(), span.span_id.clone());
    let spans = batch.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans);
    let mut count = 0;
    for (place, span) in spans.enumerate() {
        last.insert(ids(span), place);
        count += 1;
    }
    if last.len() == count {
        return;
    }
    let mut place = 0;
    let mut stays = |span: &Span| {
        place += 1;
        span.trace_id.is_empty() || span.span_id.is_empty() || last.get(&ids(span)) == Some(&(place - 1))
    };
    for resource_spans in &mut batch.resource_spans {
        for scope_spans in &mut resource_spans.scope_spans {
            scope_spans.spans.retain(&mut stays);
        }
        resource_spans.scope_spans.retain(|scope_spans| !scope_spans.spans.is_empty());
    }
    batch.resource_spans.retain(|resource_spans| !resource_spans.scope_spans.is_empty());
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    match attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn is_of_mlflow(resource: &Resource) -> bool {
    text(&resource.attributes, "telemetry.sdk.name") == Some("mlflow")
}

/// Whether the span's attributes are JSON text. The SDK's own posts are typed already, and decoding those again would
/// make a number of the text `40`. MLflow gives every span its request id, so that its quotes tell the two apart.
fn has_json_text(span: &Span, of_mlflow: bool) -> bool {
    text(&span.attributes, REQUEST_ID).map_or(of_mlflow, |id| id.trim_start().starts_with('"'))
}

fn decode_attribute(attribute: &mut KeyValue) {
    if attribute.key.starts_with(TAG_PREFIX) {
        return;
    }
    if let Some(AnyValue { value: Some(Value::StringValue(text)) }) = &attribute.value
        // Plain text by convention, also of spans whose other attributes are JSON text: 42 is a name here.
        && (!PLAIN.contains(&attribute.key.as_str()) || text.starts_with('"'))
        && let Some(value) = from_json_text(text)
    {
        attribute.value = in_pair(value);
    }
}

fn name_trace(span: &mut Span) {
    if span.name.is_empty() || span.attributes.iter().any(|attribute| attribute.key == TRACE_NAME) {
        return;
    }
    let value = Some(AnyValue { value: Some(Value::StringValue(span.name.clone())) });
    span.attributes.push(KeyValue { key: TRACE_NAME.to_owned(), value, ..KeyValue::default() });
}

/// The level of a span attribute's value: resource spans, scope spans, span, attribute, value.
const VALUE_DEPTH: usize = 5;

/// The value of a JSON text, as MLflow's SDK types it; none when it is no JSON, or can't be held without loss.
fn from_json_text(text: &str) -> Option<AnyValue> {
    let mut reader = Reader::new(text.as_bytes()).ok()?;
    let value = read_value(&mut reader, VALUE_DEPTH)?;
    reader.end().ok()?;
    Some(value)
}

fn read_value(reader: &mut Reader<'_>, depth: usize) -> Option<AnyValue> {
    let value = match reader.peek()? {
        b'"' => Value::StringValue(read_string(reader)?),
        b'[' => read_list(reader, depth)?,
        b'{' => read_object(reader, depth)?,
        _ => match read_literal(reader) {
            Some(literal) => return Some(AnyValue { value: literal }),
            None => read_number(reader)?,
        },
    };
    Some(AnyValue { value: Some(value) })
}

/// Python's `json` also writes and reads what is not finite, by these names.
fn read_literal(reader: &mut Reader<'_>) -> Option<Option<Value>> {
    let literals = [
        ("null", None),
        ("true", Some(Value::BoolValue(true))),
        ("false", Some(Value::BoolValue(false))),
        ("NaN", Some(Value::DoubleValue(f64::NAN))),
        ("Infinity", Some(Value::DoubleValue(f64::INFINITY))),
        ("-Infinity", Some(Value::DoubleValue(f64::NEG_INFINITY))),
    ];
    literals.into_iter().find(|(literal, _)| reader.take_literal(literal)).map(|(_, value)| value)
}

/// Python takes a number without point and exponent for an integer, and any other for a float.
fn read_number(reader: &mut Reader<'_>) -> Option<Value> {
    let number = reader.number().ok()?;
    if number.contains(['.', 'e', 'E']) {
        return double(number).map(Value::DoubleValue);
    }
    integer(number).and_then(|value| i64::try_from(value).ok()).map(Value::IntValue)
}

fn read_string(reader: &mut Reader<'_>) -> Option<String> {
    let string = reader.string().ok()?;
    reader.unescaped(string).ok().map(std::borrow::Cow::into_owned)
}

fn read_list(reader: &mut Reader<'_>, depth: usize) -> Option<Value> {
    // An item is two levels below: the list, and the item.
    let depth = inside(depth, 2)?;
    let mut members = reader.begin_list().ok()?;
    let mut values = Vec::new();
    while reader.next_item(&mut members).ok()? {
        values.push(read_value(reader, depth)?);
    }
    Some(Value::ArrayValue(ArrayValue { values }))
}

fn read_object(reader: &mut Reader<'_>, depth: usize) -> Option<Value> {
    // A value is three levels below: the map, the pair, and the value.
    let depth = inside(depth, 3)?;
    let mut members = reader.begin_object().ok()?;
    let mut values = Vec::new();
    while let Some(key) = reader.next_key(&mut members).ok()? {
        let key = reader.unescaped(key).ok()?.into_owned();
        let value = in_pair(read_value(reader, depth)?);
        values.push(KeyValue { key, value, ..KeyValue::default() });
    }
    Some(Value::KvlistValue(KeyValueList { values: last_of_each(values) }))
}

/// The SDK writes null as a pair without a value, and in a list as a value without content.
fn in_pair(value: AnyValue) -> Option<AnyValue> {
    Some(value).filter(|value| value.value.is_some())
}

fn inside(depth: usize, levels: usize) -> Option<usize> {
    Some(depth + levels).filter(|depth| *depth <= MAX_DEPTH)
}

/// Of several pairs with one key, Python keeps the last value in the first place.
fn last_of_each(pairs: Vec<KeyValue>) -> Vec<KeyValue> {
    let distinct: HashSet<&str> = pairs.iter().map(|pair| pair.key.as_str()).collect();
    if distinct.len() == pairs.len() {
        return pairs;
    }
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut kept: Vec<KeyValue> = Vec::new();
    for pair in pairs {
        let place = *places.entry(pair.key.clone()).or_insert(kept.len());
        match kept.get_mut(place) {
            Some(earlier) => earlier.value = pair.value,
            None => kept.push(pair),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::span::Event;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
    use proptest::prelude::*;

    use super::super::samples::{self, Request, SAMPLES, decode};
    use super::super::validate;
    use super::*;

    fn prepared(requests: &[&[u8]]) -> Request {
        let out = prepare(requests.iter().copied()).expect("requests");
        validate(&out).expect("a request");
        decode(&out)
    }

    fn spans(request: &Request) -> Vec<&Span> {
        request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).collect()
    }

    fn string(text: &str) -> Value {
        Value::StringValue(text.to_owned())
    }

    fn attribute(key: &str, value: Value) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    }

    fn request_of(resource: &str, spans: Vec<Span>) -> Vec<u8> {
        let resource = Some(Resource {
            attributes: vec![attribute("telemetry.sdk.name", string(resource))],
            ..Resource::default()
        });
        let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
        Request { resource_spans: vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }] }
            .encode_to_vec()
    }

    /// A span that is no root.
    fn child(id: u8, attributes: Vec<KeyValue>) -> Span {
        Span { trace_id: vec![1; 16], span_id: vec![id; 8], parent_span_id: vec![9; 8], attributes, ..Span::default() }
    }

    /// What becomes of a text in a span of MLflow; none when it stays text.
    fn typed(text: &str) -> Option<Option<AnyValue>> {
        let request = request_of("mlflow", vec![child(1, vec![attribute("k", string(text))])]);
        let value = spans(&prepared(&[&request]))[0].attributes[0].value.clone();
        (value != some(string(text))).then_some(value)
    }

    /// What [`typed`] answers for this value.
    fn is(value: Value) -> Option<Option<AnyValue>> {
        Some(some(value))
    }

    fn some(value: Value) -> Option<AnyValue> {
        Some(AnyValue { value: Some(value) })
    }

    #[test]
    fn what_otlp_carries_becomes_what_the_sdk_posts_itself() {
        for sample in SAMPLES {
            let ours = prepared(&[sample.pb]);
            let theirs = decode(sample.typed);
            let (ours, theirs) = (spans(&ours), spans(&theirs));
            assert_eq!(ours.len(), theirs.len(), "{}", sample.name);
            for span in ours {
                let same = theirs.iter().find(|other| other.span_id == span.span_id).expect("the same span");
                let mut span = span.clone();
                if span.parent_span_id.is_empty() {
                    let name = span.attributes.pop().expect("the trace's name");
                    assert_eq!(name, attribute(TRACE_NAME, string(&span.name)));
                }
                // The SDK's own post has neither kind nor flags.
                let expected = Span { kind: span.kind, flags: span.flags, ..(*same).clone() };
                assert_eq!(span, expected, "{}", sample.name);
            }
        }
    }

    #[test]
    fn what_the_sdk_posts_itself_stays() {
        for sample in SAMPLES {
            let mut expected = decode(sample.typed);
            for span in expected.resource_spans.iter_mut().flat_map(|r| &mut r.scope_spans).flat_map(|s| &mut s.spans) {
                if span.parent_span_id.is_empty() {
                    name_trace(span);
                }
            }
            assert_eq!(prepared(&[sample.typed]), expected, "{}", sample.name);
        }
        // A text that looks like JSON, in a span that is typed already.
        let attributes = vec![attribute(REQUEST_ID, string("tr-01")), attribute("k", string("40"))];
        let request = request_of("mlflow", vec![child(1, attributes)]);
        assert_eq!(prepared(&[&request]), decode(&request));
    }

    #[test]
    fn json_text_becomes_typed() {
        let list = |values: Vec<Option<Value>>| {
            Value::ArrayValue(ArrayValue { values: values.into_iter().map(|value| AnyValue { value }).collect() })
        };
        let map = |values: Vec<KeyValue>| Value::KvlistValue(KeyValueList { values });
        assert_eq!(typed(r#""TOOL""#), is(string("TOOL")));
        assert_eq!(typed(r#""a\"\u00e9\ud83e\udd80""#), is(string("a\"é🦀")));
        assert_eq!(typed("true"), is(Value::BoolValue(true)));
        assert_eq!(typed("false"), is(Value::BoolValue(false)));
        assert_eq!(typed("null"), Some(None));
        assert_eq!(typed(" 40\n"), is(Value::IntValue(40)));
        assert_eq!(typed("-9223372036854775808"), is(Value::IntValue(i64::MIN)));
        assert_eq!(typed("1.0"), is(Value::DoubleValue(1.0)));
        assert_eq!(typed("1e2"), is(Value::DoubleValue(100.0)));
        assert_eq!(typed("1E-400"), is(Value::DoubleValue(0.0)));
        assert_eq!(typed("-Infinity"), is(Value::DoubleValue(f64::NEG_INFINITY)));
        let null = KeyValue { key: "a".to_owned(), ..KeyValue::default() };
        assert_eq!(typed(r#"{"a": null}"#), is(map(vec![null])));
        assert_eq!(typed("[]"), is(list(vec![])));
        assert_eq!(typed("{}"), is(map(vec![])));
        assert_eq!(
            typed(r#"["40", 40, null, [1.5]]"#),
            is(list(vec![
                Some(string("40")),
                Some(Value::IntValue(40)),
                None,
                Some(list(vec![Some(Value::DoubleValue(1.5))]))
            ]))
        );
        assert_eq!(
            typed(r#"{"b": 1, "a": "x", "b": 2, "a": {}}"#),
            is(map(vec![attribute("b", Value::IntValue(2)), attribute("a", map(vec![]))]))
        );
    }

    #[test]
    fn what_is_no_json_or_would_lose_something_stays_text() {
        let texts = [
            "",
            " ",
            "TOOL",
            "tr-01",
            "{",
            "[1,]",
            "{'a': 1}",
            "nullx",
            "1 2",
            "\"a",
            "0x10",
            "01",
            "True",
            "None",
            "9223372036854775808",
            "-9223372036854775809",
            "[123456789012345678901234567890]",
            "1e400",
            "[-1e400]",
            r#""\ud800""#,
            r#"{"a\udc00": 1}"#,
            "\u{feff}1",
        ];
        for text in texts {
            assert_eq!(typed(text), None, "{text}");
        }
    }

    #[test]
    fn deep_text_stays_text_where_decoders_would_stop() {
        let lists = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let maps = |depth: usize| "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth);
        for (deepest, text) in [((MAX_DEPTH - 5) / 2, &lists as &dyn Fn(usize) -> String), ((MAX_DEPTH - 5) / 3, &maps)]
        {
            assert!(typed(&text(deepest)).is_some());
            assert!(typed(&text(deepest + 1)).is_none());
            assert!(typed(&text(200_000)).is_none());
        }
    }

    #[test]
    fn only_span_attributes_of_mlflow_are_decoded() {
        let tag = attribute("mlflow.traceTag.k", string("40"));
        let plain = attribute("k", string("40"));
        let event = Event { attributes: vec![plain.clone()], ..Event::default() };
        let span = |attributes: &[&KeyValue]| Span {
            events: vec![event.clone()],
            ..child(1, attributes.iter().map(|attribute| (*attribute).clone()).collect())
        };
        let id = attribute(REQUEST_ID, string("\"tr-01\""));
        // Of OpenTelemetry.
        let request = request_of("opentelemetry", vec![span(&[&plain])]);
        assert_eq!(prepared(&[&request]), decode(&request));
        // Of MLflow, by its request id, or by the resource.
        for (resource, attributes) in [("opentelemetry", vec![&id, &plain, &tag]), ("mlflow", vec![&plain, &tag])] {
            let request = request_of(resource, vec![span(&attributes)]);
            let prepared = prepared(&[&request]);
            let span = spans(&prepared)[0];
            let [.., k, kept_tag] = span.attributes.as_slice() else { panic!("attributes") };
            assert_eq!((k, kept_tag), (&attribute("k", Value::IntValue(40)), &tag));
            assert_eq!(span.events, std::slice::from_ref(&event));
        }
    }

    #[test]
    fn a_root_span_names_its_trace() {
        let root =
            |name: &str, attributes| Span { name: name.to_owned(), parent_span_id: Vec::new(), ..child(1, attributes) };
        let named = |span: Span| spans(&prepared(&[&request_of("x", vec![span])]))[0].clone();
        assert_eq!(named(root("n", vec![])).attributes, [attribute(TRACE_NAME, string("n"))]);
        let own = vec![attribute(TRACE_NAME, string("own"))];
        assert_eq!(named(root("n", own.clone())).attributes, own);
        assert_eq!(named(root("", vec![])).attributes, []);
        assert_eq!(named(Span { name: "n".to_owned(), ..child(1, vec![]) }).attributes, []);
        let zero = named(Span { parent_span_id: vec![0; 8], ..root("n", vec![]) });
        assert_eq!((zero.parent_span_id.len(), zero.attributes.len()), (0, 1));
    }

    #[test]
    fn no_span_is_there_twice_and_the_last_one_stays() {
        let version = |id, version: &str| Span { name: version.to_owned(), ..child(id, vec![]) };
        let nameless = Span { span_id: Vec::new(), ..version(1, "no id") };
        let first = request_of("a", vec![version(1, "old"), version(2, "only"), nameless.clone()]);
        let second = request_of("b", vec![version(3, "old")]);
        let third = request_of("c", vec![version(1, "new"), version(3, "old"), version(3, "new"), nameless]);
        let batch = prepared(&[&first, &second, &third]);
        let names: Vec<&str> = spans(&batch).iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["only", "no id", "new", "new", "no id"]);
        // The envelope that became empty is gone.
        assert_eq!(batch.resource_spans.len(), 2);
        // The same span id in another trace is another span.
        let other = Span { trace_id: vec![2; 16], ..version(2, "other") };
        assert_eq!(spans(&prepared(&[&first, &request_of("a", vec![other])])).len(), 4);
    }

    #[test]
    fn a_broken_request_is_named() {
        assert_eq!(prepare([SAMPLES[0].pb, b"\xff"].into_iter()), Err(Undecodable { index: 1 }));
        assert_eq!(prepare(std::iter::empty()), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn any_batch_can_be_prepared(requests in prop::collection::vec(samples::request(), 0..3)) {
            let bytes: Vec<Vec<u8>> = requests.iter().map(prost::Message::encode_to_vec).collect();
            let once = prepare(bytes.iter().map(Vec::as_slice)).expect("requests");
            prop_assert!(validate(&once).is_ok());
            let batch = decode(&once);
            let mut ids: Vec<_> = spans(&batch).iter().map(|span| (&span.trace_id, &span.span_id)).collect();
            ids.retain(|(trace_id, span_id)| !trace_id.is_empty() && !span_id.is_empty());
            let count = ids.len();
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), count);
        }

        #[test]
        fn preparing_a_real_batch_again_changes_nothing(order in Just([0, 1, 2, 0]).prop_shuffle()) {
            let once = prepare(order.iter().map(|sample| SAMPLES[*sample].pb)).expect("requests");
            prop_assert_eq!(prepare([once.as_slice()].into_iter()).expect("a request"), once);
        }
    }
}
