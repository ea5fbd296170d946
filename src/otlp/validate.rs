//! One pass over the wire: is this an `ExportTraceServiceRequest` that every decoder takes, and what is in it?
//!
//! A request that passes may be stored as it is, be put in a row with others (protobuf merges concatenated messages),
//! and be sent to any backend: no conforming decoder refuses it. So wherever decoders differ, the strictest one counts
//! (`proto encoding.md`, prost, Python's upb, C++, Java, the Collector's `pdata`):
//!
//! - A tag fits 32 bits in at most five bytes, its field number is at least 1. A varint has at most ten bytes, the tenth
//!   at most 1. A length has at most five bytes and fits what is around it.
//! - A known field has its own wire type. Unknown fields of every wire type are skipped, groups if they are balanced.
//!   (The Collector gets over no group, against the specification. OTLP has none and, being proto3, can't get any; a
//!   request with one is a dead letter there.)
//! - Every string is UTF-8.
//! - An identifier has its full length or none. An identifier that is empty, or all zero, is *accepted*: OTLP calls such
//!   a span invalid and leaves it to the receiver, the Collector decodes it and passes it on, and a daemon that promises
//!   to keep what it is given does likewise. (MLflow answers 422 to an empty one; delivery deals with that.)
//! - Messages and groups nest at most [`MAX_DEPTH`] deep, and there are at most [`MAX_SPANS`] and [`MAX_MESSAGES`].
//!
//! Metrics and logs are laid out like traces; sent here by mistake they are refused as soon as a field has another wire
//! type or an identifier another length, which a log record with a time, or a sum, always has. A log record of nothing
//! but a body can't be told from a span.

use super::schema::{DEPRECATED_SCOPE_SPANS, Field, Kind, Message, REQUEST, Role};
use super::wire::{EGROUP, I32, I64, LEN, SGROUP, VARINT};

/// How deep messages and groups may nest below the request.
///
/// prost, upb, C++ and Java all stop at 100. prost counts an unknown field as one level more, and some readers put the
/// spans into one more message of their own; ten levels are left to them. Span attributes may nest 42 lists deep, or 28
/// maps.
pub const MAX_DEPTH: usize = 90;

/// Spans in one request.
///
/// An honest span has some 60 bytes, so that a request of 64 MiB stays below; an empty one has two bytes and
/// hundreds once it is decoded.
pub const MAX_SPANS: u32 = 1 << 21;

/// Messages of all kinds in one request; an honest attribute is two of them in some 15 bytes.
pub const MAX_MESSAGES: u32 = 1 << 24;

/// Bytes in one request: protobuf's own limit.
pub const MAX_BYTES: usize = (1 << 31) - 1;

/// What one pass over a request found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Spans.
    pub spans: u32,
    /// Distinct trace ids, sorted. A span without one adds none; an all-zero one is an id like others.
    pub trace_ids: Vec<[u8; 16]>,
    /// Distinct values of the resource attribute `service.name`, sorted.
    pub services: Vec<String>,
}

/// Why a request is refused: where, and what is wrong there. Never contains payload text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}: {field}: {problem}")]
pub struct Invalid {
    /// Offset in the request.
    pub offset: usize,
    /// Path of the field, such as `resource_spans.scope_spans.spans.trace_id`.
    pub field: String,
    /// What is wrong.
    pub problem: &'static str,
}

/// Validates the structure of a request and counts what is in it, without decoding it and without recursion.
///
/// # Errors
/// The first thing that is wrong.
pub fn validate(request: &[u8]) -> Result<Summary, Invalid> {
    let mut walk = Walk::over(request);
    match walk.walk() {
        Ok(()) => Ok(walk.found.summary()),
        Err(fault) => Err(walk.invalid(&fault)),
    }
}

/// A message or group that is being read.
#[derive(Clone, Copy)]
struct Frame {
    /// Where it ends, or, for a group, where what is around it ends.
    end: usize,
    message: &'static Message,
    /// The field that holds it; none for the request itself and for a group.
    field: Option<&'static Field>,
    /// The field number of a group; 0 for a message.
    group: u32,
    part: Part,
}

/// What a frame is to [`Found`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Span,
    Resource,
    ResourceAttribute,
    ResourceValue,
    /// Scope spans in a field that only the Collector reads: checked, but not counted.
    Deprecated,
    Other,
}

/// What is wrong, where the walk stands.
struct Fault {
    offset: usize,
    field: Option<&'static str>,
    problem: &'static str,
}

/// No field of a group is known.
static UNKNOWN_GROUP: Message = Message { fields: &[], oneof: false, role: Role::Other };

struct Walk<'a> {
    request: &'a [u8],
    at: usize,
    /// The open messages, the request itself first. `stack[depth]` is the innermost.
    stack: [Frame; MAX_DEPTH + 1],
    depth: usize,
    messages: u32,
    found: Found<'a>,
}

impl<'a> Walk<'a> {
    fn over(request: &'a [u8]) -> Self {
        let root = Frame { end: request.len(), message: &REQUEST, field: None, group: 0, part: Part::Other };
        Self { request, at: 0, stack: [root; MAX_DEPTH + 1], depth: 0, messages: 0, found: Found::default() }
    }

    fn walk(&mut self) -> Result<(), Fault> {
        if self.request.len() > MAX_BYTES {
            return Err(self.fault("larger than 2 GiB"));
        }
        loop {
            let Frame { end, group, part, .. } = self.stack[self.depth];
            if self.at < end {
                self.field()?;
                continue;
            }
            if group != 0 {
                return Err(self.fault("a group is not closed"));
            }
            self.found.leave(part);
            if self.depth == 0 {
                return Ok(());
            }
            self.depth -= 1;
        }
    }

    /// Reads one field, or only opens it when it is a message or a group.
    #[inline]
    fn field(&mut self) -> Result<(), Fault> {
        let start = self.at;
        let frame = self.stack[self.depth];
        let tag = self.varint(frame.end, 5).map_err(|problem| self.fault(problem))?;
        let Ok(tag) = u32::try_from(tag) else {
            return Err(Fault { offset: start, field: None, problem: "a tag of more than 32 bits" });
        };
        let (number, wire_type) = (tag >> 3, tag & 7);
        if number == 0 {
            return Err(Fault { offset: start, field: None, problem: "field number 0" });
        }
        let known = frame.message.field(number);
        let read = match known {
            Some(field) => self.known(&frame, field, wire_type),
            None => self.unknown(&frame, number, wire_type),
        };
        read.map_err(|problem| Fault { offset: start, field: known.map(|field| field.name), problem })
    }

    #[inline]
    fn known(&mut self, frame: &Frame, field: &'static Field, wire_type: u32) -> Result<(), &'static str> {
        if wire_type != wire_type_of(field.kind) {
            // The Collector and prost refuse it, others skip it: readers would see different data.
            return Err("not the wire type of this field");
        }
        if frame.part == Part::ResourceValue {
            // All fields of a value are one `oneof`: the last one counts.
            self.found.value = None;
        }
        match field.kind {
            Kind::Message(message) => {
                let end = self.length(frame.end)?;
                let part = part_of(frame.part, message.role, field.number);
                self.open(Frame { end, message, field: Some(field), group: 0, part })?;
                self.found.enter(part)
            }
            Kind::String => {
                let text = std::str::from_utf8(self.bytes(frame.end)?).map_err(|_| "not UTF-8")?;
                self.found.string(frame.part, field.number, text);
                Ok(())
            }
            Kind::Id(size) => {
                let id = self.bytes(frame.end)?;
                if id.len() != size && !id.is_empty() {
                    return Err(if size == 16 { "not an id of 16 bytes" } else { "not an id of 8 bytes" });
                }
                self.found.id(frame.part, field.number, id);
                Ok(())
            }
            _ => self.skip(frame.end, wire_type),
        }
    }

    #[cold]
    fn unknown(&mut self, frame: &Frame, number: u32, wire_type: u32) -> Result<(), &'static str> {
        match wire_type {
            SGROUP => self.open(Frame {
                end: frame.end,
                message: &UNKNOWN_GROUP,
                field: None,
                group: number,
                part: Part::Other,
            }),
            EGROUP if frame.group == number => {
                self.depth -= 1;
                Ok(())
            }
            EGROUP => Err("closes a group that is not open"),
            _ => self.skip(frame.end, wire_type),
        }
    }

    fn open(&mut self, frame: Frame) -> Result<(), &'static str> {
        if self.depth == MAX_DEPTH {
            return Err("nested too deeply");
        }
        if self.messages == MAX_MESSAGES {
            return Err("too many messages in one request");
        }
        self.messages += 1;
        self.depth += 1;
        self.stack[self.depth] = frame;
        Ok(())
    }

    fn skip(&mut self, end: usize, wire_type: u32) -> Result<(), &'static str> {
        match wire_type {
            VARINT => self.varint(end, 10).map(drop),
            I64 => self.fixed(end, 8),
            LEN => self.bytes(end).map(drop),
            I32 => self.fixed(end, 4),
            _ => Err("no such wire type"),
        }
    }

    fn fixed(&mut self, end: usize, size: usize) -> Result<(), &'static str> {
        if end - self.at < size {
            return Err("cut short");
        }
        self.at += size;
        Ok(())
    }

    fn bytes(&mut self, end: usize) -> Result<&'a [u8], &'static str> {
        let end = self.length(end)?;
        let bytes = &self.request[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// Reads a length, and answers where what has this length ends.
    #[inline]
    fn length(&mut self, end: usize) -> Result<usize, &'static str> {
        let length = self.varint(end, 5)?;
        match usize::try_from(length) {
            Ok(length) if length <= end - self.at => Ok(self.at + length),
            _ => Err("longer than what is around it"),
        }
    }

    #[inline]
    fn varint(&mut self, end: usize, longest: usize) -> Result<u64, &'static str> {
        let bytes = &self.request[self.at..end];
        let mut value = 0;
        for (index, &byte) in bytes.iter().take(longest).enumerate() {
            if index == 9 && byte > 1 {
                return Err("a varint of more than 64 bits");
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.at += index + 1;
                return Ok(value);
            }
        }
        Err(if bytes.len() < longest { "cut short" } else { "a varint that is too long" })
    }

    fn fault(&self, problem: &'static str) -> Fault {
        Fault { offset: self.at, field: None, problem }
    }

    fn invalid(&self, fault: &Fault) -> Invalid {
        let open = self.stack[1..=self.depth].iter().map(|frame| frame.field.map_or("(unknown)", |field| field.name));
        let mut path: Vec<&str> = open.chain(fault.field).collect();
        // A path of ninety names helps nobody: its head and its tail do.
        if path.len() > 12 {
            path.splice(8..path.len() - 3, ["..."]);
        }
        let field = if path.is_empty() { "request".to_owned() } else { path.join(".") };
        Invalid { offset: fault.offset, field, problem: fault.problem }
    }
}

/// The one wire type of a field; no trace message has packed fields.
#[inline]
fn wire_type_of(kind: Kind) -> u32 {
    match kind {
        Kind::Message(_) | Kind::String | Kind::Bytes | Kind::Id(_) => LEN,
        Kind::Bool | Kind::Int32 | Kind::Uint32 | Kind::Int64 | Kind::Enum(_) => VARINT,
        Kind::Fixed32 => I32,
        Kind::Fixed64 | Kind::Double => I64,
    }
}

#[inline]
fn part_of(around: Part, role: Role, number: u32) -> Part {
    match (role, around) {
        (Role::Span, Part::Deprecated) => Part::Other,
        (Role::Span, _) => Part::Span,
        (Role::Resource, _) => Part::Resource,
        (Role::KeyValue, Part::Resource) => Part::ResourceAttribute,
        (Role::AnyValue, Part::ResourceAttribute) => Part::ResourceValue,
        _ if number == DEPRECATED_SCOPE_SPANS => Part::Deprecated,
        _ => Part::Other,
    }
}

/// What the walk takes down. Fields may come in any order and more than once, the last one counts, so a span or an
/// attribute is judged when it ends.
#[derive(Default)]
struct Found<'a> {
    spans: u32,
    trace_ids: Distinct<[u8; 16]>,
    services: Distinct<&'a str>,
    trace_id: Option<[u8; 16]>,
    key: &'a str,
    value: Option<&'a str>,
}

impl<'a> Found<'a> {
    #[inline]
    fn enter(&mut self, part: Part) -> Result<(), &'static str> {
        match part {
            Part::Span => {
                self.trace_id = None;
                if self.spans == MAX_SPANS {
                    return Err("too many spans in one request");
                }
                self.spans += 1;
            }
            Part::ResourceAttribute => {
                self.key = "";
                self.value = None;
            }
            _ => {}
        }
        Ok(())
    }

    #[inline]
    fn leave(&mut self, part: Part) {
        match part {
            Part::Span => {
                if let Some(trace_id) = self.trace_id {
                    self.trace_ids.insert(trace_id);
                }
            }
            Part::ResourceAttribute if self.key == "service.name" => {
                if let Some(service) = self.value {
                    self.services.insert(service);
                }
            }
            _ => {}
        }
    }

    #[inline]
    fn string(&mut self, part: Part, number: u32, text: &'a str) {
        match (part, number) {
            (Part::ResourceAttribute, 1) => self.key = text,
            (Part::ResourceValue, 1) => self.value = Some(text),
            _ => {}
        }
    }

    #[inline]
    fn id(&mut self, part: Part, number: u32, bytes: &[u8]) {
        if part == Part::Span && number == 1 {
            self.trace_id = bytes.try_into().ok();
        }
    }

    fn summary(self) -> Summary {
        Summary {
            spans: self.spans,
            trace_ids: self.trace_ids.sorted(),
            services: self.services.sorted().into_iter().map(str::to_owned).collect(),
        }
    }
}

/// Distinct values, in memory at most about twice as many as there are.
struct Distinct<T> {
    items: Vec<T>,
    tidy_at: usize,
}

impl<T> Default for Distinct<T> {
    fn default() -> Self {
        Self { items: Vec::new(), tidy_at: 1024 }
    }
}

impl<T: Ord> Distinct<T> {
    #[inline]
    fn insert(&mut self, item: T) {
        // Neighbours are mostly of one trace.
        if self.items.last() == Some(&item) {
            return;
        }
        self.items.push(item);
        if self.items.len() == self.tidy_at {
            self.tidy();
            self.tidy_at = self.tidy_at.max(2 * self.items.len());
        }
    }

    fn tidy(&mut self) {
        self.items.sort_unstable();
        self.items.dedup();
    }

    fn sorted(mut self) -> Vec<T> {
        self.tidy();
        self.items
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::super::samples::{self, SAMPLES};
    use super::super::wire::{put_length, put_tag};
    use super::*;

    fn len(number: u32, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_tag(&mut out, number, LEN);
        put_length(&mut out, content.len());
        out.extend_from_slice(content);
        out
    }

    fn in_resource_spans(content: &[u8]) -> Vec<u8> {
        len(1, content)
    }

    fn in_scope_spans(content: &[u8]) -> Vec<u8> {
        in_resource_spans(&len(2, content))
    }

    fn in_span(content: &[u8]) -> Vec<u8> {
        in_scope_spans(&len(2, content))
    }

    fn in_value(content: &[u8]) -> Vec<u8> {
        in_span(&len(9, &len(2, content)))
    }

    fn problem(request: &[u8]) -> &'static str {
        validate(request).expect_err("refused").problem
    }

    fn accepts(request: &[u8]) {
        if let Err(invalid) = validate(request) {
            panic!("{invalid}");
        }
    }

    #[test]
    fn the_empty_request_and_empty_envelopes_are_requests() {
        for request in [&[][..], &[0x0a, 0], &[0x0a, 2, 0x12, 0], &[0x0a, 4, 0x12, 2, 0x0a, 0]] {
            assert_eq!(validate(request), Ok(Summary::default()), "{request:?}");
        }
        assert_eq!(validate(&[0x0a, 4, 0x12, 2, 0x12, 0]), Ok(Summary { spans: 1, ..Summary::default() }));
    }

    #[test]
    fn real_requests_pass_with_their_counts() {
        for sample in SAMPLES {
            let summary = validate(sample.pb).expect("a real request");
            assert_eq!(summary.services, ["sample-app"], "{}", sample.name);
            assert_eq!(summary, expected(sample.pb), "{}", sample.name);
            assert_eq!(validate(sample.typed), Ok(expected(sample.typed)), "{}", sample.name);
        }
    }

    #[test]
    fn requests_in_a_row_are_one_request() {
        let row = [SAMPLES[0].pb, SAMPLES[1].pb, SAMPLES[2].pb, SAMPLES[0].pb].concat();
        let summary = validate(&row).expect("requests");
        assert_eq!(summary, expected(&row));
        assert_eq!((summary.trace_ids.len(), summary.services.len()), (3, 1));
    }

    // V1.
    #[test]
    fn tags_and_varints_have_bounds() {
        // Unknown field 2^29-1, the largest there is, and one bit more.
        accepts(&[0xf8, 0xff, 0xff, 0xff, 0x0f, 1]);
        assert_eq!(problem(&[0xf8, 0xff, 0xff, 0xff, 0x1f, 1]), "a tag of more than 32 bits");
        // prost takes this tag of six bytes for field 15; upb and C++ don't.
        assert_eq!(problem(&[0xf8, 0x80, 0x80, 0x80, 0x80, 0x00, 1]), "a varint that is too long");
        assert_eq!(problem(&[0x00, 1]), "field number 0");
        assert_eq!(problem(&[0x80]), "cut short");
        assert_eq!(problem(&[0x78, 0x80]), "cut short");
        accepts(&[0x78, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        let overflow = [0x78, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(problem(&overflow), "a varint of more than 64 bits");
        let eleven = [0x78, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x81, 0x00];
        assert_eq!(problem(&eleven), "a varint of more than 64 bits");
        for wire_type in [6, 7] {
            assert_eq!(problem(&[0x78 | wire_type, 0, 0, 0, 0]), "no such wire type");
        }
    }

    // V2.
    #[test]
    fn lengths_fit_what_is_around_them() {
        assert_eq!(problem(&[0x0a, 1]), "longer than what is around it");
        assert_eq!(problem(&[0x7a, 2, 0]), "longer than what is around it");
        assert_eq!(
            problem(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            "a varint that is too long"
        );
        // The inner message fits the request, but not the outer message.
        assert_eq!(problem(&[0x0a, 2, 0x12, 2, 0x7a, 0]), "longer than what is around it");
        for (tag, short) in [(0x79, 7), (0x7d, 3)] {
            accepts(&[&[tag][..], &vec![0; short + 1]].concat());
            assert_eq!(problem(&[&[tag][..], &vec![0; short]].concat()), "cut short");
        }
        // A length of five bytes is the longest that all decoders read.
        accepts(&[0x0a, 0x80, 0x80, 0x80, 0x80, 0x00]);
        assert_eq!(problem(&[0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00]), "a varint that is too long");
    }

    // V3, for every known field and every other wire type.
    #[test]
    fn a_known_field_has_its_own_wire_type() {
        let mut fields = 0;
        let mut check = |message: &Message, wrap: &dyn Fn(&[u8]) -> Vec<u8>| {
            for field in message.fields {
                for wire_type in
                    [VARINT, I64, LEN, SGROUP, EGROUP, I32].into_iter().filter(|&t| t != wire_type_of(field.kind))
                {
                    let mut bytes = Vec::new();
                    put_tag(&mut bytes, field.number, wire_type);
                    bytes.extend_from_slice(&[0; 8]);
                    assert_eq!(problem(&wrap(&bytes)), "not the wire type of this field", "{} {wire_type}", field.name);
                    fields += 1;
                }
            }
        };
        let inner = |message: &Message, number| match message.field(number).map(|field| field.kind) {
            Some(Kind::Message(inner)) => inner,
            _ => panic!("field {number} is no message"),
        };
        let resource_spans = inner(&REQUEST, 1);
        let resource = inner(resource_spans, 1);
        let scope_spans = inner(resource_spans, 2);
        let span = inner(scope_spans, 2);
        let value = inner(inner(span, 9), 2);
        check(&REQUEST, &|bytes| bytes.to_vec());
        check(resource_spans, &in_resource_spans);
        check(resource, &|bytes| in_resource_spans(&len(1, bytes)));
        check(inner(resource, 3), &|bytes| in_resource_spans(&len(1, &len(3, bytes))));
        check(scope_spans, &in_scope_spans);
        check(inner(scope_spans, 1), &|bytes| in_scope_spans(&len(1, bytes)));
        check(span, &in_span);
        check(inner(span, 9), &|bytes| in_span(&len(9, bytes)));
        check(inner(span, 11), &|bytes| in_span(&len(11, bytes)));
        check(inner(span, 13), &|bytes| in_span(&len(13, bytes)));
        check(inner(span, 15), &|bytes| in_span(&len(15, bytes)));
        check(value, &in_value);
        check(inner(value, 5), &|bytes| in_value(&len(5, bytes)));
        check(inner(value, 6), &|bytes| in_value(&len(6, bytes)));
        assert_eq!(fields, 5 * 60);
    }

    // V4.
    #[test]
    fn unknown_fields_are_skipped() {
        let unknown = [
            vec![0x98, 0x06, 1], // 99: varint
            vec![0x99, 0x06, 1, 2, 3, 4, 5, 6, 7, 8],
            vec![0x9a, 0x06, 2, 0xff, 0xff], // bytes, not UTF-8
            vec![0x9d, 0x06, 1, 2, 3, 4],
            vec![0x9b, 0x06, 0x9c, 0x06], // an empty group
            vec![0x9b, 0x06, 0x08, 1, 0x0b, 0x12, 1, 0xff, 0x0c, 0x9c, 0x06], // one that holds a group
        ];
        for bytes in unknown {
            accepts(&bytes);
            accepts(&in_resource_spans(&bytes));
            accepts(&in_span(&bytes));
            accepts(&in_value(&bytes));
        }
        // Status once had a field 1.
        accepts(&in_span(&len(15, &[0x08, 2])));
    }

    // V4.
    #[test]
    fn groups_are_balanced() {
        assert_eq!(problem(&[0x9b, 0x06]), "a group is not closed");
        assert_eq!(problem(&[0x9b, 0x06, 0x94, 0x06]), "closes a group that is not open");
        assert_eq!(problem(&[0x9c, 0x06]), "closes a group that is not open");
        // A group does not end with the message around it.
        assert_eq!(problem(&[0x0a, 2, 0x9b, 0x06, 0x9c, 0x06]), "a group is not closed");
        assert_eq!(problem(&[0x9b, 0x06, 0x0a, 2, 0x9c, 0x06]), "a group is not closed");
        assert_eq!(problem(&[0x9b, 0x06, 0x00, 0x9c, 0x06]), "field number 0");
    }

    // V5.
    #[test]
    fn every_string_is_utf_8() {
        type Place = (&'static str, fn(&[u8]) -> Vec<u8>);
        let places: [Place; 18] = [
            ("schema_url", |text| in_resource_spans(&len(3, text))),
            ("schema_url", |text| in_scope_spans(&len(3, text))),
            ("entity schema_url", |text| in_resource_spans(&len(1, &len(3, &len(1, text))))),
            ("entity type", |text| in_resource_spans(&len(1, &len(3, &len(2, text))))),
            ("entity id_keys", |text| in_resource_spans(&len(1, &len(3, &len(3, text))))),
            ("entity description_keys", |text| in_resource_spans(&len(1, &len(3, &len(4, text))))),
            ("resource key", |text| in_resource_spans(&len(1, &len(1, &len(1, text))))),
            ("resource value", |text| in_resource_spans(&len(1, &len(1, &len(2, &len(1, text)))))),
            ("scope name", |text| in_scope_spans(&len(1, &len(1, text)))),
            ("scope version", |text| in_scope_spans(&len(1, &len(2, text)))),
            ("trace_state", |text| in_span(&len(3, text))),
            ("name", |text| in_span(&len(5, text))),
            ("key", |text| in_span(&len(9, &len(1, text)))),
            ("string_value", |text| in_value(&len(1, text))),
            ("string_value in a map in a list", |text| in_value(&len(5, &len(1, &len(6, &len(1, &len(1, text))))))),
            ("event name", |text| in_span(&len(11, &len(2, text)))),
            ("link trace_state", |text| in_span(&len(13, &len(3, text)))),
            ("status message", |text| in_span(&len(15, &len(2, text)))),
        ];
        for (name, place) in places {
            accepts(&place("zażółć 🦀\0".as_bytes()));
            // A lone byte, an overlong form, a surrogate, a code point past the last, a cut sequence.
            for bad in [&[0xff][..], &[0xc0, 0x80], &[0xed, 0xa0, 0x80], &[0xf4, 0x90, 0x80, 0x80], &[b'a', 0xe2, 0x82]]
            {
                assert_eq!(problem(&place(bad)), "not UTF-8", "{name} {bad:?}");
            }
        }
        accepts(&in_value(&len(7, &[0xff])));
    }

    // V6.
    #[test]
    fn ids_have_their_length_or_none() {
        type Place = (usize, fn(&[u8]) -> Vec<u8>);
        let places: [Place; 5] = [
            (16, |id| in_span(&len(1, id))),
            (8, |id| in_span(&len(2, id))),
            (8, |id| in_span(&len(4, id))),
            (16, |id| in_span(&len(13, &len(1, id)))),
            (8, |id| in_span(&len(13, &len(2, id)))),
        ];
        for (size, place) in places {
            for length in 0..=40 {
                let verdict = validate(&place(&vec![0; length]));
                assert_eq!(verdict.is_ok(), length == 0 || length == size, "{length} of {size}: {verdict:?}");
            }
        }
        // A wrong one is wrong even when a right one follows: the Collector refuses it.
        assert_eq!(problem(&in_span(&[len(1, &[1]), len(1, &[1; 16])].concat())), "not an id of 16 bytes");
    }

    /// A request whose innermost message is so many levels below it.
    fn nested(depth: usize) -> Vec<u8> {
        let mut value = Vec::new();
        for level in (6..=depth).rev() {
            value = if level % 2 == 0 { len(5, &value) } else { len(1, &value) };
        }
        in_value(&value)
    }

    // V7.
    #[test]
    fn depth_has_a_limit_that_leaves_room_below_that_of_others() {
        accepts(&nested(MAX_DEPTH));
        assert_eq!(problem(&nested(MAX_DEPTH + 1)), "nested too deeply");
        // prost counts the same way, and stops at 100. It takes an unknown field for one more level.
        let prost = |request: &[u8]| samples::Request::decode(request).is_ok();
        assert!(prost(&nested(100)));
        assert!(!prost(&nested(101)));
        // Groups count as messages do.
        let groups = |depth: usize| [vec![0x7b; depth], vec![0x7c; depth]].concat();
        accepts(&groups(MAX_DEPTH));
        assert!(prost(&groups(MAX_DEPTH)));
        assert_eq!(problem(&groups(MAX_DEPTH + 1)), "nested too deeply");
        assert_eq!(problem(&groups(1_000_000)), "nested too deeply");
        assert_eq!(problem(&nested(100_000)), "nested too deeply");
    }

    // V8.
    #[test]
    fn counts_have_limits() {
        let spans = |count: u32| in_scope_spans(&[0x12, 0].repeat(count as usize));
        assert_eq!(validate(&spans(MAX_SPANS)).map(|summary| summary.spans), Ok(MAX_SPANS));
        assert_eq!(problem(&spans(MAX_SPANS + 1)), "too many spans in one request");
        let envelopes = |count: u32| [0x0a, 0].repeat(count as usize);
        accepts(&envelopes(MAX_MESSAGES));
        assert_eq!(problem(&envelopes(MAX_MESSAGES + 1)), "too many messages in one request");
    }

    #[test]
    fn an_error_says_where_without_what() {
        let request = [SAMPLES[0].pb, &in_span(&len(11, &len(3, &len(1, b"secret\xff"))))].concat();
        let invalid = validate(&request).expect_err("refused");
        let expected = format!(
            "byte {}: resource_spans.scope_spans.spans.events.attributes.key: not UTF-8",
            SAMPLES[0].pb.len() + 10
        );
        assert_eq!(invalid.to_string(), expected);
        assert_eq!(validate(&[0]).expect_err("refused").to_string(), "byte 0: request: field number 0");
        assert!(validate(&nested(MAX_DEPTH + 1)).expect_err("refused").field.len() < 200);
        assert_eq!(validate(&[0x7b, 0]).expect_err("refused").field, "(unknown)");
    }

    #[test]
    fn trace_ids_and_services_are_those_a_decoder_sees() {
        let id = |byte: u8| len(1, &[byte; 16]);
        let attribute = |key: &[u8], value: &[u8]| len(1, &len(1, &[len(1, key), len(2, value)].concat()));
        let service = |name: &[u8]| attribute(b"service.name", &len(1, name));
        let spans = [[id(2), id(3)].concat(), id(1), id(0), len(1, b""), [id(9), len(1, b"")].concat()];
        let resource_spans = [
            service(b"b"),
            service(b"a"),
            service(b"b"),
            attribute(b"service.name", &[0x18, 1]), // an integer
            attribute(b"service.name", &[len(1, b"lost"), vec![0x18, 1]].concat()), // the last of a oneof counts
            attribute(b"service.name", &len(5, &len(1, &len(1, b"in a list")))),
            attribute(b"host.name", &len(1, b"other")),
            len(1, &len(1, &[len(2, &len(1, b"value first")), len(1, b"service.name")].concat())),
            len(1, &len(1, &[len(1, b"service.name"), len(1, b"other key"), len(2, &len(1, b"x"))].concat())),
            len(2, &[len(1, &len(3, &[len(1, b"service.name"), len(2, &len(1, b"of a scope"))].concat()))].concat()),
            len(2, &spans.iter().flat_map(|span| len(2, span)).collect::<Vec<_>>()),
            len(DEPRECATED_SCOPE_SPANS, &len(2, &id(8))),
        ]
        .concat();
        let request = in_resource_spans(&resource_spans);
        let summary = validate(&request).expect("a request");
        assert_eq!(summary, expected(&request));
        assert_eq!(summary.services, ["a", "b", "value first"]);
        assert_eq!(summary.trace_ids, [[0; 16], [1; 16], [3; 16]]);
    }

    #[test]
    fn what_only_the_collector_reads_is_checked_too() {
        let deprecated = |span: &[u8]| in_resource_spans(&len(DEPRECATED_SCOPE_SPANS, &len(2, span)));
        accepts(&deprecated(&len(1, &[1; 16])));
        assert_eq!(problem(&deprecated(&len(1, &[1; 15]))), "not an id of 16 bytes");
    }

    #[test]
    fn many_traces_are_told_apart() {
        let spans: Vec<u8> =
            (0..10_000_u128).flat_map(|id| len(2, &len(1, &(id * 7919 % 5000).to_le_bytes()))).collect();
        assert_eq!(validate(&in_scope_spans(&spans)).expect("a request").trace_ids.len(), 5000);
    }

    // F2.
    #[test]
    fn metrics_and_logs_are_no_traces() {
        let double =
            |number: u32| [&[u8::try_from(number << 3 | I64).expect("small")][..], &1.5_f64.to_le_bytes()].concat();
        let point = [double(2), double(3), double(4)].concat();
        let sum = [len(1, b"requests"), len(7, &[len(1, &point), vec![0x10, 2, 0x18, 1]].concat())].concat();
        let gauge = [len(1, b"queue"), len(5, &len(1, &point))].concat();
        for metric in [sum, gauge] {
            assert!(validate(&in_scope_spans(&len(2, &metric))).is_err());
        }
        let log = [double(1), vec![0x10, 9], len(3, b"INFO"), len(5, &len(1, b"started"))].concat();
        assert!(validate(&in_scope_spans(&len(2, &log))).is_err());
    }

    /// The summary by way of a decoder.
    fn expected(request: &[u8]) -> Summary {
        let request = samples::decode(request);
        let spans = || request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans);
        let mut trace_ids: Vec<[u8; 16]> =
            spans().filter_map(|span| span.trace_id.as_slice().try_into().ok()).collect();
        trace_ids.sort_unstable();
        trace_ids.dedup();
        let resources = request.resource_spans.iter().filter_map(|r| r.resource.as_ref());
        let attributes = resources.flat_map(|resource| &resource.attributes);
        let mut services: Vec<String> =
            attributes.filter(|a| a.key == "service.name").filter_map(samples::text_of).map(str::to_owned).collect();
        services.sort_unstable();
        services.dedup();
        Summary { spans: u32::try_from(spans().count()).expect("few"), trace_ids, services }
    }

    /// One change to a request: where, in 65536ths of its length, how, and with which byte.
    type Change = (u16, u8, u8);

    fn change(request: &mut Vec<u8>, (place, how, byte): Change) {
        let at = request.len() * usize::from(place) / 65536;
        match how % 5 {
            0 if at < request.len() => request[at] ^= 1 << (byte % 8),
            1 if at < request.len() => request[at] = byte,
            2 if at < request.len() => drop(request.remove(at)),
            3 => request.insert(at, byte),
            _ => {
                let from = at.saturating_sub(usize::from(byte));
                let copy = request[from..at].to_vec();
                request.splice(at..at, copy);
            }
        }
    }

    /// Refused here, though prost takes it: other decoders don't.
    const STRICTER: [&str; 4] =
        ["not an id of 16 bytes", "not an id of 8 bytes", "a varint that is too long", "nested too deeply"];

    fn agrees_with_prost(request: &[u8]) -> Result<(), TestCaseError> {
        match (validate(request), samples::Request::decode(request)) {
            (Ok(summary), Ok(_)) => prop_assert_eq!(summary, expected(request)),
            (Ok(_), Err(error)) => prop_assert!(false, "prost refuses: {error}"),
            (Err(invalid), Ok(_)) => {
                let stricter = STRICTER.contains(&invalid.problem) || invalid.field.contains("deprecated_scope_spans");
                prop_assert!(stricter, "prost accepts, but {invalid}");
            }
            (Err(_), Err(_)) => {}
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        #[test]
        fn any_request_passes_with_its_counts(request in samples::request()) {
            let bytes = request.encode_to_vec();
            prop_assert_eq!(validate(&bytes), Ok(expected(&bytes)));
        }

        // V10.
        #[test]
        fn a_changed_request_is_judged_as_prost_judges(
            request in samples::request(),
            changes in prop::collection::vec(any::<Change>(), 1..4),
        ) {
            let mut bytes = request.encode_to_vec();
            changes.into_iter().for_each(|one| change(&mut bytes, one));
            agrees_with_prost(&bytes)?;
        }

        #[test]
        fn a_changed_sample_is_judged_as_prost_judges(
            sample in 0..SAMPLES.len(),
            changes in prop::collection::vec(any::<Change>(), 1..3),
        ) {
            let mut bytes = SAMPLES[sample].pb.to_vec();
            changes.into_iter().for_each(|one| change(&mut bytes, one));
            agrees_with_prost(&bytes)?;
        }

        #[test]
        fn noise_is_judged_as_prost_judges(bytes in prop::collection::vec(prop_oneof![0_u8..32, any::<u8>()], 0..40)) {
            agrees_with_prost(&bytes)?;
            agrees_with_prost(&in_span(&bytes))?;
            agrees_with_prost(&in_value(&bytes))?;
        }
    }
}
