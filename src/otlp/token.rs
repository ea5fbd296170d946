//! A pull reader of JSON text (RFC 8259), strict, without recursion of its own and without a tree in memory.
//!
//! Numbers are handed out as they are written, so that none loses digits; strings as they are written too, and are
//! unescaped where they end up.

use std::borrow::Cow;

use super::json::JsonError;

/// How deep a value may nest that is only skipped.
pub(super) const MAX_SKIPPED_DEPTH: usize = 512;

/// Reads one JSON text from front to back.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Python's names for what is not finite are skipped as the values that they are.
    of_python: bool,
}

/// A string between its quotes, as it is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawString<'a> {
    text: &'a str,
    /// Offset of `text`, for errors.
    at: usize,
    escaped: bool,
}

/// Whether a list or an object has already had a member.
#[derive(Default)]
pub(super) struct Members {
    begun: bool,
}

impl<'a> Reader<'a> {
    /// Begins to read.
    ///
    /// # Errors
    /// The text is not UTF-8, or it begins with a byte order mark, which RFC 8259 (section 8.1) leaves to the reader.
    pub(super) fn new(text: &'a [u8]) -> Result<Self, JsonError> {
        let text = match std::str::from_utf8(text) {
            Ok(text) => text,
            Err(error) => return Err(error_at(text, error.valid_up_to(), "not UTF-8")),
        };
        if text.starts_with('\u{feff}') {
            return Err(error_at(text.as_bytes(), 0, "begins with a byte order mark"));
        }
        Ok(Self { text, at: 0, of_python: false })
    }

    /// Begins to read what Python's `json` wrote, which also writes `NaN`, `Infinity` and `-Infinity`.
    ///
    /// # Errors
    /// As [`Reader::new`].
    pub(super) fn of_python(text: &'a [u8]) -> Result<Self, JsonError> {
        Ok(Self { of_python: true, ..Self::new(text)? })
    }

    /// An error at the place that is read next.
    #[cold]
    pub(super) fn error(&self, problem: &str) -> JsonError {
        self.error_at(self.at, problem)
    }

    #[cold]
    pub(super) fn error_at(&self, at: usize, problem: &str) -> JsonError {
        error_at(self.text.as_bytes(), at, problem)
    }

    /// Where the next token begins, for [`Reader::error_at`].
    pub(super) fn place(&mut self) -> usize {
        self.skip_space();
        self.at
    }

    /// The first byte of the next token.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.text.as_bytes().get(self.at).copied()
    }

    /// Nothing but space may follow.
    pub(super) fn end(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("something follows the value")),
        }
    }

    /// Reads `{`.
    pub(super) fn begin_object(&mut self) -> Result<Members, JsonError> {
        self.expect(b'{', "an object is expected")?;
        Ok(Members::default())
    }

    /// Reads `[`.
    pub(super) fn begin_list(&mut self) -> Result<Members, JsonError> {
        self.expect(b'[', "a list is expected")?;
        Ok(Members::default())
    }

    /// Reads up to the value of the next member, or the end of the object.
    pub(super) fn next_key(&mut self, members: &mut Members) -> Result<Option<RawString<'a>>, JsonError> {
        if !self.next_member(members, b'}')? {
            return Ok(None);
        }
        if self.peek() != Some(b'"') {
            return Err(self.error("a name in quotes is expected"));
        }
        let key = self.string()?;
        self.expect(b':', "a colon is expected")?;
        Ok(Some(key))
    }

    /// Reads up to the next value of a list: whether there is one.
    pub(super) fn next_item(&mut self, members: &mut Members) -> Result<bool, JsonError> {
        self.next_member(members, b']')
    }

    fn next_member(&mut self, members: &mut Members, close: u8) -> Result<bool, JsonError> {
        match self.peek() {
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            Some(b',') if members.begun => {
                self.at += 1;
                if self.peek() == Some(close) {
                    return Err(self.error("a value is expected"));
                }
                Ok(true)
            }
            None => Err(self.error("the text ends early")),
            _ if members.begun => Err(self.error("a comma is expected")),
            _ => {
                members.begun = true;
                Ok(true)
            }
        }
    }

    /// Reads this literal if it comes next.
    #[inline]
    pub(super) fn take_literal(&mut self, literal: &str) -> bool {
        self.skip_space();
        let rest = &self.text.as_bytes()[self.at..];
        let there = rest.starts_with(literal.as_bytes())
            && !rest.get(literal.len()).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
        if there {
            self.at += literal.len();
        }
        there
    }

    /// Reads a number, as it is written.
    pub(super) fn number(&mut self) -> Result<&'a str, JsonError> {
        self.skip_space();
        let rest = &self.text.as_bytes()[self.at..];
        let length = number_length(rest).ok_or_else(|| self.error("a value is expected"))?;
        if rest.get(length).is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-')) {
            return Err(self.error("not a number"));
        }
        let number = &self.text[self.at..self.at + length];
        self.at += length;
        Ok(number)
    }

    /// Reads a string.
    pub(super) fn string(&mut self) -> Result<RawString<'a>, JsonError> {
        self.expect(b'"', "a string is expected")?;
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut escaped = false;
        loop {
            match bytes.get(self.at) {
                None => return Err(self.error("the text ends inside a string")),
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    // What is escaped may be a quote. It is one byte in valid text; else `unescape` finds out.
                    self.at += 2;
                }
                Some(0..=0x1f) => return Err(self.error("a control character inside a string")),
                Some(_) => self.at += 1,
            }
        }
        let Some(text) = self.text.get(start..self.at) else {
            return Err(self.error_at(start, "an unknown escape"));
        };
        self.at += 1;
        Ok(RawString { text, at: start, escaped })
    }

    /// A string as it is meant.
    pub(super) fn unescaped(&self, string: RawString<'a>) -> Result<Cow<'a, str>, JsonError> {
        if !string.escaped {
            return Ok(Cow::Borrowed(string.text));
        }
        let mut bytes = Vec::with_capacity(string.text.len());
        self.unescape(string, &mut bytes)?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Cow::Owned(text)),
            Err(_) => Err(self.error_at(string.at, "not UTF-8")),
        }
    }

    /// Appends a string as it is meant.
    pub(super) fn unescape(&self, string: RawString<'a>, out: &mut Vec<u8>) -> Result<(), JsonError> {
        let mut rest = string.text;
        while let Some(plain) = rest.find('\\') {
            out.extend_from_slice(&rest.as_bytes()[..plain]);
            let escape = &rest[plain..];
            let Some((character, length)) = escaped_character(escape) else {
                let at = string.at + string.text.len() - escape.len();
                return Err(self.error_at(at, "an escape that is no character"));
            };
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            rest = &escape[length..];
        }
        out.extend_from_slice(rest.as_bytes());
        Ok(())
    }

    /// Reads any value, and returns it as it is written.
    pub(super) fn raw_value(&mut self) -> Result<&'a str, JsonError> {
        let start = self.place();
        self.skip_value()?;
        Ok(&self.text[start..self.at])
    }

    /// Reads any value and forgets it.
    pub(super) fn skip_value(&mut self) -> Result<(), JsonError> {
        let mut open: Vec<(u8, Members)> = Vec::new();
        loop {
            // One value, or the beginning of one.
            match self.peek() {
                Some(bracket @ (b'{' | b'[')) => {
                    if open.len() == MAX_SKIPPED_DEPTH {
                        return Err(self.error("nested too deeply"));
                    }
                    self.at += 1;
                    open.push((bracket, Members::default()));
                }
                Some(b'"') => {
                    let string = self.string()?;
                    if string.escaped {
                        self.unescaped(string)?;
                    }
                }
                _ if ["null", "true", "false"].iter().any(|literal| self.take_literal(literal)) => {}
                _ if self.of_python
                    && ["NaN", "Infinity", "-Infinity"].iter().any(|literal| self.take_literal(literal)) => {}
                _ => drop(self.number()?),
            }
            // Then what follows it, up to the next value.
            loop {
                let Some((bracket, members)) = open.last_mut() else { return Ok(()) };
                let more = if *bracket == b'{' { self.next_key(members)?.is_some() } else { self.next_item(members)? };
                if more {
                    break;
                }
                open.pop();
            }
        }
    }

    fn expect(&mut self, byte: u8, problem: &str) -> Result<(), JsonError> {
        match self.peek() {
            Some(found) if found == byte => {
                self.at += 1;
                Ok(())
            }
            Some(_) => Err(self.error(problem)),
            None => Err(self.error("the text ends early")),
        }
    }

    #[inline]
    fn skip_space(&mut self) {
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }
}

impl<'a> RawString<'a> {
    /// The string itself, if nothing in it is escaped.
    pub(super) fn plain(&self) -> Option<&'a str> {
        (!self.escaped).then_some(self.text)
    }

    /// Its place, for errors.
    pub(super) fn at(&self) -> usize {
        self.at
    }
}

/// The length of the number at the beginning, by the grammar of RFC 8259, section 6.
pub(super) fn number_length(text: &[u8]) -> Option<usize> {
    let digits =
        |from: usize| text.get(from..).map_or(0, |rest| rest.iter().take_while(|b| b.is_ascii_digit()).count());
    let mut at = usize::from(text.first() == Some(&b'-'));
    let whole = digits(at);
    if whole == 0 || (whole > 1 && text.get(at) == Some(&b'0')) {
        return None;
    }
    at += whole;
    if text.get(at) == Some(&b'.') {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(at + 1 + sign);
        if exponent == 0 {
            return None;
        }
        at += 1 + sign + exponent;
    }
    Some(at)
}

/// The character that an escape stands for, and the length of the escape.
fn escaped_character(escape: &str) -> Option<(char, usize)> {
    let character = match escape.as_bytes().get(1)? {
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unicode_escape(escape),
        _ => return None,
    };
    Some((character, 2))
}

/// `\uXXXX`, or two of them for what is outside the basic plane. Half of a pair is no character, and protobuf has no
/// place for it.
fn unicode_escape(escape: &str) -> Option<(char, usize)> {
    let first = code_unit(escape)?;
    if let Some(character) = char::from_u32(first) {
        return Some((character, 6));
    }
    let second = code_unit(escape.get(6..)?)?;
    if !(0xd800..0xdc00).contains(&first) || !(0xdc00..0xe000).contains(&second) {
        return None;
    }
    char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)).map(|character| (character, 12))
}

fn code_unit(escape: &str) -> Option<u32> {
    let digits = escape.strip_prefix("\\u")?.get(..4)?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, 16).ok()
}

#[cold]
fn error_at(text: &[u8], at: usize, problem: &str) -> JsonError {
    let before = &text[..at.min(text.len())];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    JsonError {
        line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
        column: 1 + before.len() - line_start,
        problem: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn skips(text: &[u8]) -> Result<(), JsonError> {
        let mut reader = Reader::new(text)?;
        reader.skip_value()?;
        reader.end()
    }

    #[test]
    fn what_is_json_is_decided_as_by_others() {
        let texts = [
            "{}",
            "[]",
            " [ 1 , 2 ] ",
            "{\"a\":[{\"b\":null}],\"c\":\"\\u00e9\\n\"}",
            "0",
            "-0",
            "-0.0",
            "1e5",
            "1E+5",
            "1.5e-7",
            "true",
            "false",
            "null",
            "\"\"",
            "\"\\ud83e\\udd80\"",
            "\"\u{7f}\"",
            "[[[]]]",
            "123456789012345678901234567890",
            "",
            " ",
            "{",
            "[",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\":1 \"b\":2}",
            "[1 2]",
            "01",
            "-",
            "-01",
            "+1",
            ".5",
            "1.",
            "1.e5",
            "1e",
            "1e+",
            "0x1",
            "1a",
            "1.5.5",
            "--1",
            "1-1",
            "NaN",
            "Infinity",
            "tru",
            "truex",
            "nul",
            "nullnull",
            "'a'",
            "\"",
            "\"a",
            "\"\\",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u+123\"",
            "\"\n\"",
            "\"\u{0}\"",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\udc00\\udc00\"",
            "\"\\udbff\\udfff\"",
            "\"\\ud800\\ud800\"",
            "\"\\ud800x\"",
            "\"\\é\"",
            "\"\\ué123\"",
            "[1]]",
            "{}{}",
            "1 1",
            "[}",
            "{]",
            "\u{a0}1",
        ];
        for text in texts {
            let other = serde_json::from_str::<serde_json::Value>(text);
            assert_eq!(
                skips(text.as_bytes()).is_ok(),
                other.is_ok(),
                "{text:?}: {:?}, {other:?}",
                skips(text.as_bytes())
            );
        }
    }

    #[test]
    fn a_place_is_a_line_and_a_column_in_bytes() {
        let error = skips("{\"é\": 1,\n \"ü\": x}".as_bytes()).expect_err("refused");
        assert_eq!((error.line, error.column), (2, 8));
        assert_eq!(error.to_string(), "line 2, column 8: a value is expected");
        let error = skips(b"[\"abc\xff\"]").expect_err("refused");
        assert_eq!((error.line, error.column), (1, 6));
        let error = skips(b"\n\"abc\\ud800\"").expect_err("refused");
        assert_eq!((error.line, error.column), (2, 5));
        let error = skips("\u{feff}{}".as_bytes()).expect_err("refused");
        assert_eq!((error.line, error.column), (1, 1));
    }

    #[test]
    fn skipping_has_a_depth() {
        let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert_eq!(skips(nested(MAX_SKIPPED_DEPTH).as_bytes()), Ok(()));
        assert!(skips(nested(MAX_SKIPPED_DEPTH + 1).as_bytes()).is_err());
        assert!(skips("[".repeat(1 << 20).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn strings_are_read_as_by_others(text in any::<String>()) {
            let json = serde_json::to_string(&text).expect("a string");
            let mut reader = Reader::new(json.as_bytes()).expect("UTF-8");
            let raw = reader.string().expect("a string");
            prop_assert_eq!(reader.unescaped(raw).expect("a string"), text);
        }

        #[test]
        fn noise_is_judged_as_by_others(text in "[\\[\\]{}:,0-9eE.+\"\\\\ua -]{0,12}") {
            let other = serde_json::from_str::<Box<serde_json::value::RawValue>>(&text);
            prop_assert_eq!(skips(text.as_bytes()).is_ok(), other.is_ok(), "{}: {:?}", text, other);
        }
    }
}
