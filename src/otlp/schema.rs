//! The trace messages of OTLP as tables: which field has which number, name and type.
//!
//! Read from `trace.proto`, `common.proto`, `resource.proto` and `trace_service.proto` of opentelemetry-proto 1.11.
//! The validator, the JSON reader and the JSON writer are all driven by them, so that the three can't disagree.

/// One message type.
pub(super) struct Message {
    /// In order of their numbers.
    pub(super) fields: &'static [Field],
    /// Whether all its fields are the members of one `oneof`.
    pub(super) oneof: bool,
    /// What the validator looks for in it.
    pub(super) role: Role,
}

/// The messages from which the validator takes something down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Span,
    Resource,
    KeyValue,
    AnyValue,
    Other,
}

/// One field of a message type.
pub(super) struct Field {
    pub(super) number: u32,
    /// As in the `.proto` file.
    pub(super) name: &'static str,
    /// As in JSON; empty for a field that JSON has no place for.
    pub(super) json: &'static str,
    pub(super) kind: Kind,
    pub(super) repeated: bool,
}

/// The type of a field.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Message(&'static Message),
    String,
    Bytes,
    /// An identifier of so many bytes: plain bytes on the wire, hex in JSON (OTLP specification, "JSON Protobuf
    /// Encoding").
    Id(usize),
    Bool,
    Int32,
    Uint32,
    Int64,
    Fixed32,
    Fixed64,
    Double,
    /// An enum, with the names of its numbers from 0.
    Enum(&'static [&'static str]),
}

impl Message {
    /// The field of this number, if it is known.
    #[inline]
    pub(super) fn field(&self, number: u32) -> Option<&'static Field> {
        // Nearly all messages number their fields without gaps.
        match self.fields.get((number as usize).wrapping_sub(1)) {
            Some(field) if field.number == number => Some(field),
            _ => self.fields.iter().find(|field| field.number == number),
        }
    }

    /// The place in [`Message::fields`] of the field of this name in JSON. The name of the `.proto` file is taken too:
    /// OTLP calls it invalid, but the Collector takes it, and ignoring it would lose data.
    pub(super) fn by_json(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| !field.json.is_empty() && (field.json == name || field.name == name))
    }
}

const fn one(number: u32, name: &'static str, json: &'static str, kind: Kind) -> Field {
    Field { number, name, json, kind, repeated: false }
}

const fn many(number: u32, name: &'static str, json: &'static str, kind: Kind) -> Field {
    Field { number, name, json, kind, repeated: true }
}

const fn message(fields: &'static [Field]) -> Message {
    with_role(Role::Other, fields)
}

const fn with_role(role: Role, fields: &'static [Field]) -> Message {
    Message { fields, oneof: false, role }
}

/// `ExportTraceServiceRequest`, and `TracesData`, which is the same on the wire and in JSON.
pub(super) static REQUEST: Message =
    message(&[many(1, "resource_spans", "resourceSpans", Kind::Message(&RESOURCE_SPANS))]);

/// The number of [`RESOURCE_SPANS`]' last field. Other readers than the Collector don't know it.
pub(super) const DEPRECATED_SCOPE_SPANS: u32 = 1000;

static RESOURCE_SPANS: Message = message(&[
    one(1, "resource", "resource", Kind::Message(&RESOURCE)),
    many(2, "scope_spans", "scopeSpans", Kind::Message(&SCOPE_SPANS)),
    one(3, "schema_url", "schemaUrl", Kind::String),
    // `instrumentation_library_spans` of OTLP before 0.15. The Collector still reads it, as scope spans.
    many(DEPRECATED_SCOPE_SPANS, "deprecated_scope_spans", "", Kind::Message(&SCOPE_SPANS)),
]);

static RESOURCE: Message = with_role(
    Role::Resource,
    &[
        many(1, "attributes", "attributes", Kind::Message(&KEY_VALUE)),
        one(2, "dropped_attributes_count", "droppedAttributesCount", Kind::Uint32),
        many(3, "entity_refs", "entityRefs", Kind::Message(&ENTITY_REF)),
    ],
);

static ENTITY_REF: Message = message(&[
    one(1, "schema_url", "schemaUrl", Kind::String),
    one(2, "type", "type", Kind::String),
    many(3, "id_keys", "idKeys", Kind::String),
    many(4, "description_keys", "descriptionKeys", Kind::String),
]);

static SCOPE_SPANS: Message = message(&[
    one(1, "scope", "scope", Kind::Message(&SCOPE)),
    many(2, "spans", "spans", Kind::Message(&SPAN)),
    one(3, "schema_url", "schemaUrl", Kind::String),
]);

static SCOPE: Message = message(&[
    one(1, "name", "name", Kind::String),
    one(2, "version", "version", Kind::String),
    many(3, "attributes", "attributes", Kind::Message(&KEY_VALUE)),
    one(4, "dropped_attributes_count", "droppedAttributesCount", Kind::Uint32),
]);

static SPAN: Message = with_role(
    Role::Span,
    &[
        one(1, "trace_id", "traceId", Kind::Id(16)),
        one(2, "span_id", "spanId", Kind::Id(8)),
        one(3, "trace_state", "traceState", Kind::String),
        one(4, "parent_span_id", "parentSpanId", Kind::Id(8)),
        one(5, "name", "name", Kind::String),
        one(6, "kind", "kind", Kind::Enum(SPAN_KINDS)),
        one(7, "start_time_unix_nano", "startTimeUnixNano", Kind::Fixed64),
        one(8, "end_time_unix_nano", "endTimeUnixNano", Kind::Fixed64),
        many(9, "attributes", "attributes", Kind::Message(&KEY_VALUE)),
        one(10, "dropped_attributes_count", "droppedAttributesCount", Kind::Uint32),
        many(11, "events", "events", Kind::Message(&EVENT)),
        one(12, "dropped_events_count", "droppedEventsCount", Kind::Uint32),
        many(13, "links", "links", Kind::Message(&LINK)),
        one(14, "dropped_links_count", "droppedLinksCount", Kind::Uint32),
        one(15, "status", "status", Kind::Message(&STATUS)),
        one(16, "flags", "flags", Kind::Fixed32),
    ],
);

const SPAN_KINDS: &[&str] = &[
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];

static EVENT: Message = message(&[
    one(1, "time_unix_nano", "timeUnixNano", Kind::Fixed64),
    one(2, "name", "name", Kind::String),
    many(3, "attributes", "attributes", Kind::Message(&KEY_VALUE)),
    one(4, "dropped_attributes_count", "droppedAttributesCount", Kind::Uint32),
]);

static LINK: Message = message(&[
    one(1, "trace_id", "traceId", Kind::Id(16)),
    one(2, "span_id", "spanId", Kind::Id(8)),
    one(3, "trace_state", "traceState", Kind::String),
    many(4, "attributes", "attributes", Kind::Message(&KEY_VALUE)),
    one(5, "dropped_attributes_count", "droppedAttributesCount", Kind::Uint32),
    one(6, "flags", "flags", Kind::Fixed32),
]);

// Field 1 is reserved; what old senders put there is skipped like any unknown field.
static STATUS: Message = message(&[
    one(2, "message", "message", Kind::String),
    one(3, "code", "code", Kind::Enum(&["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"])),
]);

static KEY_VALUE: Message = with_role(
    Role::KeyValue,
    &[
        one(1, "key", "key", Kind::String),
        one(2, "value", "value", Kind::Message(&ANY_VALUE)),
        one(3, "key_strindex", "keyStrindex", Kind::Int32),
    ],
);

static ANY_VALUE: Message = Message {
    oneof: true,
    role: Role::AnyValue,
    fields: &[
        one(1, "string_value", "stringValue", Kind::String),
        one(2, "bool_value", "boolValue", Kind::Bool),
        one(3, "int_value", "intValue", Kind::Int64),
        one(4, "double_value", "doubleValue", Kind::Double),
        one(5, "array_value", "arrayValue", Kind::Message(&ARRAY_VALUE)),
        one(6, "kvlist_value", "kvlistValue", Kind::Message(&KEY_VALUE_LIST)),
        one(7, "bytes_value", "bytesValue", Kind::Bytes),
        one(8, "string_value_strindex", "stringValueStrindex", Kind::Int32),
    ],
};

static ARRAY_VALUE: Message = message(&[many(1, "values", "values", Kind::Message(&ANY_VALUE))]);

static KEY_VALUE_LIST: Message = message(&[many(1, "values", "values", Kind::Message(&KEY_VALUE))]);
