"""A4: the JSON encoding, as a receiver reads it. What is shipped is compared with what the protobuf library makes of it."""

import json
import math
import random
import uuid

import pytest
from opentelemetry.proto.trace.v1 import trace_pb2 as trace

from peers import SEED, wait_until
from peers.door import JSON, REFUSED, status_of
from peers.otlp import make_request, request_as_json

TRACE_ID, SPAN_ID = "0123456789abcdefABCDEF0123456789", "00000000000000Ff"


def document(members="", name=None):
    name = f'"name":"{name}"' + ("," if members else "") if name else ""
    return f'{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{name}{members}}}]}}]}}]}}'


def taken(door, members):
    """The span that a document with these members becomes."""
    name = uuid.uuid4().hex
    answer = door.post(document(members, name), JSON)
    assert answer.ok, (members, answer.body)
    return door.span_named(name)


def refused(door, members):
    answer = door.post(document(members, REFUSED), JSON)
    assert answer.status == 400, f"{members} was answered with {answer.status}"
    assert status_of(answer).message


def value(door, json_value):
    return taken(door, f'"attributes":[{{"key":"k","value":{json_value}}}]').attributes[0].value


def test_a4_1_ids_are_hex_in_either_case_in_links_too(door):
    span = taken(door, f'"traceId":"{TRACE_ID}","spanId":"{SPAN_ID}","parentSpanId":"{SPAN_ID}","links":[{{"traceId":"{TRACE_ID}","spanId":"{SPAN_ID}"}}]')
    assert span.trace_id == span.links[0].trace_id == bytes.fromhex(TRACE_ID)
    assert span.span_id == span.parent_span_id == span.links[0].span_id == bytes.fromhex(SPAN_ID)


def test_a4_2_an_empty_id_is_an_absent_one_and_any_other_length_is_an_error(door):
    span = taken(door, '"traceId":"","spanId":"","parentSpanId":"","links":[{"traceId":"","spanId":""}]')
    assert span.trace_id == span.span_id == span.parent_span_id == span.links[0].trace_id == b""
    bad = ["0", "0x" + TRACE_ID[2:], TRACE_ID[1:], TRACE_ID + "0", TRACE_ID[:-1] + "g", "ASNFZ4mrze+rze8BI0VniQ==", " " + TRACE_ID[1:], SPAN_ID]
    for id_ in bad:
        refused(door, f'"traceId":"{id_}"')
        refused(door, f'"links":[{{"traceId":"{id_}"}}]')
    for id_ in ["0", "0x" + SPAN_ID[2:], SPAN_ID[1:], SPAN_ID + "0", TRACE_ID, SPAN_ID[:-1] + "G"]:
        for name in ["spanId", "parentSpanId"]:
            refused(door, f'"{name}":"{id_}"')
    refused(door, '"traceId":7')
    refused(door, '"traceId":["00"]')


@pytest.mark.parametrize("text, kind", [("3", 3), ('"3"', 3), ('"SPAN_KIND_CLIENT"', 3), ("3.0", 3), ("30e-1", 3), ("77", 77), ("-1", -1), ("null", 0)])
def test_a4_3_enums_are_integers_and_names_are_taken_too(door, text, kind):
    assert taken(door, f'"kind":{text}').kind == kind
    code = text.replace("SPAN_KIND_CLIENT", "STATUS_CODE_ERROR")
    assert taken(door, f'"status":{{"code":{code}}}').status.code == (2 if "ERROR" in code else kind)


@pytest.mark.parametrize("text", ['"CLIENT"', '"span_kind_client"', '""', "2147483648", "1.5", "true", "{}", '"STATUS_CODE_OK"'])
def test_a4_3_unknown_enum_names_are_errors(door, text):
    refused(door, f'"kind":{text}')


def test_a4_4_unknown_names_are_ignored_at_every_level(door):
    deep = "[" * 400 + '{"a":[1e999,"\\ud83d\\ude00",null,true]}' + "]" * 400
    name = uuid.uuid4().hex
    x = f'"unknown":{deep},"":null,"Name":"not this one"'
    text = (
        f'{{{x},"resourceSpans":[{{{x},"resource":{{{x},"attributes":[{{{x},"key":"a","value":{{{x},"stringValue":"b"}}}}]}},'
        f'"scopeSpans":[{{{x},"scope":{{{x},"name":"s"}},"spans":[{{{x},"name":"{name}","status":{{{x},"code":2}},'
        f'"events":[{{{x},"name":"e"}}],"links":[{{{x},"traceState":"t"}}],"attributes":[{{"value":{{{x},"arrayValue":{{{x},"values":[{{{x}}}]}}}}}}]}}]}}]}}]}}'
    )
    assert door.post(text, JSON).ok
    span = door.span_named(name)
    assert (span.status.code, span.events[0].name, span.links[0].trace_state) == (2, "e", "t")
    assert len(span.attributes[0].value.array_value.values) == 1


def test_a4_5_names_are_lower_camel_case_and_snake_case_is_taken_as_the_collector_takes_it(door):
    name = uuid.uuid4().hex
    text = f'{{"resource_spans":[{{"scope_spans":[{{"spans":[{{"name":"{name}","trace_id":"{TRACE_ID}","start_time_unix_nano":"7","attributes":[{{"key":"k","value":{{"int_value":"3"}}}}]}}]}}]}}]}}'
    assert door.post(text, JSON).ok
    span = door.span_named(name)
    assert (span.trace_id, span.start_time_unix_nano, span.attributes[0].value.int_value) == (bytes.fromhex(TRACE_ID), 7, 3)


U64, I64, U32 = 2**64, 2**63, 2**32


@pytest.mark.parametrize(
    "number, is_",
    [("0", 0), ("-0", 0), ("9007199254740993", 9007199254740993), (str(I64 - 1), I64 - 1), ("1.0", 1), ("1e2", 100), ("1.5E+1", 15),
     ("1200e-2", 12), ("0e999999999999", 0), ("1.00000000000000000000000000000000", 1), ("9007199254740993.0", 9007199254740993)],
)
@pytest.mark.parametrize("quoted", ["{}", '"{}"'])
def test_a4_6_7_and_8_integers_are_numbers_or_strings_and_exact(door, number, is_, quoted):
    text = quoted.format(number)
    span = taken(door, f'"startTimeUnixNano":{text},"endTimeUnixNano":{text},"events":[{{"timeUnixNano":{text}}}],"attributes":[{{"value":{{"intValue":{text}}}}}]')
    assert (span.start_time_unix_nano, span.end_time_unix_nano, span.events[0].time_unix_nano, span.attributes[0].value.int_value) == (is_,) * 4
    if is_ < U32:
        span = taken(door, f'"flags":{text},"droppedAttributesCount":{text},"droppedEventsCount":{text},"droppedLinksCount":{text}')
        assert (span.flags, span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count) == (is_,) * 4


@pytest.mark.parametrize("text", [str(U64), "-1", "1.5", "1e-1", "1e20", "1e999999999999", '""', '" 1"', '"+1"', "+1", '"0x1"', "01", '"one"', "true", "[]", "{}", '"NaN"', "NaN", "1_0", "1.", ".5", "1e", "-"])
def test_a4_6_7_and_8_what_is_no_such_integer_is_refused(door, text):
    refused(door, f'"startTimeUnixNano":{text}')
    refused(door, f'"flags":{text}')


def test_a4_6_and_7_the_bounds_of_every_integer_are_exact(door):
    for name, field, low, high in [("startTimeUnixNano", "start_time_unix_nano", 0, U64 - 1), ("droppedLinksCount", "dropped_links_count", 0, U32 - 1), ("flags", "flags", 0, U32 - 1)]:
        for quote in ["", '"']:
            assert getattr(taken(door, f'"{name}":{quote}{high}{quote}'), field) == high
            refused(door, f'"{name}":{quote}{high + 1}{quote}')
            refused(door, f'"{name}":{quote}{low - 1}{quote}')
    assert value(door, f'{{"intValue":"{-I64}"}}').int_value == -I64
    for out in [I64, -I64 - 1]:
        refused(door, f'"attributes":[{{"value":{{"intValue":"{out}"}}}}]')


@pytest.mark.parametrize("text, is_", [("1", 1.0), ("-0.0", -0.0), ("1.5", 1.5), ("1e-400", 0.0), ("5e-324", 5e-324), ("1.7976931348623157e308", 1.7976931348623157e308), ("0.1", 0.1), ("123456789012345678901234567890", 1.2345678901234568e29)])
def test_a4_9_doubles_are_numbers_or_strings(door, text, is_):
    for form in [text, f'"{text}"']:
        got = value(door, f'{{"doubleValue":{form}}}').double_value
        assert got == is_ and math.copysign(1, got) == math.copysign(1, is_)


def test_a4_9_doubles_that_are_no_numbers(door):
    assert math.isnan(value(door, '{"doubleValue":"NaN"}').double_value)
    assert value(door, '{"doubleValue":"Infinity"}').double_value == math.inf
    assert value(door, '{"doubleValue":"-Infinity"}').double_value == -math.inf
    for text in ["1e400", '"1e400"', "NaN", "Infinity", '"inf"', '"nan"', '"1."', '".5"', '""', '" 1"', "true", "{}"]:
        refused(door, f'"attributes":[{{"value":{{"doubleValue":{text}}}}}]')


def test_a4_10_null_is_absent_but_not_in_a_list(door):
    names = ["traceId", "spanId", "parentSpanId", "traceState", "kind", "startTimeUnixNano", "endTimeUnixNano", "attributes",
             "droppedAttributesCount", "events", "droppedEventsCount", "links", "droppedLinksCount", "status", "flags"]
    span = taken(door, ",".join(f'"{n}":null' for n in names))
    span.name = ""
    assert span == trace.Span()
    # What JavaScript writes for NaN.
    assert value(door, '{"doubleValue":null}').WhichOneof("value") is None
    assert value(door, '{"stringValue":null,"intValue":"1","boolValue":null}').int_value == 1
    for members in ['"attributes":[null]', '"events":[null]', '"links":[{"attributes":[null]}]', '"attributes":[{"value":{"arrayValue":{"values":[null]}}}]']:
        refused(door, members)


def test_a4_11_missing_fields_take_defaults(door):
    attributes = taken(door, '"attributes":[{},{"value":{}},{"key":"a"},{"value":{"arrayValue":{}}},{"value":{"kvlistValue":{}}},{"value":{"stringValue":""}},{"value":{"boolValue":false}},{"value":{"bytesValue":""}},{"value":{"intValue":0}}],"status":{}').attributes
    assert not attributes[0].HasField("value") and attributes[1].HasField("value") and attributes[2].key == "a"
    assert [a.value.WhichOneof("value") for a in attributes[3:]] == ["array_value", "kvlist_value", "string_value", "bool_value", "bytes_value", "int_value"]
    for text in ["{}", '{"resourceSpans":[]}', '{"resourceSpans":null}', '{"resourceSpans":[{}]}', ' \r\n\t{ "resourceSpans" : [ ] } ']:
        assert door.post(text, JSON).ok, text


def test_a4_12_bytes_are_base64_of_every_kind(door):
    for text in ["+/+/AA==", "-_-_AA==", "+/+/AA", "-_-_AA", "\\u002b/+/AA=="]:
        assert value(door, f'{{"bytesValue":"{text}"}}').bytes_value == b"\xfb\xff\xbf\0", text
    for text in ["A", "A===", "A A=", "+/-_", "é", "=", "AA==AA=="]:
        refused(door, f'"attributes":[{{"value":{{"bytesValue":"{text}"}}}}]')
    refused(door, '"attributes":[{"value":{"bytesValue":[1,2]}}]')


def test_a4_13_a_name_that_is_there_twice_is_refused(door):
    for members in ['"kind":1,"kind":1', '"kind":null,"kind":1', '"traceState":"a","trace_state":"a"', '"events":[],"events":[]', '"k\\u0069nd":1,"kind":1',
                    '"attributes":[{"value":{"stringValue":"a","intValue":1}}]', '"attributes":[{"value":{"intValue":1,"int_value":1}}]']:
        refused(door, members)
    assert door.post('{"resourceSpans":[],"resourceSpans":[]}', JSON).status == 400


def nested(depth):
    return '{"arrayValue":{"values":[' * depth + '{"stringValue":"x"}' + "]}}" * depth


def test_a4_14_nesting_has_a_limit_and_the_daemon_outlives_what_is_beyond(door):
    attribute = '"attributes":[{{"value":{}}}]'
    taken(door, attribute.format(nested(40)))
    for depth in [50, 1000]:
        refused(door, attribute.format(nested(depth)))
    for body in ["[" * 900_000, '{"a":' * 200_000, '{"a":' + "[" * 600, '{"resourceSpans":' * 60_000]:
        assert door.post(body, JSON).status == 400


BAD_TEXTS = {
    "a BOM": b"\xef\xbb\xbf{}",
    "something behind it": b"{}x",
    "two documents": b"{}{}",
    "nothing": b"",
    "blanks": b"  ",
    "a list": b"[]",
    "a string": b'"a"',
    "null": b"null",
    "cut": document('"kind":1').encode()[:-1],
    "not UTF-8 in a value": document('"traceState":"a"').encode().replace(b'"a"', b'"\xff"'),
    "not UTF-8 in an unknown value": document('"x":"a"').encode().replace(b'"a"', b'"\xc0\x80"'),
    "not UTF-8 in a name": b'{"\xff":1}',
    "UTF-16": "{}".encode("utf-16"),
    "a surrogate in UTF-8": document('"x":"a"').encode().replace(b'"a"', b'"\xed\xa0\x80"'),
    "half a pair": document('"traceState":"\\ud800"').encode(),
    "the other half": document('"traceState":"\\udc00x"').encode(),
    "half a pair in an unknown value": document('"x":"\\ud800"').encode(),
    "a bad escape": document('"traceState":"\\x41"').encode(),
    "a short escape": document('"traceState":"\\u12"').encode(),
    "a control character": document('"traceState":"\n"').encode(),
    "a comment": b"{/**/}",
    "a comma too many": document('"kind":1,').encode(),
    "single quotes": b"{'a':1}",
    "a name without quotes": b"{a:1}",
    "a literal in the wrong case": document('"x":True').encode(),
}


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_a4_15_what_is_no_json_text_is_400(door, text):
    answer = door.post(BAD_TEXTS[text], JSON)
    assert answer.status == 400 and status_of(answer).message


def test_a4_15_every_escape_is_read(door):
    assert taken(door, r'"traceState":"\"\\\/\b\f\n\r\t\u0000\u00e9\ud83e\udd80é🦀\u007f"').trace_state == '"\\/\b\f\n\r\t\0é🦀é🦀\x7f'


def test_a4_15_an_error_says_where_and_repeats_nothing(door):
    answer = door.post('{\n "resourceSpans": [\n  {"schemaUrl": 17, "x": "secret"}]}', JSON)
    assert "line 3" in status_of(answer).message and "secret" not in answer.body.decode()


def test_a4_16_the_answer_is_json(door):
    assert door.post("{}", JSON).headers["content-type"] == JSON


class Maker:
    """Requests of every shape, from a seed."""

    TEXTS = ["", "a", 'quote " and \\', "é", "🦀", "\0\x01\x1f\x7f", "\u2028", "x" * 300, "</script>", "\uffff"]
    NUMBERS = [0, 1, 127, 128, 2**31 - 1, 2**53 - 1, 2**53 + 1, 2**63 - 1]

    def __init__(self, seed):
        self.random = random.Random(seed)

    def value(self, into, depth=0):
        pick = self.random.randrange(9 if depth < 4 else 6)
        if pick == 0:
            into.string_value = self.random.choice(self.TEXTS)
        elif pick == 1:
            into.bool_value = self.random.random() < 0.5
        elif pick == 2:
            into.int_value = self.random.choice(self.NUMBERS) * self.random.choice([1, -1])
        elif pick == 3:
            into.double_value = self.random.choice([0.0, -0.0, 1.5, 1e308, 5e-324, -1e-7, math.inf, -math.inf, 0.1, 2.0**60, 1e21])
        elif pick == 4:
            into.bytes_value = self.random.randbytes(self.random.randrange(5))
        elif pick in (6, 7):
            into.array_value.SetInParent()
            for _ in range(self.random.randrange(4)):
                self.value(into.array_value.values.add(), depth + 1)
        elif pick == 8:
            into.kvlist_value.SetInParent()
            self.attributes(into.kvlist_value.values, depth + 1)

    def attributes(self, into, depth=0):
        for _ in range(self.random.randrange(4)):
            self.value(into.add(key=self.random.choice(self.TEXTS)).value, depth)

    def request(self, name):
        request, _ = make_request(3, name=name)
        for rs in request.resource_spans:
            self.attributes(rs.resource.attributes)
            for span in rs.scope_spans[0].spans:
                span.kind = self.random.randrange(8)
                span.flags = self.random.choice([0, 1, 256, 2**32 - 1])
                span.trace_state = self.random.choice(self.TEXTS)
                span.dropped_events_count = self.random.choice([0, 5, 2**32 - 1])
                self.attributes(span.attributes)
                for _ in range(self.random.randrange(3)):
                    self.attributes(span.events.add(name=self.random.choice(self.TEXTS), time_unix_nano=self.random.choice(self.NUMBERS)).attributes)
                span.status.code = self.random.randrange(3)
        return request


def test_a4_17_what_is_shipped_equals_what_an_independent_decoder_reads(door):
    """Protobuf's own JSON mapping writes the documents, and its decoder reads what is shipped."""
    maker, sent = Maker(SEED), {}
    for _ in range(150):
        name = uuid.uuid4().hex
        sent[name] = maker.request(name)
        text = request_as_json(sent[name])
        if maker.random.random() < 0.5:
            text = json.dumps(json.loads(text), ensure_ascii=False, indent=1)
        answer = door.post(text, JSON)
        assert answer.ok, answer.body
    wait_until(lambda: {s.name for s in door.receiver.spans} >= sent.keys(), "all of them arrived")
    found = {}
    for span in all_spans(door):
        found.setdefault(span.name, []).append(span)
    for name, request in sent.items():
        assert found[name] == list(request.resource_spans[0].scope_spans[0].spans)


def all_spans(door):
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

    requests = [service.ExportTraceServiceRequest.FromString(body) for body in door.receiver.bodies]
    return [s for r in requests for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]


def test_documents_of_other_signals_are_no_empty_requests(door):
    for name in ["resourceMetrics", "resourceLogs", "resourceProfiles"]:
        assert door.post(f'{{"{name}":[]}}', JSON).status == 400
