//! Protobuf's wire format: the few primitives that the walkers of this module share.
//!
//! [`Fields`] reads what [`validate`](super::validate()) has accepted, so it has no errors: on bytes that were not
//! validated it ends early, and never panics.

/// Wire type of varints (proto encoding.md, "Message Structure").
pub(super) const VARINT: u32 = 0;
/// Wire type of 64-bit values.
pub(super) const I64: u32 = 1;
/// Wire type of strings, bytes and messages.
pub(super) const LEN: u32 = 2;
/// Wire type that opens a group.
pub(super) const SGROUP: u32 = 3;
/// Wire type that closes a group.
pub(super) const EGROUP: u32 = 4;
/// Wire type of 32-bit values.
pub(super) const I32: u32 = 5;

/// The value of one field as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Varint(u64),
    I64(u64),
    Len(&'a [u8]),
    /// The content is known to nobody here; the whole field is in [`FieldOnWire::whole`].
    Group,
    I32(u32),
}

/// One field of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct FieldOnWire<'a> {
    pub(super) number: u32,
    pub(super) value: Value<'a>,
    /// Tag and value, byte for byte.
    pub(super) whole: &'a [u8],
}

/// The fields of one validated message, in the order of the wire.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn take_field(&mut self) -> Option<FieldOnWire<'a>> {
        let before = self.rest;
        let (number, wire_type) = self.take_tag()?;
        let value = self.take_value(wire_type)?;
        let whole = before.get(..before.len() - self.rest.len())?;
        Some(FieldOnWire { number, value, whole })
    }

    fn take_tag(&mut self) -> Option<(u32, u32)> {
        let tag = u32::try_from(self.take_varint()?).ok()?;
        Some((tag >> 3, tag & 7))
    }

    fn take_value(&mut self, wire_type: u32) -> Option<Value<'a>> {
        Some(match wire_type {
            VARINT => Value::Varint(self.take_varint()?),
            I64 => Value::I64(u64::from_le_bytes(*self.take_array()?)),
            LEN => Value::Len(self.take_len()?),
            SGROUP => self.skip_group()?,
            I32 => Value::I32(u32::from_le_bytes(*self.take_array()?)),
            _ => return None,
        })
    }

    fn skip_group(&mut self) -> Option<Value<'a>> {
        let mut open = 1_usize;
        while open > 0 {
            match self.take_tag()? {
                (_, SGROUP) => open += 1,
                (_, EGROUP) => open -= 1,
                (_, wire_type) => drop(self.take_value(wire_type)?),
            }
        }
        Some(Value::Group)
    }

    fn take_len(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.take_varint()?).ok()?;
        let (value, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(value)
    }

    fn take_array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (value, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(value)
    }

    fn take_varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (index, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.rest = self.rest.get(index + 1..)?;
                return Some(value);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = FieldOnWire<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let field = self.take_field();
        if field.is_none() {
            self.rest = &[];
        }
        field
    }
}

/// Appends a varint in its shortest form.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Appends a length.
pub(super) fn put_length(out: &mut Vec<u8>, length: usize) {
    put_varint(out, length as u64);
}

/// Appends a tag.
pub(super) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u32) {
    put_varint(out, u64::from(number << 3 | wire_type));
}

/// Bytes of a length in its shortest form.
pub(super) fn length_size(length: usize) -> usize {
    let mut size = 1;
    let mut rest = length >> 7;
    while rest > 0 {
        size += 1;
        rest >>= 7;
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order_with_all_their_bytes() {
        let message = [
            0x08, 0x96, 0x01, // 1: varint 150
            0x12, 0x02, b'h', b'i', // 2: two bytes
            0x1b, 0x23, 0x08, 0x01, 0x24, 0x1c, // 3: a group that holds a group
            0x2d, 1, 0, 0, 0, // 5: 32 bits
            0x31, 2, 0, 0, 0, 0, 0, 0, 0, // 6: 64 bits
        ];
        let fields: Vec<_> = Fields::of(&message).collect();
        let values: Vec<_> = fields.iter().map(|field| (field.number, field.value)).collect();
        let expected = [
            (1, Value::Varint(150)),
            (2, Value::Len(b"hi")),
            (3, Value::Group),
            (5, Value::I32(1)),
            (6, Value::I64(2)),
        ];
        assert_eq!(values, expected);
        assert_eq!(fields.iter().flat_map(|field| field.whole).copied().collect::<Vec<_>>(), message);
    }

    #[test]
    fn broken_bytes_end_the_iteration() {
        for broken in [&[0x08][..], &[0x0a, 5, 1], &[0x0b, 0x08, 1], &[0x0f], &[0x0c], &[0xff; 12]] {
            assert_eq!(Fields::of(broken).count(), 0, "{broken:?}");
        }
    }

    #[test]
    fn a_length_is_as_long_as_its_varint() {
        for length in [0, 1, 127, 128, 16383, 16384, 2_097_151, 2_097_152, 1 << 31] {
            let mut out = Vec::new();
            put_length(&mut out, length);
            assert_eq!(length_size(length), out.len(), "{length}");
        }
    }
}
