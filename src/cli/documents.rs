//! Finds the traces in a file: compressed or not, JSON or protobuf, one document or many.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use crate::otlp::json::JsonError;
use crate::otlp::trace_json::{self, Dialect};

/// Longest document; the daemon's own limit can't be set higher, and memory must have a bound.
const LONGEST: usize = 1 << 30;

/// How a document is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// JSON, all on one line.
    Line,
    /// An OTLP message.
    Protobuf,
}

/// One thing to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// How they are handed over.
    pub form: Form,
    /// The line where it begins; nothing for protobuf.
    pub line: Option<u64>,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum Bad {
    /// Its content.
    #[error("{}{message}", line.map(|line| format!("line {line}: ")).unwrap_or_default())]
    Content {
        /// Where.
        line: Option<u64>,
        /// What.
        message: String,
    },
    /// It can't be read.
    #[error("{0}")]
    Io(io::Error),
}

/// The documents of a file, read as they are asked for.
pub(super) struct Documents {
    reader: Box<dyn BufRead>,
    kind: Kind,
    line: u64,
}

enum Kind {
    Json,
    Proto,
    /// Nothing more comes.
    End,
}

impl Documents {
    /// Looks at the beginning to find out what this is.
    pub(super) fn new(reader: impl Read + 'static) -> Result<Self, Bad> {
        let (prefix, reader) = peek::<256>(decompressed(reader)?)?;
        let line = 1 + count_lines(prefix.split(|byte| !byte.is_ascii_whitespace()).next().unwrap_or_default());
        let kind = match prefix.iter().find(|byte| !byte.is_ascii_whitespace()) {
            // A protobuf message may begin like text: its first byte is that of a line end, and a length of 123 that
            // of a brace. But it cannot go on for long without a byte that JSON never contains.
            _ if prefix.iter().any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace()) => Kind::Proto,
            Some(b'{') | None => Kind::Json,
            Some(b'[') => {
                return Err(content(
                    Some(line),
                    "begins with a list; OTLP JSON, and a trace of MLflow, begin with an object",
                ));
            }
            Some(byte) if byte.is_ascii_graphic() && prefix.first() != Some(&0x0a) => {
                return Err(content(Some(line), "is neither JSON nor an OTLP protobuf message"));
            }
            Some(_) => Kind::Proto,
        };
        Ok(Self { reader, kind, line: 1 })
    }

    /// The next document; nothing at the end.
    pub(super) fn next(&mut self) -> Result<Option<Document>, Bad> {
        match self.kind {
            Kind::End => Ok(None),
            Kind::Proto => {
                self.kind = Kind::End;
                let mut bytes = Vec::new();
                self.reader.by_ref().take(LONGEST as u64 + 1).read_to_end(&mut bytes).map_err(read_error)?;
                if bytes.len() > LONGEST {
                    return Err(content(None, "is larger than 1 GiB"));
                }
                Ok(Some(Document { bytes, form: Form::Protobuf, line: None }))
            }
            Kind::Json => self.next_json(),
        }
    }

    /// Reads up to the brace that closes the object, whatever lines it is spread over. Whether it is good JSON is
    /// found out later; here only strings and braces count.
    fn next_json(&mut self) -> Result<Option<Document>, Bad> {
        let (blanks, first) = skip_blanks(&mut self.reader)?;
        self.line += blanks;
        let start = self.line;
        match first {
            None => return Ok(None),
            Some(b'{') => {}
            Some(_) => return Err(content(Some(start), "is not an object, as OTLP JSON or a trace of MLflow")),
        }
        let mut bytes = Vec::new();
        let mut scan = Scan::default();
        loop {
            let buffer = self.reader.fill_buf().map_err(read_error)?;
            if buffer.is_empty() {
                return Err(content(Some(start), "the object that begins here has no end"));
            }
            let end = buffer.iter().position(|byte| scan.closes(*byte));
            let taken = end.map_or(buffer.len(), |end| end + 1);
            bytes.extend_from_slice(&buffer[..taken]);
            self.line += count_lines(&buffer[..taken]);
            self.reader.consume(taken);
            if bytes.len() > LONGEST {
                return Err(content(Some(start), "the object that begins here is larger than 1 GiB"));
            }
            if end.is_some() {
                break;
            }
        }
        check_json(&bytes, start)?;
        // In JSON a line break stands between tokens only, where a blank does as well.
        for byte in bytes.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
            *byte = b' ';
        }
        Ok(Some(Document { bytes, form: Form::Line, line: Some(start) }))
    }
}

/// Follows braces outside of strings.
#[derive(Default)]
struct Scan {
    depth: u64,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Whether this byte closes the outermost object.
    fn closes(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' => self.depth += 1,
            b'}' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// Whether this is an object that may hold spans, so that what is not is said with its place in the file. The daemon
/// looks closer.
fn check_json(bytes: &[u8], start: u64) -> Result<(), Bad> {
    use serde::de::IgnoredAny;
    let wrong = |error: JsonError| {
        content(Some(start + error.line.saturating_sub(1) as u64), format!("is not a trace: {}", error.problem))
    };
    if matches!(Dialect::of(bytes), Ok(Dialect::Mlflow)) {
        return trace_json::to_wire(bytes).map(drop).map_err(wrong);
    }
    serde_json::from_slice::<IgnoredAny>(bytes).map_err(|error| {
        let line = start + error.line().saturating_sub(1) as u64;
        content(Some(line), format!("is not JSON: {error}"))
    })?;
    Dialect::of(bytes).map(drop).map_err(wrong)
}

fn decompressed(reader: impl Read + 'static) -> Result<Box<dyn BufRead>, Bad> {
    let (magic, reader) = peek::<4>(BufReader::with_capacity(1 << 16, reader))?;
    let plain: Box<dyn Read> = match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::with_buffer(reader).map_err(read_error)?),
        _ => return Ok(reader),
    };
    Ok(Box::new(BufReader::with_capacity(1 << 16, plain)))
}

/// The first bytes, and a reader that still has them. A pipe may hand them over one by one.
fn peek<const N: u64>(mut reader: impl BufRead + 'static) -> Result<(Vec<u8>, Box<dyn BufRead>), Bad> {
    let mut prefix = Vec::new();
    reader.by_ref().take(N).read_to_end(&mut prefix).map_err(read_error)?;
    Ok((prefix.clone(), Box::new(Cursor::new(prefix).chain(reader))))
}

/// Skips blanks; returns the number of lines, and the byte behind them, which stays in the reader.
fn skip_blanks(reader: &mut impl BufRead) -> Result<(u64, Option<u8>), Bad> {
    let mut lines = 0;
    loop {
        let buffer = reader.fill_buf().map_err(read_error)?;
        if buffer.is_empty() {
            return Ok((lines, None));
        }
        let end = buffer.iter().position(|byte| !byte.is_ascii_whitespace());
        let taken = end.unwrap_or(buffer.len());
        let next = end.map(|end| buffer[end]);
        lines += count_lines(&buffer[..taken]);
        reader.consume(taken);
        if next.is_some() {
            return Ok((lines, next));
        }
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

fn content(line: Option<u64>, message: impl Into<String>) -> Bad {
    Bad::Content { line, message: message.into() }
}

/// A decompressor reports bad data as an error of reading; that is the content's fault.
fn read_error(error: io::Error) -> Bad {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            content(None, format!("is damaged: {error}"))
        }
        // zstd's own errors have no kind of their own.
        io::ErrorKind::Other => content(None, format!("is damaged: {error}")),
        _ => Bad::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(String, Option<u64>)>, String> {
        let mut documents = Documents::new(Cursor::new(bytes.to_vec())).map_err(|bad| bad.to_string())?;
        let mut found = Vec::new();
        while let Some(document) = documents.next().map_err(|bad| bad.to_string())? {
            found.push((String::from_utf8_lossy(&document.bytes).into_owned(), document.line));
        }
        Ok(found)
    }

    const ONE: &str = r#"{"resourceSpans":[]}"#;

    #[test]
    fn lines_and_spread_out_documents_are_found_with_their_lines() {
        let spread = "{\n \"resourceSpans\": [ {\"a\": \"}\\\"{\"} ]\n}";
        let text = format!("\n{ONE}\r\n\n{spread}\n{ONE}{ONE}");
        let expected = vec![
            (ONE.to_owned(), Some(2)),
            (spread.replace('\n', " "), Some(4)),
            (ONE.to_owned(), Some(7)),
            (ONE.to_owned(), Some(7)),
        ];
        assert_eq!(all(text.as_bytes()), Ok(expected));
        assert_eq!(all(b""), Ok(vec![]));
        assert_eq!(all(b" \n\n"), Ok(vec![]));
    }

    #[test]
    fn traces_of_mlflow_are_documents_in_one_line() {
        for json in [
            &include_bytes!("../../tests/data/nested.mlflow-trace.json")[..],
            include_bytes!("../../tests/data/nested.mlflow-traces.json"),
        ] {
            let text = [json, b"\n", json].concat();
            let documents = all(&text).expect("two documents");
            assert_eq!(documents.len(), 2);
            for (document, _) in documents {
                assert!(!document.contains('\n'));
                assert_eq!(trace_json::to_wire(document.as_bytes()), trace_json::to_wire(json));
            }
        }
    }

    #[test]
    fn compressed_files_are_the_same_files() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(ONE.as_bytes()).expect("compressed");
        let gzip = gzip.finish().expect("compressed");
        let twice = [gzip.clone(), gzip.clone()].concat();
        let zstd = zstd::stream::encode_all(ONE.as_bytes(), 0).expect("compressed");
        assert_eq!(all(&gzip).expect("read").len(), 1);
        assert_eq!(all(&twice).expect("read").len(), 2);
        assert_eq!(all(&zstd).expect("read").len(), 1);
        for cut in [&gzip[..gzip.len() - 9], &zstd[..zstd.len() - 3]] {
            let error = all(cut).expect_err("cut off");
            assert!(error.contains("damaged"), "{error}");
        }
    }

    #[test]
    fn protobuf_is_one_document_with_every_byte() {
        // A message that begins with bytes that are blanks in text.
        let message = [&[0x0a, 0x20, 0x0a, 0x0d][..], &[0xff; 300][..]].concat();
        let mut documents = Documents::new(Cursor::new(message.clone())).expect("opened");
        let document = documents.next().expect("read").expect("one");
        assert_eq!((document.bytes, document.form), (message, Form::Protobuf));
        assert!(documents.next().expect("read").is_none());
    }

    #[test]
    fn a_message_that_begins_like_text_is_still_a_message() {
        // The first resource is 123 bytes long, so the file begins with a line end and a brace.
        let message = [&b"\n{\n\"\n \n\x0cservice.name\x12\x10\n\x0e"[..], &[b'x'; 97][..]].concat();
        let mut documents = Documents::new(Cursor::new(message.clone())).expect("opened");
        assert_eq!(documents.next().expect("read").expect("one").bytes, message);
    }

    #[test]
    fn what_is_no_trace_says_where_and_why() {
        for (text, words) in [
            ("hello".to_owned(), "line 1: is neither"),
            (format!("{ONE}\nhello\n"), "line 2: is not an object"),
            (format!("{ONE}\n{{\"resourceSpans\":"), "line 2: the object that begins here has no end"),
            (format!("{ONE}\n{{\n\"resourceSpans\": x}}"), "line 3: is not JSON"),
            ("\n{\"traces\":[]}".to_owned(), "line 2: is not a trace: neither OTLP JSON (no resourceSpans) nor"),
            (
                "{\"info\":{},\n\"data\":{\"spans\":[{\"name\":\"a\"}]}}".to_owned(),
                "line 2: is not a trace: the span has no trace_id",
            ),
            ("\n[{}]".to_owned(), "line 2: begins with a list"),
        ] {
            let error = all(text.as_bytes()).expect_err(&text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
