"""A8: what must hold of a request before it is acknowledged. Bytes are built by hand."""

import pytest

from peers.door import REFUSED, status_of, unique
from peers.wire import EGROUP, I32, I64, LEN, SGROUP, VARINT, field, in_request, in_span, in_value, tag, varint


def accepted(door, body):
    answer = door.post(body)
    assert answer.ok, status_of(answer).message


def refused(door, body):
    answer = door.post(body)
    assert answer.status == 400, f"{body[:40]!r} was answered with {answer.status}"
    assert status_of(answer).code == 3


def test_a8_1_tags_and_varints_have_bounds(door):
    accepted(door, varint(2**29 - 1 << 3) + b"\1")
    refused(door, varint(2**29 << 3) + b"\1")
    refused(door, b"\xf8\x80\x80\x80\x80\x00\x01")  # a tag of six bytes
    refused(door, b"\0\1")  # field number 0
    accepted(door, b"\x78" + b"\xff" * 9 + b"\1")
    refused(door, b"\x78" + b"\xff" * 9 + b"\2")
    refused(door, b"\x78" + b"\x80" * 10 + b"\0")
    for wire_type in (6, 7):
        refused(door, tag(15, wire_type) + bytes(8))


def test_a8_2_every_length_fits_its_parent(door):
    for body in [b"\x0a\1", b"\x0a\2\x12\1", b"\x0a\4\x12\4\x12\0", b"\x7a\2\0", b"\x79" + bytes(7), b"\x7d" + bytes(3), b"\x0a\xff\xff\xff\xff\x0f", b"\x80", b"\x78"]:
        refused(door, body)
        refused(door, in_value(field(6, body)))


KNOWN = {
    # Where it stands, and the fields there: number and wire type.
    "request": (bytes, {1: LEN}),
    "resource spans": (in_request(1), {1: LEN, 2: LEN, 3: LEN}),
    "resource": (in_request(1, 1), {1: LEN, 2: VARINT, 3: LEN}),
    "entity": (in_request(1, 1, 3), {1: LEN, 2: LEN, 3: LEN, 4: LEN}),
    "scope spans": (in_request(1, 2), {1: LEN, 2: LEN, 3: LEN}),
    "scope": (in_request(1, 2, 1), {1: LEN, 2: LEN, 3: LEN, 4: VARINT}),
    "span": (in_span, {1: LEN, 2: LEN, 3: LEN, 4: LEN, 5: LEN, 6: VARINT, 7: I64, 8: I64, 9: LEN, 10: VARINT, 11: LEN, 12: VARINT, 13: LEN, 14: VARINT, 15: LEN, 16: I32}),
    "event": (in_request(1, 2, 2, 11), {1: I64, 2: LEN, 3: LEN, 4: VARINT}),
    "link": (in_request(1, 2, 2, 13), {1: LEN, 2: LEN, 3: LEN, 4: LEN, 5: VARINT, 6: I32}),
    "status": (in_request(1, 2, 2, 15), {2: LEN, 3: VARINT}),
    "attribute": (in_request(1, 2, 2, 9), {1: LEN, 2: LEN}),
    "value": (in_value, {1: LEN, 2: VARINT, 3: VARINT, 4: I64, 5: LEN, 6: LEN, 7: LEN}),
    "list": (lambda b: in_value(field(5, b)), {1: LEN}),
    "map": (lambda b: in_value(field(6, b)), {1: LEN}),
}


@pytest.mark.parametrize("message", KNOWN)
def test_a8_3_and_9_a_known_field_has_its_own_wire_type(door, message):
    place, fields = KNOWN[message]
    for number, own in fields.items():
        for wire_type in {VARINT, I64, LEN, I32, SGROUP, EGROUP} - {own}:
            content = {VARINT: b"\0", I64: bytes(8), LEN: b"\0", I32: bytes(4), SGROUP: tag(number, EGROUP), EGROUP: b""}[wire_type]
            refused(door, place(tag(number, wire_type) + content))
        content = {VARINT: b"\0", I64: bytes(8), LEN: b"\0", I32: bytes(4)}[own]
        accepted(door, place(tag(number, own) + content))


UNKNOWN = [
    tag(999, VARINT) + b"\1", tag(999, I64) + bytes(8), field(999, b"\xff"), tag(999, I32) + bytes(4), tag(999, SGROUP) + tag(999, EGROUP),
    tag(999, SGROUP) + b"\x08\1" + tag(1, SGROUP) + field(1, b"\xff") + tag(1, EGROUP) + tag(999, EGROUP),
]  # fmt: skip


@pytest.mark.parametrize("message", KNOWN)
def test_a8_4_unknown_fields_are_skipped_and_groups_are_balanced(door, message):
    place = KNOWN[message][0]
    for unknown in UNKNOWN:
        accepted(door, place(unknown))
    for broken in [tag(999, SGROUP), tag(999, EGROUP), tag(999, SGROUP) + tag(998, EGROUP), tag(999, SGROUP) + b"\0\1" + tag(999, EGROUP),
                   tag(999, SGROUP) + tag(998, SGROUP) + tag(999, EGROUP) + tag(998, EGROUP)]:  # fmt: skip
        refused(door, place(broken))
    # A group does not end with the message around it.
    refused(door, in_span(field(9, tag(999, SGROUP)) + tag(999, EGROUP)))


STRINGS = {
    "schema_url of a resource": in_request(1, 3), "schema_url of a scope": in_request(1, 2, 3), "entity schema_url": in_request(1, 1, 3, 1),
    "entity type": in_request(1, 1, 3, 2), "entity id key": in_request(1, 1, 3, 3), "entity description key": in_request(1, 1, 3, 4),
    "resource key": in_request(1, 1, 1, 1), "resource value": in_request(1, 1, 1, 2, 1), "scope name": in_request(1, 2, 1, 1),
    "scope version": in_request(1, 2, 1, 2), "scope key": in_request(1, 2, 1, 3, 1), "trace_state": in_request(1, 2, 2, 3), "name": in_request(1, 2, 2, 5),
    "key": in_request(1, 2, 2, 9, 1), "string_value": in_request(1, 2, 2, 9, 2, 1), "string_value in a list": in_request(1, 2, 2, 9, 2, 5, 1, 1),
    "key in a map": in_request(1, 2, 2, 9, 2, 6, 1, 1), "event name": in_request(1, 2, 2, 11, 2), "event key": in_request(1, 2, 2, 11, 3, 1),
    "link trace_state": in_request(1, 2, 2, 13, 3), "link key": in_request(1, 2, 2, 13, 4, 1), "status message": in_request(1, 2, 2, 15, 2),
}  # fmt: skip


@pytest.mark.parametrize("place", STRINGS)
def test_a8_5_every_string_is_utf_8(door, place):
    accepted(door, STRINGS[place]("zażółć 🦀\0".encode()))
    for bad in [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\xe2\x82", b"\x80"]:
        refused(door, STRINGS[place](bad))


IDS = {"trace_id": (16, in_request(1, 2, 2, 1)), "span_id": (8, in_request(1, 2, 2, 2)), "parent_span_id": (8, in_request(1, 2, 2, 4)),
       "trace_id of a link": (16, in_request(1, 2, 2, 13, 1)), "span_id of a link": (8, in_request(1, 2, 2, 13, 2))}  # fmt: skip


@pytest.mark.parametrize("id_", IDS)
def test_a8_6_ids_have_their_length_or_none(door, id_):
    size, place = IDS[id_]
    for length in range(20):
        (accepted if length in (0, size) else refused)(door, place(b"\1" * length))
    accepted(door, place(bytes(size)))  # all zero: invalid to the specification, but decodable


def nested(levels):
    """A value in `levels` lists; the attribute's own value is five messages below the request."""
    value = b""
    for _ in range(levels):
        value = field(5, field(1, value))
    return in_value(value)


def test_a8_7_depth_has_a_limit(door):
    accepted(door, nested(42))
    refused(door, nested(43))
    refused(door, nested(5000))
    groups = lambda n: tag(15, SGROUP) * n + tag(15, EGROUP) * n  # noqa: E731
    accepted(door, groups(90))
    refused(door, groups(91))
    refused(door, groups(400_000))


def test_an_error_says_where_but_not_what(door):
    request, _ = unique()
    request.resource_spans[0].scope_spans[0].spans[0].name = REFUSED
    bad = request.SerializeToString().replace(REFUSED.encode(), b"secre\xff\xff")
    message = status_of(door.post(bad)).message
    assert "resource_spans.scope_spans.spans.name" in message and "secre" not in message
