//! OTLP JSON ⇄ the wire.
//!
//! The rules are those of the OTLP specification, "JSON Protobuf Encoding", and, where it is silent, of protobuf's own
//! (`json.md`). Where senders are known to stray, what the Collector takes is taken here too:
//!
//! - Identifiers are hex in either case, in links as well; an empty one is an absent one; no `0x`.
//! - Enums are numbers. Their names are taken too, an unknown name is an error, an unknown number is kept.
//! - Names are lowerCamelCase; snake_case is taken too. Unknown names are ignored, whatever is in them.
//! - Integers of every size are numbers or decimal strings; `1.0` and `1e2` are integers, `1.5` is not, and what does
//!   not fit its type is an error. Doubles are numbers, such strings, `"NaN"`, `"Infinity"` and `"-Infinity"`.
//! - `null` is an absent field. In a list it is an error: there is no absent item, and any other reading would invent one.
//! - A name twice in one object, in whichever spelling, is an error, and so are two members of one value: decoders
//!   differ on which one counts.
//! - Base64 is the standard or the URL-safe alphabet, with or without padding.
//! - Nesting is limited to what [`validate`](super::validate()) takes; ignored values may nest 512 deep.
//! - The text is UTF-8 without a byte order mark, half a surrogate pair is an error, and nothing may follow the object.
//!
//! A document that has no resource spans, but metrics, logs or profiles, is an error, not an empty request: its sender
//! would take the answer for an acknowledgement of data that nobody reads.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::schema::{Field, Kind, Message, REQUEST, Role};
use super::token::{RawString, Reader, number_length};
use super::validate::{MAX_BYTES, MAX_DEPTH, MAX_MESSAGES, MAX_SPANS};
use super::wire::{Fields, I32, I64, LEN, VARINT, Value, length_size, put_length, put_tag, put_varint};

/// Why a JSON document is refused. Never contains payload text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct JsonError {
    /// From 1.
    pub line: usize,
    /// From 1, in bytes.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
}

/// Transcodes one OTLP JSON document (`ExportTraceServiceRequest` or `TracesData`) to the wire.
///
/// What comes out passes [`validate`](super::validate()).
///
/// # Errors
/// The first thing that is wrong.
pub fn to_wire(json: &[u8]) -> Result<Vec<u8>, JsonError> {
    let mut transcoder =
        Transcoder { json: Reader::new(json)?, wire: Writer::default(), messages: 0, spans: 0, foreign: None };
    if json.len() > MAX_BYTES {
        return Err(transcoder.json.error("larger than 2 GiB"));
    }
    transcoder.message(&REQUEST, 0)?;
    transcoder.json.end()?;
    if let (Some((at, problem)), true) = (transcoder.foreign, transcoder.wire.bytes.is_empty()) {
        return Err(transcoder.json.error_at(at, problem));
    }
    Ok(transcoder.wire.finish())
}

struct Transcoder<'a> {
    json: Reader<'a>,
    wire: Writer,
    messages: u32,
    spans: u32,
    /// Where the document has data of another signal, and what to say about it.
    foreign: Option<(usize, &'static str)>,
}

impl<'a> Transcoder<'a> {
    fn message(&mut self, message: &'static Message, depth: usize) -> Result<(), JsonError> {
        let mut members = self.json.begin_object()?;
        let mut seen = 0_u32;
        let mut chosen = false;
        while let Some(key) = self.json.next_key(&mut members)? {
            let Some(place) = message.by_json(&self.json.unescaped(key)?) else {
                self.ignore(key, depth)?;
                continue;
            };
            let field = &message.fields[place];
            if seen & 1 << place != 0 {
                return Err(self.problem(key.at(), field, "is there twice"));
            }
            seen |= 1 << place;
            if self.json.take_literal("null") {
                continue;
            }
            if message.oneof && chosen {
                return Err(self.problem(key.at(), field, "is a second value"));
            }
            chosen = true;
            self.field(field, message.oneof, depth)?;
        }
        Ok(())
    }

    fn ignore(&mut self, key: RawString<'a>, depth: usize) -> Result<(), JsonError> {
        if depth == 0 {
            let problem = match key.plain() {
                Some("resourceMetrics" | "resource_metrics") => Some("metrics, not traces"),
                Some("resourceLogs" | "resource_logs") => Some("logs, not traces"),
                Some("resourceProfiles" | "resource_profiles") => Some("profiles, not traces"),
                _ => None,
            };
            self.foreign = problem.map(|problem| (key.at(), problem)).or(self.foreign);
        }
        self.json.skip_value()
    }

    fn field(&mut self, field: &'static Field, in_oneof: bool, depth: usize) -> Result<(), JsonError> {
        if !field.repeated {
            return self.value(field, in_oneof, depth);
        }
        let at = self.json.place();
        let mut members = self.json.begin_list().map_err(|_| self.problem(at, field, "is not a list"))?;
        while self.json.next_item(&mut members)? {
            // Every item counts, also a default one.
            self.value(field, true, depth)?;
        }
        Ok(())
    }

    /// One value. A default is written only where it means something.
    fn value(&mut self, field: &'static Field, keep_default: bool, depth: usize) -> Result<(), JsonError> {
        match field.kind {
            Kind::Message(message) => self.nested(field, message, depth),
            Kind::String => self.string(field, keep_default),
            Kind::Bytes => self.base64(field, keep_default),
            Kind::Id(size) => self.id(field, size),
            Kind::Bool => {
                let value = self.json.take_literal("true");
                if !value && !self.json.take_literal("false") {
                    return self.fail(field, "is neither true nor false");
                }
                self.varint(field, u64::from(value), keep_default)
            }
            Kind::Int32 => {
                let value = self.integer::<i32>(field)?;
                self.varint(field, i64::from(value).cast_unsigned(), keep_default)
            }
            Kind::Uint32 => {
                let value = self.integer::<u32>(field)?;
                self.varint(field, u64::from(value), keep_default)
            }
            Kind::Int64 => {
                let value = self.integer::<i64>(field)?;
                self.varint(field, value.cast_unsigned(), keep_default)
            }
            Kind::Enum(names) => {
                let value = self.enumerator(field, names)?;
                self.varint(field, i64::from(value).cast_unsigned(), keep_default)
            }
            Kind::Fixed32 => {
                let value = self.integer::<u32>(field)?;
                self.fixed(field, I32, &value.to_le_bytes(), keep_default)
            }
            Kind::Fixed64 => {
                let value = self.integer::<u64>(field)?;
                self.fixed(field, I64, &value.to_le_bytes(), keep_default)
            }
            Kind::Double => {
                let value = self.double(field)?;
                self.fixed(field, I64, &value.to_le_bytes(), keep_default)
            }
        }
    }

    fn nested(&mut self, field: &Field, message: &'static Message, depth: usize) -> Result<(), JsonError> {
        let at = self.json.place();
        if depth == MAX_DEPTH {
            return Err(self.problem(at, field, "is nested too deeply"));
        }
        if self.messages == MAX_MESSAGES || self.spans == MAX_SPANS && message.role == Role::Span {
            return Err(self.problem(at, field, "is one too many in one request"));
        }
        if self.json.peek() != Some(b'{') {
            return self.fail(field, "is not an object");
        }
        self.messages += 1;
        self.spans += u32::from(message.role == Role::Span);
        let open = self.wire.open(field.number);
        self.message(message, depth + 1)?;
        self.wire.close(open);
        Ok(())
    }

    fn string(&mut self, field: &Field, keep_default: bool) -> Result<(), JsonError> {
        let string = self.raw_string(field)?;
        match string.plain() {
            Some("") if !keep_default => {}
            Some(text) => self.wire.bytes(field.number, text.as_bytes()),
            None => {
                let open = self.wire.open(field.number);
                self.json.unescape(string, &mut self.wire.bytes)?;
                self.wire.close(open);
            }
        }
        Ok(())
    }

    fn base64(&mut self, field: &Field, keep_default: bool) -> Result<(), JsonError> {
        let string = self.raw_string(field)?;
        let text = self.json.unescaped(string)?;
        let engine = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
        let Ok(bytes) = engine.decode(text.as_bytes()) else {
            return Err(self.problem(string.at(), field, "is not base64"));
        };
        if keep_default || !bytes.is_empty() {
            self.wire.bytes(field.number, &bytes);
        }
        Ok(())
    }

    fn id(&mut self, field: &Field, size: usize) -> Result<(), JsonError> {
        let string = self.raw_string(field)?;
        let text = self.json.unescaped(string)?;
        if text.is_empty() {
            return Ok(());
        }
        let mut id = [0; 16];
        let id = &mut id[..size];
        if text.len() != 2 * size || !from_hex(text.as_bytes(), id) {
            return Err(self.problem(string.at(), field, "is not an id in hex of the right length"));
        }
        self.wire.bytes(field.number, id);
        Ok(())
    }

    fn enumerator(&mut self, field: &Field, names: &[&str]) -> Result<i32, JsonError> {
        let mut ahead = self.json.clone();
        if ahead.peek() == Some(b'"') {
            let string = ahead.string()?;
            let name = ahead.unescaped(string)?;
            if let Some(number) = names.iter().position(|known| *known == name).and_then(|at| i32::try_from(at).ok()) {
                self.json = ahead;
                return Ok(number);
            }
        }
        self.integer(field)
    }

    fn integer<T: TryFrom<i128>>(&mut self, field: &Field) -> Result<T, JsonError> {
        let at = self.json.place();
        let value = integer(&self.number_or_string(field)?);
        let value = value.ok_or_else(|| self.problem(at, field, "is not an integer, or out of range"))?;
        T::try_from(value).map_err(|_| self.problem(at, field, "is out of range"))
    }

    fn double(&mut self, field: &Field) -> Result<f64, JsonError> {
        let at = self.json.place();
        let text = self.number_or_string(field)?;
        match &*text {
            "NaN" => Ok(f64::NAN),
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            text => double(text).ok_or_else(|| self.problem(at, field, "is not a number, or out of range")),
        }
    }

    fn number_or_string(&mut self, field: &Field) -> Result<Cow<'a, str>, JsonError> {
        match self.json.peek() {
            Some(b'"') => {
                let string = self.json.string()?;
                self.json.unescaped(string)
            }
            Some(b'-' | b'0'..=b'9') => self.json.number().map(Cow::Borrowed),
            _ => self.fail(field, "is not a number"),
        }
    }

    fn raw_string(&mut self, field: &Field) -> Result<RawString<'a>, JsonError> {
        if self.json.peek() == Some(b'"') { self.json.string() } else { self.fail(field, "is not a string") }
    }

    fn varint(&mut self, field: &Field, value: u64, keep_default: bool) -> Result<(), JsonError> {
        if keep_default || value != 0 {
            put_tag(&mut self.wire.bytes, field.number, VARINT);
            put_varint(&mut self.wire.bytes, value);
        }
        Ok(())
    }

    fn fixed(&mut self, field: &Field, wire_type: u32, value: &[u8], keep_default: bool) -> Result<(), JsonError> {
        if keep_default || value.iter().any(|byte| *byte != 0) {
            put_tag(&mut self.wire.bytes, field.number, wire_type);
            self.wire.bytes.extend_from_slice(value);
        }
        Ok(())
    }

    /// An error at the next token.
    fn fail<T>(&mut self, field: &Field, problem: &str) -> Result<T, JsonError> {
        let at = self.json.place();
        Err(self.problem(at, field, problem))
    }

    #[cold]
    fn problem(&self, at: usize, field: &Field, problem: &str) -> JsonError {
        self.json.error_at(at, &format!("{} {problem}", field.json))
    }
}

/// Writes messages whose lengths are known only when they are complete: the bytes go to one buffer, without the lengths
/// of what is still open, and these are woven in at the end. Every byte is moved once, however deep it lies.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// Where a length belongs, in order, and the length.
    lengths: Vec<(usize, usize)>,
    /// The size of all lengths in `lengths` that are known.
    size_of_lengths: usize,
}

/// A message that is being written: its place in [`Writer::lengths`], and [`Writer::size_of_lengths`] before it.
pub(super) struct Open {
    length: usize,
    size_of_lengths: usize,
}

impl Writer {
    pub(super) fn open(&mut self, number: u32) -> Open {
        put_tag(&mut self.bytes, number, LEN);
        self.lengths.push((self.bytes.len(), 0));
        Open { length: self.lengths.len() - 1, size_of_lengths: self.size_of_lengths }
    }

    /// How many messages were opened; each costs memory of its own.
    pub(super) fn messages(&self) -> usize {
        self.lengths.len()
    }

    pub(super) fn close(&mut self, open: Open) {
        let (start, length) = &mut self.lengths[open.length];
        *length = self.bytes.len() - *start + (self.size_of_lengths - open.size_of_lengths);
        self.size_of_lengths += length_size(*length);
    }

    pub(super) fn bytes(&mut self, number: u32, bytes: &[u8]) {
        put_tag(&mut self.bytes, number, LEN);
        put_length(&mut self.bytes, bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn varint(&mut self, number: u32, value: u64) {
        put_tag(&mut self.bytes, number, VARINT);
        put_varint(&mut self.bytes, value);
    }

    pub(super) fn fixed32(&mut self, number: u32, value: u32) {
        put_tag(&mut self.bytes, number, I32);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn fixed64(&mut self, number: u32, value: u64) {
        put_tag(&mut self.bytes, number, I64);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes.len() + self.size_of_lengths);
        let mut done = 0;
        for (start, length) in self.lengths {
            out.extend_from_slice(&self.bytes[done..start]);
            put_length(&mut out, length);
            done = start;
        }
        out.extend_from_slice(&self.bytes[done..]);
        out
    }
}

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);

pub(super) fn from_hex(text: &[u8], id: &mut [u8]) -> bool {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    text.chunks_exact(2).zip(id).all(|(pair, byte)| match (digit(pair[0]), digit(pair[1])) {
        (Some(high), Some(low)) => {
            *byte = high << 4 | low;
            true
        }
        _ => false,
    })
}

/// The exact integer that a decimal number stands for, if it is one and fits in 64 bits, signed or not.
pub(super) fn integer(text: &str) -> Option<i128> {
    let (digits, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], exponent(&text[at + 1..])),
        None => (text, 0),
    };
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, digits),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || number_length(text.as_bytes()) != Some(text.len()) {
        return None;
    }
    // Without zeros at either end, the digits are those of an integer when the exponent does not cut into them.
    let digits = whole.bytes().chain(fraction.bytes());
    let mut exponent = exponent - i64::try_from(fraction.len()).ok()?;
    let mut value = 0_i128;
    let mut zeros = 0_u32;
    for digit in digits {
        if digit == b'0' {
            zeros += u32::from(value != 0);
            continue;
        }
        value = times_ten(value, i64::from(zeros) + 1)? + i128::from(digit - b'0');
        zeros = 0;
    }
    exponent += i64::from(zeros);
    if value != 0 {
        value = if exponent < 0 { return None } else { times_ten(value, exponent)? };
    }
    Some(if negative { -value } else { value })
}

/// Of more digits than fit in 64 bits no number is made.
fn times_ten(value: i128, times: i64) -> Option<i128> {
    let factor = 10_i128.checked_pow(u32::try_from(times).ok()?)?;
    value.checked_mul(factor).filter(|value| *value < 1 << 70)
}

/// An exponent; one that is too large for any number is as good as another.
fn exponent(text: &str) -> i64 {
    const LARGE: i64 = 1 << 40;
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let value =
        digits.bytes().fold(0_i64, |value, digit| (value * 10 + i64::from(digit.wrapping_sub(b'0'))).min(LARGE));
    if negative { -value } else { value }
}

/// A finite double, if the text is a number by the grammar of JSON.
pub(super) fn double(text: &str) -> Option<f64> {
    let number = number_length(text.as_bytes()) == Some(text.len());
    text.parse().ok().filter(|value: &f64| number && value.is_finite())
}

/// Appends a validated request as one line of OTLP JSON, without the line end, to `out`.
///
/// As the Collector's file exporter writes it: lowerCamelCase names in the order of the `.proto` files, identifiers in
/// lower-case hex, 64-bit integers as strings, enums as numbers, defaults left out. Unknown fields have no place in
/// JSON. On bytes that were not validated, what can't be read is left out.
pub fn from_wire(request: &[u8], out: &mut Vec<u8>) {
    write_message(request, &REQUEST, 0, &mut Vec::new(), out);
}

/// A field of a message on its way to JSON.
type Known<'a> = (&'static Field, Value<'a>);

/// Writes one message. The fields of the open messages lie in `fields`, those of this one at its end; it serves all
/// levels so that none allocates its own.
fn write_message<'a>(
    message: &'a [u8],
    schema: &'static Message,
    depth: usize,
    fields: &mut Vec<Known<'a>>,
    out: &mut Vec<u8>,
) {
    let base = fields.len();
    collect(message, schema, fields);
    out.push(b'{');
    let mut next = base;
    while next < fields.len() {
        let field = fields[next].0;
        let same = fields[next..].iter().take_while(|(other, _)| other.number == field.number).count();
        let group = next..next + same;
        next += same;
        if field.repeated {
            write_name(field, out);
            out.push(b'[');
            for at in group {
                write_value(fields[at], depth, fields, out);
                out.push(b',');
            }
            out.pop();
            out.extend_from_slice(b"],");
        } else if let Kind::Message(inner) = field.kind {
            write_name(field, out);
            write_merged(&group, inner, depth, fields, out);
            out.push(b',');
        } else {
            let last = fields[group.end - 1];
            if schema.oneof || !is_default(last.1) {
                write_name(field, out);
                write_value(last, depth, fields, out);
                out.push(b',');
            }
        }
    }
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(b'}');
    fields.truncate(base);
}

/// Appends the known fields of a message in the order of their numbers: they may come in any order, and those of one
/// list need not stand together. Of a `oneof` only what counts is left.
fn collect<'a>(message: &'a [u8], schema: &'static Message, fields: &mut Vec<Known<'a>>) {
    let base = fields.len();
    let known = |field: super::wire::FieldOnWire<'a>| schema.field(field.number).map(|known| (known, field.value));
    fields.extend(Fields::of(message).filter_map(known).filter(|(field, _)| !field.json.is_empty()));
    let mine = &mut fields[base..];
    if schema.oneof {
        // The last member counts, with those of its kind directly before it: messages merge.
        if let Some((last, _)) = mine.last() {
            let others = mine.iter().rposition(|(field, _)| field.number != last.number).map_or(0, |at| at + 1);
            fields.drain(base..base + others);
        }
    } else if !mine.is_sorted_by_key(|(field, _)| field.number) {
        mine.sort_by_key(|(field, _)| field.number);
    }
}

/// Writes a message that is in several places: on the wire, messages in a row are one message (proto encoding.md,
/// "Last One Wins").
fn write_merged<'a>(
    group: &std::ops::Range<usize>,
    schema: &'static Message,
    depth: usize,
    fields: &mut Vec<Known<'a>>,
    out: &mut Vec<u8>,
) {
    if group.len() == 1 {
        return write_value(fields[group.start], depth, fields, out);
    }
    let parts = fields[group.clone()].iter().filter_map(|(_, value)| match value {
        Value::Len(bytes) => Some(*bytes),
        _ => None,
    });
    let merged = parts.collect::<Vec<_>>().concat();
    if depth < MAX_DEPTH {
        write_message(&merged, schema, depth + 1, &mut Vec::new(), out);
    } else {
        out.extend_from_slice(b"{}");
    }
}

fn write_name(field: &Field, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(field.json.as_bytes());
    out.extend_from_slice(b"\":");
}

fn is_default(value: Value<'_>) -> bool {
    matches!(value, Value::Varint(0) | Value::I64(0) | Value::I32(0) | Value::Len([]))
}

#[expect(clippy::cast_possible_truncation, reason = "decoders cut integers to the size of their type as well")]
fn write_value<'a>((field, value): Known<'a>, depth: usize, fields: &mut Vec<Known<'a>>, out: &mut Vec<u8>) {
    match (field.kind, value) {
        (Kind::Message(schema), Value::Len(message)) if depth < MAX_DEPTH => {
            write_message(message, schema, depth + 1, fields, out);
        }
        (Kind::String, Value::Len(text)) => write_string(&String::from_utf8_lossy(text), out),
        (Kind::Bytes, Value::Len(bytes)) => write_quoted(&STANDARD.encode(bytes), out),
        (Kind::Id(_), Value::Len(id)) => write_hex(id, out),
        (Kind::Bool, Value::Varint(value)) => out.extend_from_slice(if value == 0 { b"false" } else { b"true" }),
        (Kind::Int32 | Kind::Enum(_), Value::Varint(value)) => write_plain(value as u32 as i32, out),
        (Kind::Uint32, Value::Varint(value)) => write_plain(value as u32, out),
        (Kind::Int64, Value::Varint(value)) => write_quoted(&value.cast_signed().to_string(), out),
        (Kind::Fixed32, Value::I32(value)) => write_plain(value, out),
        (Kind::Fixed64, Value::I64(value)) => write_quoted(&value.to_string(), out),
        (Kind::Double, Value::I64(value)) => write_double(f64::from_bits(value), out),
        // Never on validated bytes.
        _ => out.extend_from_slice(if matches!(field.kind, Kind::Message(_)) { b"{}" } else { b"null" }),
    }
}

fn write_plain(value: impl std::fmt::Display, out: &mut Vec<u8>) {
    out.extend_from_slice(value.to_string().as_bytes());
}

/// Writes text that needs no escapes.
fn write_quoted(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// The shortest digits that read back to the same double; JSON has no numbers for what is not finite.
fn write_double(value: f64, out: &mut Vec<u8>) {
    match value {
        value if value.is_nan() => write_quoted("NaN", out),
        f64::INFINITY => write_quoted("Infinity", out),
        f64::NEG_INFINITY => write_quoted("-Infinity", out),
        value => out.extend_from_slice(format!("{value:?}").as_bytes()),
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn write_hex(id: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in id {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    out.push(b'"');
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(plain) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)) {
        out.extend_from_slice(&rest[..plain]);
        match rest[plain] {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            byte => out.extend_from_slice(&[
                b'\\',
                b'u',
                b'0',
                b'0',
                HEX[usize::from(byte >> 4)],
                HEX[usize::from(byte & 15)],
            ]),
        }
        rest = &rest[plain + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
    use opentelemetry_proto::tonic::trace::v1::Span;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::super::samples::{self, Request, SAMPLES, decode};
    use super::super::validate;
    use super::*;

    fn transcode(json: &str) -> Result<Request, JsonError> {
        let wire = to_wire(json.as_bytes())?;
        if let Err(invalid) = validate(&wire) {
            panic!("{json}: {invalid}");
        }
        Ok(decode(&wire))
    }

    fn in_span(members: &str) -> String {
        format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{members}}}]}}]}}]}}"#)
    }

    fn span(members: &str) -> Span {
        match transcode(&in_span(members)) {
            Ok(request) => request.resource_spans[0].scope_spans[0].spans[0].clone(),
            Err(error) => panic!("{members}: {error}"),
        }
    }

    fn span_problem(members: &str) -> String {
        match transcode(&in_span(members)) {
            Ok(request) => panic!("{members} is taken as {request:?}"),
            Err(error) => error.problem,
        }
    }

    fn value(json: &str) -> AnyValue {
        span(&format!(r#""attributes":[{{"key":"k","value":{json}}}]"#)).attributes[0].value.clone().expect("a value")
    }

    fn chosen(json: &str) -> Option<Any> {
        value(json).value
    }

    fn value_problem(json: &str) -> String {
        span_problem(&format!(r#""attributes":[{{"key":"k","value":{json}}}]"#))
    }

    fn to_json(request: &[u8]) -> String {
        let mut out = Vec::new();
        from_wire(request, &mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    // J17.
    #[test]
    fn real_documents_are_their_messages() {
        for sample in SAMPLES {
            let wire = to_wire(sample.json).expect("a document");
            assert_eq!(decode(&wire), decode(sample.pb), "{}", sample.name);
            assert_eq!(validate(&wire), validate(sample.pb), "{}", sample.name);
        }
    }

    #[test]
    fn real_messages_are_their_documents() {
        for sample in SAMPLES {
            let mut expected: serde_json::Value = serde_json::from_slice(sample.json).expect("JSON");
            let written: serde_json::Value = serde_json::from_str(&to_json(sample.pb)).expect("JSON");
            // The official mapping leaves out members at their default; so does this one.
            assert_eq!(written, expected.take(), "{}", sample.name);
        }
    }

    // J1, J2.
    #[test]
    fn ids_are_hex() {
        let ids = r#""traceId":"0123456789abcdefABCDEF0123456789","spanId":"00000000000000Ff","parentSpanId":"",
            "links":[{"traceId":"00000000000000000000000000000001","spanId":"0000000000000002"}]"#;
        let span = span(ids);
        assert_eq!(span.trace_id, 0x0123_4567_89ab_cdef_abcd_ef01_2345_6789_u128.to_be_bytes());
        assert_eq!(span.span_id, 255_u64.to_be_bytes());
        assert!(span.parent_span_id.is_empty());
        assert_eq!((span.links[0].trace_id.len(), span.links[0].span_id.len()), (16, 8));
        for id in
            ["0", "0x", "0123456789abcde", "0123456789abcdef0", "0x23456789abcdef", "0123456789abcdeg", "AAAAAAAAAAA="]
        {
            for name in ["traceId", "spanId", "parentSpanId"] {
                let problem = span_problem(&format!(r#""{name}":"{id}""#));
                assert_eq!(problem, format!("{name} is not an id in hex of the right length"), "{id}");
                span_problem(&format!(r#""links":[{{"{name}":"{id}"}}],"links":[]"#));
            }
            assert!(transcode(&in_span(&format!(r#""links":[{{"spanId":"{id}"}}]"#))).is_err());
        }
        assert_eq!(span_problem(r#""traceId":7"#), "traceId is not a string");
    }

    // J3, J7.
    #[test]
    fn enums_are_numbers_or_names() {
        for (json, kind) in
            [("3", 3), ("\"3\"", 3), ("\"SPAN_KIND_CLIENT\"", 3), ("99", 99), ("-1", -1), ("null", 0), ("3.0", 3)]
        {
            assert_eq!(span(&format!(r#""kind":{json}"#)).kind, kind, "{json}");
        }
        assert_eq!(span(r#""status":{"code":"STATUS_CODE_ERROR"}"#).status.expect("a status").code, 2);
        for json in ["\"CLIENT\"", "\"span_kind_client\"", "\"\"", "2147483648", "1.5", "true", "[]"] {
            assert!(transcode(&in_span(&format!(r#""kind":{json}"#))).is_err(), "{json}");
        }
    }

    // J4.
    #[test]
    fn unknown_names_are_ignored_everywhere() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for unknown in ["1", "\"x\"", "null", "{\"a\":[{}]}", &deep] {
            let x = format!(r#""x":{unknown}"#);
            let json = format!(
                r#"{{{x},"resourceSpans":[{{{x},"resource":{{{x}}},"scopeSpans":[{{{x},"scope":{{{x}}},"spans":[{{{x},
                "name":"n","attributes":[{{{x},"key":"k","value":{{{x},"stringValue":"v",{x}}}}}],"events":[{{{x}}}],
                "links":[{{{x}}}],"status":{{{x},"code":2}}}}]}}]}}]}}"#
            );
            let request = transcode(&json).expect("a document");
            let span = &request.resource_spans[0].scope_spans[0].spans[0];
            assert_eq!((span.name.as_str(), span.events.len(), span.links.len()), ("n", 1, 1));
            assert_eq!(samples::text_of(&span.attributes[0]), Some("v"));
        }
        assert_eq!(transcode(r#"{"deprecatedScopeSpans":1,"":2}"#).expect("a document"), Request::default());
    }

    // J5.
    #[test]
    fn names_are_camel_case_or_snake_case() {
        let snake = r#"{"resource_spans":[{"scope_spans":[{"spans":[{"start_time_unix_nano":"7",
            "attributes":[{"key":"k","value":{"int_value":1}}]}]}]}]}"#;
        let span = &transcode(snake).expect("a document").resource_spans[0].scope_spans[0].spans[0];
        assert_eq!((span.start_time_unix_nano, span.attributes.len()), (7, 1));
        assert!(transcode(&in_span(r#""traceState":"a","trace_state":"a""#)).is_err());
        assert_eq!(self::span(r#""n\u0061me":"escaped""#).name, "escaped");
    }

    // J6, J7, J8.
    #[test]
    fn integers_are_numbers_or_strings() {
        let times: [(&str, u64); 10] = [
            ("1795358453644680929", 1_795_358_453_644_680_929),
            ("18446744073709551615", u64::MAX),
            ("0", 0),
            ("-0", 0),
            ("1.0", 1),
            ("1e2", 100),
            ("1.5E+1", 15),
            ("1200e-2", 12),
            ("0.00000000000000000000000000000001e32", 1),
            ("0e999999999999999999999", 0),
        ];
        for (text, number) in times {
            for json in [text.to_owned(), format!("\"{text}\"")] {
                assert_eq!(span(&format!(r#""startTimeUnixNano":{json}"#)).start_time_unix_nano, number, "{json}");
            }
        }
        let bad = [
            "18446744073709551616",
            "-1",
            "1.5",
            "1e-1",
            "1e20",
            "1e999999999999999999999",
            "\"\"",
            "\" 1\"",
            "\"+1\"",
            "\"0x1\"",
            "\"one\"",
            "true",
            "[]",
            "{}",
            "\"NaN\"",
            "\"1_000\"",
            "123456789012345678901234567890123456789012345678901",
        ];
        for json in bad {
            assert!(transcode(&in_span(&format!(r#""startTimeUnixNano":{json}"#))).is_err(), "{json}");
        }
        for (json, number) in
            [("\"-9223372036854775808\"", i64::MIN), ("9223372036854775807", i64::MAX), ("\"0\"", 0), ("-12e1", -120)]
        {
            assert_eq!(chosen(&format!(r#"{{"intValue":{json}}}"#)), Some(Any::IntValue(number)), "{json}");
        }
        for json in ["9223372036854775808", "\"-9223372036854775809\"", "0.1"] {
            assert!(value_problem(&format!(r#"{{"intValue":{json}}}"#)).starts_with("intValue is"), "{json}");
        }
        for name in ["flags", "droppedAttributesCount", "droppedEventsCount", "droppedLinksCount"] {
            for json in ["4294967295", "\"4294967295\"", "4294967295.0"] {
                assert_ne!(span(&format!(r#""{name}":{json}"#)), Span::default(), "{name} {json}");
            }
            for json in ["4294967296", "-1", "\"-1\"", "0.5"] {
                assert!(transcode(&in_span(&format!(r#""{name}":{json}"#))).is_err(), "{name} {json}");
            }
        }
    }

    // J9.
    #[test]
    fn doubles_are_numbers_or_strings() {
        let doubles = [
            ("1", 1.0),
            ("1.5", 1.5),
            ("-0.0", -0.0),
            ("1e-400", 0.0),
            ("1.7976931348623157e308", f64::MAX),
            ("0", 0.0),
        ];
        for (text, double) in doubles {
            for json in [text.to_owned(), format!("\"{text}\"")] {
                assert_eq!(chosen(&format!(r#"{{"doubleValue":{json}}}"#)), Some(Any::DoubleValue(double)), "{json}");
            }
        }
        let Some(Any::DoubleValue(nan)) = chosen(r#"{"doubleValue":"NaN"}"#) else { panic!("a double") };
        assert!(nan.is_nan());
        assert_eq!(chosen(r#"{"doubleValue":"Infinity"}"#), Some(Any::DoubleValue(f64::INFINITY)));
        assert_eq!(chosen(r#"{"doubleValue":"-Infinity"}"#), Some(Any::DoubleValue(f64::NEG_INFINITY)));
        for json in [
            "1e400",
            "\"1e400\"",
            "NaN",
            "Infinity",
            "\"inf\"",
            "\"nan\"",
            "\"infinity\"",
            "\"1.\"",
            "\".5\"",
            "\"\"",
            "true",
        ] {
            assert!(
                transcode(&in_span(&format!(r#""attributes":[{{"value":{{"doubleValue":{json}}}}}]"#))).is_err(),
                "{json}"
            );
        }
    }

    // J10, J11.
    #[test]
    fn null_is_absent_and_absent_is_default() {
        let fields =
            ["traceId", "name", "kind", "startTimeUnixNano", "attributes", "events", "links", "status", "flags"];
        for field in fields {
            assert_eq!(span(&format!(r#""{field}":null"#)), Span::default(), "{field}");
        }
        for json in
            ["{}", r#"{"doubleValue":null}"#, r#"{"stringValue":null,"intValue":null}"#, r#"{"arrayValue":null}"#]
        {
            assert_eq!(chosen(json), None, "{json}");
        }
        assert_eq!(chosen(r#"{"stringValue":null,"intValue":"1","boolValue":null}"#), Some(Any::IntValue(1)));
        assert_eq!(chosen(r#"{"arrayValue":{}}"#), Some(Any::ArrayValue(ArrayValue::default())));
        assert_eq!(chosen(r#"{"kvlistValue":{}}"#), Some(Any::KvlistValue(KeyValueList::default())));
        assert_eq!(chosen(r#"{"stringValue":""}"#), Some(Any::StringValue(String::new())));
        assert_eq!(chosen(r#"{"boolValue":false}"#), Some(Any::BoolValue(false)));
        assert_eq!(chosen(r#"{"bytesValue":""}"#), Some(Any::BytesValue(Vec::new())));
        let two = span(r#""attributes":[{},{"value":{}}]"#).attributes;
        assert_eq!(two, [KeyValue::default(), KeyValue { value: Some(AnyValue::default()), ..KeyValue::default() }]);
        let entity = r#"{"resourceSpans":[{"resource":{"entityRefs":[{"idKeys":["","a",""]}]}}]}"#;
        let resource = transcode(entity).expect("a document").resource_spans[0].resource.clone().expect("a resource");
        assert_eq!(resource.entity_refs[0].id_keys, ["", "a", ""]);
        assert_eq!(span(r#""status":{}"#).status, Some(Default::default()));
        for json in ["{}", "{\"resourceSpans\":[]}", "{\"resourceSpans\":null}", " { } "] {
            assert_eq!(transcode(json).expect("a document"), Request::default());
        }
        for json in [
            r#""attributes":[null]"#,
            r#""events":[null]"#,
            r#""attributes":[{"value":{"arrayValue":{"values":[null]}}}]"#,
        ] {
            assert!(span_problem(json).ends_with("is not an object"), "{json}");
        }
        assert!(transcode(r#"{"resourceSpans":[{"resource":{"entityRefs":[{"idKeys":["a",null]}]}}]}"#).is_err());
        assert!(transcode("null").is_err());
    }

    // J12.
    #[test]
    fn bytes_are_base64_of_every_kind() {
        for json in ["+/+/AA==", "-_-_AA==", "+/+/AA", "-_-_AA", "+/+/AB"] {
            let bytes = Any::BytesValue(vec![0xfb, 0xff, 0xbf, 0]);
            assert_eq!(chosen(&format!(r#"{{"bytesValue":"{json}"}}"#)), Some(bytes), "{json}");
        }
        for json in ["A", "A===", "A A", "+/-_", "é", "=", "AAAA\\n"] {
            assert_eq!(value_problem(&format!(r#"{{"bytesValue":"{json}"}}"#)), "bytesValue is not base64", "{json}");
        }
    }

    // J13.
    #[test]
    fn nothing_is_there_twice() {
        for json in [r#""name":"a","name":"a""#, r#""name":null,"name":"a""#, r#""events":[],"events":[]"#] {
            assert!(span_problem(json).ends_with("is there twice"), "{json}");
        }
        assert!(transcode(r#"{"resourceSpans":[],"resource_spans":[]}"#).is_err());
        assert_eq!(value_problem(r#"{"stringValue":"a","intValue":1}"#), "intValue is a second value");
        assert_eq!(value_problem(r#"{"intValue":1,"int_value":1}"#), "intValue is there twice");
        assert_eq!(span(r#""x":1,"x":2"#), Span::default());
    }

    // J14.
    #[test]
    fn nesting_ends_where_the_validator_ends() {
        let nested = |depth: usize| {
            let inner = r#"{"arrayValue":{"values":["#.repeat(depth) + &"]}}".repeat(depth);
            in_span(&format!(r#""attributes":[{{"value":{inner}}}]"#)).replace("[]", "[{}]")
        };
        // The innermost value is two levels below the one around it; the attribute's own is at level 5.
        let most = (MAX_DEPTH - 5) / 2;
        transcode(&nested(most)).expect("as deep as may be");
        let error = transcode(&nested(most + 1)).expect_err("too deep");
        assert!(error.problem.ends_with("is nested too deeply"), "{error}");
        assert!(transcode(&nested(200_000)).is_err());
    }

    // J15.
    #[test]
    fn what_is_no_text_is_refused() {
        for json in [
            &b"{}x"[..],
            b"{}{}",
            b"\xef\xbb\xbf{}",
            b"",
            b"[]",
            b"\"\"",
            b"{\"a\":\"\xff\"}",
            b"{\"a\":\"\\ud800\"}",
            b"{\"\\udfff\":1}",
        ] {
            assert!(to_wire(json).is_err(), "{json:?}");
        }
        assert_eq!(span_problem(r#""name":"a\ud83e""#), "an escape that is no character");
        assert_eq!(span(r#""name":"\ud83e\udd80\u0000é""#).name, "🦀\0é");
    }

    #[test]
    fn an_error_has_a_place_and_no_payload() {
        let json = "{\n \"resourceSpans\": [\n  {\"schemaUrl\": 17}]}";
        let error = to_wire(json.as_bytes()).expect_err("refused");
        assert_eq!(error.to_string(), "line 3, column 17: schemaUrl is not a string");
        for secret in [r#""name":secret"#, r#""kind":"secret""#, r#""secret":secret"#, r#""traceId":"secret""#] {
            assert!(!to_wire(in_span(secret).as_bytes()).expect_err("refused").to_string().contains("secret"));
        }
    }

    // F2.
    #[test]
    fn other_signals_are_no_empty_requests() {
        for name in ["resourceMetrics", "resource_logs", "resourceProfiles"] {
            assert!(transcode(&format!(r#"{{"{name}":[]}}"#)).is_err(), "{name}");
            // Beside traces it is an unknown name like others.
            assert!(transcode(&format!(r#"{{"{name}":[],"resourceSpans":[{{}}]}}"#)).is_ok(), "{name}");
        }
    }

    #[test]
    fn lengths_of_every_size_are_woven_in() {
        for size in [0, 1, 100, 127, 128, 16_000, 16_384, 2_097_152] {
            // Once plain, once with an escape, which has its length written later.
            for text in ["a".repeat(size), "a".repeat(size) + "\\n"] {
                let span = span(&format!(r#""name":"{text}","traceState":"t""#));
                assert_eq!((span.name.len(), span.trace_state.as_str()), (text.replace("\\n", "n").len(), "t"));
            }
        }
    }

    #[test]
    fn json_is_written_as_the_collector_writes_it() {
        let json = concat!(
            r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"a","value":{"stringValue":"\"\\\n\u0001é"}},"#,
            r#"{"key":"b","value":{"intValue":"-9007199254740993"}},{"key":"c","value":{"doubleValue":1e21}},"#,
            r#"{"key":"d","value":{"doubleValue":"NaN"}},{"key":"e","value":{"bytesValue":"+/8="}},{"key":"f","value":{}},"#,
            r#"{"key":"g","value":{"boolValue":false}},{"key":"h"},{"key":"i","value":{"arrayValue":{"values":[{},{"stringValue":""}]}}},"#,
            r#"{"key":"j","value":{"kvlistValue":{}}},{"key":"k","value":{"doubleValue":0.1}}]},"#,
            r#""scopeSpans":[{"scope":{},"spans":[{"traceId":"0123456789abcdef0123456789abcdef","spanId":"0123456789abcdef","#,
            r#""name":"n","kind":2,"startTimeUnixNano":"18446744073709551615","droppedLinksCount":4294967295,"#,
            r#""status":{"code":2},"flags":256},{}]}]}]}"#,
        );
        assert_eq!(to_json(&to_wire(json.as_bytes()).expect("a document")), json);
        assert_eq!(to_json(&[]), "{}");
    }

    #[test]
    fn fields_in_any_order_and_in_parts_are_written_as_they_are_read() {
        let wrap = samples::wrap;
        let resource = |dropped: u8| wrap(&[1], &[0x10, dropped]);
        let list = |item: u8| wrap(&[5, 1], &[0x10, item]);
        let text = wrap(&[1], b"text");
        let in_resource_spans = |parts: &[Vec<u8>]| wrap(&[1], &parts.concat());
        let in_value = |parts: &[Vec<u8>]| wrap(&[1, 1, 1, 2], &parts.concat());
        let requests = [
            in_resource_spans(&[wrap(&[3], b"url"), wrap(&[2], b""), resource(1)]),
            in_resource_spans(&[wrap(&[2, 3], b"a"), resource(1), wrap(&[2, 3], b"b")]),
            in_resource_spans(&[resource(1), resource(2), wrap(&[1, 1, 1], b"key")]),
            in_resource_spans(&[wrap(&[3], b"a"), wrap(&[3], b"b")]),
            in_resource_spans(&[wrap(&[3], b"a"), wrap(&[3], b"")]),
            in_value(&[list(0), list(1)]),
            in_value(&[list(1), text.clone()]),
            in_value(&[list(1), text.clone(), list(0)]),
            in_value(&[text, list(1)]),
        ];
        for request in requests {
            validate(&request).expect("a request");
            let json = to_json(&request);
            assert_eq!(transcode(&json).expect("a document"), decode(&request), "{json}");
        }
    }

    #[test]
    fn bytes_that_were_not_validated_do_no_harm() {
        let deep = (0..5000).fold(Vec::new(), |inner: Vec<u8>, level| {
            let mut out = Vec::new();
            put_tag(&mut out, if level % 2 == 0 { 1 } else { 5 }, LEN);
            put_length(&mut out, inner.len());
            [out, inner].concat()
        });
        let value = samples::wrap(&[1, 2, 2, 9, 2], &[&[0x2a][..], &deep].concat());
        for request in [&b"\xff\xff"[..], &[0x0a, 9], &[0x0a, 2, 0x1a, 200], &[0x08, 1], &value] {
            let json = to_json(request);
            assert!(serde_json::from_str::<Box<serde_json::value::RawValue>>(&json).is_ok() || json.len() > 100);
        }
    }

    proptest! {
        // J17.
        #[test]
        fn there_and_back_is_the_same_message(request in samples::request()) {
            let bytes = request.encode_to_vec();
            let json = to_json(&bytes);
            let back = to_wire(json.as_bytes());
            prop_assert!(back.is_ok(), "{json}: {back:?}");
            let back = back.unwrap_or_default();
            prop_assert_eq!(decode(&back), request, "{}", json);
            prop_assert_eq!(validate(&back), validate(&bytes));
        }

        #[test]
        fn doubles_are_written_exactly(bits in any::<u64>()) {
            let double = f64::from_bits(bits);
            let mut out = Vec::new();
            write_double(double, &mut out);
            let json = String::from_utf8(out).expect("ASCII");
            let Some(Any::DoubleValue(back)) = chosen(&format!(r#"{{"doubleValue":{json}}}"#)) else { panic!("a double") };
            prop_assert!(back.to_bits() == bits || back.is_nan() && double.is_nan());
        }

        #[test]
        fn changed_documents_never_make_bad_requests(
            sample in 0..SAMPLES.len(), place in any::<u16>(), bytes in prop::collection::vec(any::<u8>(), 0..3), cut in 0..3_usize,
        ) {
            let mut json = SAMPLES[sample].json.to_vec();
            let at = json.len() * usize::from(place) / 65536;
            json.splice(at..(at + cut).min(json.len()), bytes);
            if let Ok(wire) = to_wire(&json) {
                prop_assert!(validate(&wire).is_ok());
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&json).is_ok());
            }
        }
    }
}
