//! What is known of a record beside its payload, as values and as bytes.

use crate::tlv::{self, CRITICAL, Encoder, Malformed};

/// What a frame carries. The numbers are on disk and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Kind {
    /// An `ExportTraceServiceRequest` as it came.
    #[default]
    OtlpTraces = 1,
    /// The body of a call with which MLflow's SDK says something about a trace: `StartTraceV3`, tags, assessments.
    MlflowTraceInfo = 2,
    /// A file that MLflow's SDK uploaded.
    MlflowArtifact = 3,
    /// A fact that is not derivable from records.
    Control = 128,
    /// The whole state at one moment.
    Checkpoint = 129,
}

impl Kind {
    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        [Self::OtlpTraces, Self::MlflowTraceInfo, Self::MlflowArtifact, Self::Control, Self::Checkpoint]
            .into_iter()
            .find(|kind| *kind as u8 == value)
    }

    /// Controls and checkpoints take no record number and are not shown to lanes.
    pub(crate) fn is_record(self) -> bool {
        (self as u8) < Self::Control as u8
    }
}

/// The door that a record came through. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Door {
    /// OTLP over gRPC.
    Grpc = 1,
    /// OTLP over HTTP.
    #[default]
    Http = 2,
    /// MLflow's own calls.
    Mlflow = 3,
    /// JSON lines on the spool socket.
    Lines = 4,
    /// The drop directory.
    Directory = 5,
}

impl Door {
    fn from_u8(value: u8) -> Option<Self> {
        [Self::Grpc, Self::Http, Self::Mlflow, Self::Lines, Self::Directory]
            .into_iter()
            .find(|door| *door as u8 == value)
    }
}

/// Where in which drop file a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRange {
    /// Device of the file.
    pub device: u64,
    /// Inode of the file.
    pub inode: u64,
    /// First byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
}

/// Why a record was set aside. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Not given up: to be tried again while its neighbours pass.
    Parked = 1,
    /// The backend refused it for good.
    Rejected = 2,
    /// Nothing delivered it in `retry_timeout`.
    Expired = 3,
    /// Larger than the backend takes, and not divisible further.
    TooLarge = 4,
}

impl Reason {
    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        [Self::Parked, Self::Rejected, Self::Expired, Self::TooLarge].into_iter().find(|reason| *reason as u8 == value)
    }
}

/// What the side journal keeps of a record that a lane set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Its number in the main journal.
    pub record: u64,
    /// The backend that did not take it.
    pub backend: String,
    /// Why.
    pub reason: Reason,
    /// The backend's status.
    pub status: String,
    /// The backend's message, shortened.
    pub message: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Wall clock of the first attempt, nanoseconds since 1970.
    pub first_attempt_ns: u64,
    /// Wall clock of the last attempt.
    pub last_attempt_ns: u64,
    /// Running clock at which it was set aside, milliseconds: its age as a dead letter counts from there.
    pub clock_ms: u64,
}

/// An MLflow call, to be made again at the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// HTTP method.
    pub method: String,
    /// Path below the server's base address, as the client named it.
    pub path: String,
    /// Media type of the body, when the client named one.
    pub content_type: Option<String>,
}

/// What is known of a record beside its payload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Envelope {
    /// What the payload is.
    pub kind: Kind,
    /// Wall clock of receipt, nanoseconds since 1970.
    pub received_ns: u64,
    /// Running clock of receipt, milliseconds.
    pub clock_ms: u64,
    /// Spans in the payload.
    pub spans: u32,
    /// Distinct traces in the payload.
    pub traces: u32,
    /// Where it came in.
    pub door: Door,
    /// MLflow experiment that the client named.
    pub experiment: Option<String>,
    /// MLflow workspace that the client named.
    pub workspace: Option<String>,
    /// Headers kept by configuration, in order.
    pub headers: Vec<(String, String)>,
    /// User id of the peer on a Unix socket.
    pub peer_uid: Option<u32>,
    /// The drop file it came from.
    pub source: Option<SourceRange>,
    /// Other daemons that it passed, for loop detection.
    pub via: Vec<String>,
    /// Traces that the record is about, where the payload can't be asked.
    pub trace_ids: Vec<[u8; 16]>,
    /// The MLflow call whose body the payload is.
    pub call: Option<Call>,
    /// Set in the side journal only.
    pub aside: Option<Aside>,
}

const DOOR: u16 = 1;
const EXPERIMENT: u16 = 2;
const WORKSPACE: u16 = 3;
const HEADER: u16 = 4;
const PEER_UID: u16 = 5;
const SOURCE: u16 = 6;
const VIA: u16 = 7;
/// Reserved: the payload is compressed. No reader may hand it on as it is.
const COMPRESSION: u16 = CRITICAL | 8;
/// Reserved: the payload is encrypted.
const ENCRYPTION: u16 = CRITICAL | 9;
const TRACE_IDS: u16 = 10;
const CALL: u16 = 12;
const CALL_CONTENT_TYPE: u16 = 13;
const ASIDE_RECORD: u16 = 32;
const ASIDE_BACKEND: u16 = 33;
const ASIDE_REASON: u16 = 34;
const ASIDE_STATUS: u16 = 35;
const ASIDE_MESSAGE: u16 = 36;
const ASIDE_ATTEMPTS: u16 = 37;
const ASIDE_TIMES: u16 = 38;
const ASIDE_CLOCK: u16 = 40;

impl Envelope {
    /// The part that the frame header does not hold.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.u8(DOOR, self.door as u8);
        to.text(EXPERIMENT, self.experiment.as_deref()).text(WORKSPACE, self.workspace.as_deref());
        for (name, value) in &self.headers {
            to.bytes(HEADER, [name.as_bytes(), b"\0", value.as_bytes()].concat().as_slice());
        }
        if let Some(uid) = self.peer_uid {
            to.u32(PEER_UID, uid);
        }
        if let Some(SourceRange { device, inode, start, end }) = self.source {
            to.u64s(SOURCE, &[device, inode, start, end]);
        }
        for via in &self.via {
            to.text(VIA, Some(via));
        }
        if !self.trace_ids.is_empty() {
            to.bytes(TRACE_IDS, self.trace_ids.as_flattened());
        }
        if let Some(Call { method, path, content_type }) = &self.call {
            to.text(CALL, Some(&format!("{method} {path}"))).text(CALL_CONTENT_TYPE, content_type.as_deref());
        }
        if let Some(aside) = &self.aside {
            to.u64(ASIDE_RECORD, aside.record)
                .text(ASIDE_BACKEND, Some(&aside.backend))
                .u8(ASIDE_REASON, aside.reason as u8)
                .text(ASIDE_STATUS, Some(&aside.status))
                .text(ASIDE_MESSAGE, Some(&aside.message))
                .u32(ASIDE_ATTEMPTS, aside.attempts)
                .u64s(ASIDE_TIMES, &[aside.first_attempt_ns, aside.last_attempt_ns])
                .u64(ASIDE_CLOCK, aside.clock_ms);
        }
        to.finish()
    }

    /// Reads [`Envelope::encode`]'s bytes into `self`, whose fixed fields the frame header gave.
    pub(crate) fn decode(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        for item in tlv::items(bytes) {
            let (tag, value) = item?;
            match tag {
                // A door that a later version added is no reason not to read the record.
                DOOR => self.door = Door::from_u8(tlv::as_u8(value)?).unwrap_or_default(),
                EXPERIMENT => self.experiment = Some(tlv::as_text(value)?),
                WORKSPACE => self.workspace = Some(tlv::as_text(value)?),
                HEADER => {
                    let text = tlv::as_text(value)?;
                    let (name, value) = text.split_once('\0').ok_or(Malformed)?;
                    self.headers.push((name.to_owned(), value.to_owned()));
                }
                PEER_UID => self.peer_uid = Some(tlv::as_u32(value)?),
                SOURCE => {
                    let [device, inode, start, end] = tlv::as_u64s(value)?;
                    self.source = Some(SourceRange { device, inode, start, end });
                }
                VIA => self.via.push(tlv::as_text(value)?),
                TRACE_IDS => {
                    let (ids, rest) = value.as_chunks::<16>();
                    if !rest.is_empty() {
                        return Err(Malformed);
                    }
                    self.trace_ids.extend_from_slice(ids);
                }
                CALL => {
                    let text = tlv::as_text(value)?;
                    let (method, path) = text.split_once(' ').ok_or(Malformed)?;
                    self.call = Some(Call { method: method.to_owned(), path: path.to_owned(), content_type: None });
                }
                CALL_CONTENT_TYPE => {
                    // Written behind the call that it belongs to.
                    self.call.as_mut().ok_or(Malformed)?.content_type = Some(tlv::as_text(value)?);
                }
                ASIDE_RECORD..=ASIDE_TIMES | ASIDE_CLOCK => self.decode_aside(tag, value)?,
                COMPRESSION | ENCRYPTION => return Err(Malformed),
                unknown if unknown & CRITICAL != 0 => return Err(Malformed),
                _ => {}
            }
        }
        Ok(())
    }

    fn decode_aside(&mut self, tag: u16, value: &[u8]) -> Result<(), Malformed> {
        let aside = self.aside.get_or_insert_with(|| Aside {
            record: 0,
            backend: String::new(),
            reason: Reason::Parked,
            status: String::new(),
            message: String::new(),
            attempts: 0,
            first_attempt_ns: 0,
            last_attempt_ns: 0,
            clock_ms: 0,
        });
        match tag {
            ASIDE_RECORD => aside.record = tlv::as_u64(value)?,
            ASIDE_BACKEND => aside.backend = tlv::as_text(value)?,
            ASIDE_REASON => aside.reason = Reason::from_u8(tlv::as_u8(value)?).ok_or(Malformed)?,
            ASIDE_STATUS => aside.status = tlv::as_text(value)?,
            ASIDE_MESSAGE => aside.message = tlv::as_text(value)?,
            ASIDE_ATTEMPTS => aside.attempts = tlv::as_u32(value)?,
            ASIDE_TIMES => [aside.first_attempt_ns, aside.last_attempt_ns] = tlv::as_u64s(value)?,
            ASIDE_CLOCK => aside.clock_ms = tlv::as_u64(value)?,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_comes_back_as_written() {
        for content_type in [None, Some("image/png".to_owned())] {
            let call = Call { method: "PUT".to_owned(), path: "/api/2.0/a b".to_owned(), content_type };
            let written = Envelope { trace_ids: vec![[1; 16], [2; 16]], call: Some(call), ..Envelope::default() };
            let mut read = Envelope::default();
            assert_eq!(read.decode(&written.encode()), Ok(()));
            assert_eq!(read, written);
        }
    }

    #[test]
    fn half_a_trace_id_and_a_media_type_of_nothing_are_malformed() {
        let mut half = Encoder::default();
        half.bytes(TRACE_IDS, &[0; 24]);
        assert_eq!(Envelope::default().decode(&half.finish()), Err(Malformed));
        let mut nothing = Encoder::default();
        nothing.text(CALL_CONTENT_TYPE, Some("text/plain"));
        assert_eq!(Envelope::default().decode(&nothing.finish()), Err(Malformed));
    }
}
