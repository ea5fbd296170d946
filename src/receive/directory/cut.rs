//! Where a file is cut: into lines, into the resources of JSON documents, into the resources of a protobuf message.
//!
//! The cutters are fed bytes as they are read and hold one piece at a time, however long the file is. They know no more
//! of the content than where a piece ends: whether it is good is found out by who transcodes and validates it. How the
//! bytes are fed to them changes nothing about what comes out.

use std::collections::VecDeque;
use std::ops::Range;

/// A part of a file that is taken or refused by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where it is, in bytes after decompression.
    pub(super) bytes: Range<u64>,
    /// The line where it begins, from 1; 0 in protobuf.
    pub(super) line: u64,
    /// It is a whole document, not a resource of one.
    pub(super) whole: bool,
    /// Its bytes, or why it can't be taken.
    pub(super) content: Result<Vec<u8>, Bad>,
}

/// Why a piece can't be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// Longer than one piece may be.
    TooLarge,
    /// Not what the file's name says; and, unless it is one line, nothing behind it can be made out.
    Malformed(&'static str),
}

/// How a file is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// JSON, a document a line.
    Lines,
    /// JSON, one document or several, on however many lines; cut at the items of `resourceSpans`.
    Documents,
    /// One protobuf message, cut at the fields `resource_spans`.
    Protobuf,
}

/// What every cutter has: the piece at hand, and those that are finished.
#[derive(Debug)]
struct Hand {
    limit: usize,
    /// Offset of the byte that comes next.
    at: u64,
    /// Line of the byte that comes next, from 1; 0 where there are no lines.
    line: u64,
    /// Where the piece at hand begins.
    start: u64,
    start_line: u64,
    bytes: Vec<u8>,
    /// The piece at hand is longer than a piece may be; its bytes are not kept.
    too_large: bool,
    /// Behind the last finished piece, and its line.
    behind: (u64, u64),
    /// The piece at hand is a whole document.
    whole: bool,
    done: VecDeque<Piece>,
}

impl Hand {
    /// The piece at hand begins here.
    fn begin(&mut self) {
        (self.start, self.start_line) = (self.at, self.line);
        self.bytes.clear();
        self.too_large = false;
    }

    /// These bytes, the next ones, are of the piece at hand.
    fn take(&mut self, bytes: &[u8]) {
        if self.too_large || bytes.len() > self.limit - self.bytes.len() {
            self.too_large = true;
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(bytes);
        }
        self.pass(bytes);
    }

    /// These bytes, the next ones, are of no piece.
    fn pass(&mut self, bytes: &[u8]) {
        self.at += bytes.len() as u64;
        if self.line > 0 {
            self.line += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
    }

    fn finish(&mut self, bad: Option<Bad>) {
        let bytes = std::mem::take(&mut self.bytes);
        let content = match bad.or(self.too_large.then_some(Bad::TooLarge)) {
            Some(bad) => Err(bad),
            None => Ok(bytes),
        };
        let (bytes, line, whole) = (self.start..self.at, self.start_line, self.whole);
        self.done.push_back(Piece { bytes, line, whole, content });
        self.behind = (self.at, self.line);
    }
}

/// Cuts one file.
#[derive(Debug)]
pub(super) struct Cutter {
    hand: Hand,
    state: State,
}

#[derive(Debug)]
enum State {
    Lines { begun: bool },
    Documents(Documents),
    Protobuf(Protobuf),
}

impl Cutter {
    /// No piece is longer than `limit`.
    pub(super) fn new(form: Form, limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let hand = Hand {
            limit,
            at: 0,
            line: u64::from(form != Form::Protobuf),
            start: 0,
            start_line: 0,
            bytes: Vec::new(),
            too_large: false,
            behind: (0, u64::from(form != Form::Protobuf)),
            whole: form == Form::Lines,
            done: VecDeque::new(),
        };
        let state = match form {
            Form::Lines => State::Lines { begun: false },
            Form::Documents => State::Documents(Documents::default()),
            Form::Protobuf => State::Protobuf(Protobuf::default()),
        };
        Self { hand, state }
    }

    /// The next bytes of the file.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Lines { begun } => lines(&mut self.hand, begun, bytes),
            State::Documents(documents) => documents.feed(&mut self.hand, bytes),
            State::Protobuf(protobuf) => protobuf.feed(&mut self.hand, bytes),
        }
    }

    /// There are no more bytes.
    pub(super) fn end(&mut self) {
        match &mut self.state {
            State::Lines { begun } => {
                if std::mem::take(begun) {
                    end_line(&mut self.hand);
                }
            }
            State::Documents(documents) => documents.end(&mut self.hand),
            State::Protobuf(protobuf) => protobuf.end(&mut self.hand),
        }
    }

    /// The rest of the file can't be read: what is at hand is bad.
    pub(super) fn spoil(&mut self, why: &'static str) {
        let at_hand = match &self.state {
            State::Lines { begun } => *begun,
            State::Documents(documents) => documents.kept || matches!(documents.at, Place::InItem | Place::Lost),
            State::Protobuf(protobuf) => protobuf.begun,
        };
        if !at_hand {
            self.hand.begin();
        }
        self.hand.finish(Some(Bad::Malformed(why)));
        self.state = State::Lines { begun: false };
    }

    /// The next finished piece.
    pub(super) fn next(&mut self) -> Option<Piece> {
        self.hand.done.pop_front()
    }

    /// Bytes that are held for the piece at hand.
    pub(super) fn held(&self) -> usize {
        self.hand.bytes.len()
    }

    /// Offset of the byte that comes next.
    pub(super) fn at(&self) -> u64 {
        self.hand.at
    }
}

fn lines(hand: &mut Hand, begun: &mut bool, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        if !*begun {
            hand.begin();
            *begun = true;
        }
        let Some(length) = bytes.iter().position(|byte| *byte == b'\n') else { return hand.take(bytes) };
        hand.take(&bytes[..length]);
        hand.pass(&bytes[length..=length]);
        bytes = &bytes[length + 1..];
        *begun = false;
        end_line(hand);
    }
}

/// Blank lines are no pieces.
fn end_line(hand: &mut Hand) {
    if hand.bytes.last() == Some(&b'\r') {
        hand.bytes.pop();
    }
    if hand.too_large || !hand.bytes.trim_ascii().is_empty() {
        hand.finish(None);
    }
}

/// Follows JSON documents down to the items of their list of resources. What is in an item, and in values of other
/// names, matters here only as far as strings and brackets go.
#[derive(Debug, Default)]
struct Documents {
    at: Place,
    /// Brackets open in the value at hand.
    depth: u64,
    in_string: bool,
    escaped: bool,
    /// Name of the member at hand, as it is written; long ones are none that count.
    key: Vec<u8>,
    /// The document at hand has had its list of resources.
    had_resources: bool,
    /// What the document at hand has of another signal.
    foreign: Option<&'static str>,
    /// Whether there was any document.
    any: bool,
    /// Whether the document at hand had any member.
    members: bool,
    /// The document at hand is kept from its beginning on: there is no list of resources so far, and it may be a trace
    /// in another form.
    kept: bool,
    document: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    /// Between documents.
    #[default]
    Outside,
    /// Behind `{`: a name, or the end.
    FirstKey,
    /// Behind a comma: a name.
    Key,
    InKey,
    Colon,
    Value,
    /// In a string, list or object that counts for nothing.
    Skipped,
    /// In a number or a word that counts for nothing.
    Scalar,
    /// Behind a value: a comma, or the end.
    AfterValue,
    /// Behind `[`: an item, or the end.
    FirstItem,
    Item,
    InItem,
    AfterItem,
    /// Nothing more can be made out.
    Lost,
}

const LONGEST_KEY: usize = 32;

impl Documents {
    fn feed(&mut self, hand: &mut Hand, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((&byte, behind)) = rest.split_first() {
            match self.at {
                Place::InItem => {
                    let length = self.value_ends(rest);
                    hand.take(&rest[..length.unwrap_or(rest.len())]);
                    if length.is_some() {
                        hand.finish(None);
                        self.at = Place::AfterItem;
                    }
                    rest = &rest[length.unwrap_or(rest.len())..];
                }
                Place::Skipped => {
                    let length = self.value_ends(rest);
                    self.keep_or_pass(hand, &rest[..length.unwrap_or(rest.len())]);
                    if length.is_some() {
                        self.at = Place::AfterValue;
                    }
                    rest = &rest[length.unwrap_or(rest.len())..];
                }
                Place::Lost => {
                    hand.pass(rest);
                    rest = &[];
                }
                // Looked at once more as what follows it.
                Place::Scalar if matches!(byte, b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r') => {
                    self.at = Place::AfterValue;
                }
                Place::FirstItem | Place::Item if byte == b'{' => {
                    hand.begin();
                    hand.whole = false;
                    self.at = Place::InItem;
                    (self.depth, self.in_string, self.escaped) = (0, false, false);
                }
                _ => {
                    self.step(hand, byte);
                    self.keep_or_pass(hand, &[byte]);
                    rest = behind;
                }
            }
        }
    }

    fn keep_or_pass(&self, hand: &mut Hand, bytes: &[u8]) {
        if self.kept { hand.take(bytes) } else { hand.pass(bytes) }
    }

    /// One byte outside of values.
    fn step(&mut self, hand: &mut Hand, byte: u8) {
        let is_space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.at = match (self.at, byte) {
            (Place::InKey, _) => self.key(byte),
            (place, _) if is_space => place,
            (Place::Outside, b'{') => {
                hand.begin();
                hand.whole = true;
                let document = (hand.at, hand.line);
                *self = Self { at: Place::FirstKey, any: true, kept: true, document, ..Self::default() };
                Place::FirstKey
            }
            (Place::Outside, _) => self.lose(hand, "is not an object of OTLP JSON"),
            (Place::FirstKey | Place::Key, b'"') => {
                self.key.clear();
                self.escaped = false;
                self.members = true;
                Place::InKey
            }
            (Place::FirstKey | Place::AfterValue, b'}') => self.close(hand),
            (Place::FirstKey | Place::Key, _) => self.lose(hand, "a name in quotes is expected"),
            (Place::Colon, b':') => Place::Value,
            (Place::Colon, _) => self.lose(hand, "a colon is expected"),
            (Place::Value, b'[') if self.is_resources() => {
                self.let_go(hand);
                if std::mem::replace(&mut self.had_resources, true) {
                    self.lose(hand, "resourceSpans is there twice")
                } else {
                    Place::FirstItem
                }
            }
            (Place::Value, b'n') if self.is_resources() => {
                self.let_go(hand);
                self.had_resources = true;
                Place::Scalar
            }
            (Place::Value, _) if self.is_resources() => self.lose(hand, "resourceSpans is not a list"),
            (Place::Value, b'{' | b'[' | b'"') => {
                self.note_foreign();
                (self.depth, self.in_string, self.escaped) = (u64::from(byte != b'"'), byte == b'"', false);
                Place::Skipped
            }
            (Place::Value, b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => Place::Scalar,
            (Place::Value, _) => self.lose(hand, "a value is expected"),
            (Place::Scalar, b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => Place::Scalar,
            (Place::Scalar, _) => self.lose(hand, "a value is expected"),
            (Place::AfterValue, b',') => Place::Key,
            (Place::FirstItem | Place::AfterItem, b']') => Place::AfterValue,
            (Place::AfterItem, b',') => Place::Item,
            (Place::FirstItem | Place::Item, _) => self.lose(hand, "an item of resourceSpans is not an object"),
            (Place::AfterValue | Place::AfterItem, _) => self.lose(hand, "a comma is expected"),
            (Place::Skipped | Place::InItem | Place::Lost, _) => self.at,
        };
    }

    fn key(&mut self, byte: u8) -> Place {
        if byte == b'"' && !self.escaped {
            return Place::Colon;
        }
        self.escaped = byte == b'\\' && !self.escaped;
        if self.key.len() <= LONGEST_KEY {
            self.key.push(byte);
        }
        Place::InKey
    }

    fn is_resources(&self) -> bool {
        matches!(self.key.as_slice(), b"resourceSpans" | b"resource_spans")
    }

    fn note_foreign(&mut self) {
        self.foreign = match self.key.as_slice() {
            b"resourceMetrics" | b"resource_metrics" => Some("metrics, not traces"),
            b"resourceLogs" | b"resource_logs" => Some("logs, not traces"),
            b"resourceProfiles" | b"resource_profiles" => Some("profiles, not traces"),
            _ => self.foreign,
        };
    }

    /// How many bytes are left of the value at hand; `None` when it goes on behind them.
    fn value_ends(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return Some(index + 1);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(index + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// It is cut at its resources, and not kept as a whole.
    fn let_go(&mut self, hand: &mut Hand) {
        if std::mem::take(&mut self.kept) {
            hand.begin();
        }
    }

    /// The document at hand has ended. One that has no resources is a piece as a whole: what it is, is seen there.
    fn close(&mut self, hand: &mut Hand) -> Place {
        if std::mem::take(&mut self.kept) && self.members {
            hand.take(b"}");
            hand.finish(self.foreign.map(Bad::Malformed));
            // It is passed by the caller.
            hand.at -= 1;
        }
        Place::Outside
    }

    fn lose(&mut self, hand: &mut Hand, why: &'static str) -> Place {
        // The piece begins here, and ends with the file.
        hand.begin();
        self.kept = false;
        self.foreign = Some(why);
        Place::Lost
    }

    fn end(&mut self, hand: &mut Hand) {
        match self.at {
            Place::Lost => hand.finish(self.foreign.map(Bad::Malformed)),
            Place::Outside if self.any => {}
            place => {
                if place != Place::InItem {
                    // What was cut out of the document before is not part of it.
                    let begin = if place == Place::Outside { (0, 1) } else { self.document };
                    (hand.start, hand.start_line) = begin.max(hand.behind);
                }
                hand.finish(Some(Bad::Malformed("ends early")));
            }
        }
        *self = Self { any: true, ..Self::default() };
    }
}

/// Follows the fields of a message. Those that are unknown go with the resource behind them.
#[derive(Debug, Default)]
struct Protobuf {
    at: Field,
    /// The varint at hand, and how many bytes of it there were.
    varint: (u64, u32),
    begun: bool,
    any: bool,
    lost: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, Default)]
enum Field {
    #[default]
    Tag,
    Varint,
    Length {
        is_resource: bool,
    },
    Bytes {
        left: u64,
        is_resource: bool,
    },
}

impl Protobuf {
    fn feed(&mut self, hand: &mut Hand, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.lost.is_some() {
                return hand.pass(rest);
            }
            if !std::mem::replace(&mut self.begun, true) {
                hand.begin();
            }
            if let Field::Bytes { left, is_resource } = self.at {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                hand.take(&rest[..length]);
                rest = &rest[length..];
                self.skip(hand, left - length as u64, is_resource);
                continue;
            }
            let byte = rest[0];
            hand.take(&rest[..1]);
            rest = &rest[1..];
            let (value, length) = self.varint;
            if length == 10 || length == 9 && byte > 1 {
                self.lost = Some("a number has more than 64 bits: it is not an OTLP protobuf message");
                continue;
            }
            self.varint = (value | u64::from(byte & 0x7f) << (7 * length), length + 1);
            if byte < 0x80 {
                let (value, _) = std::mem::take(&mut self.varint);
                self.number(hand, value);
            }
        }
    }

    /// A varint is complete.
    fn number(&mut self, hand: &mut Hand, value: u64) {
        match self.at {
            Field::Tag if value >> 3 != 0 && value <= u64::from(u32::MAX) => match value & 7 {
                0 => self.at = Field::Varint,
                1 => self.at = Field::Bytes { left: 8, is_resource: false },
                2 => self.at = Field::Length { is_resource: value >> 3 == 1 },
                5 => self.at = Field::Bytes { left: 4, is_resource: false },
                _ => self.lost = Some("a field has no type that OTLP has: it is not an OTLP protobuf message"),
            },
            Field::Tag => self.lost = Some("a field has no number: it is not an OTLP protobuf message"),
            Field::Length { is_resource } => self.skip(hand, value, is_resource),
            Field::Varint | Field::Bytes { .. } => self.at = Field::Tag,
        }
    }

    fn skip(&mut self, hand: &mut Hand, left: u64, is_resource: bool) {
        self.at = if left > 0 { Field::Bytes { left, is_resource } } else { Field::Tag };
        if left == 0 && is_resource {
            hand.finish(None);
            (self.begun, self.any) = (false, true);
        }
    }

    fn end(&mut self, hand: &mut Hand) {
        let whole = matches!(self.at, Field::Tag) && self.varint.1 == 0;
        let why = match self.lost {
            Some(why) => Some(why),
            None if !self.begun => None,
            None if !whole => Some("ends early"),
            // Unknown fields behind the last resource say nothing.
            None if self.any => None,
            None => Some("has no resource spans: it is not an OTLP protobuf message of traces"),
        };
        if let Some(why) = why {
            hand.finish(Some(Bad::Malformed(why)));
        }
        *self = Self { any: true, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(form: Form, limit: u64, chunks: &[&[u8]]) -> Vec<Piece> {
        let mut cutter = Cutter::new(form, limit);
        chunks.iter().for_each(|chunk| cutter.feed(chunk));
        cutter.end();
        std::iter::from_fn(|| cutter.next()).collect()
    }

    /// What the pieces say, shortly: their text, or why there is none, with the place.
    fn shown(form: Form, text: &str) -> Vec<String> {
        let pieces = cut(form, 40, &[text.as_bytes()]);
        let show = |piece: Piece| match piece.content {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(Bad::TooLarge) => format!("{}@{:?} too large", piece.line, piece.bytes),
            Err(Bad::Malformed(why)) => format!("{}@{:?} {why}", piece.line, piece.bytes),
        };
        pieces.into_iter().map(show).collect()
    }

    #[test]
    fn lines_end_in_any_way_and_blank_ones_are_none() {
        let lines = |text| shown(Form::Lines, text);
        assert_eq!(lines(""), Vec::<String>::new());
        assert_eq!(lines("{1}\n\r\n  \n{2}\r\n{3}"), ["{1}", "{2}", "{3}"]);
        let long = format!("{{1}}\n{}\n{{2}}", "x".repeat(41));
        assert_eq!(lines(&long), ["{1}", "2@4..46 too large", "{2}"]);
    }

    #[test]
    fn documents_are_cut_at_their_resources() {
        let documents = |text| shown(Form::Documents, text);
        assert_eq!(
            documents(r#"{"resourceSpans":[{"a":1},{"b":[{}]} , {"}":"]\"}"}]}"#),
            [r#"{"a":1}"#, r#"{"b":[{}]}"#, r#"{"}":"]\"}"}"#]
        );
        assert_eq!(
            documents(
                "{\"x\":[1,{\"resourceSpans\":[{}]}],\"y\":-1.5e3 ,\"z\":\"}\",\"resource_spans\":[{1}]}\n{\"resourceSpans\":[{2}]}"
            ),
            ["{1}", "{2}"]
        );
        assert_eq!(
            documents("{\"info\":{}, \"data\":[{}]}\n{}{\"resourceSpans\":[{1}]}"),
            ["{\"info\":{}, \"data\":[{}]}", "{1}"]
        );
        for empty in [
            "{}",
            "{} {}\n",
            r#"{"resourceSpans":[]}"#,
            r#"{"resourceSpans":null,"a":1}"#,
            r#" {"a":1,"resourceSpans": [ ] } "#,
        ] {
            assert_eq!(documents(empty), Vec::<String>::new(), "{empty}");
        }
        let long = format!(r#"{{"resourceSpans":[{{"{}"}},{{1}}]}}"#, "x".repeat(40));
        assert_eq!(documents(&long), ["1@18..62 too large", "{1}"]);
    }

    #[test]
    fn what_is_no_document_is_said_with_its_place_and_what_was_before_it_is_taken() {
        let cases = [
            ("", "1@0..0 ends early"),
            (" \n", "1@0..2 ends early"),
            ("[{}]", "1@0..4 is not an object of OTLP JSON"),
            ("{\"resourceSpans\":[{\"a\":", "1@18..23 ends early"),
            ("{\"resourceSpans\":[", "1@0..18 ends early"),
            ("{\"resourceSpans\":[{},", "1@20..21 ends early"),
            ("{\"resourceSpans\":[1]}", "1@18..21 an item of resourceSpans is not an object"),
            ("{\"resourceSpans\":{}}", "1@17..20 resourceSpans is not a list"),
            ("{\"resourceSpans\":[],\"resourceSpans\":[]}", "1@36..39 resourceSpans is there twice"),
            ("\n{\n\"resourceMetrics\":[{}]}", "2@1..26 metrics, not traces"),
            ("{\"info\":{},\"data\":{\"spans\":[]},\"x\":[123456789]}", "1@0..47 too large"),
            ("{\"a\":1 2}", "1@7..9 a comma is expected"),
            ("{\"a\" 1}", "1@5..7 a colon is expected"),
            ("{\"a\":}", "1@5..6 a value is expected"),
            ("{a", "1@1..2 a name in quotes is expected"),
            ("{\"a\":1,}", "1@7..8 a name in quotes is expected"),
        ];
        for (text, expected) in cases {
            let shown = shown(Form::Documents, text);
            assert_eq!(shown.last().map(String::as_str), Some(expected), "{text}");
            assert_eq!(shown.len(), if text.contains("[{},") { 2 } else { 1 }, "{text}");
        }
        let text = "{\"resourceSpans\":[{1},\n{2}]}\nx";
        assert_eq!(shown(Form::Documents, text), ["{1}", "{2}", "3@29..30 is not an object of OTLP JSON"]);
    }

    #[test]
    fn messages_are_cut_behind_each_resource_and_what_is_unknown_goes_with_the_next() {
        let cut = |bytes: &[u8]| cut(Form::Protobuf, 8, &[bytes]);
        let good =
            |bytes: Range<u64>, content: &[u8]| Piece { bytes, line: 0, whole: false, content: Ok(content.to_vec()) };
        let bad = |bytes: Range<u64>, why| Piece { bytes, line: 0, whole: false, content: Err(Bad::Malformed(why)) };
        assert_eq!(cut(&[]), []);
        assert_eq!(cut(&[0x0a, 1, 9, 0x0a, 0]), [good(0..3, &[0x0a, 1, 9]), good(3..5, &[0x0a, 0])]);
        let unknown = [0x10, 0x96, 1, 0x1a, 1, 0, 0x0a, 0, 0x25, 0, 0, 0, 0];
        assert_eq!(cut(&unknown), [good(0..8, &unknown[..8])], "and behind the last it says nothing");
        assert_eq!(cut(&[0x0a, 2, 9]), [bad(0..3, "ends early")]);
        assert_eq!(cut(&[0x0a, 0, 0x80]), [good(0..2, &[0x0a, 0]), bad(2..3, "ends early")]);
        let long = [&[0x0a, 9][..], &[0; 9], &[0x0a, 0]].concat();
        assert_eq!(cut(&long)[0], Piece { bytes: 0..11, line: 0, whole: false, content: Err(Bad::TooLarge) });
        assert_eq!(cut(&long)[1], good(11..13, &[0x0a, 0]));
        for no_message in [&b"text"[..], &[0xff; 12], &[0], &[0x0b], &[0x12, 1, 1]] {
            let pieces = cut(no_message);
            assert!(matches!(pieces[..], [Piece { content: Err(_), .. }]), "{no_message:?}: {pieces:?}");
        }
    }

    fn form() -> impl Strategy<Value = Form> {
        prop_oneof![Just(Form::Lines), Just(Form::Documents), Just(Form::Protobuf)]
    }

    /// Bytes of which documents and messages are made, so that chance goes deep.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let token = prop_oneof![
            "[\\[\\]{}:,0-9eE.+\"\\\\ua \n\r-]{0,6}".prop_map(String::into_bytes),
            Just(b"{\"resourceSpans\":[{".to_vec()),
            Just(b"\"resourceSpans\"".to_vec()),
            prop::collection::vec(prop_oneof![Just(0x0a_u8), 0_u8..20, any::<u8>()], 0..8),
        ];
        prop::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #[test]
        fn how_it_is_fed_changes_nothing(form in form(), bytes in noise(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
            let whole = cut(form, 30, &[&bytes]);
            let mut places: Vec<usize> = cuts.iter().map(|at| at.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
            places.sort_unstable();
            let chunks: Vec<&[u8]> = places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(&cut(form, 30, &chunks), &whole);
            let singles: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&cut(form, 30, &singles), &whole);
            for pair in whole.windows(2) {
                prop_assert!(pair[0].bytes.end <= pair[1].bytes.start);
            }
            for piece in whole {
                prop_assert!(piece.bytes.end <= bytes.len() as u64);
                prop_assert!(piece.content.is_err() || piece.content.is_ok_and(|content| content.len() <= 30));
            }
        }

        #[test]
        fn no_resource_of_a_document_is_lost(
            items in prop::collection::vec("[a-z\"\\\\{}\\[\\], ]{0,8}", 0..6),
            space in "[ \n]{0,2}",
        ) {
            let item = |text: &String| serde_json::json!({ "a": [text, {}], text: 1 }).to_string();
            let items: Vec<String> = items.iter().map(item).collect();
            let document = format!("{space}{{{space}\"x\"{space}:{space}[0]{space},\"resourceSpans\"{space}:{space}[{space}{}{space}]{space}}}{space}", items.join(&format!("{space},{space}")));
            let found: Vec<String> = cut(Form::Documents, 1000, &[document.as_bytes()])
                .into_iter()
                .map(|piece| String::from_utf8(piece.content.expect("good")).expect("text"))
                .collect();
            prop_assert_eq!(found, items);
        }
    }
}
