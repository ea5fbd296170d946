//! MLflow's trace JSON → the wire: `Trace.to_json()`, and the `traces.json` that the SDK uploads.
//!
//! What comes out is what the SDK's own OTLP exporter would have sent for the same spans: every attribute of a span is
//! a string that holds JSON text, and kind, flags and scope, which the JSON leaves out, are the exporter's constants.
//! Attributes of events and links have their own types.
//!
//! Of the trace's `info`, only what OTLP has a place for: tags go to the root span as `mlflow.traceTag.*`, those that
//! begin with `service.` to the resource, session and user to `session.id` and `user.id` of the root span. The server
//! finds out times, state, tokens and previews from the spans by itself; where an artifact lies is its own business.
//!
//! Taken are the forms of MLflow 2 (`context`, `0x` ids) and 3 (base64 ids; 3.5.0 wrote `tr-` and hex). Fields may come
//! in any order, so a first look finds where each value begins, and a second one writes them in the order of their
//! numbers; no tree is built.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::json::{JsonError, Writer, double, from_hex, integer};
use super::token::Reader;
use super::validate::{MAX_BYTES, MAX_DEPTH};

/// A trace on the wire, and what it says about its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// `ExportTraceServiceRequest`.
    pub wire: Vec<u8>,
    /// The experiment that the trace belongs to on its own server.
    pub experiment: Option<String>,
}

/// The two forms in which a trace comes as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `ExportTraceServiceRequest` or `TracesData` in OTLP's JSON.
    Otlp,
    /// MLflow's own.
    Mlflow,
}

impl Dialect {
    /// Tells the forms apart by the first member that only one of them has. An empty object is an empty OTLP request.
    ///
    /// # Errors
    /// The text is no JSON object up to that member, or has members and none that either form knows.
    pub fn of(json: &[u8]) -> Result<Self, JsonError> {
        let mut reader = Reader::of_python(json)?;
        let start = reader.place();
        let mut members = reader.begin_object()?;
        let mut is_empty = true;
        while let Some(key) = reader.next_key(&mut members)? {
            is_empty = false;
            match &*reader.unescaped(key)? {
                "resourceSpans" | "resource_spans" => return Ok(Self::Otlp),
                "info" | "data" | "spans" => return Ok(Self::Mlflow),
                other => {
                    // What these hold is not traces, which the OTLP reader has words for.
                    if ["resourceMetrics", "resourceLogs", "resourceProfiles"].contains(&other) {
                        return Ok(Self::Otlp);
                    }
                }
            }
            reader.skip_value()?;
        }
        if is_empty {
            return Ok(Self::Otlp);
        }
        Err(reader
            .error_at(start, "neither OTLP JSON (no resourceSpans) nor a trace of MLflow (no info, data or spans)"))
    }
}

/// Transcodes one trace.
///
/// # Errors
/// The first thing that is wrong. What comes out may still have too many spans for
/// [`validate`](super::validate()).
pub fn to_wire(json: &[u8]) -> Result<Converted, JsonError> {
    let mut reader = Reader::of_python(json)?;
    if json.len() > MAX_BYTES {
        return Err(reader.error("larger than 2 GiB"));
    }
    let [info, data, spans] = members(&mut reader, ["info", "data", "spans"])?;
    reader.end()?;
    let info = Info::read(info)?;
    let spans = match (data, spans) {
        (Some(mut data), None) => members(&mut data, ["spans"])?[0].take(),
        (None, spans) => spans,
        (Some(_), Some(_)) => return Err(reader.error("spans are there twice, in data and beside it")),
    };
    let Some(spans) = spans else { return Err(reader.error("the trace has no list of spans")) };
    let experiment = info.experiment.clone();
    let mut writer = Writer::default();
    if let Some(root) = find_root(spans.clone())? {
        let resource_spans = writer.open(RESOURCE_SPANS);
        write_resource(&info, &mut writer)?;
        let scope_spans = writer.open(SCOPE_SPANS);
        let scope = writer.open(SCOPE);
        writer.bytes(SCOPE_NAME, SCOPE_OF_SDK);
        writer.close(scope);
        let mut spans = spans;
        let mut list = spans.begin_list()?;
        let mut place = 0;
        while spans.next_item(&mut list)? {
            let info = (place == root).then_some(&info);
            check_size(&spans, &writer)?;
            write_span(&mut spans, info, &mut writer)?;
            place += 1;
        }
        writer.close(scope_spans);
        writer.close(resource_spans);
    }
    Ok(Converted { wire: writer.finish(), experiment })
}

// Numbers of the fields, from `trace.proto`, `common.proto` and `resource.proto`.
const RESOURCE_SPANS: u32 = 1;
const RESOURCE: u32 = 1;
const RESOURCE_ATTRIBUTES: u32 = 1;
const SCOPE_SPANS: u32 = 2;
const SCOPE: u32 = 1;
const SCOPE_NAME: u32 = 1;
const SPANS: u32 = 2;
const SPAN_ATTRIBUTES: u32 = 9;
const EVENTS: u32 = 11;
const EVENT_ATTRIBUTES: u32 = 3;
const LINKS: u32 = 13;
const LINK_ATTRIBUTES: u32 = 4;
const STATUS: u32 = 15;

/// What the SDK's exporter writes and its JSON leaves out.
const SCOPE_OF_SDK: &[u8] = b"mlflow.tracing.provider";
const KIND_INTERNAL: u64 = 1;
/// The W3C flag "the context is known, and not remote".
const FLAGS: u32 = 256;

/// Longest experiment id; MLflow's are numbers.
const LONGEST_EXPERIMENT: usize = 250;

/// Spans, attributes, values, events and links. Small ones cost more memory than their text, for which the request was
/// charged. Far more than a trace has: the SDK itself could not upload half of it.
const MOST_PARTS: usize = 1 << 20;

/// More tags than any server takes for one trace.
const MOST_TAGS: usize = 10_000;

const TAG_PREFIX: &str = "mlflow.traceTag.";
const TRACE_NAME: &str = "mlflow.traceName";

/// Where the values of these members begin. Members of other names are skipped, and null is as good as absent.
fn members<'a, const N: usize>(
    reader: &mut Reader<'a>,
    names: [&str; N],
) -> Result<[Option<Reader<'a>>; N], JsonError> {
    let mut found = [const { None }; N];
    let mut seen = [false; N];
    let mut object = reader.begin_object()?;
    while let Some(key) = reader.next_key(&mut object)? {
        let name = reader.unescaped(key)?;
        if let Some(at) = names.iter().position(|known| *known == name) {
            if std::mem::replace(&mut seen[at], true) {
                return Err(reader.error_at(key.at(), &format!("{name} is there twice")));
            }
            if reader.take_literal("null") {
                continue;
            }
            found[at] = Some(reader.clone());
        }
        reader.skip_value()?;
    }
    Ok(found)
}

/// The place of the first span without a parent; of a part of a trace that has none, the first span.
fn find_root(mut spans: Reader<'_>) -> Result<Option<usize>, JsonError> {
    let mut list = spans.begin_list()?;
    let mut count = 0;
    let mut root = None;
    while spans.next_item(&mut list)? {
        let [parent, parent_v2] = members(&mut spans, ["parent_span_id", "parent_id"])?;
        let parent = parent.or(parent_v2).map(|parent| read_id::<8>(parent, "parent_span_id")).transpose()?;
        if root.is_none() && parent.flatten().is_none() {
            root = Some(count);
        }
        count += 1;
    }
    Ok(if count == 0 { None } else { Some(root.unwrap_or(0)) })
}

/// What is taken from the trace's `info`.
#[derive(Default)]
struct Info<'a> {
    experiment: Option<String>,
    tags: Option<Reader<'a>>,
    session: Option<Cow<'a, str>>,
    user: Option<Cow<'a, str>>,
}

impl<'a> Info<'a> {
    fn read(info: Option<Reader<'a>>) -> Result<Self, JsonError> {
        let Some(mut info) = info else { return Ok(Self::default()) };
        let names = ["trace_location", "experiment_id", "tags", "trace_metadata", "request_metadata"];
        let [location, experiment_v2, tags, metadata, metadata_v2] = members(&mut info, names)?;
        let mut experiment = experiment_v2;
        if let Some(mut location) = location
            && let [Some(mut place)] = members(&mut location, ["mlflow_experiment"])?
        {
            experiment = members(&mut place, ["experiment_id"])?[0].take().or(experiment);
        }
        let (mut session, mut user) = (None, None);
        if let Some(mut metadata) = metadata.or(metadata_v2) {
            [session, user] = members(&mut metadata, ["mlflow.trace.session", "mlflow.trace.user"])?;
        }
        let text = |reader: Option<Reader<'a>>| reader.map(|mut reader| read_text(&mut reader)).transpose();
        Ok(Self { experiment: read_experiment(experiment)?, tags, session: text(session)?, user: text(user)? })
    }

    /// Calls `take` with every tag.
    fn each_tag(&self, mut take: impl FnMut(&str, &str)) -> Result<(), JsonError> {
        let Some(mut tags) = self.tags.clone() else { return Ok(()) };
        let mut count = 0;
        let mut object = tags.begin_object()?;
        while let Some(key) = tags.next_key(&mut object)? {
            let key = tags.unescaped(key)?;
            if tags.take_literal("null") {
                continue;
            }
            count += 1;
            if count > MOST_TAGS {
                return Err(tags.error("the trace has too many tags"));
            }
            take(&key, &read_text(&mut tags)?);
        }
        Ok(())
    }
}

fn read_experiment(id: Option<Reader<'_>>) -> Result<Option<String>, JsonError> {
    let Some(mut reader) = id else { return Ok(None) };
    let at = reader.place();
    let id = read_text(&mut reader)?;
    if id.len() > LONGEST_EXPERIMENT || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(reader.error_at(at, "experiment_id is no id of an experiment"));
    }
    Ok(Some(id.into_owned()).filter(|id| !id.is_empty()))
}

fn write_resource(info: &Info<'_>, writer: &mut Writer) -> Result<(), JsonError> {
    let resource = writer.open(RESOURCE);
    // Tells readers that the attributes hold JSON text.
    write_text(RESOURCE_ATTRIBUTES, "telemetry.sdk.name", "mlflow", writer);
    info.each_tag(|key, value| {
        if key.starts_with("service.") {
            write_text(RESOURCE_ATTRIBUTES, key, value, writer);
        }
    })?;
    writer.close(resource);
    Ok(())
}

fn write_span(reader: &mut Reader<'_>, root: Option<&Info<'_>>, writer: &mut Writer) -> Result<(), JsonError> {
    let at = reader.place();
    let names = [
        "trace_id",
        "span_id",
        "parent_span_id",
        "name",
        "start_time_unix_nano",
        "end_time_unix_nano",
        "attributes",
        "events",
        "links",
        "status",
    ];
    let names_v2 = ["context", "parent_id", "start_time", "end_time", "status_code", "status_message"];
    let mut again = reader.clone();
    let [mut trace_id, mut span_id, parent, name, start, end, attributes, events, links, status] =
        members(reader, names)?;
    let [context, parent_v2, start_v2, end_v2, status_code, status_message] = members(&mut again, names_v2)?;
    if let Some(mut context) = context {
        [trace_id, span_id] = members(&mut context, ["trace_id", "span_id"])?;
    }

    let span = writer.open(SPANS);
    let missing = |what: &str| reader.error_at(at, &format!("the span has no {what}"));
    let trace_id = trace_id.map(|id| read_id::<16>(id, "trace_id")).transpose()?.flatten();
    writer.bytes(1, &trace_id.ok_or_else(|| missing("trace_id"))?);
    let span_id = span_id.map(|id| read_id::<8>(id, "span_id")).transpose()?.flatten();
    writer.bytes(2, &span_id.ok_or_else(|| missing("span_id"))?);
    if let Some(parent) = parent.or(parent_v2).map(|id| read_id::<8>(id, "parent_span_id")).transpose()?.flatten() {
        writer.bytes(4, &parent);
    }
    if let Some(mut name) = name {
        write_string(5, &read_text(&mut name)?, writer);
    }
    writer.varint(6, KIND_INTERNAL);
    for (number, time) in [(7, start.or(start_v2)), (8, end.or(end_v2))] {
        if let Some(time) = time {
            writer.fixed64(number, read_time(time)?);
        }
    }
    write_span_attributes(attributes, root, writer)?;
    write_list(events, |event| write_event(event, writer))?;
    write_list(links, |link| write_link(link, writer))?;
    if let Some(mut status) = status {
        let [code, message] = members(&mut status, ["code", "message"])?;
        write_status(code, message, writer)?;
    } else if status_code.is_some() {
        write_status(status_code, status_message, writer)?;
    }
    writer.fixed32(16, FLAGS);
    writer.close(span);
    Ok(())
}

fn write_list<'a>(
    list: Option<Reader<'a>>,
    mut write: impl FnMut(&mut Reader<'a>) -> Result<(), JsonError>,
) -> Result<(), JsonError> {
    let Some(mut reader) = list else { return Ok(()) };
    let mut items = reader.begin_list()?;
    while reader.next_item(&mut items)? {
        write(&mut reader)?;
    }
    Ok(())
}

fn check_size(reader: &Reader<'_>, writer: &Writer) -> Result<(), JsonError> {
    if writer.messages() > MOST_PARTS {
        return Err(reader.error("the trace has too many parts for one request"));
    }
    Ok(())
}

/// Attributes are strings that hold JSON text. A value that is not a string is such text itself.
fn write_span_attributes(
    attributes: Option<Reader<'_>>,
    root: Option<&Info<'_>>,
    writer: &mut Writer,
) -> Result<(), JsonError> {
    if let Some(mut reader) = attributes {
        let mut object = reader.begin_object()?;
        while let Some(key) = reader.next_key(&mut object)? {
            let key = reader.unescaped(key)?;
            let value = match reader.peek() {
                Some(b'"') => read_text(&mut reader)?,
                _ => Cow::Borrowed(reader.raw_value()?),
            };
            write_text(SPAN_ATTRIBUTES, &key, &value, writer);
            check_size(&reader, writer)?;
        }
    }
    let Some(info) = root else { return Ok(()) };
    info.each_tag(|key, value| {
        if key == TRACE_NAME || !(key.starts_with("mlflow.") || key.starts_with("service.")) {
            write_text(SPAN_ATTRIBUTES, &format!("{TAG_PREFIX}{key}"), value, writer);
        }
    })?;
    for (key, value) in [("session.id", &info.session), ("user.id", &info.user)] {
        if let Some(value) = value {
            write_text(SPAN_ATTRIBUTES, key, value, writer);
        }
    }
    Ok(())
}

fn write_event(reader: &mut Reader<'_>, writer: &mut Writer) -> Result<(), JsonError> {
    let names = ["time_unix_nano", "timestamp", "name", "attributes"];
    let [time, time_v2, name, attributes] = members(reader, names)?;
    let event = writer.open(EVENTS);
    if let Some(time) = time.or(time_v2) {
        writer.fixed64(1, read_time(time)?);
    }
    if let Some(mut name) = name {
        write_string(2, &read_text(&mut name)?, writer);
    }
    write_pairs(EVENT_ATTRIBUTES, attributes, EVENT_PAIR_DEPTH, writer)?;
    writer.close(event);
    Ok(())
}

fn write_link(reader: &mut Reader<'_>, writer: &mut Writer) -> Result<(), JsonError> {
    let [trace_id, span_id, attributes] = members(reader, ["trace_id", "span_id", "attributes"])?;
    let link = writer.open(LINKS);
    if let Some(id) = trace_id.map(|id| read_id::<16>(id, "trace_id")).transpose()?.flatten() {
        writer.bytes(1, &id);
    }
    if let Some(id) = span_id.map(|id| read_id::<8>(id, "span_id")).transpose()?.flatten() {
        writer.bytes(2, &id);
    }
    write_pairs(LINK_ATTRIBUTES, attributes, EVENT_PAIR_DEPTH, writer)?;
    writer.close(link);
    Ok(())
}

/// `STATUS_CODE_OK`, and `OK` as older versions have it.
fn write_status(code: Option<Reader<'_>>, message: Option<Reader<'_>>, writer: &mut Writer) -> Result<(), JsonError> {
    let status = writer.open(STATUS);
    if let Some(mut message) = message {
        write_string(2, &read_text(&mut message)?, writer);
    }
    if let Some(mut reader) = code {
        let at = reader.place();
        let code = read_text(&mut reader)?;
        let code = match code.strip_prefix("STATUS_CODE_").unwrap_or(&code) {
            "UNSET" => 0,
            "OK" => 1,
            "ERROR" => 2,
            _ => return Err(reader.error_at(at, "the status is none of UNSET, OK, ERROR")),
        };
        if code != 0 {
            writer.varint(3, code);
        }
    }
    writer.close(status);
    Ok(())
}

/// The level of a pair in an event or a link: resource spans, scope spans, span, event, pair.
const EVENT_PAIR_DEPTH: usize = 5;

/// Pairs of a key and a value of any type.
fn write_pairs(number: u32, object: Option<Reader<'_>>, depth: usize, writer: &mut Writer) -> Result<(), JsonError> {
    let Some(mut reader) = object else { return Ok(()) };
    write_pairs_from(number, &mut reader, depth, writer)
}

fn write_pairs_from(number: u32, reader: &mut Reader<'_>, depth: usize, writer: &mut Writer) -> Result<(), JsonError> {
    if depth + 1 > MAX_DEPTH {
        return Err(reader.error("nested too deeply"));
    }
    let mut object = reader.begin_object()?;
    while let Some(key) = reader.next_key(&mut object)? {
        let pair = writer.open(number);
        write_string(1, &reader.unescaped(key)?, writer);
        if !reader.take_literal("null") {
            write_value(2, reader, depth + 1, writer)?;
        }
        writer.close(pair);
    }
    Ok(())
}

/// An `AnyValue` of the type that the SDK gives it.
fn write_value(number: u32, reader: &mut Reader<'_>, depth: usize, writer: &mut Writer) -> Result<(), JsonError> {
    check_size(reader, writer)?;
    let value = writer.open(number);
    match reader.peek() {
        Some(b'"') => writer.bytes(1, read_text(reader)?.as_bytes()),
        Some(b'[') => {
            if depth + 2 > MAX_DEPTH {
                return Err(reader.error("nested too deeply"));
            }
            let array = writer.open(5);
            let mut items = reader.begin_list()?;
            while reader.next_item(&mut items)? {
                write_value(1, reader, depth + 2, writer)?;
            }
            writer.close(array);
        }
        Some(b'{') => {
            let map = writer.open(6);
            write_pairs_from(1, reader, depth + 2, writer)?;
            writer.close(map);
        }
        _ => write_scalar(reader, writer)?,
    }
    writer.close(value);
    Ok(())
}

fn write_scalar(reader: &mut Reader<'_>, writer: &mut Writer) -> Result<(), JsonError> {
    let named = [("NaN", f64::NAN), ("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY)];
    if reader.take_literal("null") {
        return Ok(());
    }
    for (literal, value) in [("true", 1), ("false", 0)] {
        if reader.take_literal(literal) {
            writer.varint(2, value);
            return Ok(());
        }
    }
    if let Some((_, value)) = named.into_iter().find(|(literal, _)| reader.take_literal(literal)) {
        writer.fixed64(4, value.to_bits());
        return Ok(());
    }
    let at = reader.place();
    let number = reader.number()?;
    if number.contains(['.', 'e', 'E']) {
        let value = double(number).ok_or_else(|| reader.error_at(at, "a number out of range"))?;
        writer.fixed64(4, value.to_bits());
    } else {
        let value = integer(number).and_then(|value| i64::try_from(value).ok());
        writer.varint(3, value.ok_or_else(|| reader.error_at(at, "an integer out of range"))?.cast_unsigned());
    }
    Ok(())
}

/// An attribute that is a string.
fn write_text(number: u32, key: &str, value: &str, writer: &mut Writer) {
    let pair = writer.open(number);
    write_string(1, key, writer);
    let any = writer.open(2);
    writer.bytes(1, value.as_bytes());
    writer.close(any);
    writer.close(pair);
}

fn write_string(number: u32, text: &str, writer: &mut Writer) {
    if !text.is_empty() {
        writer.bytes(number, text.as_bytes());
    }
}

/// A string, or a number as it is written.
fn read_text<'a>(reader: &mut Reader<'a>) -> Result<Cow<'a, str>, JsonError> {
    match reader.peek() {
        Some(b'-' | b'0'..=b'9') => reader.number().map(Cow::Borrowed),
        _ => {
            let string = reader.string()?;
            reader.unescaped(string)
        }
    }
}

fn read_time(mut reader: Reader<'_>) -> Result<u64, JsonError> {
    let at = reader.place();
    let value = integer(&read_text(&mut reader)?).and_then(|value| u64::try_from(value).ok());
    value.ok_or_else(|| reader.error_at(at, "a time is not a number of nanoseconds since 1970"))
}

/// An id in base64, or in hex with whatever the versions of MLflow put before it; zeros and nothing are no id.
fn read_id<const N: usize>(mut reader: Reader<'_>, what: &str) -> Result<Option<[u8; N]>, JsonError> {
    let at = reader.place();
    let text = read_text(&mut reader)?;
    if text.is_empty() {
        return Ok(None);
    }
    // `trace:/catalog.schema/<hex>`; base64 has slashes of its own.
    let bare = text.strip_prefix("trace:/").map_or(&*text, |rest| rest.rsplit('/').next().unwrap_or(rest));
    let bare = bare.strip_prefix("tr-").or_else(|| bare.strip_prefix("0x")).unwrap_or(bare);
    let mut id = [0; N];
    let known = if bare.len() == 2 * N {
        from_hex(bare.as_bytes(), &mut id)
    } else {
        STANDARD.decode_slice(bare, &mut id).is_ok_and(|length| length == N)
    };
    if !known {
        return Err(reader.error_at(at, &format!("{what} is not an id of {N} bytes in base64 or hex")));
    }
    Ok(Some(id).filter(|id| id.iter().any(|byte| *byte != 0)))
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::trace::v1::Span;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::super::samples::{self, SAMPLES, decode, text_of};
    use super::super::{mlflow, validate};
    use super::*;

    fn converted(json: &[u8]) -> Converted {
        let converted = to_wire(json).unwrap_or_else(|error| panic!("{error}"));
        validate(&converted.wire).expect("a request");
        converted
    }

    fn spans(wire: &[u8]) -> Vec<Span> {
        let mut spans: Vec<Span> =
            decode(wire).resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans).collect();
        // The exporter sends them as they end, the JSON has them as they began.
        spans.sort_by(|a, b| a.span_id.cmp(&b.span_id));
        spans
    }

    fn keys(span: &Span) -> Vec<&str> {
        span.attributes.iter().map(|attribute| attribute.key.as_str()).collect()
    }

    fn text<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
        span.attributes.iter().find(|attribute| attribute.key == key).and_then(text_of)
    }

    /// Goal: the file that the SDK uploads becomes, byte for byte, what the SDK's exporter sent for the same spans.
    #[test]
    fn uploaded_spans_are_those_of_the_exporter_byte_for_byte() {
        for sample in SAMPLES {
            let wire = converted(sample.artifact).wire;
            let ours: Vec<_> = spans(&wire).iter().map(Span::encode_to_vec).collect();
            let theirs: Vec<_> = spans(sample.pb).iter().map(Span::encode_to_vec).collect();
            assert_eq!(ours, theirs, "{}", sample.name);
            // And nothing in between is written otherwise: the spans stand in it as they are.
            for span in &ours {
                assert!(wire.windows(span.len()).any(|part| part == span), "{}", sample.name);
            }
            let scope = |wire: &[u8]| decode(wire).resource_spans[0].scope_spans[0].scope.clone();
            assert_eq!(scope(&wire), scope(sample.pb));
        }
    }

    /// Goal: the same for a trace as it is read back from a server, but for what the server and the mapping add.
    #[test]
    fn a_trace_read_back_is_what_was_exported_with_its_info() {
        for sample in SAMPLES {
            let Converted { wire, experiment } = converted(sample.trace);
            assert_eq!(experiment.as_deref(), Some("6"));
            let mut ours = spans(&wire);
            let theirs = spans(sample.pb);
            for (ours, theirs) in ours.iter_mut().zip(&theirs) {
                let known = keys(theirs);
                let added: Vec<_> =
                    ours.attributes.extract_if(.., |attribute| !known.contains(&attribute.key.as_str())).collect();
                assert_eq!(ours.encode_to_vec(), theirs.encode_to_vec(), "{}", sample.name);
                let added: Vec<_> = added.iter().map(|attribute| attribute.key.as_str()).collect();
                let expected: &[&str] = match (sample.name, theirs.parent_span_id.is_empty()) {
                    ("nested", true) => {
                        &["mlflow.traceTag.team", "mlflow.traceTag.mlflow.traceName", "session.id", "user.id"]
                    }
                    ("error", true) => &["mlflow.traceTag.mlflow.traceName"],
                    ("llm", true) => &["mlflow.traceTag.mlflow.traceName", "session.id", "user.id"],
                    // The server computed it.
                    ("llm", false) if theirs.name == "ChatCompletion_no_cost" => &["mlflow.llm.cost"],
                    _ => &[],
                };
                assert_eq!(added, expected, "{} {}", sample.name, theirs.name);
            }
            let resource = |wire: &[u8]| decode(wire).resource_spans[0].resource.clone().expect("a resource");
            for attribute in resource(&wire).attributes {
                assert!(resource(sample.pb).attributes.contains(&attribute), "{attribute:?}");
            }
            assert_eq!(validate(&wire).expect("a request").services, ["sample-app"]);
        }
    }

    /// Goal: on the way to MLflow the conversion is the SDK's own post, with session and user as plain text.
    #[test]
    fn what_goes_on_to_mlflow_is_typed() {
        let nested = &SAMPLES[0];
        let wire = converted(nested.trace).wire;
        let prepared = mlflow::prepare([&wire[..]].into_iter()).expect("decodable");
        let theirs = spans(nested.typed);
        for (ours, theirs) in spans(&prepared).iter_mut().zip(&theirs) {
            let known = keys(theirs);
            if ours.parent_span_id.is_empty() {
                assert_eq!(text(ours, "session.id"), Some("session-42"));
                assert_eq!(text(ours, "user.id"), Some("user-7"));
                assert_eq!(text(ours, "mlflow.traceTag.team"), Some("search"));
            }
            ours.attributes.retain(|attribute| known.contains(&attribute.key.as_str()));
            assert_eq!(ours.attributes, theirs.attributes);
        }
        let numbers = br#"{"info":{"trace_metadata":{"mlflow.trace.session":"42"}},"data":{"spans":[
            {"trace_id":"tr-00000000000000000000000000000001","span_id":"0000000000000002","attributes":{}}]}}"#;
        let prepared = mlflow::prepare([&converted(numbers).wire[..]].into_iter()).expect("decodable");
        assert_eq!(text(&spans(&prepared)[0], "session.id"), Some("42"));
    }

    #[test]
    fn older_forms_are_taken() {
        let v2 = br#"{"info":{"request_id":"x","experiment_id":3,"tags":{}},"data":{"request":"q","spans":[{"name":"a",
            "context":{"trace_id":"0x0102030405060708090a0b0c0d0e0f10","span_id":"0x0102030405060708"},"parent_id":null,
            "start_time":1,"end_time":"2","status_code":"OK","status_message":"","attributes":{"n":5,"o":{"a":1}},
            "events":[{"name":"e","timestamp":3,"attributes":{"f":1.5,"i":-1,"b":true,"l":["x",NaN],"m":{"k":null}}}]}]}}"#;
        let Converted { wire, experiment } = converted(v2);
        assert_eq!(experiment.as_deref(), Some("3"));
        let span = &spans(&wire)[0];
        assert_eq!(span.trace_id, (1..=16).collect::<Vec<u8>>());
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano, span.events[0].time_unix_nano), (1, 2, 3));
        assert_eq!(
            (span.status.as_ref().map(|status| status.code), text(span, "n"), text(span, "o")),
            (Some(1), Some("5"), Some(r#"{"a":1}"#))
        );
        let values: Vec<_> =
            span.events[0].attributes.iter().map(|pair| pair.value.clone().and_then(|any| any.value)).collect();
        assert_eq!(
            values[..3],
            [Some(Value::DoubleValue(1.5)), Some(Value::IntValue(-1)), Some(Value::BoolValue(true))]
        );
        let Some(Value::ArrayValue(list)) = &values[3] else { panic!("{values:?}") };
        assert!(matches!(list.values[1].value, Some(Value::DoubleValue(value)) if value.is_nan()));
        let Some(Value::KvlistValue(map)) = &values[4] else { panic!("{values:?}") };
        assert_eq!((map.values[0].key.as_str(), &map.values[0].value), ("k", &None));

        let v3_5 = br#"{"spans":[{"trace_id":"tr-0102030405060708090a0b0c0d0e0f10","span_id":"0102030405060708","name":"a",
            "parent_span_id":"","status":{"code":"ERROR","message":"m"},"end_time_unix_nano":null,
            "links":[{"trace_id":"trace:/main.s/0102030405060708090a0b0c0d0e0f10","span_id":"0102030405060709","attributes":{"x":"y"}}]}]}"#;
        let span = &spans(&converted(v3_5).wire)[0];
        assert_eq!(
            (span.status.as_ref().map(|s| (s.code, s.message.as_str())), span.end_time_unix_nano),
            (Some((2, "m")), 0)
        );
        assert_eq!((&span.links[0].trace_id, span.links[0].span_id[7]), (&span.trace_id, 9));
        assert!(span.parent_span_id.is_empty());
    }

    #[test]
    fn no_spans_is_an_empty_request() {
        assert_eq!(converted(br#"{"info":{},"data":{"spans":[]}}"#).wire, b"");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let span = |rest: &str| {
            format!(r#"{{"spans":[{{"trace_id":"{}","span_id":"AQIDBAUGBwg=",{rest}"a":0}}]}}"#, "01".repeat(16))
        };
        for (json, problem) in [
            (r#"{"info":{}}"#.to_owned(), "no list of spans"),
            (r#"{"spans":[],"data":{"spans":[]}}"#.to_owned(), "twice"),
            (r#"{"spans":[{}]}"#.to_owned(), "no trace_id"),
            (r#"{"spans":[{"trace_id":"x"}]}"#.to_owned(), "16 bytes"),
            (r#"{"spans":[],"spans":[]}"#.to_owned(), "spans is there twice"),
            (r#"{"spans":{}}"#.to_owned(), "a list is expected"),
            (r#"{"info":{"experiment_id":"a b"},"spans":[]}"#.to_owned(), "experiment_id"),
            (span(r#""status":{"code":"FINE"},"#), "status"),
            (
                format!(r#"{{"info":{{"tags":{{{}"a":""}}}},"spans":[{{}}]}}"#, r#""a":"","#.repeat(MOST_TAGS)),
                "many tags",
            ),
            (span(&format!(r#""attributes":{{{}"a":1}},"#, r#""a":1,"#.repeat(MOST_PARTS / 2))), "many parts"),
            (span(r#""start_time_unix_nano":-1,"#), "nanoseconds"),
            (span(r#""start_time_unix_nano":1.5,"#), "nanoseconds"),
            (span(&format!(r#""events":[{{"attributes":{{"a":{}1{}}}}}],"#, "[".repeat(60), "]".repeat(60))), "deeply"),
            (
                span(&format!(r#""events":[{{"attributes":{{"a":{}1{}}}}}],"#, r#"{"a":"#.repeat(60), "}".repeat(60))),
                "deeply",
            ),
        ] {
            let error = to_wire(json.as_bytes()).expect_err(&json).to_string();
            assert!(error.contains(problem) && error.starts_with("line 1, column "), "{json}: {error}");
        }
        assert!(to_wire(span("").as_bytes()).is_ok());
    }

    #[test]
    fn dialects_are_told_apart() {
        let of = |json: &str| Dialect::of(json.as_bytes()).ok();
        assert_eq!(of(r#"{"resourceSpans":[]}"#), Some(Dialect::Otlp));
        assert_eq!(of(r#"{"x":{"info":1},"resource_spans":[]}"#), Some(Dialect::Otlp));
        assert_eq!(of("{}"), Some(Dialect::Otlp));
        assert_eq!(of(r#"{"resourceLogs":[]}"#), Some(Dialect::Otlp));
        assert_eq!(of(r#" {"info":{}"#), Some(Dialect::Mlflow));
        assert_eq!(of(r#"{"spans":[]}"#), Some(Dialect::Mlflow));
        for other in [r#"{"traces":[]}"#, "[]", "7", "", r#"{"a"#] {
            assert_eq!(of(other), None, "{other}");
        }
        for sample in SAMPLES {
            assert_eq!(Dialect::of(sample.json), Ok(Dialect::Otlp));
            assert_eq!(Dialect::of(sample.trace), Ok(Dialect::Mlflow));
            assert_eq!(Dialect::of(sample.artifact), Ok(Dialect::Mlflow));
        }
    }

    proptest! {
        /// Goal: whatever comes in, no panic, and what comes out is a request unless it is too large.
        #[test]
        fn a_changed_trace_is_refused_or_a_request(
            sample in 0..SAMPLES.len(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut json = SAMPLES[sample].trace.to_vec();
            for (place, byte) in changes {
                let place = place.index(json.len());
                json[place] = byte;
            }
            if let Ok(converted) = to_wire(&json) {
                prop_assert!(validate(&converted.wire).is_ok());
                prop_assert!(samples::Request::decode(&converted.wire[..]).is_ok());
            }
        }
    }
}
