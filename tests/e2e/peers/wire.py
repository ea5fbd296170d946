"""Protobuf by hand, for what no library would write."""

VARINT, I64, LEN, SGROUP, EGROUP, I32 = range(6)


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def tag(number, wire_type):
    return varint(number << 3 | wire_type)


def field(number, content):
    """A string, bytes or a message."""
    return tag(number, LEN) + varint(len(content)) + content


def in_request(*path):
    """A function that puts bytes into a request at this path of field numbers."""

    def place(content):
        for number in reversed(path):
            content = field(number, content)
        return content

    return place


in_span = in_request(1, 2, 2)
in_value = in_request(1, 2, 2, 9, 2)
