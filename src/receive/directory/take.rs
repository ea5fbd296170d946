//! One file, from its first byte to its last: read, decompressed, cut, transcoded, validated, and handed out in parts
//! of which each becomes one commit group.
//!
//! A file that was begun before, by this process or one that was killed, is read again from its beginning; what is in
//! the journal already is only looked at. So all that is wrong with the file is known at its end, however often it was
//! begun.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use spool::{DropFile, FileId};

use super::cut::{Bad, Cutter, Form, Piece};
use super::name::Packing;
use super::place::Look;
use crate::intake::{Door, Refusal, SourceRange, Submission};
use crate::otlp::json::JsonError;
use crate::otlp::trace_json::Dialect;
use crate::otlp::{self, Summary};
use crate::receive::budget::{Budget, Charge};
use crate::receive::coding::ZSTD_WINDOW_LOG;
use crate::receive::size;

/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// A part has at most so many records.
const PART_RECORDS: usize = 256;
/// So many problems of a file are kept; of a file with more, the whole is set aside.
pub(super) const MOST_PROBLEMS: usize = 10_000;
/// The budget is asked again when the memory for a file grows by this.
const CHARGE_STEP: u64 = 1 << 20;

/// Bounds on what a file may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// `receive.max_request_bytes`: for a line or a resource.
    pub(super) piece_bytes: u64,
    /// For a part, unless it is one larger record.
    pub(super) part_bytes: u64,
}

/// A part of a file that can't be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) bytes: Range<u64>,
    /// From 1; 0 in protobuf.
    pub(super) line: u64,
    pub(super) what: String,
    pub(super) too_large: bool,
}

/// What is to be in one commit group.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) submissions: Vec<Submission>,
    /// How far the file is taken with it.
    pub(super) taken: DropFile,
}

/// What comes next of a file.
#[derive(Debug)]
pub(super) enum Next {
    /// To be stored before the next one is asked for.
    Part(Part),
    /// There is no memory for more now.
    Busy,
    /// It is not the file that it was taken for. Begin again, without what is known of that.
    Another,
    /// That was all.
    End,
}

/// A file that is being taken.
pub(super) struct Taking {
    file: File,
    id: FileId,
    born_ns: u64,
    form: Form,
    reader: Box<dyn Read + Send>,
    broken: Arc<AtomicBool>,
    packing: Packing,
    cutter: Cutter,
    bounds: Bounds,
    /// As it looked before it was read to the end.
    look: Look,
    /// What was taken of it before.
    before: Option<DropFile>,
    /// The last bytes read; the first of them is at this offset.
    chunk: Vec<u8>,
    chunk_at: u64,
    ended: bool,
    sum: Sum,
    /// The record that is being put together.
    open: Option<Record>,
    /// Those of the next part, and their bytes.
    part: Vec<Record>,
    part_bytes: u64,
    charge: Charge,
    charged: u64,
    most: u64,
    /// Pieces that are in the journal, or will be.
    good: u64,
    problems: Vec<Problem>,
    problems_total: u64,
}

/// The checksum of all bytes before a place.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    to: u64,
    value: u32,
}

/// What will be one record.
#[derive(Debug)]
struct Record {
    payload: Vec<u8>,
    summary: Summary,
    experiment: Option<String>,
    bytes: Range<u64>,
    /// Of all bytes before the end of it.
    checksum: u32,
}

impl std::fmt::Debug for Taking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taking").field("id", &self.id).field("at", &self.cutter.at()).finish_non_exhaustive()
    }
}

impl Taking {
    /// Begins with a file that was just opened. `before` is what is known to be taken of it.
    pub(super) fn begin(
        (file, id, born_ns): (File, FileId, u64),
        (form, packing): (Form, Packing),
        before: Option<DropFile>,
        bounds: Bounds,
        budget: &Budget,
    ) -> Result<io::Result<Self>, Refusal> {
        let charge = budget.open()?;
        let most = budget.most_for_large();
        Ok(Self::build((file, id, born_ns), (form, packing), before, bounds, (charge, most)))
    }

    fn build(
        (file, id, born_ns): (File, FileId, u64),
        (form, packing): (Form, Packing),
        before: Option<DropFile>,
        bounds: Bounds,
        (charge, most): (Charge, u64),
    ) -> io::Result<Self> {
        let broken = Arc::new(AtomicBool::new(false));
        let reader = unpacked(file.try_clone()?, packing, &broken)?;
        Ok(Self {
            look: Look::of(&file)?,
            file,
            id,
            born_ns,
            form,
            reader,
            broken,
            packing,
            cutter: Cutter::new(form, bounds.piece_bytes),
            bounds,
            before,
            chunk: vec![0; CHUNK],
            chunk_at: 0,
            ended: false,
            sum: Sum::default(),
            open: None,
            part: Vec::new(),
            part_bytes: 0,
            charge,
            charged: 0,
            most,
            good: 0,
            problems: Vec::new(),
            problems_total: 0,
        })
    }

    /// Reads on to the next part.
    ///
    /// # Errors
    /// The file can't be read. That says nothing about what is in it.
    pub(super) fn next(&mut self) -> io::Result<Next> {
        loop {
            // A record that closes a part may have been followed by a larger one.
            while !self.is_part_full() {
                let Some(piece) = self.cutter.next() else { break };
                self.take(piece);
            }
            if self.is_part_full() {
                return Ok(Next::Part(self.cut_part()));
            }
            if self.ended {
                self.part.extend(self.open.take());
                return Ok(if self.part.is_empty() { Next::End } else { Next::Part(self.cut_part()) });
            }
            if self.hold().is_err() {
                return Ok(Next::Busy);
            }
            self.read()?;
            if !self.is_the_file() {
                return Ok(Next::Another);
            }
        }
    }

    /// The memory that this file needs, charged in steps.
    fn hold(&mut self) -> Result<(), Refusal> {
        // A piece, its transcoded form, and what is put together.
        let needed = 3 * size(self.cutter.held()) + self.part_bytes + size(CHUNK);
        let needed = needed.next_multiple_of(CHARGE_STEP);
        if needed != self.charged {
            // More than there is at all can't be waited for.
            self.charge.hold(needed.min(self.most))?;
            self.charged = needed;
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        self.sum_up_to(self.cutter.at());
        self.chunk_at = self.cutter.at();
        self.chunk.resize(CHUNK, 0);
        let read = loop {
            match self.reader.read(&mut self.chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(0) => {
                self.chunk.clear();
                self.ended = true;
                // What it looked like before the last look whether there is more.
                self.look = Look::of(&self.file)?;
                self.cutter.end();
            }
            Ok(length) => {
                self.chunk.truncate(length);
                self.cutter.feed(&self.chunk);
            }
            // The error's own text may quote the input.
            Err(_) if self.packing != Packing::Plain && !self.broken.load(Ordering::Relaxed) => {
                self.chunk.clear();
                self.ended = true;
                self.cutter.spoil("is not compressed as its name says, or is cut short");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether what was taken of the file before is still what it begins with.
    fn is_the_file(&self) -> bool {
        let Some(before) = self.before.as_ref().filter(|before| before.behind >= self.sum.to) else { return true };
        let end = self.chunk_at + size(self.chunk.len());
        if before.behind > end {
            return !self.ended;
        }
        u64::from(self.sum.and(self.bytes(self.sum.to..before.behind)).value) == before.checksum
    }

    fn bytes(&self, range: Range<u64>) -> &[u8] {
        let at = |offset: u64| usize::try_from(offset - self.chunk_at).unwrap_or(usize::MAX).min(self.chunk.len());
        &self.chunk[at(range.start)..at(range.end)]
    }

    fn sum_up_to(&mut self, end: u64) {
        if end > self.sum.to {
            self.sum = self.sum.and(self.bytes(self.sum.to..end));
        }
    }

    /// A piece: already in the journal, or part of a record to be, or bad.
    fn take(&mut self, mut piece: Piece) {
        self.sum_up_to(piece.bytes.end);
        let behind = self.before.as_ref().map_or(0, |before| before.behind);
        let known =
            piece.bytes.end <= behind || self.before.as_ref().is_some_and(|it| it.beyond.contains(piece.bytes.start));
        if !known && piece.bytes.start < behind && self.form == Form::Lines {
            // A last line without an end was taken, and more was written behind it.
            let taken = usize::try_from(behind - piece.bytes.start).unwrap_or(usize::MAX);
            piece.content = piece.content.map(|line| line.get(taken..).unwrap_or_default().to_vec());
            piece.bytes.start = behind;
            if piece.content.as_ref().is_ok_and(|line| line.trim_ascii().is_empty()) {
                return;
            }
        }
        let request = match piece.content {
            Ok(bytes) => to_request(self.form, piece.whole, bytes, self.bounds.piece_bytes),
            Err(Bad::TooLarge) => Err(too_large(self.bounds.piece_bytes)),
            Err(Bad::Malformed(what)) => Err(Wrong { line: 0, column: None, what: what.to_owned(), too_large: false }),
        };
        match request {
            Err(wrong) => {
                self.problems_total += 1;
                if self.problems.len() < MOST_PROBLEMS {
                    let line = if piece.line == 0 { 0 } else { piece.line + wrong.line };
                    let column = wrong.column.map(|column| format!("column {column}: ")).unwrap_or_default();
                    let what = format!("{column}{}", wrong.what);
                    self.problems.push(Problem { bytes: piece.bytes, line, what, too_large: wrong.too_large });
                }
            }
            Ok(request) => {
                self.good += 1;
                if let Some(Request { wire, summary, experiment }) = request.filter(|_| !known) {
                    let (bytes, checksum) = (piece.bytes, self.sum.value);
                    self.add(Record { payload: wire, summary, experiment, bytes, checksum });
                }
            }
        }
    }

    /// Lines are records of their own; resources of one file go together, as they would in a request.
    fn add(&mut self, record: Record) {
        self.part_bytes += size(record.payload.len());
        let fits = |open: &Record| {
            let length = size(open.payload.len() + record.payload.len());
            open.experiment == record.experiment && length <= self.bounds.part_bytes
        };
        match self.open.take() {
            Some(mut open) if self.form != Form::Lines && fits(&open) => {
                open.absorb(record);
                self.open = Some(open);
            }
            closed => {
                self.part.extend(closed);
                self.open = Some(record);
            }
        }
    }

    fn is_part_full(&self) -> bool {
        !self.part.is_empty() && self.part_bytes >= self.bounds.part_bytes || self.part.len() >= PART_RECORDS
    }

    fn cut_part(&mut self) -> Part {
        let last = self.part.last().map_or((0, 0), |record| (record.bytes.end, record.checksum));
        let records = std::mem::take(&mut self.part);
        self.part_bytes = self.open.as_ref().map_or(0, |open| size(open.payload.len()));
        let taken = DropFile {
            behind: last.0,
            length: self.look.length,
            modified_ns: self.look.modified_ns,
            born_ns: self.born_ns,
            checksum: u64::from(last.1),
            ..DropFile::default()
        };
        Part { submissions: records.into_iter().map(|record| self.submission(record)).collect(), taken }
    }

    fn submission(&self, record: Record) -> Submission {
        let FileId { device, inode } = self.id;
        Submission {
            payload: Bytes::from(record.payload),
            summary: record.summary,
            door: Door::Directory,
            experiment: record.experiment,
            workspace: None,
            headers: Vec::new(),
            via: Vec::new(),
            peer_uid: None,
            call: None,
            source: Some(SourceRange { device, inode, start: record.bytes.start, end: record.bytes.end }),
        }
    }

    /// Which file it is.
    pub(super) fn id(&self) -> FileId {
        self.id
    }
}

impl Sum {
    fn and(self, bytes: &[u8]) -> Self {
        Self { to: self.to + size(bytes.len()), value: crc32c::crc32c_append(self.value, bytes) }
    }
}

impl Record {
    /// Protobuf merges messages that are put in a row.
    fn absorb(&mut self, next: Self) {
        self.payload.extend_from_slice(&next.payload);
        self.bytes.end = next.bytes.end;
        self.checksum = next.checksum;
        self.summary.spans += next.summary.spans;
        merge(&mut self.summary.trace_ids, next.summary.trace_ids);
        merge(&mut self.summary.services, next.summary.services);
    }
}

fn merge<T: Ord>(all: &mut Vec<T>, more: Vec<T>) {
    all.extend(more);
    all.sort_unstable();
    all.dedup();
}

/// What is wrong with a piece.
struct Wrong {
    /// Lines from the piece's first one.
    line: u64,
    column: Option<usize>,
    what: String,
    too_large: bool,
}

fn too_large(limit: u64) -> Wrong {
    let what = Refusal::TooLarge { limit }.to_string().replace("the request", "it");
    Wrong { line: 0, column: None, what, too_large: true }
}

const BEFORE_RESOURCE: &[u8] = b"{\"resourceSpans\":[";
const BEHIND_RESOURCE: &[u8] = b"]}";

/// A piece in the form in which it is stored.
struct Request {
    wire: Vec<u8>,
    summary: Summary,
    /// Where a trace of MLflow says that it belongs.
    experiment: Option<String>,
}

/// A piece as a request that can be stored; `None` when there is no span in it.
fn to_request(form: Form, whole: bool, piece: Vec<u8>, limit: u64) -> Result<Option<Request>, Wrong> {
    let (wire, experiment) = match form {
        Form::Protobuf => (piece, None),
        Form::Lines | Form::Documents if whole => from_document(&piece)?,
        Form::Lines | Form::Documents => {
            let document = [BEFORE_RESOURCE, &piece, BEHIND_RESOURCE].concat();
            (otlp::json::to_wire(&document).map_err(|error| Wrong::in_json(error, BEFORE_RESOURCE.len()))?, None)
        }
    };
    if size(wire.len()) > limit {
        return Err(too_large(limit));
    }
    match otlp::validate(&wire) {
        Ok(summary) if summary.spans == 0 => Ok(None),
        Ok(summary) => Ok(Some(Request { wire, summary, experiment })),
        Err(invalid) => Err(Wrong { line: 0, column: None, what: invalid.to_string(), too_large: false }),
    }
}

/// The one place where the forms of JSON are told apart.
fn from_document(text: &[u8]) -> Result<(Vec<u8>, Option<String>), Wrong> {
    let converted = match Dialect::of(text) {
        Ok(Dialect::Mlflow) => otlp::trace_json::to_wire(text).map(|it| (it.wire, it.experiment)),
        Ok(Dialect::Otlp) => otlp::json::to_wire(text).map(|wire| (wire, None)),
        Err(error) => Err(error),
    };
    converted.map_err(|error| Wrong::in_json(error, 0))
}

impl Wrong {
    /// `shift` bytes of the text's first line are not the file's.
    fn in_json(error: JsonError, shift: usize) -> Self {
        Self {
            line: size(error.line) - 1,
            // Where a resource begins in its line is not known here.
            column: (shift == 0 || error.line > 1).then_some(error.column),
            what: error.problem,
            too_large: false,
        }
    }
}

/// The content of a file.
pub(super) fn unpacked(file: File, packing: Packing, broken: &Arc<AtomicBool>) -> io::Result<Box<dyn Read + Send>> {
    let raw = Raw { file, broken: Arc::clone(broken) };
    Ok(match packing {
        Packing::Plain => Box::new(raw),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(CHUNK, raw))),
        Packing::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(CHUNK, raw))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

/// The file itself, which remembers that it, and not what is in it, could not be read.
struct Raw {
    file: File,
    broken: Arc<AtomicBool>,
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.broken.store(true, Ordering::Relaxed);
            }
        })
    }
}

impl Taking {
    /// What is left of it when it was read to its end: what is wrong with it, and the memory that its last part holds.
    pub(super) fn finish(self) -> (Verdict, Charge) {
        let Self { id, look, good, problems, problems_total, charge, .. } = self;
        (Verdict { id, look, good, problems, problems_total }, charge)
    }
}

/// What is known of a file that was read to its end.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) id: FileId,
    pub(super) look: Look,
    /// Pieces that are in the journal, or will be, or that have nothing in them.
    pub(super) good: u64,
    /// The first problems,
    pub(super) problems: Vec<Problem>,
    /// and how many there are.
    pub(super) problems_total: u64,
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;
    use spool::Ranges;

    use super::*;

    const SPAN: &str = r#"{"scopeSpans":[{"spans":[{"traceId":"00000000000000000000000000000001","spanId":"0000000000000001","name":"NAME"}]}]}"#;

    fn resource(name: &str) -> String {
        SPAN.replace("NAME", name)
    }

    fn line(name: &str) -> String {
        format!("{{\"resourceSpans\":[{}]}}", resource(name))
    }

    fn begin(content: &[u8], form: Form, before: Option<DropFile>, part_bytes: u64) -> Taking {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content).expect("written");
        std::io::Seek::rewind(&mut file).expect("rewound");
        let metadata = file.metadata().expect("known");
        let id = FileId { device: metadata.dev(), inode: metadata.ino() };
        let bounds = Bounds { piece_bytes: 1 << 16, part_bytes };
        let taking = Taking::begin((file, id, 0), (form, Packing::Plain), before, bounds, &Budget::new(1 << 24));
        taking.expect("there is memory").expect("it can be read")
    }

    /// Takes a file to its end: its parts, and what is wrong with it; nothing when it is another file.
    fn take_all(mut taking: Taking) -> Option<(Vec<Part>, Verdict)> {
        let mut parts = Vec::new();
        loop {
            match taking.next().expect("it can be read") {
                Next::Part(part) => parts.push(part),
                Next::Busy => panic!("there is memory"),
                Next::Another => return None,
                Next::End => return Some((parts, taking.finish().0)),
            }
        }
    }

    fn names(parts: &[Part]) -> Vec<String> {
        let mut names = Vec::new();
        for submission in parts.iter().flat_map(|part| &part.submissions) {
            let request: opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest =
                prost::Message::decode(submission.payload.clone()).expect("validated");
            let spans = request.resource_spans.iter().flat_map(|it| &it.scope_spans).flat_map(|it| &it.spans);
            names.extend(spans.map(|span| span.name.clone()));
        }
        names
    }

    fn lines(names: &[&str]) -> String {
        names.iter().map(|name| line(name) + "\n").collect()
    }

    #[test]
    fn every_line_is_a_record_and_resources_go_together() {
        let (parts, verdict) = take_all(begin(lines(&["a", "b"]).as_bytes(), Form::Lines, None, 1 << 20)).expect("it");
        assert_eq!((parts.len(), parts[0].submissions.len(), verdict.good), (1, 2, 2));
        let document = format!("{{\"resourceSpans\":[{},{}]}}", resource("a"), resource("b"));
        let (parts, _) = take_all(begin(document.as_bytes(), Form::Documents, None, 1 << 20)).expect("it");
        let [submission] = &parts[0].submissions[..] else { panic!("one record") };
        assert_eq!((submission.summary.spans, submission.summary.trace_ids.len()), (2, 1));
        assert_eq!(names(&parts), ["a", "b"]);
        assert_eq!(otlp::validate(&submission.payload).as_ref(), Ok(&submission.summary));
    }

    #[test]
    fn another_beginning_is_another_file_and_a_shorter_file_too() {
        let content = lines(&["a", "b"]);
        let (parts, _) = take_all(begin(content.as_bytes(), Form::Lines, None, 1)).expect("it");
        let before = parts[0].taken.clone();
        let resumed = take_all(begin(content.as_bytes(), Form::Lines, Some(before.clone()), 1)).expect("it");
        assert_eq!((names(&resumed.0), resumed.1.good), (vec!["b".to_owned()], 2));
        for other in [lines(&["c", "b"]), "{}".to_owned(), String::new()] {
            assert!(take_all(begin(other.as_bytes(), Form::Lines, Some(before.clone()), 1)).is_none(), "{other}");
        }
    }

    #[test]
    fn what_is_written_behind_a_last_line_without_an_end_is_new() {
        let taken = take_all(begin(line("a").as_bytes(), Form::Lines, None, 1)).expect("it").0[0].taken.clone();
        let more = [line("a"), "\n".to_owned(), line("b")].concat();
        let (parts, verdict) = take_all(begin(more.as_bytes(), Form::Lines, Some(taken.clone()), 1)).expect("it");
        assert_eq!((names(&parts), verdict.problems), (vec!["b".to_owned()], vec![]));
        let glued = [line("a"), line("b")].concat();
        let (parts, verdict) = take_all(begin(glued.as_bytes(), Form::Lines, Some(taken), 1)).expect("it");
        assert_eq!((names(&parts), verdict.problems), (vec!["b".to_owned()], vec![]));
    }

    #[test]
    fn too_large_is_said_and_the_rest_is_taken() {
        let content = [line(&"x".repeat(70_000)), line("a")].join("\n");
        let (parts, verdict) = take_all(begin(content.as_bytes(), Form::Lines, None, 1)).expect("it");
        assert_eq!(names(&parts), ["a"]);
        assert!(verdict.problems[0].too_large);
        assert_eq!(verdict.problems[0].what, "it is larger than receive.max_request_bytes = 65536");
    }

    #[test]
    fn a_line_of_something_else_is_no_success() {
        let content = "{\"name\":1}\n{}\n{\"resourceSpans\":[]}\n";
        let (parts, verdict) = take_all(begin(content.as_bytes(), Form::Lines, None, 1)).expect("it");
        assert_eq!((parts.len(), verdict.good, verdict.problems_total), (0, 2, 1));
        assert_eq!(verdict.problems[0].line, 1);
    }

    #[test]
    fn a_trace_of_mlflow_is_taken_whole_in_a_line_and_in_a_document() {
        let trace = include_str!("../../../tests/data/nested.mlflow-trace.json");
        let expected = otlp::trace_json::to_wire(trace.as_bytes()).expect("a trace");
        let line = serde_json::from_str::<serde_json::Value>(trace).expect("JSON").to_string();
        for (form, content) in [(Form::Documents, trace.to_owned()), (Form::Lines, line)] {
            let (parts, verdict) = take_all(begin(content.as_bytes(), form, None, 1)).expect("it");
            let [Part { submissions, .. }] = &parts[..] else { panic!("one part: {:?}", verdict.problems) };
            assert_eq!(submissions[0].summary.spans, otlp::validate(&expected.wire).expect("valid").spans);
            assert_eq!(submissions[0].experiment, expected.experiment);
        }
    }

    /// Good, bad and blank lines, and documents of good and bad resources.
    fn content() -> impl Strategy<Value = (Form, String)> {
        let good = (0..1000_u32).prop_map(|number| Some(format!("{number}{}", "x".repeat(number as usize % 90))));
        let piece = prop_oneof![3 => good, 1 => Just(None)];
        (any::<bool>(), prop::collection::vec(piece, 0..20), any::<bool>()).prop_map(|(as_lines, pieces, end)| {
            if as_lines {
                let lines: Vec<String> =
                    pieces.iter().map(|name| name.as_deref().map_or("{\"bad\":1}\n".into(), line)).collect();
                (Form::Lines, lines.join("\n") + if end { "\n" } else { "" })
            } else {
                let items: Vec<String> =
                    pieces.iter().map(|name| name.as_deref().map_or("{\"scopeSpans\":1}".into(), resource)).collect();
                (Form::Documents, format!("{{\"resourceSpans\":[{}]}}", items.join(",\n")))
            }
        })
    }

    proptest! {
        /// Wherever it was cut short, and whatever a torn group held of the next part, the rest is taken once.
        #[test]
        fn begun_again_it_goes_on_where_it_was(
            (form, text) in content(),
            part_bytes in 1_u64..600,
            stop in any::<prop::sample::Index>(),
            torn in any::<u8>(),
        ) {
            let content = text.as_bytes();
            let (parts, verdict) = take_all(begin(content, form, None, part_bytes)).expect("it");
            let all = names(&parts);
            let stop = stop.index(parts.len() + 1);
            let mut before = stop.checked_sub(1).map_or_else(DropFile::default, |last| parts[last].taken.clone());
            let mut held = Vec::new();
            if let Some(next) = parts.get(stop) {
                let mut beyond = Ranges::default();
                let kept = |index: &usize| torn >> (index % 8) & 1 == 1;
                for index in (0..next.submissions.len()).filter(kept) {
                    let source = next.submissions[index].source.expect("of a file");
                    beyond.insert(source.start..source.end);
                    let one = Part { submissions: vec![next.submissions[index].clone()], taken: DropFile::default() };
                    held.extend(names(&[one]));
                }
                before.beyond = beyond;
            }
            let (rest, again) = take_all(begin(content, form, Some(before), part_bytes)).expect("it");
            let mut found = [names(&parts[..stop]), held, names(&rest)].concat();
            let mut all = all;
            found.sort();
            all.sort();
            prop_assert_eq!(found, all);
            prop_assert_eq!(again.problems, verdict.problems);
            prop_assert_eq!(again.good, verdict.good);
        }
    }
}
